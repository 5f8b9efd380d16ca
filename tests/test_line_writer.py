"""Lines for programs that read them, slowly, or not at all."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest

from facetrack.pipeline import line_writer
from facetrack.pipeline.line_writer import LINES, LineWriter, ReaderGone, descriptor_of, has_room

LINE = "x" * 999 + "\n"  # of which a pipe holds some sixty


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    ends = list(os.pipe())
    yield ends
    for end in ends:
        os.close(end)


def test_stalled_reader_does_not_block_the_writer_and_lost_lines_are_reported(
    pipe: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    writer = LineWriter(pipe[1])
    for _ in range(2 * LINES):
        writer.put(LINE)
    writer.finish()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "the oldest lines are left out" in told[0]
    assert told[1].endswith(f"of {2 * LINES} were not read and are left out")


def test_reader_gets_every_line(pipe: list[int], caplog: pytest.LogCaptureFixture) -> None:
    writer = LineWriter(pipe[1])
    wanted = [f"{number}\n" for number in range(LINES)]
    for line in wanted:
        writer.put(line)
    writer.finish()
    assert os.read(pipe[0], 99_999).decode() == "".join(wanted)
    assert caplog.records == []


def draining(writer: LineWriter) -> threading.Thread:
    thread = threading.Thread(target=writer.drain, daemon=True)
    thread.start()
    return thread


def test_drain_waits_for_a_paused_reader(
    pipe: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_writer, "PATIENCE_S", 1e-3)
    writer = LineWriter(pipe[1])
    for _ in range(LINES):
        writer.put(LINE)
    waiting = draining(writer)
    waiting.join(0.1)  # a hundred times its patience
    assert waiting.is_alive()
    left = len(LINE) * LINES
    while left:
        left -= len(os.read(pipe[0], left))
    waiting.join()
    writer.finish()
    assert caplog.records == []


def test_drain_ends_when_the_reader_closes(pipe: list[int], caplog: pytest.LogCaptureFixture) -> None:
    writer = LineWriter(pipe[1])
    for _ in range(LINES):
        writer.put(LINE)
    waiting = draining(writer)
    os.read(pipe[0], 1)
    os.close(pipe.pop(0))
    waiting.join()
    writer.finish()
    assert caplog.records == []


def interrupt_while_it_drains(main: int) -> None:
    """Send the main thread a Ctrl-C as soon as it waits in `drain`."""
    names: list[str] = []
    while "drain" not in names or names[0] not in ("join", "wait", "_wait_for_tstate_lock"):
        names = [frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._current_frames()[main])]
    signal.pthread_kill(main, signal.SIGINT)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a thread")
def test_reader_gets_every_line_after_drain_was_interrupted(pipe: list[int], caplog: pytest.LogCaptureFixture) -> None:
    writer = LineWriter(pipe[1])
    for _ in range(LINES):
        writer.put(LINE)
    threading.Thread(target=interrupt_while_it_drains, args=(threading.get_ident(),), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        writer.drain()
    finishing = threading.Thread(target=writer.finish, daemon=True)
    finishing.start()
    left = len(LINE) * LINES
    while left and finishing.is_alive():
        left -= len(os.read(pipe[0], left))
    finishing.join()
    assert caplog.records == []


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells how much a pipe holds")


@linux
def test_unread_lines_left_in_the_pipe_are_whole(pipe: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "PATIENCE_S", 0.1)
    writer, line = LineWriter(pipe[1]), "x" * 9_999 + "\n"
    for _ in range(LINES):
        writer.put(line)
    writer.finish()
    os.set_blocking(pipe[0], False)
    content = os.read(pipe[0], 1 << 20).decode()
    assert content
    assert content == line * (len(content) // len(line))


@linux
def test_has_room_guarantees_a_complete_non_blocking_write(pipe: list[int]) -> None:
    random = np.random.default_rng(0)
    os.set_blocking(pipe[1], False)
    written = 0
    for size in random.integers(1, [[5_000], [40_000]], (2, 2_000)).T.reshape(-1).tolist():
        while not has_room(pipe[1], size):
            os.read(pipe[0], int(random.integers(1, 9_000)))
        assert os.write(pipe[1], b"x" * size) == size
        written += 1
    assert written == 4_000


def test_put_raises_when_the_reader_has_gone_and_finish_does_not(pipe: list[int]) -> None:
    os.close(pipe.pop(0))
    writer = LineWriter(pipe[0])
    with pytest.raises(ReaderGone, match="has gone"):
        deque(map(writer.put, repeat(LINE)), maxlen=0)
    writer.finish()


def test_descriptor_of_is_none_for_files_and_memory_but_not_for_pipes(pipe: list[int], tmp_path: Path) -> None:
    with (tmp_path / "lines").open("w", encoding="utf-8") as file:
        assert descriptor_of(file) is None
    assert descriptor_of(file) is None
    assert descriptor_of(io.StringIO()) is None
    with os.fdopen(os.dup(pipe[1]), "w", encoding="utf-8") as stream:
        assert descriptor_of(stream) == stream.fileno()
