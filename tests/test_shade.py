"""Shade, coloured light and lines do to a picture what they say, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from facetrack.tracker.types import UInt8
from facetrack.training.shade import cast_shade, colour_light, draw_lines

SEEDS = range(60)
WHITE = np.full((80, 120, 3), 160, np.uint8)


def picture() -> UInt8:
    return np.random.default_rng(0).integers(1, 256, (80, 120, 3)).astype(np.uint8)


@pytest.mark.parametrize("spoil", [cast_shade, colour_light, draw_lines])
def test_effects_keep_the_input_and_give_one_picture_per_seed(spoil: Callable[..., UInt8]) -> None:
    whole, kept = picture(), picture()
    seen = [spoil(whole, np.random.default_rng(seed)) for seed in SEEDS]
    np.testing.assert_array_equal(whole, kept)
    assert all(spoilt.shape == whole.shape and spoilt.dtype == np.uint8 for spoilt in seen)
    np.testing.assert_array_equal(seen[3], spoil(whole, np.random.default_rng(3)))
    assert len({spoilt.tobytes() for spoilt in seen}) == len(SEEDS)


def test_shade_is_colourless_uneven_leaves_light_somewhere_and_is_never_fully_dark() -> None:
    for seed in SEEDS:
        share = cast_shade(WHITE, np.random.default_rng(seed)) / 160
        assert np.ptp(share, axis=2).max() == 0
        assert share.min() > 0.14
        assert 0.8 < share.max() <= 1.5
        assert np.ptp(share) > 0.02


def test_shade_ranges_from_single_edges_to_many_stripes() -> None:
    crossings = []
    for seed in SEEDS:
        row = cast_shade(WHITE, np.random.default_rng(seed))[40, :, 0].astype(float)
        crossings.append(int((np.diff(row > (row.min() + row.max()) / 2) != 0).sum()))
    assert min(crossings) <= 1  # an edge, which lies along the row at times
    assert max(crossings) > 6


def test_coloured_light_leaves_one_colour_its_whole_light() -> None:
    one_colour = 0
    for seed in SEEDS:
        lit = colour_light(WHITE, np.random.default_rng(seed)).astype(int)
        one_colour += bool(np.ptp(lit, axis=(0, 1)).max() == 0)
        corners = lit[[0, 0, -1, -1], [0, -1, 0, -1]].max(1)
        assert corners.max() >= 159  # the lights of two sides are weaker only between them
    assert 0.4 < one_colour / len(SEEDS) < 0.8


def test_coloured_light_sometimes_replaces_the_colours_of_the_picture() -> None:
    colourful = np.zeros((80, 120, 3), np.uint8)
    colourful[:, :40, 0] = colourful[:, 40:80, 1] = colourful[:, 80:, 2] = 200
    pale = 0
    for seed in SEEDS:
        lit = colour_light(colourful, np.random.default_rng(seed)).astype(int)
        pale += bool(lit[40, 20].max() > 0 and lit[40, 20, 1:].max() > 0)
    assert 0.25 < pale / len(SEEDS) < 0.75


def test_lines_hide_a_part_and_leave_the_rest() -> None:
    hidden = []
    for seed in SEEDS:
        lined = draw_lines(picture(), np.random.default_rng(seed))
        hidden.append(float((lined != picture()).any(-1).mean()))
    assert min(hidden) > 0.01
    assert max(hidden) < 0.9
    assert 0.1 < np.median(hidden) < 0.5
