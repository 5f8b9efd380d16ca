"""Losses of the five papers, as functions of predictions and targets."""

from __future__ import annotations

import torch
from torch import Tensor

WITHOUT_LANDMARK = 13  # pixels that a map without its landmark contributes: as many as a disc of radius 2


def soft_centroid(vectors: Tensor, reach: int = 2) -> tuple[Tensor, Tensor]:
    """Differentiable place of each vector's maximum: the centroid of the squared values within `reach` cells.

    The same arithmetic as `tracker.codecs.decode_vectors`, so that training sees what decoding will give.

    Args:
        vectors: (F, N, w, 2).
        reach: cells on either side of the maximum that take part.
    Returns:
        place: (F, N, 2) cells, fractional. top: (F, N, 2) index of the maximum.
    """
    cells = vectors.shape[2]
    top = vectors.argmax(2)  # F, N, 2
    grid = torch.arange(cells, device=vectors.device, dtype=vectors.dtype).view(1, 1, cells, 1)
    near = (grid - top.unsqueeze(2)).abs() <= reach
    weights = (vectors.clamp(min=0) * near) ** 2 + 1e-6 * near
    return (weights * grid).sum(2) / weights.sum(2), top


def selective_l2(maps: Tensor, targets: Tensor, *, hardest: bool) -> Tensor:
    """Squared error summed over selected pixels, divided by the number of pictures.

    Selected are all landmark pixels and equally many others: random ones, or those that answer loudest.

    Args:
        maps: (B, K, h, w) responses.
        targets: (B, K, h, w) of 0, 1 and `targets.UNKNOWN`; unknown pixels are never selected.
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
