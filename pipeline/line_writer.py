"""Write lines for a program that may be slow to read them, without holding up the rest of this one."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import select
import stat
import sys
import threading
from typing import TextIO

from ..tracker.errors import SinkError
from .channel import Abandoned, Channel

if sys.platform == "linux":
    import fcntl
    import termios

log = logging.getLogger(__name__)

LINES = 256  # that wait at most, of some 3 KB per face: eight seconds at 30 frames/s
PATIENCE_S = 1.0  # for the reader to take another line after the user has ended the run
LOOK_UP_S = 0.01  # between two checks whether a pipe has room, which nothing else reports


class ReaderGone(SinkError):  # noqa: N818 - an end, not a fault
    """Nobody reads a pipe any more: its regular end, as with `yes | head`."""


def descriptor_of(stream: TextIO) -> int | None:
    """The descriptor of a stream whose reader may block its writer: a pipe, socket or terminal; None for others."""
    try:
        descriptor = stream.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):
        return None
    return None if stat.S_ISREG(mode) else descriptor


def write_error(error: OSError) -> SinkError:
    """The error for a line that could not be written."""
    if isinstance(error, BrokenPipeError) or error.errno == errno.EINVAL:  # Windows raises this one
        return ReaderGone("JSON lines: the program that read them has gone")
    return SinkError(f"JSON lines: cannot be written: {error.strerror or error}")


def has_room(descriptor: int, size: int) -> bool:
    """Whether `size` bytes fit into a pipe at once, if nobody else writes into it; True if unknown (not on Linux).

    Linux counts pages, and starts a new one for data that does not fit into the last. Of two consecutive pages, as much
    as one may be empty, and so may most of the first and the last page.
    """
    if sys.platform != "linux":
        return True
    try:
        holds = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
        waiting = int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:  # not a pipe
        return True
    return waiting == 0 or size + 2 * waiting + 3 * mmap.PAGESIZE <= holds


class LineWriter:
    """Writes lines on its own thread; while the reader takes none, the newest `LINES` wait and older ones are dropped.

    It bypasses Python's own buffers: their locks, held while it waits, would keep the program from ending. On Linux, a
    line is not started until the pipe has room for it, so that none is cut off if the program ends before it is read.
    Only a line longer than the pipe's capacity may be.

    Args:
        descriptor: of the pipe; stays open.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: Channel[bytes] = Channel(LINES, "drop-oldest")
        self._given_up = threading.Event()
        self._done = threading.Event()  # Python 3.11 takes a thread whose `join` was interrupted for dead
        self._error: OSError | None = None
        self._has_warned = False
        self._written = 0
        self._given = 0
        threading.Thread(target=self._work, name="facetrack-lines", daemon=True).start()

    def put(self, line: str) -> None:
        """Hand a line over.

        Raises:
            ReaderGone: nobody reads any more.
            SinkError: an earlier line could not be written.
        """
        try:
            self._lines.put(line.encode())
        except Abandoned:  # the thread abandons after an error, which it stores first
            if self._error is None:
                raise
            raise write_error(self._error) from self._error
        self._given += 1
        if self._lines.dropped and not self._has_warned:
            self._has_warned = True
            log.warning("JSON lines: the program that reads them is too slow; the oldest lines are left out")

    def drain(self) -> None:
        """Wait until the reader has been given all lines, or has gone; no more can be put.

        Raises:
            KeyboardInterrupt: Ctrl-C, or a signal that the command line treats alike.
        """
        self._lines.end()
        while not self._done.wait(PATIENCE_S):  # without a time-out Windows would not notice Ctrl-C
            pass

    def finish(self) -> None:
        """Wait for the remaining lines as long as their reader takes any, and log how many it did not get.

        Raises:
            SinkError: one could not be written, for another reason than that the reader has gone.
        """
        self._lines.end()
        written = -1
        while not self._done.is_set() and written != self._written:
            written = self._written
            self._done.wait(PATIENCE_S)
        self._lines.abandon()
        self._given_up.set()
        self._done.wait(LOOK_UP_S)  # the thread may be in the middle of a line
        if self._error is not None:
            error = write_error(self._error)
            if isinstance(error, ReaderGone):
                return
            raise error from self._error
        if self._given > self._written:
            log.warning("JSON lines: %d of %d were not read and are left out", self._given - self._written, self._given)

    def _work(self) -> None:
        """Main function of the thread."""
        try:
            with self._lines:
                self._write_all()
        finally:
            self._done.set()

    def _write_all(self) -> None:
        for line in self._lines:
            try:
                if not self._await_room(len(line)):
                    return
                self._write(line)
            except OSError as error:
                self._error = error
                return
            self._written += 1

    def _await_room(self, size: int) -> bool:
        """Wait until a line of `size` bytes fits at once, or nobody reads; False if it is no longer wanted."""
        while not has_room(self._descriptor, size):
            if _is_broken(self._descriptor):
                return True
            if self._given_up.wait(LOOK_UP_S):
                return False
        return True

    def _write(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # another program has made the pipe non-blocking
                select.select([], [self._descriptor], [])


def _is_broken(descriptor: int) -> bool:
    """Whether nobody reads a pipe any more, so that what waits in it stays there."""
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are always reported
    return bool(poll.poll(0))
