"""How thoroughly to search a video for faces: the smallest ones take three quarters of a search's time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ..tracker.geometry import CropTransform, box_centre_side, longer_side
from ..tracker.types import Float32, Proposals, UInt8

SMALL_EVERY = 4  # searches
EQUALISED, FAINT = 0, 4
# Upright with more contrast or with faint detections, and quarter turns: a face on either side is likelier than one
# upside down.
FIRST, LATER = (1, 3, 2, EQUALISED, FAINT), (EQUALISED, 1, FAINT, 3, EQUALISED, 2)
EVERY_WAY = SMALL_EVERY * len(LATER)  # searches after which an unchanging picture has been searched in each way
CELL_PX, CHANGED = 16, 4  # half of the smallest face; grey levels, ten times what a camera's noise does to a cell
CLIP, TILES = 4.0, 4  # of the equalisation
REACH, NEAR_PX = 4.0, 224  # around a missing face: the square's side over the face's, and the size it is shrunk to
CROWD = 3  # small faces
MOST_PLACES = 6  # as many cost the same as a search of a whole frame of 640x480


class FaceDetector(Protocol):
    """What the pipeline needs of a detector: the same result for the same picture, from two threads at once."""

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        """Faces of one (H, W, 3) picture; without `small`, those under `min_reliable_face` may be missing.

        With `faint`, also what hardly looks like a face.
        """
        ...

    def min_reliable_face(self, bgr: UInt8) -> float:
        """Longer side in pixels of the smallest face that is found without `small`."""
        ...


class MotionGate:
    """Notices that nothing moves in pictures without faces: to search them again would find nobody again."""

    def __init__(self) -> None:
        self._cells: NDArray[np.int16] | None = None
        self._searches = 0

    def worth_searching(self, bgr: UInt8) -> bool:
        """Whether a picture (H, W, 3) without known faces may show somebody.

        False once `EVERY_WAY` pictures that look the same have been searched, until one looks different: until the mean
        colour of a cell, `CELL_PX` wide and high, differs by more than `CHANGED` levels.
        """
        height, width = bgr.shape[:2]
        size = -(-width // CELL_PX), -(-height // CELL_PX)
        cells = np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_AREA), np.int16)
        before = self._cells
        if before is None or before.shape != cells.shape or np.abs(cells - before).max() > CHANGED:
            self._cells, self._searches = cells, 0
        self._searches += 1
        return self._searches <= EVERY_WAY

    def reset(self) -> None:
        """Reset, because somebody is there."""
        self._cells = None


class Search:
    """The searches that one stage makes in one video.

    The first search looks for faces of every size, and so does every `SMALL_EVERY`th after it. The others do so too
    where small faces are to be expected: if the last search for them found one that is not known.

    Attributes:
        crowded: the last search for small faces found `CROWD` or more, so that more will come soon.
    """

    def __init__(self, detector: FaceDetector) -> None:
        self.crowded = False
        self._detector = detector
        self._spared = 0  # coming searches that skip small faces
        self._fruitless = 0  # calls of `harder`

    def __call__(self, bgr: UInt8, missing: Iterable[Float32] = (), *, beside: bool = False) -> Proposals:
        """Search a picture (H, W, 3).

        Args:
            bgr: the picture.
            missing: boxes (4,) of lost faces that may come back: a search that skips small faces looks for small ones
                there.
            beside: there are known faces in the picture, so small faces found need not be new.
        """
        sure = self._detector.min_reliable_face(bgr)
        if self._spared:
            self._spared -= 1
            near = self.near(bgr, [box for box in missing if longer_side(box) < sure])
            return Proposals.joined((self._detector.detect(bgr, small=False), near))
        found = self._detector.detect(bgr)
        small = sum(longer_side(box) < sure for box in found.boxes)
        self.crowded = small >= CROWD
        self._spared = 0 if small and not beside else SMALL_EVERY - 1
        return found

    def near(self, bgr: UInt8, missing: Sequence[Float32]) -> Proposals:
        """Search a picture (H, W, 3) only around the boxes (4,) of missing faces, the first `MOST_PLACES` of them.

        Each surrounding area is shrunk to the same size, so that its cost is the same in every video: at 1920x1080, a
        thirtieth of the search of the whole frame.
        """
        return Proposals.joined([self._near(bgr, box) for box in missing[:MOST_PLACES]])

    def _near(self, bgr: UInt8, box: Float32) -> Proposals:
        centre, side = box_centre_side(box)
        part = CropTransform.around(centre, REACH * max(side, 1.0), NEAR_PX)
        return _in_frame(self._detector.detect(part.crop(bgr), small=False), part)

    def harder(self, bgr: UInt8) -> Iterator[tuple[int, Proposals]]:
        """Search a picture (H, W, 3) without a certain face for faces that are hard to see, on their side or inverted.

        Each result comes with the way of the search: `EQUALISED`, `FAINT`, or the quarter turns of the picture.

        Fog, darkness and coloured light hide faces from the detector; in the shade of leaves and behind fences it
        detects them only faintly; and it knows faces rotated in-plane by up to 55 degrees to either side. The first
        time, the picture is searched as thoroughly as possible in each way of `FIRST`, until the caller stops. Later,
        as videos often show nobody at all, every `SMALL_EVERY`th call searches in one way of `LATER`, and not for the
        smallest faces.
        """
        times, self._fruitless = self._fruitless, self._fruitless + 1
        if not times:
            ways: Sequence[int] = FIRST
        elif not times % SMALL_EVERY:
            ways = (LATER[(times // SMALL_EVERY - 1) % len(LATER)],)
        else:
            return
        for way in ways:
            yield way, self._in(way, bgr, small=not times)

    def _in(self, way: int, bgr: UInt8, *, small: bool) -> Proposals:
        if way == EQUALISED:
            return self._detector.detect(equalised(bgr), small=small)
        if way == FAINT:
            return self._detector.detect(bgr, small=small, faint=True)
        return self._turned(way, bgr, small=small)

    def _turned(self, quarters: int, bgr: UInt8, *, small: bool) -> Proposals:
        turn = CropTransform.quarter_turns(quarters, bgr.shape[:2])
        return _in_frame(self._detector.detect(np.ascontiguousarray(np.rot90(bgr, quarters)), small=small), turn)


def _in_frame(found: Proposals, seen: CropTransform) -> Proposals:
    """Convert what was found in a part or a turned copy of a frame to pixels of the frame."""
    corners = seen.to_frame(found.boxes.reshape(-1, 2, 2))
    boxes = np.concatenate((corners.min(1), corners.max(1)), 1)
    return Proposals(boxes, found.scores, seen.to_frame(found.points))


def equalised(bgr: UInt8) -> UInt8:
    """A grey picture (H, W, 3) with as much contrast in fog, in the dark and under coloured light as elsewhere.

    Contrast-limited adaptive histogram equalisation of the largest of the three colour channels.
    Source: Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994.
    """
    blue, green, red = cv2.split(bgr)
    value = cv2.createCLAHE(CLIP, (TILES, TILES)).apply(cv2.max(cv2.max(blue, green), red))
    return np.asarray(cv2.merge((value, value, value)), np.uint8)
