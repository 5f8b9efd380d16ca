"""Losses of the five papers, as functions of predictions and targets."""

from __future__ import annotations

import torch
from torch import Tensor


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
