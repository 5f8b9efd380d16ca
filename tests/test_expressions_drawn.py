"""Eyes closed by drawing: the points say where the lids' pixels go, and nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest

from facetrack.tracker import markup
from facetrack.tracker.pose import MEAN_FACE_MM, eye_aspect_ratio, lids
from facetrack.tracker.types import Float32, UInt8
from facetrack.training.expressions import (
    Eye,
    StretchRegion,
    blink,
    close_eye,
    close_eyes,
    facing_points,
    grimace,
    has_closed_eye,
    stretch,
)

SKIN, LASH, BALL = 200, 20, 120
LIDS = {37, 38, 40, 41, 43, 44, 46, 47}


def face(side: int = 400) -> Float32:
    """A frontal face (68, 2) whose eyes are open by a third of their width."""
    xy = MEAN_FACE_MM[:, :2] * np.array([1, 1]) * side / 200 + side / 2
    for upper, lower in lids(68):
        xy[upper[[0, -1]], 1] = xy[upper[[0, -1]], 1].mean()
        for one, other in zip(upper[1:-1], lower[1:-1], strict=True):
            line = xy[upper[0], 1]
            half = np.linalg.norm(xy[upper[-1]] - xy[upper[0]]) / 6
            xy[one], xy[other] = (xy[one, 0], line - half), (xy[one, 0], line + half)
    return xy.astype(np.float32)


def drawn(xy: Float32, side: int = 400) -> UInt8:
    """Skin with two light eyes and, on each upper lid, a dark line."""
    picture = np.full((side, side, 3), SKIN, np.uint8)
    for upper, lower in lids(len(xy)):
        eye = Eye.of(xy[upper].astype(float), xy[lower].astype(float))
        assert eye is not None
        y, x = np.mgrid[:side, :side]
        place = eye.to_frame(np.stack([x, y], -1).astype(float))
        above, below = eye.lines(place[..., 0])
        picture[(place[..., 1] > above) & (place[..., 1] < below)] = BALL
        picture[(np.abs(place[..., 1] - above) < 1) & (below > above)] = LASH
    return picture


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng((5, seed))


@pytest.mark.parametrize("opening", [0.0, 0.3, 0.7])
def test_drawn_lid_line_lands_at_the_requested_opening(opening: float) -> None:
    xy = face()
    picture = drawn(xy)
    upper, lower = lids(68)[0]
    eye = Eye.of(xy[upper].astype(float), xy[lower].astype(float))
    assert eye is not None
    close_eye(picture, eye, opening, rise=0.0)
    wanted = xy[upper[1], 1] + (1 - opening) * (xy[lower[1], 1] - xy[upper[1], 1])
    column = picture[:, round(float(xy[upper[1], 0])), 0].astype(float)
    dark = (SKIN - column) * (column < (LASH + BALL) / 2)
    assert (dark * np.arange(len(dark))).sum() / dark.sum() == pytest.approx(wanted, abs=0.7)


def test_blink_moves_only_lid_points_and_narrows_the_eyes() -> None:
    xy = face()
    for seed in range(20):
        _, closed = blink(drawn(xy), xy, generator(seed))
        moved = np.flatnonzero((closed != xy).any(-1))
        assert set(moved) <= LIDS
        before, after = eye_aspect_ratio(xy), eye_aspect_ratio(closed)
        assert all(a <= b + 1e-6 for a, b in zip(after, before, strict=True))
        assert min(after) < 0.8 * min(before) + 1e-3


@pytest.mark.parametrize("opening", [0.0, 0.25, 1.0])
def test_close_eyes_scales_the_eye_aspect_ratio_by_the_opening(opening: float) -> None:
    xy = face()
    _, closed = close_eyes(drawn(xy), xy, opening, rise=0.2)
    wanted = [opening * ratio for ratio in eye_aspect_ratio(xy)]
    assert eye_aspect_ratio(closed) == pytest.approx(wanted, abs=1e-4)


def test_one_eye_can_wink() -> None:
    xy = face()
    _, closed = close_eyes(drawn(xy), xy, 0.0, chosen=(True, False))
    assert set(np.flatnonzero((closed != xy).any(-1))) == {43, 44, 46, 47}


def test_only_the_surroundings_of_the_eyes_change() -> None:
    xy = face()
    picture = drawn(xy)
    seen, _ = close_eyes(picture, xy, 0.0)
    y, x = np.nonzero((seen != picture).any(-1))
    eyes = xy[36:48]
    width = np.linalg.norm(xy[39] - xy[36])
    assert len(y)
    assert (x >= eyes[:, 0].min() - 1).all()
    assert (x <= eyes[:, 0].max() + 1).all()
    assert (y >= eyes[:, 1].min() - 0.4 * width).all()
    assert (y <= eyes[:, 1].max() + 0.4 * width).all()


def test_blink_is_deterministic_and_leaves_the_original_unchanged() -> None:
    xy = face()
    picture = drawn(xy)
    kept = picture.copy()
    (first, a), (second, b) = (blink(picture, xy, generator(3)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(a, b)
    assert np.array_equal(picture, kept)


def test_closed_and_hidden_eyes_are_left_as_they_are() -> None:
    xy = face()
    shut = xy.copy()
    shut[[37, 38, 43, 44], 1] = shut[[41, 40, 47, 46], 1] - 1
    flat = xy.copy()
    flat[36:48, 0] = 200  # in a profile the corners of an eye are one above the other
    for points in (shut, flat):
        picture = drawn(xy)
        seen, found = close_eyes(picture, points, 0.0)
        assert np.array_equal(seen, picture)
        assert np.array_equal(found, points)


def test_closed_eye_is_recognised() -> None:
    xy = face()
    assert not has_closed_eye(xy)
    shut = xy.copy()
    shut[[37, 38], 1] = shut[[41, 40], 1] - 1
    assert has_closed_eye(shut)


def test_facing_points_are_lid_and_lip_pairs_and_map_to_pairs_when_mirrored() -> None:
    eyes, mouth = {(37, 41), (38, 40), (43, 47), (44, 46)}, {(61, 67), (62, 66), (63, 65)}
    assert {tuple(map(int, pair)) for pair in facing_points(68)} == eyes | mouth
    for name in markup.names():
        marks = markup.load(name)
        pairs = {tuple(map(int, pair)) for pair in facing_points(marks.points)}
        assert {tuple(map(int, marks.mirror[list(pair)])) for pair in pairs} == pairs


def test_close_eyes_leaves_a_markup_without_lids_unchanged() -> None:
    picture, xy = np.zeros((50, 50, 3), np.uint8), np.full((5, 2), 20, np.float32)
    seen, found = close_eyes(picture, xy, 0.0)
    assert not seen.any()
    assert np.array_equal(found, xy)
    assert not has_closed_eye(xy)


def spots(xy: Float32, side: int) -> UInt8:
    """A dark picture with a light spot at every point."""
    picture = np.zeros((side, side), np.float64)
    y, x = np.mgrid[:side, :side]
    for px, py in xy:
        picture += 200 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 1.5**2))
    return np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], 3, -1)


def rubber(scale: tuple[float, float], shift: tuple[float, float] = (0.0, 0.0)) -> StretchRegion:
    turn = np.deg2rad(20)
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return StretchRegion(np.array([100.0, 100.0]), axes, np.array([70.0, 60.0]), np.array(scale), np.array(shift))


@pytest.mark.parametrize(("scale", "shift"), [((0.6, 1.3), (0.0, 0.0)), ((1.1, 0.9), (8.0, -5.0))])
def test_stretch_moves_points_with_their_pixels(scale: tuple[float, float], shift: tuple[float, float]) -> None:
    for place in ([100, 100], [120, 95], [70, 110], [100, 140]):
        xy = np.array([place], np.float32)
        drawn, moved = stretch(spots(xy, 200), xy, [rubber(scale, shift)])
        light = drawn[..., 0].astype(np.float64)
        y, x = np.mgrid[:200, :200]
        seen = np.array([(light * x).sum(), (light * y).sum()]) / light.sum()
        assert seen == pytest.approx(moved[0], abs=0.3)  # a spot that is stretched unevenly is no circle


def test_stretch_scales_and_shifts_its_centre_as_requested() -> None:
    part = rubber((0.6, 1.2), (6.0, 3.0))
    x, y = part.axes
    xy = np.array([part.centre, part.centre + x, part.centre + y], np.float32)
    _, moved = stretch(np.zeros((200, 200, 3), np.uint8), xy, [part])
    assert moved[0] - part.centre == pytest.approx(part.axes.T @ part.shift, abs=0.3)
    ways = (moved[1:] - moved[0]) @ part.axes.T
    assert ways == pytest.approx(np.diag(part.scale), abs=0.15)


def test_stretch_changes_nothing_outside_its_ellipse_or_at_scale_1() -> None:
    picture = generator(0).integers(0, 256, (200, 200, 3), np.uint8)
    far = np.array([[10.0, 10.0], [190.0, 30.0]], np.float32)
    drawn, moved = stretch(picture, far, [rubber((0.6, 1.3))])
    assert np.array_equal(moved, far)
    assert np.array_equal(drawn[:25], picture[:25])
    assert (drawn != picture).any()
    still, _ = stretch(picture, far, [rubber((1.0, 1.0))])
    assert np.array_equal(still, picture)


def test_grimace_commutes_with_a_quarter_turn() -> None:
    xy = face()
    lying = np.stack([xy[:, 1], 399 - xy[:, 0]], -1)  # as `np.rot90` turns a picture of 400 pixels
    picture = drawn(xy)
    for seed in range(5):
        seen, made = grimace(picture, xy, generator(seed))
        turned, turned_made = grimace(np.ascontiguousarray(np.rot90(picture)), lying, generator(seed))
        assert np.stack([made[:, 1], 399 - made[:, 0]], -1) == pytest.approx(turned_made, abs=0.01)
        assert np.abs(np.rot90(seen).astype(float) - turned).mean() < 0.3


def test_grimaces_keep_the_order_of_landmarks_and_vary_the_mouth_width() -> None:
    """Lips stay on their side of each other, corners left and right, whatever is drawn."""
    xy = face()
    picture = drawn(xy)
    widths = []
    for seed in range(40):
        seen, made = grimace(picture, xy, generator(seed))
        assert seen.shape == picture.shape
        assert (np.diff(made[[36, 39, 42, 45], 0]) > 0).all()
        assert (np.diff(made[[51, 62, 66, 57], 1]) > 0).all()
        assert made[48, 0] < made[60, 0] < made[64, 0] < made[54, 0]
        widths.append(np.linalg.norm(made[54] - made[48]))
    usual = np.linalg.norm(xy[54] - xy[48])
    assert min(widths) < 0.75 * usual
    assert max(widths) > 1.02 * usual
