"""The progress of a batch: bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, TextIO

from .source import without_credentials

if TYPE_CHECKING:
    from rich.progress import TaskID

    from .source import Decoder

Ending = Literal["done", "failed", "interrupted"]
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
LEAST_STEP = 0.01  # of a task; rich estimates from its last 1000 steps


@dataclass(frozen=True, slots=True)
class Task:
    """One input, how it is opened, and the stem of its outputs.

    Attributes:
        spec: what a user named.
        name: the stem, with "/" where the outputs go to folders of their own.
        decoder: see `open_source`.
        frame_rate: of the video whose frames are the pictures of a folder or glob; 0: the pictures are unrelated.
    """

    spec: str
    name: str
    decoder: Decoder = "cpu"
    frame_rate: float = 0.0

    @property
    def label(self) -> str:
        """The input's name in messages: on one line, a URL without its password."""
        return one_line(without_credentials(self.spec))


class Reporter(Protocol):
    """Receives the progress of a batch, in which several tasks may run at a time."""

    def began(self, task: Task, frames: int | None) -> None:
        """A task begins, with the expected number of frames."""

    def advanced(self, task: Task, frames: int = 1) -> None:
        """This many more frames have been written."""

    def ended(self, task: Task, line: str, how: Ending = "done") -> None:
        """A task is over: `how`, and the same as text."""


@contextmanager
def open_progress(tasks: int, stream: TextIO | None) -> Iterator[Reporter]:
    """Bars with the time left if the stream is a terminal, else lines; nothing if it is closed (None)."""
    if stream is None:
        yield NoProgress()
    elif stream.isatty():
        with BarProgress(tasks, stream) as bars:
            yield bars
    else:
        with closing(LineProgress(stream, tasks)) as lines:
            yield lines


class NoProgress:
    """Prints nothing."""

    def began(self, task: Task, frames: int | None) -> None:
        """Print nothing."""

    def advanced(self, task: Task, frames: int = 1) -> None:
        """Print nothing."""

    def ended(self, task: Task, line: str, how: Ending = "done") -> None:
        """Print nothing."""


class LineProgress:
    """Prints a line for each task that is over; if there are several, numbers them and ends with a summary."""

    def __init__(self, stream: TextIO, tasks: int = 1) -> None:
        self._stream, self._tasks = stream, tasks
        self._over: Counter[Ending] = Counter()

    def began(self, task: Task, frames: int | None) -> None:
        """Print nothing yet."""

    def advanced(self, task: Task, frames: int = 1) -> None:
        """Print nothing yet."""

    def ended(self, task: Task, line: str, how: Ending = "done") -> None:
        """Print how it went."""
        self._over[how] += 1
        of = f"[{self._over.total()}/{self._tasks}] " if self._tasks > 1 else ""
        self._say(f"{of}{task.label}: {line}")

    def close(self) -> None:
        """Print how many are done, if there are several tasks and one of them is over."""
        if self._tasks > 1 and self._over:
            done, failed = self._over["done"], self._over["failed"]
            self._say(f"{done} done, {failed} failed, {self._tasks - done - failed} left")

    def _say(self, line: str) -> None:
        print(one_line(line), file=self._stream, flush=True)


def one_line(text: str) -> str:
    """Escape line feeds and other control characters, which names of files may have."""
    return CONTROL.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


@dataclass(slots=True)
class _Row:
    """The bar of a task."""

    bar: TaskID
    frames: int | None
    done: int = 0
    began_s: float = field(default_factory=perf_counter)

    @property
    def share(self) -> float:
        """Share that is done; 0 if the length is unknown."""
        return min(1.0, self.done / self.frames) if self.frames else 0.0


class BarProgress:
    """A bar for each task in progress, below one for all tasks; finished ones are listed above, one line each."""

    def __init__(self, tasks: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)
        columns = (  # a name is not markup, whatever brackets it has
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=40)),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=console, transient=True)
        self._all = self._bars.add_task("all", total=tasks, rate="", visible=tasks > 1)
        self._rows: dict[Task, _Row] = {}
        self._tasks, self._begun, self._ended, self._shown = tasks, 0, 0, 0.0

    def began(self, task: Task, frames: int | None) -> None:
        """Add a bar."""
        self._begun += 1
        of = f"[{self._begun}/{self._tasks}] " if self._tasks > 1 else ""
        self._rows[task] = _Row(self._bars.add_task(f"{of}{task.name}", total=frames, rate=""), frames)

    def advanced(self, task: Task, frames: int = 1) -> None:
        """Move a bar."""
        row = self._rows[task]
        row.done += frames
        rate = row.done / max(perf_counter() - row.began_s, 1e-9)
        self._bars.update(row.bar, completed=row.done, rate=f"{rate:.0f}/s")
        self._show_all()

    def ended(self, task: Task, line: str, how: Ending = "done") -> None:
        """Print how it went, above the bars."""
        row = self._rows.pop(task, None)
        if row:
            self._bars.remove_task(row.bar)
        else:  # it had nothing to do, or could not begin
            self._begun += 1
        if how != "interrupted":
            self._ended += 1
            self._show_all()
        self._bars.console.print(one_line(f"{task.label}: {line}"))

    def _show_all(self) -> None:
        """Move the bar of all tasks, in steps large enough for the estimate of the time left."""
        done = self._ended + sum(row.share for row in self._rows.values())
        if done - self._shown >= LEAST_STEP:
            self._shown = done
            self._bars.update(self._all, completed=done)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
