"""Heat maps and fields there and back: targets against decoders, kernels against NumPy, training against tracking."""

from __future__ import annotations

import numpy as np
import pytest

from facetrack.tracker import markup
from facetrack.tracker.codecs import decode_fields, decode_heatmaps, decode_vectors, lines_of_points

torch = pytest.importorskip("torch", reason="targets are drawn in torch, which needs the `train` extra")

from facetrack.training.alignment.losses import map_centroid  # noqa: E402
from facetrack.training.alignment.maps import bali_fields, gaussian_maps, to_cells  # noqa: E402
from facetrack.training.alignment.span_loss import field_centroid  # noqa: E402
from facetrack.training.alignment.targets import quasi_gaussian_vectors  # noqa: E402

STRIDE = 4
RNG = np.random.default_rng(0)


def scattered(faces, landmarks, side, margin=12.0):
    """Points well inside a crop of `side` pixels."""
    return RNG.uniform(margin, side - 1 - margin, (faces, landmarks, 2)).astype(np.float32)


def drawn(xy, cells, sigma=1.0, stride=STRIDE):
    return gaussian_maps(torch.from_numpy(xy), (cells, cells), stride, sigma).numpy()


def quarter_shift_in_numpy(maps, stride):
    faces, landmarks, h, w = maps.shape
    xy = np.empty((faces, landmarks, 2))
    for f, n in np.ndindex(faces, landmarks):
        heat = maps[f, n]
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        dx = np.sign(heat[row, column + 1] - heat[row, column - 1]) if 0 < column < w - 1 else 0
        dy = np.sign(heat[row + 1, column] - heat[row - 1, column]) if 0 < row < h - 1 else 0
        xy[f, n] = column + 0.25 * dx, row + 0.25 * dy
    return stride * (xy + 0.5) - 0.5


def field_decoding_in_numpy(maps, field, lines, stride, reach):
    faces, landmarks, h, w = maps.shape
    xy, score = np.empty((faces, landmarks, 2)), np.empty((faces, landmarks))
    for f, n in np.ndindex(faces, landmarks):
        row, column = np.unravel_index(maps[f, n].argmax(), (h, w))
        rows = np.arange(max(row - reach, 0), min(row + reach, h - 1) + 1)
        columns = np.arange(max(column - reach, 0), min(column + reach, w - 1) + 1)
        own = [line for line in lines[n] if line >= 0]
        heat = maps[f, n][np.ix_(rows, columns)].astype(float)
        way = field[f, own].mean(0)[:, rows][:, :, columns] if own else np.zeros((2, *heat.shape))
        pointed = np.stack((columns[None] + way[0], rows[:, None] + way[1]), -1)
        xy[f, n] = (heat[..., None] * pointed).sum((0, 1)) / heat.sum()
        score[f, n] = heat.sum()
    return stride * (xy + 0.5) - 0.5, score


def test_gaussian_map_has_height_1_at_its_sub_cell_position():
    xy = np.array([[[21.5, 33.5], [22.5, 33.5]]], np.float32)  # cells (5, 8) and a quarter beside it
    maps = drawn(xy, 16)
    assert maps[0, 0, 8, 5] == 1
    assert maps[0, 0, 8, 6] == pytest.approx(np.exp(-0.5))
    assert maps[0, 1, 8, 5] == pytest.approx(np.exp(-0.5 / 16))
    assert maps[0, 1, 8, 6] == pytest.approx(np.exp(-0.5 * 0.75**2))


def test_quasi_gaussian_vectors_peak_on_a_whole_cell_and_span_13_cells():
    vectors = quasi_gaussian_vectors(np.array([[[101.0, 150.3], [-9.0, 300.0]]], np.float32), 64, 4)
    x = vectors[0, 0, :, 0]  # cell 24.875, so 25
    assert (x.argmax(), x.max(), (x > 0).sum()) == (25, 4, 13)
    assert x[24] == x[26] == pytest.approx(np.exp(-1 / 8))
    assert x.sum() == pytest.approx(4 + 2 * sum(np.exp(-(d**2) / 8) for d in range(1, 7)))
    outside = vectors[0, 1, :, 0]
    assert (outside.argmax(), outside.max() < 1, vectors[0, 1, :, 1].sum()) == (0, True, 0)


def test_quasi_gaussian_vectors_decode_within_half_a_cell():
    xy = scattered(4, 30, 256)
    got, _ = decode_vectors(quasi_gaussian_vectors(xy, 64, STRIDE), STRIDE, 2.0, 2.0)
    assert np.abs(got - xy).max() <= STRIDE * 0.5 + 1e-4


def test_a_point_beyond_the_crop_leaves_its_tail_and_an_unknown_one_nothing():
    maps = drawn(np.array([[[-2.5, 33.5], [np.nan, np.nan]]], np.float32), 16)
    assert maps[0, 0].max() == maps[0, 0, 8, 0] == pytest.approx(np.exp(-0.5))
    assert (maps[0, 1] == 0).all()


def test_mirrored_points_draw_mirrored_maps():
    xy = scattered(1, 3, 64)
    mirrored = np.stack((63 - xy[..., 0], xy[..., 1]), -1)
    np.testing.assert_allclose(drawn(mirrored, 16), drawn(xy, 16)[..., ::-1], atol=1e-5)


def test_the_quarter_shift_errs_by_a_quarter_cell_at_most():
    xy = scattered(8, 16, 128)
    got, score = decode_heatmaps(drawn(xy, 32), STRIDE)
    assert np.abs(got - xy).max() <= STRIDE * 0.25 + 1e-4
    assert np.abs(got - xy).max() > STRIDE * 0.2  # it is a grain, not an accident
    assert ((score > 0.7) & (score <= 1)).all()


@pytest.mark.parametrize(("sigma", "reach"), [(1.0, 2), (1.5, 3)])
def test_centroid_decodes_within_3_percent_of_a_cell(sigma, reach):
    xy = scattered(8, 16, 128)
    got, _ = decode_heatmaps(drawn(xy, 32, sigma), STRIDE, reach)
    assert np.abs(got - xy).max() < STRIDE * 0.03  # cells; what the window cuts off the Gaussian's tails


def test_quarter_shift_kernel_matches_numpy_on_noise_and_at_borders():
    maps = RNG.normal(size=(3, 40, 5, 7)).astype(np.float32)
    got, score = decode_heatmaps(maps, STRIDE)
    np.testing.assert_allclose(got, quarter_shift_in_numpy(maps, STRIDE), atol=1e-5)
    np.testing.assert_array_equal(score, maps.max((2, 3)).clip(0, 1))


def test_training_centroid_matches_the_decoded_one():
    maps = RNG.normal(size=(2, 20, 9, 12)).astype(np.float32)
    place, top = map_centroid(torch.from_numpy(maps), reach=2)
    got, _ = decode_heatmaps(maps, 1, reach=2)
    np.testing.assert_allclose(place.numpy(), got, atol=1e-4)
    assert (maps[0, 0].max(), top.dtype) == (maps[0, 0, top[0, 0, 1], top[0, 0, 0]], torch.int64)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_constant_and_non_finite_maps_give_finite_points_with_zero_score(value):
    maps = np.full((1, 68, 8, 8), value, np.float32)
    none = np.zeros((1, 68, 2, 8, 8), np.float32)
    lines = np.arange(68)[:, None]
    for xy, score in (decode_heatmaps(maps, 4), decode_heatmaps(maps, 4, 2), decode_fields(maps, none, lines, 2)):
        assert np.isfinite(xy).all()
        assert (score == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_cell_counts_as_zero(value):
    maps = drawn(np.array([[[30.2, 41.7]], [[9.1, 20.0]]], np.float32), 16).astype(np.float32)
    broken, holed = maps.copy(), maps.copy()
    broken[0, 0, 1, 14], holed[0, 0, 1, 14] = value, 0.0
    none, lines = np.zeros((2, 1, 2, 16, 16), np.float32), np.zeros((1, 1), np.int64)
    for decode in (
        lambda m: decode_heatmaps(m, 4),
        lambda m: decode_heatmaps(m, 4, 2),
        lambda m: decode_fields(m, none, lines, 2),
    ):
        for got, wanted in zip(decode(broken), decode(holed), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_non_finite_field_leaves_its_landmark_on_the_peak_and_others_unaffected(value, axis):
    xy = np.array([[[30.5, 40.5], [10.5, 20.5]]], np.float32)  # cells (15, 20) and (5, 10)
    maps, lines = drawn(xy, 32, stride=2), np.array([[0], [1]])
    field = np.zeros((1, 2, 2, 32, 32), np.float32)
    field[0, 0, axis, 20, 14] = value  # beside the peak of the first
    got, _ = decode_fields(maps, field, lines, 2)
    np.testing.assert_allclose(got, xy, atol=1e-3)


def test_field_score_is_clipped_to_1_if_the_map_sums_to_more():
    """Maps of a runtime that rounds to 16 or 8 bits have sums a little off 1."""
    maps = drawn(np.array([[[30.5, 41.5]]], np.float32), 32, stride=2)
    _, score = decode_fields(1.01 * maps / maps.sum(), np.zeros((1, 1, 2, 32, 32), np.float32), np.array([[0]]), 2)
    assert score[0, 0] == 1


def test_maps_fields_and_lines_of_wrong_shape_raise():
    with pytest.raises(ValueError, match=r"\(F, N, h, w\)"):
        decode_heatmaps(np.zeros((2, 8, 8), np.float32), STRIDE)
    maps, lines = np.zeros((1, 68, 8, 8), np.float32), lines_of_points(markup.load("ibug68"), 15)
    with pytest.raises(ValueError, match="field"):
        decode_fields(maps, np.zeros((1, 30, 8, 8), np.float32), lines, 2)
    with pytest.raises(ValueError, match="lines"):
        decode_fields(maps, np.zeros((1, 4, 2, 8, 8), np.float32), lines, 2)


def test_corners_are_on_several_lines_and_pupils_on_none():
    ibug, wflw = (lines_of_points(markup.load(name), 15) for name in ("ibug68", "wflw98"))
    assert ibug[36].tolist() == [7, 8]  # outer corner of the subject's right eye
    assert ibug[0].tolist() == [0, -1]
    assert (wflw[[96, 97]] == -1).all()
    assert lines_of_points(markup.load("cofw29"), 15).shape == (29, 4)  # a mouth corner
    assert lines_of_points(markup.load("ibug68"), 68).tolist() == [[n] for n in range(68)]
    with pytest.raises(ValueError, match="15 lines or 68 points"):
        lines_of_points(markup.load("ibug68"), 30)


def test_the_field_points_from_every_cell_of_a_square_to_its_landmark():
    xy = torch.tensor([[[30.3, 41.1]]], dtype=torch.float64)
    field, mask = bali_fields(xy, [[0]], (32, 32), 2)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    pointed = field[0, 0] + torch.stack((columns, rows))
    target = to_cells(xy, 2)[0, 0]
    assert mask.sum() == 11 * 11
    assert mask[0, 0, 20, 15]
    torch.testing.assert_close(pointed[:, mask[0, 0]], target[:, None].expand(2, 121))
    assert (field[0, 0][:, ~mask[0, 0]] == 0).all()


def test_where_squares_overlap_the_field_points_to_the_nearest_landmark():
    xy = torch.tensor([[[20.5, 20.5], [30.5, 20.5]]])  # cells 10 and 15 of row 10
    field, mask = bali_fields(xy, [[0, 1]], (24, 24), 2)
    assert field[0, 0, 0, 10, 9:17].tolist() == [1, 0, -1, -2, 2, 1, 0, -1]
    assert mask.sum() == 11 * 16


def test_an_unknown_landmark_has_no_field_and_one_beyond_the_crop_the_part_inside():
    xy = torch.tensor([[[torch.nan, torch.nan], [-1.5, 20.5]]])
    field, mask = bali_fields(xy, [[0], [1]], (24, 24), 2)
    assert not mask[0, 0].any()
    assert mask[0, 1].sum() == 5 * 11  # cell -1: columns 0 to 4
    assert torch.isfinite(field).all()


def test_an_exact_field_gives_the_landmark_whatever_the_heat():
    xy = scattered(2, 68, 128, margin=20)
    field, _ = bali_fields(torch.from_numpy(xy), [[n] for n in range(68)], (64, 64), 2)
    own = lines_of_points(markup.load("ibug68"), 68)  # a field per landmark, so that no neighbour is nearer
    heat = drawn(xy, 64, 1.5, 2) + RNG.uniform(0, 0.05, (2, 68, 64, 64)).astype(np.float32)
    got, _ = decode_fields(heat, field.numpy(), own, 2, reach=2)
    np.testing.assert_allclose(got, xy, atol=1e-3)


def test_without_a_field_the_place_is_the_local_centroid():
    maps = RNG.uniform(size=(1, 4, 16, 16)).astype(np.float32)
    none = np.zeros((1, 15, 2, 16, 16), np.float32)
    lines = np.full((4, 2), -1)
    got, _ = decode_fields(maps, none, lines, 2)
    wanted, _ = field_decoding_in_numpy(maps, none, lines, 2, 3)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_heat_in_a_single_cell_gives_that_cell_and_its_field():
    maps, field = np.zeros((1, 1, 16, 16), np.float32), np.zeros((1, 2, 2, 16, 16), np.float32)
    maps[0, 0, 9, 6] = 1
    field[0, 0, :, 9, 6], field[0, 1, :, 9, 6] = (0.5, -0.5), (1.0, 0.5)
    got, score = decode_fields(maps, field, np.array([[0, 1]]), 2)  # the mean of both lines: (0.75, 0)
    np.testing.assert_allclose(got[0, 0], [2 * (6.75 + 0.5) - 0.5, 2 * (9 + 0.5) - 0.5])
    assert score[0, 0] == 1


def test_field_decoding_matches_numpy_and_the_training_centroid():
    marks = markup.load("cofw29")
    lines = lines_of_points(marks, 15)
    maps = RNG.uniform(size=(2, 29, 12, 10)).astype(np.float32) ** 8
    field = RNG.normal(size=(2, 15, 2, 12, 10)).astype(np.float32)
    maps[0, 0] = 0
    maps[0, 0, 0, 0] = 1  # a peak in the corner
    maps /= maps.sum((2, 3), keepdims=True)
    got, score = decode_fields(maps, field, lines, 1)
    wanted, mass = field_decoding_in_numpy(maps, field, lines, 1, 3)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    np.testing.assert_allclose(score, mass, atol=1e-5)
    trained, _ = field_centroid(*(torch.from_numpy(a) for a in (maps, field, lines)))
    np.testing.assert_allclose(trained.numpy(), got, atol=1e-4)
