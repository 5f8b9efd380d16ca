"""What the networks are trained to answer, drawn from landmarks; the inverse of the codecs that decode."""

from __future__ import annotations

import numpy as np

from ..tracker.types import Float32


def gaussian_vectors(xy: Float32, cells: int, stride: float, sigma: float, peak: float) -> Float32:
    """Vector labels with their maximum at the exact, fractional place.

    The paper's label (Eq. 2) puts the peak on the nearest whole cell and raises it there by theta; with 32
    cells over a face that costs up to half a cell. Here the whole bell stands at the fractional coordinate and is
    scaled to the same height `peak` = 1 + theta. A point outside the crop leaves its tail, which is what teaches
    decoding beyond the box.

    Args:
        xy: (..., N, 2) crop pixels.
        cells: length w of a vector.
        stride: crop pixels per cell.
        sigma: width of the bell, cells.
        peak: height of the bell.
    Returns:
        (..., N, w, 2) float32; [..., 0] for x, [..., 1] for y.
    """
    u = (xy + 0.5) / stride - 0.5
    distance = np.arange(cells, dtype=np.float32)[:, None] - u[..., None, :]
    return (peak * np.exp(-0.5 * (distance / sigma) ** 2)).astype(np.float32)
