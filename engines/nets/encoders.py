"""The large picture encoders of GV: ResNetV2-50 and HRNetV2; each returns features at strides 4, 8, 16 and 32.

End-of-line comments give shapes as C x H x W for one picture; `s` is the side of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Bottleneck(nn.Module):
    """ResNet's 1x1, 3x3, 1x1, activated after the sum, with torchvision's names. Source: He et al., CVPR 2016."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity() if inputs == outputs else _conv_bn(inputs, outputs, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class PreActivated(nn.Module):
    """ResNetV2's bottleneck: normalise and rectify before each convolution. Source: He et al., ECCV 2016."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // 4
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        y: Tensor = self.conv1(active)
        y = self.conv2(F.relu(self.bn2(y)))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + skip


class ResNetV2(nn.Module):
    """ResNetV2-50. The sums that leave a stage are not normalised, so every tap has its own BN and ReLU."""

    STAGES = ((256, 3), (512, 4), (1024, 6), (2048, 3))  # channels, units

    def __init__(self) -> None:
        super().__init__()
        self.channels = [outputs for outputs, _ in self.STAGES]
        self.stem = _conv_bn(3, 64, 7, 2)
        self.stages = nn.ModuleList()
        inputs = 64
        for number, (outputs, units) in enumerate(self.STAGES):
            stage = [PreActivated(inputs, outputs, 1 if number == 0 else 2)]
            stage += [PreActivated(outputs, outputs, 1) for _ in range(units - 1)]
            self.stages.append(nn.Sequential(*stage))
            inputs = outputs
        self.taps = nn.ModuleList(nn.BatchNorm2d(c) for c in self.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.stem(x), 3, 2, padding=1)  # 64 x s/4 x s/4
        features = []
        for stage, tap in zip(self.stages, self.taps, strict=True):
            x = stage(x)  # 256 x s/4, 512 x s/8, 1024 x s/16, 2048 x s/32
            features.append(F.relu(tap(x)))
        return features


class BasicBlock(nn.Module):
    """Two 3x3 convolutions of equal width and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn(channels, channels, 3)
        self.conv2 = _conv_bn(channels, channels, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + x)


class _Sum(nn.ModuleList):
    """The sum at one resolution of the features of all resolutions, each through its own path."""

    def forward(self, features: list[Tensor]) -> Tensor:
        return F.relu(reduce(torch.add, [path(x) for path, x in zip(self, features, strict=True)]))


class Exchange(nn.Module):
    """HRNet's module: four blocks on each resolution, then every resolution adds all the others."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(c) for _ in range(4))) for c in channels)
        scales = range(len(channels))
        self.paths = nn.ModuleList(_Sum(self._path(channels, j, i) for j in scales) for i in scales)

    @staticmethod
    def _path(channels: Sequence[int], source: int, target: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:  # coarser: 1x1, then enlarged
            enlarge = nn.Upsample(scale_factor=2.0 ** (source - target), mode="nearest")
            return nn.Sequential(_conv_bn(channels[source], channels[target], 1, relu=False), enlarge)
        halvings = [_conv_bn(channels[source], channels[source], 3, 2) for _ in range(target - source - 1)]
        return nn.Sequential(*halvings, _conv_bn(channels[source], channels[target], 3, 2, relu=False))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        own = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        return [total(own) for total in self.paths]


class HRNet(nn.Module):
    """HRNetV2 of a width (18 or 32): high resolution is kept, coarser branches join one after the other.

    Source: Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", 2019; 1, 4 and 3 modules
    in stages 2 to 4 as in the authors' facial landmark networks.
    """

    MODULES = (1, 4, 3)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = [width, 2 * width, 4 * width, 8 * width]
        blocks = (Bottleneck(64, 256), *(Bottleneck(256, 256) for _ in range(3)))
        self.stem = nn.Sequential(_conv_bn(3, 64, 3, 2), _conv_bn(64, 64, 3, 2), *blocks)
        self.entries = nn.ModuleList(
            [_conv_bn(256, width, 3), _conv_bn(256, 2 * width, 3, 2)]
            + [_conv_bn(c, 2 * c, 3, 2) for c in self.channels[1:3]]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Exchange(self.channels[: branches + 2]) for _ in range(modules)))
            for branches, modules in enumerate(self.MODULES)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)  # 256 x s/4 x s/4
        features = [self.entries[0](x), self.entries[1](x)]  # w x s/4, 2w x s/8
        features = self.stages[0](features)
        features = self.stages[1]([*features, self.entries[2](features[-1])])  # + 4w x s/16
        joined: list[Tensor] = self.stages[2]([*features, self.entries[3](features[-1])])  # + 8w x s/32
        return joined


class Concatenation(nn.Module):
    """HRNetV2's own decoder: all branches at the finest size, concatenated, through one 1x1 convolution."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.width = sum(channels)
        self.mix = nn.Sequential(
            nn.Conv2d(self.width, self.width, 1), nn.BatchNorm2d(self.width), nn.ReLU(inplace=True)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        same = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in features[1:]]
        mixed: Tensor = self.mix(torch.cat([features[0], *same], 1))  # 15w x s/4 x s/4
        return mixed
