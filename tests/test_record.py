"""Sinks that are written together: all of them complete, or none; and all of them closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fakes import make_face, make_result

from facetrack.pipeline.csv_sink import Counts, CsvColumns, CsvSink
from facetrack.pipeline.record import Record
from facetrack.pipeline.sinks import Sink
from facetrack.pipeline.video_sink import VideoSink
from facetrack.tracker.errors import SinkError
from facetrack.tracker.types import Result


@dataclass
class Diary:
    """A sink that notes what is asked of it, and can be told what not to do."""

    failing: str = ""
    notes: list[str] = field(default_factory=list)

    def _note(self, what: str) -> None:
        self.notes.append(what)
        if what == self.failing:
            raise SinkError(f"cannot {what}")

    def write(self, result: Result) -> None:
        del result
        self._note("write")

    def finish(self) -> None:
        self._note("finish")

    def close(self, *, complete: bool) -> None:
        self._note("publish" if complete else "close")


@dataclass
class Interrupted(Diary):
    """A sink in whose writing Ctrl-C comes, after so many results."""

    after: int = 0

    def write(self, result: Result) -> None:
        super().write(result)
        if len(self.notes) > self.after:
            raise KeyboardInterrupt


def keep(sinks: Sequence[Sink], *results: Result) -> None:
    """Write results to all sinks and end them together."""
    with Record() as record:
        for sink in sinks:
            record.add(sink)
        for result in results:
            record.write(result)
        record.finish()


def files(folder: Path) -> list[Sink]:
    return [CsvSink(folder / "a.csv", CsvColumns(68)), VideoSink(folder / "a.mp4")]


def test_files_get_their_names_when_all_are_written_to_their_ends(tmp_path: Path) -> None:
    keep(files(tmp_path), make_result(make_face()))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "a.mp4"]


@pytest.mark.parametrize("faces", [0, 2])
def test_interrupted_frame_is_counted_if_the_table_has_it(faces: int, tmp_path: Path) -> None:
    result = make_result(*(make_face(track=track) for track in range(faces)))
    with Record() as record:
        record.add_table(CsvSink(tmp_path / "a.csv", CsvColumns(68)))
        record.add(Interrupted(after=1))
        record.write(result)
        with pytest.raises(KeyboardInterrupt):
            record.write(result)
        record.finish()
    rows = len((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()) - 1
    assert record.tally.counts == Counts(frames=2, frames_with_face=2 * (faces > 0), rows=rows, most_faces=faces)
    assert rows == 2 * max(1, faces)


def test_no_file_gets_its_name_if_one_sink_fails_to_finish(tmp_path: Path) -> None:
    diary = Diary(failing="finish")
    with pytest.raises(SinkError, match="cannot finish"):
        keep([*files(tmp_path), diary], make_result(make_face()))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv.part", "a.mp4.part"]
    assert diary.notes == ["write", "finish", "close"]


def test_files_without_a_result_are_removed_if_a_sink_fails_to_finish(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="cannot finish"):
        keep([*files(tmp_path), Diary(failing="finish")])
    assert list(tmp_path.iterdir()) == []


def test_failing_close_of_a_sink_leaves_no_other_sink_open() -> None:
    diaries = [Diary(failing="finish"), Diary(failing="close"), Diary()]
    with pytest.raises(SinkError, match="cannot close"):
        keep(diaries)
    assert [diary.notes for diary in diaries] == [["finish", "close"], ["close"], ["close"]]
