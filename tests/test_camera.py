"""A camera's intrinsics from a chessboard that this file draws as a known camera with a known lens shows it."""

from __future__ import annotations

import dataclasses
import shutil
from fractions import Fraction
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import PaintedSource, write_video
from scipy.spatial.transform import Rotation

from facetrack.calibration import camera
from facetrack.calibration.camera import (
    FEWEST,
    Board,
    View,
    calibrate_camera,
    calibrate_source,
    collect_views,
    distinct_views,
)
from facetrack.cli import main
from facetrack.pipeline.camera_file import read_intrinsics
from facetrack.pipeline.image_source import ImageSource
from facetrack.pipeline.sources import open_source
from facetrack.tracker.errors import ConfigError, SinkError
from facetrack.tracker.intrinsics import Intrinsics
from facetrack.tracker.types import Float64, Frame, UInt8

BOARD = Board()
CAMERA = Intrinsics((480, 640), 560.0, 552.0, 328.0, 231.0, (-0.22, 0.06, 0.001, -0.0007))
SAMPLES = 2  # to a side of a pixel, for soft edges
BLUR_PX = 0.8  # of any lens
# Turn (x, y, z in degrees) and place of the board's middle (mm) in each view.
VIEWS = [
    ((0, 0, 0), (0, 0, 420)),
    ((35, 0, 5), (0, 0, 420)),
    ((-35, 0, 0), (0, 10, 430)),
    ((0, 35, 0), (10, 0, 400)),
    ((0, -35, -5), (-10, 0, 400)),
    ((25, 25, 10), (90, 50, 460)),
    ((-25, 25, 0), (-90, 50, 460)),
    ((25, -25, -10), (90, -50, 460)),
    ((-25, -25, 20), (-90, -50, 460)),
    ((30, 0, 80), (-30, 0, 500)),
    ((0, 30, -20), (120, 40, 600)),
    ((-30, 10, 10), (-130, -60, 600)),
]


@cache
def rays() -> Float64:
    """(3, h w) x/z, y/z and 1 of what each sample of a picture sees: the lens's own equations, solved by iteration."""
    height, width = CAMERA.size
    place = [(np.arange(n * SAMPLES) + 0.5) / SAMPLES - 0.5 for n in (width, height)]
    seen_x, seen_y = (axis.ravel() for axis in np.meshgrid(*place))
    wanted_x, wanted_y = (seen_x - CAMERA.cx) / CAMERA.fx, (seen_y - CAMERA.cy) / CAMERA.fy
    k1, k2, p1, p2 = CAMERA.distortion
    x, y = wanted_x, wanted_y
    for _ in range(15):  # each makes the error five times smaller
        r2 = x * x + y * y
        aside_x, aside_y = 2 * p1 * x * y + p2 * (r2 + 2 * x * x), p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        stretch = 1 + r2 * (k1 + r2 * k2)
        x, y = (wanted_x - aside_x) / stretch, (wanted_y - aside_y) / stretch
    return np.stack((x, y, np.ones(x.shape)))


@cache
def draw(turn_deg: tuple[float, ...], place_mm: tuple[float, ...]) -> UInt8:
    """What the camera shows of a board of 10x7 squares with a white border, on grey."""
    turn = Rotation.from_euler("XYZ", turn_deg, degrees=True).as_matrix()
    middle, direction = turn.T @ place_mm, turn.T @ rays()  # from the board's side
    far = middle[2] / direction[2]
    columns, rows = BOARD.columns + 1, BOARD.rows + 1
    x = (direction[0] * far - middle[0]) / BOARD.square_mm + columns / 2
    y = (direction[1] * far - middle[1]) / BOARD.square_mm + rows / 2
    beyond = np.maximum(np.maximum(-x, x - columns), np.maximum(-y, y - rows))
    dark = (np.floor(x).astype(np.int64) + np.floor(y).astype(np.int64)) % 2 == 0
    grey = np.where(beyond > 1, 120.0, np.where((beyond > 0) | ~dark, 225.0, 25.0))
    height, width = CAMERA.size
    soft = cv2.GaussianBlur(grey.reshape(height, SAMPLES, width, SAMPLES).mean((1, 3)), (0, 0), BLUR_PX)
    return np.repeat(np.rint(soft).astype(np.uint8)[..., None], 3, -1)


def projected(noise_px: float, views: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> list[View]:
    """Views whose corners OpenCV computes, with noise."""
    rng, found = np.random.default_rng(0), []
    corners = BOARD.corners_mm().astype(np.float64)
    for number, (turn_deg, place_mm) in enumerate(views):
        turn = Rotation.from_euler("XYZ", turn_deg, degrees=True).as_rotvec()
        lens = np.array(CAMERA.distortion)
        xy, _ = cv2.projectPoints(corners - corners.mean(0), turn, np.array(place_mm, float), CAMERA.matrix, lens)
        noisy = xy[:, 0] + rng.normal(0, noise_px, xy[:, 0].shape)
        found.append(View(f"view {number}", CAMERA.size, noisy.astype(np.float32)))
    return found


def assert_is_the_camera(found: Intrinsics) -> None:
    """Half a percent of the focal length and 1.5 px of the axis: that is 3 mm of a head's 600.

    OpenCV places the corners of soft edges by a tenth of a pixel beside the truth, most of them to one side.
    """
    assert found.size == CAMERA.size
    assert [found.fx, found.fy] == pytest.approx([CAMERA.fx, CAMERA.fy], rel=0.005)
    assert [found.cx, found.cy] == pytest.approx([CAMERA.cx, CAMERA.cy], abs=1.5)
    assert found.distortion == pytest.approx(CAMERA.distortion, abs=0.02)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    for number, view in enumerate(VIEWS):
        cv2.imwrite(str(folder / f"{number}.png"), draw(*view))
    return folder


def test_calibration_from_drawn_boards_recovers_the_camera(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "camera.toml"
    assert main(["calibrate", "camera", str(pictures), "--out", str(out)]) == 0
    assert_is_the_camera(read_intrinsics(out))
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("RMS reprojection error 0.")
    assert float(told[0].split()[3]) < 0.15
    assert "the board was 4" in told[3]  # 400 mm
    text = out.read_text(encoding="utf-8")
    assert f"{len(VIEWS)} views of a 9x6 chessboard" in text
    assert "rms_px = 0." in text


def test_corners_are_measured_from_the_centre_of_the_top_left_pixel() -> None:
    seen = BOARD.find(draw(*VIEWS[1]))
    assert seen is not None
    (wanted,) = projected(0, VIEWS[1:2])
    shift = min((seen - xy for xy in (wanted.xy, wanted.xy[::-1])), key=lambda d: float(np.abs(d).max()))
    np.testing.assert_allclose(shift.mean(0), 0, atol=0.05)


def test_video_yields_each_distinct_view_once_and_too_few_raise(pictures: Path, tmp_path: Path) -> None:
    still = [cv2.imread(str(pictures / f"{number}.png")) for number in (0, 1, 0)]
    video = write_video(tmp_path / "board.mp4", (picture for picture in still for _ in range(15)))
    with pytest.raises(ConfigError, match=f"wanted at least {FEWEST} distinct views .* got 2; show the whole board"):
        calibrate_source(str(video), BOARD, tmp_path / "camera.toml")
    assert not (tmp_path / "camera.toml").exists()


def test_camera_file_does_not_hold_the_password_of_a_network_camera(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "open_source", lambda _: open_source(str(pictures)))
    calibrate_source("rtsp://admin:S3cret@10.0.0.7/board", BOARD, tmp_path / "camera.toml")
    text = (tmp_path / "camera.toml").read_text(encoding="utf-8")
    assert "chessboard in rtsp://10.0.0.7/board" in text
    assert "S3cret" not in text


class BoardCamera(PaintedSource):
    """A camera before which a board is turned to and fro for ever."""

    def picture(self, index: int) -> UInt8:
        return draw(*VIEWS[index % 2])


def test_live_camera_stops_after_enough_views(capsys: pytest.CaptureFixture[str]) -> None:
    source = BoardCamera(count=10**9, live=True, kind="camera", rate=Fraction(4))
    assert [view.place for view in collect_views(source, BOARD, enough=2)] == ["0.0 s", "0.2 s"]
    assert capsys.readouterr().err == "view 1 of 2\nview 2 of 2\n"


def test_frame_right_after_a_view_is_skipped(pictures: Path) -> None:
    still = [cv2.imread(str(pictures / f"{number}.png")) for number in (0, 1)]
    frames = [Frame(index, index / 30, 0.0, bgr) for index, bgr in enumerate(still)]
    assert len(list(distinct_views(frames, BOARD))) == 1


def test_source_without_a_board_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((120, 160, 3), 90, np.uint8))
    assert main(["calibrate", "camera", str(tmp_path), "--out", str(tmp_path / "camera.toml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "distinct views of a board with 9x6 inner corners, got 0" in line


def test_unreadable_pictures_are_reported_and_the_others_calibrate(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "board")
    (folder / "half.png").write_bytes((folder / "0.png").read_bytes()[:40])
    (folder / "none.jpg").touch()
    out = tmp_path / "camera.toml"
    assert main(["calibrate", "camera", str(folder), "--out", str(out)]) == 3
    assert_is_the_camera(read_intrinsics(out))
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "left out because they cannot be read: 2 pictures"
    half, empty = told.err.splitlines()
    assert half.startswith(f"facetrack: failed: {folder}: half.png: is not a complete picture")
    assert empty == f"facetrack: failed: {folder}: none.jpg: the file is empty; copy it again"


def test_unreadable_pictures_are_reported_even_if_the_others_are_too_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((120, 160, 3), 90, np.uint8))
    (tmp_path / "b.png").touch()
    assert main(["calibrate", "camera", str(tmp_path), "--out", str(tmp_path / "camera.toml")]) == 1
    unread, refused = capsys.readouterr().err.splitlines()
    assert "b.png: the file is empty" in unread
    assert "got 0" in refused


def test_damaged_video_is_reported_and_its_views_count(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flawed(ImageSource):
        """Pictures, of which one has been damaged on its way, as a frame of a video."""

        def __init__(self, folder: Path) -> None:
            super().__init__(folder, list(folder.iterdir()), "clip")
            self.failed.append(("frame 7", "damaged"))

    monkeypatch.setattr(camera, "open_source", lambda _: Flawed(pictures))
    assert main(["calibrate", "camera", "clip.mp4", "--out", str(tmp_path / "camera.toml")]) == 0
    assert capsys.readouterr().err == "clip.mp4: problems in 1 place, first: frame 7: damaged\n"


def test_pictures_of_different_sizes_raise() -> None:
    frames = [
        Frame(i, float(i), 0.0, np.zeros((side, side, 3), np.uint8), f"{i}.png") for i, side in ((0, 64), (1, 96))
    ]
    with pytest.raises(ConfigError, match=r"1\.png: wanted pictures of one size, got 64x64 and 96x96"):
        list(distinct_views(frames, BOARD))


def test_noisy_corners_give_the_camera_within_the_stated_deviation() -> None:
    found = calibrate_camera(projected(0.1, VIEWS), BOARD)
    assert found.rms_px == pytest.approx(0.1 * np.sqrt(2), rel=0.1)
    errors = [found.intrinsics.fx - CAMERA.fx, found.intrinsics.fy - CAMERA.fy]
    errors += [found.intrinsics.cx - CAMERA.cx, found.intrinsics.cy - CAMERA.cy]
    assert np.abs(np.divide(errors, found.deviation)).max() < 3.5
    assert found.strays == ()


def test_square_size_scales_only_the_distances() -> None:
    views = projected(0.1, VIEWS)
    one, two = (calibrate_camera(views, dataclasses.replace(BOARD, square_mm=side)) for side in (25, 50))
    assert two.distance_mm == pytest.approx([2 * distance for distance in one.distance_mm], rel=1e-3)
    assert two.intrinsics.fx == pytest.approx(one.intrinsics.fx, rel=1e-5)
    assert one.distance_mm == pytest.approx((400, 620), abs=8)


def test_a_view_with_misplaced_corners_is_left_out() -> None:
    views = projected(0.1, VIEWS)
    rng = np.random.default_rng(1)
    wrong = views[4].xy + rng.normal(0, 12, views[4].xy.shape).astype(np.float32)
    views[4] = dataclasses.replace(views[4], xy=wrong)
    found = calibrate_camera(views, BOARD)
    assert found.strays == ("view 4",)
    assert "left out because their corners are misplaced: view 4" in found.as_text()
    assert_is_the_camera(found.intrinsics)


def test_views_that_all_face_the_camera_raise() -> None:
    places = [(x, y, z) for x in (-60, 0, 60) for y in (-40, 40) for z in (500, 600)]
    with pytest.raises(ConfigError, match=r"12 views are too similar .* tilt it by 30 degrees"):
        calibrate_camera(projected(0.3, [((0, 0, 0), place) for place in places]), BOARD)


@pytest.mark.parametrize("words", [["--board", "9"], ["--board", "2x6"], ["--board", "1000x3"], ["--square-mm", "0"]])
def test_impossible_board_exits_with_a_usage_error(words: list[str], tmp_path: Path) -> None:
    assert main(["calibrate", "camera", str(tmp_path), "--out", str(tmp_path / "a.toml"), *words]) == 2


def test_existing_output_file_raises_and_is_kept(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "camera.toml"
    out.write_text("precious", encoding="utf-8")
    with pytest.raises(SinkError, match="exists already"):
        calibrate_source(str(pictures), BOARD, out)
    assert out.read_text(encoding="utf-8") == "precious"


def test_unwritable_output_file_raises_before_the_source_is_opened(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"c\.toml: cannot be written: .*"):  # its name is too long with .part
        calibrate_source(str(tmp_path / "nowhere"), BOARD, tmp_path / ("c" * 248 + ".toml"))


@pytest.mark.parametrize(
    ("turn_deg", "place_mm", "alike"),
    [
        ((3, -3, 2), (5, 5, 425), True),
        ((25, 0, 0), (0, 0, 420), False),
        ((0, -25, 0), (0, 0, 420), False),
        ((0, 0, 20), (0, 0, 420), False),
        ((0, 0, 0), (60, 0, 420), False),
        ((0, 0, 0), (0, 0, 700), False),
        ((0, 0, 180), (0, 0, 420), True),  # its corners are the same, in the opposite order
    ],
)
def test_a_view_is_new_if_the_board_moved_or_was_tilted(
    turn_deg: tuple[float, ...], place_mm: tuple[float, ...], alike: bool
) -> None:
    first, second = projected(0, [VIEWS[0], (turn_deg, place_mm)])
    assert first.is_like(second) is alike
