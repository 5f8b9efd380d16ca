"""Points of outline and brows that the rest of the face does not bear out, set right by a linear model of faces.

A network answers for each landmark by itself. Along an outline or a brow it is often unsure of the place and not of the
line, and then a single point may jump along it or off it. What a point's place is expected to be follows from the
other points: faces have few modes of variation (Cootes et al., "Active shape models", 1995).
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np

from ..tracker import markup
from ..tracker.errors import CardError
from ..tracker.geometry import bounding_box, longer_side
from ..tracker.types import Float32, Float64

FILES = {"ibug68": "shape-68.npz"}  # by markup
MOST = 8  # points that are set right in a face
LEAST = 1e-9  # lengths of a face below which there is none
PARTS = ("contour", "brow_right", "brow_left")  # eyes and mouths open and close: theirs stay as they are measured


class ShapeModel:
    """How the points of a face depend on each other.

    Attributes:
        modes: (2 N, K) orthonormal columns: moving, growing and turning the mean face, and how faces differ from it.
    """

    def __init__(self, mean: Float64, modes: Float64, free: list[int]) -> None:
        """Take a mean face and what varies.

        Args:
            mean: (N, 2) about 0, of length 1.
            modes: (2 N, M) directions in which faces of that place, size and roll differ from it.
            free: indices of the points that may be set right.
        """
        self._mean, self._free = mean, np.array(free)
        still = np.zeros((2 * len(mean), 4))
        still[0::2, 0] = still[1::2, 1] = 1
        still[:, 2] = mean.ravel()
        still[0::2, 3], still[1::2, 3] = -mean[:, 1], mean[:, 0]
        self.modes = _orthonormal(np.hstack((still, modes)))
        rows = self.modes.reshape(len(mean), 2, -1)[self._free].reshape(2 * len(free), -1)
        blocks = (np.eye(len(rows)) - rows @ rows.T).reshape(len(free), 2, len(free), 2)
        self._answer = np.ascontiguousarray(blocks.transpose(2, 0, 1, 3))  # (P, P, 2, 2): residuals, if one point moves
        self._alone = _inverse(self._answer[range(len(free)), range(len(free))])  # residual -> with it left out

    def set_right(self, xy: Float32, reach: float) -> Float32:
        """Bring each free point that lies farther off to within `reach` of where it is expected, the farthest first.

        Args:
            xy: (N, 2) of a face, any pixels.
            reach: share of the longer side of the points' box.
        Returns:
            The points. Their scores stay: the place that is left is as good as others.
        """
        residual, turn = self._residual(xy)
        allowed = reach * float(longer_side(bounding_box(xy))) * abs(turn)
        moves = np.zeros_like(residual)
        for _ in range(MOST):
            off = np.einsum("pij,pj->pi", self._alone, residual)
            distance = np.hypot(off[:, 0], off[:, 1])
            worst = int(distance.argmax())
            if not distance[worst] > max(allowed, LEAST):  # nor what is no number
                break
            move = off[worst] * (allowed / distance[worst] - 1)
            moves[worst] += move
            residual += self._answer[worst] @ move
        if not moves.any():
            return xy
        xy = xy.copy()
        xy[self._free] += _turned(moves, 1 / turn).astype(np.float32)
        return xy

    def _residual(self, xy: Float32) -> tuple[Float64, complex]:
        """What the modes leave of the free points (P, 2), in lengths of the mean face, and from pixels to these."""
        points = xy[:, 0].astype(np.float64) + 1j * xy[:, 1]
        points -= points.mean()
        mean = self._mean[:, 0] + 1j * self._mean[:, 1]
        turn = complex(np.vdot(points, mean) / max(float(np.vdot(points, points).real), LEAST))  # by least squares
        there = points * turn - mean
        apart = np.empty(2 * len(xy))
        apart[0::2], apart[1::2] = there.real, there.imag
        apart -= self.modes @ (self.modes.T @ apart)
        return apart.reshape(-1, 2)[self._free], turn or 1.0


def _orthonormal(columns: Float64) -> Float64:
    """Gram and Schmidt, each column twice: nothing else in tracking needs LAPACK, which would be loaded for it."""
    columns = columns.copy()
    for i in range(columns.shape[1]):
        for _ in range(2):
            columns[:, i] -= columns[:, :i] @ (columns[:, :i].T @ columns[:, i])
            columns[:, i] /= np.sqrt(columns[:, i] @ columns[:, i])
    return columns


def _inverse(matrices: Float64) -> Float64:
    """Of each of (P, 2, 2)."""
    (a, b), (c, d) = matrices.transpose(1, 2, 0)
    return np.asarray((np.array([[d, -b], [-c, a]]) / (a * d - b * c)).transpose(2, 0, 1))


def _turned(xy: Float64, turn: complex) -> Float64:
    """Vectors (P, 2) turned and enlarged by a complex number."""
    product = (xy[:, 0] + 1j * xy[:, 1]) * turn
    return np.stack((product.real, product.imag), 1)


@cache
def shape_model(name: str) -> ShapeModel:
    """The model of a markup, as `training.shape_model` has made it.

    Raises:
        CardError: there is none.
    """
    if name not in FILES:
        raise CardError(f"calibration.shape: there is no model of shapes for {name}; wanted {', '.join(FILES)}")
    marks = markup.load(name)
    with resources.files("facetrack.engines.weights").joinpath(FILES[name]).open("rb") as file, np.load(file) as stored:
        mean, modes = stored["mean"].astype(np.float64), stored["ways"].astype(np.float64)
    return ShapeModel(mean, modes, [point for part in PARTS for point in marks.parts[part]])
