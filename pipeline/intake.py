"""The intake of a pipeline: frames are checked before any work is spent on them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from ..tracker.smooth import SmootherSettings
from ..tracker.types import Frame

log = logging.getLogger(__name__)

LONGEST_STEP_S = SmootherSettings().restart_gap_s  # nothing is smoothed over a longer one
LEAPS = 10  # longer steps in a row: a caller's times are not in seconds, or its frames not of one video


def check_frames(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Pass the frames on; warn once about times that prevent smoothing.

    Raises:
        ValueError: an item is not a `Frame`.
    """
    times = _Times(sourced=hasattr(frames, "kind"))
    for frame in frames:
        check_frame(frame)
        times.look_at(frame)
        yield frame


def check_frame(frame: object) -> None:
    """Refuse anything but a frame.

    Raises:
        ValueError: it is not a `Frame`.
    """
    if not isinstance(frame, Frame):
        raise ValueError(  # noqa: TRY004 - as for any other wrong value
            f"frames: wanted Frame, got {type(frame).__name__}; make a Frame(index, time_s, taken_s, bgr) of each "
            "picture, or pass a single picture to Engines.detect"
        )


class _Times:
    """Checks how times advance, and warns once: a caller's clock may be wrong, and then nothing is smoothed.

    Args:
        sourced: the frames come from a `Source`, whose times are in seconds: a time lapse may have a frame per hour.
    """

    def __init__(self, *, sourced: bool) -> None:
        self._sourced = sourced
        self._last_s: float | None = None
        self._leaps = 0
        self._has_warned = False

    def look_at(self, frame: Frame) -> None:
        """Compare a frame's time with that of the one before."""
        last_s, self._last_s = self._last_s, frame.time_s
        if last_s is None or self._has_warned:
            return
        step_s = frame.time_s - last_s
        self._leaps = self._leaps + 1 if step_s > LONGEST_STEP_S else 0
        if step_s <= 0:
            self._warn(frame, f"is {frame.time_s:g} after {last_s:g}")
        elif self._leaps == LEAPS and not self._sourced:
            self._warn(
                frame, f"has jumped by more than {LONGEST_STEP_S:g} s {LEAPS} times in a row; is it in milliseconds?"
            )

    def _warn(self, frame: Frame, what: str) -> None:
        self._has_warned = True
        log.warning(
            "frame %d: time_s %s: wanted increasing seconds; without them nothing is smoothed", frame.index + 1, what
        )
