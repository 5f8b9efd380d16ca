"""Boundary maps drawn from landmarks in torch, in the two ways of the papers.

TAB and SPAN interpolate a curve, mark the cells that it crosses and apply a Gaussian of the exact distance from them.
PropNet joins landmarks by straight lines and blurs those. Nothing is rounded to whole cells before a line is drawn.
"""

from __future__ import annotations

from functools import cache
from math import ceil, exp

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import make_interp_spline
from torch import Tensor

from ...tracker import markup
from ...tracker.markup import Markup
from ...tracker.types import Float32, Int64
from .maps import to_cells

SAMPLES = 1024  # of a curve: at least four per cell for a contour twice as long as the largest map's width
FAR = -1e6  # position of the samples of a line with an unknown landmark
BLUR_REACH = 4  # cells that PropNet's lines and their blur (sigma 1) extend to either side


def boundary_mirror(marks: Markup) -> Int64:
    """(B,) the line that takes each line's place in a mirrored picture.

    Lines are matched by name, not by points: if a markup lacks a line, two lines have the same points.
    """
    names = list(marks.boundaries)
    swapped = {"right": "left", "left": "right"}
    return np.array([names.index("_".join(swapped.get(w, w) for w in name.split("_"))) for name in names])


@cache
def curve_weights(name: str, samples: int) -> Float32:
    """Weights (B, samples, N) that turn the landmarks of a markup into points along its boundary lines.

    A curve is a spline of order min(3, n - 1) through the n landmarks of a line at equal parameter steps, and so a
    fixed linear function of the landmarks. A line of one landmark is that point. Landmarks may coincide.
    """
    marks = markup.load(name)
    weights = np.zeros((len(marks.boundaries), samples, marks.points), np.float32)
    for row, line in zip(weights, marks.boundaries.values(), strict=True):
        n = len(line)
        if n == 1:
            row[:, line[0]] = 1
        else:
            spline = make_interp_spline(np.arange(n), np.eye(n), k=min(3, n - 1))
            row[:, list(line)] = spline(np.linspace(0, n - 1, samples))
    weights.flags.writeable = False
    return weights


def boundary_curves(xy: Tensor, marks: Markup, samples: int) -> Tensor:
    """Points along every boundary line, (F, N, 2) -> (F, B, samples, 2); NaN on lines with an unknown landmark."""
    weights = torch.tensor(curve_weights(marks.name, samples), dtype=xy.dtype, device=xy.device)
    curves = torch.einsum("bsn,fnc->fbsc", weights, xy.nan_to_num(nan=0.0))
    unknown = torch.isnan(xy).any(2)  # F, N
    lost = torch.stack([unknown[:, list(line)].any(1) for line in marks.boundaries.values()], 1)
    return curves.masked_fill(lost[:, :, None, None], torch.nan)


def curve_maps(
    xy: Tensor, marks: Markup, size: tuple[int, int], stride: float, sigma: float = 1.0, cut: float = 3.0
) -> Tensor:
    """Boundary maps of TAB (`cut` 3) and SPAN (`cut` 2): exp(-D^2 / 2 sigma^2) where D < cut * sigma, else 0.

    D is the exact distance, in cells, to the nearest cell that the curve crosses. SPAN's Eq. 3 prints D instead of its
    square, but the text introduces the map as a Gaussian, which needs the square. Its xi, a small constant, is 0.

    Args:
        xy: (F, N, 2) crop pixels; lines with a NaN point are empty.
        marks: the markup of the N points.
        size: (h, w) of the maps, cells.
        stride: crop pixels per cell.
        sigma: width of a line, cells.
        cut: sigmas.
    Returns:
        (F, B, h, w), maximum 1.
    """
    reach = ceil(cut * sigma) - 1
    ring = reach + 1  # cells round the map: lines just outside have an effect inside, those farther away end up here
    h, w = size
    curves = to_cells(boundary_curves(xy, marks, SAMPLES), stride).nan_to_num(nan=FAR)
    column = (curves[..., 0].round().clamp(-ring, w - 1 + ring) + ring).long()
    row = (curves[..., 1].round().clamp(-ring, h - 1 + ring) + ring).long()
    wide = w + 2 * ring
    maps = xy.new_zeros(*curves.shape[:2], h + 2 * ring, wide)
    maps.flatten(2).scatter_(2, row * wide + column, 1.0)
    # A Gaussian of a sum of squares is a product, so its maximum over crossed cells is found axis by axis.
    maps = _spread(_spread(maps, sigma, reach, 2), sigma, reach, 3)
    maps = maps[..., ring:-ring, ring:-ring]
    lowest = exp(-0.5 * cut**2) * (1 + 1e-6)
    return maps * (maps > lowest)


def _spread(maps: Tensor, sigma: float, reach: int, axis: int) -> Tensor:
    """Maximum over neighbours along one axis, each weighted by its distance; what wraps round stays in the ring."""
    widest = maps
    for step in range(1, reach + 1):
        weakened = maps * exp(-0.5 * (step / sigma) ** 2)
        widest = torch.maximum(widest, weakened.roll(step, axis))
        widest = torch.maximum(widest, weakened.roll(-step, axis))
    return widest


def with_union(maps: Tensor) -> Tensor:
    """Append the union of all lines, their maximum: TAB's 16th map."""
    return torch.cat((maps, maps.amax(1, keepdim=True)), 1)


def segment_maps(xy: Tensor, marks: Markup, size: tuple[int, int], stride: float) -> Tensor:
    """Boundary maps of PropNet: straight anti-aliased lines one cell thick, Gaussian blur (sigma 1), maximum 1.

    The maximum is taken over a canvas somewhat larger than the map, so that a line that is cut by the border keeps its
    height.

    Args:
        xy: (F, N, 2) crop pixels; lines with a NaN point are empty.
        marks: the markup of the N points.
        size: (h, w) of the maps, cells.
        stride: crop pixels per cell.
    Returns:
        (F, B, h, w).
    """
    cells = to_cells(xy, stride)
    columns = torch.arange(-BLUR_REACH, size[1] + BLUR_REACH, device=xy.device, dtype=xy.dtype)
    rows = torch.arange(-BLUR_REACH, size[0] + BLUR_REACH, device=xy.device, dtype=xy.dtype)
    lines = []
    for line in marks.boundaries.values():
        points = cells[:, list(line)]
        ends = (points[:, :-1], points[:, 1:]) if len(line) > 1 else (points, points)
        lines.append((1 - _distance(columns, rows[:, None], *ends)).clamp(0, 1).nan_to_num(nan=0.0))
    maps = _blur(torch.stack(lines, 1))
    highest = maps.amax((2, 3), keepdim=True).clamp(min=1e-6)
    return (maps / highest)[..., BLUR_REACH:-BLUR_REACH, BLUR_REACH:-BLUR_REACH]


def _distance(columns: Tensor, rows: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distance of every cell from the nearest of n segments (F, n, 2), as (F, h, w)."""
    way_x, way_y = (end - start)[..., None, None].unbind(2)  # F, n, 1, 1
    x, y = columns - start[:, :, 0, None, None], rows - start[:, :, 1, None, None]  # F, n, 1, w; F, n, h, 1
    along = (x * way_x + y * way_y) / (way_x**2 + way_y**2).clamp(min=1e-12)  # F, n, h, w
    along = along.clamp(0, 1)
    squared: Tensor = (x - along * way_x) ** 2 + (y - along * way_y) ** 2
    return squared.amin(1).sqrt()


def _blur(maps: Tensor) -> Tensor:
    taps = torch.exp(-0.5 * torch.arange(-3, 4, device=maps.device, dtype=maps.dtype) ** 2)
    taps = taps / taps.sum()
    flat = maps.flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, taps.view(1, 1, 7, 1), padding=(3, 0)), taps.view(1, 1, 1, 7), padding=(0, 3))
    return flat[:, 0].view_as(maps)
