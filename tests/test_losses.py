"""The centroid that vector networks are trained through: right, smooth, and blind to what is far."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch import Tensor  # noqa: E402 - torch may be missing

from facetrack.training.alignment.losses import soft_centroid  # noqa: E402
from facetrack.training.alignment.targets import gaussian_vectors  # noqa: E402

STRIDE, SIGMA, PEAK = 4.0, 1.2, 3.0


def gaussians(cells: np.ndarray) -> Tensor:
    """Vectors whose Gaussians stand at these fractional cells (F, N, 2)."""
    return torch.from_numpy(
        gaussian_vectors((STRIDE * (cells + 0.5) - 0.5).astype(np.float32), 32, STRIDE, SIGMA, PEAK)
    )


def inner_cells() -> np.ndarray:
    return np.random.default_rng(0).uniform(4.5, 26.5, (4, 30, 2))


def test_centroid_of_a_gaussian_is_its_position() -> None:
    cells = inner_cells()
    place, top = soft_centroid(gaussians(cells))
    assert np.abs(place.numpy() - cells).max() < 0.03
    np.testing.assert_array_equal(top.numpy(), np.rint(cells))


def test_centroid_is_independent_of_the_height_of_the_gaussian() -> None:
    vectors = gaussians(inner_cells())
    torch.testing.assert_close(soft_centroid(vectors)[0], soft_centroid(0.3 * vectors)[0], atol=1e-4, rtol=0)


def test_values_beyond_the_reach_do_not_affect_the_centroid() -> None:
    vectors = gaussians(np.full((1, 1, 2), 10.0))
    other = vectors.clone()
    other[0, 0, 20:] += 1.0
    torch.testing.assert_close(soft_centroid(other)[0], soft_centroid(vectors)[0])


def test_negative_values_count_as_zero() -> None:
    vectors = gaussians(np.full((1, 1, 2), 10.2))
    dipped = vectors.clone()
    dipped[0, 0, 12] = -5.0
    lowered = vectors.clone()
    lowered[0, 0, 12] = 0.0
    torch.testing.assert_close(soft_centroid(dipped)[0], soft_centroid(lowered)[0])


def test_gradient_matches_finite_differences() -> None:
    vectors = gaussians(inner_cells()[:1, :2]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: soft_centroid(v)[0], (vectors,), eps=1e-6, atol=1e-5)


def test_gradient_is_positive_right_of_the_peak_negative_left_and_zero_beyond_reach() -> None:
    vectors = gaussians(np.full((1, 1, 2), 10.0)).requires_grad_()
    soft_centroid(vectors)[0].sum().backward()
    gradient = vectors.grad
    assert gradient is not None
    assert (gradient[0, 0, 11:13] > 0).all()
    assert (gradient[0, 0, 8:10] < 0).all()
    assert not gradient[0, 0, 15:].any()


@pytest.mark.parametrize("fill", [0.0, -1.0])
def test_zero_or_negative_vector_has_a_finite_centroid_and_gradient(fill: float) -> None:
    vectors = torch.full((1, 1, 32, 2), fill, requires_grad=True)
    place, _ = soft_centroid(vectors)
    place.sum().backward()
    assert torch.isfinite(place).all()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


def test_no_face_gives_an_empty_centroid() -> None:
    place, top = soft_centroid(torch.empty(0, 68, 32, 2))
    assert place.shape == top.shape == (0, 68, 2)
