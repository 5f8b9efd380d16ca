"""How thoroughly a video is searched: for the smallest faces only as often as they are to be expected."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest

from facetrack.pipeline.search import (
    CHANGED,
    EQUALISED,
    EVERY_WAY,
    FIRST,
    LATER,
    MOST_PLACES,
    NEAR_PX,
    REACH,
    SMALL_EVERY,
    MotionGate,
    Search,
    equalised,
)
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

    def min_reliable_face(self, bgr: UInt8) -> float:
        assert bgr is PICTURE
        return SURE

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del faint
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


@dataclass
class Brightest:
    """A detector of one kind of face: all that is bright. `pictures` are those that it saw, and how thoroughly."""

    pictures: list[tuple[tuple[int, ...], bool]] = field(default_factory=list)

    def min_reliable_face(self, bgr: UInt8) -> float:
        del bgr
        return SURE

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del faint
        self.pictures.append((bgr.shape[:2], small))
        light = bgr[..., 0].astype(np.float64)
        if light.sum() < 255:
            return Proposals.none()
        rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
        middle = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
        return Proposals(np.hstack((middle - 40, middle + 40))[None], np.ones(1), np.tile(middle, (1, 5, 1)))


NEAR = ((NEAR_PX, NEAR_PX), False)
WHOLE = (480, 640)


def bright_spot(x: int, y: int) -> UInt8:
    picture = np.zeros((*WHOLE, 3), np.uint8)
    cv2.circle(picture, (x, y), 5, (255, 255, 255), -1)
    return picture


@pytest.mark.parametrize("side", [30.0, 150.0])
@pytest.mark.parametrize("middle", [(300, 200), (5, 474)])
def test_face_near_a_missing_one_is_found_where_it_was_drawn(middle: tuple[int, int], side: float) -> None:
    detector = Brightest()
    missing = np.array([*middle, *middle], np.float32) + np.float32([-0.6, -0.4, 0.3, 0.6]) * side
    found = Search(detector).near(bright_spot(*middle), [missing])
    assert detector.pictures == [NEAR]
    np.testing.assert_allclose(found.points[0], np.tile(middle, (5, 1)), atol=0.3)
    np.testing.assert_allclose(found.boxes.reshape(2, 2).mean(0), middle, atol=0.3)
    np.testing.assert_allclose(np.diff(found.boxes.reshape(2, 2), axis=0), 80 * REACH * side / NEAR_PX, atol=0.01)


def test_missing_face_of_zero_size_is_searched_for_too() -> None:
    """A dead network may put all points on one place."""
    detector = Brightest()
    found = Search(detector).near(bright_spot(300, 200), [np.array([300, 200, 300, 200], np.float32)])
    assert detector.pictures == [NEAR]
    np.testing.assert_allclose(found.points[0], np.tile((300, 200), (5, 1)), atol=0.3)


def test_a_face_far_from_where_one_is_missing_is_not_near_it() -> None:
    missing = np.array([100, 100, 140, 140], np.float32)
    assert len(Search(Brightest()).near(bright_spot(300, 200), [missing])) == 0


def test_of_many_missing_faces_only_the_first_are_searched_for() -> None:
    detector = Brightest()
    places = [np.array([x, 50, x + 20, 70], np.float32) for x in range(0, 600, 30)]
    assert len(Search(detector).near(bright_spot(10, 60), places)) > 0
    assert detector.pictures == [NEAR] * MOST_PLACES
    assert len(Search(detector).near(bright_spot(580, 60), places)) == 0


def test_quick_search_also_looks_near_missing_small_faces() -> None:
    detector = Brightest()
    search, picture = Search(detector), bright_spot(300, 200)
    for missing in ([], [box(150)], [box(150), box(30)], [box(30)], []):
        search(picture, missing)
    whole = [(WHOLE, True), (WHOLE, False)]
    assert detector.pictures == [*whole, NEAR, whole[1], NEAR, *whole[::-1]]


def test_small_face_found_beside_known_ones_triggers_no_further_thorough_search() -> None:
    detector = Sieve(sides=[40.0])
    search = Search(detector)
    for _ in range(SMALL_EVERY + 1):
        search(PICTURE, beside=True)
    assert detector.thorough == [True, *[False] * (SMALL_EVERY - 1), True]


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


@dataclass
class Upright:
    """A detector of one kind of face: a white pixel, its mouth, straight below a grey one."""

    searches: list[bool] = field(default_factory=list)

    def min_reliable_face(self, bgr: UInt8) -> float:
        del bgr
        return SURE

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del faint
        self.searches.append(small)
        if not (bgr == 100).any():  # another contrast than the network knows
            return Proposals.none()
        (ex, ey), (mx, my) = (np.argwhere(bgr[..., 0] == value)[0][::-1] for value in (100, 200))
        if ex != mx or ey >= my:
            return Proposals.none()
        points = np.array([[[ex, ey], [ex, ey], [ex, ey], [mx, my], [mx, my]]], np.float32)
        return Proposals(np.array([[ex - 2, ey - 1, mx + 3, my + 5]], np.float32), np.ones(1, np.float32), points)


@pytest.mark.parametrize(
    ("mouth", "box_of_it"),
    [((35, 20), (29, 17, 40, 22)), ((25, 20), (20, 18, 31, 23)), ((30, 15), (27, 10, 32, 21))],
    ids=["on its right side", "on its left side", "upside down"],
)
def test_sideways_or_upside_down_face_is_found_where_it_was_drawn(
    mouth: tuple[int, int], box_of_it: tuple[int, ...]
) -> None:
    picture, eye = PICTURE.copy(), (30, 20)
    picture[eye[1], eye[0]], picture[mouth[1], mouth[0]] = 100, 200
    search = Search(Upright())
    assert len(search(picture)) == 0
    (found,) = (proposals for _, proposals in search.harder(picture) if len(proposals))
    np.testing.assert_array_equal(found.points[0], [eye, eye, eye, mouth, mouth])
    np.testing.assert_array_equal(found.boxes[0], box_of_it)


def test_an_empty_video_is_searched_in_every_direction_once_and_seldom_after_that() -> None:
    picture = PICTURE.copy()
    picture[20, 30], picture[30, 40] = 100, 200  # askew: never a face
    detector = Upright()
    search = Search(detector)
    counts = [sum(1 for _ in search.harder(picture)) for _ in range(1 + len(LATER) * SMALL_EVERY)]
    assert counts == [len(FIRST), *([0] * (SMALL_EVERY - 1) + [1]) * len(LATER)]
    assert detector.searches == [True] * len(FIRST) + [False] * len(LATER)


@dataclass
class WellLit:
    """A detector that finds a face wherever there is much contrast."""

    seen: list[UInt8] = field(default_factory=list)

    def min_reliable_face(self, bgr: UInt8) -> float:
        del bgr
        return SURE

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del small, faint
        self.seen.append(bgr)
        if np.ptp(bgr) < 100:
            return Proposals.none()
        return Proposals(box(30.0)[None], np.ones(1, np.float32), np.zeros((1, 5, 2), np.float32))


def test_picture_without_a_face_is_searched_again_with_equalised_contrast() -> None:
    fog = np.random.default_rng(0).integers(150, 190, (64, 80, 3)).astype(np.uint8)
    detector = WellLit()
    search = Search(detector)
    assert len(search(fog)) == 0
    (found,) = (proposals for _, proposals in search.harder(fog) if len(proposals))
    np.testing.assert_array_equal(found.boxes, [box(30.0)])
    np.testing.assert_array_equal(detector.seen[1 + FIRST.index(EQUALISED)], equalised(fog))


def test_equalising_removes_the_colour_and_strength_of_the_light() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (64, 64, 1)).astype(np.float64)
    white = np.rint(grey * np.ones(3)).astype(np.uint8)
    red, dim = (np.rint(grey * light).astype(np.uint8) for light in ((0.0, 0.2, 1.0), (0.5, 0.5, 0.5)))
    np.testing.assert_array_equal(equalised(red), equalised(white))
    assert np.abs(equalised(dim).astype(int) - equalised(white)).mean() < 5  # of the 255 that it spans
    assert (equalised(white)[..., :1] == equalised(white)).all()


def room(sigma: float = 4.0, seed: int = 0, size: tuple[int, int] = (240, 320)) -> UInt8:
    """An empty room as a camera with noise of so many grey levels sees it."""
    wall = np.linspace(60, 180, size[1])[None, :, None]
    noise = np.random.default_rng(seed).normal(0, sigma, (*size, 3))
    return np.clip(np.round(wall + noise), 0, 255).astype(np.uint8)


def test_static_noisy_scene_is_worth_one_search_for_each_way() -> None:
    standstill = MotionGate()
    worth = [standstill.worth_searching(room(seed=i)) for i in range(EVERY_WAY + 50)]
    assert worth == [True] * EVERY_WAY + [False] * 50


def test_change_as_large_as_the_smallest_face_is_worth_a_search_at_once() -> None:
    standstill = MotionGate()
    while standstill.worth_searching(room()):
        pass
    visited = room(seed=1)
    visited[101:135, 77:111] += 2 * CHANGED  # 34 pixels, and no cell's border is theirs
    assert standstill.worth_searching(visited)
    assert standstill.worth_searching(visited)


def test_slowly_rising_light_is_worth_searches() -> None:
    standstill = MotionGate()
    while standstill.worth_searching(room()):
        pass
    worth = [standstill.worth_searching(room() + np.uint8(level)) for level in np.linspace(0, 3 * CHANGED, 300)]
    assert sum(worth) >= 2 * EVERY_WAY


def test_standstill_is_reset_after_a_face_and_by_another_picture_size() -> None:
    standstill = MotionGate()
    while standstill.worth_searching(room()):
        pass
    assert standstill.worth_searching(room(size=(120, 320)))
    while standstill.worth_searching(room()):
        pass
    standstill.reset()
    assert standstill.worth_searching(room())
