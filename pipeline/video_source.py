"""Frames from any recording that FFmpeg opens, timed by the recording's own clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Self

import av
from av.container import InputContainer
from av.video.frame import VideoFrame

from ..tracker.errors import SourceError
from ..tracker.types import Frame, UInt8
from .pipe import Backlog, Pipe
from .source import DAMAGED, Faults, Kind, ReadOnce
from .video_clock import UNKNOWN_RATE, MediaClock, Pace, lasts_s, mean_rate
from .video_reader import Reader, declared_length_s, expected_frames, first_picture, why

MISSING_S, MISSING = 1.0, 0.1  # a recording that ends early by this much, and by this share of its length, is truncated
PIECE_S = 0.9  # segments of a playlist are longer
DOUBTFUL = "follow damage without a key frame, may show what was there before"
_KEPT = "the frames before that are good, copy or record it again for the rest"


class VideoSource:
    """A recording: every frame, timed by its presentation timestamps.

    `time_s` is seconds since the start of the video stream, where its first frame usually is, and always increases:

    - A frame without a timestamp comes one frame period after the one before it.
    - Frames with the same stamp are spread over the time up to the next stamp, if that is long enough.
    - Otherwise they are placed one tick after the last, as is any stamp that does not increase.
    - A stamp that falls back to the second newest or further, or leaps ahead by half a day, starts a new clock that
      continues where the old one ended.
    - A stamp that leaps ahead, and from which the next one returns, counts as missing. A first one half a day before
      all others is corrected. `video_clock.MediaClock` has the details.

    Alpha is dropped, 10 bits become 8, pixels that are not square are made square, and the container's display matrix
    is applied (the nearest of its eight right-angled rotations and reflections): faces look as they did to the
    photographer.

    Attributes:
        failed: (place, reason) of each damaged packet, which was skipped; of each damaged picture, which was kept; of
            the pictures from there to the next key frame, which depend on what was lost; of each picture from which on
            the aspect differs; and of each picture before which segments of a playlist seem to be missing. In real
            time, the first hundred and the latest, with the number of those between.
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
            kind: see `source.Source`.
            realtime: deliver each frame at its own time, as a camera would; a leap of the stamps is not waited for.
            shortage: a message about bytes missing at the file's end; "" if it is complete.
            pipe: the one that the container is read from; will be closed, too. In real time, pictures that wait in it
                are given at once, and those that follow when they are due.
        Raises:
            SourceError: it holds no video, or not a single frame.
        """
        self.name, self.kind, self.live = name, kind, realtime
        self._faults = Faults(live=realtime)
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
        self._damaged = self._reader.damaged  # damaged packets that are noted or came before the first picture
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
        """Stop the iteration, in whichever thread it runs, and release the file."""
        self._stopped.set()
        self._frames.close()
        self._reader.close()

    def _deliver(self, bgr: UInt8) -> Generator[Frame, None, None]:
        self._reader.peek(1)  # the clock needs it at the first picture, which must not be late because of that
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
                self._faults.note(
                    place, f"nothing came from {end_s:.3f} s to here, segments of the playlist may be missing"
                )
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
                if not self._is_closed_for_end(end_s):
                    raise SourceError(f"{self._place(index, time_s)}: {why(error)}; {_KEPT}") from error
                picture = None
        self._name_doubtful()
        if not self._stopped.is_set():
            self._check_whole(index, time_s, end_s)

    def _is_closed_for_end(self, end_s: float) -> bool:
        """Whether an error is the end, which a server that gives no size marks by closing the connection.

        Exactly what the header or the playlist declares must have arrived. If more has, it may declare only the first
        fragment.
        """
        if self._length_s is None or (self._reader.knows_size and not self._in_pieces):
            return False
        return abs(self._length_s - end_s) < 1 / (self.rate or UNKNOWN_RATE)

    def _doubt(self, picture: VideoFrame, index: int, time_s: float) -> None:
        """Remember which pictures depend on what was lost: those after damage, up to the next key frame."""
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
            found = "its playlist is" if self._in_pieces else "it is damaged, and should be"
            raise SourceError(f"{self._place(index, time_s)}: {found} {self._length_s:.1f} s long; {_KEPT}")

    def _ends_early(self, end_s: float) -> bool:
        """Whether pictures are missing at the end.

        The declared length alone is no proof: some recorders write arbitrary ones, and the last picture may be shown
        for long. In addition, there must have been damage, or much of the file after the last picture must have been
        left unread. In a playlist the length suffices: each segment states its own, and FFmpeg silently skips those
        that it cannot fetch.
        """
        if self._length_s is None or self._length_s - end_s <= max(MISSING_S, MISSING * self._length_s):
            return False
        return self._in_pieces or self._met_damage or self._reader.unread > MISSING

    def _place(self, index: int, time_s: float) -> str:
        return f"{self._label}: breaks off after frame {index} ({time_s:.3f} s)"
