"""BB-FCN's labels, a disc on every landmark, and its loss, which selects among the other pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...tracker.types import Float32, UInt8

UNKNOWN = 2  # value of a pixel of a disc map that is left out of the loss
WITHOUT_LANDMARK = 13  # pixels selected in a map without landmark: as many as a disc of radius 2 has


def disc_maps(xy: Float32, size: int, radius: float, ring: float = 0.0) -> UInt8:
    """Response maps of one picture: 1 within `radius` of a landmark of the map's type, 0 elsewhere.

    Args:
        xy: (F, N, 2) pixels of F faces; a NaN point is not drawn.
        size: side of the square picture, pixels.
        radius: of the discs, pixels; a disc of radius 2 round a whole pixel has 13 ones.
        ring: pixels up to this far beyond the disc become UNKNOWN, because annotators disagree about them.
    Returns:
        (N, size, size) of 0, 1 and UNKNOWN.
    Source: BB-FCN, section III-C.
    """
    cells = np.arange(size, dtype=np.float32)
    square_x = (cells - xy[..., 0, None]) ** 2  # F, N, size
    square_y = (cells - xy[..., 1, None]) ** 2
    distance = square_y[..., :, None] + square_x[..., None, :]
    distance = np.nan_to_num(distance, nan=np.inf).min(0, initial=np.inf)
    maps = (distance <= (radius + ring) ** 2).astype(np.uint8) * UNKNOWN
    maps[distance <= radius**2 + 1e-4] = 1
    return np.asarray(maps, np.uint8)


def selective_l2(maps: Tensor, targets: Tensor, *, hardest: bool) -> Tensor:
    """Squared error summed over selected pixels, divided by the number of pictures.

    All landmark pixels are selected, and the same number of others: random ones, or those with the highest responses.

    Args:
        maps: (B, K, h, w) responses.
        targets: (B, K, h, w) of 0, 1 and `UNKNOWN`; unknown pixels are never selected.
        hardest: select the highest responses.
    Source: BB-FCN, section III-D.
    """
    responses, truth = maps.flatten(2), targets.flatten(2)  # B, K, pixels
    landmark, other = truth == 1, truth == 0
    count = landmark.sum(2, keepdim=True)
    count = torch.where(count > 0, count, WITHOUT_LANDMARK)
    loudness = responses.detach() if hardest else torch.rand_like(responses)
    loudness = loudness.masked_fill(~other, -torch.inf)
    most = min(int(count.max()), loudness.shape[2])
    top = loudness.topk(most, 2)
    rank = torch.arange(most, device=maps.device)
    wanted = (rank < count) & torch.isfinite(top.values)
    quiet = (responses.gather(2, top.indices) ** 2 * wanted).sum()
    loud = ((responses - 1) ** 2 * landmark).sum()
    return (loud + quiet) / len(maps)
