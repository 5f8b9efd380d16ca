"""When each picture of a stream is to be seen: its stamps, which may be wrong, as seconds that rise."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import cast

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .pipe import Backlog

LEAP_PERIODS = 4  # a time stamp further ahead than so many frames is believed if the next one does not take it back
LONGEST_PAUSE_S = 12 * 3600  # a longer one is none: the clock was set anew, or it is the first stamp that is wrong
STAMPS_AHEAD = 16  # so far is looked for the end of a run of equal stamps; each holds a decoded picture
FITTING = 0.6  # of a period: where equal stamps have no more room than this, some pictures came too fast
LEAP_S = 1.0  # stamps that leave so much out are not waited for: nobody sees a picture that is due in an hour
FASTER = 0.1  # of a picture's length is left out to make up for a delay
LEARNT = 4  # times a lateness that would soon come again is allowed for; one of a busy machine is some milliseconds
NO_STAMPS = 0x0080  # FFmpeg's AVFMT_NOTIMESTAMPS
UNKNOWN_RATE = Fraction(25)  # FFmpeg's own assumption for streams that carry no rate


def has_stamps(container: InputContainer) -> bool:
    """Whether its format has time stamps; raw H.264 and HEVC and MJPEG have none, and FFmpeg invents some."""
    return not container.format.flags & NO_STAMPS


def mean_rate(stream: VideoStream) -> Fraction | None:
    """Frames per second; None where the file does not say and FFmpeg cannot guess.

    Where there are no time stamps FFmpeg says 25, whatever the pictures' own codec says.
    """
    if not has_stamps(cast(InputContainer, stream.container)):
        return stream.codec_context.framerate or None
    return stream.average_rate or stream.guessed_rate or None


def lasts_s(picture: VideoFrame, rate: Fraction | None) -> float:
    """Seconds for which a picture is shown: many, of the last one of a recorded screen."""
    return max(float(1 / (rate or UNKNOWN_RATE)), float(picture.duration * (picture.time_base or 0)))


class Pace:
    """When pictures are due by their stamps, by `time.perf_counter`: those of the time 0 are when it is made.

    Args:
        in_pieces: they come many at once, a piece of a list with each. One that comes late moves all others with it:
            those that came in the same piece must not come at once, nor the next piece late again. What was lost so to
            one that was held up for more than a second is made up for afterwards.
        backlog: of the pipe that they come through. One that has waited there is due at once, and those that follow go
            by it.
    """

    def __init__(self, *, in_pieces: bool = False, backlog: Backlog | None = None) -> None:
        self._began_s, self._in_pieces, self._backlog = time.perf_counter(), in_pieces, backlog
        self._least_s = self._began_s  # what the delay may fall back to
        self._end_s = 0.0  # of the last picture, by the stamps

    def due_s(self, time_s: float, length_s: float) -> float:
        """When the next picture is due.

        One whose stamp leaves out a second or more behind the end of the one before it is due then: as long as nothing
        else is told, what is live has only changed its clock.

        Args:
            time_s: by its stamp.
            length_s: for which it is shown.
        """
        gap_s, now_s = time_s - self._end_s, time.perf_counter()
        if gap_s > LEAP_S:
            if self._in_pieces:  # as much of it as is not over: the sender may have paused
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
        """Move all pictures with one that is late; else make up for that, until one is a little late again."""
        if late_s > 0:
            self._began_s += late_s
            if late_s <= LEAP_S:
                self._least_s = min(self._began_s, self._least_s + LEARNT * late_s)
        else:
            self._began_s = max(self._least_s, self._began_s - FASTER * length_s)


class MediaClock:
    """Seconds since a stream's start from its presentation time stamps, always rising (see VideoSource).

    A stamp is judged by those before it, and a doubtful one by the next:

    | stamp | the picture's time |
    |---|---|
    | missing | a period after the last |
    | that of the picture before | up to a period after the last, as the next other stamp has room; else a tick |
    | behind the newest (a glitch, or out of order) | a tick after the last, until the clock is caught up with |
    | the second newest, or before (a new clock) | a period after the last; the new clock goes on from there |
    | half a day ahead (a new clock, of a recorder that has asked the network for the time) | the same |
    | the same, or a leap ahead, that the next one takes back | as if it were missing |
    | the first, half a day before the next two, or a few pictures behind | it counts as a step before the second |

    Recorders that stamp a burst of pictures at once give them one stamp. Speeds are read from these times: pictures
    that follow each other at no interval, and then a pause in which nothing has moved further than in any other, would
    throw points far off.

    AVI files have none: FFmpeg counts their packets, which B-frames put into another order than their pictures, and a
    decoder's delay comes on top. The stamps of decoding rise, and count from the first picture.
    """

    def __init__(self, stream: VideoStream, container_format: str = "") -> None:
        """Start a clock.

        Args:
            stream: whose pictures come.
            container_format: FFmpeg's name of it.
        """
        base = stream.time_base or Fraction(1, 90_000)
        self._numerator, self._denominator = base.numerator, base.denominator
        self._tick_s = max(float(base), 1e-6)  # a CSV time stamp has six decimals
        self._period_s = float(1 / (mean_rate(stream) or UNKNOWN_RATE))
        self._by_decoding = container_format == "avi"
        self._period = self._period_s / float(base)  # in the stamps' unit
        self._start = None if self._by_decoding else stream.start_time
        self._last_s: float | None = None
        self._shift_s = 0.0
        self._newest: int | None = None  # stamp of the present clock
        self._second: float = 0.0  # newest before it

    @property
    def start_s(self) -> float | None:
        """The stream's own time stamp, in seconds, of the time 0; None where it has none. Right from `time_of` on."""
        return None if self._start is None else self._start * self._numerator / self._denominator

    def time_of(self, picture: VideoFrame, following: Callable[[int], VideoFrame | None]) -> float:
        """Give the time of the next picture in seconds; one call per picture, in order.

        Args:
            picture: the next one.
            following: gives the one so many pictures behind the one after it, if there is one; asked for the second and
                third stamp, and where a stamp leaps ahead, falls back or is that of the picture before.
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
        """Whether it leaps ahead, or falls so far back that it may be of a new clock."""
        if self._newest is None:
            return False
        return stamp <= self._second or stamp - self._newest > LEAP_PERIODS * self._period

    def _is_taken_back(self, stamp: int, following: VideoFrame | None) -> bool:
        """Whether the stamp after it is nearer to the one before."""
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
        """What a wrong first stamp should be by the two after it; None where it is not wrong."""
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
        """Whether a step is too long for a pause of pictures that are usually so many ticks apart."""
        return ticks * self._numerator / self._denominator > LONGEST_PAUSE_S and ticks > LEAP_PERIODS * usual

    def _begin(self, stamp: int) -> None:
        """Take a stamp for the first one of a clock."""
        self._newest, self._second = stamp, stamp - self._period

    def _stamp_s(self, stamp: int) -> float:
        return (stamp - (self._start or 0)) * self._numerator / self._denominator + self._shift_s
