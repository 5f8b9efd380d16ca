"""BB-FCN's backbone on cells of 2x2 pixels: the same sums at a quarter of the places, with four times the channels.

With only 20 channels, a convolution spends its time on fetching pixels. A convolution of 5x5 pixels equals one of 3x3
cells, of whose weights three tenths are zeros; in 8 bits it takes half the time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bbfcn import Backbone, Doubling


class FoldedBackbone(nn.Module):
    """A trained backbone as it is exported: (B, 3, h, w), h and w divisible by 4 -> the response maps (B, K, h, w).

    The channels of a cell are in the order of `pixel_unshuffle`: channel, row, column.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        layers = [layer for layer in backbone.layers if isinstance(layer, nn.Conv2d | Doubling)]
        c1, c2, c3, c4, c5, c6, d1, c7, d2, c8 = (_as_convolution(layer) for layer in layers)
        self.at_full = nn.Sequential(_folded(c1), nn.ReLU(), _pixel_by_pixel(_folded(c2)), nn.ReLU())
        self.at_half = nn.Sequential(_of_pixels(_folded(c3)), nn.ReLU(), _pixel_by_pixel(_folded(c4)), nn.ReLU())
        self.at_quarter = nn.Sequential(c5, nn.ReLU(), c6, nn.ReLU(), d1, nn.ReLU())
        self.decoder = nn.Sequential(_folded(c7), nn.ReLU(), _folded(d2), nn.ReLU(), _folded_twice(c8))

    def forward(self, x: Tensor) -> Tensor:
        x = _largest_of_cells(self.at_full(F.pixel_unshuffle(x, 2)))  # 20 x h/2 x w/2
        x = _largest_of_cells(self.at_half(x))  # 30 x h/4 x w/4
        return F.pixel_shuffle(self.decoder(self.at_quarter(x)), 4)


def _as_convolution(layer: nn.Conv2d | Doubling) -> nn.Conv2d:
    """Copy a layer as a convolution; a `Doubling` without its layout in space."""
    if isinstance(layer, Doubling):
        return _convolution(*layer.kernels())
    return _convolution(layer.weight, _bias(layer))


def _convolution(kernels: Tensor, bias: Tensor, stride: int = 1) -> nn.Conv2d:
    """A convolution with kernels (O, I, k, k), padded so that it keeps the size or divides it by the stride."""
    outputs, inputs, size, _ = kernels.shape
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=(size - 1) // 2)
    conv.load_state_dict({"weight": kernels.detach(), "bias": bias.detach()})
    return conv


def _folded(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution of cells that computes the same as one of 1x1 or 5x5 pixels."""

    def sums(cells: Tensor) -> Tensor:
        return F.pixel_unshuffle(_sums(conv, F.pixel_shuffle(cells, 2)), 2)

    reach = -(-(conv.kernel_size[0] // 2) // 2)
    return _convolution(_kernels(sums, 4 * conv.in_channels, reach), _bias(conv).repeat_interleave(4))


def _folded_twice(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution of cells of cells that computes the same as one of 1x1 pixels; its outputs are in 4x4 order."""

    def sums(cells: Tensor) -> Tensor:
        return F.pixel_unshuffle(_sums(conv, F.pixel_shuffle(F.pixel_shuffle(cells, 2), 2)), 4)

    return _convolution(_kernels(sums, 16 * conv.in_channels, 0), _bias(conv).repeat_interleave(16))


def _sums(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, padding=conv.padding)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _kernels(sums: Callable[[Tensor], Tensor], inputs: int, reach: int) -> Tensor:
    """Kernels (O, I, k, k) of linear sums over cells that are at most `reach` away: their responses to a single 1."""
    ones = torch.zeros(inputs, inputs, 2 * reach + 1, 2 * reach + 1)
    ones[range(inputs), range(inputs), reach, reach] = 1
    return sums(ones).transpose(0, 1).flip(2, 3)


def _of_pixels(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution that reads pixels where this one reads cells."""
    return _convolution(F.pixel_shuffle(conv.weight, 2), _bias(conv), stride=2)


def _pixel_by_pixel(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with its outputs in the order row, column, channel."""
    order = torch.arange(conv.out_channels).reshape(-1, 4).T.flatten()
    return _convolution(conv.weight[order], _bias(conv)[order])


def _largest_of_cells(cells: Tensor) -> Tensor:
    """Max-pooling: cells (B, 4 C, h, w) in the order row, column, channel -> (B, C, h, w).

    It lays the pixels of a cell side by side; with the channels innermost, as runtimes store 8-bit numbers, that moves
    no data.
    """
    batch, channels, height, width = cells.shape
    beside = cells.permute(0, 2, 3, 1).reshape(batch, height, 4 * width, channels // 4)
    return F.max_pool2d(beside.permute(0, 3, 1, 2), (1, 4))
