"""What a face looks like: the same in other light, another for another face, silent on what is not seen."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from fakes import hidden
from skimage.color import rgb2lab

from facetrack.tracker.appearance import (
    CHROMA_SPREAD,
    HALF_COSTS,
    _describe_whole,
    begins_shot,
    blended,
    describe_appearance,
    known_cells,
    similarity,
    similarity_in_part,
)
from facetrack.tracker.geometry import CropTransform
from facetrack.tracker.track import TrackSettings
from facetrack.tracker.types import Float32, UInt8

SETTINGS = TrackSettings()


def portrait(seed: int) -> UInt8:
    """Something as smooth and as skin-coloured as a face."""
    rng = np.random.default_rng(seed)
    small = rng.normal((110, 130, 165), 35, (5, 5, 3)).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(small, (48, 48), interpolation=cv2.INTER_CUBIC), np.uint8)


def described(picture: UInt8) -> Float32:
    """What is told of a picture that is a crop already."""
    height, width = picture.shape[:2]
    return describe_appearance(
        picture, CropTransform.around(((width - 1) / 2, (height - 1) / 2), max(height, width), 96)
    )


def smooth_picture(height: int, width: int) -> UInt8:
    small = np.random.default_rng(7).integers(30, 230, (5, 6, 3), np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.mark.parametrize("colour", [(128, 128, 128), (20, 60, 220), (250, 10, 5), (90, 120, 170), (3, 2, 9)])
def test_appearance_colours_match_cielab_of_scikit_image(colour: tuple[int, int, int]) -> None:
    """Two colours; the differences of their chromas, in the description's own units, are CIELAB's."""
    picture = np.full((48, 48, 3), (90, 140, 180), np.uint8)
    picture[:, :24] = colour
    lab = rgb2lab(picture[..., ::-1])
    cells = described(picture).reshape(8, 8, 3)
    expected, found = (place[0, 0] - place[0, -1] for place in (lab, cells))
    contrast = abs(expected[0]) / 2 + 1e-3
    units = np.array([contrast, CHROMA_SPREAD, CHROMA_SPREAD])
    np.testing.assert_allclose(
        found / np.linalg.norm(found), expected / units / np.linalg.norm(expected / units), atol=2e-3
    )


@pytest.mark.parametrize("angle", [0.0, 0.6, -2.0])
@pytest.mark.parametrize("side", [40.0, 90.0, 400.0])
def test_appearance_in_place_matches_that_of_the_extracted_crop(side: float, angle: float) -> None:
    """Cut out first by `CropTransform.crop`, or looked at where it is."""
    picture = smooth_picture(240, 320)
    crop = CropTransform.around((150.0, 110.0), side, 96, angle=angle)
    assert similarity(describe_appearance(picture, crop), described(crop.crop(picture))) > 0.995


def test_appearances_are_float32_unit_vectors_and_that_of_a_black_picture_is_zero() -> None:
    black, white = np.zeros((48, 48, 3), np.uint8), np.full((7, 9, 3), 255, np.uint8)
    for picture, norm in ((portrait(1), 1), (black, 0), (white, 1)):
        appearance = described(picture)
        assert appearance.dtype == np.float32
        assert np.linalg.norm(appearance) == pytest.approx(norm, abs=1e-3)


def test_appearance_is_robust_to_changes_of_light_noise_and_framing() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        picture = portrait(seed)
        darker = (picture * 0.7).astype(np.uint8)
        noisy = (picture + rng.normal(0, 8, picture.shape)).clip(0, 255).astype(np.uint8)
        shifted = np.roll(picture, 2, axis=1)
        for changed in (darker, noisy, shifted):
            assert described(picture) @ described(changed) > SETTINGS.same_appearance


def test_different_pictures_look_different_in_colour_and_in_grey() -> None:
    similarity = {"colour": [], "grey": []}
    for seed in range(0, 60, 2):
        a, b = portrait(seed), portrait(seed + 1)
        similarity["colour"].append(described(a) @ described(b))
        grey_a, grey_b = (np.repeat(p.mean(2, keepdims=True), 3, 2).astype(np.uint8) for p in (a, b))
        similarity["grey"].append(described(grey_a) @ described(grey_b))
    assert np.median(similarity["colour"]) < SETTINGS.other_appearance
    assert np.median(similarity["grey"]) < SETTINGS.other_appearance


def test_cells_outside_the_picture_are_unknown_and_do_not_count() -> None:
    for seed in range(20):
        whole, cut = portrait(seed), portrait(seed)
        cut[:, :18] = 0
        appearance = described(cut)
        assert known_cells(appearance).reshape(8, 8).tolist() == [[False] * 3 + [True] * 5] * 8
        assert similarity(described(whole), appearance) > 0.9
        assert similarity(appearance, described(whole)) == pytest.approx(
            similarity(described(whole), appearance), abs=1e-6
        )


def test_appearances_without_common_known_cells_have_no_similarity() -> None:
    left, right = portrait(1), portrait(1)
    left[:, 24:] = 0
    right[:, :24] = 0
    assert similarity(described(left), described(right)) == 0
    assert similarity_in_part(described(left), described(right)) <= 0
    assert similarity(described(np.zeros((48, 48, 3), np.uint8)), described(left)) == 0


def test_a_cell_that_is_as_light_as_the_mean_is_known() -> None:
    """So is a face of one grey; only what is black is not."""
    picture = np.full((48, 48, 3), 128, np.uint8)
    assert known_cells(described(picture)).all()
    picture[:24], picture[24:, :24] = 90, 166
    assert known_cells(described(picture)).all()
    picture[:, :12] = 0
    assert known_cells(described(picture)).reshape(8, 8).tolist() == [[False] * 2 + [True] * 6] * 8


def test_partly_covered_face_is_compared_by_its_visible_part() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        covered = portrait(seed)
        covered[:, :16] = rng.integers(20, 120, 3)
        one, other = described(portrait(seed)), described(covered)
        assert similarity_in_part(one, other) > max(similarity(one, other) - 1e-6, 0.8)


def half_similarity(one: Float32, other: Float32) -> float:
    """The most alike of the halves of which more than half is known, lightness without its mean in what both know."""
    found = [-1.0]
    cells = [vector.reshape(8, 8, 3).astype(float) for vector in (one, other)]
    for where in (np.s_[:, :4], np.s_[:, 4:], np.s_[:4], np.s_[4:]):
        known = (cells[0][where][..., 0] != 0) & (cells[1][where][..., 0] != 0)
        if known.mean() > 0.5:
            a, b = (part[where][known] - [part[where][known][:, 0].mean(), 0, 0] for part in cells)
            found.append((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
    return max(found)


def test_similarity_in_part_matches_a_numpy_reference() -> None:
    rng = np.random.default_rng(0)
    for share in np.linspace(0, 0.6, 50):
        one, other = (described(portrait(seed)).reshape(64, 3) for seed in rng.integers(0, 50, 2))
        one[rng.random(64) < share] = 0
        one, other = one.ravel(), other.ravel()
        wanted = max(similarity(one, other), half_similarity(one, other) - HALF_COSTS)
        assert similarity_in_part(one, other) == pytest.approx(wanted, abs=1e-5)


def test_colour_entering_beside_a_grey_face_changes_its_appearance_gradually() -> None:
    for seed in range(20):
        grey = np.repeat(portrait(seed).mean(2, keepdims=True), 3, 2).astype(np.uint8)
        appearances = []
        for width in range(0, 17, 2):
            grey[:, :width] = (200, 90, 60)
            appearances.append(described(grey))
        assert min(similarity(a, b) for a, b in pairwise(appearances)) > 0.5


def test_blending_weights_0_and_1_return_either_appearance_and_unknown_cells_are_filled() -> None:
    one, other = described(portrait(1)), described(portrait(2))
    np.testing.assert_allclose(blended(one, other, 0.0), one, atol=1e-5)
    np.testing.assert_allclose(blended(one, other, 1.0), other, atol=1e-5)
    grown = blended(hidden(one), one, 0.0)
    assert known_cells(grown).all()
    np.testing.assert_allclose(blended(one, hidden(one), 0.0), one, atol=1e-5)


def test_shot_begins_when_the_whole_picture_changes() -> None:
    rng, first = np.random.default_rng(0), smooth_picture(120, 160)
    other = first[::-1, :, ::-1]
    moved = np.roll(first, 6, 1)
    noisy = np.clip(0.7 * first + rng.normal(0, 8, first.shape), 0, 255).astype(np.uint8)
    assert not begins_shot(None, first)
    assert not any(begins_shot(first, same) for same in (first, moved, noisy))
    assert begins_shot(first, np.ascontiguousarray(other))


def test_quarters_of_a_wide_picture_weigh_equally_in_its_description() -> None:
    """Each fourth of it weighs the same, whatever its shape."""
    for rows, columns in ((slice(0, 20), slice(0, 90)), (slice(20, 40), slice(90, 180))):
        picture, changed = np.full((40, 180, 3), 90, np.uint8), np.full((40, 180, 3), 90, np.uint8)
        picture[:20, :90], picture[20:, 90:] = 200, 200
        changed[rows, columns] = 200
        assert similarity(_describe_whole(picture), _describe_whole(changed)) == pytest.approx(1 / np.sqrt(3), abs=0.01)
