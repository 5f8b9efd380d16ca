"""What is written can be read back, appears only when complete, and looks right."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fakes import PaintedFace

from facetrack.pipeline.csv_sink import CsvColumns, CsvSink
from facetrack.pipeline.draw import COLOURS, WHITE, draw_faces, draw_text, fitted, resized
from facetrack.pipeline.sinks import JsonLinesSink, PartFile, Sink, atomic_write_text
from facetrack.pipeline.sources import open_source
from facetrack.pipeline.video_sink import VideoSink, pad_to_even, ticks_per_second
from facetrack.pipeline.window import LiveWindow
from facetrack.tracker.errors import SinkError
from facetrack.tracker.geometry import bounding_box
from facetrack.tracker.pose import eye_aspect_ratio, head_pose
from facetrack.tracker.types import Face, Float32, Frame, Landmarks, Result, State, UInt8


def face(
    xy: Float32 | None = None,
    track: int = 0,
    state: State = State.TRACKED,
    raw: Float32 | None = None,
    confidence: float = 0.98765,
) -> Face:
    xy = PaintedFace((80, 60), width=60).landmarks(0) if xy is None else xy.astype(np.float32)
    raw = xy if raw is None else raw
    score = np.linspace(0, 1, len(xy))
    measured = None if state is State.COASTING else Landmarks(raw, score, confidence, "ibug68")
    return Face(track, state, bounding_box(xy), measured, xy, np.zeros_like(xy), confidence)


def result(
    *faces: Face, index: int = 0, time_s: float | None = None, size: tuple[int, int] = (120, 160), name: str = ""
) -> Result:
    bgr = np.full((*size, 3), 90, np.uint8)
    bgr.flags.writeable = False
    return Result(Frame(index, index / 30 if time_s is None else time_s, 0.0, bgr, name), faces)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


# --- CSV --------------------------------------------------------------------------------------------------------

HEAD = (
    "frame,face_id,timestamp,confidence,success,state,box_x,box_y,box_w,box_h,"
    "pose_Tx,pose_Ty,pose_Tz,pose_Rx,pose_Ry,pose_Rz,ear_left,ear_right"
)


def test_the_header_is_that_of_schema_1() -> None:
    assert ",".join(CsvColumns(2).names()) == f"{HEAD},x_0,x_1,y_0,y_1"
    every = CsvColumns(2, raw=True, landmark_confidence=True, images=True)
    assert ",".join(every.names()) == f"input,{HEAD},x_0,x_1,y_0,y_1,xr_0,xr_1,yr_0,yr_1,c_0,c_1"


def test_a_row_holds_what_the_face_is(tmp_path: Path) -> None:
    subject = face(track=7)
    sink = CsvSink(tmp_path / "a.csv", CsvColumns(68))
    sink.write(result(subject, index=4, time_s=0.1333333))
    sink.close(complete=True)
    (row,) = read_csv(tmp_path / "a.csv")
    assert (row["frame"], row["face_id"], row["timestamp"]) == ("5", "7", "0.133333")
    assert (row["confidence"], row["success"], row["state"]) == ("0.988", "1", "tracked")
    x = np.array([float(row[f"x_{i}"]) for i in range(68)])
    y = np.array([float(row[f"y_{i}"]) for i in range(68)])
    np.testing.assert_allclose(np.column_stack((x, y)), subject.smoothed, atol=0.00501)
    box = [float(row[f"box_{part}"]) for part in "xywh"]
    np.testing.assert_allclose(box, [x.min(), y.min(), np.ptp(x), np.ptp(y)], atol=0.0101)
    pose = head_pose(subject.smoothed, (120, 160))
    assert pose is not None
    np.testing.assert_allclose([float(row[f"pose_T{a}"]) for a in "xyz"], pose.translation_mm, atol=0.00501)
    np.testing.assert_allclose([float(row[f"pose_R{a}"]) for a in "xyz"], pose.rotation_rad, atol=0.0000501)
    ears = [float(row["ear_left"]), float(row["ear_right"])]
    np.testing.assert_allclose(ears, eye_aspect_ratio(subject.smoothed), atol=0.0000501)
    assert row["x_0"].partition(".")[2].isdigit()
    assert len(row["x_0"].partition(".")[2]) == 2


def test_a_row_of_five_points_is_written_to_the_letter() -> None:
    points = np.array([[10, 20], [30, 20], [20, 30.125], [12.5, 40], [-3, 41]])
    raw = points + 0.25
    columns = CsvColumns(5, raw=True, landmark_confidence=True)
    (row,) = columns.rows(result(face(points, 2, State.NEW, raw.astype(np.float32)), index=9, time_s=1.5))
    assert row == (
        "10,2,1.500000,0.988,1,new,-3.00,20.00,33.00,21.00,,,,,,,,,"  # neither pose nor eyes in five points
        "10.00,30.00,20.00,12.50,-3.00,20.00,20.00,30.12,40.00,41.00,"
        "10.25,30.25,20.25,12.75,-2.75,20.25,20.25,30.38,40.25,41.25,"
        "0.000,0.250,0.500,0.750,1.000\n"
    )


def test_a_face_that_is_carried_on_has_no_success_and_no_raw_points() -> None:
    columns = CsvColumns(5, raw=True, landmark_confidence=True)
    points = np.arange(10.0).reshape(5, 2) ** 2
    (row,) = columns.rows(result(face(points, 0, State.COASTING)))
    cells = dict(zip(columns.names(), row.rstrip("\n").split(","), strict=True))
    assert (cells["success"], cells["state"], cells["x_4"]) == ("0", "coasting", "64.00")
    assert all(cells[name] == "" for name in cells if name.startswith(("xr_", "yr_", "c_")))


@pytest.mark.parametrize("columns", [CsvColumns(68), CsvColumns(5, raw=True, landmark_confidence=True, images=True)])
def test_a_frame_without_a_face_has_one_row_without_success(columns: CsvColumns) -> None:
    (row,) = columns.rows(result(index=2, time_s=0.5, name="c.png"))
    cells = dict(zip(columns.names(), row.rstrip("\n").split(","), strict=True))
    filled = {name: cell for name, cell in cells.items() if cell}
    wanted = {"frame": "3", "timestamp": "0.500000", "confidence": "0.000", "success": "0"}
    assert filled == wanted | ({"input": "c.png"} if columns.images else {})


def test_every_face_of_a_frame_has_its_own_row(tmp_path: Path) -> None:
    sink = CsvSink(tmp_path / "a.csv", CsvColumns(68))
    sink.write(result(face(track=0), face(track=3), index=0))
    sink.write(result(index=1))
    sink.write(result(face(track=3, state=State.COASTING), index=2))
    sink.close(complete=True)
    rows = [(row["frame"], row["face_id"], row["success"]) for row in read_csv(tmp_path / "a.csv")]
    assert rows == [("1", "0", "1"), ("1", "3", "1"), ("2", "", "0"), ("3", "3", "0")]


@pytest.mark.parametrize("name", ["plain.png", "a,b.png", 'the "best".png', "two\nlines.png", "größe 5.png"])
def test_names_of_pictures_survive_the_csv(tmp_path: Path, name: str) -> None:
    sink = CsvSink(tmp_path / "a.csv", CsvColumns(68, images=True))
    sink.write(result(face(), name=name))
    sink.write(result(name=name))
    sink.close(complete=True)
    assert [row["input"] for row in read_csv(tmp_path / "a.csv")] == [name, name]


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        sink = CsvSink(tmp_path / name, CsvColumns(68))
        sink.write(result(face()))
        sink.close(complete=True)
    first = (tmp_path / "a.csv").read_bytes()
    assert first == (tmp_path / "b.csv").read_bytes()
    assert b"\r" not in first
    assert b" " not in first


def test_a_face_of_another_markup_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="wanted faces of 68 points, got 5"):
        list(CsvColumns(68).rows(result(face(np.ones((5, 2))))))


# --- files that appear only when they are complete ---------------------------------------------------------------

Maker = Callable[..., Sink]


def csv_sink(path: Path, *, overwrite: bool = False) -> Sink:
    return CsvSink(path, CsvColumns(68), overwrite=overwrite)


def video_sink(path: Path, *, overwrite: bool = False) -> Sink:
    return VideoSink(path, overwrite=overwrite)


both_files = pytest.mark.parametrize("make", [csv_sink, video_sink])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@both_files
def test_a_file_has_its_name_only_when_it_is_complete(tmp_path: Path, make: Maker) -> None:
    sink = make(tmp_path / "out.x")
    sink.write(result(face()))
    assert names(tmp_path) == ["out.x.part"]
    sink.close(complete=True)
    assert names(tmp_path) == ["out.x"]
    sink.close(complete=False)
    assert names(tmp_path) == ["out.x"]


@both_files
def test_an_interrupted_run_leaves_a_part_with_what_was_written(tmp_path: Path, make: Maker) -> None:
    sink = make(tmp_path / "out.x")
    sink.write(result(face(), index=0))
    sink.write(result(face(), index=1))
    sink.close(complete=False)
    sink.close(complete=True)
    assert names(tmp_path) == ["out.x.part"]
    part = tmp_path / "out.x.part"
    if make is csv_sink:
        assert len(read_csv(part)) == 2
    else:
        with av.open(str(part), format="mp4") as container:
            assert sum(1 for _ in container.decode(video=0)) == 2


@both_files
def test_an_interrupted_run_without_a_frame_leaves_nothing(tmp_path: Path, make: Maker) -> None:
    make(tmp_path / "out.x").close(complete=False)
    assert names(tmp_path) == []


@both_files
def test_the_part_of_an_earlier_run_is_written_over(tmp_path: Path, make: Maker) -> None:
    (tmp_path / "out.x.part").write_text("from an earlier run" * 9999)
    sink = make(tmp_path / "out.x")
    sink.write(result(face()))
    sink.close(complete=True)
    assert names(tmp_path) == ["out.x"]
    assert b"earlier" not in (tmp_path / "out.x").read_bytes()


@both_files
def test_an_existing_file_is_kept_unless_it_may_be_overwritten(tmp_path: Path, make: Maker) -> None:
    (tmp_path / "out.x").write_text("precious")
    with pytest.raises(SinkError, match="exists already") as caught:
        make(tmp_path / "out.x")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["out.x"]
    sink = make(tmp_path / "out.x", overwrite=True)
    sink.write(result(face()))
    assert (tmp_path / "out.x").read_text() == "precious"
    sink.close(complete=True)
    assert b"precious" not in (tmp_path / "out.x").read_bytes()


@both_files
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/out.x", "there is no folder"),
        ("file/out.x", "there is no folder"),
        ("folder", "is a folder"),
        ("long" * 99, "cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path, make: Maker, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(SinkError, match=message) as caught:
        make(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@both_files
def test_a_full_disk_is_a_sink_error_and_leaves_no_file(tmp_path: Path, make: Maker) -> None:
    (tmp_path / "out.x.part").symlink_to("/dev/full")
    sink = make(tmp_path / "out.x")

    def fill() -> None:
        for index in range(400):
            sink.write(result(face(), index=index, size=(240, 320)))
        sink.close(complete=True)

    with pytest.raises(SinkError, match=r"out\.x: cannot be written: No space left on device"):
        fill()
    sink.close(complete=False)
    assert "out.x" not in names(tmp_path)


def test_a_small_file_is_written_in_one_step(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a.json", "{}\n")
    atomic_write_text(tmp_path / "a.json", "größer\n")
    assert (tmp_path / "a.json").read_bytes() == "größer\n".encode()
    assert names(tmp_path) == ["a.json"]
    with pytest.raises(SinkError, match="exists already"):
        atomic_write_text(tmp_path / "a.json", "", overwrite=False)
    with pytest.raises(SinkError, match="there is no folder"):
        atomic_write_text(tmp_path / "b" / "a.json", "")


def test_publishing_a_file_that_went_away_is_a_sink_error(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="cannot be written"):
        PartFile(tmp_path / "a").publish()


# --- JSON lines -------------------------------------------------------------------------------------------------


def test_json_lines_carry_one_object_per_frame() -> None:
    stream = io.StringIO()
    sink = JsonLinesSink(stream)
    subject = face(track=3)
    sink.write(result(subject, index=0))
    sink.write(result(index=1, name="b.png"))
    sink.close(complete=True)
    first, second = stream.getvalue().splitlines()
    assert " " not in first
    one = json.loads(first)
    assert list(one) == ["frame", "timestamp", "faces"]
    assert (one["frame"], one["timestamp"]) == (1, 0.0)
    (shown,) = one["faces"]
    keys = ["face_id", "state", "success", "confidence", "box", "pose_T", "pose_R", "ear", "xy"]
    assert list(shown) == keys
    assert (shown["face_id"], shown["state"], shown["success"], shown["confidence"]) == (3, "tracked", 1, 0.988)
    np.testing.assert_allclose(shown["xy"], subject.smoothed, atol=0.00501)
    assert json.loads(second) == {"input": "b.png", "frame": 2, "timestamp": 0.033333, "faces": []}


def test_json_lines_agree_with_the_csv() -> None:
    columns, stream = CsvColumns(68), io.StringIO()
    both = result(face(track=3), face(track=4, state=State.COASTING), index=11)
    JsonLinesSink(stream).write(both)
    faces = json.loads(stream.getvalue())["faces"]
    for shown, row in zip(faces, columns.rows(both), strict=True):
        cells = dict(zip(columns.names(), row.rstrip("\n").split(","), strict=True))
        assert [shown["face_id"], shown["success"]] == [int(cells["face_id"]), int(cells["success"])]
        assert shown["box"] == [float(cells[f"box_{part}"]) for part in "xywh"]
        assert shown["pose_T"] == [float(cells[f"pose_T{axis}"]) for axis in "xyz"]
        assert shown["pose_R"] == [float(cells[f"pose_R{axis}"]) for axis in "xyz"]
        assert shown["ear"] == [float(cells["ear_left"]), float(cells["ear_right"])]
        assert shown["xy"] == [[float(cells[f"x_{i}"]), float(cells[f"y_{i}"])] for i in range(68)]


def test_json_has_null_for_what_a_face_has_not() -> None:
    stream = io.StringIO()
    JsonLinesSink(stream).write(result(face(np.arange(10.0).reshape(5, 2))))
    (shown,) = json.loads(stream.getvalue())["faces"]
    assert (shown["pose_T"], shown["pose_R"], shown["ear"]) == (None, None, [None, None])


class Deaf(io.StringIO):
    """A stream whose reader has gone."""

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_reader_that_goes_away_is_a_sink_error() -> None:
    with pytest.raises(SinkError, match="has gone"):
        JsonLinesSink(Deaf()).write(result())


# --- the annotated video ----------------------------------------------------------------------------------------


def write_annotated(path: Path, times_s: Sequence[float], rate: Fraction | None, size: tuple[int, int]) -> None:
    sink = VideoSink(path, rate=rate)
    for index, time_s in enumerate(times_s):
        sink.write(result(face(), index=index, time_s=time_s, size=size))
    sink.close(complete=True)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30), Fraction(24000, 1001), Fraction(30000, 1001)])
def test_the_video_is_as_long_and_as_fast_as_its_source(tmp_path: Path, rate: Fraction) -> None:
    times = [float(index / rate) for index in range(20)]
    write_annotated(tmp_path / "a.mp4", times, rate, (120, 160))
    with av.open(tmp_path / "a.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == rate
        assert (stream.duration or 0) * (stream.time_base or 0) == 20 / rate
        stamps = [frame.time for frame in container.decode(stream)]
    assert stamps == times


@pytest.mark.parametrize("start_s", [0.0, 12.5])
def test_variable_frame_rates_and_dropped_frames_keep_their_times(tmp_path: Path, start_s: float) -> None:
    times = [0, 0.033, 0.05, 0.4, 0.41, 1.2, 1.25]
    write_annotated(tmp_path / "a.mp4", [start_s + t for t in times], Fraction(30), (120, 160))
    with open_source(tmp_path / "a.mp4") as source:
        stamps = [frame.time_s for frame in source]
    np.testing.assert_allclose(stamps, times, atol=1e-4)


def test_frames_at_the_same_instant_are_kept_apart(tmp_path: Path) -> None:
    write_annotated(tmp_path / "a.mp4", [0, 0, 0], None, (120, 160))
    with open_source(tmp_path / "a.mp4") as source:
        assert len(list(source)) == 3


@pytest.mark.parametrize(("size", "even"), [((121, 161), (122, 162)), ((120, 161), (120, 162)), ((33, 40), (34, 40))])
def test_odd_sizes_grow_by_a_doubled_row_or_column(
    tmp_path: Path, size: tuple[int, int], even: tuple[int, int]
) -> None:
    write_annotated(tmp_path / "a.mp4", [0, 0.1], None, size)
    with open_source(tmp_path / "a.mp4") as source:
        assert source.size == even
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    padded = pad_to_even(picture)
    np.testing.assert_array_equal(padded[: size[0], : size[1]], picture)
    np.testing.assert_array_equal(padded[-1, : size[1]], picture[-1])


def test_the_video_shows_the_frames_in_their_colours(tmp_path: Path) -> None:
    bgr = np.full((120, 160, 3), (30, 60, 200), np.uint8)
    sink = VideoSink(tmp_path / "a.mp4")
    sink.write(Result(Frame(0, 0.0, 0.0, bgr), ()))
    sink.close(complete=True)
    with open_source(tmp_path / "a.mp4") as source:
        (frame,) = source
    np.testing.assert_allclose(frame.bgr.reshape(-1, 3).mean(0), (30, 60, 200), atol=5)


def test_a_frame_of_another_size_is_fitted_into_the_first(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "a.mp4")
    sink.write(result(index=0, size=(120, 160)))
    sink.write(result(index=1, size=(300, 200)))
    sink.close(complete=True)
    with open_source(tmp_path / "a.mp4") as source:
        first, second = source
    assert second.size == first.size == (120, 160)
    assert second.bgr[60, 80].mean() == pytest.approx(90, abs=6)
    assert second.bgr[60, 5].mean() == pytest.approx(0, abs=6)


@pytest.mark.parametrize(
    ("rate", "ticks"),
    [
        (Fraction(30), 15_360),
        (Fraction(24000, 1001), 24_000),
        (Fraction(519168, 19667), 519_168),
        (Fraction(10**9 + 7, 10**8), 10**6),
    ],
)
def test_the_clock_of_the_file_fits_the_rate(rate: Fraction, ticks: int) -> None:
    assert ticks_per_second(rate) == ticks


# --- drawing ----------------------------------------------------------------------------------------------------


def grey(height: int = 120, width: int = 160) -> UInt8:
    bgr = np.full((height, width, 3), 90, np.uint8)
    bgr.flags.writeable = False
    return bgr


def coloured(bgr: UInt8, colour: tuple[int, int, int]) -> int:
    return int((np.abs(bgr.astype(int) - colour).max(-1) < 30).sum())


def test_drawing_leaves_the_picture_as_it_was() -> None:
    bgr = grey()
    drawn = draw_faces(bgr, [face()])
    assert (bgr == 90).all()
    assert not (drawn == 90).all()


def test_no_face_draws_nothing() -> None:
    np.testing.assert_array_equal(draw_faces(grey(), []), grey())


@pytest.mark.parametrize("state", list(State))
def test_the_colour_tells_the_state(state: State) -> None:
    drawn = draw_faces(grey(240, 320), [face(PaintedFace((160, 130), width=150).landmarks(0), state=state)])
    for other in State:
        assert (coloured(drawn, COLOURS[other]) > 100) == (other is state)


def test_measured_points_are_dotted_in_white_at_their_places_and_carried_ones_are_not() -> None:
    xy = PaintedFace((160, 130), width=180).landmarks(0)
    dotted = draw_faces(grey(240, 320), [face(xy)])
    bare = draw_faces(grey(240, 320), [face(xy, state=State.COASTING)])
    for x, y in np.rint(xy).astype(int):
        assert coloured(dotted[y - 1 : y + 2, x - 1 : x + 2], WHITE) >= 1
    assert coloured(bare, WHITE) == 0


def test_a_dot_lies_on_its_sub_pixel_place() -> None:
    xy = np.array([[40, 40], [80, 40], [60.3, 60.8], [45, 80], [75, 80]])
    drawn = draw_faces(grey(), [face(xy)])[54:68, 54:68].astype(float)
    weight = drawn.mean(-1) - 90
    y, x = np.mgrid[54:68, 54:68]
    place = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    np.testing.assert_allclose(place, (60.3, 60.8), atol=0.15)


def test_faces_drawn_on_a_resized_picture_lie_where_resizing_puts_them() -> None:
    xy = PaintedFace((80, 65), width=60).landmarks(0)
    large = draw_faces(grey(360, 480), [face(xy)], scale=3.0)
    for x, y in np.rint((xy + 0.5) * 3 - 0.5).astype(int):
        assert coloured(large[y - 1 : y + 2, x - 1 : x + 2], WHITE) >= 1


@pytest.mark.parametrize(
    "xy",
    [
        PaintedFace((-400, -400), width=60).landmarks(0),  # out of the picture
        PaintedFace((80, 60), width=60).landmarks(0) * 1e7,  # absurdly far
        np.zeros((68, 2)),  # all in one place
        np.full((68, 2), np.nan),  # nowhere
        PaintedFace((80, 60), width=6).landmarks(0),  # tiny
        PaintedFace((80, 60), width=9000).landmarks(0),  # huge
    ],
)
def test_no_face_is_too_strange_to_draw(xy: Float32) -> None:
    assert draw_faces(grey(), [face(xy)]).shape == (120, 160, 3)


@pytest.mark.parametrize("size", [(120, 160), (10, 10), (1, 1)])
def test_text_stays_inside_the_picture(size: tuple[int, int]) -> None:
    canvas = np.zeros((*size, 3), np.uint8)
    draw_text(canvas, "31.4 fps", (1000, -50), height=10, plate=(200, 200, 200))
    assert canvas.any()


@pytest.mark.parametrize(("size", "room"), [((60, 80), (120, 200)), ((300, 100), (120, 200)), ((7, 900), (120, 200))])
def test_fitting_keeps_proportions_and_centres(size: tuple[int, int], room: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 255, np.uint8)
    inner = resized(picture, room).shape[:2]
    assert inner[0] == room[0] or inner[1] == room[1]
    assert abs(inner[0] / size[0] - inner[1] / size[1]) * min(size) < 1
    canvas = fitted(picture, room)
    assert canvas.shape[:2] == room
    y, x = np.nonzero(canvas[..., 0] > 128)
    assert abs((y.min() + y.max()) - (room[0] - 1)) <= 1
    assert abs((x.min() + x.max()) - (room[1] - 1)) <= 1


# --- the window -------------------------------------------------------------------------------------------------


class Clock:
    """A clock that goes on by a step at each look."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveWindow]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    shown = LiveWindow("test", clock=Clock(0.05))
    yield shown
    shown.close(complete=True)


def screen() -> UInt8:
    """What the window shows, (H, W, 3) BGR."""
    import pygame

    surface = pygame.display.get_surface()
    return pygame.surfarray.array3d(surface).transpose(1, 0, 2)[..., ::-1]


def test_the_window_shows_the_frame_with_its_faces_and_is_as_large(window: LiveWindow) -> None:
    shown = result(face(), size=(240, 320))
    window.write(shown)
    seen = screen()
    assert seen.shape == (240, 320, 3)
    wanted = draw_faces(shown.frame.bgr, shown.faces)
    np.testing.assert_array_equal(seen[:200], wanted[:200])
    assert (seen[225:, :150] != wanted[225:, :150]).any()  # the figures


def test_a_large_frame_opens_a_window_that_fits_the_desktop(window: LiveWindow) -> None:
    import pygame

    window.write(result(size=(2000, 3000)))
    width, height = pygame.display.get_desktop_sizes()[0]
    seen_height, seen_width = screen().shape[:2]
    assert seen_width <= width
    assert seen_height <= height
    assert seen_width / seen_height == pytest.approx(1.5, abs=0.01)


def test_a_resized_window_keeps_the_proportions(window: LiveWindow) -> None:
    import pygame

    window.write(result(size=(100, 100)))
    pygame.display.set_mode((300, 150), pygame.RESIZABLE)
    window.write(result(size=(100, 100)))
    seen = screen()
    assert seen.shape == (150, 300, 3)
    assert (seen[20, :75] == 0).all()
    assert (seen[20, 75:225] == 90).all()
    assert (seen[20, 225:] == 0).all()


@pytest.mark.parametrize("answer", ["q", "escape", "button"])
def test_q_escape_and_the_windows_button_close_it(window: LiveWindow, answer: str) -> None:
    import pygame

    window.write(result())
    assert not window.closed
    event = {
        "q": pygame.event.Event(pygame.KEYDOWN, key=pygame.K_q),
        "escape": pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE),
        "button": pygame.event.Event(pygame.QUIT),
    }[answer]
    pygame.event.post(event)
    window.pump()
    assert window.closed
    window.write(result())  # a frame that was still on its way


def test_other_keys_do_not_close_it(window: LiveWindow) -> None:
    import pygame

    window.write(result())
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_a))
    window.pump()
    assert not window.closed


def test_the_figures_are_the_frame_rate_and_the_delay(window: LiveWindow) -> None:
    # the clock goes on by 50 ms a look; each frame was taken 20 ms before it is shown
    texts = []
    for index in range(5):
        taken_s = (index + 1) * 0.05 - 0.02
        frame = Frame(index, 0.0, taken_s, grey())
        texts.append(window._figures(Result(frame, (face(),) * (index % 3))))
    assert texts[0] == "- fps   20 ms   0 faces"
    assert texts[1] == "20.0 fps   20 ms   1 face"
    assert texts[4] == "20.0 fps   20 ms   1 face"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
def test_no_display_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SinkError, match="there is no display") as caught:
        LiveWindow("test")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
def test_a_display_that_does_not_answer_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":987")
    with pytest.raises(SinkError, match="window: the display") as caught:
        LiveWindow("test")
    assert "\n" not in str(caught.value)
