"""What another program writes while it is read: whoever waits for its bytes can be called away."""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")

HOLDS = 1 << 16  # bytes that wait in a pipe, at most, unless somebody has made it larger
BEHIND_S = 10.0  # pictures come in pieces of up to so long; a sender who is ahead for longer has a faster clock
CATCH_UP_S = 0.5  # of pictures are then given at once, at most: no camera's clock is a twentieth too fast
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


class Backlog:
    """Which pictures have waited in a pipe since they were written, so that all would stay late.

    While FFmpeg found out what they are, and before, the program at the pipe's other end has gone on: the first ones
    have waited until one has just come, or the pipe cannot have held so many. But who has written more than a pipe
    holds, and kept nobody waiting, writes what was there already, and is never late.

    Later some have where all of `BEHIND_S` were there before they were due: the clock at the other end is faster.

    Args:
        pipe: just opened.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe, self._waits, self._full = pipe, pipe.waits, pipe.taken + HOLDS
        self._is_live = self._is_opening = pipe.waits > 0 or pipe.taken <= HOLDS
        self._until_s = -math.inf  # by the stamps
        self._since_s = math.inf  # by the clock

    def holds(self, time_s: float, due_s: float, now_s: float) -> bool:
        """Whether the next picture is one of them; one call per picture, in order.

        Args:
            time_s: by its stamp.
            due_s, now_s: when it is due and has been read, by the clock.
        """
        has_come, is_early = self._pipe.waits > self._waits, due_s > now_s
        held = self._is_opening or (is_early and time_s < self._until_s)
        if has_come or self._pipe.taken > self._full:
            self._is_opening = False
        if has_come or not is_early:
            self._waits, self._since_s, self._until_s = self._pipe.waits, now_s, -math.inf
        elif self._is_live and now_s - self._since_s > BEHIND_S:
            self._since_s, self._until_s, held = now_s, time_s + CATCH_UP_S, True
        return held


def _is_readable(descriptor: int, patience_s: float) -> bool:
    """Whether bytes, or the end, come within this time."""
    if hasattr(select, "poll"):  # which, other than select, knows descriptors of any number
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(patience_s * 1000))
    return bool(select.select([descriptor], [], [], patience_s)[0])


def beside(work: Callable[[], T], give_up: Callable[[], None], patience_s: float = math.inf) -> T:
    """Do what may wait for long on a thread of its own: the main thread alone hears signals, and none in C.

    Args:
        work: what to do; what it raises is raised here.
        give_up: called when a signal ends the waiting, or it takes too long; makes the work end soon, if it can.
        patience_s: how long it may take.
    Raises:
        TimeoutError: it takes longer.
    """
    until_s = time.monotonic() + patience_s
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()  # whose waiting signals can interrupt

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # noqa: BLE001 - crosses the thread; raised below
            done.put((None, error))

    try:
        threading.Thread(target=run, name="facetrack-open", daemon=True).start()
        while (outcome := _outcome(done)) is None:
            if time.monotonic() > until_s:
                raise TimeoutError(f"nothing came in {patience_s:g} s")
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
