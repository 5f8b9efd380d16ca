from __future__ import annotations

import math

import numpy as np
import pytest

from facetrack.tracker.errors import ConfigError
from facetrack.tracker.metrics import jitter
from facetrack.tracker.one_euro import OneEuro, OneEuroSettings
from facetrack.tracker.types import Float32

FPS, SIZE_PX = 30.0, 150.0
FACE = np.random.default_rng(0).uniform(100, 250, (68, 2))
CLEAR = np.ones(68, np.float32)


def published(values: list[float], times_s: list[float], cutoff_hz: float, beta: float, d_cutoff: float) -> list[float]:
    """Algorithm 1 of the paper for one number, word for word."""

    def alpha(rate: float, cutoff: float) -> float:
        tau, te = 1.0 / (2 * math.pi * cutoff), 1.0 / rate
        return 1.0 / (1.0 + tau / te)

    filtered, dx, out = values[0], 0.0, [values[0]]
    for k in range(1, len(values)):
        rate = 1 / (times_s[k] - times_s[k - 1])
        dx += alpha(rate, d_cutoff) * ((values[k] - filtered) * rate - dx)
        a = alpha(rate, cutoff_hz + beta * abs(dx))
        filtered += a * (values[k] - filtered)
        out.append(filtered)
    return out


def track(seen: np.ndarray, settings: OneEuroSettings | None = None) -> Float32:
    smoother = OneEuro(settings or OneEuroSettings(), seen.shape[1])
    score = np.ones(seen.shape[1], np.float32)
    return np.stack([smoother.update(i / FPS, xy.astype(np.float32), score, SIZE_PX)[0] for i, xy in enumerate(seen)])


def test_motion_on_a_line_matches_the_published_algorithm_at_uneven_times() -> None:
    rng = np.random.default_rng(1)
    times_s = np.cumsum(rng.uniform(0.005, 0.1, 80)).tolist()
    path = np.cumsum(rng.normal(0, 3, 80)).round(2).tolist()
    settings = OneEuroSettings(cutoff_hz=0.7, beta=12.0, speed_cutoff_hz=1.3)
    wanted = published(path, times_s, 0.7, 12.0 / SIZE_PX, 1.3)  # the speed counts in face sizes
    smoother = OneEuro(settings, 1)
    for time_s, x, expected in zip(times_s, path, wanted, strict=True):
        xy, _ = smoother.update(time_s, np.array([[x, 7.0]], np.float32), np.ones(1, np.float32), SIZE_PX)
        np.testing.assert_allclose(xy[0], [expected, 7.0], atol=1e-4)


def test_filter_commutes_with_rotation_translation_and_scaling() -> None:
    seen = FACE + np.cumsum(np.random.default_rng(2).normal(0, 2, (30, 68, 2)), 0)
    turn = 2.0 * np.array([[0.6, 0.8], [-0.8, 0.6]])
    smoother, other = OneEuro(OneEuroSettings(), 68), OneEuro(OneEuroSettings(), 68)
    for i, xy in enumerate(seen):
        plain, _ = smoother.update(i / FPS, xy.astype(np.float32), CLEAR, SIZE_PX)
        moved = (xy @ turn + [30, -9]).astype(np.float32)
        turned, _ = other.update(5 + i / FPS, moved, CLEAR, 2 * SIZE_PX)
    np.testing.assert_allclose(turned, plain @ turn + [30, -9], atol=2e-2)


def test_filter_at_least_halves_the_jitter_of_a_still_face() -> None:
    seen = FACE + np.random.default_rng(3).normal(0, 0.3, (300, 68, 2))
    assert jitter(track(seen)[30:]) < 0.5 * jitter(seen[30:])


def test_unseen_points_and_coasting_faces_stay_in_place() -> None:
    smoother, score = OneEuro(OneEuroSettings(), 68), CLEAR.copy()
    first, _ = smoother.update(0.0, FACE.astype(np.float32), CLEAR, SIZE_PX)
    score[3] = 0
    second, _ = smoother.update(0.1, (FACE + 9).astype(np.float32), score, SIZE_PX)
    np.testing.assert_array_equal(second[3], first[3])
    assert (second[4] > first[4]).all()
    third, speed = smoother.coast(0.2)
    np.testing.assert_array_equal(third, second)
    assert not speed.any()


@pytest.mark.parametrize("later_s", [0.0, -3.0, 1.5])
def test_frozen_backward_or_leaping_timestamp_restarts_the_filter(later_s: float) -> None:
    smoother = OneEuro(OneEuroSettings(), 68)
    smoother.update(5.0, FACE.astype(np.float32), CLEAR, SIZE_PX)
    xy, speed = smoother.update(5.0 + later_s, (FACE + 40).astype(np.float32), CLEAR, SIZE_PX)
    np.testing.assert_allclose(xy, FACE + 40, atol=1e-4)
    assert not speed.any()


def test_invalid_settings_and_input_are_refused() -> None:
    with pytest.raises(ConfigError, match="cutoff_hz"):
        OneEuroSettings(cutoff_hz=0.0)
    with pytest.raises(ConfigError, match="beta"):
        OneEuroSettings(beta=-1.0)
    with pytest.raises(ValueError, match="at least 1 point"):
        OneEuro(OneEuroSettings(), 0)
    smoother = OneEuro(OneEuroSettings(), 68)
    with pytest.raises(ValueError, match="after a measurement"):
        smoother.coast(0.0)
    with pytest.raises(ValueError, match=r"wanted \(68, 2\) points"):
        smoother.update(0.0, FACE[:5].astype(np.float32), CLEAR, SIZE_PX)
    with pytest.raises(ValueError, match="finite"):
        smoother.update(0.0, (FACE * np.nan).astype(np.float32), CLEAR, SIZE_PX)
