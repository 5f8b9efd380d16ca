"""Work for worker processes that imports nothing heavy, so that they start quickly."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("facetrack.fake")


class CannotBePickled(Exception):  # noqa: N818
    """An error whose constructor needs more than its message."""

    def __init__(self, message: str, *, more: int) -> None:
        super().__init__(message)
        self.more = more


@dataclass(frozen=True)
class Errands:
    """Does jobs that are words; some of them end badly.

    Attributes:
        folder: gets a file for each opening, and one if a job was interrupted and kept its results.
        may_open: how many processes can open the work; further ones die while opening it.
        deaf: further ones instead never finish opening it and ignore interruptions, as in Numba's compiler.
    """

    folder: Path
    may_open: int = 99
    deaf: bool = False

    @contextmanager
    def open(self) -> Iterator[Callable[[str, Any], str]]:
        if len(list(self.folder.glob("opened-*"))) >= self.may_open:
            if self.deaf:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
                (self.folder / "deaf").touch()
                threading.Event().wait()
            (self.folder / f"died-{os.getpid()}").touch()
            os._exit(7)
        (self.folder / f"opened-{os.getpid()}").touch()
        yield self.do

    def do(self, job: str, reporter: Any) -> str:
        reporter.began(job, 3)
        match job:
            case "crash":
                os._exit(3)
            case "crash again":
                os.abort()
            case "strange signal":
                os.kill(os.getpid(), signal.SIGRTMIN + 1)
            case "raise":
                raise LookupError("nothing here")
            case "raise strangely":
                raise CannotBePickled("a strange thing", more=1)
            case "warn":
                log.warning("%s is strange", job)
            case "endless" | "ended from outside":
                self._until_interrupted(job, reporter)
            case "mourn":
                self._until_a_death_is_known()
        for _ in range(3):
            reporter.advanced(job)
        reporter.ended(job, f"done by {os.getpid()}")
        return job.upper()

    def _until_interrupted(self, job: str, reporter: Any) -> None:
        try:
            if job == "ended from outside":
                signal.raise_signal(signal.SIGTERM)
            while True:
                reporter.advanced(job)
        except KeyboardInterrupt:
            (self.folder / "kept").touch()
            reporter.ended(job, "kept", "interrupted")
            raise

    def _until_a_death_is_known(self) -> None:
        """Wait until the parent has noticed a death, which it has once it has reaped the process."""
        with suppress(ProcessLookupError):
            while True:
                for file in self.folder.glob("died-*"):
                    os.kill(int(file.name.removeprefix("died-")), 0)

    def lost(self, job: str, reason: str, reporter: Any) -> str:
        reporter.ended(job, "lost")
        return reason
