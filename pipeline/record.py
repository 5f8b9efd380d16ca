"""Sinks that are written together: complete together, or together left as they are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ..tracker.types import Result
from .sinks import Sink
from .timing import StageTimes


@dataclass(slots=True)
class Tally:
    """What went through, in a fixed amount of memory.

    Attributes:
        frames: results written.
        with_face: of these, how many had a face.
        rows: of a table: one for each face, and for each frame without.
        most_faces: in one frame.
        stages: seconds in each stage.
    """

    frames: int = 0
    with_face: int = 0
    rows: int = 0
    most_faces: int = 0
    stages: StageTimes = field(default_factory=StageTimes)

    def add(self, result: Result) -> None:
        """Count one frame."""
        faces = len(result.faces)
        self.frames += 1
        self.with_face += faces > 0
        self.rows += max(1, faces)
        self.most_faces = max(self.most_faces, faces)
        self.stages.add(result.spans_s)

    def counts(self) -> Mapping[str, int]:
        """The numbers by name."""
        return {
            "frames": self.frames,
            "frames_with_face": self.with_face,
            "rows": self.rows,
            "most_faces": self.most_faces,
        }


class Record:
    """Writes results to several sinks. As a context manager it leaves them incomplete unless `finish` was called."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._sinks: list[Sink] = []

    def add(self, sink: Sink) -> None:
        """Take a newly opened sink; it is closed with the others."""
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
        """Bring all sinks to their ends; only then do files get their names.

        Raises:
            SinkError: the end of one of them cannot be written, and no file gets its name; or one cannot be renamed,
                and those before it have their names.
        """
        for sink in self._sinks:
            sink.finish()
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
