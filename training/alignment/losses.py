"""Losses of the alignment networks, as functions of predictions and targets, and decoding with a gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...tracker.codecs import REACH
from ..processes import sum_over_processes
from .maps import warp_maps

TINY = 1e-12  # keeps the logarithm of an empty cell finite
ALPHA, OMEGA, EPSILON, THETA = 2.1, 14.0, 1.0, 0.5  # of Adaptive Wing; PropNet, section 4.3
SEEN_MASS = 0.5  # a target map with less than this, in cells of full height, shows nothing to compare with


def soft_centroid(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiable place of each vector's maximum: the centroid of the values ** 1.5 within `REACH` cells.

    The same arithmetic as `tracker.codecs.decode_vectors`, so that training sees the result of decoding.

    Args:
        vectors: (F, N, w, 2).
    Returns:
        place: (F, N, 2) cells, fractional. top: (F, N, 2) index of the maximum.
    """
    cells = vectors.shape[2]
    top = vectors.argmax(2)  # F, N, 2
    grid = torch.arange(cells, device=vectors.device, dtype=vectors.dtype).view(1, 1, cells, 1)
    near = (grid - top.unsqueeze(2)).abs() <= REACH
    weights = (vectors.clamp(min=0) * near) ** 1.5 + 1e-6 * near
    return (weights * grid).sum(2) / weights.sum(2), top


def map_centroid(maps: Tensor, reach: int = 2) -> tuple[Tensor, Tensor]:
    """Differentiable place of each map's maximum: the centroid of the squared values within `reach` cells.

    The same arithmetic as `tracker.codecs.decode_heatmaps`.

    Args:
        maps: (F, N, h, w).
        reach: cells on either side of the maximum that take part.
    Returns:
        place: (F, N, 2) cells, fractional, (x, y). top: (F, N, 2) cell of the maximum.
    """
    top = highest_cells(maps)
    values, cells, inside = windows(maps, top, reach)
    weights = (values.clamp(min=0) ** 2 + 1e-6) * inside
    return (weights[..., None] * cells).sum(2) / weights.sum(2)[..., None], top


def highest_cells(maps: Tensor) -> Tensor:
    """Cell of the maximum of every map, (F, N, h, w) -> (F, N, 2) int64, (x, y)."""
    top = maps.flatten(2).argmax(2)
    return torch.stack((top % maps.shape[3], top // maps.shape[3]), -1)


def windows(maps: Tensor, middles: Tensor, reach: int, channels: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Cut squares of W = (2 reach + 1)^2 cells out of maps.

    Args:
        maps: (F, K, h, w).
        middles: (F, N, 2) int64 cells, (x, y); anywhere.
        reach: cells on either side.
        channels: (N,) the map that each square is cut out of; None: N = K and one square per map.
    Returns:
        values: (F, N, W); for a cell beyond the map, the value of some cell within.
        cells: (F, N, W, 2) int64. inside: (F, N, W) bool, False for cells beyond the map.
    """
    h, w = maps.shape[2:]
    steps = torch.arange(-reach, reach + 1, device=maps.device)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)  # W, 2
    cells = middles[:, :, None] + offsets
    x, y = cells.unbind(-1)
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    if channels is None:
        channels = torch.arange(maps.shape[1], device=maps.device)
    where = (channels[:, None] * h + y.clamp(0, h - 1)) * w + x.clamp(0, w - 1)
    return maps.flatten(1).gather(1, where.flatten(1)).view(where.shape), cells, inside


def adaptive_wing(maps: Tensor, targets: Tensor) -> Tensor:
    """Adaptive Wing loss, mean over the cells of each map: (F, K, h, w) -> (F, K).

    Logarithmic for small errors, the more so the brighter the target; linear from `THETA` on, where value and slope
    are continuous. This is PropNet's Eq. 1, where the offset C is printed as Q.

    Source: Wang et al., "Adaptive Wing Loss for Robust Face Alignment via Heatmap Regression", ICCV 2019.
    """
    error = (maps - targets).abs()
    power = ALPHA - targets
    ratio = (THETA / EPSILON) ** power
    slope = OMEGA * power * (THETA / EPSILON) ** (power - 1) / (1 + ratio) / EPSILON
    offset = THETA * slope - OMEGA * torch.log1p(ratio)
    curve = OMEGA * torch.log1p((error.clamp(max=THETA) / EPSILON) ** power)
    return torch.where(error < THETA, curve, slope * error - offset).mean((2, 3))


def focal_factors(attributes: Tensor) -> Tensor:
    """PropNet's focal factors (Eq. 2): how much each face counts for each attribute, (F, C) bool -> (F, C).

    A face with an attribute that n of the batch's N faces have counts N / n; one without it counts 1. The batch is that
    of all processes, each of which must call this function, even if its share has no face. The condition in the printed
    equation can also be read as one on the whole batch, but that would weigh batches instead of faces, contrary to the
    text; and with a factor of 0 faces without attributes would not count at all.
    """
    counts = sum_over_processes(F.pad(attributes.float(), (1, 0), value=1.0).sum(0))  # of faces, then of each attribute
    return torch.where(attributes, counts[0] / counts[1:].clamp(min=1), 1.0)


def focal_wing(maps: Tensor, targets: Tensor, factors: Tensor | None = None) -> Tensor:
    """Adaptive Wing summed over maps, with faces weighted by the mean of their focal factors (Eqs. 3 and 4).

    The paper sums the C factors. Their mean keeps the scale, and with it the learning rate, of data without attributes.

    Args:
        maps: (F, K, h, w). targets: the same.
        factors: (F, C), see `focal_factors`; None: every face counts the same.
    """
    errors = adaptive_wing(maps, targets).sum(1)
    return errors.mean() if factors is None else (factors.mean(1) * errors).mean()


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Divergence of two distributions over the last axis, in [0, ln 2]: (..., P) -> (...).

    Source: SPAN, Eq. 15.
    """
    log_middle = ((p + q) / 2 + TINY).log()
    return 0.5 * (p * ((p + TINY).log() - log_middle) + q * ((q + TINY).log() - log_middle)).sum(-1)


class _LogitDivergence(torch.autograd.Function):
    """`jensen_shannon` of softmax(logits) and q: one logarithm per cell instead of three, and a short backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, q: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        log_middle = ((p + q) / 2 + TINY).log_()
        slope = log_p.sub_(log_middle)  # twice the divergence's derivative by p
        ctx.save_for_backward(p, slope)
        own = torch.special.xlogy(q, q).sum(-1)
        divergence: Tensor = 0.5 * (torch.linalg.vecdot(p, slope) + own - torch.linalg.vecdot(q, log_middle))
        return divergence

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        p, slope = ctx.saved_tensors
        through = 0.5 * p * (slope - torch.linalg.vecdot(p, slope)[..., None])
        return through * gradients[0][..., None], None


def map_divergence(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean divergence of the maps' spatial softmax from the targets scaled to sum 1; empty targets do not count.

    Args:
        logits: (F, K, h, w).
        targets: (F, K, h, w), not negative; nothing flows back into them.
    """
    wanted = targets.flatten(2).float()
    mass = wanted.sum(2, keepdim=True)
    divergence: Tensor = _LogitDivergence.apply(  # type: ignore[no-untyped-call]
        logits.flatten(2).float(), wanted / mass.clamp(min=1e-6)
    )
    return known_mean(divergence, mass[..., 0] > SEEN_MASS)


def as_distribution(maps: Tensor) -> Tensor:
    """The positive part of linear heat maps (F, K, h, w) over its sum; a map without positive values stays empty."""
    positive = maps.clamp(min=0)
    return positive / positive.sum((2, 3), keepdim=True).clamp(min=1e-3)


def divergence_of_maps(alpha: Tensor, beta: Tensor, matrices: Tensor, mirror: Tensor, stride: float) -> Tensor:
    """Mean Jensen-Shannon divergence of one crop's maps, moved into another crop, from the other crop's own.

    Mass that is moved out of the crop is dropped. The rest of a map counts, as a distribution of its own, if it is more
    than half of the map.

    Args:
        alpha, beta: (F, K, h, w), each map's sum is 1 (or 0, if it is empty).
        matrices: (F, 2, 3) from the first crops' pixels to the second's.
        mirror: (K,) the channel that takes each channel's place in a mirrored picture.
        stride: crop pixels per cell.
    """
    moved = warp_maps(alpha, matrices, stride, mirror).flatten(2)
    gain = torch.linalg.det(matrices[:, :, :2]).abs()[:, None]  # cells that one cell becomes
    mass = moved.sum(2)
    divergence = jensen_shannon(moved / mass.clamp(min=1e-6)[..., None], beta.flatten(2))
    return known_mean(divergence, mass > 0.5 * gain)


def known_mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of the known values; 0, still with a gradient, if none is known."""
    return (values * known).sum() / known.sum().clamp(min=1)
