"""Points that the rest of a face does not bear out come back, and all others stay."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest

from facetrack.engines.shape import FILES, MOST, PARTS, ShapeModel, shape_model
from facetrack.tracker import markup
from facetrack.tracker.errors import CardError
from facetrack.tracker.geometry import bounding_box, longer_side
from facetrack.tracker.pose import MEAN_FACE_MM
from facetrack.tracker.types import Float32, Float64

MARKS = markup.load("ibug68")
FREE = [point for part in PARTS for point in MARKS.parts[part]]


def side_of(xy: Float32) -> float:
    return float(longer_side(bounding_box(xy)))


def seen(turn: float = 0.0, side: float = 150.0) -> Float32:
    """The packaged mean face, frontal, of this roll and size."""
    flat = MEAN_FACE_MM[:, :2]
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray(flat / longer_side(bounding_box(flat)) * side @ spin.T + [300, 200], np.float32)


@pytest.mark.parametrize("point", range(6))
def test_outlier_is_moved_to_within_reach_of_where_the_other_points_expect_it(point: int) -> None:
    """With nothing but place, size and roll to vary, that is where it was before it jumped, up to the reach."""
    rng = np.random.default_rng(point)
    mean = rng.normal(size=(12, 2))
    mean -= mean.mean(0)
    mean /= np.linalg.norm(mean)
    shapes = ShapeModel(mean, np.zeros((24, 0)), list(range(6)))
    spin = np.array([[np.cos(2), -np.sin(2)], [np.sin(2), np.cos(2)]])
    face = (mean @ spin.T * 80 + [200, 300]).astype(np.float32)
    jumped = face.copy()
    jumped[point] += np.float32([30, -20])
    mended = shapes.correct_points(jumped, 0.01)
    np.testing.assert_allclose(np.linalg.norm(mended[point] - face[point]), 0.01 * side_of(jumped), rtol=1e-3)
    np.testing.assert_array_equal(np.delete(mended, point, 0), np.delete(face, point, 0))


@pytest.mark.parametrize("turn", [0.0, 0.8, np.pi / 2, np.pi])
@pytest.mark.parametrize("side", [20.0, 150.0, 2000.0])
def test_contour_outlier_is_corrected_at_any_size_and_roll(turn: float, side: float) -> None:
    shapes, face = shape_model("ibug68"), seen(turn, side)
    for point in (3, 8, 13, 19, 24):
        jumped = face.copy()
        jumped[point] += np.float32([0.12, -0.1]) * side
        mended = shapes.correct_points(jumped, 0.02)
        before, after = (np.linalg.norm(xy[point] - face[point]) / side for xy in (jumped, mended))
        assert before > 0.15
        assert after < 0.03
        others = np.delete(np.linalg.norm(mended - face, axis=1), point) / side
        assert others.max() < 0.02  # an outlier moves what its neighbours are expected to be


def set_right_by_numpy(shapes: ShapeModel, mean: Float64, free: list[int], xy: Float32, reach: float) -> Float32:
    """The farthest of the points from where the modes and the other points, by least squares, expect it, comes near."""
    points = xy.astype(np.float64) @ [1, 1j]
    points -= points.mean()
    turn = np.vdot(points, mean @ [1, 1j]) / np.vdot(points, points).real
    there = points * turn
    allowed = reach * side_of(xy) * abs(turn)
    for _ in range(MOST):
        off = np.zeros(len(xy), complex)
        for point in free:
            others = np.delete(np.arange(len(xy)), point)
            rows = shapes.modes.reshape(len(xy), 2, -1)
            seen_of = np.stack((there.real, there.imag), 1)[others].ravel()
            known, *_ = np.linalg.lstsq(rows[others].reshape(len(seen_of), -1), seen_of, rcond=None)
            off[point] = there[point] - rows[point] @ known @ [1, 1j]
        worst = int(abs(off).argmax())
        if not abs(off[worst]) > allowed:
            break
        there[worst] += off[worst] * (allowed / abs(off[worst]) - 1)
    mended = there / turn + (xy.astype(np.float64) @ [1, 1j]).mean()
    return np.stack((mended.real, mended.imag), 1).astype(np.float32)


def test_correction_matches_leave_one_out_least_squares() -> None:
    shapes, rng = shape_model("ibug68"), np.random.default_rng(4)
    with resources.files("facetrack.engines.weights").joinpath(FILES["ibug68"]).open("rb") as file, np.load(file) as of:
        mean = of["mean"].astype(np.float64)
    for noise in (1, 3, 8):
        wild = seen(0.4) + rng.normal(0, noise, (68, 2)).astype(np.float32)
        wanted = set_right_by_numpy(shapes, mean, FREE, wild, 0.02)
        np.testing.assert_allclose(shapes.correct_points(wild, 0.02), wanted, atol=2e-3)


def test_a_usual_face_stays_as_it_is_to_the_last_bit() -> None:
    np.testing.assert_array_equal(shape_model("ibug68").correct_points(seen(0.3), 0.03), seen(0.3))


def test_eyes_nose_and_mouth_are_never_moved() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        wild = seen() + rng.normal(0, 12, (68, 2)).astype(np.float32)
        mended = shape_model("ibug68").correct_points(wild, 0.02)
        np.testing.assert_array_equal(mended[27:], wild[27:])  # behind the contour and the brows
        assert (mended != wild).any()


def test_correction_commutes_with_rotation_and_scaling() -> None:
    shapes, rng = shape_model("ibug68"), np.random.default_rng(3)
    wild = seen() + rng.normal(0, 8, (68, 2)).astype(np.float32)
    wanted = shapes.correct_points(wild, 0.02) - wild
    quarter = np.float32([[0, 1], [-1, 0]])
    found = shapes.correct_points(3 * wild @ quarter, 0.02) - 3 * wild @ quarter
    np.testing.assert_allclose(found, 3 * wanted @ quarter, atol=1e-2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_degenerate_points_are_left_unchanged(value: float) -> None:
    face = np.full((68, 2), value, np.float32)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(shape_model("ibug68").correct_points(face, 0.02), face, atol=1e-6)


def test_markup_without_a_shape_model_is_refused() -> None:
    with pytest.raises(CardError, match="no shape model for wflw98; wanted ibug68"):
        shape_model("wflw98")
