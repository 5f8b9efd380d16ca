"""Map targets drawn from landmarks in torch, on the landmarks' device: heat maps and BALI fields.

Also functions that move landmarks and maps from one crop into another. Boundary maps are in `boundaries`. A cell u of a
map corresponds to the crop pixel stride * (u + 0.5) - 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...tracker.markup import Markup

FIELD_REACH = 5  # SPAN trains its field in 11 x 11 cells round every landmark (section IV-A)


def to_cells(xy: Tensor, stride: float) -> Tensor:
    """Crop pixels to fractional map cells."""
    return (xy + 0.5) / stride - 0.5


def gaussian_maps(xy: Tensor, size: tuple[int, int], stride: float, sigma: float) -> Tensor:
    """One Gaussian of height 1 per landmark, centred at the exact, fractional place.

    Args:
        xy: (F, N, 2) crop pixels; a NaN point has an empty map, one beyond the crop leaves the Gaussian's tail.
        size: (h, w) of the maps, cells.
        stride: crop pixels per cell.
        sigma: width of the Gaussian, cells. The papers do not state theirs; 1 on 64 cells is usual in the field.
    Returns:
        (F, N, h, w).
    """
    cells = to_cells(xy, stride)
    columns = torch.arange(size[1], device=xy.device, dtype=xy.dtype) - cells[..., 0, None]  # F, N, w
    rows = torch.arange(size[0], device=xy.device, dtype=xy.dtype) - cells[..., 1, None]  # F, N, h
    across, down = (torch.exp(-0.5 * (d / sigma) ** 2).nan_to_num(nan=0.0) for d in (columns, rows))
    return down[..., :, None] * across[..., None, :]


def bali_fields(
    xy: Tensor, lines: Sequence[Sequence[int]], size: tuple[int, int], stride: float
) -> tuple[Tensor, Tensor]:
    """Offsets to the nearest landmark of each line, in squares of 2 * `FIELD_REACH` + 1 cells round its landmarks.

    Args:
        xy: (F, N, 2) crop pixels.
        lines: landmarks of each of the B lines.
        size: (h, w) of the maps, cells.
        stride: crop pixels per cell.
    Returns:
        field: (F, B, 2, h, w) landmark minus cell, (x, y), cells; 0 where it is not defined.
        mask: (F, B, h, w) True where it is defined.
    Source: SPAN, Eq. 2.
    """
    cells = to_cells(xy, stride)
    columns = torch.arange(size[1], device=xy.device, dtype=xy.dtype)
    rows = torch.arange(size[0], device=xy.device, dtype=xy.dtype)[:, None]
    fields, masks = [], []
    for line in lines:
        points = cells[:, list(line), :, None, None]  # F, n, 2, 1, 1
        x, y = points[:, :, 0], points[:, :, 1]  # F, n, 1, 1
        inside = ((columns - x.round()).abs() <= FIELD_REACH) & ((rows - y.round()).abs() <= FIELD_REACH)  # F, n, h, w
        far = ((columns - x) ** 2 + (rows - y) ** 2).masked_fill(~inside, torch.inf)
        distance, nearest = far.min(1)
        mask = torch.isfinite(distance)
        to_x = _of_nearest(x, nearest) - columns
        to_y = _of_nearest(y, nearest) - rows
        fields.append(torch.stack((to_x, to_y), 1).masked_fill(~mask[:, None], 0.0))
        masks.append(mask)
    return torch.stack(fields, 1), torch.stack(masks, 1)


def moved_points(xy: Tensor, matrices: Tensor, marks: Markup) -> Tensor:
    """Landmarks of one crop in another crop of the same picture, (F, N, 2) crop pixels.

    Args:
        xy: (F, N, 2) crop pixels.
        matrices: (F, 2, 3) from the first crop's pixels to the second's; one that mirrors also swaps landmarks.
        marks: the markup of the N points.
    """
    moved = torch.einsum("fij,fnj->fni", matrices[:, :, :2], xy) + matrices[:, None, :, 2]
    mirror = torch.tensor(marks.mirror, device=moved.device)
    return torch.where(_mirrors(matrices)[:, None, None], moved[:, mirror], moved)


def warp_maps(maps: Tensor, matrices: Tensor, stride: float, mirror: Tensor) -> Tensor:
    """Maps of one crop, moved into another crop of the same picture: D of SPAN's Eq. 7.

    Args:
        maps: (F, K, h, w).
        matrices: (F, 2, 3) from the first crop's pixels to the second's; one that mirrors also swaps channels.
        stride: crop pixels per cell.
        mirror: (K,) the channel that takes each channel's place in a mirrored picture.
    Returns:
        (F, K, h, w); 0 where the first crop shows nothing.
    """
    h, w = maps.shape[2:]
    maps = torch.where(_mirrors(matrices)[:, None, None, None], maps[:, mirror], maps)
    back = torch.linalg.inv(matrices[:, :, :2])  # second crop -> first
    shift = -(back @ matrices[:, :, 2:])
    columns = torch.arange(w, device=maps.device, dtype=maps.dtype)
    rows = torch.arange(h, device=maps.device, dtype=maps.dtype)
    pixels = stride * (torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1) + 0.5) - 0.5  # h, w, 2
    source = torch.einsum("fij,hwj->fhwi", back, pixels) + shift[:, None, None, :, 0]
    cells = to_cells(source, stride)
    scale = torch.tensor([2 / (w - 1), 2 / (h - 1)], device=maps.device, dtype=maps.dtype)
    return F.grid_sample(maps, cells * scale - 1, align_corners=True)


def _mirrors(matrices: Tensor) -> Tensor:
    """Which of the matrices (F, 2, 3) from crop to crop mirror, (F,) bool."""
    mirrored: Tensor = torch.linalg.det(matrices[:, :, :2]) < 0
    return mirrored


def _of_nearest(values: Tensor, nearest: Tensor) -> Tensor:
    """Values (F, h, w) picked from (F, n, 1, 1) by indices (F, h, w)."""
    flat = values[:, :, 0, 0].gather(1, nearest.flatten(1))
    return flat.view_as(nearest)
