"""What another program writes while it is read: whoever waits for its bytes can be called away."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")

HOLDS = 1 << 16  # bytes that wait in a pipe, at most, unless somebody has made it larger
LOOK_UP_S = 0.1  # how long whoever waits for bytes does not look whether they are still wanted
FAREWELL_S = 1.0  # for a thread to end whose work is no longer wanted, before its caller goes on


class Pipe:
    """The bytes of a pipe, which FFmpeg reads through `read`: FFmpeg's own waiting cannot be ended from outside.

    Attributes:
        name: its path.
        taken: bytes so far.
        waits: reads after the first for which there was nothing yet: whoever reads had caught up with whoever writes.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.taken = self.waits = 0
        self._descriptor: int | None = None
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # of the descriptor's beginning and end

    def open(self) -> None:
        """Open it, as soon as another program does so from its other end.

        Raises:
            OSError: it cannot be opened.
        """
        descriptor = os.open(self.name, os.O_RDONLY)
        with self._lock:
            if self._stopped.is_set():
                os.close(descriptor)
            else:
                self._descriptor = descriptor

    def read(self, size: int) -> bytes:
        """Give what is there, up to so many bytes, waiting for the first; b"" at the end and after `stop`.

        Raises:
            OSError: it cannot be read.
        """
        patience_s = 0.0
        while not self._stopped.is_set() and self._descriptor is not None:
            if _is_readable(self._descriptor, patience_s):
                content = os.read(self._descriptor, size)
                self.taken += len(content)
                return content
            self.waits += patience_s == 0 and self.taken > 0
            patience_s = LOOK_UP_S
        return b""

    def stop(self) -> None:
        """End the waiting of whoever reads, from any thread."""
        self._stopped.set()

    def close(self) -> None:
        """Let go of it; nobody may be reading any more."""
        self.stop()
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _is_readable(descriptor: int, patience_s: float) -> bool:
    """Whether bytes, or the end, come within this time."""
    if hasattr(select, "poll"):  # which, other than select, knows descriptors of any number
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(patience_s * 1000))
    return bool(select.select([descriptor], [], [], patience_s)[0])


def beside(work: Callable[[], T], give_up: Callable[[], None]) -> T:
    """Do what may wait for long on a thread of its own: the main thread alone hears signals, and none in C.

    Args:
        work: what to do; what it raises is raised here.
        give_up: called when a signal ends the waiting; makes the work end soon, if it can.
    """
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()  # whose waiting signals can interrupt

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # noqa: BLE001 - crosses the thread; raised below
            done.put((None, error))

    try:
        threading.Thread(target=run, name="facetrack-open", daemon=True).start()
        while (outcome := _outcome(done)) is None:
            pass
    except BaseException:
        give_up()
        _outcome(done, FAREWELL_S)  # there may be none: who waits for a pipe's other end does so to the program's end
        raise
    answer, error = outcome
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def _outcome(done: SimpleQueue[T], patience_s: float = LOOK_UP_S) -> T | None:
    """What comes within a moment: a signal that comes just before the waiting does not end it."""
    try:
        return done.get(timeout=patience_s)
    except Empty:
        return None
