"""How thoroughly a video is searched: for the smallest faces only as often as they are to be expected."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from facetrack.pipeline.search import SMALL_EVERY, Search
from facetrack.tracker.types import Float32, Proposals, UInt8

PICTURE = np.zeros((48, 64, 3), np.uint8)
SURE = 70.0


def box(side: float) -> Float32:
    return np.array([10, 20, 10 + 0.9 * side, 20 + side], np.float32)


@dataclass
class Sieve:
    """A detector that finds faces of the given sides, those under `SURE` only if it is to look for small ones.

    Attributes:
        sides: of the faces that are there, pixels.
        thorough: for each search whether it was for small faces, too.
    """

    sides: list[float] = field(default_factory=list)
    thorough: list[bool] = field(default_factory=list)

    def sure_side(self, bgr: UInt8) -> float:
        assert bgr is PICTURE
        return SURE

    def detect(self, bgr: UInt8, *, small: bool = True) -> Proposals:
        assert bgr is PICTURE
        self.thorough.append(small)
        boxes = [box(side) for side in self.sides if small or side >= SURE]
        count = len(boxes)
        return Proposals(np.reshape(boxes, (count, 4)), np.full(count, 0.9), np.zeros((count, 5, 2)))


def test_the_first_search_and_every_fourth_after_it_look_for_small_faces() -> None:
    detector = Sieve(sides=[200.0])
    search = Search(detector)
    for _ in range(2 * SMALL_EVERY + 1):
        assert len(search(PICTURE)) == 1
    pause = [False] * (SMALL_EVERY - 1)
    assert detector.thorough == [True, *pause, True, *pause, True]


def test_where_there_are_small_faces_every_search_looks_for_them() -> None:
    detector = Sieve(sides=[200.0, 40.0])
    search = Search(detector)
    assert [len(search(PICTURE)) for _ in range(6)] == [2] * 6
    detector.sides = [200.0]  # the small one has gone, and one search must notice
    for _ in range(3):
        search(PICTURE)
    assert detector.thorough == [True] * 7 + [False] * 2


def test_a_small_face_that_is_missing_is_looked_for_and_a_large_one_needs_no_more_than_usual() -> None:
    detector = Sieve()
    search = Search(detector)
    for missing in ([], [box(150)], [box(150), box(30)], [box(30)], []):
        search(PICTURE, missing)
    assert detector.thorough == [True, False, True, True, False]


def test_a_small_face_that_comes_into_an_empty_picture_is_found_within_four_frames() -> None:
    for waited in range(SMALL_EVERY):
        detector = Sieve()
        search = Search(detector)
        for _ in range(1 + waited):
            search(PICTURE)
        detector.sides = [40.0]
        found = [len(search(PICTURE)) for _ in range(SMALL_EVERY)]
        assert sum(found) >= 1
        detector.sides = [90.0]
        assert len(search(PICTURE)) == 1
