"""Smoothing of recordings in hindsight: results wait until enough of what follows them is known.

`look_back` stands between a pipeline that leaves landmarks as measured and the sinks. Results keep their order and
number. Memory does not grow with the recording: only points wait, not pictures.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..tracker.errors import SourceError
from ..tracker.geometry import longer_side
from ..tracker.rts import RtsSmoother
from ..tracker.smooth import SmootherSettings
from ..tracker.types import Face, Float32, Frame, Result
from ..tracker.views import face_box

LOOK_AHEAD_S = 2.0  # `benchmarks/smoothing.py`: jitter 0.041 px; 0.044 with 1 s, 0.040 with all that follows
BLOCK = 16  # results given at once, all smoothed by the same backward pass
MOST_WAITING = 1024  # results, if times do not advance as they should


@dataclass(slots=True)
class _Waiting:
    """A result without its picture, and the smoother that holds each of its faces."""

    result: Result
    smoothers: tuple[RtsSmoother, ...]


def look_back(results: Iterable[Result], settings: SmootherSettings) -> Generator[Result, None, None]:
    """Smooth the faces of a recording with what comes before and, for `LOOK_AHEAD_S`, after.

    Args:
        results: of a pipeline with `smooth="none"`, which leaves the points as measured.
        settings: of the filter; those of the network that measured, see `open.smoother_settings`.
    Yields:
        The results in their order; their frames are black, see `with_pictures`.
    Raises:
        Whatever `results` raised, after all results before it.
    """
    book, source = _Book(settings), iter(results)
    while True:
        try:
            result = next(source)
        except StopIteration:
            break
        except (Exception, KeyboardInterrupt):
            yield from book.take_all()  # the rows before the failing frame are complete
            raise
        book.add(result)  # an interrupt from here on may have cost results, so no later ones may follow
        while book.ready:
            yield from book.take(BLOCK)
    yield from book.take_all()


def with_pictures(results: Iterable[Result], frames: Iterable[Frame]) -> Generator[Result, None, None]:
    """Give results their pictures back, from a second reading of the same recording.

    Raises:
        SourceError: the recording has changed since the first reading.
    """
    pictures = iter(frames)
    for result in results:
        frame = next(pictures, None)
        if frame is None or (frame.index, frame.size) != (result.frame.index, result.frame.size):
            wanted = result.frame.index + 1
            raise SourceError(
                f"second reading: wanted frame {wanted}, got another; did the recording change meanwhile?"
            )
        yield replace(result, frame=frame)


class _Book:
    """The results that wait, and the smoothers of the faces that are in the picture."""

    def __init__(self, settings: SmootherSettings) -> None:
        self._settings = settings
        self._waiting: deque[_Waiting] = deque()
        self._smoothers: dict[int, RtsSmoother] = {}

    def add(self, result: Result) -> None:
        """Add a result to those that wait."""
        began_s = time.perf_counter()
        present = {face.track: self._feed(result.frame.time_s, face) for face in result.faces}
        self._smoothers = present  # a track that comes back later starts again
        spans_s = {**result.spans_s, "smooth": result.spans_s.get("smooth", 0.0) + time.perf_counter() - began_s}
        stripped = replace(result, frame=_without_picture(result.frame), spans_s=spans_s)
        self._waiting.append(_Waiting(stripped, tuple(present.values())))

    @property
    def ready(self) -> bool:
        """Whether the oldest block can go."""
        if len(self._waiting) <= BLOCK:
            return False
        known_s = self._waiting[-1].result.frame.time_s - self._waiting[BLOCK - 1].result.frame.time_s
        return known_s >= LOOK_AHEAD_S or len(self._waiting) >= MOST_WAITING

    def take(self, count: int) -> Iterator[Result]:
        """Give the oldest results, smoothed, and forget them."""
        began_s = time.perf_counter()
        block = [self._waiting.popleft() for _ in range(count)]
        frames = Counter(smoother for waiting in block for smoother in waiting.smoothers)
        points = {smoother: iter(zip(*smoother.take(n), strict=True)) for smoother, n in frames.items()}
        each_s = (time.perf_counter() - began_s) / max(count, 1)
        for waiting in block:
            result, spans_s = waiting.result, dict(waiting.result.spans_s)
            spans_s["smooth"] += each_s
            pairs = zip(result.faces, waiting.smoothers, strict=True)
            faces = tuple(_placed(face, *next(points[smoother])) for face, smoother in pairs)
            yield replace(result, faces=faces, spans_s=spans_s)

    def take_all(self) -> Iterator[Result]:
        """Give all results that wait: nothing follows."""
        return self.take(len(self._waiting))

    def _feed(self, time_s: float, face: Face) -> RtsSmoother:
        smoother = self._smoothers.get(face.track)
        if smoother is None:
            smoother = RtsSmoother(self._settings, len(face.smoothed))
        if face.measured is None:
            smoother.coast(time_s)
        else:
            smoother.update(time_s, face.measured.xy, face.measured.score, longer_side(face.box))
        return smoother


def _placed(face: Face, xy: Float32, speed: Float32) -> Face:
    return replace(face, box=face_box(xy), smoothed=xy, speed=speed)


def _without_picture(frame: Frame) -> Frame:
    """The same frame, black: a picture of the same size that takes no memory."""
    return replace(frame, bgr=np.broadcast_to(np.uint8(0), frame.bgr.shape))
