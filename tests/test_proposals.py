"""Faces from response maps: peaks, grouping, suppression."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import placed

from facetrack.tracker.proposals import LIMITS, Candidates, Limits, find_peaks, group_peaks, suppress
from facetrack.tracker.views import VIEWS


def as_peaks(faces: list[np.ndarray], response: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `find_peaks` would give for ideal maps of these faces; NaN points have no peak."""
    rows = [(k, *face[k]) for k in range(5) for face in faces if not np.isnan(face[k, 0])]
    kind = np.array([row[0] for row in rows], np.int64)
    xy = np.array([row[1:] for row in rows], np.float32).reshape(-1, 2)
    return kind, xy, np.full(len(rows), response, np.float32)


def peaks_by_the_book(plane: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    """Every pixel above the threshold that is the first of the largest within two pixels."""
    found = set()
    for y, x in np.argwhere(plane > threshold):
        near = plane[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        top = np.argwhere(near == near.max())[0] + (max(y - 2, 0), max(x - 2, 0))
        if tuple(top) == (y, x):
            found.add((int(x), int(y)))
    return found


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_non_finite_values_are_no_peaks(broken: float):
    maps = np.zeros((5, 12, 40), np.float32)
    maps[:, 5, 5], maps[:, 6, 20], maps[1, 6, 30] = 1.0, 0.8, broken
    maps[2, 6, 6] = np.nan  # beside a peak
    kind, xy, response = find_peaks(maps, 0.3, 10)
    assert kind.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    np.testing.assert_allclose(response, [1.0, 0.8] * 5)
    np.testing.assert_allclose(xy, [(5, 5), (20, 6)] * 5)


def test_peaks_match_a_brute_force_search_for_every_type():
    maps = np.random.default_rng(0).normal(0, 1, (5, 30, 40)).astype(np.float32)
    kind, xy, response = find_peaks(maps, 0.5, 1000)
    for k in range(5):
        wanted = peaks_by_the_book(maps[k], 0.5)
        mine = np.rint(xy[kind == k]).astype(int)
        assert len(mine) == len(wanted)
        tops = sorted((float(maps[k, y, x]) for x, y in wanted), reverse=True)
        assert response[kind == k].tolist() == tops


def test_only_the_highest_peaks_of_a_type_are_kept():
    maps = np.random.default_rng(1).normal(0, 1, (3, 40, 40)).astype(np.float32)
    kind, _, response = find_peaks(maps, 0.0, 1000)
    few_kind, _, few = find_peaks(maps, 0.0, 7)
    for k in range(3):
        assert few[few_kind == k].tolist() == response[kind == k][:7].tolist()


def test_an_equal_plateau_is_one_peak():
    maps = np.zeros((1, 20, 20), np.float32)
    y, x = np.mgrid[:20, :20]
    maps[0][(x - 8) ** 2 + (y - 11) ** 2 <= 4] = 1.0
    _, xy, response = find_peaks(maps, 0.5, 10)
    assert response.tolist() == [1.0]
    assert np.abs(xy[0] - (8, 11)).max() <= 1.0  # the first of the equals is at the edge of the disc


def test_peak_position_is_the_centroid_of_positive_values_in_its_13_pixel_disc():
    maps = np.random.default_rng(2).normal(0, 1, (5, 30, 40)).astype(np.float32)
    rows, columns = np.mgrid[:30, :40]
    for k, place, height in zip(*find_peaks(maps, 0.5, 1000), strict=True):
        ((y, x),) = np.argwhere(maps[k] == height)
        weight = np.where((rows - y) ** 2 + (columns - x) ** 2 <= 4, maps[k].clip(0), 0).astype(np.float64)
        centroid = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        assert place == pytest.approx(centroid, abs=1e-4)


def test_a_symmetric_peak_lies_on_its_exact_pixel():
    y, x = np.mgrid[:20, :20]
    bell = np.exp(-((x - 8) ** 2 + (y - 11) ** 2) / 4).astype(np.float32)
    _, xy, _ = find_peaks(bell[None], 0.5, 10)
    assert xy[0] == pytest.approx((8, 11), abs=1e-5)


@pytest.mark.parametrize("view", range(len(VIEWS)))
@pytest.mark.parametrize(("side", "roll_deg"), [(14.0, 0.0), (20.0, -40.0), (32.0, 50.0)])
def test_five_peaks_in_the_pattern_of_a_face_are_grouped_into_that_face(view, side, roll_deg):
    points = placed(view, (50.0, 40.0), side, roll_deg)
    found = group_peaks(*as_peaks([points]))
    best = found.take(suppress(found.centre, found.side, found.responses.sum(1)))
    assert len(best) == 1
    assert best.centre[0] == pytest.approx((50, 40), abs=0.05 * side)
    assert best.side[0] == pytest.approx(side, rel=0.06)  # a neighbouring view may fit as well
    assert np.rad2deg(best.roll[0]) == pytest.approx(roll_deg, abs=4)
    assert best.points[0] == pytest.approx(points, abs=1e-4)
    assert best.residual[0] < 0.03


@pytest.mark.parametrize("missing", range(5))
def test_face_with_a_hidden_landmark_is_found_and_the_landmark_is_inferred(missing):
    points = placed(0, (50.0, 40.0), 24.0, 15.0)
    seen = points.copy()
    seen[missing] = np.nan
    found = group_peaks(*as_peaks([seen]))
    assert (found.responses[:, missing] == 0).all()
    assert np.linalg.norm(found.points[:, missing] - points[missing], axis=-1).min() < 0.12 * 24


def test_grouping_prefers_a_peak_in_its_expected_place_to_a_slightly_higher_one():
    points = placed(0, (50.0, 40.0), 24.0, 0.0)
    kind, xy, response = as_peaks([points])
    aside = points[2] + (0.0, 2.5)  # still near enough to be the nose
    kind, xy = np.append(kind, 2), np.vstack((xy, aside)).astype(np.float32)
    found = group_peaks(kind, xy, np.append(0.9 * response, 1.0).astype(np.float32))
    assert found.points[found.residual.argmin()] == pytest.approx(points, abs=1e-4)


def test_grouping_tolerates_an_extra_deviation_of_0_7_pixels_in_a_small_face():
    """Maps are made of whole pixels, however small the face."""
    side = 14.0
    for far, counts in ((0.6, True), (0.8, False)):
        points = placed(0, (50.0, 40.0), side, 0.0)
        points[3:] = np.nan
        seen = points.copy()
        seen[2, 1] += LIMITS.distance * side + far
        two_and_nose = Limits(residual=1.0, max_roll=float(np.deg2rad(5.0)))
        assert bool(len(group_peaks(*as_peaks([seen]), two_and_nose))) == counts


def test_two_types_alone_are_no_face():
    points = placed(0, (50.0, 40.0), 24.0, 0.0)
    points[2:] = np.nan
    assert len(group_peaks(*as_peaks([points]))) == 0


@pytest.mark.parametrize(("side", "roll_deg"), [(9.0, 0.0), (50.0, 0.0), (20.0, 90.0), (20.0, 180.0)])
def test_faces_outside_the_size_and_roll_limits_are_rejected(side, roll_deg):
    assert len(group_peaks(*as_peaks([placed(0, (60.0, 60.0), side, roll_deg)]))) == 0


def test_two_faces_side_by_side_are_two_faces():
    faces = [placed(0, (30.0, 40.0), 20.0, 10.0), placed(1, (56.0, 42.0), 24.0, -20.0)]
    found = group_peaks(*as_peaks(faces))
    best = found.take(suppress(found.centre, found.side, found.responses.sum(1) - found.residual))
    assert sorted(best.centre[:, 0].round().tolist()) == pytest.approx([30, 56], abs=1)


def test_no_peaks_are_no_faces():
    nothing = find_peaks(np.zeros((5, 16, 16), np.float32), 0.3, 8)
    assert len(group_peaks(*nothing)) == 0


def candidates(centre: list[tuple[float, float]], side: list[float]) -> Candidates:
    count = len(side)
    return Candidates(
        np.array(centre, np.float32),
        np.array(side, np.float32),
        np.zeros(count, np.float32),
        np.ones((count, 5), np.float32),
        np.zeros(count, np.float32),
        np.zeros((count, 5, 2), np.float32),
    )


def test_to_frame_undoes_the_border_and_scale_of_candidates_at_pixel_centres():
    # pixel 3 + 4 of the framed half-size picture covers pixels 6 and 7 of the whole one: its centre is 6.5
    moved = candidates([(7.0, 8.0)], [10.0]).to_frame((2.0, 2.0), 4)
    assert moved.centre[0].tolist() == [6.5, 8.5]
    assert moved.side.tolist() == [20.0]


def test_suppression_keeps_the_better_of_equal_boxes_and_is_idempotent():
    rng = np.random.default_rng(0)
    centre, side = rng.uniform(0, 200, (60, 2)).astype(np.float32), rng.uniform(10, 60, 60).astype(np.float32)
    score = rng.random(60).astype(np.float32)
    keep = suppress(centre, side, score)
    again = suppress(centre[keep], side[keep], score[keep])
    assert again.tolist() == list(range(len(keep)))
    assert (np.diff(score[keep]) <= 0).all()
    twins = suppress(np.zeros((2, 2), np.float32), np.full(2, 9.0, np.float32), np.array([0.2, 0.7], np.float32))
    assert twins.tolist() == [1]


def test_suppression_removes_a_part_of_a_better_face_and_keeps_a_neighbour():
    keep = suppress(
        np.array([[50, 50], [50, 65], [95, 50]], np.float32),
        np.array([40, 12, 40], np.float32),
        np.array([0.9, 0.8, 0.7], np.float32),
    )
    assert keep.tolist() == [0, 2]


@pytest.mark.parametrize(("side", "stays"), [(20.0, [0]), (29.0, [0]), (31.0, [0, 1]), (60.0, [0, 1])])
def test_suppression_keeps_a_face_much_larger_than_a_better_one_inside_it(side: float, stays: list[int]) -> None:
    centre, sides = np.float32([[50, 50], [52, 51]]), np.float32([20, side])
    assert suppress(centre, sides, np.float32([0.99, 0.98])).tolist() == stays
    assert suppress(centre, sides, np.float32([0.98, 0.99])).tolist() == [1]  # the better one of both covers the other
