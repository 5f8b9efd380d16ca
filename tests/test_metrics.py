from __future__ import annotations

import numpy as np
import pytest

from facetrack.tracker import metrics
from facetrack.tracker.markup import load
from facetrack.tracker.pose import MEAN_FACE_MM
from facetrack.tracker.types import Float32, Float64

IBUG = load("ibug68")
FIVE = load("five5")
FACE: Float32 = MEAN_FACE_MM[:, :2].astype(np.float32)
ERRORS: Float64 = np.array([0.02, 0.04, 0.05, 0.08, 0.3, np.inf])


def faces(count: int, sigma: float, seed: int = 0) -> tuple[Float32, Float32]:
    """Predicted and true (F, 68, 2) points of faces of different sizes, the errors in proportion to them."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 3, (count, 1, 1))
    truth = FACE * scale + rng.uniform(0, 500, (count, 1, 2))
    return (truth + rng.normal(0, sigma, truth.shape) * scale).astype(np.float32), truth.astype(np.float32)


# Errors of pictures


def test_a_shift_by_five_pixels_is_five_over_the_eye_distance() -> None:
    truth = FACE[None]
    eyes = np.linalg.norm(FACE[36] - FACE[45])
    np.testing.assert_allclose(metrics.nme(truth + np.array([3, 4], np.float32), truth, IBUG), [5 / eyes], rtol=1e-6)


def test_normalising_lengths_match_a_hand_made_face() -> None:
    truth = np.array([[[0, 0], [30, 40], [10, 20], [0, 80], [60, 80]]], np.float32)
    lengths = {kind: metrics.normalising_lengths(truth, FIVE, kind)[0] for kind in ("ip", "box", "diag", "edge")}
    assert lengths == pytest.approx({"ip": 50.0, "box": np.sqrt(60 * 80), "diag": 100.0, "edge": 70.0})


@pytest.mark.parametrize("kind", ["box", "diag", "edge"])
def test_annotated_box_affects_only_the_face_normaliser(kind: metrics.Normaliser) -> None:
    boxes = np.array([[0, 0, 90, 40]], np.float32)
    assert metrics.normalising_lengths(FACE[None], IBUG, "face", boxes) == pytest.approx([60.0])
    tight = metrics.normalising_lengths(FACE[None], IBUG, kind)
    assert metrics.normalising_lengths(FACE[None], IBUG, kind, boxes) == pytest.approx(tight)


@pytest.mark.parametrize("box", [[90, 0, 0, 40], [90, 40, 0, 0], [0, 0, np.nan, 40]])
def test_inverted_or_unknown_annotated_box_is_refused(box: list[float]) -> None:
    with pytest.raises(ValueError, match="lengths above 0, got 1"):
        metrics.normalising_lengths(FACE[None], IBUG, "face", np.float32([box]))


def test_face_normaliser_without_an_annotated_box_uses_the_points() -> None:
    tight = metrics.normalising_lengths(FACE[None], IBUG, "box")
    assert metrics.normalising_lengths(FACE[None], IBUG, "face") == pytest.approx(tight)


def test_inter_pupil_errors_are_about_1_4_times_inter_ocular_ones() -> None:
    predicted, truth = faces(200, 2.0)
    ratio = metrics.nme(predicted, truth, IBUG, "ip") / metrics.nme(predicted, truth, IBUG, "io")
    assert ratio == pytest.approx(1.4, abs=0.05)


def test_errors_of_some_points_use_the_length_of_the_whole_face() -> None:
    predicted, truth = faces(20, 2.0)
    predicted[3, 40] = np.nan
    lengths = metrics.normalising_lengths(truth, IBUG, "io")
    np.testing.assert_allclose(
        metrics.normalised_errors(predicted, truth, lengths), metrics.nme(predicted, truth, IBUG, "io")
    )
    eyes = metrics.normalised_errors(predicted[:, 36:48], truth[:, 36:48], lengths)
    by_hand = [
        np.mean(np.hypot(*(p[36:48] - t[36:48]).T)) / np.hypot(*(t[45] - t[36]))
        for p, t in zip(predicted, truth, strict=True)
    ]
    np.testing.assert_allclose(np.delete(eyes, 3), np.delete(by_hand, 3), rtol=1e-5)
    assert np.isposinf(eyes[3])


def test_mismatched_shapes_are_refused() -> None:
    predicted, truth = faces(3, 1.0)
    with pytest.raises(ValueError, match=r"wanted predicted and true points \(F, M, 2\) and lengths \(F,\)"):
        metrics.normalised_errors(predicted[:, :5], truth, np.ones(3))
    with pytest.raises(ValueError, match="lengths"):
        metrics.normalised_errors(predicted, truth, np.ones(2))


def test_nme_does_not_depend_on_the_size_and_place_of_the_face() -> None:
    predicted, truth = faces(20, 2.0)
    for kind in ("io", "ip", "box", "diag", "edge", "face"):
        moved = metrics.nme(predicted * 3 + 17, truth * 3 + 17, IBUG, kind)
        np.testing.assert_allclose(moved, metrics.nme(predicted, truth, IBUG, kind), rtol=1e-4)


def test_nme_of_gaussian_noise_is_the_rayleigh_mean() -> None:
    predicted, truth = faces(500, 2.0)
    eyes = np.linalg.norm(FACE[36] - FACE[45])
    assert metrics.nme(predicted, truth, IBUG).mean() == pytest.approx(2 * np.sqrt(np.pi / 2) / eyes, rel=0.01)


def test_a_face_with_a_point_that_is_not_finite_is_lost() -> None:
    predicted, truth = faces(3, 1.0)
    predicted[1] = np.nan
    predicted[2, 5] = np.inf
    errors = metrics.nme(predicted, truth, IBUG)
    assert np.isfinite(errors[0])
    assert np.isposinf(errors[1:]).all()


@pytest.mark.parametrize(
    ("predicted", "truth", "kind", "message"),
    [
        (FACE[None], FACE, "io", r"truth: wanted \(F, 68, 2\)"),
        (FACE[None, :5], FACE[None], "io", r"predicted: wanted \(F, 68, 2\)"),
        (FACE[None].repeat(2, 0), FACE[None], "io", "wanted 1 predicted faces"),
        (FACE[None], FACE[None], "pupils", "wanted one of the normalisers io, ip, box, diag, edge, face, got 'pupils'"),
        (FACE[None], 0 * FACE[None], "io", "lengths above 0, got 1"),
    ],
)
def test_bad_input_is_named(predicted: Float32, truth: Float32, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.nme(predicted, truth, IBUG, kind)


# Summaries


def test_lost_faces_are_counted_apart_from_the_mean() -> None:
    assert metrics.mean_of_found(ERRORS) == pytest.approx((0.098, 1 / 6))
    mean, lost = metrics.mean_of_found(np.array([np.inf, np.inf]))
    assert np.isnan(mean)
    assert lost == 1


@pytest.mark.parametrize(("threshold", "rate"), [(0.08, 2 / 6), (0.079, 3 / 6), (1e9, 1 / 6), (0, 1)])
def test_failure_rate_counts_errors_above_and_lost_faces_always(threshold: float, rate: float) -> None:
    assert metrics.failure_rate(ERRORS, threshold) == pytest.approx(rate)


def test_auc_matches_hand_made_errors() -> None:
    assert metrics.auc(ERRORS, 0.08) == pytest.approx((0.75 + 0.5 + 0.375) / 6)
    assert metrics.auc(np.zeros(3), 0.08) == 1
    assert metrics.auc(np.array([np.inf]), 0.08) == 0


def test_auc_is_the_area_under_the_error_curve() -> None:
    errors = np.append(np.random.default_rng(0).gamma(3, 0.02, 500), np.inf)
    grid = np.linspace(0, 0.1, 20001)
    area = np.trapezoid(metrics.ced(errors, grid), grid) / 0.1
    assert metrics.auc(errors, 0.1) == pytest.approx(area, abs=1e-4)


def test_the_error_curve_is_one_minus_the_failure_rate() -> None:
    thresholds = np.array([0.0, 0.02, 0.03, 0.05, 0.08, 0.5])
    curve = metrics.ced(ERRORS, thresholds)
    np.testing.assert_allclose(curve, [1 - metrics.failure_rate(ERRORS, t) for t in thresholds])
    assert curve[-1] == pytest.approx(5 / 6)  # a lost face never arrives


@pytest.mark.parametrize("errors", [np.empty(0), np.array([0.1, np.nan]), np.zeros((2, 2))])
def test_errors_must_be_a_non_empty_vector_without_nan(errors: Float64) -> None:
    for summary in (metrics.mean_of_found, lambda e: metrics.failure_rate(e, 0.1), lambda e: metrics.auc(e, 0.1)):
        with pytest.raises(ValueError, match="without NaN"):
            summary(errors)


def test_auc_needs_a_threshold_above_zero() -> None:
    with pytest.raises(ValueError, match="above 0"):
        metrics.auc(ERRORS, 0)


# Behaviour over time


def white_noise(sigma: float) -> Float32:
    return np.random.default_rng(5).normal(0, sigma, (3000, 68, 2)).astype(np.float32)


def gliding(px_per_frame: tuple[float, float], frames: int = 30) -> Float32:
    return (FACE + np.arange(frames)[:, None, None] * np.array(px_per_frame)).astype(np.float32)


def test_jitter_of_white_noise_is_its_sigma() -> None:
    assert metrics.jitter(FACE + white_noise(0.3)) == pytest.approx(0.3, rel=0.01)


def test_jitter_is_taken_per_coordinate_about_its_own_mean() -> None:
    track = np.zeros((4, 2, 2), np.float32)
    track[:, 0, 0] = [1, -1, 1, -1]  # one of four coordinates, offset does not count
    assert metrics.jitter(track + 100) == pytest.approx(0.5)


@pytest.mark.parametrize("velocity", [(8.0, 0.0), (0.0, -8.0), (4.8, 6.4)])
def test_a_track_that_is_a_frame_late_lags_by_one_step(velocity: tuple[float, float]) -> None:
    truth = gliding(velocity)
    assert metrics.lag(truth[:-1], truth[1:]) == pytest.approx(8, abs=1e-4)
    assert metrics.lag(truth[1:], truth[:-1]) == pytest.approx(-8, abs=1e-4)


def test_lag_ignores_errors_across_the_motion_and_points_at_rest() -> None:
    truth = gliding((8, 0))
    assert metrics.lag(truth + np.array([0, 5], np.float32), truth) == pytest.approx(0, abs=1e-5)
    truth[:, 10:] = FACE[10:]
    late = truth - np.array([2, 0], np.float32)
    assert metrics.lag(late, truth) == pytest.approx(2, abs=1e-4)


def test_nothing_moves_so_nothing_lags() -> None:
    assert np.isnan(metrics.lag(gliding((0, 0)), gliding((0, 0))))


def test_tracks_that_are_too_short_or_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted \(T >= "):
        metrics.jitter(gliding((1, 0), 1))
    with pytest.raises(ValueError, match="the same shape"):
        metrics.lag(gliding((1, 0)), gliding((1, 0))[1:])
