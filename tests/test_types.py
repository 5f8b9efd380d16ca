from __future__ import annotations

import dataclasses
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facetrack.tracker.types import Face, Frame, Landmarks, Proposals, Result, State, frozen_array

XY = np.zeros((68, 2), np.float32)
SCORE = np.ones(68, np.float32)
PICTURE = np.zeros((48, 64, 3), np.uint8)


def face(**changed: Any) -> Face:
    values: dict[str, Any] = {
        "track": 0,
        "state": State.NEW,
        "box": np.array([0, 0, 9, 9]),
        "measured": Landmarks(XY, SCORE, 0.9, 0.9, "ibug68"),
        "smoothed": XY,
        "speed": XY,
        "confidence": 0.9,
    }
    return Face(**{**values, **changed})


def test_a_frozen_array_is_a_read_only_copy_of_the_wanted_type() -> None:
    given = np.arange(6.0).reshape(3, 2)
    frozen = frozen_array(given, (None, 2), "points")
    assert frozen.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        frozen[0, 0] = 7
    same_type = np.ones((3, 2), np.float32)
    frozen = frozen_array(same_type, (3, 2), "points")
    same_type[0, 0] = 7  # the caller's own array stays writeable and apart
    assert frozen[0, 0] == 1


def test_a_frozen_array_is_not_copied_again() -> None:
    frozen = frozen_array([[1, 2]], (1, 2), "points")
    assert frozen_array(frozen, (1, 2), "points") is frozen


def test_a_frozen_array_shares_no_memory_with_a_map_or_a_view(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "points", np.float32, "w+", shape=(3, 2))
    under = np.zeros((3, 2), np.float32)
    read_only = under[:]
    read_only.flags.writeable = False
    for given in (mapped, memoryview(under), under[:], read_only):
        frozen = frozen_array(given, (3, 2), "points")
        (under if given is read_only else given)[0, 0] = 7  # type: ignore[index]
        assert frozen[0, 0] == 0
        under[:] = 0


@pytest.mark.parametrize(
    ("values", "shape", "wanted"),
    [(np.zeros((3, 3)), (None, 2), r"\(\*, 2\), got \(3, 3\)"), (np.zeros(4), (2, 2), r"\(2, 2\), got \(4,\)")],
)
def test_a_wrong_shape_names_what_was_wanted_and_what_was_got(
    values: Any, shape: tuple[int | None, ...], wanted: str
) -> None:
    with pytest.raises(ValueError, match=f"points: wanted shape {wanted}"):
        frozen_array(values, shape, "points")


@pytest.mark.parametrize(
    ("bgr", "got"),
    [
        (None, "got NoneType"),  # what cv2.imread gives for a file that is not there
        (np.zeros((0, 0, 3), np.uint8), r"got \(0, 0, 3\) of uint8"),
        (np.zeros((4, 4), np.uint8), r"got \(4, 4\) of uint8; for the channels see cv2\.cvtColor$"),
        (np.zeros((4, 4, 4), np.uint8), r"got \(4, 4, 4\) of uint8; for the channels see cv2\.cvtColor$"),
        (np.zeros((4, 4, 3)), r"got \(4, 4, 3\) of float64; scale it to 0 \.\. 255, then \.astype\(np\.uint8\)$"),
        (np.zeros((4, 4), np.uint16), r"got \(4, 4\) of uint16; scale it .*; for the channels see cv2\.cvtColor$"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"got \(2, 4, 4, 3\) of uint8; pass one picture at a time$"),
    ],
)
def test_a_frame_of_anything_else_than_a_picture_is_refused(bgr: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"Frame\.bgr: wanted a NumPy array \(H, W, 3\) of uint8.*, {got}"):
        Frame(0, 0.0, 0.0, bgr)


@pytest.mark.parametrize(
    "number", [Fraction(1, 2), Decimal("0.5"), np.float32(0.5), np.float64(0.5), np.array(0.5)], ids=lambda n: type(n)
)
def test_frame_numbers_are_converted_to_int_and_float(number: Any) -> None:
    """The smoother's arithmetic is compiled for these alone."""
    frame = Frame(np.int64(7), number, number, PICTURE)  # type: ignore[arg-type]
    assert (frame.index, frame.time_s, frame.taken_s) == (7, 0.5, 0.5)
    assert [type(value) for value in (frame.index, frame.time_s, frame.taken_s)] == [int, float, float]
    assert type(Frame(7, 2, 1, PICTURE).time_s) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.5, 0.0, 0.0), r"Frame\.index: wanted a whole number, got 0\.5"),
        ((None, 0.0, 0.0), r"Frame\.index: wanted a whole number, got None"),
        ((0, "0.1", 0.0), r"Frame\.time_s: wanted a number of seconds, got '0\.1'"),
        ((0, None, 0.0), r"Frame\.time_s: wanted a number of seconds, got None"),
        ((0, 0.0, None), r"Frame\.taken_s: wanted a number of seconds, got None"),
        ((0, 10**400, 0.0), r"Frame\.time_s: wanted a number of seconds, got 1000"),
    ],
)
def test_non_numeric_frame_values_are_refused_by_name(values: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frame(*values, PICTURE)


@pytest.mark.parametrize("time_s", [np.nan, np.inf, -np.inf, np.float32("nan")])
def test_frame_with_a_non_finite_time_is_refused(time_s: float) -> None:
    with pytest.raises(ValueError, match=r"Frame\.time_s: wanted a finite number of seconds, got -?(nan|inf); .*rate"):
        Frame(0, time_s, 0.0, PICTURE)


def test_the_size_of_a_frame_is_height_and_width() -> None:
    assert Frame(0, 0.0, 0.0, PICTURE).size == (48, 64)


def test_proposals_must_be_sorted_by_descending_score() -> None:
    boxes, points = np.zeros((2, 4)), np.zeros((2, 5, 2))
    assert len(Proposals(boxes, np.array([0.9, 0.2]), points)) == 2
    with pytest.raises(ValueError, match="wanted descending"):
        Proposals(boxes, np.array([0.2, 0.9]), points)


def test_no_proposals_are_empty_arrays_of_the_right_shapes() -> None:
    none = Proposals.none()
    assert len(none) == 0
    assert (none.boxes.shape, none.scores.shape, none.points.shape) == ((0, 4), (0,), (0, 5, 2))


def test_mismatched_array_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Landmarks.score: wanted shape \(68\)"):
        Landmarks(XY, SCORE[:5], 1.0, 1.0, "ibug68")
    with pytest.raises(ValueError, match=r"Proposals.points: wanted shape \(1, 5, 2\)"):
        Proposals(np.zeros((1, 4)), np.zeros(1), np.zeros((1, 4, 2)))
    with pytest.raises(ValueError, match=r"Face.speed: wanted shape \(68, 2\)"):
        face(speed=XY[:5])
    with pytest.raises(ValueError, match=r"Face\.box"):
        face(box=np.zeros(5))


def test_values_cannot_be_changed() -> None:
    seen = face()
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.track = 3
    for array in (seen.box, seen.smoothed, seen.speed):
        assert not array.flags.writeable


@pytest.mark.parametrize(
    "make",
    [
        face,
        lambda: Landmarks(XY, SCORE, 0.9, 0.9, "ibug68"),
        lambda: Frame(0, 0.0, 0.0, PICTURE),
        lambda: Result(Frame(0, 0.0, 0.0, PICTURE), (face(),)),
        Proposals.none,
    ],
)
def test_values_with_arrays_are_hashable_and_compare_by_identity(make: Callable[[], object]) -> None:
    one, other = make(), make()
    assert one in (other, one)
    assert one not in (other,)
    assert len({one, other, one}) == 2


def test_states_are_the_words_of_the_csv() -> None:
    assert [str(state) for state in State] == ["new", "tracked", "coasting"]


def test_a_result_is_shown_in_a_few_lines() -> None:
    shown = repr(Result(Frame(3, 0.1, 0.0, PICTURE), (face(), face(track=1))))
    assert all(part in shown for part in ("index=3", "track=0", "track=1", "confidence=0.9", "markup='ibug68'"))
    assert len(shown) < 800


def test_a_result_without_faces_is_empty() -> None:
    result = Result(Frame(0, 0.0, 0.0, PICTURE), ())
    assert (result.faces, dict(result.spans_s)) == ((), {})


def proposals(*scores: float) -> Proposals:
    """Faces with these scores, the rest of whose values are all different."""
    rng, count = np.random.default_rng(int(1000 * sum(scores))), len(scores)
    return Proposals(rng.random((count, 4)), np.array(scores), rng.random((count, 5, 2)))


def test_joined_proposals_are_those_of_all_parts_best_first_and_of_equals_the_earlier() -> None:
    parts = [proposals(0.9, 0.3), Proposals.none(), proposals(0.5, 0.3)]
    joined = Proposals.joined(parts)
    assert joined.scores.tolist() == pytest.approx([0.9, 0.5, 0.3, 0.3])
    one_by_one = [(0, 0), (2, 0), (0, 1), (2, 1)]
    np.testing.assert_array_equal(joined.boxes, [parts[p].boxes[i] for p, i in one_by_one])
    np.testing.assert_array_equal(joined.points, [parts[p].points[i] for p, i in one_by_one])
    assert len(Proposals.joined([])) == 0
