"""Lines for a program that may be slow to read them: it keeps nobody waiting who does other things, too."""

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

LINES = 256  # that wait at most, of some 3 KB a face: eight seconds at 30 frames/s
PATIENCE_S = 1.0  # where the user has ended the run, for a reader to take another line
LOOK_UP_S = 0.01  # how often is looked whether a pipe has room, of which nothing else tells


class ReaderGone(SinkError):  # noqa: N818 - an end, not a fault
    """Nobody reads a pipe any more: its ordinary end, as of `yes | head`."""


def descriptor_of(stream: TextIO) -> int | None:
    """Of a stream whose reader may keep its writer waiting: a pipe, a socket, a terminal; None of a file or memory."""
    try:
        descriptor = stream.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):
        return None
    return None if stat.S_ISREG(mode) else descriptor


def not_written(error: OSError) -> SinkError:
    """What a line that could not be written means."""
    if isinstance(error, BrokenPipeError) or error.errno == errno.EINVAL:  # which is Windows' word for it
        return ReaderGone("JSON lines: the program that read them has gone")
    return SinkError(f"JSON lines: cannot be written: {error.strerror or error}")


def has_room(descriptor: int, size: int) -> bool:
    """Whether so many bytes go into a pipe at once, if nobody else writes into it; True where nobody knows (not Linux).

    Linux counts pages, and puts what has room in none of its own into a new one: of two that follow each other as much
    as one may be empty, and so may most of the first and the last.
    """
    if sys.platform != "linux":
        return True
    try:
        holds = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
        waiting = int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:  # no pipe
        return True
    return waiting == 0 or size + 2 * waiting + 3 * mmap.PAGESIZE <= holds


class LineWriter:
    """Writes lines on a thread of its own; while their reader takes none, the newest `LINES` wait and older ones go.

    It writes past Python's own buffers, whose locks it would hold while it waits: the program could not end. A line
    that a pipe has no room for is not begun (Linux), so that none is cut where the program ends before it is read; one
    that is longer than all that it holds may be.

    Args:
        descriptor: of the pipe; stays open.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: Channel[bytes] = Channel(LINES, "drop-oldest")
        self._given_up = threading.Event()
        self._error: OSError | None = None
        self._told = False
        self._written = 0
        self._given = 0
        self._thread = threading.Thread(target=self._work, name="facetrack-lines", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Hand a line over.

        Raises:
            ReaderGone: nobody reads any more.
            SinkError: an earlier line could not be written.
        """
        try:
            self._lines.put(line.encode())
        except Abandoned:  # which the thread does when it has met an error, never before it has said which
            if self._error is None:
                raise
            raise not_written(self._error) from self._error
        self._given += 1
        if self._lines.dropped and not self._told:
            self._told = True
            log.warning("JSON lines: the program that reads them is too slow; the oldest ones are left out")

    def drain(self) -> None:
        """Wait until the reader has been given all lines, or has gone; no more can be put.

        Raises:
            KeyboardInterrupt: Ctrl-C, or a signal that the command line takes for one.
        """
        self._lines.end()
        while self._thread.is_alive():
            self._thread.join(PATIENCE_S)  # without a time Windows would not hear Ctrl-C

    def finish(self) -> None:
        """Wait for the lines that are left, as long as their reader takes any, and say how many it did not get.

        Raises:
            SinkError: one could not be written, other than because the reader has gone.
        """
        self._lines.end()
        written = -1
        while self._thread.is_alive() and written != self._written:
            written = self._written
            self._thread.join(PATIENCE_S)
        self._lines.abandon()
        self._given_up.set()
        self._thread.join(LOOK_UP_S)  # it may be in the middle of a line
        if self._error is not None:
            error = not_written(self._error)
            if isinstance(error, ReaderGone):
                return
            raise error from self._error
        if self._given > self._written:
            log.warning("JSON lines: %d of %d were not read and are left out", self._given - self._written, self._given)

    def _work(self) -> None:
        """Main function of the thread."""
        with self._lines:
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
        """Wait until a line of so many bytes is written at once or nobody reads; False where it is no longer wanted."""
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
            except BlockingIOError:  # another program has made the pipe one that does not wait
                select.select([], [self._descriptor], [])


def _is_broken(descriptor: int) -> bool:
    """Whether nobody reads a pipe any more: what waits in it stays there."""
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are told unasked
    return bool(poll.poll(0))
