"""BB-FCN: a backbone finds all landmark types coarsely, one small branch per type places them finely.

Source: Liu et al., "Facial Landmark Localization in the Wild by Backbone-Branches Representation Learning",
sections III-A (backbone), III-B (branches) and IV-C (the regression baseline).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups), nn.ReLU(inplace=True)]


class Doubling(nn.ConvTranspose2d):
    """A 2x2 deconvolution of stride 2, computed as four 1x1 convolutions laid out in space.

    The same sums in an order that runtimes do fast and can quantise: no two outputs overlap.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert output_size is None
        assert self.bias is not None
        kernels = self.weight.permute(1, 2, 3, 0).flatten(0, 2)[..., None, None]  # 4 outputs x inputs x 1 x 1
        return F.pixel_shuffle(F.conv2d(x, kernels, self.bias.repeat_interleave(4)), 2)


def _encoder() -> list[nn.Module]:
    """The six convolutions that the backbone and the regression baseline share; 40 x s/4 x s/4."""
    return [
        *_conv(3, 20, 5),
        *_conv(20, 20, 5),
        nn.MaxPool2d(2),
        *_conv(20, 30, 5),
        *_conv(30, 30, 5),
        nn.MaxPool2d(2),
        *_conv(30, 40, 5),
        *_conv(40, 40, 5),
    ]


class Backbone(nn.Module):
    """Picture (B, 3, h, w), h and w divisible by 4 -> one response map per landmark type (B, K, h, w)."""

    def __init__(self, landmarks: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_encoder(),
            Doubling(40, 30),  # 30 x s/2 x s/2
            nn.ReLU(inplace=True),
            *_conv(30, 30, 5),
            Doubling(30, 15),  # 15 x s x s
            nn.ReLU(inplace=True),
            nn.Conv2d(15, landmarks, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.layers(x)
        return maps


class Branches(nn.Module):
    """K branches as one grouped network: RGB and the own coarse map (B, 3, h, w), (B, K, h, w) -> (B, K, h, w)."""

    def __init__(self, landmarks: int = 5) -> None:
        super().__init__()
        self.landmarks = landmarks
        layers = _conv(4 * landmarks, 5 * landmarks, 5, landmarks)
        for _ in range(3):
            layers += _conv(5 * landmarks, 5 * landmarks, 5, landmarks)
        self.layers = nn.Sequential(*layers, nn.Conv2d(5 * landmarks, landmarks, 1, groups=landmarks))

    def forward(self, rgb: Tensor, coarse: Tensor) -> Tensor:
        planes = [plane for k in range(self.landmarks) for plane in (rgb, coarse[:, k : k + 1])]
        maps: Tensor = self.layers(torch.cat(planes, 1))
        return maps


class BBFCN(nn.Module):
    """Face crops (B, 3, 64, 64) -> coarse maps (B, K, 32, 32) and fine maps (B, K, 64, 64).

    The paper cuts a 24 x 24 window round each coarse landmark before its branch. The branches are fully
    convolutional, so they run here on the whole crop and the decoder looks at the window alone: the same
    weights, true pixels instead of zeros beyond the window's edge, and one graph without data-dependent shapes.
    """

    def __init__(self, landmarks: int = 5) -> None:
        super().__init__()
        self.backbone = Backbone(landmarks)
        self.branches = Branches(landmarks)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        coarse = self.backbone(F.avg_pool2d(x, 2))
        enlarged = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return coarse, self.branches(x, enlarged)


class RegressionBaseline(nn.Module):
    """The paper's comparison: (B, 3, h, w) -> (B, 3K, h/4, w/4), a probability and an offset per type and cell."""

    def __init__(self, landmarks: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_encoder(),
            nn.ZeroPad2d((0, 1, 0, 1)),  # even kernels keep the size only with one side more
            nn.Conv2d(40, 30, 2),
            nn.ReLU(inplace=True),
            nn.ZeroPad2d((1, 2, 1, 2)),
            nn.Conv2d(30, 30, 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(30, 3 * landmarks, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        cells: Tensor = self.layers(x)
        return cells
