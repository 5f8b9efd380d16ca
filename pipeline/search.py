"""How thoroughly a video is searched for faces: the smallest ones take three quarters of a search's time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..tracker.types import Float32, Proposals, UInt8

SMALL_EVERY = 4  # searches


class FaceDetector(Protocol):
    """What the pipeline needs of a detector: the same answer to the same picture, from two threads at once."""

    def detect(self, bgr: UInt8, *, small: bool = True) -> Proposals:
        """Faces of one (H, W, 3) picture; without `small`, those under `sure_side` may be missing."""
        ...

    def sure_side(self, bgr: UInt8) -> float:
        """Longer side in pixels of the smallest face that is found without `small`."""
        ...


class Search:
    """The searches that one stage makes in one video.

    The first looks for faces of every size and so does every `SMALL_EVERY`th after it; the others too where small
    faces are to be expected: the last search for them found one, or one is missing.
    """

    def __init__(self, detector: FaceDetector) -> None:
        self._detector = detector
        self._spared = 0  # searches to come without small faces

    def __call__(self, bgr: UInt8, missing: Iterable[Float32] = ()) -> Proposals:
        """Search a picture (H, W, 3).

        Args:
            bgr: the picture.
            missing: boxes (4,) of faces that were lost and may come back.
        """
        sure = self._detector.sure_side(bgr)
        if self._spared and not any(_side(box) < sure for box in missing):
            self._spared -= 1
            return self._detector.detect(bgr, small=False)
        found = self._detector.detect(bgr)
        self._spared = 0 if any(_side(box) < sure for box in found.boxes) else SMALL_EVERY - 1
        return found


def _side(box: Float32) -> float:
    return float(max(box[2] - box[0], box[3] - box[1]))
