"""Read what another program writes at the same time; waiting for its bytes can be interrupted."""

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

HOLDS = 1 << 16  # most bytes that wait in a pipe, unless somebody has made it larger
BEHIND_S = 10.0  # pictures come in bursts of up to this length; a sender that is ahead for longer has a faster clock
CATCH_UP_S = 0.5  # of pictures are then given at once, at most: no camera's clock is a twentieth too fast
LOOK_UP_S = 0.1  # between two checks, during a wait, whether the result is still wanted
FAREWELL_S = 1.0  # that a caller waits for a thread to end whose work is no longer wanted


class Pipe:
    """A pipe that FFmpeg reads through `read`, because FFmpeg's own waiting cannot be ended from outside.

    Attributes:
        name: its path.
        taken: bytes read so far.
        waits: reads after the first that had to wait, because the reader had caught up with the writer.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.taken = self.waits = 0
        self._descriptor: int | None = None
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # for opening and closing the descriptor

    def open(self) -> None:
        """Open it; waits until another program opens its other end.

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
        """Return up to `size` bytes that are there, waiting for the first; b"" at the end and after `stop`.

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
        """End a `read` that waits, from any thread."""
        self._stopped.set()

    def close(self) -> None:
        """Close it; nobody may be reading any more."""
        self.stop()
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class Backlog:
    """Finds pictures that have waited in a pipe since they were written, and would make all later ones late.

    While FFmpeg analysed the stream, and before, the program at the pipe's other end went on writing. So the first
    pictures have waited, until one has just come, or more has been read than the pipe can have held. But a program that
    wrote more than a pipe holds, and never kept the reader waiting, sends what existed before, and is never late.

    Later pictures have waited if all those of `BEHIND_S` came before they were due: then the other clock is faster.

    Args:
        pipe: just opened.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe, self._waits, self._full = pipe, pipe.waits, pipe.taken + HOLDS
        self._is_live = self._is_opening = pipe.waits > 0 or pipe.taken <= HOLDS
        self._until_s = -math.inf  # by the stamps
        self._since_s = math.inf  # by the clock

    def holds(self, time_s: float, due_s: float, now_s: float) -> bool:
        """Whether the next picture has waited; one call per picture, in order.

        Args:
            time_s: its time by its stamp.
            due_s, now_s: when it is due and when it was read, by the clock.
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
    if hasattr(select, "poll"):  # which, unlike select, takes descriptors of any number
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(patience_s * 1000))
    return bool(select.select([descriptor], [], [], patience_s)[0])


def run_in_thread(work: Callable[[], T], give_up: Callable[[], None], patience_s: float = math.inf) -> T:
    """Do work that may wait for long on a thread of its own: only the main thread handles signals, and not within C.

    Args:
        work: what to do; what it raises is raised here.
        give_up: called when a signal ends the wait, or it takes too long; makes the work end soon, if it can.
        patience_s: how long it may take.
    Raises:
        TimeoutError: it takes longer.
    """
    until_s = time.monotonic() + patience_s
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()  # signals can interrupt its wait

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
        _outcome(done, FAREWELL_S)  # there may be none: a wait for a pipe's other end may last until the program ends
        raise
    answer, error = outcome
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def _outcome(done: SimpleQueue[T], patience_s: float = LOOK_UP_S) -> T | None:
    """The outcome, if it comes within a moment: a signal just before the wait does not end it."""
    try:
        return done.get(timeout=patience_s)
    except Empty:
        return None
