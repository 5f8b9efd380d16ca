"""The parts of stacked hourglasses: residual blocks, anti-aliased pooling, coordinates, the hourglass itself.

TAB, PropNet and SPAN build on these. End-of-line comments give shapes as C x H x W for one picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Supervision(NamedTuple):
    """All outputs of a heat-map network in training mode, first stage first.

    In eval mode the same networks return a plain tuple: the final landmark maps, SPAN's field, and the logits of
    `face_score` if there are any; nothing that only training uses is computed.

    Attributes:
        landmarks: one (F, N, h, w) per supervised stage; the last is the deployed network's output.
        boundaries: one (F, 15 or 16, h, w) per supervised stage.
        field: (F, B, 2, h, w) offsets in cells, (x, y), of B boundary lines or landmarks; only SPAN has it.
        logits: (F, 2) of `blocks.FaceScore`.
    """

    landmarks: tuple[Tensor, ...]
    boundaries: tuple[Tensor, ...]
    field: Tensor | None = None
    logits: Tensor | None = None


def _bn_relu_conv(inputs: int, outputs: int, kernel: int, *, bias: bool) -> nn.Sequential:
    """Pre-activated convolution: normalise, rectify, convolve."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias),
    )


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution with bias, batch normalisation, ReLU; "same" padding."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class HPM(nn.Module):
    """Hierarchical, parallel and multi-scale block: three 3x3 convolutions in a row, all three outputs concatenated.

    Source: Bulat and Tzimiropoulos, "Binarized Convolutional Landmark Localizers", ICCV 2017, figure 3.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half, quarter = outputs // 2, outputs // 4
        self.conv1 = _bn_relu_conv(inputs, half, 3, bias=False)
        self.conv2 = _bn_relu_conv(half, quarter, 3, bias=False)
        self.conv3 = _bn_relu_conv(quarter, quarter, 3, bias=False)
        self.skip = nn.Identity() if inputs == outputs else _bn_relu_conv(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(x)  # c/2
        b = self.conv2(a)  # c/4
        c = self.conv3(b)  # c/4
        skipped: Tensor = self.skip(x)
        return torch.cat((a, b, c), 1) + skipped


class Residual(nn.Module):
    """Pre-activated bottleneck 1x1, 3x3, 1x1 with biases. Source: Newell et al., ECCV 2016."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = outputs // 2
        self.layers = nn.Sequential(
            _bn_relu_conv(inputs, middle, 1, bias=True),
            _bn_relu_conv(middle, middle, 3, bias=True),
            _bn_relu_conv(middle, outputs, 1, bias=True),
        )
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.layers(x) + self.skip(x)
        return total


BINOMIALS = {2: (1.0, 1.0), 3: (1.0, 2.0, 1.0), 5: (1.0, 4.0, 6.0, 4.0, 1.0)}  # the sizes of PropNet's Table 6


class Blur(nn.Module):
    """Low-pass filter, [1 2 1] x [1 2 1] / 16, then every second cell of the result: C x h x w -> C x h/2 x w/2.

    Source: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019; filter size 3 is PropNet's choice.
    """

    kernel: Tensor

    def __init__(self, channels: int, size: int = 3) -> None:
        super().__init__()
        if size not in BINOMIALS:
            raise ValueError(f"blur: wanted a filter of {', '.join(map(str, BINOMIALS))} cells, got {size}")
        taps = torch.tensor(BINOMIALS[size])
        taps = taps / taps.sum()
        self.border = (size - 1) // 2, size // 2, (size - 1) // 2, size // 2
        self.register_buffer("kernel", torch.outer(taps, taps).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, self.border, mode="reflect")
        return F.conv2d(padded, self.kernel.to(x.dtype), stride=2, groups=x.shape[1])


class MaxBlur(nn.Module):
    """Anti-aliased max pooling: the maximum of every 2x2 neighbourhood, blurred before every second one is dropped.

    The last row and column are repeated first, so that size and alignment are those of a plain 2x2 pooling.
    """

    def __init__(self, channels: int, size: int = 3) -> None:
        super().__init__()
        self.blur = Blur(channels, size)

    def forward(self, x: Tensor) -> Tensor:
        dense = F.max_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, stride=1)
        half: Tensor = self.blur(dense)
        return half


def with_coordinates(x: Tensor) -> Tensor:
    """Append three channels: x and y in [-1, 1] and the distance from the middle over its maximum.

    Source: Liu et al., "An Intriguing Failing of Convolutional Neural Networks and the CoordConv Solution", 2018.
    """
    h, w = x.shape[2:]
    ys = torch.linspace(-1, 1, h, dtype=x.dtype, device=x.device).view(1, 1, h, 1)
    xs = torch.linspace(-1, 1, w, dtype=x.dtype, device=x.device).view(1, 1, 1, w)
    radius = (xs**2 + ys**2).sqrt() / 2**0.5
    grid = torch.cat((xs.expand(1, 1, h, w), ys.expand(1, 1, h, w), radius), 1)
    return torch.cat((x, grid.expand(x.shape[0], 3, h, w)), 1)


class Hourglass(nn.Module):
    """Halve the size `depth` times, then double it again, with a block on every path and a skip at every size.

    Returns the sum at every size, finest first: C x h x w, C x h/2 x w/2, ... `depth` tensors. It has 3 * depth + 1
    blocks.

    Source: Newell et al., "Stacked Hourglass Networks for Human Pose Estimation", ECCV 2016.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        block: Callable[[int, int], nn.Module],
        pool: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.unit = 2**depth
        self.pool = pool(channels)
        self.skips = nn.ModuleList(block(channels, channels) for _ in range(depth))
        self.downs = nn.ModuleList(block(channels, channels) for _ in range(depth))
        self.bottom = block(channels, channels)
        self.ups = nn.ModuleList(block(channels, channels) for _ in range(depth))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Run on (F, C, h, w).

        Raises:
            ValueError: h or w cannot be halved that often.
        """
        if x.shape[2] % self.unit or x.shape[3] % self.unit:
            raise ValueError(
                f"hourglass: wanted height and width in multiples of {self.unit} cells, got {tuple(x.shape[2:])}; "
                f"give the network crops in multiples of {4 * self.unit} pixels"
            )
        kept = []
        for skip, down in zip(self.skips, self.downs, strict=True):
            kept.append(skip(x))
            x = down(self.pool(x))
        x = self.bottom(x)
        sums = []
        for same_size, up in zip(reversed(kept), reversed(self.ups), strict=True):
            x = same_size + F.interpolate(up(x), scale_factor=2.0, mode="nearest")
            sums.append(x)
        return sums[::-1]
