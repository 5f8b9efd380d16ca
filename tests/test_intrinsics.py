"""What a calibrated camera is, its file, and the head poses that rest on it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import PaintedSource, make_face, make_result
from fakes_pipeline import PaintedEngines, paint_pictures, paint_video
from scipy.spatial.transform import Rotation

from facetrack.cli import main
from facetrack.pipeline.camera_file import read_intrinsics, write_intrinsics
from facetrack.pipeline.csv_sink import CsvColumns
from facetrack.tracker.errors import ConfigError, SinkError
from facetrack.tracker.intrinsics import Intrinsics
from facetrack.tracker.pose import MEAN_FACE_MM, Pose, head_pose
from facetrack.tracker.types import Float32

# A wide-angle camera whose axis is off the middle: 66 degrees across; OpenFace's assumption would be 500 px.
WIDE = Intrinsics((480, 640), 390.0, 395.0, 335.0, 228.0, (-0.28, 0.09, 0.001, -0.0008, -0.01))
TURN, PLACE_MM = (0.15, -0.4, 0.1), (120.0, -60.0, 500.0)


def seen_head(camera: Intrinsics, turn: tuple[float, ...] = TURN, place: tuple[float, ...] = PLACE_MM) -> Float32:
    """The 68 points of a head as a camera shows them, by OpenCV's forward model."""
    vector = Rotation.from_euler("XYZ", turn).as_rotvec()
    lens = np.array(camera.distortion) if camera.distortion else None
    pixels, _ = cv2.projectPoints(MEAN_FACE_MM, vector, np.array(place), camera.matrix, lens)
    return pixels[:, 0].astype(np.float32)


def pose_with(camera: Intrinsics | None, xy: Float32, size: tuple[int, int] = WIDE.size) -> Pose:
    pose = head_pose(xy, size, camera)
    assert pose is not None
    return pose


# the value


def test_undistorting_is_the_inverse_of_the_lens() -> None:
    rng = np.random.default_rng(0)
    rays = np.column_stack((rng.uniform(-0.8, 0.8, (200, 2)), np.ones(200)))  # beyond the picture's edges, too
    seen, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), WIDE.matrix, np.array(WIDE.distortion))
    straight = rays[:, :2] * [WIDE.fx, WIDE.fy] + [WIDE.cx, WIDE.cy]
    np.testing.assert_allclose(WIDE.undistort(seen[:, 0]), straight, atol=0.01)


def test_a_perfect_lens_moves_nothing() -> None:
    xy = np.array([[3.0, 4.0], [-700.0, 9000.0]])
    np.testing.assert_array_equal(Intrinsics((480, 640), 500, 500, 320, 240).undistort(xy), xy)


def test_a_smaller_picture_shows_the_same_directions() -> None:
    half = WIDE.scaled((240, 320))
    assert half.size == (240, 320)
    xy = seen_head(WIDE)
    np.testing.assert_allclose(seen_head(half), (xy + 0.5) / 2 - 0.5, atol=1e-3)
    assert half.scaled(WIDE.size) == WIDE


def test_sizes_that_differ_by_rounding_are_the_same_aspect() -> None:
    full = Intrinsics((1080, 1920), 1500, 1500, 960, 540)
    assert full.scaled((480, 854)).fx == pytest.approx(1500 * 854 / 1920)


@pytest.mark.parametrize("size", [(480, 480), (640, 480), (360, 640), (1088, 1920)])
def test_another_aspect_is_refused_in_words(size: tuple[int, int]) -> None:
    full = Intrinsics((1080, 1440), 1500, 1500, 720, 540)
    with pytest.raises(ConfigError, match=f"calibrated at 1440x1080, and these pictures are {size[1]}x{size[0]}"):
        full.scaled(size)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (((0, 640), 500, 500, 320, 240), "above 0"),
        (((480, 640), -500, 500, 320, 240), "focal lengths above 0"),
        (((480, 640), 500, float("nan"), 320, 240), "finite"),
        (((480, 640), 500, 500, 320, 240, (0.1,)), "wanted 0, 4, 5, 8, 12, 14 coefficients of distortion, got 1"),
    ],
)
def test_invalid_intrinsics_are_refused(values: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Intrinsics(*values)  # type: ignore[arg-type]


def test_lists_and_arrays_give_equal_and_hashable_intrinsics() -> None:
    plain = Intrinsics((480, 640), 500.0, 500.0, 320.0, 240.0, (0.1, 0.0, 0.0, 0.0, 0.0))
    coefficients = np.array([[0.1, 0, 0, 0, 0]])  # as cv2.calibrateCamera gives them
    camera = Intrinsics(np.array([480, 640]), np.float64(500), 500, 320, 240, coefficients)  # type: ignore[arg-type]
    assert camera == plain
    assert {camera} == {plain}
    assert camera.scaled([240, 320]) == plain.scaled((240, 320))  # type: ignore[arg-type]
    assert repr(camera) == repr(plain)


@pytest.mark.parametrize("size", [(480, 640, 3), (480.5, 640), 480])
def test_invalid_picture_size_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=r"intrinsics: wanted a .*height, width"):
        Intrinsics(size, 500, 500, 320, 240)
    with pytest.raises(ValueError, match=r"intrinsics: wanted a .*height, width"):
        Intrinsics((480, 640), 500, 500, 320, 240).scaled(size)


# the head's pose


def test_head_pose_is_exact_only_with_the_calibrated_intrinsics() -> None:
    xy = seen_head(WIDE)
    known, assumed = pose_with(WIDE, xy), pose_with(None, xy)
    np.testing.assert_allclose(known.rotation_rad, TURN, atol=1e-3)
    np.testing.assert_allclose(known.translation_mm, PLACE_MM, atol=0.3)
    assert abs(assumed.translation_mm[2] - PLACE_MM[2]) > 100
    assert np.abs(assumed.rotation_rad - TURN).max() > np.radians(2)


def test_the_pose_does_not_depend_on_the_size_of_the_video() -> None:
    half = WIDE.scaled((240, 320))
    pose = pose_with(WIDE, seen_head(half), half.size)
    np.testing.assert_allclose(pose.rotation_rad, TURN, atol=1e-3)
    np.testing.assert_allclose(pose.translation_mm, PLACE_MM, atol=0.3)


def test_a_head_at_the_edge_of_a_distorted_picture_keeps_its_pose() -> None:
    place = (330.0, 190.0, 480.0)
    xy = seen_head(WIDE, TURN, place)
    assert xy[:, 0].max() > 590
    pose = pose_with(WIDE, xy)
    np.testing.assert_allclose(pose.rotation_rad, TURN, atol=2e-3)
    np.testing.assert_allclose(pose.translation_mm, place, rtol=2e-3)


def test_points_the_lens_cannot_show_give_a_finite_pose_or_none() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        pose = head_pose(rng.normal(0, 10 ** rng.uniform(0, 5), (68, 2)).astype(np.float32), WIDE.size, WIDE)
        assert pose is None or np.isfinite([pose.translation_mm, pose.rotation_rad]).all()
    assert head_pose(np.full((68, 2), np.nan, np.float32), WIDE.size, WIDE) is None


def test_csv_pose_uses_the_intrinsics() -> None:
    face = make_face(seen_head(WIDE))
    columns = CsvColumns(68, intrinsics=WIDE)
    (row,) = columns.rows(make_result(face, size=WIDE.size))
    cells = dict(zip(columns.names(), row.rstrip("\n").split(","), strict=True))
    np.testing.assert_allclose([float(cells[f"pose_T{a}"]) for a in "xyz"], PLACE_MM, atol=0.3)


# the file


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


SMALL = "width = 640\nheight = 480\nfx = 500\nfy = 501.5\ncx = 320\ncy = 240\n"


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "camera.toml"
    write_intrinsics(path, WIDE, rms_px=0.21, how='24 views of a 9x6 chessboard in "C:\\a\nb"')
    assert read_intrinsics(path) == WIDE
    with pytest.raises(SinkError, match="exists already"):
        write_intrinsics(path, WIDE, rms_px=0.21, how="")


def test_intrinsics_file_may_omit_distortion(tmp_path: Path) -> None:
    assert read_intrinsics(write(tmp_path / "a.toml", SMALL)) == Intrinsics((480, 640), 500, 501.5, 320, 240)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width = ", "is not TOML"),
        ("width = " + "[" * 5000, "is not TOML"),
        (SMALL.replace("fx = 500\n", ""), "fx: wanted a number, got nothing"),
        (SMALL.replace("500", '"long"'), "fx: wanted a number, got 'long'"),
        (SMALL.replace("500", "-1"), "focal lengths above 0"),
        (SMALL.replace("640", "1e400"), "width: wanted a finite number, got inf"),
        (SMALL.replace("640", "1" + 400 * "0"), "width: wanted a finite number, got inf"),
        (SMALL.replace("640", "640.7"), r"width: wanted a whole number, got 640\.7"),
        (SMALL.replace("500", "nan"), "fx: wanted a finite number, got nan"),
        (SMALL + "distortion = [-inf, 0, 0, 0]\n", "distortion: wanted a finite number, got -inf"),
        (SMALL + "zoom = 2\n", "unknown zoom"),
        (SMALL + "distortion = [1, 2]\n", "coefficients of distortion, got 2"),
        (SMALL + "distortion = 0.1\n", "distortion: wanted a list of numbers"),
    ],
)
def test_invalid_intrinsics_file_is_one_error_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_intrinsics(write(tmp_path / "a.toml", text))
    assert "a.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_intrinsics_file_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        read_intrinsics(tmp_path / "none.toml")


# the commands


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_video(tmp_path_factory.mktemp("videos") / "clip.mp4", PaintedSource(count=4))


def run(*words: str | Path) -> int:
    return main([str(word) for word in words], PaintedEngines())


def camera_file(folder: Path, size: tuple[int, int]) -> Path:
    """Of a camera of twice the focal length that OpenFace assumes."""
    path, focal = folder / "camera.toml", 2 * (500 * (size[1] / 640) + 500 * (size[0] / 480)) / 2
    camera = Intrinsics(size, focal, focal, size[1] / 2, size[0] / 2)
    write_intrinsics(path, camera, rms_px=0.2, how="made up", overwrite=True)
    return path


def poses(table: Path) -> list[float]:
    with table.open(encoding="utf-8", newline="") as file:
        return [float(row["pose_Tz"]) for row in csv.DictReader(file)]


def test_batch_and_live_use_the_intrinsics_and_record_them_in_the_sidecar(video: Path, tmp_path: Path) -> None:
    file = camera_file(tmp_path, (480, 640))  # of the video's aspect, twice its size
    assert run("batch", video, "--out", tmp_path / "plain") == 0
    assert run("batch", video, "--out", tmp_path / "known", "--intrinsics", file) == 0
    assert run("live", "--camera", video, "--no-window", "--csv", tmp_path / "live.csv", "--intrinsics", file) == 0
    plain, known, live = (poses(tmp_path / name) for name in ("plain/clip.csv", "known/clip.csv", "live.csv"))
    assert known[0] == pytest.approx(2 * plain[0], rel=0.1)  # a longer lens shows a farther head as large
    assert live[0] == pytest.approx(known[0], rel=0.01)
    for name, wanted in (("plain/clip", None), ("known/clip", 1000.0), ("live", 1000.0)):
        said = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["settings"]["intrinsics"]
        assert (said["fx"] == wanted) if wanted else (said == "default")


def test_resume_reports_changed_intrinsics(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("batch", video, "--out", tmp_path / "out", "--resume")
    assert run(*words) == run(*words, "--intrinsics", camera_file(tmp_path, (480, 640))) == 0
    assert "settings differ: intrinsics" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["batch", "live"])
def test_a_video_of_another_aspect_is_refused_before_anything_is_written(
    command: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = camera_file(tmp_path, (1080, 1920)), tmp_path / "out"
    out.mkdir()
    words = {
        "batch": ("batch", video, "--out", out),
        "live": ("live", "--camera", video, "--no-window", "--csv", out / "a.csv"),
    }
    assert run(*words[command], "--intrinsics", file) == 1
    assert "calibrated at 1920x1080, and these pictures are 320x240" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_a_picture_of_another_aspect_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = paint_pictures(tmp_path / "shots", PaintedSource(count=1), ["a.png"])
    file = camera_file(tmp_path, (1080, 1920))
    assert run("batch", pictures, "--out", tmp_path / "out", "--intrinsics", file) == 1
    assert "these pictures are 320x240" in capsys.readouterr().err


def test_a_picture_of_another_aspect_among_others_is_named_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = paint_pictures(tmp_path / "shots", PaintedSource(count=3), ["a.png", "b.png", "c.png"])
    upright = cv2.rotate(cv2.imread(str(pictures / "b.png")), cv2.ROTATE_90_CLOCKWISE)
    cv2.imwrite(str(pictures / "b.png"), upright)
    file = camera_file(tmp_path, (240, 320))
    assert run("batch", pictures, "--out", tmp_path / "out", "--intrinsics", file) == 3
    assert "shots: b.png: intrinsics: the camera was calibrated at 320x240" in capsys.readouterr().err
    with (tmp_path / "out/shots.csv").open(encoding="utf-8", newline="") as table:
        assert [row["input"] for row in csv.DictReader(table)] == ["a.png", "c.png"]


def test_missing_intrinsics_file_is_reported_before_the_networks_load(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = PaintedEngines()
    words = ["batch", str(video), "--out", str(tmp_path / "out"), "--intrinsics", str(tmp_path / "none.toml")]
    assert main(words, engines) == 1
    assert "none.toml: cannot be read" in capsys.readouterr().err
    assert engines.opened == []
