"""What is drawn, where, and that nothing is too strange to be drawn."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import PaintedFace, grey, make_face

from facetrack.pipeline.draw import COLOURS, WHITE, draw_faces, draw_text, fitted, resized
from facetrack.tracker.types import Float32, State, UInt8


def coloured(bgr: UInt8, colour: tuple[int, int, int]) -> int:
    return int((np.abs(bgr.astype(int) - colour).max(-1) < 30).sum())


def test_drawing_leaves_the_picture_as_it_was() -> None:
    bgr = grey()
    drawn = draw_faces(bgr, [make_face()])
    assert (bgr == 90).all()
    assert not (drawn == 90).all()


def test_no_face_draws_nothing() -> None:
    np.testing.assert_array_equal(draw_faces(grey(), []), grey())


@pytest.mark.parametrize("state", list(State))
def test_the_colour_tells_the_state(state: State) -> None:
    drawn = draw_faces(grey(240, 320), [make_face(PaintedFace((160, 130), width=150).landmarks(0), state=state)])
    for other in State:
        assert (coloured(drawn, COLOURS[other]) > 100) == (other is state)


def test_measured_landmarks_are_drawn_as_white_dots_and_coasting_ones_are_not() -> None:
    xy = PaintedFace((160, 130), width=180).landmarks(0)
    dotted = draw_faces(grey(240, 320), [make_face(xy)])
    bare = draw_faces(grey(240, 320), [make_face(xy, state=State.COASTING)])
    for x, y in np.rint(xy).astype(int):
        assert coloured(dotted[y - 1 : y + 2, x - 1 : x + 2], WHITE) >= 1
    assert coloured(bare, WHITE) == 0


def test_a_dot_lies_on_its_sub_pixel_place() -> None:
    xy = np.array([[40, 40], [80, 40], [60.3, 60.8], [45, 80], [75, 80]])
    drawn = draw_faces(grey(), [make_face(xy)])[54:68, 54:68].astype(float)
    weight = drawn.mean(-1) - 90
    y, x = np.mgrid[54:68, 54:68]
    place = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    np.testing.assert_allclose(place, (60.3, 60.8), atol=0.15)


@pytest.mark.parametrize("width", [16, 24, 36, 50])
@pytest.mark.parametrize("state", [State.TRACKED, State.COASTING])
def test_overlay_on_a_small_face_leaves_most_of_it_visible(width: int, state: State) -> None:
    face = make_face(PaintedFace((160, 120), width=width).landmarks(0), state=state)
    left, top, right, bottom = np.rint(face.box).astype(int)
    drawn = draw_faces(grey(240, 320), [face])
    inside = drawn[top : bottom + 1, left : right + 1].astype(float) - 90
    assert (np.abs(inside).max(-1) > 80).mean() < 0.2
    above = drawn[top - width // 2 : top - 6, left:right].astype(float) - 90  # the forehead
    assert np.abs(above).max(initial=0) == 0
    assert coloured(drawn, COLOURS[state]) > 60  # the plate and the corners


@pytest.mark.parametrize("centre", [(160, 232), (8, 232), (312, 8), (312, 232)])
def test_label_plate_of_a_small_face_does_not_cover_it_near_the_edges(centre: tuple[int, int]) -> None:
    face = make_face(PaintedFace(centre, width=24).landmarks(0))
    left, top, right, bottom = np.rint(face.box).astype(int)
    inside = draw_faces(grey(240, 320), [face])[max(top, 0) : bottom + 1, max(left, 0) : right + 1]
    assert coloured(inside, COLOURS[face.state]) == 0


def test_the_dots_of_a_smaller_face_are_fainter() -> None:
    weights = []
    for width in (15, 30, 45):
        xy = PaintedFace((160, 120), width=width).landmarks(0)
        lone = draw_faces(grey(240, 320), [make_face(xy)]).astype(float)[..., 0] - 90
        box = np.rint(np.concatenate((xy.min(0), xy.max(0)))).astype(int)
        weights.append(lone[box[1] : box[3] + 1, box[0] : box[2] + 1].sum())
    assert weights == sorted(weights)


def test_faces_drawn_on_a_resized_picture_lie_where_resizing_puts_them() -> None:
    xy = PaintedFace((80, 65), width=60).landmarks(0)
    large = draw_faces(grey(360, 480), [make_face(xy)], scale=3.0)
    for x, y in np.rint((xy + 0.5) * 3 - 0.5).astype(int):
        assert coloured(large[y - 1 : y + 2, x - 1 : x + 2], WHITE) >= 1


@pytest.mark.parametrize(
    "xy",
    [
        PaintedFace((-400, -400), width=60).landmarks(0),  # out of the picture
        PaintedFace((80, 60), width=60).landmarks(0) * 1e7,  # absurdly far
        np.zeros((68, 2)),  # all in one place
        np.full((68, 2), np.nan),  # nowhere
        PaintedFace((80, 60), width=6).landmarks(0),  # tiny
        PaintedFace((80, 60), width=9000).landmarks(0),  # huge
    ],
)
def test_degenerate_landmarks_are_drawn_without_error(xy: Float32) -> None:
    assert draw_faces(grey(), [make_face(xy)]).shape == (120, 160, 3)


@pytest.mark.parametrize("size", [(120, 160), (10, 10), (1, 1)])
def test_text_stays_inside_the_picture(size: tuple[int, int]) -> None:
    canvas = np.zeros((*size, 3), np.uint8)
    draw_text(canvas, "31.4 fps", (1000, -50), height=10, plate=(200, 200, 200))
    assert canvas.any()


@pytest.mark.parametrize(("size", "room"), [((60, 80), (120, 200)), ((300, 100), (120, 200)), ((7, 900), (120, 200))])
def test_fitting_keeps_proportions_and_centres(size: tuple[int, int], room: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 255, np.uint8)
    inner = resized(picture, room).shape[:2]
    assert inner[0] == room[0] or inner[1] == room[1]
    assert abs(inner[0] / size[0] - inner[1] / size[1]) * min(size) < 1
    canvas = fitted(picture, room)
    assert canvas.shape[:2] == room
    y, x = np.nonzero(canvas[..., 0] > 128)
    assert abs((y.min() + y.max()) - (room[0] - 1)) <= 1
    assert abs((x.min() + x.max()) - (room[1] - 1)) <= 1
