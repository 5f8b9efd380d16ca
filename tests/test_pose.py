from __future__ import annotations

import math
import re
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from facetrack.tracker.errors import MarkupError
from facetrack.tracker.markup import load
from facetrack.tracker.pose import (
    MEAN_FACE_MM,
    Pose,
    camera_matrix,
    euler_angles,
    eye_aspect_ratio,
    head_pose,
    rotation_matrix,
)
from facetrack.tracker.types import Float32, Float64

SIZE = (480, 640)
POSES = [
    ((0, 0, 0), (0, 0, 600)),
    ((0.3, 0, 0), (0, 0, 600)),
    ((0, -0.6, 0), (100, 40, 900)),
    ((0, 0, 2.5), (0, 0, 600)),  # nearly upside down
    ((-0.4, 1.0, 0.3), (-200, 50, 1500)),
    ((0.2, 0.5, -0.8), (30, -20, 250)),  # larger than the frame
    ((0.1, 0.2, 0.1), (900, 0, 700)),  # outside the frame
]


def projected(head_mm: Float64, rotation: tuple[float, ...], translation: tuple[float, ...]) -> Float32:
    """Where a pinhole camera sees the points of a head, by OpenCV and not by the module under test."""
    vector = Rotation.from_euler("XYZ", rotation).as_rotvec()
    pixels, _ = cv2.projectPoints(head_mm, vector, np.array(translation, np.float64), camera_matrix(SIZE), None)
    return pixels[:, 0].astype(np.float32)


def pose_of(head_mm: Float64, rotation: tuple[float, ...] = (0, 0, 0), distance_mm: float = 600.0) -> Pose:
    pose = head_pose(projected(head_mm, rotation, (0, 0, distance_mm)), SIZE)
    assert pose is not None
    return pose


def test_camera_that_is_not_intrinsics_is_refused() -> None:
    with pytest.raises(ValueError, match="head pose: wanted Intrinsics, as read_intrinsics returns them, got str"):
        head_pose(line(), SIZE, "camera.toml")  # type: ignore[arg-type]


def test_poses_are_hashable_and_compare_by_identity() -> None:
    poses = [Pose(np.zeros(3), np.zeros(3)), Pose(np.zeros(3), np.zeros(3))]
    assert len(set(poses)) == 2
    assert poses.index(poses[1]) == 1


@pytest.mark.parametrize(("rotation", "translation"), POSES)
def test_the_pose_of_a_projected_head_is_found(rotation: tuple[float, ...], translation: tuple[float, ...]) -> None:
    pose = head_pose(projected(MEAN_FACE_MM, rotation, translation), SIZE)
    assert pose is not None
    np.testing.assert_allclose(pose.rotation_rad, rotation, atol=1e-3)
    np.testing.assert_allclose(pose.translation_mm, translation, atol=0.3)


@pytest.mark.parametrize("distance_mm", [120.0, 600.0, 5000.0])
@pytest.mark.parametrize("yaw", [-1.57, -1.0, 0.0, 0.6, 1.57])
@pytest.mark.parametrize("roll", np.arange(-3, 4))
def test_pose_is_recovered_at_any_rotation_and_position(distance_mm: float, yaw: float, roll: int) -> None:
    for pitch, right, down in ((-0.6, 0, 0), (0.4, 0.6, -0.5), (0.0, -1.5, 1.0)):  # the last one far outside the frame
        attitude = Rotation.from_euler("z", roll) * Rotation.from_euler("XYZ", (pitch, yaw, 0))
        place = np.array([right, down, 1.0]) * distance_mm
        pixels, _ = cv2.projectPoints(MEAN_FACE_MM, attitude.as_rotvec(), place, camera_matrix(SIZE), None)
        pose = head_pose(pixels[:, 0], SIZE)
        assert pose is not None
        off = Rotation.from_matrix(rotation_matrix(pose.rotation_rad)).inv() * attitude
        assert off.magnitude() < 1e-3
        np.testing.assert_allclose(pose.translation_mm, place, rtol=1e-3, atol=1e-3 * distance_mm)


@pytest.mark.parametrize("room", [1.2, 1.6, 2.5])
def test_face_that_fills_the_picture_is_not_seen_as_a_head_turned_away(room: float) -> None:
    """Heads that are not quite the mean face, taken from afar; the camera that is assumed would be close to them."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        rotation, head = rng.uniform(-1, 1, 3) * [0.4, 0.7, 0.5], MEAN_FACE_MM + rng.normal(0, 3, (68, 3))
        seen = head @ Rotation.from_euler("XYZ", rotation).as_matrix().T
        xy = (seen - seen.mean(0))[:, :2] + room * np.ptp(seen[:, :2], axis=0).max() / 2
        pose = head_pose(xy.astype(np.float32), (round(2 * xy.mean()), round(2 * xy.mean())))
        assert pose is not None
        off = Rotation.from_euler("XYZ", pose.rotation_rad).inv() * Rotation.from_euler("XYZ", rotation)
        assert np.degrees(off.magnitude()) < 25


def test_rotating_the_picture_rotates_the_head_about_the_camera_axis() -> None:
    noise = np.random.default_rng(5).normal(0, 3, (68, 2))
    middle = camera_matrix(SIZE)[:2, 2]
    upright = projected(MEAN_FACE_MM, (0.2, 0.3, 0.1), (80, 50, 400)) + noise - middle
    before = head_pose(upright + middle, SIZE)
    assert before is not None
    for roll in np.linspace(-np.pi, np.pi, 25):
        turn = Rotation.from_euler("z", roll).as_matrix()
        after = head_pose(upright @ turn[:2, :2].T + middle, SIZE)
        assert after is not None
        np.testing.assert_allclose(
            rotation_matrix(after.rotation_rad), turn @ rotation_matrix(before.rotation_rad), atol=1e-4
        )
        np.testing.assert_allclose(after.translation_mm, turn @ before.translation_mm, atol=0.05)


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (3000, 4000), (6000, 8000), (240, 40000)])
def test_a_face_far_away_has_the_right_pose_or_none(size: tuple[int, int]) -> None:
    found = []
    for distance_mm in (400.0, 4000.0, 10_000.0, 40_000.0, 400_000.0):
        turn, shift = Rotation.from_euler("XYZ", (0.1, 0.3, 0.2)).as_rotvec(), np.array([0, 0, distance_mm])
        pixels, _ = cv2.projectPoints(MEAN_FACE_MM, turn, shift, camera_matrix(size), None)
        pose = head_pose(pixels[:, 0].astype(np.float32), size)
        found.append(pose is not None)
        if pose is not None:
            np.testing.assert_allclose(pose.rotation_rad, (0.1, 0.3, 0.2), atol=0.02)
            assert pose.translation_mm[2] == pytest.approx(distance_mm, rel=0.02)
    assert found[0]
    assert not found[-1]


def test_a_head_that_turns_to_its_left_has_a_negative_yaw() -> None:
    xy = projected(MEAN_FACE_MM, (0, -0.5, 0), (0, 0, 600))
    assert xy[30, 0] > (xy[36, 0] + xy[45, 0]) / 2  # the nose goes to the picture's right, the subject's left
    assert pose_of(MEAN_FACE_MM, (0, -0.5, 0)).rotation_rad[1] == pytest.approx(-0.5, abs=1e-3)


def test_a_head_that_looks_down_has_a_positive_pitch() -> None:
    level, down = (projected(MEAN_FACE_MM, (pitch, 0, 0), (0, 0, 600)) for pitch in (0, 0.3))
    assert down[30, 1] > level[30, 1]
    assert pose_of(MEAN_FACE_MM, (0.3, 0, 0)).rotation_rad[0] == pytest.approx(0.3, abs=1e-3)


def test_a_head_that_leans_to_its_left_shoulder_has_a_positive_roll() -> None:
    xy = projected(MEAN_FACE_MM, (0, 0, 0.3), (0, 0, 600))
    assert xy[27, 0] > xy[8, 0]  # the forehead is right of the chin in the picture
    assert pose_of(MEAN_FACE_MM, (0, 0, 0.3)).rotation_rad[2] == pytest.approx(0.3, abs=1e-3)


def test_a_head_on_the_right_below_the_middle_has_a_positive_x_and_y() -> None:
    centre = np.array([320, 240])
    right_and_down = projected(MEAN_FACE_MM, (0, 0, 0), (50, 80, 600))
    assert (right_and_down.mean(0) > centre).all()
    pose = head_pose(right_and_down, SIZE)
    assert pose is not None
    np.testing.assert_allclose(pose.translation_mm, [50, 80, 600], atol=0.5)


def test_a_mirrored_face_has_the_mirrored_pose() -> None:
    xy = projected(MEAN_FACE_MM, (0.2, 0.4, -0.3), (60, 20, 700))
    mirrored = xy[load("ibug68").mirror] * [-1, 1] + [SIZE[1], 0]
    pose = head_pose(mirrored.astype(np.float32), SIZE)
    assert pose is not None
    np.testing.assert_allclose(pose.rotation_rad, [0.2, -0.4, 0.3], atol=1e-3)
    np.testing.assert_allclose(pose.translation_mm, [-60, 20, 700], atol=0.5)


def test_blinks_smiles_and_an_open_mouth_do_not_turn_the_head() -> None:
    grimace = MEAN_FACE_MM.copy()
    grimace[[37, 38, 43, 44], 1] += 7
    grimace[17:27, 1] -= 8
    grimace[[48, 54], 0] += [-8, 8]
    grimace[[5, 6, 7, 8, 9, 10, 11, 55, 56, 57, 58, 59, 65, 66, 67], 1] += 20
    pose = pose_of(grimace, (0.1, 0.2, 0.05))
    np.testing.assert_allclose(pose.rotation_rad, [0.1, 0.2, 0.05], atol=1e-3)
    np.testing.assert_allclose(pose.translation_mm, [0, 0, 600], atol=0.5)


def test_a_tenth_of_a_pixel_of_jitter_moves_the_pose_by_little() -> None:
    rng, xy = np.random.default_rng(0), projected(MEAN_FACE_MM, (0.1, 0.3, 0), (0, 0, 600))
    poses = [head_pose(xy + rng.normal(0, 0.1, xy.shape).astype(np.float32), SIZE) for _ in range(200)]
    rotations = np.degrees([pose.rotation_rad for pose in poses if pose is not None])
    assert len(rotations) == 200
    assert rotations.std(0).max() < 0.2
    assert np.std([pose.translation_mm[2] for pose in poses if pose is not None]) < 2


def test_noisy_points_give_what_opencvs_iterative_solver_gives() -> None:
    rng = np.random.default_rng(1)
    rigid = [0, 1, 2, 3, 13, 14, 15, 16, *range(27, 36), 36, 39, 42, 45]
    for _ in range(10):
        rotation = rng.uniform(-0.3, 0.3, 3)
        xy = projected(MEAN_FACE_MM, tuple(rotation), (0, 0, 600)) + rng.normal(0, 0.5, (68, 2)).astype(np.float32)
        pose = head_pose(xy, SIZE)
        start = Rotation.from_euler("XYZ", rotation).as_rotvec(), np.array([0, 0, 600.0])
        _, vector, shift = cv2.solvePnP(MEAN_FACE_MM[rigid], xy[rigid], camera_matrix(SIZE), None, *start, True)
        expected = Rotation.from_rotvec(vector[:, 0]).as_euler("XYZ")
        assert pose is not None
        np.testing.assert_allclose(pose.rotation_rad, expected, atol=np.radians(0.5))
        np.testing.assert_allclose(pose.translation_mm, shift[:, 0], rtol=0.01, atol=1)


@pytest.mark.parametrize("yaw", [-1.1, -0.8, 0.8, 1.1])
def test_displaced_far_cheek_contour_does_not_change_the_pose_of_a_turned_head(yaw: float) -> None:
    slid = MEAN_FACE_MM.copy()
    far = [0, 1, 2, 3] if yaw > 0 else [13, 14, 15, 16]
    slid[far] += [30 * np.sign(yaw), 0, -35]  # what is seen of it is the cheek, nearer to the nose and the camera
    pose = pose_of(slid, (0.1, yaw, 0.05))
    np.testing.assert_allclose(pose.rotation_rad, [0.1, yaw, 0.05], atol=1e-3)


def test_the_pose_of_a_turning_head_has_no_jumps() -> None:
    noise = np.random.default_rng(6).normal(0, 4, MEAN_FACE_MM.shape)  # a head that no fit lies over
    yaws = np.linspace(0, 1, 501)
    found = np.array([pose_of(MEAN_FACE_MM + noise, (0, yaw, 0)).rotation_rad for yaw in yaws])
    assert np.abs(np.diff(found, axis=0)).max() < np.deg2rad(0.6)  # steps of 0.11 degrees


def line() -> Float32:
    return np.column_stack((np.arange(68), 2 * np.arange(68))).astype(np.float32)


@pytest.mark.parametrize("xy", [np.full((68, 2), 7.0), line(), np.full((68, 2), np.nan), np.full((68, 2), np.inf)])
def test_degenerate_points_have_no_pose(xy: Float32) -> None:
    assert head_pose(xy, SIZE) is None


def test_points_on_one_line_have_no_pose_whichever_way_it_runs() -> None:
    """Rounding makes the variance across it negative now and then, which has no root."""
    for way in np.ndindex(19, 19):
        along = np.arange(68)[:, None] * (np.array(way) - 9)
        assert head_pose(np.float32(along) + np.float32([300, 200]), SIZE) is None


def test_random_points_never_give_a_pose_that_is_not_finite() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        pose = head_pose(rng.normal(0, 10 ** rng.uniform(0, 4), (68, 2)).astype(np.float32), SIZE)
        assert pose is None or np.isfinite([pose.translation_mm, pose.rotation_rad]).all()


def test_head_is_never_placed_behind_the_camera() -> None:
    rng, places = np.random.default_rng(2), []
    for _ in range(300):
        pose = head_pose(rng.normal(0, 10 ** rng.uniform(0, 4), (68, 2)).astype(np.float32), SIZE)
        places += [] if pose is None else [pose.translation_mm[2]]
    assert min(places) > 0
    assert len(places) > 100


def test_points_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted \(68, 2\)"):
        head_pose(np.zeros((98, 2), np.float32), SIZE)


@pytest.mark.parametrize(
    "size", [(0, 640), (-1, 5), (360,), (360, 640, 3), (360.5, 640.0), (np.nan, 640), (np.inf, 1), None, "ab"]
)
def test_invalid_frame_size_is_refused(size: Any) -> None:
    told = f"camera: wanted a (height, width) in whole pixels above 0, got {size!r}; take result.frame.size"
    with pytest.raises(ValueError, match=re.escape(told)):
        head_pose(line(), size)


def test_a_pose_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        pose_of(MEAN_FACE_MM).rotation_rad[0] = 1


def test_camera_matrix_matches_openface() -> None:
    np.testing.assert_array_equal(camera_matrix((480, 640)), [[500, 0, 320], [0, 500, 240], [0, 0, 1]])
    assert camera_matrix((720, 1280))[0, 0] == (1000 + 750) / 2


def openface_euler(matrix: Float64) -> Float64:
    """OpenFace's way to Euler angles, through a quaternion (RotationHelpers.h)."""
    w = math.sqrt(1 + np.trace(matrix)) / 2
    x, y, z = (matrix[b, a] - matrix[a, b] for a, b in ((1, 2), (2, 0), (0, 1)))
    x, y, z = x / (4 * w), y / (4 * w), z / (4 * w)
    pitch = math.atan2(2 * (w * x - y * z), w * w - x * x - y * y + z * z)
    roll = math.atan2(2 * (w * z - x * y), w * w + x * x - y * y - z * z)
    return np.array([pitch, math.asin(2 * (w * y + x * z)), roll])


def test_euler_angles_match_openface_and_scipy_and_invert_the_matrix() -> None:
    rng = np.random.default_rng(3)
    for angles in rng.uniform(-1.4, 1.4, (50, 3)):
        matrix = rotation_matrix(angles)
        np.testing.assert_allclose(matrix, Rotation.from_euler("XYZ", angles).as_matrix(), atol=1e-12)
        np.testing.assert_allclose(euler_angles(matrix), angles, atol=1e-9)
        if np.trace(matrix) > -0.9:  # OpenFace's quaternion divides by zero at half a turn
            np.testing.assert_allclose(openface_euler(matrix), angles, atol=1e-9)


def test_euler_angles_at_the_pole_are_finite() -> None:
    assert np.isfinite(euler_angles(rotation_matrix(np.array([0.1, np.pi / 2, 0.2])))).all()


@pytest.mark.parametrize("pole", [-1.0, 1.0])
def test_rotation_rounded_beyond_the_pole_is_placed_at_the_pole(pole: float) -> None:
    """As rotations from vectors now and then are; no arc has such a sine."""
    matrix = rotation_matrix(np.array([0.1, pole * np.pi / 2, 0.2]))
    matrix[0, 2] = np.nextafter(pole, 2 * pole)
    assert euler_angles(matrix)[1] == pole * np.pi / 2


def test_the_mean_face_is_symmetric_and_centred_on_its_points() -> None:
    np.testing.assert_allclose(MEAN_FACE_MM[load("ibug68").mirror] * [-1, 1, 1], MEAN_FACE_MM, atol=1e-9)
    np.testing.assert_allclose(MEAN_FACE_MM.mean(0), 0, atol=0.02)


@pytest.mark.parametrize(
    ("a", "b", "male_mm", "female_mm"),
    [
        (36, 45, 91.2, 87.8),  # outer eye corners
        (48, 54, 54.5, 50.2),  # mouth corners
        (31, 35, 34.9, 31.4),  # wings of the nose, outside; the landmarks lie on their undersides
        (27, 8, 124.7, 111.4),  # nasion to chin
    ],
)
def test_the_mean_face_has_the_proportions_of_anthropometry(a: int, b: int, male_mm: float, female_mm: float) -> None:
    """Farkas, "Anthropometry of the Head and Face", 1994, means of young North American adults."""
    distance = np.linalg.norm(MEAN_FACE_MM[a] - MEAN_FACE_MM[b])
    assert 0.85 * female_mm < distance < 1.1 * male_mm


def test_the_nose_is_in_front_and_the_ears_are_behind() -> None:
    z = MEAN_FACE_MM[:, 2]
    assert z[30] == z.min()
    assert {int(i) for i in np.argsort(z)[-2:]} == {0, 16}


def eyes_of(upper: float, lower: float, xy: Float32 | None = None) -> Float32:
    """68 points whose eyes are 30 px wide, their lids at the given distances from the line of the corners."""
    points = np.zeros((68, 2), np.float32) if xy is None else xy
    for first in (36, 42):
        points[first : first + 6] = [[0, 0], [10, -upper], [20, -upper], [30, 0], [20, lower], [10, lower]]
    return points


def test_eye_aspect_ratio_is_the_gap_over_the_width() -> None:
    assert eye_aspect_ratio(eyes_of(5, 4)) == pytest.approx((0.3, 0.3))
    assert eye_aspect_ratio(eyes_of(0, 0)) == (0, 0)


def test_eye_aspect_ratio_is_equation_1_of_its_paper() -> None:
    xy = np.random.default_rng(4).normal(0, 50, (68, 2)).astype(np.float32)

    def paper(p: Float32) -> float:
        return float((np.linalg.norm(p[1] - p[5]) + np.linalg.norm(p[2] - p[4])) / (2 * np.linalg.norm(p[0] - p[3])))

    assert eye_aspect_ratio(xy) == pytest.approx((paper(xy[42:48]), paper(xy[36:42])))


def test_left_is_the_subjects_left() -> None:
    winking = MEAN_FACE_MM[:, :2].astype(np.float32)
    winking[[43, 44]] = winking[[47, 46]]  # the lids of the eye on the picture's right
    left, right = eye_aspect_ratio(winking)
    assert left < 0.05 < 0.2 < right


def test_eye_aspect_ratio_of_wflw98_averages_three_pairs_of_lid_points() -> None:
    xy = np.zeros((98, 2), np.float32)
    for first in (60, 68):
        xy[first : first + 8] = [[0, 0], [10, -4], [20, -6], [30, -4], [40, 0], [30, 4], [20, 6], [10, 4]]
    assert eye_aspect_ratio(xy) == pytest.approx(((8 + 12 + 8) / 3 / 40,) * 2)


@pytest.mark.parametrize("points", [19, 5])
def test_markups_without_two_lids_have_no_eye_aspect_ratio(points: int) -> None:
    assert np.isnan(eye_aspect_ratio(np.random.default_rng(0).normal(0, 9, (points, 2)).astype(np.float32))).all()


def test_eyes_without_width_or_with_unknown_points_give_nan() -> None:
    assert np.isnan(eye_aspect_ratio(np.zeros((68, 2), np.float32))).all()
    half = eyes_of(5, 4)
    half[43] = np.nan
    left, right = eye_aspect_ratio(half)
    assert math.isnan(left)
    assert right == pytest.approx(0.3)
    half[43] = np.inf
    assert math.isnan(eye_aspect_ratio(half)[0])


def test_eye_aspect_ratio_stays_bounded_or_nan_up_to_profile_view() -> None:
    """Of the mean face's own eyes, seen from afar: the far eye is out of sight from about 65 degrees on."""
    for yaw_deg in range(-180, 181, 5):
        turned = MEAN_FACE_MM @ rotation_matrix(np.radians([0, yaw_deg, 0])).T
        openings = np.array(eye_aspect_ratio(turned[:, :2].astype(np.float32)))
        assert not (openings > 2).any()
        if abs(yaw_deg) <= 50:
            assert np.isfinite(openings).all()


def test_unknown_number_of_points_is_refused() -> None:
    with pytest.raises(MarkupError, match="no markup has 7 points"):
        eye_aspect_ratio(np.zeros((7, 2), np.float32))


@pytest.mark.parametrize("shape", [(68,), (2, 68), (68, 3), (1, 68, 2)])
def test_eye_aspect_ratio_refuses_arrays_that_are_not_n_by_2(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"eye opening: wanted \(N, 2\) points of a markup, got {re.escape(str(shape))}"
    ):
        eye_aspect_ratio(np.zeros(shape, np.float32))
