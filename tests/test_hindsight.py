from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from facetrack.pipeline.hindsight import BLOCK, LOOK_AHEAD_S, MOST_WAITING, look_back, with_pictures
from facetrack.tracker.errors import SourceError
from facetrack.tracker.geometry import bounding_box
from facetrack.tracker.rts import RtsSmoother
from facetrack.tracker.smooth import SmootherSettings
from facetrack.tracker.types import Face, Float32, Frame, Landmarks, Result, State

FPS = 30.0
SHAPE = np.random.default_rng(0).uniform(100, 200, (68, 2)).astype(np.float32)
SCORE = np.full(68, 0.65, np.float32)
SETTINGS = SmootherSettings()


def frame(index: int) -> Frame:
    return Frame(index, index / FPS, 0.0, np.full((20, 30, 3), 9, np.uint8))


def seen(index: int, track: int) -> Float32:
    rng = np.random.default_rng(1000 * track + index)
    return (SHAPE + 50 * track + rng.normal(0, 0.3, SHAPE.shape)).astype(np.float32)


def face(index: int, track: int, *, measured: bool = True) -> Face:
    xy = seen(index, track)
    landmarks = Landmarks(xy, SCORE, 0.9, 0.9, "ibug68") if measured else None
    state = State.TRACKED if measured else State.COASTING
    return Face(track, state, bounding_box(xy), landmarks, xy, np.zeros_like(xy), 0.9)


def results(count: int, *tracks: range) -> Iterator[Result]:
    for i in range(count):
        faces = tuple(face(i, number) for number, present in enumerate(tracks) if i in present)
        yield Result(frame(i), faces, {"align": 0.001, "smooth": 0.0})


def smoothed_alone(track: int, present: range) -> Float32:
    smoother = RtsSmoother(SETTINGS, 68)
    for i in present:
        box = bounding_box(seen(i, track))
        smoother.update(i / FPS, seen(i, track), SCORE, float((box[2:] - box[:2]).max()))
    return smoother.take(len(present))[0]


def test_faces_are_smoothed_independently_over_their_whole_track() -> None:
    stays = (range(50), range(10, 35), range(40, 50))
    out = list(look_back(results(50, *stays), SETTINGS))
    assert [result.frame.index for result in out] == list(range(50))
    for number, stay in enumerate(stays):
        track = np.stack([f.smoothed for result in out for f in result.faces if f.track == number])
        np.testing.assert_array_equal(track, smoothed_alone(number, stay))


def test_a_track_that_comes_back_is_smoothed_anew() -> None:
    def gone_for_a_while() -> Iterator[Result]:
        for result in results(40, range(40)):
            away = 15 <= result.frame.index < 25
            yield Result(result.frame, () if away else result.faces)

    out = list(look_back(gone_for_a_while(), SETTINGS))
    assert [len(result.faces) for result in out] == [1] * 15 + [0] * 10 + [1] * 15
    back = np.stack([result.faces[0].smoothed for result in out[25:]])
    np.testing.assert_array_equal(back, smoothed_alone(0, range(25, 40)))


def test_the_box_goes_round_the_smoothed_points_and_what_was_measured_stays() -> None:
    for before, after in zip(results(30, range(30)), look_back(results(30, range(30)), SETTINGS), strict=True):
        np.testing.assert_array_equal(after.faces[0].box, bounding_box(after.faces[0].smoothed))
        assert after.faces[0].measured is not None
        assert before.faces[0].measured is not None
        np.testing.assert_array_equal(after.faces[0].measured.xy, before.faces[0].measured.xy)
        assert after.spans_s["smooth"] > 0


def test_delayed_results_are_bounded_in_number_and_hold_no_pixels() -> None:
    given = 0

    def counted() -> Iterator[Result]:
        nonlocal given
        for result in results(400, range(400)):
            given += 1
            yield result

    most = LOOK_AHEAD_S * FPS + 2 * BLOCK
    out = 0
    for out, result in enumerate(look_back(counted(), SETTINGS), 1):
        assert given - out < most
        assert result.frame.size == (20, 30)
        assert result.frame.bgr.strides == (0, 0, 0)  # one pixel stands for all
        assert not result.frame.bgr.any()  # and that is black
    assert out == given == 400


def test_results_without_faces_pass_through_in_order() -> None:
    assert [result.frame.index for result in look_back(results(100), SETTINGS)] == list(range(100))
    assert list(look_back(iter(()), SETTINGS)) == []


def test_results_with_a_frozen_timestamp_are_bounded_in_number_and_all_come_out() -> None:
    given = out = 0

    def frozen() -> Iterator[Result]:
        nonlocal given
        for given in range(1, 3001):
            yield Result(Frame(given, 0.0, 0.0, frame(0).bgr), ())

    for out, _ in enumerate(look_back(frozen(), SETTINGS), 1):
        assert given - out < MOST_WAITING
    assert out == given == 3000


@pytest.mark.parametrize("error", [SourceError("broken off"), KeyboardInterrupt()])
def test_all_results_before_an_error_come_out_before_it(error: BaseException) -> None:
    def broken() -> Iterator[Result]:
        yield from results(23, range(23))
        raise error

    out: list[Result] = []
    with pytest.raises(type(error)):
        out.extend(look_back(broken(), SETTINGS))
    assert len(out) == 23


def test_an_interrupt_while_a_block_is_smoothed_leaves_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed, take = [], RtsSmoother.take

    def take_interrupted(smoother: RtsSmoother, count: int) -> tuple[Float32, Float32]:
        smoothed.append(take(smoother, count))
        if len(smoothed) == 2:
            raise KeyboardInterrupt
        return smoothed[-1]

    monkeypatch.setattr(RtsSmoother, "take", take_interrupted)
    out: list[Result] = []
    with pytest.raises(KeyboardInterrupt):
        out.extend(look_back(results(200, range(200)), SETTINGS))
    assert [result.frame.index for result in out] == list(range(BLOCK))


def test_coasting_faces_stay_coasting() -> None:
    def hidden() -> Iterator[Result]:
        for i in range(30):
            yield Result(frame(i), (face(i, 0, measured=not 10 <= i < 14),))

    out = list(look_back(hidden(), SETTINGS))
    assert [i for i, result in enumerate(out) if result.faces[0].measured is None] == [10, 11, 12, 13]
    assert np.abs(out[12].faces[0].smoothed - SHAPE).max() < 1.0


def test_with_pictures_gives_results_their_pictures_back() -> None:
    pictures = (frame(i) for i in range(30))
    shown = [result.frame.bgr for result in with_pictures(look_back(results(30, range(30)), SETTINGS), pictures)]
    assert len(shown) == 30
    assert all((bgr == 9).all() for bgr in shown)


def test_second_reading_with_another_frame_size_raises() -> None:
    others = (Frame(i, i / FPS, 0.0, np.zeros((9, 7, 3), np.uint8)) for i in range(30))
    with pytest.raises(SourceError, match="second reading: wanted frame 1, got another"):
        list(with_pictures(look_back(results(30), SETTINGS), others))


def test_second_reading_that_is_shorter_raises() -> None:
    with pytest.raises(SourceError, match="second reading: wanted frame 21"):
        list(with_pictures(look_back(results(30), SETTINGS), (frame(i) for i in range(20))))
