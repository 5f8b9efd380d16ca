"""GV, Gaussian Vector: an encoder, a light decoder and band pooling give two vectors per landmark.

Source: Xiong et al., "Gaussian Vector: An Efficient Solution for Facial Landmark Detection", ECCV 2020.
The MobileNetV3 encoders follow Howard et al., "Searching for MobileNetV3", ICCV 2019.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BandPooling, InvertedResidual, conv_bn


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
ENCODERS = {"mobilenetv3-large": LARGE, "mobilenetv3-small": SMALL}


class MobileNetV3(nn.Module):
    """MobileNetV3 without its classifier; gives the feature maps at strides 4, 8, 16 and 32."""

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


class FaceScore(nn.Module):
    """Two logits from the coarsest features: "this is a face" and "the landmarks are good"."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, width)
        self.logits = nn.Linear(width, 2)

    def forward(self, coarsest: Tensor) -> Tensor:
        return self.logits(F.relu(self.hidden(coarsest.mean((2, 3)))))


class GV(nn.Module):
    """Picture (F, 3, s, s) -> vectors (F, L, s/4, 2) and, with `face_score`, logits (F, 2)."""

    def __init__(
        self, landmarks: int = 68, encoder: str = "mobilenetv3-large", width: int = 64, *, face_score: bool = False
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"unknown GV encoder: wanted one of {', '.join(ENCODERS)}, got {encoder!r}")
        self.encoder = MobileNetV3(ENCODERS[encoder])
        self.decoder = FeaturePyramid(self.encoder.channels, width)
        self.head = nn.Conv2d(width, landmarks, 1)  # linear: no activation, or 1 + theta is out of reach
        self.pool = BandPooling()
        self.score = FaceScore(self.encoder.channels[-1]) if face_score else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder(x)  # 24 x s/4, 40 x s/8, 112 x s/16, 160 x s/32 (large)
        vectors = self.pool(self.head(self.decoder(features)))  # L x s/4 x 2
        if self.score is None:
            return (vectors,)
        return vectors, self.score(features[-1])
