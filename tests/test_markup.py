from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facetrack.tracker import markup
from facetrack.tracker.errors import MarkupError
from facetrack.tracker.pose import MEAN_FACE_MM

POINTS = {"aflw19": 19, "cofw29": 29, "five5": 5, "ibug68": 68, "wflw98": 98}
# Channel that takes each boundary's place in a mirrored picture: brows and eyes change sides.
BOUNDARY_MIRROR = [0, 3, 4, 1, 2, 5, 6, 9, 10, 7, 8, 11, 12, 13, 14]
# Boundaries and flips as they were specified before the markups were written, in the picture's left and right.
SPECIFIED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "boundaries.json").read_text(encoding="utf-8"))
LINED = ["aflw19", "cofw29", "ibug68", "wflw98"]


def other_side(part: str) -> str:
    return part.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")


def test_all_markups_are_there() -> None:
    assert markup.names() == sorted(POINTS)


@pytest.mark.parametrize(("name", "points"), POINTS.items())
def test_a_markup_is_found_by_its_name_and_by_its_points(name: str, points: int) -> None:
    found = markup.load(name)
    assert (found.name, found.points) == (name, points)
    assert markup.for_points(points) is found


def test_unknown_markups_are_named_with_the_known_ones() -> None:
    with pytest.raises(MarkupError, match="unknown markup 'ibug69': wanted one of aflw19, cofw29"):
        markup.load("ibug69")
    with pytest.raises(MarkupError, match=r"no markup has 7 points; wanted 19 \(aflw19\)"):
        markup.for_points(7)


@pytest.mark.parametrize("name", POINTS)
def test_every_index_is_a_point(name: str) -> None:
    found = markup.load(name)
    groups = [*found.parts.values(), *found.boundaries.values()]
    groups += [group for pair in found.normalisers.values() for group in pair]
    groups += [group for subset in found.subsets.values() for group in subset]
    assert all(0 <= point < found.points for group in groups for point in group)
    assert len(found.mirror) == found.points


@pytest.mark.parametrize("name", POINTS)
def test_each_point_belongs_to_one_part(name: str) -> None:
    found = markup.load(name)
    assert sorted(point for part in found.parts.values() for point in part) == list(range(found.points))


@pytest.mark.parametrize("name", POINTS)
def test_mirror_is_an_involution_that_swaps_left_and_right_parts(name: str) -> None:
    found = markup.load(name)
    assert (found.mirror[found.mirror] == np.arange(found.points)).all()
    for part, points in found.parts.items():
        assert set(found.mirror[list(points)]) == set(found.parts[other_side(part)])


@pytest.mark.parametrize("name", LINED)
def test_mirroring_maps_boundaries_onto_boundaries(name: str) -> None:
    found = markup.load(name)
    lines = list(found.boundaries.values())
    assert len(lines) == 15  # Qian et al. (PropNet) and the TAB paper
    for line, mirrored in zip(lines, BOUNDARY_MIRROR, strict=True):
        assert {int(found.mirror[point]) for point in line} == set(lines[mirrored])


@pytest.mark.parametrize("name", LINED)
def test_boundaries_are_the_specified_lines_in_the_specified_order(name: str) -> None:
    found = markup.load(name)
    sides = {"_L_": "_right_", "_R_": "_left_"}  # the picture's left is the subject's right
    names = [line.replace("_L_", sides["_L_"]).replace("_R_", sides["_R_"]) for line in SPECIFIED["names"]]
    lines = SPECIFIED["boundaries"][str(found.points)]
    assert list(found.boundaries.items()) == [(line, tuple(points)) for line, points in zip(names, lines, strict=True)]


@pytest.mark.parametrize("name", POINTS)
def test_mirrors_are_the_specified_ones(name: str) -> None:
    assert markup.load(name).mirror.tolist() == SPECIFIED["flip"][str(POINTS[name])]
    assert SPECIFIED["boundary_flip"] == BOUNDARY_MIRROR


def test_ibug68_mirror_maps_the_mean_face_onto_itself() -> None:
    mirrored = MEAN_FACE_MM[markup.load("ibug68").mirror] * [-1, 1, 1]
    np.testing.assert_allclose(mirrored, MEAN_FACE_MM, atol=1e-9)


def test_left_is_the_subjects_left_and_so_the_pictures_right() -> None:
    found, x = markup.load("ibug68"), MEAN_FACE_MM[:, 0]
    for side, sign in (("left", 1), ("right", -1)):
        for part in (f"eye_{side}", f"brow_{side}"):
            assert (sign * x[list(found.parts[part])] > 0).all()


def test_normalisers_match_the_published_ones() -> None:
    pairs = {name: markup.load(name).normalisers for name in POINTS}
    assert pairs["ibug68"]["io"] == ((36,), (45,))  # 300-W
    assert pairs["ibug68"]["ip"] == (tuple(range(36, 42)), tuple(range(42, 48)))
    assert pairs["wflw98"] == {"io": ((60,), (72,)), "ip": ((96,), (97,))}
    assert pairs["cofw29"] == {"io": ((8,), (9,)), "ip": ((16,), (17,))}
    assert pairs["five5"] == {"ip": ((0,), (1,))}


@pytest.mark.parametrize("name", POINTS)
def test_every_markup_has_the_five_points_in_the_order_of_five5(name: str) -> None:
    found, five = markup.load(name), markup.load("five5")
    groups = found.subsets["five5"]
    assert len(groups) == 5
    for i, group in enumerate(groups):
        assert {int(found.mirror[point]) for point in group} == set(groups[int(five.mirror[i])])


def test_the_five_points_of_the_mean_face_are_where_they_should_be() -> None:
    five = markup.load("ibug68").subset("five5", MEAN_FACE_MM[:, :2].astype(np.float32))
    right_eye, left_eye, nose, right_mouth, left_mouth = five
    np.testing.assert_allclose(left_eye - right_eye, [63.4, 0], atol=0.1)
    assert right_eye[1] < nose[1] < right_mouth[1] == left_mouth[1]
    assert right_mouth[0] < nose[0] < left_mouth[0]


@pytest.mark.parametrize(("name", "points"), [("inner49", 49), ("inner51", 51), ("five5", 5)])
def test_a_subset_works_on_any_number_of_faces(name: str, points: int) -> None:
    xy = np.random.default_rng(0).normal(0, 9, (4, 3, 68, 2)).astype(np.float32)
    subset = markup.load("ibug68").subset(name, xy)
    assert subset.shape == (4, 3, points, 2)
    assert subset.dtype == np.float32
    np.testing.assert_array_equal(subset[2, 1], markup.load("ibug68").subset(name, xy[2, 1]))


def test_inner49_leaves_out_the_contour_and_the_inner_mouth_corners() -> None:
    xy = np.arange(136, dtype=np.float32).reshape(68, 2)
    left = sorted({int(x) // 2 for x in markup.load("ibug68").subset("inner49", xy)[:, 0]})
    assert left == [i for i in range(17, 68) if i not in (60, 64)]


def test_subset_of_its_own_name_is_the_identity_and_an_unknown_one_is_refused() -> None:
    xy = np.zeros((68, 2), np.float32)
    assert markup.load("ibug68").subset("ibug68", xy) is xy
    with pytest.raises(MarkupError, match="ibug68 has no subset 'wflw98'; it has five5, inner49, inner51"):
        markup.load("ibug68").subset("wflw98", xy)


@pytest.mark.parametrize("mirror", [[1, 2, 0, 3, 4], [0, 1, 2], [0, 1, 2, 3, 9], [0, 0, 2, 3, 4]])
def test_mirror_that_is_no_involution_is_refused(mirror: list[int]) -> None:
    file = resources.files("facetrack.tracker").joinpath("markups", "five5.toml")
    table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    with pytest.raises(MarkupError, match="not an involution of 5 points"):
        markup._parse({**table, "mirror": mirror})
