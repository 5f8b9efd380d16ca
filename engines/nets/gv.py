"""GV, Gaussian Vector: an encoder, a light decoder and band pooling give two vectors per landmark.

Source: Xiong et al., "Gaussian Vector: An Efficient Solution for Facial Landmark Detection", ECCV 2020.
The MobileNetV3 encoders follow Howard et al., "Searching for MobileNetV3", ICCV 2019; the paper's own two are in
`encoders`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BandPooling, FaceScore, InvertedResidual, conv_bn
from .encoders import Concatenation, HRNet, ResNetV2


class Unit(NamedTuple):
    """One row of MobileNetV3's tables 1 and 2; `tap` marks the rows that feed the decoder."""

    kernel: int
    expanded: int
    outputs: int
    excite: bool
    hard_swish: bool
    stride: int
    tap: bool = False


LARGE = (
    Unit(3, 16, 16, False, False, 1),
    Unit(3, 64, 24, False, False, 2),
    Unit(3, 72, 24, False, False, 1, tap=True),  # stride 4
    Unit(5, 72, 40, True, False, 2),
    Unit(5, 120, 40, True, False, 1),
    Unit(5, 120, 40, True, False, 1, tap=True),  # stride 8
    Unit(3, 240, 80, False, True, 2),
    Unit(3, 200, 80, False, True, 1),
    Unit(3, 184, 80, False, True, 1),
    Unit(3, 184, 80, False, True, 1),
    Unit(3, 480, 112, True, True, 1),
    Unit(3, 672, 112, True, True, 1, tap=True),  # stride 16
    Unit(5, 672, 160, True, True, 2),
    Unit(5, 960, 160, True, True, 1),
    Unit(5, 960, 160, True, True, 1, tap=True),  # stride 32
)
SMALL = (
    Unit(3, 16, 16, True, False, 2, tap=True),  # stride 4
    Unit(3, 72, 24, False, False, 2),
    Unit(3, 88, 24, False, False, 1, tap=True),  # stride 8
    Unit(5, 96, 40, True, True, 2),
    Unit(5, 240, 40, True, True, 1),
    Unit(5, 240, 40, True, True, 1),
    Unit(5, 120, 48, True, True, 1),
    Unit(5, 144, 48, True, True, 1, tap=True),  # stride 16
    Unit(5, 288, 96, True, True, 2),
    Unit(5, 576, 96, True, True, 1),
    Unit(5, 576, 96, True, True, 1, tap=True),  # stride 32
)


class MobileNetV3(nn.Module):
    """MobileNetV3 without its classifier; returns the feature maps at strides 4, 8, 16 and 32."""

    def __init__(self, units: tuple[Unit, ...]) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2, activation=nn.Hardswish)
        self.units = nn.ModuleList()
        self.taps = [i for i, unit in enumerate(units) if unit.tap]
        self.channels = [units[i].outputs for i in self.taps]
        inputs = 16
        for unit in units:
            self.units.append(
                InvertedResidual(
                    inputs,
                    unit.kernel,
                    unit.expanded,
                    unit.outputs,
                    excite=unit.excite,
                    hard_swish=unit.hard_swish,
                    stride=unit.stride,
                )
            )
            inputs = unit.outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)  # 16 x s/2 x s/2
        features = []
        for i, unit in enumerate(self.units):
            x = unit(x)
            if i in self.taps:
                features.append(x)
        return features


ENCODERS: dict[str, Callable[[], MobileNetV3 | ResNetV2 | HRNet]] = {
    "mobilenetv3-large": lambda: MobileNetV3(LARGE),
    "mobilenetv3-small": lambda: MobileNetV3(SMALL),
    "resnet50v2": ResNetV2,
    "hrnetv2-w32": lambda: HRNet(32),
    "hrnetv2-w18": lambda: HRNet(18),
}


class FeaturePyramid(nn.Module):
    """Top-down pathway of an FPN (Lin et al., CVPR 2017): laterals added upwards, one 3x3 on the finest."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        maps = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        top = maps[-1]
        for finer in reversed(maps[:-1]):
            top = finer + F.interpolate(top, scale_factor=2.0, mode="nearest")
        return F.relu(self.smooth(top))  # width x s/4 x s/4


class GV(nn.Module):
    """Picture (F, 3, s, s) -> vectors (F, L, s/4, 2) and, with `face_score`, logits (F, 2).

    Parameters with 68 landmarks: ResNetV2-50 25.096 M, HRNetV2-W32 29.570 M, W18 9.654 M, MobileNetV3-Large and a
    64-wide pyramid 2.880 M. The paper states none. It names FPN as the decoder; HRNet has already fused its resolutions
    and keeps its own decoder, so that `width`, the pyramid's, has no effect there.
    """

    def __init__(
        self,
        landmarks: int = 68,
        encoder: str = "mobilenetv3-large",
        width: int = 64,
        bandwidths: tuple[int, int] = (3, 5),
        *,
        face_score: bool = False,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"unknown GV encoder: wanted one of {', '.join(ENCODERS)}, got {encoder!r}")
        self.encoder = ENCODERS[encoder]()
        channels = self.encoder.channels
        if isinstance(self.encoder, HRNet):
            self.decoder: nn.Module = Concatenation(channels)
            width = sum(channels)
        else:
            self.decoder = FeaturePyramid(channels, width)
        self.head = nn.Conv2d(width, landmarks, 1)  # linear: no activation, or 1 + theta is out of reach
        self.pool = BandPooling(bandwidths)
        self.score = FaceScore(channels[-1]) if face_score else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder(x)  # 24 x s/4, 40 x s/8, 112 x s/16, 160 x s/32 (MobileNetV3-Large)
        vectors = self.pool(self.head(self.decoder(features)))  # L x s/4 x 2
        if self.score is None:
            return (vectors,)
        return vectors, self.score(features[-1])
