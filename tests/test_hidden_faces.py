"""What is hidden of training faces is hidden where it should be, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from facetrack.training.detection.discs import UNKNOWN
from facetrack.training.detection.hidden import GREY, cover, cut, veil

SIZE = 96
EYES = np.array([[[36, 40], [60, 40]], [[np.nan, np.nan], [10, 10]]], np.float32)
MOUTHS = np.array([[48, 64], [10, 20]], np.float32)
BOX = np.array([48, 52, 50], np.float32)
SEEDS = range(60)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (SIZE, SIZE, 3)).astype(np.uint8)


def test_a_cover_hides_the_mouth_or_the_eyes_and_never_both() -> None:
    whole = picture()
    kept = whole.copy()
    hidden_parts = []
    for seed in SEEDS:
        covered = cover(whole, EYES, MOUTHS, [], np.random.default_rng(seed))
        changed = (covered != whole).any(-1)
        eyes, mouth = changed[40, 36] and changed[40, 60], changed[64, 48]
        assert bool(eyes) != bool(mouth)
        assert not changed[:8].any()  # the second face, whose eyes nobody knows
        hidden_parts.append(bool(mouth))
    assert 0.5 < np.mean(hidden_parts) < 0.9
    np.testing.assert_array_equal(whole, kept)


def test_cover_rotates_with_the_face() -> None:
    quarter = np.array([[0, 1], [-1, 0]], np.float32)  # the face's up is now to the right
    middle = np.float32([48, 48])
    for seed in SEEDS:
        upright, turned = (np.zeros((SIZE, SIZE, 3), np.uint8) for _ in range(2))
        one = cover(upright, EYES[:1], MOUTHS[:1], [], np.random.default_rng(seed)).any(-1)
        eyes, mouths = ((points - middle) @ quarter + middle for points in (EYES[:1], MOUTHS[:1]))
        two = cover(turned, eyes, mouths, [], np.random.default_rng(seed)).any(-1)
        assert (two != np.rot90(one, -1)).sum() < 0.1 * one.sum() + 40  # its edges lie on whole pixels


def test_face_outside_the_picture_is_not_covered() -> None:
    away = np.float32([500, 0])
    np.testing.assert_array_equal(cover(picture(), EYES + away, MOUTHS + away, [], np.random.default_rng(0)), picture())


def test_veil_is_monotonic_and_reduces_contrast() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2)
    spans = []
    for seed in SEEDS:
        veiled = veil(ramp, np.random.default_rng(seed)).astype(int)[:, 0]
        assert (np.diff(veiled, axis=0) >= 0).all()
        spans.append(int(np.ptp(veiled, axis=0).max()))
    assert min(spans) >= 255 * 0.1 - 2
    assert np.median(spans) == pytest.approx(255 * np.sqrt(0.1), rel=0.3)


def test_cut_blanks_one_side_or_a_border_and_leaves_the_rest_unchanged() -> None:
    whole, maps = picture(), np.zeros((5, SIZE // 2, SIZE // 2), np.uint8)
    x1, y1, x2, y2 = (BOX[[0, 1, 0, 1]] + BOX[2] / 2 * np.float32([-1, -1, 1, 1])).astype(int)
    sides, close_ups = set(), []
    for seed in SEEDS:
        ended, unknown = cut(whole, maps, BOX, np.random.default_rng(seed))
        outside = ((ended == GREY) | (ended == 0)).all(-1)
        beyond = np.repeat(np.repeat((unknown == UNKNOWN).all(0), 2, 0), 2, 1)
        np.testing.assert_array_equal(outside | (ended == whole).all(-1), True)
        assert (outside[beyond]).all()
        np.testing.assert_array_equal(ended[~beyond], whole[~beyond])
        lost = beyond[y1:y2, x1:x2].mean()
        corners = beyond[[0, 0, -1, -1], [0, -1, 0, -1]]
        if corners.all():  # a close-up: between the face's size and 1.8 times as close
            assert 0.0 <= lost < 0.78
            assert not beyond[int(BOX[1]), int(BOX[0])]
            close_ups.append(lost)
        else:
            assert 0.05 < lost < 0.55
            sides.add(tuple(corners.tolist()))
    assert len(sides) == 4
    assert 0.2 < len(close_ups) / len(SEEDS) < 0.5
    assert not (maps == UNKNOWN).any()
