"""What a run logs about the steps between two validations, and which log lines a resumed run keeps."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ..pipeline.part_file import atomic_write_text


class StepMeans:
    """Means of the loss terms over some steps, and the steps per second; can be saved and resumed."""

    def __init__(self, sums: dict[str, float] | None = None, steps: int = 0, seconds: float = 0.0) -> None:
        """Restore what `state` returned; the clock does not run until `start_clock`."""
        self._sums, self._steps, self._seconds = dict(sums or {}), steps, seconds
        self._began: float | None = None

    def start_clock(self) -> None:
        """Start the clock."""
        self._seconds, self._began = self._passed(), time.monotonic()

    def add(self, terms: dict[str, float]) -> None:
        """Add the terms of one step."""
        self._steps += 1
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Mean of each term over the steps."""
        return {name: value / self._steps for name, value in self._sums.items()}

    def rate(self) -> float:
        """Steps per second."""
        return self._steps / self._passed()

    def state(self) -> dict[str, Any]:
        """The whole state in plain types, as the arguments of the constructor."""
        return {"sums": dict(self._sums), "steps": self._steps, "seconds": self._passed()}

    def _passed(self) -> float:
        return self._seconds + (0.0 if self._began is None else time.monotonic() - self._began)


def keep_lines(path: Path, before: int) -> None:
    """Keep the lines of a JSON log whose step is below `before`; a line cut short by a kill is removed, too.

    A run that resumes from a checkpoint writes the later lines again.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if (step := _step(line)) is not None and step < before]
    if kept != lines:
        atomic_write_text(path, "".join(kept))


def _step(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
