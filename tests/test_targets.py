"""Vector labels: Gaussians of one height at fractional places, tails of what lies outside."""

from __future__ import annotations

import numpy as np
import pytest

from facetrack.training.alignment.targets import gaussian_vectors

STRIDE, SIGMA, PEAK = 4.0, 1.2, 3.0


def vectors(*points: tuple[float, float], cells: int = 32) -> np.ndarray:
    return gaussian_vectors(np.array(points, np.float32), cells, STRIDE, SIGMA, PEAK)


def test_shape_and_type_follow_the_points() -> None:
    label = gaussian_vectors(np.zeros((3, 68, 2), np.float32), 24, STRIDE, SIGMA, PEAK)
    assert label.shape == (3, 68, 24, 2)
    assert label.dtype == np.float32


@pytest.mark.parametrize("cell", [0, 7, 31])
def test_a_point_on_a_cells_middle_has_the_whole_peak_there(cell: int) -> None:
    pixel = STRIDE * (cell + 0.5) - 0.5
    (label,) = vectors((pixel, pixel))
    assert label[cell].tolist() == pytest.approx([PEAK, PEAK])
    assert label.argmax(0).tolist() == [cell, cell]


def test_the_first_column_is_x_and_the_second_y() -> None:
    (label,) = vectors((9.5, 41.5))
    assert label.argmax(0).tolist() == [2, 10]


def test_point_between_two_cells_gives_both_the_same_height() -> None:
    (label,) = vectors((STRIDE * 8 - 0.5, 20.0))  # the border of cells 7 and 8
    assert label[7, 0] == pytest.approx(label[8, 0])
    assert label[7, 0] == pytest.approx(PEAK * np.exp(-0.5 * (0.5 / SIGMA) ** 2))


def test_moving_a_point_by_a_stride_moves_its_gaussian_by_a_cell() -> None:
    here, there = vectors((33.3, 50.1), (33.3 + STRIDE, 50.1 - STRIDE))
    np.testing.assert_allclose(there[1:, 0], here[:-1, 0], atol=1e-5)
    np.testing.assert_allclose(there[:-1, 1], here[1:, 1], atol=1e-5)


def test_gaussian_has_the_same_sum_wherever_it_lies_inside() -> None:
    inside = vectors(*[(x, 60.0) for x in np.linspace(20, 107, 40)])
    np.testing.assert_allclose(inside.sum(1), PEAK * SIGMA * np.sqrt(2 * np.pi), rtol=2e-3)


@pytest.mark.parametrize("cells_outside", [0.5, 1.0, 3.0])
def test_a_point_outside_leaves_its_tail_in_the_end_cell(cells_outside: float) -> None:
    left = STRIDE * (-cells_outside + 0.5) - 0.5
    right = STRIDE * (31 + cells_outside + 0.5) - 0.5
    (label,) = vectors((left, right))
    tail = PEAK * np.exp(-0.5 * (cells_outside / SIGMA) ** 2)
    assert [label[0, 0], label[31, 1]] == pytest.approx([tail, tail], rel=1e-4)
    assert (np.diff(label[:, 0]) <= 0).all()
    assert (np.diff(label[:, 1]) >= 0).all()


def test_unannotated_coordinate_gives_a_nan_label() -> None:
    (label,) = vectors((float("nan"), 20.0))
    assert np.isnan(label[:, 0]).all()
    assert np.isfinite(label[:, 1]).all()
