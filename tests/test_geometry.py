from __future__ import annotations

import math

import numpy as np
import pytest

from facetrack.tracker.geometry import (
    CropTransform,
    bounding_box,
    box_centre_side,
    iou,
    roll,
    rotated_box,
)
from facetrack.tracker.markup import load
from facetrack.tracker.pose import MEAN_FACE_MM
from facetrack.tracker.types import Float32, Float64, UInt8

FACE: Float32 = MEAN_FACE_MM[:, :2].astype(np.float32)
FIVE: Float32 = load("ibug68").subset("five5", FACE)
HEIGHT, WIDTH = 240, 320


def turned(xy: Float32, angle: float, scale: float = 1.0, shift: tuple[float, float] = (0, 0)) -> Float32:
    """Points turned clockwise on the screen (from x towards y)."""
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return (xy @ np.array([[cos, sin], [-sin, cos]]) + shift).astype(np.float32)


def dot(x: float, y: float, sigma: float) -> UInt8:
    """A grey picture with one soft white dot."""
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    grey = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return np.repeat(np.round(grey)[..., None], 3, -1).astype(np.uint8)


def centroid(picture: UInt8) -> Float64:
    weight = picture[..., 0].astype(np.float64)
    columns, rows = np.meshgrid(np.arange(weight.shape[1]), np.arange(weight.shape[0]))
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


# Crops


@pytest.mark.parametrize("angle", [0.0, 0.7, -2.5])
@pytest.mark.parametrize("side", [40.0, 96.0, 250.0, 800.0])
def test_pixels_and_points_move_alike(side: float, angle: float) -> None:
    """The centroid of a painted dot, before and after; 800 px to 96 averages over areas first."""
    place = (150.3, 110.8)
    transform = CropTransform.around((155.0, 108.0), side, 96, angle=angle)
    crop = transform.crop(dot(*place, sigma=max(3.0, side / 25)))
    expected = transform.to_crop(np.array([place], np.float32))[0]
    np.testing.assert_allclose(centroid(crop), expected, atol=0.12)  # 8-bit values, 1/32 px of warpAffine


@pytest.mark.parametrize("turns", range(-1, 6))
def test_quarter_turns_match_numpy_for_pixels_and_points(turns: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)
    turn = CropTransform.quarter_turns(turns, (30, 47))
    np.testing.assert_array_equal(turn.crop(picture), np.rot90(picture, turns))
    ((x, y),) = turn.to_crop(np.array([[5, 12]], np.float32)).astype(int)
    np.testing.assert_array_equal(np.rot90(picture, turns)[y, x], picture[12, 5])


def test_a_crop_of_its_own_size_at_whole_pixels_is_a_copy() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    crop = CropTransform.around((100 + 31.5, 50 + 31.5), 64, 64).crop(picture)
    np.testing.assert_array_equal(crop, picture[50:114, 100:164])


@pytest.mark.parametrize("centre", [(0.0, 0.0), (-500.0, 100.0), (100.0, 900.0), (310.0, 235.0), (-90.0, 120.0)])
@pytest.mark.parametrize("side", [60.0, 400.0])
def test_crop_is_black_outside_the_picture_and_not_inside(centre: tuple[float, float], side: float) -> None:
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    transform = CropTransform.around(centre, side, 64)
    crop = transform.crop(white)
    columns, rows = np.meshgrid(np.arange(64), np.arange(64))
    x, y = transform.to_frame(np.stack((columns, rows), -1).astype(np.float32)).transpose(2, 0, 1)
    margin = max(2 * side / 64, side / 64 + 6)  # a crop pixel's area, and what whole-factor averaging trims
    inside = (x > margin) & (y > margin) & (x < WIDTH - 1 - margin) & (y < HEIGHT - 1 - margin)
    outside = (x < -margin) | (y < -margin) | (x > WIDTH - 1 + margin) | (y > HEIGHT - 1 + margin)
    assert (crop[inside] == 255).all()
    assert (crop[outside] == 0).all()


@pytest.mark.parametrize("side", [100.0, 200.0, 230.0])
def test_a_ramp_keeps_its_values_whatever_the_reduction(side: float) -> None:
    ramp = np.repeat(np.arange(240, dtype=np.uint8)[None, :, None], 240, 0).repeat(3, 2)
    transform = CropTransform.around((119.5, 119.5), side, 32)
    grid = np.stack(np.meshgrid(np.arange(4, 28), np.arange(4, 28)), -1).astype(np.float32)
    np.testing.assert_allclose(transform.crop(ramp)[4:28, 4:28, 0], transform.to_frame(grid)[..., 0], atol=1.0)


def test_reduction_averages_fine_patterns_without_aliasing() -> None:
    checks = (np.indices((240, 240)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    crop = CropTransform.around((119.5, 119.5), 200, 48).crop(checks)
    assert np.abs(crop.astype(int) - 127).max() <= 2


def test_to_frame_inverts_to_crop() -> None:
    transform = CropTransform.around((33.3, -20.0), 171.0, 112, angle=1.1)
    xy = np.random.default_rng(1).normal(100, 200, (5, 68, 2)).astype(np.float32)
    np.testing.assert_allclose(transform.to_frame(transform.to_crop(xy)), xy, atol=1e-3)
    assert transform.scale == pytest.approx(112 / 171)


@pytest.mark.parametrize(
    ("picture", "out"),
    [
        (np.zeros((90, 90), np.uint8), (48, 48, 3)),
        (np.zeros((90, 90, 3), np.float32), (48, 48, 3)),
        (np.zeros((90, 90, 3), np.uint8), (40, 48, 3)),
    ],
)
def test_crop_refuses_an_unsuitable_picture_or_output_array(picture: UInt8, out: tuple[int, ...]) -> None:
    transform = CropTransform.around((40, 40), 60, 48)
    with pytest.raises(ValueError, match="crop: wanted out of"):
        transform.crop(picture, np.zeros(out, np.uint8))
    fitting = np.zeros((48, 48, 3), np.uint8)
    white = np.full((90, 90, 3), 255, np.uint8)
    assert transform.crop(white, fitting) is fitting
    assert fitting.max() == 255


def test_the_squares_centre_and_edges_land_on_those_of_the_crop() -> None:
    transform = CropTransform.around((50.0, 60.0), 20.0, 100)
    xy = np.array([[50, 60], [40, 50], [60, 70]], np.float32)
    # pixel centres are whole numbers, so the crop's edges lie half a pixel outside its first and last pixel
    np.testing.assert_allclose(transform.to_crop(xy), [[49.5, 49.5], [-0.5, -0.5], [99.5, 99.5]], atol=1e-4)


def test_offset_between_crops_is_measured_in_sides() -> None:
    crop = CropTransform.around((50.0, 40.0), 30.0, 64, angle=0.4)
    assert crop.off(crop) == pytest.approx(0, abs=1e-6)
    assert crop.off(CropTransform.around((50.0, 43.0), 30.0, 64, angle=0.4)) == pytest.approx(0.1, rel=1e-4)
    wider = CropTransform.around((50.0, 40.0), 33.0, 64, angle=0.4)  # its corners lie half of 3 pixels away in x and y
    assert crop.off(wider) == pytest.approx(0.05 * 2**0.5, rel=0.02)


def test_offset_between_crops_is_that_of_the_farthest_corner() -> None:
    crop, wider = CropTransform.around((50.0, 40.0), 30.0, 64), CropTransform.around((51.5, 41.5), 33.0, 64)
    assert crop.off(wider) == pytest.approx(0.1 * 2**0.5, rel=0.02)  # one corner is the same, the opposite 3 px away


def test_face_turned_by_the_crop_angle_is_upright_in_the_crop() -> None:
    tilted = turned(FIVE, 0.6, shift=(160, 120))
    five = CropTransform.around((160, 120), 200, 128, angle=0.6).to_crop(tilted)
    assert roll(five) == pytest.approx(0, abs=1e-3)


def test_a_crop_can_be_written_into_a_given_array() -> None:
    out = np.empty((64, 64, 3), np.uint8)
    picture = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    transform = CropTransform.around((150, 100), 90, 64)
    crop = transform.crop(picture, out)
    np.testing.assert_array_equal(out, transform.crop(picture))
    assert np.shares_memory(crop, out)


@pytest.mark.parametrize(("side", "size"), [(0.0, 64), (-3.0, 64), (math.nan, 64), (90.0, 0)])
def test_a_crop_needs_a_side_and_a_size(side: float, size: int) -> None:
    with pytest.raises(ValueError, match="wanted side > 0 and size > 0"):
        CropTransform.around((0, 0), side, size)


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"CropTransform.matrix: wanted shape \(2, 3\)"):
        CropTransform(np.eye(3), (64, 64))


# Boxes


def test_the_bounding_box_is_tight_for_each_face() -> None:
    xy = np.array([[[1, 8], [5, 2], [3, 3]], [[0, 0], [-4, 1], [2, 9]]], np.float32)
    np.testing.assert_array_equal(bounding_box(xy), [[1, 2, 5, 8], [-4, 0, 2, 9]])


def test_bounding_box_matches_numpy_including_nan() -> None:
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(5, 4, 9, 2))
    xy[0, 0, 0, 0] = xy[1, 1, 8, 1] = xy[2, 2, 4] = np.nan
    for points in (xy, xy.astype(np.float32), xy[:, :, ::2], xy.swapaxes(0, 1)):
        wanted = np.concatenate((points.min(-2), points.max(-2)), -1).astype(np.float32)
        np.testing.assert_array_equal(bounding_box(points), wanted)


def test_bounding_box_of_no_points_raises_and_of_no_faces_is_empty() -> None:
    with pytest.raises(ValueError, match="wanted points, got none"):
        bounding_box(np.empty((0, 2), np.float32))
    assert bounding_box(np.empty((0, 68, 2), np.float32)).shape == (0, 4)


def test_box_centre_side_returns_the_centre_and_longer_side() -> None:
    assert box_centre_side(np.array([10, 20, 40, 30], np.float32)) == ((25, 25), 30)


def test_iou_matches_a_count_of_shared_pixels() -> None:
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 30, (12, 2, 2))
    boxes = np.concatenate((corners.min(1), corners.max(1) + 1), -1).astype(np.float32)
    covered = np.zeros((12, 32, 32), bool)
    for mask, (x1, y1, x2, y2) in zip(covered, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    shared = (covered[:, None] & covered[None]).sum((2, 3))
    either = (covered[:, None] | covered[None]).sum((2, 3))
    np.testing.assert_allclose(iou(boxes[:5], boxes), (shared / either)[:5], rtol=1e-6)


def test_empty_boxes_overlap_nothing() -> None:
    boxes = np.array([[5, 5, 5, 5], [9, 9, 2, 2], [0, 0, 10, 10]], np.float32)
    np.testing.assert_array_equal(iou(boxes, boxes), [[0, 0, 0], [0, 0, 0], [0, 0, 1]])
    assert iou(np.empty((0, 4), np.float32), boxes).shape == (0, 3)


# Roll


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.2, 3.0])
def test_roll_is_the_angle_by_which_a_face_was_turned(angle: float) -> None:
    assert roll(turned(FIVE, angle, 2.5, (70, -9))) == pytest.approx(angle, abs=1e-3)


def test_roll_of_a_near_profile_face_is_accurate() -> None:
    profile = FIVE * np.array([0.02, 1], np.float32)
    assert roll(turned(profile, 0.5)) == pytest.approx(0.5, abs=0.02)


def test_five_points_at_one_place_have_no_roll() -> None:
    assert roll(np.full((5, 2), 3, np.float32)) == 0.0


@pytest.mark.parametrize("angle", [0.0, 0.9, -2.2])
def test_rotated_box_turns_and_scales_with_the_face(angle: float) -> None:
    centre, side, tilt = rotated_box(turned(FACE, angle, 1.7, (200, 100)), turned(FIVE, angle, 1.7, (200, 100)))
    upright_centre, upright_side = box_centre_side(bounding_box(FACE))
    np.testing.assert_allclose(
        centre, turned(np.array([upright_centre], np.float32), angle, 1.7, (200, 100))[0], atol=0.05
    )
    assert side == pytest.approx(1.7 * upright_side, rel=1e-3)
    assert tilt == pytest.approx(angle, abs=1e-3)


def test_a_crop_round_the_rotated_box_holds_all_points_tightly() -> None:
    xy, five = turned(FACE, 0.8, shift=(150, 150)), turned(FIVE, 0.8, shift=(150, 150))
    centre, side, angle = rotated_box(xy, five)
    inside = CropTransform.around(centre, side, 100, angle=angle).to_crop(xy)
    assert inside.min() >= -0.6
    assert inside.max() <= 99.6
    assert np.ptp(inside, 0).max() == pytest.approx(100, abs=0.1)
