"""Correct points of the outline and brows that do not fit the rest of the face, by a linear model of faces.

A network places each landmark by itself. On an outline or a brow it is often sure of the line but not of the place
along it, and then a single point may jump along the line or off it. The expected place of a point follows from the
other points, because faces have few modes of variation (Cootes et al., "Active shape models", 1995).
"""

from __future__ import annotations

import math
from functools import cache
from importlib import resources

import numpy as np
from numba import njit

from ..tracker import markup
from ..tracker.errors import CardError
from ..tracker.types import Float32, Float64, Int64

FILES = {"ibug68": "shape-68.npz"}  # by markup
MOST = 8  # corrections of single points in a face
LEAST = 1e-9  # lower bound of lengths, for points that do not make a face
PARTS = ("contour", "brow_right", "brow_left")  # eyes and mouths open and close: their points stay as measured


class ShapeModel:
    """How the points of a face depend on each other.

    Attributes:
        modes: (2 N, K) orthonormal columns: shift, scaling and rotation of the mean face, and how faces differ from it.
    """

    def __init__(self, mean: Float64, modes: Float64, free: list[int]) -> None:
        """Take a mean face and its modes of variation.

        Args:
            mean: (N, 2) centred at 0, of norm 1.
            modes: (2 N, M) directions in which faces of the same place, size and roll differ from it.
            free: indices of the points that may be corrected.
        """
        self._mean, self._free = mean, np.array(free)
        still = np.zeros((2 * len(mean), 4))
        still[0::2, 0] = still[1::2, 1] = 1
        still[:, 2] = mean.ravel()
        still[0::2, 3], still[1::2, 3] = -mean[:, 1], mean[:, 0]
        self.modes = _orthonormal(np.hstack((still, modes)))
        rows = self.modes.reshape(len(mean), 2, -1)[self._free].reshape(2 * len(free), -1)
        blocks = (np.eye(len(rows)) - rows @ rows.T).reshape(len(free), 2, len(free), 2)
        self._answer = np.ascontiguousarray(blocks.transpose(2, 0, 1, 3))  # (P, P, 2, 2): residuals per move of a point
        self._alone = _inverse(self._answer[range(len(free)), range(len(free))])  # residual -> with the point left out

    def correct_points(self, xy: Float32, reach: float) -> Float32:
        """Move free points that are too far off to within `reach` of their expected places, the farthest first.

        Args:
            xy: (N, 2) of a face, any pixels.
            reach: share of the longer side of the points' box.
        Returns:
            The points. Their scores need no change: a corrected place is as good as others.
        """
        mended = np.array(xy, np.float32, order="C")
        _correct_points(mended, self._mean, self.modes, self._free, self._answer, self._alone, reach)
        return mended


# It keeps the GIL: it finishes sooner than another thread would give it back.
@njit(cache=True)
def _correct_points(
    xy: Float32, mean: Float64, modes: Float64, free: Int64, answer: Float64, alone: Float64, reach: float
) -> None:
    """Correct the points of one face in place; see `ShapeModel`."""
    apart, turn_x, turn_y = _apart_from(xy, mean)
    known = np.zeros(modes.shape[1])
    for row in range(len(modes)):
        for k in range(modes.shape[1]):
            known[k] += modes[row, k] * apart[row]
    residual = np.empty((len(free), 2))
    for i in range(len(free)):
        for axis in range(2):
            row = 2 * free[i] + axis
            residual[i, axis] = apart[row]
            for k in range(modes.shape[1]):
                residual[i, axis] -= modes[row, k] * known[k]
    square = turn_x * turn_x + turn_y * turn_y
    allowed = reach * _longer_side(xy) * math.sqrt(square)
    moves = np.zeros_like(residual)
    for _ in range(MOST):
        worst, farthest, off_x, off_y = -1, max(allowed, LEAST), 0.0, 0.0
        for i in range(len(free)):
            x = alone[i, 0, 0] * residual[i, 0] + alone[i, 0, 1] * residual[i, 1]
            y = alone[i, 1, 0] * residual[i, 0] + alone[i, 1, 1] * residual[i, 1]
            distance = math.hypot(x, y)
            if distance > farthest:  # False for NaN
                worst, farthest, off_x, off_y = i, distance, x, y
        if worst < 0:
            break
        x, y = off_x * (allowed / farthest - 1), off_y * (allowed / farthest - 1)
        moves[worst, 0] += x
        moves[worst, 1] += y
        for i in range(len(free)):
            for axis in range(2):
                residual[i, axis] += answer[worst, i, axis, 0] * x + answer[worst, i, axis, 1] * y
    for i in range(len(free)):  # complex division by the turn
        x, y = moves[i]
        if x != 0.0 or y != 0.0:
            xy[free[i], 0] += np.float32((x * turn_x + y * turn_y) / square)
            xy[free[i], 1] += np.float32((y * turn_x - x * turn_y) / square)


@njit(cache=True)
def _apart_from(xy: Float32, mean: Float64) -> tuple[Float64, float, float]:
    """Bring a face (N, 2) to the place, size and roll of the mean face and return how it differs from that (2 N,).

    Also return the rotation and scaling that this takes, fitted by least squares, as the two parts of a complex number.
    """
    centre_x, centre_y = 0.0, 0.0
    for x, y in xy:
        centre_x += x / len(xy)
        centre_y += y / len(xy)
    square, turn_x, turn_y = 0.0, 0.0, 0.0
    for i in range(len(xy)):
        x, y = xy[i, 0] - centre_x, xy[i, 1] - centre_y
        square += x * x + y * y
        turn_x += x * mean[i, 0] + y * mean[i, 1]
        turn_y += x * mean[i, 1] - y * mean[i, 0]
    turn_x, turn_y = turn_x / max(square, LEAST), turn_y / max(square, LEAST)
    apart = np.empty(2 * len(xy))
    for i in range(len(xy)):
        x, y = xy[i, 0] - centre_x, xy[i, 1] - centre_y
        apart[2 * i] = x * turn_x - y * turn_y - mean[i, 0]
        apart[2 * i + 1] = x * turn_y + y * turn_x - mean[i, 1]
    return apart, turn_x, turn_y


@njit(cache=True)
def _longer_side(xy: Float32) -> float:
    """Longer side of the box round points (N, 2)."""
    return float(max(xy[:, 0].max() - xy[:, 0].min(), xy[:, 1].max() - xy[:, 1].min()))


def _orthonormal(columns: Float64) -> Float64:
    """Gram-Schmidt, each column twice: nothing else in tracking needs LAPACK, which would be loaded for this alone."""
    columns = columns.copy()
    for i in range(columns.shape[1]):
        for _ in range(2):
            columns[:, i] -= columns[:, :i] @ (columns[:, :i].T @ columns[:, i])
            columns[:, i] /= np.sqrt(columns[:, i] @ columns[:, i])
    return columns


def _inverse(matrices: Float64) -> Float64:
    """The inverses of matrices (P, 2, 2)."""
    (a, b), (c, d) = matrices.transpose(1, 2, 0)
    return np.asarray((np.array([[d, -b], [-c, a]]) / (a * d - b * c)).transpose(2, 0, 1))


@cache
def shape_model(name: str) -> ShapeModel:
    """Load the model of a markup that `training.shape_model` has made.

    Raises:
        CardError: there is none for this markup.
    """
    if name not in FILES:
        raise CardError(f"calibration.shape: there is no shape model for {name}; wanted {', '.join(FILES)}")
    marks = markup.load(name)
    with resources.files("facetrack.engines.weights").joinpath(FILES[name]).open("rb") as file, np.load(file) as stored:
        mean, modes = stored["mean"].astype(np.float64), stored["ways"].astype(np.float64)
    return ShapeModel(mean, modes, [point for part in PARTS for point in marks.parts[part]])
