"""What the networks are trained to answer, drawn from landmarks; the inverse of the codecs that decode."""

from __future__ import annotations

import numpy as np

from ..tracker.types import Float32, UInt8

UNKNOWN = 2  # a pixel of a disc map that says nothing


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
        (..., N, w, 2) float32; [..., 0] for x, [..., 1] for y. NaN points give NaN vectors.
    """
    u = (xy + 0.5) / stride - 0.5
    distance = np.arange(cells, dtype=np.float32)[:, None] - u[..., None, :]
    return (peak * np.exp(-0.5 * (distance / sigma) ** 2)).astype(np.float32)


def quasi_gaussian_vectors(xy: Float32, cells: int, stride: float, sigma: float = 2.0, theta: float = 3.0) -> Float32:
    """Vector labels as the paper draws them (Eq. 2): a bell of height 1 with its whole middle cell at 1 + theta.

    The text cuts the bell off where d < 3 sigma, which gives 11 cells of 64; the supplement's "20 % foreground" is 13,
    so d = 3 sigma belongs to it.

    Args:
        xy: (..., N, 2) crop pixels; a NaN point has empty vectors.
        cells: length w of a vector.
        stride: crop pixels per cell.
        sigma: width of the bell, cells.
        theta: how much the middle stands out (Table 7).
    Returns:
        (..., N, w, 2) float32; [..., 0] for x, [..., 1] for y.
    """
    middle = np.rint((xy + 0.5) / stride - 0.5)
    distance = np.abs(np.arange(cells, dtype=np.float32)[:, None] - middle[..., None, :])
    vectors = np.where(distance <= 3 * sigma, np.exp(-0.5 * (distance / sigma) ** 2), 0.0)
    vectors[distance == 0] = 1 + theta
    return vectors.astype(np.float32)


def disc_maps(xy: Float32, size: int, radius: float, ring: float = 0.0) -> UInt8:
    """Response maps of one picture: 1 within `radius` of a landmark of the type, 0 elsewhere.

    Args:
        xy: (F, N, 2) pixels of F faces; a NaN point is drawn nowhere.
        size: side of the square picture, pixels.
        radius: a disc of radius 2 round a whole pixel has 13 ones.
        ring: pixels this far beyond the disc become UNKNOWN; annotators disagree about them.
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
