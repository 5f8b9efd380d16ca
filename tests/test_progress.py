"""Progress: a bar where somebody watches, lines where a log is kept."""

from __future__ import annotations

import io
import re
from contextlib import suppress

import pytest

from facetrack.pipeline.progress import BarProgress, LineProgress, NoProgress, Task, open_progress


class Terminal(io.StringIO):
    """Takes itself for one."""

    def isatty(self) -> bool:
        return True


def plain(stream: io.StringIO) -> str:
    """What was written, without colours; what was written over is kept as lines of its own."""
    return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").strip()


def report(stream: io.StringIO, frames: int | None) -> str:
    task = Task("videos/clip.mp4", "clip")
    with open_progress(2, stream) as progress:
        progress.began(task, frames)
        for _ in range(3):
            progress.advanced(task)
        progress.ended(task, "3 frames")
    return stream.getvalue()


def test_a_log_of_one_input_gets_one_line() -> None:
    stream = io.StringIO()
    with open_progress(1, stream) as progress:
        progress.ended(Task("videos/clip.mp4", "clip"), "3 frames")
    assert stream.getvalue() == "videos/clip.mp4: 3 frames\n"


def test_log_of_several_inputs_numbers_them_and_sums_up_an_early_end() -> None:
    stream = io.StringIO()
    with suppress(KeyboardInterrupt), open_progress(5, stream) as progress:
        progress.ended(Task("a.mp4", "a"), "3 frames")
        progress.ended(Task("b.mp4", "b"), "not found", "failed")
        progress.ended(Task("c.mp4", "c"), "already finished")
        progress.ended(Task("d.mp4", "d"), "nothing kept", "interrupted")
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines() == [
        "[1/5] a.mp4: 3 frames",
        "[2/5] b.mp4: not found",
        "[3/5] c.mp4: already finished",
        "[4/5] d.mp4: nothing kept",
        "2 done, 1 failed, 2 left",
    ]


def test_nothing_is_logged_if_no_input_began() -> None:
    stream = io.StringIO()
    with open_progress(5, stream):
        pass
    assert not stream.getvalue()


def test_a_terminal_gets_a_bar_and_keeps_the_line() -> None:
    text = report(Terminal(), 3)
    assert "[1/2] clip" in text
    assert "videos/clip.mp4: 3 frames" in text


@pytest.mark.parametrize("name", ["take[final]", "take[/b]", ":smile:"])
def test_names_are_shown_as_they_are(name: str) -> None:
    stream, task = Terminal(), Task(f"videos/{name}.mp4", name)
    with open_progress(2, stream) as progress:
        progress.began(task, 3)
        progress.ended(task, "3 frames")
    assert f"[1/2] {name}" in plain(stream)
    assert f"videos/{name}.mp4: 3 frames" in plain(stream)


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_name_with_line_feeds_is_told_in_one_line(kind: type[io.StringIO]) -> None:
    stream, task = kind(), Task("new\nline\x1b[2J.mp4", "new\nline")
    with open_progress(1, stream) as progress:
        progress.ended(task, "3 frames -> out/new\nline.csv")
    assert r"new\nline\x1b[2J.mp4: 3 frames -> out/new\nline.csv" in plain(stream)


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_no_password_is_shown(kind: type[io.StringIO]) -> None:
    stream, task = kind(), Task("rtsp://user:secret@host/x", "x")
    with open_progress(1, stream) as progress:
        progress.began(task, None)
        progress.advanced(task)
        progress.ended(task, "1 frame")
    assert "rtsp://host/x: 1 frame" in stream.getvalue()
    assert "secret" not in stream.getvalue()


def test_the_bar_does_without_a_known_length() -> None:
    assert "videos/clip.mp4: 3 frames" in report(Terminal(), None)


def test_the_stream_decides() -> None:
    for stream, kind in ((io.StringIO(), LineProgress), (Terminal(), BarProgress), (None, NoProgress)):
        with open_progress(1, stream) as progress:
            assert isinstance(progress, kind)


def test_concurrent_inputs_have_a_bar_each_below_the_overall_bar() -> None:
    stream, tasks = Terminal(), [Task(f"videos/{name}.mp4", name) for name in "abc"]
    with open_progress(4, stream) as progress:
        progress.ended(Task("videos/z.mp4", "z"), "already finished")
        for task in tasks:
            progress.began(task, 10)
        progress.advanced(tasks[0], 10)
        progress.advanced(tasks[2], 5)
    last = plain(stream).splitlines()[-4:]
    assert [line.split()[0] for line in last] == ["all", "[2/4]", "[3/4]", "[4/4]"]
    assert ["2/4" in last[0], "10/10" in last[1], "0/10" in last[2], "5/10" in last[3]] == [True] * 4


def test_interrupted_input_does_not_advance_the_overall_bar() -> None:
    stream, task = Terminal(), Task("videos/a.mp4", "a")
    with open_progress(2, stream) as progress:
        progress.began(task, 10)
        progress.advanced(task, 3)
        progress.ended(task, "nothing kept", "interrupted")
    assert "1/2" not in plain(stream).replace("[1/2]", "")


def test_input_longer_than_announced_counts_as_one() -> None:
    stream, task = Terminal(), Task("videos/a.mp4", "a")
    with open_progress(4, stream) as progress:
        progress.began(task, 10)
        progress.advanced(task, 35)
    last = plain(stream).splitlines()[-2:]
    assert [line.split()[0] for line in last] == ["all", "[1/4]"]
    assert ["1/4" in last[0], "35/10" in last[1]] == [True, True]


def test_an_input_that_ends_without_having_begun_counts() -> None:
    stream = Terminal()
    with open_progress(2, stream) as progress:
        progress.ended(Task("videos/a.mp4", "a"), "already finished")
        progress.began(Task("videos/b.mp4", "b"), 3)
    assert "[2/2] b" in stream.getvalue()
    assert "1/2" in stream.getvalue()
