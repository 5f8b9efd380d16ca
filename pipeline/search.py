"""How thoroughly a video is searched for faces: the smallest ones take three quarters of a search's time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from ..tracker.geometry import CropTransform, longer_side
from ..tracker.types import Float32, Proposals, UInt8

SMALL_EVERY = 4  # searches
TURNS = (1, 3, 2)  # quarters of a circle: a face on either side is likelier than one upside down


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
        self._turned = 0  # times that turned faces were asked for

    def __call__(self, bgr: UInt8, missing: Iterable[Float32] = ()) -> Proposals:
        """Search a picture (H, W, 3).

        Args:
            bgr: the picture.
            missing: boxes (4,) of faces that were lost and may come back.
        """
        sure = self._detector.sure_side(bgr)
        if self._spared and not any(longer_side(box) < sure for box in missing):
            self._spared -= 1
            return self._detector.detect(bgr, small=False)
        found = self._detector.detect(bgr)
        self._spared = 0 if any(longer_side(box) < sure for box in found.boxes) else SMALL_EVERY - 1
        return found

    def turned(self, bgr: UInt8) -> Iterator[Proposals]:
        """Search a picture (H, W, 3) without an upright face for faces that lie or stand on their head.

        The detector knows faces that are turned by up to 55 degrees to either side. The first time the picture is
        turned by each of `TURNS` and searched as thoroughly as it can be, until the caller has seen enough; later, as
        videos often show nobody at all, every `SMALL_EVERY`th time by one of them and not for the smallest faces.
        """
        times, self._turned = self._turned, self._turned + 1
        if not times:
            yield from (self._turned_by(turns, bgr, small=True) for turns in TURNS)
        elif not times % SMALL_EVERY:
            yield self._turned_by(TURNS[times // SMALL_EVERY % len(TURNS)], bgr, small=False)

    def _turned_by(self, turns: int, bgr: UInt8, *, small: bool) -> Proposals:
        height, width = bgr.shape[:2]
        turn = CropTransform.quarter_turns(turns, (height, width))
        found = self._detector.detect(np.ascontiguousarray(np.rot90(bgr, turns)), small=small)
        corners = turn.to_frame(found.boxes.reshape(-1, 2, 2))
        boxes = np.concatenate((corners.min(1), corners.max(1)), 1)
        return Proposals(boxes, found.scores, turn.to_frame(found.points))
