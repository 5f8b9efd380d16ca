"""Draw GV's vector labels from landmarks; the inverse of the codec that decodes vectors."""

from __future__ import annotations

import numpy as np

from ...tracker.types import Float32


def gaussian_vectors(xy: Float32, cells: int, stride: float, sigma: float, peak: float) -> Float32:
    """Vector labels with their maximum at the exact, fractional place.

    The paper's label (Eq. 2) puts the peak on the nearest whole cell and raises that cell by theta; with 32 cells over
    a face this costs up to half a cell. Here the whole Gaussian is placed at the fractional coordinate and scaled to
    the same height `peak` = 1 + theta. A point outside the crop leaves the Gaussian's tail in it, from which the
    network learns to decode beyond the box.

    Args:
        xy: (..., N, 2) crop pixels.
        cells: length w of a vector.
        stride: crop pixels per cell.
        sigma: width of the Gaussian, cells.
        peak: height of the Gaussian.
    Returns:
        (..., N, w, 2) float32; [..., 0] for x, [..., 1] for y. NaN points give NaN vectors.
    """
    u = (xy + 0.5) / stride - 0.5
    distance = np.arange(cells, dtype=np.float32)[:, None] - u[..., None, :]
    return (peak * np.exp(-0.5 * (distance / sigma) ** 2)).astype(np.float32)


def quasi_gaussian_vectors(xy: Float32, cells: int, stride: float, sigma: float = 2.0, theta: float = 3.0) -> Float32:
    """Vector labels as the paper draws them (Eq. 2): a Gaussian of height 1 whose middle cell is 1 + theta.

    The text cuts the Gaussian off where d < 3 sigma, which gives 11 cells of 64; the supplement's "20 % foreground" is
    13, so d = 3 sigma belongs to it.

    Args:
        xy: (..., N, 2) crop pixels; a NaN point has empty vectors.
        cells: length w of a vector.
        stride: crop pixels per cell.
        sigma: width of the Gaussian, cells.
        theta: how much the middle cell is raised (Table 7).
    Returns:
        (..., N, w, 2) float32; [..., 0] for x, [..., 1] for y.
    """
    middle = np.rint((xy + 0.5) / stride - 0.5)
    distance = np.abs(np.arange(cells, dtype=np.float32)[:, None] - middle[..., None, :])
    vectors = np.where(distance <= 3 * sigma, np.exp(-0.5 * (distance / sigma) ** 2), 0.0)
    vectors[distance == 0] = 1 + theta
    return vectors.astype(np.float32)
