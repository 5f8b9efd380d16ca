"""How thoroughly a video is searched for faces: the smallest ones take three quarters of a search's time."""

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
# Upright with more contrast or by faint answers, and quarters of a circle: a face on either side is likelier than one
# upside down.
FIRST, LATER = (1, 3, 2, EQUALISED, FAINT), (EQUALISED, 1, FAINT, 3, EQUALISED, 2)
EVERY_WAY = SMALL_EVERY * len(LATER)  # searches, after which a picture that stays has been searched in each way
CELL_PX, CHANGED = 16, 4  # half of the smallest face; grey levels, ten times what a camera's noise does to a cell
CLIP, TILES = 4.0, 4  # of the equalisation
REACH, NEAR_PX = 4.0, 224  # round a missing face: the square's side over the face's, and what it is shrunk to
CROWD = 3  # small faces
MOST_PLACES = 6  # so many cost as much as a search of a whole frame of 640x480


class FaceDetector(Protocol):
    """What the pipeline needs of a detector: the same answer to the same picture, from two threads at once."""

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        """Faces of one (H, W, 3) picture; without `small`, those under `min_reliable_face` may be missing.

        With `faint` also what hardly looks like one.
        """
        ...

    def min_reliable_face(self, bgr: UInt8) -> float:
        """Longer side in pixels of the smallest face that is found without `small`."""
        ...


class Standstill:
    """Notices that nothing moves where nobody is: to search such pictures again would find nobody again."""

    def __init__(self) -> None:
        self._cells: NDArray[np.int16] | None = None
        self._searches = 0

    def worth_searching(self, bgr: UInt8) -> bool:
        """Whether a picture (H, W, 3) without known faces may show somebody.

        False once `EVERY_WAY` pictures that look the same were worth it, until one looks otherwise: until the mean
        colour of a part of it, `CELL_PX` wide and high, is more than `CHANGED` levels off.
        """
        height, width = bgr.shape[:2]
        size = -(-width // CELL_PX), -(-height // CELL_PX)
        cells = np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_AREA), np.int16)
        before = self._cells
        if before is None or before.shape != cells.shape or np.abs(cells - before).max() > CHANGED:
            self._cells, self._searches = cells, 0
        self._searches += 1
        return self._searches <= EVERY_WAY

    def is_over(self) -> None:
        """Somebody is there."""
        self._cells = None


class Search:
    """The searches that one stage makes in one video.

    The first looks for faces of every size and so does every `SMALL_EVERY`th after it; the others too where small
    faces are to be expected: the last search for them found one that nobody knows.

    Attributes:
        crowded: the last search for small faces found `CROWD` or more, so that others will come soon.
    """

    def __init__(self, detector: FaceDetector) -> None:
        self.crowded = False
        self._detector = detector
        self._spared = 0  # searches to come without small faces
        self._fruitless = 0  # times that harder searches were asked for

    def __call__(self, bgr: UInt8, missing: Iterable[Float32] = (), *, beside: bool = False) -> Proposals:
        """Search a picture (H, W, 3).

        Args:
            bgr: the picture.
            missing: boxes (4,) of faces that were lost and may come back: a search without small faces looks for
                small ones there.
            beside: there are known faces in the picture, so that small ones that are found need not be new.
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
        """Search a picture (H, W, 3) round the boxes (4,) of missing faces alone, the first `MOST_PLACES` of them.

        Each surrounding is shrunk to one size, so that a place costs the same in every video: at 1920x1080, a
        thirtieth of the whole frame's search.
        """
        return Proposals.joined([self._near(bgr, box) for box in missing[:MOST_PLACES]])

    def _near(self, bgr: UInt8, box: Float32) -> Proposals:
        centre, side = box_centre_side(box)
        part = CropTransform.around(centre, REACH * max(side, 1.0), NEAR_PX)
        return _in_frame(self._detector.detect(part.crop(bgr), small=False), part)

    def harder(self, bgr: UInt8) -> Iterator[tuple[int, Proposals]]:
        """Search a picture (H, W, 3) in which nobody was surely found for faces that are hard to see, that lie or hang.

        What is found comes with the way: `EQUALISED`, `FAINT` or the quarters by which the picture was turned.

        Fog, the dark and coloured light hide faces from the detector; in the shade of leaves and behind fences it
        answers faintly; and it knows those turned by up to 55 degrees to either side. The first time the picture is
        searched as thoroughly as it can be in each way of `FIRST`, until the caller has seen enough; later, as videos
        often show nobody at all, every `SMALL_EVERY`th time in one of `LATER` and not for the smallest faces.
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
    """What was found in a part or a turned copy of a frame, in pixels of the frame."""
    corners = seen.to_frame(found.boxes.reshape(-1, 2, 2))
    boxes = np.concatenate((corners.min(1), corners.max(1)), 1)
    return Proposals(boxes, found.scores, seen.to_frame(found.points))


def equalised(bgr: UInt8) -> UInt8:
    """A picture (H, W, 3) in grey whose contrast is as large in fog, in the dark and under coloured light as elsewhere.

    Contrast-limited adaptive histogram equalisation of the largest of the three colours.
    Source: Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994.
    """
    blue, green, red = cv2.split(bgr)
    value = cv2.createCLAHE(CLIP, (TILES, TILES)).apply(cv2.max(cv2.max(blue, green), red))
    return np.asarray(cv2.merge((value, value, value)), np.uint8)
