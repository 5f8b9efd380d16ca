"""Sinks that are written together: either all are completed, or all are left as they are."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ..tracker.types import Result
from .csv_sink import Counts, CsvSink
from .sinks import Sink
from .timing import StageTimes


@dataclass(slots=True)
class Tally:
    """Statistics of the results, in a fixed amount of memory.

    Attributes:
        counts: of the results written.
        stages: seconds in each stage.
    """

    counts: Counts = field(default_factory=Counts)
    stages: StageTimes = field(default_factory=StageTimes)

    @property
    def frames(self) -> int:
        """Results written."""
        return self.counts.frames

    def add(self, result: Result) -> None:
        """Count one frame."""
        self.counts = self.counts.plus(len(result.faces))
        self.stages.add(result.spans_s)


class Record:
    """Writes results to several sinks. As a context manager it leaves them incomplete unless `finish` was called."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._sinks: list[Sink] = []
        self._table: CsvSink | None = None

    def add_table(self, table: CsvSink) -> None:
        """Add a newly opened table as `add` does; at the end, its counts replace those of the tally."""
        self._table = table
        self.add(table)

    def add(self, sink: Sink) -> None:
        """Add a newly opened sink; it is closed with the others."""
        self._sinks.append(sink)

    def write(self, result: Result) -> None:
        """Give a result to all sinks.

        Raises:
            SinkError: one of them cannot take it.
        """
        for sink in self._sinks:
            sink.write(result)
        self.tally.add(result)

    def finish(self) -> None:
        """Finish all sinks; only then do files get their names.

        After an interruption in the middle of `write`, the table may have a frame that the tally has not counted.

        Raises:
            SinkError: the end of one of them cannot be written, and no file gets its name; or one cannot be renamed,
                and those before it have their names.
        """
        for sink in self._sinks:
            sink.finish()
        if self._table is not None:
            self.tally.counts = self._table.counts
        for sink in self._sinks:
            sink.close(complete=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as closing:  # each of them, whatever another one raises
            for sink in reversed(self._sinks):
                closing.callback(sink.close, complete=False)
