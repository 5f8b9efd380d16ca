"""How far a batch has got: a bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self, TextIO

from .batch import Task


class Progress(AbstractContextManager["Progress"], Protocol):
    """A `batch.Reporter` that is opened and closed."""

    def began(self, task: Task, frames: int | None) -> None: ...
    def advanced(self) -> None: ...
    def ended(self, task: Task, line: str) -> None: ...


def open_progress(tasks: int, stream: TextIO) -> Progress:
    """A bar with the time left if the stream is a terminal, else a line per task."""
    return BarProgress(tasks, stream) if stream.isatty() else LineProgress(stream)


class NoProgress:
    """Says nothing."""

    def began(self, task: Task, frames: int | None) -> None:
        """Nothing is said."""

    def advanced(self) -> None:
        """Nothing is said."""

    def ended(self, task: Task, line: str) -> None:
        """Nothing is said."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to do."""


class LineProgress:
    """One line for each task that is over."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def began(self, task: Task, frames: int | None) -> None:
        """Nothing is said yet."""

    def advanced(self) -> None:
        """Nothing is said yet."""

    def ended(self, task: Task, line: str) -> None:
        """Say how it went."""
        print(f"{task.spec}: {line}", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to do."""


class BarProgress:
    """A bar for the present task above which the finished ones pile up, one line each."""

    def __init__(self, tasks: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=40)),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True)
        self._row = self._bar.add_task("", visible=False, rate="")
        self._tasks, self._number = tasks, 0

    def began(self, task: Task, frames: int | None) -> None:
        """Start the bar anew."""
        of = f"[{self._number + 1}/{self._tasks}] " if self._tasks > 1 else ""
        self._bar.reset(self._row, total=frames, description=f"{of}{task.name}", visible=True, rate="")

    def advanced(self) -> None:
        """Move the bar by one frame."""
        self._bar.advance(self._row)
        speed = self._bar.tasks[0].speed
        if speed is not None:
            self._bar.update(self._row, rate=f"{speed:.0f}/s")

    def ended(self, task: Task, line: str) -> None:
        """Say how it went, above the bar."""
        self._number += 1
        self._bar.console.print(f"{task.spec}: {line}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
