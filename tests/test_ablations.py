"""The alternatives to our decoding are what they are called: where they are ours or exact, they agree with it."""

from __future__ import annotations

import ablations
import numpy as np

from facetrack.tracker import codecs

CODEC = {"stride": 4.0, "sigma": 1.2, "peak": 3.0}


def gaussians(places: np.ndarray) -> tuple[np.ndarray]:
    """Vectors (1, N, 24, 2) with a whole Gaussian round each place, cells."""
    distance = np.arange(24)[:, None] - places[None, :, None]
    return ((3.0 * np.exp(-0.5 * (distance / 1.2) ** 2)).astype(np.float32),)


def test_vector_ablation_with_production_parameters_matches_the_kernel() -> None:
    vectors = np.random.default_rng(0).uniform(-0.2, 2.0, (3, 68, 24, 2)).astype(np.float32)
    vectors[:, ::4, 0] = 2.5  # these lie beyond the box
    ours = ablations.decode_vectors((vectors,), CODEC, reach=codecs.REACH, tau=3.0)
    np.testing.assert_allclose(ours, codecs.decode_vectors(vectors, 4.0, 1.2, 3.0)[0], atol=1e-3)


def test_gaussians_outside_the_box_are_located_with_tau_and_clipped_without_it() -> None:
    places = np.array([[-2.5, 10.0], [25.0, 23.5]])
    beyond = ablations.decode_vectors(gaussians(places), CODEC, reach=0, tau=3.0)
    np.testing.assert_allclose(
        beyond[0][[0, 1, 1], [0, 0, 1]], 4 * (places[[0, 1, 1], [0, 0, 1]] + 0.5) - 0.5, atol=0.01
    )
    clipped = ablations.decode_vectors(gaussians(places), CODEC, reach=0)
    assert clipped[0, 0, 0] == 4 * 0.5 - 0.5
    assert (clipped[0, 1] == 4 * 23.5 - 0.5).all()


def test_quarter_shift_errs_by_at_most_a_quarter_cell_and_argmax_by_half_a_cell() -> None:
    places = np.random.default_rng(1).uniform(3, 20, (50, 2))
    for reach, most in ((-1, 0.5), (0, 0.25)):
        found = ablations.decode_vectors(gaussians(places), CODEC, reach=reach)
        worst = np.abs(found[0] - (4 * (places + 0.5) - 0.5)).max()
        assert 0.9 * 4 * most < worst <= 4 * most + 1e-4


def test_heatmap_argmax_decodes_to_the_centre_of_its_cell() -> None:
    maps = np.zeros((1, 1, 8, 8), np.float32)
    maps[0, 0, 2, 5] = 1.0
    assert ablations.decode_heatmaps((maps,), 4.0, -1).tolist() == [[[21.5, 9.5]]]


def test_eq_5_with_a_zero_field_share_is_the_plain_centroid() -> None:
    rng = np.random.default_rng(2)
    heat, field = np.zeros((1, 1, 9, 9), np.float32), rng.normal(size=(1, 1, 2, 9, 9)).astype(np.float32)
    heat[0, 0, 3:6, 3:6] = [[1, 2, 1], [2, 8, 2], [1, 2, 5]]
    lines = np.zeros((1, 1), np.int64)
    plain = ablations.decode_fields((heat, field), 2.0, lines, 3, share=0.0)
    cell = (heat[0, 0] * np.arange(9)).sum() / heat.sum()
    np.testing.assert_allclose(plain, 2 * (cell + 0.5) - 0.5, rtol=1e-5)
    assert np.abs(ablations.decode_fields((heat, field), 2.0, lines, 3) - plain).max() > 0.01
