"""Frames from everything that FFmpeg opens: recordings go by their own clock, cameras and streams by ours."""

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
from av.video.frame import VideoFrame

from ..tracker.errors import ConfigError, SourceError
from ..tracker.types import Frame, UInt8
from .pipe import Backlog, Pipe
from .source import Kind, ReadOnce, counted
from .video_clock import MediaClock, Pace, lasts_s, mean_rate
from .video_reader import Reader, declared_length_s, expected_frames, first_picture, why

log = logging.getLogger(__name__)

MISSING_S, MISSING = 1.0, 0.1  # a recording that ends so much, and such a share, before its length breaks off
PIECE_S = 0.9  # pieces of a list are longer
NOTED = 100  # faults of what is live that are listed one by one: it may run for days
LONGEST_WAIT_S = 60.0  # for a lost camera or stream
AGAIN_S = 40.0  # of a live list come again, at most, when it is opened again: its last three pieces, of up to 10 s
DAMAGED = "damaged, decoded as far as it goes"
DOUBTFUL = "follow damage without a key frame, may show what was there before"
_KEPT = "the frames before are good, copy or record it again for the rest"


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a camera or stream that was lost is opened again before that is an error.

    The wait before each doubles, by default 0.5, 1, 2, 4 and 8 s, up to a minute, and each may take its own time on
    top: 10 s at an address. A frame starts the count anew.

    Raises:
        ConfigError: there cannot be so many, or no such wait.
    """

    attempts: int = 5
    first_wait_s: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, Integral) or self.attempts < 0:
            raise ConfigError(f"retry: wanted a whole number of attempts, 0 or more, got {self.attempts!r}")
        if not isinstance(self.first_wait_s, Real) or not 0 <= self.first_wait_s < math.inf:
            raise ConfigError(f"retry: wanted seconds to wait, 0 or more, got {self.first_wait_s!r}")

    def wait_s(self, attempt: int) -> float:
        """Seconds before an attempt, counted from 0."""
        return max(self.first_wait_s, min(self.first_wait_s * 2.0 ** min(attempt, 30), LONGEST_WAIT_S))


class _Faults:
    """What failed, as a source tells it: all, or of what is live the first hundred, then the last."""

    def __init__(self, *, live: bool) -> None:
        self.listed: list[tuple[str, str]] = []
        self._live, self._unlisted = live, 0

    def note(self, place: str, reason: str) -> None:
        if self._live and len(self.listed) > NOTED:
            self._unlisted += 1
            self.listed[NOTED:] = [(place, f"{reason}; {counted(self._unlisted, 'other')} before it not listed")]
        else:
            self.listed.append((place, reason))


class VideoSource:
    """A recording: every frame, timed by its presentation time stamps.

    `time_s` is seconds since the start of the video stream, where its first frame usually is, and always rises:

    - A frame without a time stamp comes one frame period after the one before it.
    - Frames of one stamp are spread over the time up to the next, where that is long enough.
    - Else they, as any stamp that does not rise, are moved one tick behind the last.
    - A stamp that falls back to the second newest or further, or leaps ahead by half a day, starts a new clock that
      goes on where the old one ended.
    - One that leaps ahead, and is taken back by the next, counts as none; so does a first one half a day before all
      others. `video_clock.MediaClock` has the details.

    Alpha is left out, 10 bits become 8, pixels that are not square are made so, and the container's display matrix is
    applied (the nearest of its eight right-angled turns and mirrorings): faces are as the photographer saw them.

    Attributes:
        failed: (place, reason) of each damaged packet, which was left out, of each damaged picture, which was not, of
            the pictures from there to the next key frame, which are built on what was lost, of each picture from
            which on they have another aspect, and of each before which pieces of a list seem to be missing; in real
            time the first hundred, then the last, with how many there are between.
        See `source.Source` for the rest.
    """

    kind: Kind

    def __init__(
        self,
        container: InputContainer,
        *,
        label: str,
        name: str,
        kind: Kind = "video",
        realtime: bool = False,
        shortage: str = "",
        pipe: Pipe | None = None,
    ) -> None:
        """Take over an opened container.

        Args:
            container: will be closed by the source.
            label: the source's name in messages.
            name: the stem of output files.
            kind: what it is.
            realtime: deliver each frame when its time has come, as a camera would; a leap of the stamps is not waited
                for.
            shortage: how many bytes are missing at the file's end, in words; "" where it is whole.
            pipe: that the container is read from; will be closed, too. In real time the pictures that wait in it are
                given at once, and those that follow when they are due.
        Raises:
            SourceError: there is no video in it, or not one frame.
        """
        self.name, self.kind, self.live = name, kind, realtime
        self._faults = _Faults(live=realtime)
        self.failed = self._faults.listed
        self._label, self._shortage = label, shortage
        self._stopped = threading.Event()
        self._reader = Reader(container, label, live=realtime and pipe is not None, cut=bool(shortage), pipe=pipe)
        self._to_bgr, first_bgr = first_picture(self._reader, label)
        self.size: tuple[int, int] | None = first_bgr.shape[:2]
        self.rate = mean_rate(self._reader.stream)
        self.frames = expected_frames(self._reader.stream, self.rate)
        self._clock = MediaClock(self._reader.stream, self._reader.format)
        self._length_s, self._in_pieces = declared_length_s(self._reader.stream), self._reader.format == "hls"
        self._doubtful: tuple[tuple[int, float], ...] = ()  # numbers and times of the first and last since damage
        self._met_damage = self._is_doubtful = self._reader.damaged > 0
        self._damaged = self._reader.damaged  # of its packets, those that are noted or came before the first picture
        self._backlog = Backlog(pipe) if pipe is not None else None
        self._frames = ReadOnce(self._deliver(first_bgr), label)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def start_s(self) -> float | None:
        """See `source.Source`."""
        return self._clock.start_s

    def close(self) -> None:
        """Stop the iteration, in whichever thread it runs, and let go of the file."""
        self._stopped.set()
        self._frames.close()
        self._reader.close()

    def _deliver(self, bgr: UInt8) -> Generator[Frame, None, None]:
        self._reader.peek(1)  # the clock asks for it at the first picture, which must not be late for that
        pace = Pace(backlog=self._backlog)
        index, end_s = 0, 0.0
        picture = self._reader.first
        while picture is not None:
            time_s = self._clock.time_of(picture, self._reader.peek)
            place = f"frame {index + 1} ({time_s:.3f} s)"
            if picture.is_corrupt:
                self._met_damage = True
                self._faults.note(place, DAMAGED)
            self._doubt(picture, index, time_s)
            if self._to_bgr.changed:
                self._faults.note(place, self._to_bgr.changed)
            if self._in_pieces and picture.key_frame and time_s - end_s > PIECE_S:
                self._faults.note(place, f"nothing came from {end_s:.3f} s to here, pieces of the list may be missing")
            length_s = lasts_s(picture, self.rate)
            end_s, due_s = time_s + length_s, pace.due_s(time_s, length_s)
            if self.live and self._stopped.wait(due_s - time.perf_counter()):
                return
            yield Frame(index, time_s, time.perf_counter(), bgr)
            index += 1
            try:
                picture = self._read(index)
                if picture is not None:
                    bgr = self._to_bgr(picture)
            except av.FFmpegError as error:
                if self._length_s is None or self._length_s - end_s >= length_s:
                    raise SourceError(f"{self._place(index, time_s)}: {why(error)}; {_KEPT}") from error
                picture = None  # as from a server that closes the connection for an end
        self._name_doubtful()
        if not self._stopped.is_set():
            self._check_whole(index, time_s, end_s)

    def _doubt(self, picture: VideoFrame, index: int, time_s: float) -> None:
        """Keep in mind which pictures are built on what was lost: those after damage that are none of their own."""
        if picture.key_frame:
            self._name_doubtful()
        elif self._is_doubtful:
            self._doubtful = (*self._doubtful[:1], (index, time_s))
        self._is_doubtful = picture.is_corrupt or (self._is_doubtful and not picture.key_frame)

    def _name_doubtful(self) -> None:
        if self._doubtful:
            (first, began_s), (last, ended_s) = self._doubtful[0], self._doubtful[-1]
            self._faults.note(f"frames {first + 1} to {last + 1} ({began_s:.3f} to {ended_s:.3f} s)", DOUBTFUL)
            self._doubtful = ()

    def _read(self, index: int) -> VideoFrame | None:
        picture = self._reader.read()
        for _ in range(self._reader.damaged - self._damaged):
            self._met_damage = self._is_doubtful = True
            self._faults.note(f"packet after frame {index}", self._reader.reason)
        self._damaged = self._reader.damaged
        return picture

    def _check_whole(self, index: int, time_s: float, end_s: float) -> None:
        if self._shortage:
            raise SourceError(f"{self._place(index, time_s)}: {self._shortage}; {_KEPT}")
        if self._reader.damaged_in_a_row:
            raise SourceError(f"{self._place(index, time_s)}: {self._reader.reason}; {_KEPT}")
        if self._ends_early(end_s):
            found = "its list is" if self._in_pieces else "it is damaged, and"
            raise SourceError(f"{self._place(index, time_s)}: {found} {self._length_s:.1f} s long; {_KEPT}")

    def _ends_early(self, end_s: float) -> bool:
        """Whether pictures are missing at the end.

        A length alone is no proof: some recorders write what they please, and the last picture may stand
        still for long. Damage must have been met, or much of the file behind the last picture not been understood. But
        in a list of pieces what cannot be fetched is left out without a word, and each piece has its length.
        """
        if self._length_s is None or self._length_s - end_s <= max(MISSING_S, MISSING * self._length_s):
            return False
        return self._in_pieces or self._met_damage or self._reader.unread > MISSING

    def _place(self, index: int, time_s: float) -> str:
        return f"{self._label}: breaks off after frame {index} ({time_s:.3f} s)"


class LiveSource:
    """A camera or stream: frames as they come, timed by the clock on the wall.

    `time_s` is seconds since the first frame, by the clock, whatever the time stamps say. What comes in pieces (HLS,
    DASH), many pictures at once, is given and timed by its stamps from the first picture on instead. When the device or
    the connection is lost, it is opened again a limited number of times; the frames' numbers and times go on. A list
    then begins with pieces that have been given before: they are left out, and one with nothing newer counts as lost.

    Attributes:
        failed: (place, reason) of each damaged packet, which was left out, of each damaged picture, which was not, of
            each picture from which on they have another aspect, and of each loss after which the source was opened
            again: the first hundred, then the last, with how many there are between.
        See `source.Source` for the rest.

    Args:
        container: the opened camera or stream; will be closed by the source.
        reopen: opens it again; None where it has been completed meanwhile and is at its end; raises SourceError or
            av.FFmpegError when that fails.
        label: the source's name in messages.
        name: the stem of output files.
        kind: what it is.
        retry: how often to open it again; None where an end is an end.
        by_stamps: it goes by its time stamps.
        pipe: that the container is read from; will be closed, too.
    Raises:
        SourceError: there is no video in it, or not one frame.
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
        self._faults = _Faults(live=True)
        self.failed = self._faults.listed
        self._reopen, self._label, self._retry, self._by_stamps = reopen, label, retry, by_stamps
        self._stopped = threading.Event()
        self.size: tuple[int, int] | None = None
        self._given_s: float | None = None  # stamp of the last picture that was given by it
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
        """Stop the iteration, in whichever thread it runs, and let go of the device.

        Waits for a read that is under way, which ends at the latest with the device's read time-out.
        """
        self._stopped.set()
        self._frames.close()
        self._reader.close()

    def _connect(self, container: InputContainer) -> None:
        """Take the first picture of a newly opened container; what is damaged before it began before we came."""
        reader = Reader(container, self._label, live=True, pipe=self._pipe)
        self._to_bgr, self._bgr = first_picture(reader, self._label, self.size)
        self._reader, self._picture = reader, reader.first
        while self._was_given():
            if self._advance():
                reader.close()
                raise SourceError("nothing newer came")
        self._damaged = reader.damaged

    def _was_given(self) -> bool:
        """Whether the present picture, of a connection that begins, was given before the loss, by its stamp."""
        stamp_s = None if self._picture is None else self._picture.time
        return self._given_s is not None and stamp_s is not None and 0 <= self._given_s - stamp_s < AGAIN_S

    def _begin_clock(self, time_s: float) -> None:
        """Give the first picture of a connection its time; those that follow go by it, if by any stamps at all."""
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
        """Give the present picture its time, when that has come; False where the source was closed meanwhile."""
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
        """Note what is wrong with the picture that is about to be given, and what was left out before it."""
        for _ in range(self._reader.damaged - self._damaged):
            self._faults.note(f"packet after frame {index}", self._reader.reason)
        self._damaged = self._reader.damaged
        place = f"frame {index + 1} ({self._time_s:.3f} s)"
        if self._picture is not None and self._picture.is_corrupt:
            self._faults.note(place, DAMAGED)
        if self._to_bgr.changed:
            self._faults.note(place, self._to_bgr.changed)

    def _advance(self) -> str:
        """Take the next picture; the answer is "" or why there is none."""
        try:
            self._picture = self._reader.read()
            if self._picture is None:
                return "it ended"
            self._bgr = self._to_bgr(self._picture)
        except av.FFmpegError as error:
            return why(error)
        return ""

    def _connect_again(self, index: int, reason: str) -> bool:
        """Open a lost source again; False where it is at its end or was closed."""
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
                        self._faults.note(after, f"lost, {lost}; what came until it was completed is not read")
                    return False
                self._connect(container)
            except (SourceError, av.FFmpegError) as error:
                reason = why(error)
            else:
                away_s = time.perf_counter() - self._taken_s
                self._faults.note(after, f"lost, {lost}; opened again, nothing came for {away_s:.1f} s")
                if self._picture is self._reader.first:  # else its stamps go on where they were
                    self._begin_clock(self._time_s + away_s)
                self._pace = Pace(in_pieces=True)
                return self._still_wanted()
        times = counted(retry.attempts, "time")
        tried = f"; tried {times} to open it again, check device or network" if retry.attempts else ""
        raise SourceError(f"{place}: {reason}{tried}")

    def _still_wanted(self) -> bool:
        """Whether `close` came while the source was being opened again; it could not close what was not there."""
        if self._stopped.is_set():
            self._reader.close()
        return not self._stopped.is_set()
