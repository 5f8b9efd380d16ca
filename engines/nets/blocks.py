"""Building blocks that several networks share: convolution units, inverted residuals, band pooling.

End-of-line comments give shapes as C x H x W for one picture; `s` is the spatial size of the input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Depthwise(nn.Conv2d):
    """A convolution of each channel by itself, which stays in float32 if autocast uses bfloat16 on a CPU.

    In bfloat16 the gradients of MobileNetV3's depthwise convolutions take longer there than the whole network's in
    float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    """Convolution without bias, batch normalisation and, if asked, an activation; "same" padding."""
    kind = Depthwise if groups == inputs == outputs else nn.Conv2d
    layers: list[nn.Module] = [
        kind(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=0.001, momentum=0.01),  # Howard et al., ICCV 2019, as published
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Channel gate of MobileNetV3: global mean, two 1x1 convolutions, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = round_channels(channels // 4)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.fc2(gate))


def round_channels(channels: float) -> int:
    """Nearest multiple of 8 that loses at most 10 % (the rule of the MobileNets)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """MobileNetV3 unit: expand, depthwise, squeeze-excite, project, with a skip where shapes agree."""

    def __init__(
        self,
        inputs: int,
        kernel: int,
        expanded: int,
        outputs: int,
        *,
        excite: bool,
        hard_swish: bool,
        stride: int,
    ) -> None:
        super().__init__()
        activation: type[nn.Module] = nn.Hardswish if hard_swish else nn.ReLU
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(conv_bn(inputs, expanded, activation=activation))
        layers.append(conv_bn(expanded, expanded, kernel, stride, groups=expanded, activation=activation))
        if excite:
            layers.append(SqueezeExcite(expanded))
        layers.append(conv_bn(expanded, outputs))
        self.block = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.block(x)
        return x + projected if self.skip else projected


class BandPooling(nn.Module):
    """Heat maps to a pair of vectors per landmark: means over sliding vertical and horizontal bands.

    Two bandwidths are mixed with weight `alpha` (Eq. 5); zero padding counts in the mean. The mean over a
    band of width l is a box filter of length l on the column (row) means, so the two bandwidths together are
    one fixed one-dimensional kernel. No parameters.

    Source: Xiong et al., Gaussian Vector, ECCV 2020, Eqs. 4 and 5.
    """

    kernel: Tensor

    def __init__(self, bandwidths: tuple[int, int] = (3, 5), alpha: float = 0.5) -> None:
        super().__init__()
        if any(width % 2 == 0 for width in bandwidths):
            raise ValueError(f"band pooling: wanted odd bandwidths, which have a middle, got {bandwidths}")
        reach = max(bandwidths) // 2
        kernel = torch.zeros(2 * reach + 1)
        for width, weight in zip(bandwidths, (alpha, 1.0 - alpha), strict=True):
            kernel[reach - width // 2 : reach + width // 2 + 1] += weight / width
        self.register_buffer("kernel", kernel.view(1, 1, -1), persistent=False)

    def forward(self, heatmaps: Tensor) -> Tensor:
        """Pool (F, L, h, w) with h == w into (F, L, w, 2); [..., 0] is the x vector, [..., 1] the y vector."""
        faces, landmarks, _, w = heatmaps.shape
        means = torch.stack((heatmaps.mean(2), heatmaps.mean(3)), 2)  # F, L, 2, w
        flat = means.reshape(faces * landmarks * 2, 1, w)
        banded = F.conv1d(flat, self.kernel.to(flat.dtype), padding=self.kernel.shape[-1] // 2)
        return banded.view(faces, landmarks, 2, w).transpose(2, 3)


class FaceScore(nn.Module):
    """Two logits from the coarsest features: "this is a face" and "the landmarks are good"."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = 64
        self.hidden = nn.Linear(channels, width)
        self.logits = nn.Linear(width, 2)

    def forward(self, coarsest: Tensor) -> Tensor:
        logits: Tensor = self.logits(F.relu(self.hidden(coarsest.mean((2, 3)))))
        return logits
