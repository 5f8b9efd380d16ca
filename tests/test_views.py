"""Mean faces laid over five points: what was laid is found, and boxes are about those of all points."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import placed

from facetrack.tracker.geometry import MEAN_FIVE, bounding_box, iou, rotated_box
from facetrack.tracker.markup import load
from facetrack.tracker.pose import MEAN_FACE_MM, rotation_matrix
from facetrack.tracker.views import VIEWS, box_of_five, face_box, fit_mean_face, fit_views, rotated_face_box


@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_fit_recovers_centre_side_and_roll_of_a_placed_view(view):
    points = placed(view, (120.0, 90.0), 64.0, 25.0).astype(np.float32)
    fit = fit_views(points[None])
    assert fit.centre[0] == pytest.approx((120, 90), abs=1e-3)
    assert fit.side[0] == pytest.approx(64, rel=1e-4)
    assert np.rad2deg(fit.roll[0]) == pytest.approx(25, abs=1e-3)
    assert fit.residual[0] < 1e-5


@pytest.mark.parametrize("yaw_deg", range(-85, 86, 17))
@pytest.mark.parametrize("pitch_deg", [-20, 0, 20])
@pytest.mark.parametrize("roll_deg", [0, -60, 140])
def test_the_box_of_five_points_is_about_that_of_all_68_however_the_head_is_turned(yaw_deg, pitch_deg, roll_deg):
    head = MEAN_FACE_MM @ rotation_matrix(np.deg2rad([pitch_deg, yaw_deg, 0])).T
    face = (head @ rotation_matrix(np.deg2rad([0, 0, roll_deg])).T)[:, :2].astype(np.float32)
    five = load("ibug68").subset("five5", face)
    centre, side, roll = box_of_five(five)
    true_centre, true_side, true_roll = rotated_box(face, five)
    assert np.hypot(*np.subtract(centre, true_centre)) < 0.12 * true_side
    assert side == pytest.approx(true_side, rel=0.1)
    assert np.cos(roll - true_roll) > np.cos(np.deg2rad(17))


def test_an_upright_box_is_as_wide_as_the_side_and_a_turned_one_stays_between_the_extents():
    upright, turned = (fit_views(placed(0, (0.0, 0.0), 100.0, r).astype(np.float32)[None]).boxes[0] for r in (0, 45))
    assert upright == pytest.approx((-50, -46.2, 50, 46.2), abs=0.01)
    half = (turned[2:] - turned[:2]) / 2
    assert half[0] == pytest.approx(half[1], abs=1e-3)
    assert 46.2 < half[0] < 50


def test_the_box_of_a_mean_face_covers_its_landmarks_box():
    points = placed(0, (80.0, 80.0), 50.0, 0.0).astype(np.float32)
    inner = bounding_box(points)
    box = fit_views(points[None]).boxes[0]
    assert iou(inner[None], box[None])[0, 0] == pytest.approx(
        np.prod(inner[2:] - inner[:2]) / np.prod(box[2:] - box[:2]), rel=1e-5
    )  # it lies inside


def test_view_residual_is_relative_to_the_size_of_the_face():
    rng = np.random.default_rng(0)
    near = np.stack([placed(view, (60.0, 50.0), 30.0, 10.0) for view in range(len(VIEWS))]) + rng.normal(
        0, 1, (7, 5, 2)
    )
    small, large = (fit_views((times * near).astype(np.float32)) for times in (1, 20))
    np.testing.assert_allclose(large.residual, small.residual, rtol=1e-3)
    assert (small.residual > 0.5 / 30).all()
    assert (small.residual < 2.0 / 30).all()


@pytest.mark.parametrize("yaw_deg", range(-85, 86, 17))
def test_the_box_of_a_turned_head_is_as_wide_and_as_high_as_all_68_points_say(yaw_deg):
    face = (MEAN_FACE_MM @ rotation_matrix(np.deg2rad([0, yaw_deg, 0])).T)[:, :2].astype(np.float32)
    box, truth = fit_views(load("ibug68").subset("five5", face)[None]).boxes[0], bounding_box(face)
    assert (truth[2:] - truth[:2]) / (box[2:] - box[:2]) == pytest.approx((1, 1), abs=0.16)
    assert iou(box[None], truth[None])[0, 0] > 0.75


@pytest.mark.parametrize("roll_deg", [0, 30])
def test_face_box_is_tight_around_all_points_but_estimated_from_five(roll_deg):
    face = (MEAN_FACE_MM @ rotation_matrix(np.deg2rad([0, 0, roll_deg])).T)[:, :2].astype(np.float32)
    five = load("ibug68").subset("five5", face)
    np.testing.assert_array_equal(face_box(face), bounding_box(face))
    assert rotated_face_box(face, five) == rotated_box(face, five)
    assert iou(bounding_box(five)[None], bounding_box(face)[None])[0, 0] < 0.4
    assert iou(face_box(five)[None], bounding_box(face)[None])[0, 0] > 0.7
    assert rotated_face_box(five, five) == box_of_five(five)


def test_mean_face_is_fitted_to_the_known_points_only():
    points = MEAN_FIVE * 40 + (7, 9)
    points[3] = np.nan
    centre, side, roll = fit_mean_face(points.astype(np.float32))
    assert centre == pytest.approx((7, 9), abs=1e-3)
    assert side == pytest.approx(40, rel=1e-5)
    assert roll == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("angle", [0.5, -1.2])
def test_mean_face_fit_recovers_a_clockwise_roll(angle):
    spin = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = MEAN_FIVE @ spin * 40 + (7, 9)
    points[3] = np.nan
    centre, side, roll = fit_mean_face(points.astype(np.float32))
    assert centre == pytest.approx((7, 9), abs=1e-3)
    assert side == pytest.approx(40, rel=1e-5)
    assert roll == pytest.approx(angle, abs=1e-5)
