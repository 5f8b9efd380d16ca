"""Lines for programs that read them, slowly, or not at all."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest

from facetrack.pipeline.line_writer import LINES, LineWriter, ReaderGone, descriptor_of

LINE = "x" * 999 + "\n"  # of which a pipe holds some sixty


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    ends = list(os.pipe())
    yield ends
    for end in ends:
        os.close(end)


def test_a_reader_that_stops_reading_keeps_nobody_waiting(pipe: list[int], caplog: pytest.LogCaptureFixture) -> None:
    writer = LineWriter(pipe[1])
    for _ in range(2 * LINES):
        writer.put(LINE)
    writer.finish()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "the oldest ones are left out" in told[0]
    assert told[1].endswith(f"of {2 * LINES} were not read and are left out")
    assert 0 < writer.left_out < 2 * LINES


def test_who_reads_gets_every_line(pipe: list[int], caplog: pytest.LogCaptureFixture) -> None:
    writer = LineWriter(pipe[1])
    wanted = [f"{number}\n" for number in range(LINES)]
    for line in wanted:
        writer.put(line)
    writer.finish()
    assert os.read(pipe[0], 99_999).decode() == "".join(wanted)
    assert (writer.left_out, caplog.records) == (0, [])


def test_a_reader_that_has_gone_is_told_and_no_error_at_the_end(pipe: list[int]) -> None:
    os.close(pipe.pop(0))
    writer = LineWriter(pipe[0])
    with pytest.raises(ReaderGone, match="has gone"):
        deque(map(writer.put, repeat(LINE)), maxlen=0)
    writer.finish()


def test_files_and_memory_keep_nobody_waiting(pipe: list[int], tmp_path: Path) -> None:
    with (tmp_path / "lines").open("w", encoding="utf-8") as file:
        assert descriptor_of(file) is None
    assert descriptor_of(file) is None
    assert descriptor_of(io.StringIO()) is None
    with os.fdopen(os.dup(pipe[1]), "w", encoding="utf-8") as stream:
        assert descriptor_of(stream) == stream.fileno()
