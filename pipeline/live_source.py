"""Frames from cameras and streams: timed by our clock, and reopened when they are lost."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from types import TracebackType
from typing import Self

import av
from av.container import InputContainer

from ..tracker.errors import ConfigError, SourceError
from ..tracker.types import Frame
from .pipe import Pipe
from .source import DAMAGED, Faults, Kind, ReadOnce, counted
from .video_clock import MediaClock, Pace, lasts_s, mean_rate
from .video_reader import Reader, first_picture, why

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 60.0  # for a lost camera or stream
AGAIN_S = 40.0  # of a live playlist are repeated, at most, when it is reopened: its last three segments, of up to 10 s


@dataclass(frozen=True, slots=True)
class Retry:
    """How often to reopen a lost camera or stream before the loss is an error.

    The wait before each attempt doubles, by default 0.5, 1, 2, 4 and 8 s, up to a minute. The attempts themselves take
    additional time (docs/camera.md). A frame resets the count.

    Raises:
        ConfigError: a value is invalid.
    """

    attempts: int = 5
    first_wait_s: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, Integral) or self.attempts < 0:
            raise ConfigError(f"retry: wanted a whole number of attempts, 0 or more, got {self.attempts!r}")
        if not isinstance(self.first_wait_s, Real) or not 0 <= self.first_wait_s < math.inf:
            raise ConfigError(f"retry: wanted seconds to wait, 0 or more, got {self.first_wait_s!r}")

    def wait_s(self, attempt: int) -> float:
        """Seconds to wait before an attempt; attempts are counted from 0."""
        return max(self.first_wait_s, min(self.first_wait_s * 2.0 ** min(attempt, 30), LONGEST_WAIT_S))


class LiveSource:
    """A camera or stream: frames as they come, timed by the clock when they arrive.

    `time_s` is seconds since the first frame by the clock, whatever the timestamps say. Streams in segments (HLS,
    DASH), whose pictures arrive many at once, are instead delivered and timed by their stamps, from the first picture
    on. When the device or the connection is lost, it is reopened a limited number of times; the frames' numbers and
    times continue. A reopened playlist begins with segments that were delivered before. These are skipped, and a
    playlist with nothing newer counts as lost.

    Attributes:
        failed: (place, reason) of each damaged packet, which was skipped; of each damaged picture, which was kept; of
            each picture from which on the aspect differs; and of each loss after which the source was reopened. Lists
            the first hundred and the latest, with the number of those between.
        See `source.Source` for the rest.

    Args:
        container: the opened camera or stream; will be closed by the source.
        reopen: opens it again; returns None if the stream has been completed meanwhile and is at its end; raises
            SourceError or av.FFmpegError if that fails.
        label: the source's name in messages.
        name: the stem of output files.
        kind: see `source.Source`.
        retry: how often to reopen it; None: do not, and an end is not an error.
        by_stamps: deliver and time the pictures by their timestamps.
        pipe: the one that the container is read from; will be closed, too.
    Raises:
        SourceError: it holds no video, or not a single frame.
    """

    kind: Kind
    live = True
    frames = None
    start_s = None

    def __init__(
        self,
        container: InputContainer,
        reopen: Callable[[], InputContainer | None],
        *,
        label: str,
        name: str,
        kind: Kind,
        retry: Retry | None,
        by_stamps: bool = False,
        pipe: Pipe | None = None,
    ) -> None:
        self.name, self.kind, self._pipe = name, kind, pipe
        self._faults = Faults(live=True)
        self.failed = self._faults.listed
        self._reopen, self._label, self._retry, self._by_stamps = reopen, label, retry, by_stamps
        self._stopped = threading.Event()
        self.size: tuple[int, int] | None = None
        self._given_s: float | None = None  # stamp of the last picture delivered by its stamp
        self._connect(container)
        self._taken_s = self._began_s = time.perf_counter()
        self._time_s = 0.0
        self._begin_clock(0.0)
        self._pace = Pace(in_pieces=True)
        self.size = self._bgr.shape[:2]
        self.rate = mean_rate(self._reader.stream)
        self._frames = ReadOnce(self._deliver(), label)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the iteration, in whichever thread it runs, and release the device.

        Waits for a read in progress, which ends at the latest with the device's read time-out.
        """
        self._stopped.set()
        self._frames.close()
        self._reader.close()

    def _connect(self, container: InputContainer) -> None:
        """Take the first picture of a newly opened container; damage before it is not noted."""
        reader = Reader(container, self._label, live=True, pipe=self._pipe)
        self._to_bgr, self._bgr = first_picture(reader, self._label, self.size)
        self._reader, self._picture = reader, reader.first
        while self._was_given():
            if self._advance():
                reader.close()
                raise SourceError("nothing newer came")
        self._damaged = reader.damaged

    def _was_given(self) -> bool:
        """Whether the current picture of a new connection was delivered before the loss, judging by its stamp."""
        stamp_s = None if self._picture is None else self._picture.time
        return self._given_s is not None and stamp_s is not None and 0 <= self._given_s - stamp_s < AGAIN_S

    def _begin_clock(self, time_s: float) -> None:
        """Set the time of a connection's first picture; those that follow, if timed by stamps, are relative to it."""
        self._clock, self._clock_s = MediaClock(self._reader.stream, self._reader.format), time_s

    def _deliver(self) -> Generator[Frame, None, None]:
        index, more = 0, True
        while more and self._await_turn(first=index == 0):
            self._note_faults(index)
            yield Frame(index, self._time_s, self._taken_s, self._bgr)
            index += 1
            reason = self._advance()
            if reason:
                more = self._connect_again(index, reason)

    def _await_turn(self, *, first: bool) -> bool:
        """Wait until the current picture is due and set its time; False if the source was closed meanwhile."""
        if self._by_stamps and self._picture is not None:
            time_s = self._clock.time_of(self._picture, self._reader.peek)
            due_s = self._pace.due_s(time_s, lasts_s(self._picture, self.rate))
            if self._stopped.wait(due_s - time.perf_counter()):
                return False
            self._time_s, self._taken_s, self._given_s = self._clock_s + time_s, time.perf_counter(), self._picture.time
        elif not first:
            self._taken_s = time.perf_counter()
            self._time_s = self._taken_s - self._began_s
        return not self._stopped.is_set()

    def _note_faults(self, index: int) -> None:
        """Note what is wrong with the picture that is about to be delivered, and what was skipped before it."""
        for _ in range(self._reader.damaged - self._damaged):
            self._faults.note(f"packet after frame {index}", self._reader.reason)
        self._damaged = self._reader.damaged
        place = f"frame {index + 1} ({self._time_s:.3f} s)"
        if self._picture is not None and self._picture.is_corrupt:
            self._faults.note(place, DAMAGED)
        if self._to_bgr.changed:
            self._faults.note(place, self._to_bgr.changed)

    def _advance(self) -> str:
        """Take the next picture; return "", or why there is none."""
        try:
            self._picture = self._reader.read()
            if self._picture is None:
                return "it ended"
            self._bgr = self._to_bgr(self._picture)
        except av.FFmpegError as error:
            return why(error)
        return ""

    def _connect_again(self, index: int, reason: str) -> bool:
        """Reopen a lost source; False if it is at its end or was closed."""
        if self._stopped.is_set() or (self._retry is None and reason == "it ended"):
            return False
        self._reader.close()
        after = f"after frame {index} ({self._time_s:.3f} s)"
        place, lost = f"{self._label}: lost {after}", reason
        retry = self._retry or Retry(0)
        for attempt in range(retry.attempts):
            log.warning("%s: %s; attempt %d of %d to open it again", place, reason, attempt + 1, retry.attempts)
            if self._stopped.wait(retry.wait_s(attempt)):
                return False
            try:
                container = self._reopen()
                if container is None:
                    if lost != "it ended":
                        self._faults.note(after, f"lost, {lost}; what came between then and its end was not read")
                    return False
                self._connect(container)
            except (SourceError, av.FFmpegError) as error:
                reason = why(error)
            else:
                away_s = time.perf_counter() - self._taken_s
                self._faults.note(after, f"lost, {lost}; opened again, nothing came for {away_s:.1f} s")
                if self._picture is self._reader.first:  # else its stamps continue where they were
                    self._begin_clock(self._time_s + away_s)
                self._pace = Pace(in_pieces=True)
                return self._still_wanted()
        times = counted(retry.attempts, "time")
        tried = f"; tried {times} to open it again, check the device or network" if retry.attempts else ""
        raise SourceError(f"{place}: {reason}{tried}")

    def _still_wanted(self) -> bool:
        """False, after closing the new connection, if `close` was called while the source was being reopened."""
        if self._stopped.is_set():
            self._reader.close()
        return not self._stopped.is_set()
