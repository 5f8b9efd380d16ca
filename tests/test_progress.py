"""Progress: a bar where somebody watches, lines where a log is kept."""

from __future__ import annotations

import io

from facetrack.pipeline.batch import Task
from facetrack.pipeline.progress import BarProgress, LineProgress, open_progress


class Terminal(io.StringIO):
    """Takes itself for one."""

    def isatty(self) -> bool:
        return True


def report(stream: io.StringIO, frames: int | None) -> str:
    task = Task("videos/clip.mp4", "clip")
    with open_progress(2, stream) as progress:
        progress.began(task, frames)
        for _ in range(3):
            progress.advanced()
        progress.ended(task, "3 frames")
    return stream.getvalue()


def test_a_log_gets_one_line_for_each_input() -> None:
    assert report(io.StringIO(), 3) == "videos/clip.mp4: 3 frames\n"


def test_a_terminal_gets_a_bar_and_keeps_the_line() -> None:
    text = report(Terminal(), 3)
    assert "[1/2] clip" in text
    assert "3/3" in text
    assert "videos/clip.mp4: 3 frames" in text


def test_the_bar_does_without_a_known_length() -> None:
    assert "videos/clip.mp4: 3 frames" in report(Terminal(), None)


def test_the_stream_decides() -> None:
    assert isinstance(open_progress(1, io.StringIO()), LineProgress)
    assert isinstance(open_progress(1, Terminal()), BarProgress)
