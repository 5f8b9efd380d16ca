"""Vectors to landmarks: the inverse of the labels, Eq. 7 beyond the crop, a NumPy reference beside the kernel."""

from __future__ import annotations

import numpy as np
import pytest

from facetrack.tracker import markup
from facetrack.tracker.codecs import (
    FARTHEST,
    LOWEST,
    REACH,
    decode_cells,
    decode_discs,
    decode_fields,
    decode_heatmaps,
    decode_vectors,
    mean_of_highest,
)
from facetrack.tracker.types import Float32
from facetrack.training.alignment.targets import gaussian_vectors

CELLS, STRIDE, SIGMA, PEAK = 32, 4.0, 1.2, 3.0
SIDE = int(CELLS * STRIDE)
QUANTUM_PX = 0.01  # the centroid of nine cells of a bell of 1.2 cells is off by 0.0002 px


def cell_of(px: Float32) -> Float32:
    return (px + 0.5) / STRIDE - 0.5


def pixel_of(cell: float) -> float:
    return STRIDE * (cell + 0.5) - 0.5


def reference(vectors: Float32) -> tuple[Float32, Float32]:
    """`decode_vectors` in NumPy, one vector after the other, as its docstring says it."""
    xy = np.empty((*vectors.shape[:2], 2))
    score = np.ones(vectors.shape[:2])
    for f, n, axis in np.ndindex(*vectors.shape[:2], 2):
        vector = np.nan_to_num(np.maximum(vectors[f, n, :, axis].astype(np.float64), 0.0))
        top = int(vector.argmax())
        height = max(vector[top], LOWEST)
        if top in (0, CELLS - 1):
            beyond = min(np.sqrt(-2 * np.log(min(height / PEAK, 1.0))), FARTHEST) * SIGMA
            place = -beyond if top == 0 else CELLS - 1 + beyond
        else:
            near = np.arange(max(top - REACH, 0), min(top + REACH, CELLS - 1) + 1)
            place = np.average(near, weights=vector[near] ** 1.5 + LOWEST)
        xy[f, n, axis] = pixel_of(place)
        score[f, n] *= min(height / PEAK, 1.0)
    return xy.astype(np.float32), np.sqrt(score).astype(np.float32)


def decode(vectors: Float32) -> tuple[Float32, Float32]:
    return decode_vectors(vectors, STRIDE, SIGMA, PEAK)


def label(xy: Float32) -> Float32:
    return gaussian_vectors(xy, CELLS, STRIDE, SIGMA, PEAK)


def inner_points(count: int, cells_from_edge: float = 4.0) -> Float32:
    rng = np.random.default_rng(7)
    low, high = pixel_of(cells_from_edge), pixel_of(CELLS - 1 - cells_from_edge)
    return rng.uniform(low, high, (4, count, 2)).astype(np.float32)


def test_decoding_a_label_gives_the_point_back_within_the_quantum() -> None:
    points = inner_points(500)
    xy, score = decode(label(points))
    assert np.abs(xy - points).max() <= QUANTUM_PX
    assert score.min() > np.exp(-0.5 * (0.5 / SIGMA) ** 2) - 1e-4  # a bell half a cell off its nearest cell


def test_in_the_outer_cells_decoding_a_label_is_off_by_less_than_a_cell() -> None:
    # an end cell that is lower than a whole bell reads as "outside" (Eq. 6): inside it the point is mirrored
    points = np.stack(np.meshgrid(np.linspace(-0.5, 8, 80), [60.0]), -1).reshape(1, -1, 2).astype(np.float32)
    xy, _ = decode(label(points))
    assert np.abs(xy - points).max() <= STRIDE


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0, 3.0, 7.0])
@pytest.mark.parametrize("end", ["first", "last"])
def test_eq_7_inverts_the_tail_of_a_gaussian_outside_the_crop(distance: float, end: str) -> None:
    vectors = np.zeros((1, 1, CELLS, 2), np.float32)
    cell = 0 if end == "first" else CELLS - 1
    vectors[0, 0, cell] = PEAK * np.exp(-(distance**2) / (2 * SIGMA**2))
    xy, score = decode(vectors)
    farthest = min(distance, FARTHEST * SIGMA)
    floor = SIGMA * np.sqrt(2 * np.log(PEAK / LOWEST))  # a height of LOWEST is as far as can be told
    wanted = min(farthest, floor)
    assert xy[0, 0] == pytest.approx(pixel_of(-wanted if end == "first" else cell + wanted), abs=2e-3)
    assert score[0, 0] == pytest.approx(np.exp(-(wanted**2) / (2 * SIGMA**2)), rel=1e-3)


@pytest.mark.parametrize("height", [1.0, 1.2])
def test_whole_gaussian_on_an_end_cell_decodes_to_that_cell(height: float) -> None:
    """Though half of it lies outside, and be it higher than a network has learnt."""
    ends = np.array([[[pixel_of(0), pixel_of(CELLS - 1)], [pixel_of(CELLS - 1), pixel_of(0)]]], np.float32)
    xy, score = decode(height * label(ends))
    np.testing.assert_allclose(xy, ends, atol=1e-3)
    np.testing.assert_allclose(score, 1.0, atol=1e-5)


@pytest.mark.parametrize("outside_px", [4.0, 9.5, 20.0])
def test_a_point_outside_the_crop_is_found_from_its_label(outside_px: float) -> None:
    points = np.array([[[-outside_px, 50.0], [SIDE - 1 + outside_px, 50.0], [70.0, -outside_px]]], np.float32)
    xy, score = decode(label(points))
    assert np.abs(xy - points).max() <= QUANTUM_PX
    assert (score < 0.99).all()


def test_the_kernel_agrees_with_the_numpy_reference() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.4, (3, 50, CELLS, 2)).astype(np.float32)
    for vectors in (noise, noise + label(inner_points(50, -3.0)[:3]), label(inner_points(50, -6.0)[:3])):
        xy, score = decode(vectors)
        wanted_xy, wanted_score = reference(vectors)
        np.testing.assert_allclose(xy, wanted_xy, atol=2e-3)
        np.testing.assert_allclose(score, wanted_score, atol=1e-5)


def test_soft_centroid_of_training_matches_decoding() -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra")
    from facetrack.training.alignment.losses import soft_centroid

    noise = np.random.default_rng(5).normal(0, 0.1, (4, 60, CELLS, 2)).astype(np.float32)
    vectors = label(inner_points(60)) + noise
    place, top = soft_centroid(torch.from_numpy(vectors))
    assert ((top > 0) & (top < CELLS - 1)).all()
    np.testing.assert_allclose(STRIDE * (place.numpy() + 0.5) - 0.5, decode(vectors)[0], atol=2e-3)


def test_mirrored_vectors_decode_to_mirrored_points() -> None:
    marks = markup.load("ibug68")
    points = inner_points(68, -2.0)
    vectors = label(points) + np.random.default_rng(1).normal(0, 0.05, (4, 68, CELLS, 2)).astype(np.float32)
    mirrored = vectors[:, marks.mirror].copy()
    mirrored[..., 0] = mirrored[:, :, ::-1, 0]
    xy, score = decode(vectors)
    wanted = xy[:, marks.mirror].copy()
    wanted[..., 0] = SIDE - 1 - wanted[..., 0]
    back, back_score = decode(mirrored)
    np.testing.assert_allclose(back, wanted, atol=2e-3)
    np.testing.assert_allclose(back_score, score[:, marks.mirror], atol=1e-6)


def test_swapping_the_axes_swaps_the_coordinates() -> None:
    vectors = label(inner_points(20))
    np.testing.assert_array_equal(decode(vectors[..., ::-1])[0], decode(vectors)[0][..., ::-1])


@pytest.mark.parametrize(
    "values",
    [0.0, -5.0, 1e-9, PEAK, 50.0, np.nan, np.inf],
    ids=["zero", "negative", "tiny", "flat", "high", "nan", "inf"],
)
def test_decoding_never_gives_nan(values: float) -> None:
    xy, score = decode(np.full((2, 3, CELLS, 2), values, np.float32))
    assert np.isfinite(xy).all()
    assert ((score >= 0) & (score <= 1)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_value_counts_as_zero(value: float) -> None:
    points = np.array([[[40.0, 80.0]]], np.float32)
    vectors = label(points)
    holed = vectors.copy()
    holed[0, 0, [0, 1, 30], :] = value
    np.testing.assert_array_equal(decode(holed)[0], decode(vectors)[0])


def test_the_answer_does_not_depend_on_the_memory_layout() -> None:
    vectors = label(inner_points(9))
    odd = np.asfortranarray(vectors)
    np.testing.assert_array_equal(decode(odd)[0], decode(vectors)[0])


@pytest.mark.parametrize("shape", [(2, 3, 32), (2, 3, 2, 2), (2, 3, 32, 3)])
def test_wrong_shape_raises_naming_the_expected_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wanted \(F, N, w >= 3, 2\), got"):
        decode(np.zeros(shape, np.float32))


def test_label_is_a_gaussian_of_the_given_peak_at_the_sub_cell_position() -> None:
    vector = label(np.array([[[pixel_of(10.0), pixel_of(10.5)]]], np.float32))[0, 0]
    assert vector[10, 0] == pytest.approx(PEAK)
    assert vector[9, 0] == pytest.approx(PEAK * np.exp(-1 / (2 * SIGMA**2)))
    assert vector[10, 1] == pytest.approx(vector[11, 1])
    assert vector.sum(0) == pytest.approx(PEAK * SIGMA * np.sqrt(2 * np.pi), rel=1e-3)


def test_no_face_decodes_to_no_landmarks() -> None:
    maps, field = np.empty((0, 68, 8, 8), np.float32), np.empty((0, 68, 2, 8, 8), np.float32)
    for xy, score in (
        decode(np.empty((0, 68, CELLS, 2), np.float32)),
        decode_heatmaps(maps, STRIDE),
        decode_fields(maps, field, np.arange(68)[:, None], STRIDE),
        decode_discs(maps, STRIDE, 13),
        decode_cells(np.empty((0, 3 * 68, 8, 8), np.float32), STRIDE),
    ):
        assert xy.shape == (0, 68, 2)
        assert score.shape == (0, 68)


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 4, 8, 8), (1, 3, 0, 8), (1, 3, 8, 0)])
def test_cells_of_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^cells: wanted \(F, 3 N, h >= 1, w >= 1\), got"):
        decode_cells(np.zeros(shape, np.float32), STRIDE)


@pytest.mark.parametrize("pixels", [0, -1])
def test_disc_without_pixels_is_refused(pixels: int) -> None:
    with pytest.raises(ValueError, match=rf"^discs: wanted 1 pixel or more, got {pixels}"):
        decode_discs(np.zeros((1, 5, 8, 8), np.float32), STRIDE, pixels)


def test_mean_of_highest_matches_a_full_sort() -> None:
    maps = np.random.default_rng(0).normal(0, 1, (3, 5, 12, 17)).astype(np.float32)
    xy, response = mean_of_highest(maps, 13)
    flat = maps.reshape(3, 5, -1)
    order = np.argsort(-flat, axis=2)[:, :, :13]
    assert response == pytest.approx(np.take_along_axis(flat, order, 2).mean(2), abs=1e-6)
    assert xy[..., 0] == pytest.approx((order % 17).mean(2), abs=1e-5)
    assert xy[..., 1] == pytest.approx((order // 17).mean(2), abs=1e-5)
