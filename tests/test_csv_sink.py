"""The table: names, numbers, and rows for what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from fakes import make_face, make_result, read_csv

from facetrack.pipeline.csv_sink import Counts, CsvColumns, CsvSink
from facetrack.tracker.pose import eye_aspect_ratio, head_pose
from facetrack.tracker.types import State

HEAD = (
    "frame,face_id,timestamp,confidence,success,state,box_x,box_y,box_w,box_h,"
    "pose_Tx,pose_Ty,pose_Tz,pose_Rx,pose_Ry,pose_Rz,ear_left,ear_right"
)


def test_the_header_is_that_of_schema_1() -> None:
    assert ",".join(CsvColumns(2).names()) == f"{HEAD},x_0,x_1,y_0,y_1"
    every = CsvColumns(2, raw=True, landmark_confidence=True, images=True)
    assert ",".join(every.names()) == f"input,{HEAD},x_0,x_1,y_0,y_1,xr_0,xr_1,yr_0,yr_1,c_0,c_1"


def test_row_holds_the_values_of_the_face(tmp_path: Path) -> None:
    subject = make_face(track=7)
    sink = CsvSink(tmp_path / "a.csv", CsvColumns(68))
    sink.write(make_result(subject, index=4, time_s=0.1333333))
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
    (row,) = columns.rows(make_result(make_face(points, 2, State.NEW, raw.astype(np.float32)), index=9, time_s=1.5))
    assert row == (
        "10,2,1.500000,0.988,1,new,-3.00,20.00,33.00,21.00,,,,,,,,,"  # neither pose nor eyes in five points
        "10.00,30.00,20.00,12.50,-3.00,20.00,20.00,30.12,40.00,41.00,"
        "10.25,30.25,20.25,12.75,-2.75,20.25,20.25,30.38,40.25,41.25,"
        "0.000,0.250,0.500,0.750,1.000\n"
    )


def test_coasting_face_has_success_0_and_no_raw_points_or_landmark_confidence() -> None:
    columns = CsvColumns(5, raw=True, landmark_confidence=True)
    points = np.arange(10.0).reshape(5, 2) ** 2
    (row,) = columns.rows(make_result(make_face(points, 0, State.COASTING)))
    cells = dict(zip(columns.names(), row.rstrip("\n").split(","), strict=True))
    assert (cells["success"], cells["state"], cells["x_4"]) == ("0", "coasting", "64.00")
    assert all(cells[name] == "" for name in cells if name.startswith(("xr_", "yr_", "c_")))


@pytest.mark.parametrize("columns", [CsvColumns(68), CsvColumns(5, raw=True, landmark_confidence=True, images=True)])
def test_a_frame_without_a_face_has_one_row_without_success(columns: CsvColumns) -> None:
    (row,) = columns.rows(make_result(index=2, time_s=0.5, name="c.png"))
    cells = dict(zip(columns.names(), row.rstrip("\n").split(","), strict=True))
    filled = {name: cell for name, cell in cells.items() if cell}
    wanted = {"frame": "3", "timestamp": "0.500000", "confidence": "0.000", "success": "0"}
    assert filled == wanted | ({"input": "c.png"} if columns.images else {})


def test_every_face_of_a_frame_has_its_own_row(tmp_path: Path) -> None:
    sink = CsvSink(tmp_path / "a.csv", CsvColumns(68))
    sink.write(make_result(make_face(track=0), make_face(track=3), index=0))
    sink.write(make_result(index=1))
    sink.write(make_result(make_face(track=3, state=State.COASTING), index=2))
    sink.close(complete=True)
    rows = [(row["frame"], row["face_id"], row["success"]) for row in read_csv(tmp_path / "a.csv")]
    assert rows == [("1", "0", "1"), ("1", "3", "1"), ("2", "", "0"), ("3", "3", "0")]


@pytest.mark.parametrize(
    "name", ["plain.png", "a,b.png", 'the "best".png', "two\nlines.png", "one\rover.png", "größe 5.png"]
)
def test_names_of_pictures_survive_the_csv(tmp_path: Path, name: str) -> None:
    sink = CsvSink(tmp_path / "a.csv", CsvColumns(68, images=True))
    sink.write(make_result(make_face(), name=name))
    sink.write(make_result(name=name))
    sink.close(complete=True)
    assert [row["input"] for row in read_csv(tmp_path / "a.csv")] == [name, name]


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        sink = CsvSink(tmp_path / name, CsvColumns(68))
        sink.write(make_result(make_face()))
        sink.close(complete=True)
    first = (tmp_path / "a.csv").read_bytes()
    assert first == (tmp_path / "b.csv").read_bytes()
    assert b"\r" not in first
    assert b" " not in first


def test_prompt_sink_writes_each_row_to_the_file_at_once(tmp_path: Path) -> None:
    """What a killed process has not written is lost."""
    sink = CsvSink(tmp_path / "a.csv", CsvColumns(68), flush_rows=True)
    for index in range(3):
        sink.write(make_result(make_face(), index=index))
        whole = (tmp_path / "a.csv.part").read_text(encoding="utf-8")
        assert [row.split(",")[0] for row in whole.splitlines()] == ["frame", *map(str, range(1, index + 2))]
        assert whole.endswith("\n")
    sink.close(complete=True)


def test_a_finished_table_knows_its_size(tmp_path: Path) -> None:
    sink = CsvSink(tmp_path / "a.csv", CsvColumns(68))
    sink.write(make_result(make_face()))
    sink.close(complete=True)
    assert sink.size_bytes == (tmp_path / "a.csv").stat().st_size > 0


def test_face_of_another_markup_raises() -> None:
    with pytest.raises(ValueError, match="wanted faces of 68 points, got 5"):
        list(CsvColumns(68).rows(make_result(make_face(np.ones((5, 2))))))


@pytest.mark.parametrize("complete", [True, False])
def test_frame_interrupted_during_its_writing_is_dropped(
    complete: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes when the rows are written and not counted."""
    sink = CsvSink(tmp_path / "a.csv", CsvColumns(68))
    sink.write(make_result(make_face(), make_face(track=1)))
    sink.write(make_result(index=1))
    out = sink._out
    monkeypatch.setattr(sink, "_out", _Interrupting(out))
    with pytest.raises(KeyboardInterrupt):
        sink.write(make_result(make_face(), make_face(track=1), index=2))
    monkeypatch.setattr(sink, "_out", out)
    sink.close(complete=complete)
    written = (tmp_path / ("a.csv" if complete else "a.csv.part")).read_text(encoding="utf-8")
    assert [row.split(",")[0] for row in written.splitlines()] == ["frame", "1", "1", "2"]
    assert sink.counts == Counts(frames=2, frames_with_face=1, rows=3, most_faces=2)
    assert not complete or sink.size_bytes == len(written.encode())


class _Interrupting:
    """A file in which writing is interrupted behind the last byte."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)
        raise KeyboardInterrupt
