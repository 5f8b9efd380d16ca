"""A mean face's five points in seven views, and the faces that they give when fitted to observed points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import MEAN_FIVE, bounding_box, rotated_box
from .types import Float32

# Mean five5 points of the faces of `geometry.MEAN_FIVE`, in five groups of yaw, aligned by similarity; units as there.
_HALF_PROFILE = ((-0.158, -0.311), (0.281, -0.306), (0.103, -0.086), (-0.113, 0.163), (0.240, 0.166))
_PROFILE = ((-0.025, -0.312), (0.363, -0.315), (0.288, -0.054), (0.001, 0.168), (0.325, 0.164))
# Of faces turned by 72 to 86 degrees (`training.turned`): the eyes nearly coincide, and so do the mouth's corners.
_EXACT_PROFILE = ((0.096, -0.290), (0.188, -0.293), (0.400, -0.049), (0.090, 0.169), (0.170, 0.164))
_FRONTAL = ((-0.226, -0.303), (0.226, -0.303), (0.0, -0.022), (-0.203, 0.132), (0.203, 0.132))
_MIRROR = (1, 0, 2, 4, 3)


def _mirrored(view: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    return tuple((-view[k][0], view[k][1]) for k in _MIRROR)


_TURNED = (_HALF_PROFILE, _PROFILE, _EXACT_PROFILE)
VIEWS = np.array([_FRONTAL, *_TURNED, *map(_mirrored, _TURNED)], np.float64)  # 7 views, 5 points, xy
_TURNED_EXTENT = ((0.5, 0.485), (0.5, 0.486), (0.4, 0.5))
HALF_EXTENT = np.array(((0.5, 0.462), *_TURNED_EXTENT, *_TURNED_EXTENT))  # of each view's box


@dataclass(frozen=True, slots=True)
class Fit:
    """Mean faces fitted to the observed five5 points of F faces.

    Attributes:
        centre: (F, 2) float32 pixels, of the landmarks' box before its roll.
        side: (F,) float32 longer side of that box, pixels.
        roll: (F,) float32 radians.
        residual: (F,) float32 root mean square misfit over the side.
        boxes: (F, 4) float32 x1, y1, x2, y2 of the tight axis-parallel box, pixels.
    """

    centre: Float32
    side: Float32
    roll: Float32
    residual: Float32
    boxes: Float32


def fit_views(points: Float32) -> Fit:
    """Fit the best of the seven views to each face's points by a least-squares similarity.

    Args:
        points: (F, 5, 2) float32 pixels.
    Source: Umeyama, PAMI 1991, in two dimensions: a similarity is a complex factor and a shift.
    """
    z = points.astype(np.float64) @ np.array([1, 1j])  # F, 5
    views = VIEWS @ np.array([1, 1j])  # V, 5
    spread = views - views.mean(1, keepdims=True)
    offset = z - z.mean(1, keepdims=True)
    turn = offset @ spread.conj().T / (np.abs(spread) ** 2).sum(1)  # F, V: side * e^(i roll)
    misfit = np.abs(offset[:, None] - turn[..., None] * spread) ** 2
    residual = np.sqrt(misfit.mean(2)) / np.maximum(np.abs(turn), 1e-6)
    best = residual.argmin(1)
    row = np.arange(len(z))
    turn = turn[row, best]
    centre = z.mean(1) - turn * views[best].mean(1)
    # the tight box of a rotated ellipse, which is closer to a face than a rotated rectangle
    (wide, high), x, y = HALF_EXTENT[best].T, turn.real, turn.imag
    half = np.stack((np.hypot(wide * x, high * y), np.hypot(wide * y, high * x)), 1)
    middle = np.stack((centre.real, centre.imag), 1)
    return Fit(
        middle.astype(np.float32),
        np.abs(turn).astype(np.float32),
        np.angle(turn).astype(np.float32),
        residual[row, best].astype(np.float32),
        np.concatenate((middle - half, middle + half), 1).astype(np.float32),
    )


def box_of_five(five: Float32) -> tuple[tuple[float, float], float, float]:
    """Guess a face's box from its five5 points (5, 2) alone: the box of the view that fits them best.

    Returns:
        centre (x, y) and longer side in frame pixels and roll in radians, as in `geometry.rotated_box`.
    """
    fit = fit_views(five[None])
    x, y = fit.centre[0].tolist()
    return (x, y), max(float(fit.side[0]), 1.0), float(fit.roll[0])


def face_box(xy: Float32) -> Float32:
    """The box of a face: tight round its landmarks; for five, which span only its middle, that of the whole face.

    Crops, tracks and errors all use this box or `rotated_face_box`, in training, inference and evaluation.

    Args:
        xy: (N, 2) pixels.
    Returns:
        (4,) x1, y1, x2, y2.
    """
    return fit_views(xy[None]).boxes[0] if len(xy) == len(MEAN_FIVE) else bounding_box(xy)


def rotated_face_box(xy: Float32, five: Float32) -> tuple[tuple[float, float], float, float]:
    """The `face_box` in the face's own upright frame; arguments and result are those of `geometry.rotated_box`."""
    return box_of_five(five) if len(xy) == len(five) else rotated_box(xy, five)


def fit_mean_face(points: Float32, template: Float32 = MEAN_FIVE) -> tuple[Float32, float, float]:
    """Least-squares similarity from the mean face to observed points.

    Args:
        points: (N, 2) float32 frame pixels; NaN points are left out, at least two must remain.
        template: (N, 2) float32 the same points of the mean face.
    Returns:
        centre: (2,) float32 frame pixels, of the face's box.
        side: its longer side, frame pixels.
        roll: radians.
    """
    seen = ~np.isnan(points).any(-1)
    z = points[seen].astype(np.float64) @ np.array([1, 1j])
    t = template[seen].astype(np.float64) @ np.array([1, 1j])
    zm, tm = z.mean(), t.mean()
    a = np.vdot(t - tm, z - zm) / np.vdot(t - tm, t - tm)
    centre = zm - a * tm
    return np.array([centre.real, centre.imag], np.float32), float(abs(a)), float(np.angle(a))
