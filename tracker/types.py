"""The values that travel through the pipeline: frozen, with shapes checked on construction and read-only arrays.

One convention everywhere: points are (x, y) float32 in frame pixels, x to the right, y down, and (0, 0) is the
centre of the top-left pixel. Boxes are (x1, y1, x2, y2). Sizes are (height, width). Pictures are uint8 BGR. `repr`
omits pixels and points. Values compare by identity, not by the contents of their arrays, so that they can be searched
for in tuples and kept in sets.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]


class State(StrEnum):
    """The state of a track's face in this frame: new, measured, or extrapolated without a measurement."""

    NEW = "new"
    TRACKED = "tracked"
    COASTING = "coasting"


def frozen_array(values: Any, shape: tuple[int | None, ...], what: str, dtype: Any = np.float32) -> NDArray[Any]:
    """Return a read-only array of the given dtype; None in `shape` stands for any length.

    Raises:
        ValueError: the shape differs; the message names wanted and got.
    """
    array = np.ascontiguousarray(values, dtype)
    if (array is values or array.base is not None) and _may_change(array):  # a memory map gives a view
        array = array.copy()
    fits = array.ndim == len(shape) and all(w is None or w == g for w, g in zip(shape, array.shape, strict=False))
    if not fits:
        wanted = ", ".join("*" if n is None else str(n) for n in shape)
        raise ValueError(f"{what}: wanted shape ({wanted}), got {array.shape}")
    array.flags.writeable = False
    return array


def _may_change(array: Any) -> bool:
    """Whether an array, or an array that it is a view of, is writeable."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return True
        array = array.base
    return False


def checked_picture(bgr: Any, what: str) -> UInt8:
    """Return `bgr` unchanged if it is a picture.

    Raises:
        ValueError: it is not; the message says what was wanted.
    """
    wanted = f"{what}: wanted a NumPy array (H, W, 3) of uint8, blue first, as cv2.imread returns it"
    if not isinstance(bgr, np.ndarray):
        raise ValueError(f"{wanted}, got {type(bgr).__name__}")  # noqa: TRY004 - as for any other wrong shape
    if bgr.ndim != 3 or bgr.shape[2] != 3 or bgr.dtype != np.uint8 or not bgr.size:
        raise ValueError(f"{wanted}, got {bgr.shape} of {bgr.dtype}{_remedy(bgr)}")
    return bgr


def _whole(value: SupportsIndex, what: str) -> int:
    """Convert a whole number of any type to an int.

    Raises:
        ValueError: value is not a whole number.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{what}: wanted a whole number, got {value!r}") from error


def whole_size(size: Iterable[SupportsIndex], what: str, remedy: str = "") -> tuple[int, int]:
    """Convert a (height, width) of any kind to a tuple of ints.

    Raises:
        ValueError: size is not a pair of whole numbers above 0; the message ends with `remedy`.
    """
    try:
        height, width = map(operator.index, size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) <= 0:
        raise ValueError(f"{what}: wanted a (height, width) in whole pixels above 0, got {size!r}{remedy}")
    return height, width


def _real(value: SupportsFloat, what: str) -> float:
    """Convert a number of any type, such as a Fraction, to a float; a string is not a number.

    Raises:
        ValueError: value is not a number.
    """
    try:
        return math.fsum((value,))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{what}: wanted a number of seconds, got {value!r}") from error


def _remedy(array: NDArray[Any]) -> str:
    """How to turn an array that is not a picture into one; OpenCV's conversions change channels and keep the dtype."""
    depth = "" if array.dtype == np.uint8 else "; scale it to 0 .. 255, then .astype(np.uint8)"
    if array.ndim > 3:
        return f"{depth}; pass one picture at a time"
    return depth if array.shape[2:] == (3,) else f"{depth}; for the channels see cv2.cvtColor"


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of a video and when it was taken.

    Attributes:
        index: 0-based number of the decoded frame; a gap means that frames were dropped.
        time_s: media time: seconds since the start of a recording, by its time stamps, or since the first frame of a
            camera or stream, by the clock; 0, 1, 2, ... for single pictures.
        taken_s: time.perf_counter() at capture.
        bgr: (H, W, 3) uint8.
        name: the file's name where the frames are single pictures, else "".

    Raises:
        ValueError: bgr is not a picture, time_s is not finite, taken_s is not a number or index is not a whole number.
    """

    index: int
    time_s: float
    taken_s: float
    bgr: NDArray[Any] = field(repr=False)  # uint8, which is checked; OpenCV's type stubs are no more specific
    name: str = ""

    def __post_init__(self) -> None:
        checked_picture(self.bgr, "Frame.bgr")
        # with any other type, Numba would compile its kernels again between two frames
        object.__setattr__(self, "index", _whole(self.index, "Frame.index"))
        object.__setattr__(self, "time_s", _real(self.time_s, "Frame.time_s"))
        object.__setattr__(self, "taken_s", _real(self.taken_s, "Frame.taken_s"))
        if not math.isfinite(self.time_s):
            raise ValueError(
                f"Frame.time_s: wanted a finite number of seconds, got {self.time_s}; if nothing else is known, "
                "use the frame's index divided by the frame rate"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.bgr.shape[0], self.bgr.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """Faces that a detector found in one frame, best first.

    Attributes:
        boxes: (F, 4) float32 frame pixels, tight round the 68 landmarks.
        scores: (F,) float32 in [0, 1], descending.
        points: (F, 5, 2) float32 in the order of the five5 markup.
    """

    boxes: Float32
    scores: Float32
    points: Float32

    def __post_init__(self) -> None:
        count = len(self.boxes)
        object.__setattr__(self, "boxes", frozen_array(self.boxes, (None, 4), "Proposals.boxes"))
        object.__setattr__(self, "scores", frozen_array(self.scores, (count,), "Proposals.scores"))
        object.__setattr__(self, "points", frozen_array(self.points, (count, 5, 2), "Proposals.points"))
        if count > 1 and (np.diff(self.scores) > 0).any():
            raise ValueError(f"Proposals.scores: wanted descending, got {self.scores.tolist()}")

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def none(cls) -> Proposals:
        """No face at all."""
        empty = np.empty((0, 5, 2), np.float32)
        return cls(empty[:, :4, 0], empty[:, 0, 0], empty)

    @classmethod
    def joined(cls, parts: Iterable[Proposals]) -> Proposals:
        """Join the faces of several searches of one frame, best first; a face that two of them found is there twice."""
        boxes, scores, points = zip(*((p.boxes, p.scores, p.points) for p in (cls.none(), *parts)), strict=True)
        order = np.argsort(-np.concatenate(scores), kind="stable")
        return cls(*(np.concatenate(arrays)[order] for arrays in (boxes, scores, points)))


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """The landmarks of one face as the network measured them.

    Attributes:
        xy: (N, 2) float32 frame pixels, never clipped to the frame.
        score: (N,) float32 in [0, 1], how sharply each point was seen.
        confidence: in [0, 1], how likely it is that this is a face whose landmarks are right.
        presence: in [0, 1], how likely it is that this is a face at all, however roughly its landmarks are known.
        markup: name of the markup.
    """

    xy: Float32 = field(repr=False)
    score: Float32 = field(repr=False)
    confidence: float
    presence: float
    markup: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "xy", frozen_array(self.xy, (None, 2), "Landmarks.xy"))
        object.__setattr__(self, "score", frozen_array(self.score, (len(self.xy),), "Landmarks.score"))


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One tracked face in one frame.

    Attributes:
        track: track ID, counted from 0, never reused.
        state: new, tracked or coasting.
        box: (4,) float32, tight round the smoothed landmarks; for five landmarks see `views.face_box`.
        measured: what the network saw in this frame; None while coasting.
        smoothed: (N, 2) float32 frame pixels after the smoother.
        speed: (N, 2) float32 pixels per second.
        confidence: in [0, 1]; that of the measurement, or of the last one while coasting.
    """

    track: int
    state: State
    box: Float32
    measured: Landmarks | None
    smoothed: Float32 = field(repr=False)
    speed: Float32 = field(repr=False)
    confidence: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", frozen_array(self.box, (4,), "Face.box"))
        object.__setattr__(self, "smoothed", frozen_array(self.smoothed, (None, 2), "Face.smoothed"))
        object.__setattr__(self, "speed", frozen_array(self.speed, self.smoothed.shape, "Face.speed"))


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Everything known about one frame.

    Attributes:
        frame: the picture and its times.
        faces: in the order of their track IDs.
        spans_s: seconds spent by each stage on this frame.
    """

    frame: Frame
    faces: tuple[Face, ...]
    spans_s: Mapping[str, float] = field(default_factory=dict)
