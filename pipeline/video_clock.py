"""When each picture of a stream is due: its timestamps, which may be wrong, as increasing seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import cast

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .pipe import Backlog

LEAP_PERIODS = 4  # a timestamp more than this many frames ahead is accepted unless the next one falls back
LONGEST_PAUSE_S = 12 * 3600  # a longer gap is not a pause: the clock was reset, or the first stamp is wrong
STAMPS_AHEAD = 16  # how far to look for the end of a run of equal stamps; each holds a decoded picture
FITTING = 0.6  # of a period: if equal stamps have no more room than this, some pictures came too fast
LEAP_S = 1.0  # longer gaps in the stamps are not waited for: nobody would see a picture that is due in an hour
FASTER = 0.1  # share of a picture's duration that is skipped to make up for a delay
LEARNT = 4  # multiple of a delay that is allowed for, as it may recur; a busy machine's is some milliseconds
NO_STAMPS = 0x0080  # FFmpeg's AVFMT_NOTIMESTAMPS
UNKNOWN_RATE = Fraction(25)  # FFmpeg's own assumption for streams that carry no rate


def has_stamps(container: InputContainer) -> bool:
    """Whether its format has timestamps; raw H.264, HEVC and MJPEG have none, and FFmpeg invents some."""
    return not container.format.flags & NO_STAMPS


def mean_rate(stream: VideoStream) -> Fraction | None:
    """Frames per second; None if the file does not say and FFmpeg cannot guess.

    Without timestamps, the codec's own rate counts: FFmpeg reports 25 whatever it is.
    """
    if not has_stamps(cast(InputContainer, stream.container)):
        return stream.codec_context.framerate or None
    return stream.average_rate or stream.guessed_rate or None


def lasts_s(picture: VideoFrame, rate: Fraction | None) -> float:
    """Seconds for which a picture is shown; for the last one of a screen recording, these may be many."""
    return max(float(1 / (rate or UNKNOWN_RATE)), float(picture.duration * (picture.time_base or 0)))


class Pace:
    """When pictures are due by `time.perf_counter`, from their stamps: time 0 is due when this is created.

    Args:
        in_pieces: many pictures arrive at once, with each segment of a playlist. A late one delays all that follow:
            those of the same segment must not come all at once, nor the next segment late again. A delay of more than a
            second is made up for afterwards.
        backlog: of the pipe that they come through. A picture that has waited there is due at once, and those that
            follow are timed from it.
    """

    def __init__(self, *, in_pieces: bool = False, backlog: Backlog | None = None) -> None:
        self._began_s, self._in_pieces, self._backlog = time.perf_counter(), in_pieces, backlog
        self._least_s = self._began_s  # limit for making up for delays
        self._end_s = 0.0  # of the last picture, by the stamps

    def due_s(self, time_s: float, length_s: float) -> float:
        """When the next picture is due.

        If its stamp is more than a second after the end of the picture before, it is due at that end: unless there is
        evidence to the contrary, a live source has only changed its clock.

        Args:
            time_s: its time by its stamp.
            length_s: how long it is shown.
        """
        gap_s, now_s = time_s - self._end_s, time.perf_counter()
        if gap_s > LEAP_S:
            if self._in_pieces:  # the part of it that is still to come: the sender may have paused
                gap_s = min(gap_s, max(0.0, self._began_s + time_s - now_s))
            self._began_s -= gap_s
            self._least_s -= gap_s
        self._end_s = time_s + length_s
        if self._in_pieces:
            self._keep_up(now_s - time_s - self._began_s, length_s)
        if self._backlog is not None and self._backlog.holds(time_s, self._began_s + time_s, now_s):
            self._began_s = now_s - time_s
        return self._began_s + time_s

    def _keep_up(self, late_s: float, length_s: float) -> None:
        """Delay all pictures with a late one; otherwise make up for that, until one is a little late again."""
        if late_s > 0:
            self._began_s += late_s
            if late_s <= LEAP_S:
                self._least_s = min(self._began_s, self._least_s + LEARNT * late_s)
        else:
            self._began_s = max(self._least_s, self._began_s - FASTER * length_s)


class MediaClock:
    """Seconds since a stream's start from its presentation timestamps, always increasing (see VideoSource).

    A stamp is judged by those before it, and a doubtful one also by the next:

    | stamp | the picture's time |
    |---|---|
    | missing | a period after the last |
    | equal to the one before | up to a period after the last if the next different stamp leaves room; else a tick |
    | older than the newest (a glitch, or out of order) | a tick after the last, until the stamps have caught up |
    | the second newest, or older (a new clock) | a period after the last; the new clock continues from there |
    | half a day ahead (a new clock, of a recorder that got the time from the network) | the same |
    | either of these two, or a leap ahead, from which the next stamp returns | as if it were missing |
    | the first, half a day before the next two or a few pictures after them | one step before the second |

    Recorders that stamp a burst of pictures at once give them the same stamp. Speeds are computed from these times:
    pictures without an interval between them, followed by a pause in which nothing moved further than usual, would
    throw points far off.

    AVI files have no presentation timestamps: FFmpeg counts their packets, whose order differs from that of the
    pictures where there are B-frames, and adds the decoder's delay. For AVI the decoding timestamps are used: they
    increase, and count from the first picture.
    """

    def __init__(self, stream: VideoStream, container_format: str = "") -> None:
        """Start a clock.

        Args:
            stream: the pictures' stream.
            container_format: FFmpeg's name of the container's format.
        """
        base = stream.time_base or Fraction(1, 90_000)
        self._numerator, self._denominator = base.numerator, base.denominator
        self._tick_s = max(float(base), 1e-6)  # a CSV timestamp has six decimals
        self._period_s = float(1 / (mean_rate(stream) or UNKNOWN_RATE))
        self._by_decoding = container_format == "avi"
        self._period = self._period_s / float(base)  # in the stamps' unit
        self._start = None if self._by_decoding else stream.start_time
        self._last_s: float | None = None
        self._shift_s = 0.0
        self._newest: int | None = None  # stamp of the current clock
        self._second: float = 0.0  # newest before it

    @property
    def start_s(self) -> float | None:
        """The stream's own timestamp, in seconds, at time 0; None if it has none. Correct after the first `time_of`."""
        return None if self._start is None else self._start * self._numerator / self._denominator

    def time_of(self, picture: VideoFrame, following: Callable[[int], VideoFrame | None]) -> float:
        """Give the time of the next picture in seconds; one call per picture, in order.

        Args:
            picture: the next one.
            following: returns a picture that follows, 0 for the next one, or None if there is none; called for the
                second and third stamps, and where a stamp leaps ahead, falls back or equals the one before.
        """
        stamp = self._stamp(picture)
        if self._last_s is None:
            self._last_s = self._first(stamp, following)
        elif stamp is not None and stamp == self._newest:
            self._last_s += self._step(stamp, self._last_s, following)
        else:
            wild = stamp is not None and self._is_doubtful(stamp) and self._is_taken_back(stamp, following(0))
            self._last_s = self._next(None if wild else stamp, self._last_s)
        return self._last_s

    def _stamp(self, picture: VideoFrame) -> int | None:
        return picture.dts if self._by_decoding else picture.pts

    def _is_doubtful(self, stamp: int) -> bool:
        """Whether a stamp leaps ahead, or falls so far back that it may be of a new clock."""
        if self._newest is None:
            return False
        return stamp <= self._second or stamp - self._newest > LEAP_PERIODS * self._period

    def _is_taken_back(self, stamp: int, following: VideoFrame | None) -> bool:
        """Whether the stamp of the following picture is nearer to the newest one before than to this one."""
        after = None if following is None else self._stamp(following)
        return after is not None and self._newest is not None and abs(stamp - after) > abs(after - self._newest)

    def _first(self, stamp: int | None, following: Callable[[int], VideoFrame | None]) -> float:
        if stamp is None:
            return 0.0
        expected = self._expected_first(stamp, following)
        if expected is not None:
            stamp = self._start = expected
        if self._start is None or self._start > stamp:
            self._start = stamp
        self._begin(stamp)
        return self._stamp_s(stamp)

    def _expected_first(self, stamp: int, following: Callable[[int], VideoFrame | None]) -> int | None:
        """What a wrong first stamp should be, judging by the two after it; None if it is not wrong."""
        second, third = (None if picture is None else self._stamp(picture) for picture in (following(0), following(1)))
        if second is None or third is None or third <= second:
            return None
        step = third - second
        behind = stamp - second > LEAP_PERIODS * step
        return second - step if behind or self._is_no_pause(second - stamp, step) else None

    def _step(self, stamp: int, last_s: float, following: Callable[[int], VideoFrame | None]) -> float:
        """Seconds from the last picture to this one, which has the same stamp."""
        for ahead in range(STAMPS_AHEAD):
            picture = following(ahead)
            after = None if picture is None else self._stamp(picture)
            if picture is None or (after is not None and after != stamp):
                break
        else:
            return self._period_s  # too many for a burst: the clock stands still
        if after is None:
            return self._period_s
        room_s = (self._stamp_s(after) - last_s) / (ahead + 2)
        return min(room_s, self._period_s) if room_s > FITTING * self._period_s else self._tick_s

    def _next(self, stamp: int | None, last_s: float) -> float:
        if stamp is None:
            return last_s + self._period_s
        if self._newest is None and self._start is None:
            self._start, self._shift_s = stamp, last_s + self._period_s
        if self._newest is None:
            self._begin(stamp)
        elif stamp <= self._second or self._is_no_pause(stamp - self._newest, self._period):
            self._shift_s += last_s + self._period_s - self._stamp_s(stamp)
            self._begin(stamp)
        elif stamp > self._newest:
            self._newest, self._second = stamp, self._newest
        return max(self._stamp_s(stamp), last_s + self._tick_s)

    def _is_no_pause(self, ticks: int, usual: float) -> bool:
        """Whether a step is too long for a pause between pictures that are usually this many ticks apart."""
        return ticks * self._numerator / self._denominator > LONGEST_PAUSE_S and ticks > LEAP_PERIODS * usual

    def _begin(self, stamp: int) -> None:
        """Take a stamp as the first one of a clock."""
        self._newest, self._second = stamp, stamp - self._period

    def _stamp_s(self, stamp: int) -> float:
        return (stamp - (self._start or 0)) * self._numerator / self._denominator + self._shift_s
