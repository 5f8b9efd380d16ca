"""Faces turned out of the picture's plane, on a synthetic face whose pixels say where they came from."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from facetrack.tracker import markup
from facetrack.tracker.errors import SourceError
from facetrack.tracker.geometry import CropTransform, bounding_box, box_centre_side
from facetrack.tracker.pose import MEAN_FACE_MM, camera_matrix, euler_angles, rotation_matrix
from facetrack.training import turned
from facetrack.training.datasets import Sample, read_pts, read_pts_folder
from facetrack.training.datasets.point_files import write_pts
from facetrack.training.rasterise import rasterise
from facetrack.training.turned import Head, Turned, fit_head, turn_face, turned_faces

WIDTH = 240
FAR_OF_POSITIVE_YAW = np.arange(0, 7)  # the picture's left: the side that a nose turned to the left hides
STEADY = np.array([*range(27, 36), 36, 39, 42, 45])


def seen(pitch: float = 0.0, yaw: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """The mean face's points (68, 2) as a far camera sees them, angles in degrees, in a picture of WIDTH."""
    matrix = rotation_matrix(np.deg2rad([0, 0, roll])) @ rotation_matrix(np.deg2rad([pitch, yaw, 0]))
    return ((MEAN_FACE_MM @ matrix.T)[:, :2] * 0.9 + WIDTH / 2).astype(np.float32)


def map_picture() -> np.ndarray:
    """A picture whose blue is its x and whose green is its y."""
    y, x = np.mgrid[:WIDTH, :WIDTH]
    return np.dstack((x, y, np.full_like(x, 128))).astype(np.uint8)


def head_of(points: np.ndarray) -> Head:
    head = fit_head(points)
    assert head is not None
    return head


def turn(points: np.ndarray, yaw: float, pitch: float | None = None) -> Turned:
    """The map picture turned to an attitude in degrees; the pitch stays unless one is given."""
    head = head_of(points)
    return turn_face(
        map_picture(), points, head, head.pitch_rad if pitch is None else np.deg2rad(pitch), np.deg2rad(yaw)
    )


def origin_of(result: Turned, places: np.ndarray) -> np.ndarray:
    """Where in the map picture the pixels at (N, 2) places came from."""
    x, y = np.ascontiguousarray(places.T, np.float32)
    return cv2.remap(result.bgr, x[None], y[None], cv2.INTER_LINEAR)[0, :, :2].astype(np.float64)


def steady_yaw(points: np.ndarray) -> float:
    """Yaw in degrees from the nose and the corners of the eyes, which no outline moves."""
    camera = camera_matrix((2000, 2000))
    shifted = points[STEADY].astype(np.float64) - points.mean(0) + 1000
    _, vector, _ = cv2.solvePnP(MEAN_FACE_MM[STEADY], shifted, camera, None, flags=cv2.SOLVEPNP_SQPNP)
    return float(np.rad2deg(euler_angles(cv2.Rodrigues(vector)[0].astype(np.float64))[1]))


@pytest.mark.parametrize(("pitch", "yaw", "roll"), [(0, 0, 0), (10, -15, 20), (-12, 18, -30)])
def test_fit_head_recovers_the_projected_pose_and_scale(pitch: float, yaw: float, roll: float) -> None:
    head = head_of(seen(pitch, yaw, roll))
    found = np.rad2deg([head.pitch_rad, head.yaw_rad, head.roll_rad])
    np.testing.assert_allclose(found, [pitch, yaw, roll], atol=2.5)  # head_pose's camera is near, this one is not
    assert head.scale == pytest.approx(0.9, rel=0.03)


def test_millimetres_and_pixels_are_each_others_inverse() -> None:
    points = seen(5, 10, 25).astype(np.float64)
    head = head_of(points.astype(np.float32))
    np.testing.assert_allclose(head.to_pixels(head.to_mm(points)), points, atol=1e-9)


def test_points_that_are_no_face_give_no_head() -> None:
    assert fit_head(np.full((68, 2), 7.0, np.float32)) is None
    assert fit_head(np.column_stack((np.arange(68.0), np.arange(68.0))).astype(np.float32)) is None


@pytest.mark.parametrize("points", [seen(), seen(8, -14, 25)], ids=["straight", "rolled and turned"])
def test_turning_to_the_current_pose_changes_only_the_crop(points: np.ndarray) -> None:
    head = head_of(points)
    result = turn(points, np.rad2deg(head.yaw_rad))
    assert result.spoilt == 0
    centre, side = box_centre_side(bounding_box(points))
    crop = CropTransform.around(centre, turned.SHOWN * side, 2 * turned.SIZE)
    np.testing.assert_allclose(2 * result.points + 0.5, crop.to_crop(points), atol=1e-3)
    wanted = cv2.resize(crop.crop(map_picture()), (turned.SIZE, turned.SIZE), interpolation=cv2.INTER_AREA)
    inside = np.s_[30:-30, 30:-30]  # the crop goes beyond the picture
    assert np.abs(result.bgr[inside].astype(int) - wanted[inside]).max() <= 1  # a level is a pixel of the source


@pytest.mark.parametrize("yaw", [20, 40, 60])
def test_landmarks_and_pixels_move_together(yaw: int) -> None:
    points = seen(3, 5, 10)
    result = turn(points, yaw, pitch=-5)
    uncovered = np.array([*range(22, 28), 43, 44, 45, 46, 47, 53, 54, 55, 63, 64, 65])
    came_from = origin_of(result, result.points[uncovered])
    assert np.abs(came_from - points[uncovered]).max() < 1.5
    assert np.abs(came_from - points[uncovered]).mean() < 0.5


@pytest.mark.parametrize("source", [-10, 0, 15])
@pytest.mark.parametrize("yaw", [-65, -40, 30, 50, 70])
def test_turned_face_has_the_requested_yaw(source: int, yaw: int) -> None:
    result = turn(seen(2, source), yaw)
    assert steady_yaw(result.points) == pytest.approx(yaw, abs=4)


def test_the_nose_rises_and_sinks_with_the_pitch() -> None:
    up, down = (turn(seen(), 40, pitch).points for pitch in (-15, 15))
    eyes_to_nose = [p[30, 1] - p[36:48, 1].mean() for p in (up, down)]
    assert eyes_to_nose[0] < eyes_to_nose[1] - 10


@pytest.mark.parametrize("yaw", [-50, 35])
def test_a_mirrored_photograph_gives_the_mirrored_result(yaw: int) -> None:
    bgr, points = map_picture(), seen(4, 0, 12)
    order = np.array(markup.load("ibug68").mirror)
    flipped = points[order] * np.float32([-1, 1]) + np.float32([WIDTH - 1, 0])
    head = head_of(points)
    mirror_head = Head(
        head.centre * [-1, 1] + [WIDTH - 1, 0], head.scale, -head.roll_rad, head.pitch_rad, -head.yaw_rad, head.relief
    )
    there = turn_face(bgr, points, head, 0.1, np.deg2rad(yaw))
    mirrored = turn_face(np.ascontiguousarray(bgr[:, ::-1]), flipped, mirror_head, 0.1, -np.deg2rad(yaw))
    back = mirrored.points[order] * np.float32([-1, 1]) + np.float32([turned.SIZE - 1, 0])
    np.testing.assert_allclose(back, there.points, atol=0.1)
    difference = np.abs(mirrored.bgr[:, ::-1].astype(int) - there.bgr)
    assert difference.mean() < 0.3
    assert np.percentile(difference, 99) <= 3  # only where the cells' diagonals differ at an outline


def test_far_contour_points_slide_to_the_outline_and_near_ones_along_the_jaw() -> None:
    points = seen()
    head = head_of(points)
    relief = turned.Relief(head.to_mm(points.astype(np.float64)), head)
    rotation = rotation_matrix(np.deg2rad([0.0, 50.0, 0.0])) @ head.attitude().T
    fixed, moved = relief.points @ rotation.T, turned.turned_landmarks(relief, rotation)
    assert (moved[FAR_OF_POSITIVE_YAW, 0] < fixed[FAR_OF_POSITIVE_YAW, 0] - 3).all()
    x = np.linspace(-60, -17, 30)
    for place in moved[1:5]:  # at its height, the cheek's own turned surface does not reach beyond a point
        rows = np.column_stack((x, np.full(30, place[1])))
        surface = np.column_stack((rows, relief.depth(rows))) @ rotation.T
        assert place[0] == pytest.approx(surface[:, 0].min(), abs=2.5)
    jaw = np.float32(fixed[8:17, :2]).reshape(-1, 1, 2)
    ribbon = np.vstack((jaw, jaw[::-1]))  # a polygon without area, so that distances are those from the line
    assert max(abs(cv2.pointPolygonTest(ribbon, (float(u), float(v)), True)) for u, v, _ in moved[8:17]) < 0.1


def test_contour_points_keep_their_relative_spacing_from_ear_to_chin() -> None:
    points = seen()
    result = turn(points, 55)
    for half in (slice(0, 9), slice(8, 17)):
        before, after = (np.linalg.norm(np.diff(p[half], axis=0), axis=1) for p in (points, result.points))
        np.testing.assert_allclose(after / after.sum(), before / before.sum(), atol=0.03)


def reference_rasterise(drawn: np.ndarray, source: np.ndarray, triangles: np.ndarray, size: int) -> tuple:
    """The kernel's second implementation: all pixels against one triangle after the other, by solving for weights."""
    y, x = np.mgrid[:size, :size]
    pixels = np.stack((x, y, np.ones_like(x)), -1).astype(np.float64)
    lookup, nearest, spoilt = np.full((size, size, 2), -1e4), np.full((size, size), np.inf), np.ones((size, size))
    for corners in triangles:
        at, of = drawn[corners].astype(np.float64), source[corners].astype(np.float64)
        weights = pixels @ np.linalg.inv(np.column_stack((at[:, :2], np.ones(3))))
        depth = weights @ at[:, 2]
        wins = (weights >= 0).all(-1) & (depth < nearest)
        lookup[wins], nearest[wins] = (weights @ of)[wins], depth[wins]
        turned_over = np.linalg.det(at[1:, :2] - at[0, :2]) * np.linalg.det(of[1:] - of[0]) < 0
        spoilt[wins] = turned_over
    return lookup, spoilt


def test_the_kernel_agrees_with_solving_for_the_weights_of_every_triangle() -> None:
    rng = np.random.default_rng(3)
    drawn = rng.uniform(-5, 45, (30, 3)).astype(np.float32)
    source = rng.uniform(0, 100, (30, 2)).astype(np.float32)
    triangles = np.array([rng.choice(30, 3, replace=False) for _ in range(25)], np.int64)
    lookup, spoilt = rasterise(drawn, source, triangles, 40)
    wanted_lookup, wanted_spoilt = reference_rasterise(drawn, source, triangles, 40)
    np.testing.assert_allclose(lookup, wanted_lookup, atol=1e-2)
    np.testing.assert_array_equal(spoilt, wanted_spoilt)


def test_the_nearer_triangle_is_seen_and_a_turned_one_counts_as_spoilt() -> None:
    square = np.array([[0, 0], [9, 0], [0, 9]], np.float32)
    drawn = np.vstack((np.column_stack((square, [5, 5, 5])), np.column_stack((square[:, ::-1], [2, 2, 2]))))
    lookup, spoilt = rasterise(
        drawn.astype(np.float32), np.vstack((square, square + 50)), np.array([[0, 1, 2], [3, 4, 5]]), 10
    )
    np.testing.assert_allclose(lookup[2, 3], [52, 53], atol=1e-4)  # the flipped, nearer one
    assert spoilt[2, 3] == 1
    assert spoilt[9, 9] == 1  # nothing is there


def samples_of(points: np.ndarray, folder: Path) -> list[Sample]:
    """A folder in the 300-W layout with one picture, read back."""
    cv2.imwrite(str(folder / "face.png"), map_picture())
    write_pts(folder / "face.pts", points)
    return list(read_pts_folder(folder))


def test_written_points_are_read_back(tmp_path: Path) -> None:
    write_pts(tmp_path / "a.pts", seen())
    np.testing.assert_allclose(read_pts(tmp_path / "a.pts"), seen(), atol=1e-3)


def test_each_face_is_turned_as_often_as_requested_and_reproducibly(tmp_path: Path) -> None:
    samples = samples_of(seen(), tmp_path)
    first, again, other = (list(turned_faces(samples, 3, seed)) for seed in (1, 1, 2))
    assert [number for _, number, _ in first] == [0, 1, 2]
    for (_, _, a), (_, _, b) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.points, b.points)
    assert not np.allclose(first[0][2].points, other[0][2].points, atol=0.5)
    yaws = np.abs([np.rad2deg(result.yaw_rad) for _, _, result in first])
    np.testing.assert_array_equal((yaws - 25) // 15, [0, 1, 2])  # one from each third of 25 to 70 degrees


def test_half_profile_face_is_skipped(tmp_path: Path) -> None:
    assert not list(turned_faces(samples_of(seen(yaw=35), tmp_path), 2, 0))


@pytest.mark.parametrize("count", [5, 29])
def test_face_with_the_wrong_point_count_raises_naming_its_file(count: int, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"face\.png: wanted the 68 points of ibug68, got {count}$"):
        list(turned_faces(samples_of(seen()[:count], tmp_path), 2, 0))


def test_the_command_writes_another_folder_of_the_same_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source" / "part", tmp_path / "out"
    source.mkdir(parents=True)
    samples_of(seen(), source)
    options = ["--per-face", "2", "--seed", "4", "--yaw", "70", "88"]
    monkeypatch.setattr("sys.argv", ["turned", str(source.parent), str(out), *options])
    turned.main()
    written = list(read_pts_folder(out))
    assert len(written) == 2
    assert all(70 <= abs(float(sample.path.stem.partition("yaw")[2])) <= 88 for sample in written)
    assert "2 turned faces" in capsys.readouterr().out
    for sample in written:
        assert sample.path.parent == out / "part"
        assert sample.bgr().shape == (turned.SIZE, turned.SIZE, 3)
        assert ((sample.points > 0) & (sample.points < turned.SIZE)).all()
