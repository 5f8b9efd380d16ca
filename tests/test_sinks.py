"""Files that have their name only when they are complete, and JSON lines."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import av
import numpy as np
import pytest
from fakes import make_face, make_result, read_csv

from facetrack.pipeline import part_file
from facetrack.pipeline.csv_sink import CsvColumns, CsvSink
from facetrack.pipeline.line_writer import ReaderGone
from facetrack.pipeline.part_file import TRIES, PartFile, atomic_write_text, check_folder_writable
from facetrack.pipeline.sinks import JsonLinesSink, Sink
from facetrack.pipeline.video_sink import VideoSink
from facetrack.tracker.errors import SinkError
from facetrack.tracker.types import State

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
    sink.write(make_result(make_face()))
    assert names(tmp_path) == ["out.x.part"]
    sink.close(complete=True)
    assert names(tmp_path) == ["out.x"]
    sink.close(complete=False)
    assert names(tmp_path) == ["out.x"]


@both_files
def test_interrupted_run_leaves_a_part_file_with_the_written_frames(tmp_path: Path, make: Maker) -> None:
    sink = make(tmp_path / "out.x")
    sink.write(make_result(make_face(), index=0))
    sink.write(make_result(make_face(), index=1))
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
def test_part_file_of_an_earlier_run_is_kept_until_the_first_write(tmp_path: Path, make: Maker) -> None:
    part = tmp_path / "out.x.part"
    part.write_text("from an earlier run")
    sink = make(tmp_path / "out.x")
    assert part.read_text() == "from an earlier run"
    sink.close(complete=False)
    assert part.read_text() == "from an earlier run"
    sink = make(tmp_path / "out.x")
    sink.write(make_result(make_face()))
    sink.close(complete=False)
    assert b"earlier" not in part.read_bytes()


@both_files
def test_part_file_of_an_earlier_run_is_overwritten(tmp_path: Path, make: Maker) -> None:
    (tmp_path / "out.x.part").write_text("from an earlier run" * 9999)
    sink = make(tmp_path / "out.x")
    sink.write(make_result(make_face()))
    sink.close(complete=True)
    assert names(tmp_path) == ["out.x"]
    assert b"earlier" not in (tmp_path / "out.x").read_bytes()


@both_files
def test_part_file_that_is_a_symlink_raises_and_its_target_is_kept(tmp_path: Path, make: Maker) -> None:
    (tmp_path / "diary").write_text("precious")
    (tmp_path / "out.x.part").symlink_to(tmp_path / "diary")
    with pytest.raises(SinkError, match=r"out\.x\.part: is a link to another file, .*; remove it"):
        make(tmp_path / "out.x", overwrite=True)
    assert (tmp_path / "diary").read_text() == "precious"


@both_files
def test_an_existing_file_is_kept_unless_it_may_be_overwritten(tmp_path: Path, make: Maker) -> None:
    (tmp_path / "out.x").write_text("precious")
    with pytest.raises(SinkError, match="exists already") as caught:
        make(tmp_path / "out.x")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["out.x"]
    sink = make(tmp_path / "out.x", overwrite=True)
    sink.write(make_result(make_face()))
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
def test_unwritable_path_raises_a_one_line_error(tmp_path: Path, make: Maker, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(SinkError, match=message) as caught:
        make(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("complete", [False, True])
@both_files
def test_full_disk_raises_a_sink_error_and_leaves_no_finished_file(
    tmp_path: Path, make: Maker, *, complete: bool
) -> None:
    (tmp_path / "out.x.part").symlink_to("/dev/full")
    sink = make(tmp_path / "out.x")

    def fill() -> None:
        for index in range(400):
            sink.write(make_result(make_face(), index=index, size=(240, 320)))
        sink.finish()

    with pytest.raises(SinkError, match=r"out\.x\.part: cannot be written: No space left on device; make room"):
        fill()
    with contextlib.suppress(SinkError):
        sink.close(complete=complete)
    assert "out.x" not in names(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limits there")
@pytest.mark.parametrize("limit", [0, 100, 100_000, 1_000_000])
@pytest.mark.parametrize("finished", [False, True])
def test_part_table_is_cut_back_to_its_last_whole_frame_after_a_write_error(
    tmp_path: Path, limit: int, *, finished: bool
) -> None:
    import resource

    wanted = CsvColumns(68, images=True)
    sink = CsvSink(tmp_path / "a.csv", wanted)

    def fill() -> None:
        for index in range(50 if finished else 3000):
            sink.write(make_result(make_face(), make_face(track=1), index=index, name="two\nlines.png"))
        sink.finish()
        assert finished

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(limit, 50_000) if finished else limit, before[1]))
    try:
        with pytest.raises(SinkError, match=r"a\.csv\.part: cannot be written: File too large; make room"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sink.close(complete=False)
    part = tmp_path / "a.csv.part"
    assert part.exists() == (limit > 100)
    if part.exists():
        rows = read_csv(part)
        assert [row["face_id"] for row in rows] == ["0", "1"] * (len(rows) // 2)
        assert all(None not in row.values() for row in rows)
        assert part.stat().st_size > min(limit, 50_000) - 10_000


def test_atomic_write_replaces_the_file_and_raises_for_existing_or_missing_places(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a.json", "{}\n")
    atomic_write_text(tmp_path / "a.json", "größer\n")
    assert (tmp_path / "a.json").read_bytes() == "größer\n".encode()
    assert names(tmp_path) == ["a.json"]
    with pytest.raises(SinkError, match="exists already"):
        atomic_write_text(tmp_path / "a.json", "", overwrite=False)
    with pytest.raises(SinkError, match="there is no folder"):
        atomic_write_text(tmp_path / "b" / "a.json", "")


@pytest.mark.parametrize("text", ["half a \udcff", 7])
def test_failed_atomic_write_leaves_nothing(text: str, tmp_path: Path) -> None:
    with pytest.raises((UnicodeEncodeError, TypeError)):
        atomic_write_text(tmp_path / "a.json", text)
    assert names(tmp_path) == []


def test_prove_folder_raises_for_unwritable_folders_and_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for name in ("folder", "new", "folder/new/below"):
        check_folder_writable(tmp_path / name)
    for name in ("file", "file/below", "new/" + "long" * 99):
        with pytest.raises(SinkError, match=f"{name}: .*; choose another folder"):
            check_folder_writable(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_prove_raises_for_an_unwritable_file_and_keeps_an_earlier_part_file(tmp_path: Path) -> None:
    PartFile(tmp_path / "a").check_writable()
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.part").write_text("rows")
    PartFile(tmp_path / "a").check_writable()
    assert (tmp_path / "a.part").read_text() == "rows"
    with pytest.raises(SinkError, match="cannot be written"):
        PartFile(tmp_path / ("n" * 253)).check_writable()  # a name that is too long with .part at its end


def test_publishing_a_missing_part_file_raises_a_sink_error(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="cannot be written"):
        PartFile(tmp_path / "a").publish()


def test_failed_rename_of_a_table_raises_naming_the_part_file_with_its_rows(tmp_path: Path) -> None:
    sink = csv_sink(tmp_path / "out.x")
    sink.write(make_result(make_face()))
    (tmp_path / "out.x").mkdir()
    with pytest.raises(SinkError, match=r"out\.x: cannot be written: .*; what was written is in .*out\.x\.part: re"):
        sink.close(complete=True)
    assert len(read_csv(tmp_path / "out.x.part")) == 1


def is_open_elsewhere(*_: object) -> NoReturn:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_table_that_is_open_on_windows_raises_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.x").touch()
    monkeypatch.setattr("sys.platform", "win32")
    csv_sink(tmp_path / "out.x", overwrite=True).close(complete=False)
    monkeypatch.setattr(Path, "open", is_open_elsewhere)
    with pytest.raises(SinkError, match=r"out\.x: cannot be written: Permission denied; close it where it is open"):
        csv_sink(tmp_path / "out.x", overwrite=True)
    assert names(tmp_path) == ["out.x"]


def test_table_that_is_briefly_open_on_windows_gets_its_name_after_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(part_file, "NAP_S", 0.0)
    tries, replace = iter([is_open_elsewhere] * TRIES), Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: next(tries, replace)(path, target))
    sink = csv_sink(tmp_path / "out.x")
    sink.write(make_result(make_face()))
    sink.close(complete=True)
    assert names(tmp_path) == ["out.x"]


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_a_table_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    first = csv_sink(tmp_path / "out.x")
    first.write(make_result(make_face()))
    first.finish()
    before = (tmp_path / "out.x.part").read_bytes()
    with pytest.raises(SinkError, match=r"out\.x: another process is writing this table; wait for it, or choose"):
        csv_sink(tmp_path / "out.x", overwrite=True)
    assert (tmp_path / "out.x.part").read_bytes() == before
    first.close(complete=True)
    assert names(tmp_path) == ["out.x"]
    assert (tmp_path / "out.x").read_bytes() == before


@pytest.mark.parametrize("complete", [False, True])
def test_a_table_that_was_closed_can_be_written_again(tmp_path: Path, *, complete: bool) -> None:
    for index in range(2):
        sink = csv_sink(tmp_path / "out.x", overwrite=True)
        sink.write(make_result(make_face(), index=index))
        sink.close(complete=complete)
    assert names(tmp_path) == ["out.x" if complete else "out.x.part"]


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
@pytest.mark.parametrize("overwrite", [False, True])
def test_table_completed_before_it_could_be_locked_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, overwrite: bool
) -> None:
    import fcntl

    first, flock = csv_sink(tmp_path / "out.x"), fcntl.flock
    first.write(make_result(make_face()))

    def lock_late(descriptor: int, operation: int) -> None:
        first.close(complete=True)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    if overwrite:
        csv_sink(tmp_path / "out.x", overwrite=True).close(complete=False)
    else:
        with pytest.raises(SinkError, match="exists already"):
            csv_sink(tmp_path / "out.x")
    assert names(tmp_path) == ["out.x"]
    assert len(read_csv(tmp_path / "out.x")) == 1


def test_json_lines_carry_one_object_per_frame() -> None:
    stream = io.StringIO()
    sink = JsonLinesSink(stream)
    subject = make_face(track=3)
    sink.write(make_result(subject, index=0))
    sink.write(make_result(index=1, name="b.png"))
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
    both = make_result(make_face(track=3), make_face(track=4, state=State.COASTING), index=11)
    JsonLinesSink(stream).write(both)
    faces = json.loads(stream.getvalue())["faces"]
    assert len(faces) == 2
    for shown, row in zip(faces, columns.rows(both), strict=True):
        cells = dict(zip(columns.names(), row.rstrip("\n").split(","), strict=True))
        assert [shown["face_id"], shown["success"]] == [int(cells["face_id"]), int(cells["success"])]
        assert shown["box"] == [float(cells[f"box_{part}"]) for part in "xywh"]
        assert shown["pose_T"] == [float(cells[f"pose_T{axis}"]) for axis in "xyz"]
        assert shown["pose_R"] == [float(cells[f"pose_R{axis}"]) for axis in "xyz"]
        assert shown["ear"] == [float(cells["ear_left"]), float(cells["ear_right"])]
        assert shown["xy"] == [[float(cells[f"x_{i}"]), float(cells[f"y_{i}"])] for i in range(68)]


def test_json_has_null_for_a_missing_pose_and_eye_aspect_ratio() -> None:
    stream = io.StringIO()
    JsonLinesSink(stream).write(make_result(make_face(np.arange(10.0).reshape(5, 2))))
    (shown,) = json.loads(stream.getvalue())["faces"]
    assert (shown["pose_T"], shown["pose_R"], shown["ear"]) == (None, None, [None, None])


class Deaf(io.StringIO):
    """A stream that nothing can be written to."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def flush(self) -> None:
        raise self._error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.EINVAL, "Invalid argument")])
def test_closed_reader_raises_reader_gone_also_by_the_windows_error(error: OSError) -> None:
    with pytest.raises(ReaderGone, match="has gone"):
        JsonLinesSink(Deaf(error)).write(make_result())


def test_unwritable_lines_raise_a_sink_error_other_than_reader_gone() -> None:
    with pytest.raises(SinkError, match="cannot be written: No space left") as caught:
        JsonLinesSink(Deaf(OSError(errno.ENOSPC, "No space left"))).write(make_result())
    assert not isinstance(caught.value, ReaderGone)
