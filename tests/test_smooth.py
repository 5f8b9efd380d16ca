from __future__ import annotations

import numpy as np
import pytest
from fakes_motion import CLEAR, FACE, FPS, SIZE_PX, UPPER_LIDS, blinking, lids_depth, measured, riding, still
from filterpy.common import Q_discrete_white_noise
from filterpy.kalman import KalmanFilter

from facetrack.tracker import kalman
from facetrack.tracker.errors import ConfigError
from facetrack.tracker.metrics import jitter, lag
from facetrack.tracker.pose import MEAN_FACE_MM, rotation_matrix
from facetrack.tracker.smooth import Smoother, SmootherSettings, warm_up
from facetrack.tracker.types import Float32, Float64

LOWER_LIP_AND_JAW = [5, 6, 7, 8, 9, 10, 11, 55, 56, 57, 58, 59, 65, 66, 67]


def smoothed(seen: Float32, settings: SmootherSettings | None = None, fps: float = FPS) -> Float32:
    smoother = Smoother(settings or SmootherSettings(), seen.shape[1])
    score = np.full(seen.shape[1], CLEAR[0])
    return np.stack([smoother.update(i / fps, xy, score, SIZE_PX)[0] for i, xy in enumerate(seen)])


# The model against filterpy


@pytest.mark.parametrize("dt", [1 / 120, 1 / 30, 0.1, 2.5])
def test_process_noise_matches_filterpy(dt: float) -> None:
    pp, pv, vv = kalman.process_noise(7.0, dt)
    np.testing.assert_allclose([[pp, pv], [pv, vv]], Q_discrete_white_noise(2, dt, 7.0), rtol=1e-12)


def test_filter_of_one_point_at_uneven_times_and_scores_matches_filterpy() -> None:
    settings = SmootherSettings(maneuver=np.inf, noisiest=1.0, rest_shared=3.0, outlier=np.inf, restart_jump=np.inf)
    rng = np.random.default_rng(1)
    noise, shared = (settings.noise * SIZE_PX) ** 2, (settings.shared_noise * SIZE_PX) ** 2
    smoother, oracle, time_s = Smoother(settings, 1), KalmanFilter(dim_x=2, dim_z=1), 0.0
    path = np.cumsum(rng.normal(0, 2, 80))
    oracle.H, oracle.x = np.array([[1.0, 0.0]]), np.array([[path[0]], [0.0]])
    oracle.P = np.diag([shared + noise, (settings.first_speed * SIZE_PX) ** 2])
    smoother.update(time_s, np.array([[path[0], 5.0]]), np.ones(1), SIZE_PX)
    for x in path[1:]:
        dt, score = rng.uniform(0.005, 0.2), rng.uniform(settings.score_floor, 1)
        oracle.F = np.array([[1, dt], [0, 1]])
        oracle.Q = Q_discrete_white_noise(2, dt, (settings.rest_shared * SIZE_PX) ** 2)
        oracle.R = shared + noise / score**2
        oracle.predict()
        oracle.update(x)
        time_s += dt
        xy, speed = smoother.update(time_s, np.array([[x, 5.0]]), np.array([score]), SIZE_PX)
        np.testing.assert_allclose([xy[0, 0], speed[0, 0]], oracle.x[:, 0], rtol=1e-5, atol=1e-5)  # float32 results
        np.testing.assert_allclose([xy[0, 1], speed[0, 1]], [5.0, 0.0], atol=1e-9)


def test_68_points_that_move_alike_are_one_filterpy_filter() -> None:
    settings = SmootherSettings(maneuver=np.inf, noisiest=1.0)
    noise, shared = (settings.noise / 0.65 * SIZE_PX) ** 2, (settings.shared_noise * SIZE_PX) ** 2
    oracle = KalmanFilter(dim_x=2, dim_z=1)
    oracle.F, oracle.H = np.array([[1, 1 / FPS], [0, 1]]), np.array([[1.0, 0.0]])
    oracle.Q = Q_discrete_white_noise(2, 1 / FPS, (settings.rest_shared * SIZE_PX) ** 2)
    oracle.R = shared + 3 * noise / 68  # an affine motion has three coefficients on each axis
    oracle.P = np.diag([shared + noise / 68, (settings.first_speed * SIZE_PX) ** 2])
    path = np.cumsum(np.random.default_rng(2).normal(0, 0.3, 60))
    seen = (FACE + np.stack((path, np.zeros(60)), -1)[:, None]).astype(np.float32)
    track = smoothed(seen, settings)
    oracle.x = np.array([[path[0]], [0.0]])
    for i, x in enumerate(path):
        if i:
            oracle.predict()
            oracle.update(x)
        np.testing.assert_allclose(track[i] - FACE, np.tile([oracle.x[0, 0], 0], (68, 1)), atol=1e-3)


# Kernels against NumPy


def test_gains_of_a_point_match_filterpy() -> None:
    rng, state = np.random.default_rng(3), Smoother(SmootherSettings(), 1)._state
    state.covariance[0] = 2.0, 0.5, 30.0
    oracle = KalmanFilter(dim_x=2, dim_z=1)
    oracle.H, oracle.P = np.array([[1.0, 0.0]]), np.array([[2.0, 0.5], [0.5, 30.0]])
    for variance in rng.uniform(0.1, 5, 20):
        oracle.R = variance
        oracle.update(0.0)
        gains = kalman._gains(state, 0, variance)
        np.testing.assert_allclose(gains, oracle.K[:, 0], rtol=1e-9)
        np.testing.assert_allclose(state.covariance[0], oracle.P[[0, 0, 1], [0, 1, 1]], rtol=1e-9)


def test_maneuver_inflates_the_covariance_to_the_observed_innovation() -> None:
    state, dt = Smoother(SmootherSettings(), 1)._state, 1 / 30
    state.covariance[0] = 0.01, 0.0, 0.1
    kalman._follow_maneuver(state, 0, 64.0, 0.09, dt, 16.0)
    of_position, of_velocity = kalman._gains(state, 0, 0.09)
    assert of_position == pytest.approx(1 - 0.09 / 64)
    assert of_velocity == pytest.approx((64 - 0.1) / dt / 64)  # all of the step becomes speed
    assert state.moving[0] == 1


@pytest.mark.parametrize("count", [1, 2, 3, 10, 67, 68])
def test_median_matches_numpy_to_a_4096th_of_the_range(count: int) -> None:
    values = np.random.default_rng(count).normal(5, 20, 80)
    expected = np.sort(values[:count])[(count - 1) // 2]
    assert kalman.median(values, count) == pytest.approx(expected, abs=np.ptp(values) / 4096)
    assert count % 2 == 0 or expected == np.median(values[:count])


def test_median_of_nothing_is_zero() -> None:
    assert kalman.median(np.ones(3), 0) == 0


def test_affine_fit_step_matches_numpys_weighted_least_squares() -> None:
    rng = np.random.default_rng(4)
    at, move, variance = rng.normal(0, 50, (30, 2)), rng.normal(0, 3, (30, 2)), rng.uniform(0.5, 4, 30)
    fitted = np.zeros_like(move)
    kalman._fit_affine(at, move, variance, 9.0, fitted)
    root = (np.sqrt(variance) / (variance + (move**2).sum(1) / 9.0))[:, None]
    design = np.column_stack((np.ones(30), at))
    coefficients, *_ = np.linalg.lstsq(design * root, move * root, rcond=None)
    np.testing.assert_allclose(fitted, design @ coefficients, rtol=1e-9, atol=1e-12)


def test_affine_part_is_robust_to_a_fifth_of_other_movers() -> None:
    move = FACE @ np.array([[0.02, 0.05], [-0.05, 0.01]]) + [3, -1]
    other = move.copy()
    other[LOWER_LIP_AND_JAW] += [0, 12]
    part = kalman.affine_part(FACE, other, np.full(68, 0.09))
    np.testing.assert_allclose(part, move, atol=0.05)


def test_the_affine_part_of_points_on_a_line_is_a_shift_and_of_unseen_points_nothing() -> None:
    line = np.column_stack((np.arange(9.0), 2 * np.arange(9.0)))
    move = np.tile([1.5, -2.0], (9, 1))
    np.testing.assert_allclose(kalman.affine_part(line, move, np.ones(9)), move, atol=1e-12)
    assert not kalman.affine_part(line, move, np.full(9, np.inf)).any()


def noise_ratio(frames: Float64, share: float) -> float:
    smoother = Smoother(SmootherSettings(), 68)
    smoother._size_px = SIZE_PX
    smoother._state.recent[:] = frames[:2]
    return kalman.noise_level(smoother._state, frames[2], CLEAR.astype(float), share, smoother._tuning())


@pytest.mark.parametrize("share", [0.5, 0.2, 0.9])
@pytest.mark.parametrize("louder", [1.0, 3.0])
def test_noise_level_is_the_ratio_of_observed_to_expected_variance(share: float, louder: float) -> None:
    ratios = [noise_ratio(measured(still(3), seed, louder).astype(float), share) for seed in range(60)]
    assert np.mean(ratios) == pytest.approx(louder**2, rel=0.15)  # the fit takes a part of the noise along


def test_motion_of_the_whole_face_and_of_its_mouth_is_no_noise() -> None:
    frames = still(3)
    frames[1] += [5, 2]
    frames[2] = (frames[2] - 300) * 1.02 + 300
    frames[1, LOWER_LIP_AND_JAW] += [0, 6]
    assert noise_ratio(frames, 0.5) < 0.05


# What the user sees


def test_a_still_face_jitters_less_than_a_tenth_of_a_pixel() -> None:
    seen = measured(still(330))
    assert jitter(seen) > 0.3
    assert jitter(smoothed(seen)[30:]) <= 0.10


def test_twice_the_expected_noise_gives_no_more_than_about_twice_the_jitter() -> None:
    assert jitter(smoothed(measured(still(330), louder=2.0))[60:]) <= 0.22


def test_a_sudden_start_is_followed_at_once_and_a_sudden_stop_without_overshoot() -> None:
    truth = riding(8.0)
    track = smoothed(measured(truth))
    assert abs(lag(track[39:42], truth[39:42])) < 0.5
    assert abs(lag(track[45:81], truth[45:81])) < 0.2
    assert (track - truth)[80:95, :, 0].mean(1).max() < 0.5  # of which the common noise is 0.3


@pytest.mark.parametrize("phase", [0.0, 0.25, 0.5, 0.75])
def test_a_blink_of_150_ms_keeps_its_depth(phase: float) -> None:
    truth = blinking(phase)
    depth = np.mean([lids_depth(smoothed(measured(truth, seed))) for seed in range(4)])
    assert depth > 0.9 * lids_depth(truth)


def test_a_mouth_opens_in_time_and_the_brows_stay() -> None:
    truth = still(60)
    truth[:, LOWER_LIP_AND_JAW, 1] += 15 * np.clip((np.arange(60) - 30) / 6, 0, 1)[:, None]
    error = np.mean([smoothed(measured(truth, seed)) - truth for seed in range(8)], 0)
    assert np.abs(error[30:45, LOWER_LIP_AND_JAW].mean(1)).max() < 1.0
    assert np.abs(error[30:45, 17:27].mean(1)).max() < 0.2


def test_a_steady_motion_without_noise_is_followed_exactly_at_uneven_times() -> None:
    rng, smoother, time_s = np.random.default_rng(5), Smoother(SmootherSettings(), 68), 0.0
    velocity = rng.normal(0, 20, (68, 2))
    for _ in range(60):
        time_s += rng.uniform(0.005, 0.08)
        xy, speed = smoother.update(time_s, FACE + velocity * time_s, CLEAR, SIZE_PX)
    np.testing.assert_allclose(xy, FACE + velocity * time_s, atol=0.05)
    np.testing.assert_allclose(speed, velocity, atol=0.5)


def test_smoother_commutes_with_translation_rotation_and_scaling() -> None:
    seen = measured(riding(3.0)).astype(np.float64)
    turn = 2.5 * np.array([[0, 1], [-1, 0]])
    plain, other = Smoother(SmootherSettings(), 68), Smoother(SmootherSettings(), 68)
    for i, xy in enumerate(seen):
        a, speed_a = plain.update(i / FPS, xy, CLEAR, SIZE_PX)
        b, speed_b = other.update(i / FPS + 100, xy @ turn + [40, -7], CLEAR, 2.5 * SIZE_PX)
    np.testing.assert_allclose(b, a @ turn + [40, -7], atol=1e-2)
    np.testing.assert_allclose(speed_b, speed_a @ turn, atol=1e-2)


def test_a_low_score_is_trusted_less_and_a_score_of_0_is_carried_along_by_the_face() -> None:
    truth = riding(4.0)
    seen, score = measured(truth), CLEAR.copy()
    seen[1:, 40] = 0  # nonsense
    score[40] = 0
    smoother = Smoother(SmootherSettings(), 68)
    track = np.stack([smoother.update(i / FPS, xy, score, SIZE_PX)[0] for i, xy in enumerate(seen)])
    assert np.abs(track - truth)[:, 40].max() < 1.0
    faint = Smoother(SmootherSettings(), 68)
    still_seen = measured(still(200))
    faint_track = np.stack([faint.update(i / FPS, xy, CLEAR * 0.3, SIZE_PX)[0] for i, xy in enumerate(still_seen)])
    assert jitter(faint_track[30:]) < jitter(smoothed(still_seen)[30:])


def test_point_hidden_in_the_first_frame_is_followed_once_seen() -> None:
    """A hand covers it when the face is found."""
    smoother, covered = Smoother(SmootherSettings(), 68), CLEAR.copy()
    covered[40] = 0
    seen = measured(still(20))
    smoother.update(0.0, seen[0], covered, SIZE_PX)
    track = np.stack([smoother.update(i / FPS, xy, CLEAR, SIZE_PX)[0] for i, xy in enumerate(seen[1:], start=1)])
    assert np.abs(track - FACE)[:, 40].max() < 1.5


def test_positive_scores_below_the_floor_are_treated_alike() -> None:
    floor = SmootherSettings().score_floor
    for seen in (measured(still(20)), measured(riding(4.0))):
        tracks = []
        for score in (floor, floor / 10, 1e-6):
            smoother, scores = Smoother(SmootherSettings(), 68), CLEAR.copy()
            scores[40] = score
            tracks.append([smoother.update(i / FPS, xy, scores, SIZE_PX)[0] for i, xy in enumerate(seen)])
        np.testing.assert_allclose(tracks[1:], tracks[:1] * 2, atol=1e-3)


def test_variance_of_a_point_scales_with_the_configured_power_of_its_score() -> None:
    for power in (0.0, 0.5, 1.0, 2.9):
        tuning = Smoother(SmootherSettings(noise=0.01, score_power=power), 1)._tuning()
        for score in (0.2, 0.65, 1.0):
            wanted = tuning.noise * score ** (-2 * power)
            assert kalman._variance(score, tuning) == pytest.approx(wanted)


def test_a_face_with_no_point_seen_coasts() -> None:
    seen, coasted = Smoother(SmootherSettings(), 68), Smoother(SmootherSettings(), 68)
    for smoother in (seen, coasted):
        for i in range(20):
            smoother.update(i / FPS, FACE + 3.0 * i, CLEAR, SIZE_PX)
    np.testing.assert_array_equal(seen.update(0.8, FACE, 0 * CLEAR, SIZE_PX), coasted.coast(0.8))


@pytest.mark.parametrize(("fps", "frames"), [(15, 1), (25, 2), (30, 2), (60, 4), (120, 8)])
def test_outlier_is_ignored_for_60_ms(fps: float, frames: int) -> None:
    seen = still(60).astype(np.float32)
    seen[30:, 30, 0] += 0.3 * SIZE_PX
    x = smoothed(seen, fps=fps)[:, 30, 0] - FACE[30, 0]
    assert np.abs(x[30 : 30 + frames]).max() < 0.5
    assert x[30 + frames] > 0.29 * SIZE_PX


@pytest.mark.parametrize("fps", [8.0, 15.0, 25.0, 30.0, 60.0])
def test_one_frame_of_outliers_in_a_third_of_the_face_leaves_no_trace(fps: float) -> None:
    truth = still(60)
    seen = measured(truth)
    seen[40, 48:] += np.random.default_rng(0).choice([-0.35, 0.35], (20, 2)) * SIZE_PX
    assert np.abs(smoothed(seen, fps=fps) - truth)[20:].max() < 1.0


@pytest.mark.parametrize("fps", [2.0, 3.0, 6.0, 10.0])
def test_mouth_that_opens_between_two_frames_is_followed_at_once(fps: float) -> None:
    """By 0.23 of the face's size; half a second later it is closed again."""
    truth = still(40)
    truth[20:22, LOWER_LIP_AND_JAW, 1] += 35
    assert np.abs(smoothed(measured(truth), fps=fps) - truth)[5:].max() < 3.0


def test_large_move_of_a_point_after_coasting_is_followed_at_once() -> None:
    """Nobody has seen it for as long as it takes to go there."""
    smoother = Smoother(SmootherSettings(), 68)
    for i in range(20):
        smoother.update(i / FPS, FACE, CLEAR, SIZE_PX)
    for i in range(20, 26):
        smoother.coast(i / FPS)
    after = FACE.copy()
    after[30, 0] += 0.4 * SIZE_PX
    np.testing.assert_allclose(smoother.update(26 / FPS, after, CLEAR, SIZE_PX)[0], after, atol=1.0)


@pytest.mark.parametrize("yaw_deg", [30, 50, 80])
@pytest.mark.parametrize("fps", [10.0, 25.0, 60.0])
def test_cut_to_another_head_pose_is_followed_in_its_first_frame(yaw_deg: float, fps: float) -> None:
    truth = still(60)
    turned = MEAN_FACE_MM @ rotation_matrix(np.radians([10, yaw_deg, 5])).T
    truth[30:] = turned[:, :2] * SIZE_PX / np.ptp(MEAN_FACE_MM[:, 0]) + [330, 250]
    assert np.abs(smoothed(measured(truth), fps=fps) - truth)[29:33].max() < 2.5


def test_point_off_for_one_frame_does_not_drift_away_afterwards() -> None:
    """Off by less than an outlier for one frame, it is an outlier when it comes back; meanwhile its face carries it."""
    seen = riding(4.0)[:70].astype(np.float32)
    seen[50, 30, 0] += 0.19 * SIZE_PX
    off = smoothed(seen)[:, 30, 0] - riding(4.0)[:70, 30, 0]
    assert np.abs(off[51:53]).max() < 0.2 * SIZE_PX
    assert np.abs(off[54:]).max() < 2.0


@pytest.mark.parametrize("jump", [0.12, 0.15, 0.19])
def test_point_that_jumps_back_after_one_frame_is_followed_at_once(jump: float) -> None:
    """It was believed when it jumped; its own speed since then would make its way back look twice as far."""
    seen = still(40).astype(np.float32)
    seen[30, 30, 0] += jump * SIZE_PX
    x = smoothed(seen)[:, 30, 0] - FACE[30, 0]
    assert x[30] > 0.9 * jump * SIZE_PX
    assert np.abs(x[31:]).max() < 0.02 * SIZE_PX


def test_near_duplicate_timestamp_throws_no_point_far_off() -> None:
    """The chin's tip moves by 4 px a frame; one frame has the stamp of the one before it, a millisecond later."""
    seen = still(40).astype(np.float32)
    seen[:, 8, 1] += 4 * np.clip(np.arange(40) - 10, 0, 20)
    smoother = Smoother(SmootherSettings(), 68)
    stamps_s = [0.04 * (i if i != 20 else 19.025) for i in range(40)]
    out = np.stack([smoother.update(t, xy, CLEAR, SIZE_PX)[0] for t, xy in zip(stamps_s, seen, strict=True)])
    assert np.abs(out - seen).max() < 4.5


@pytest.mark.parametrize("frames", [3, 30])
def test_step_within_much_less_time_than_usual_does_not_inflate_the_speed(frames: int) -> None:
    """The face starts by 8 px, a frame's way, in a frame that has the stamp of 10 ms after the one before it."""
    smoother, seen = Smoother(SmootherSettings(), 68), FACE.astype(np.float32)
    for frame in range(frames):
        smoother.update(frame / FPS, seen, CLEAR, SIZE_PX)
    moved = seen + np.float32([8, 0])
    xy, speed = smoother.update((frames - 1) / FPS + 0.01, moved, CLEAR, SIZE_PX)
    np.testing.assert_allclose(xy, moved, atol=0.5)
    assert np.abs(speed).max() < 8 * FPS  # and not 8 px in 10 ms


@pytest.mark.parametrize("later_s", [0.0, -3.0, 1.5])
def test_frozen_backward_or_leaping_timestamp_restarts_the_smoother(later_s: float) -> None:
    smoother = Smoother(SmootherSettings(), 68)
    for i in range(20):
        smoother.update(10 + i / FPS, FACE + 5.0 * i, CLEAR, SIZE_PX)
    seen = measured(still(1))[0]
    xy, speed = smoother.update(10 + 19 / FPS + later_s, seen, CLEAR, SIZE_PX)
    np.testing.assert_allclose(xy, seen, atol=1e-4)
    assert not speed.any()


def test_face_unmeasured_for_long_restarts_even_after_coasting() -> None:
    smoother = Smoother(SmootherSettings(), 68)
    for i in range(20):
        smoother.update(i / FPS, FACE + 1.0 * i, CLEAR, SIZE_PX)
    gap_s = SmootherSettings().restart_gap_s
    for i in range(20, 20 + round(gap_s * FPS) + 1):
        smoother.coast(i / FPS)
    seen = measured(still(1))[0]
    xy, speed = smoother.update((i + 1) / FPS, seen, CLEAR, SIZE_PX)
    np.testing.assert_allclose(xy, seen, atol=1e-4)
    assert not speed.any()


def test_close_timestamps_at_the_start_do_not_inflate_the_speed() -> None:
    """There is no usual step yet that this one could be less than."""
    smoother = Smoother(SmootherSettings(), 68)
    smoother.update(0.0, FACE, CLEAR, SIZE_PX)
    xy, speed = smoother.update(1e-5, FACE + 8, CLEAR, SIZE_PX)
    np.testing.assert_allclose(xy, FACE + 8, atol=0.5)
    assert np.abs(speed).max() <= 8 / kalman.MIN_STEP_S


def test_a_jump_of_the_whole_face_is_a_new_start_without_speed() -> None:
    smoother = Smoother(SmootherSettings(), 68)
    smoother.update(0.0, FACE, CLEAR, SIZE_PX)
    xy, speed = smoother.update(1 / FPS, FACE + SIZE_PX, CLEAR, SIZE_PX)
    np.testing.assert_allclose(xy, FACE + SIZE_PX, atol=1e-4)
    assert not speed.any()


def test_coasting_goes_on_with_a_fading_speed() -> None:
    settings = SmootherSettings()
    smoother = Smoother(settings, 68)
    for i in range(30):
        last, speed = smoother.update(i / FPS, FACE + 4.0 * i, CLEAR, SIZE_PX)
    after, slower = smoother.coast(29 / FPS + 0.1)
    left = np.exp(-0.1 / settings.coast_s)
    np.testing.assert_allclose(slower, speed * left, atol=0.5)
    np.testing.assert_allclose(after - last, speed * settings.coast_s * (1 - left), atol=0.1)
    twice = Smoother(settings, 68)
    for i in range(30):
        twice.update(i / FPS, FACE + 4.0 * i, CLEAR, SIZE_PX)
    twice.coast(29 / FPS + 0.04)
    np.testing.assert_allclose(twice.coast(29 / FPS + 0.1)[0], after, atol=0.05)


def test_a_face_that_grew_and_turned_keeps_its_size_and_shape_while_coasting() -> None:
    smoother = Smoother(SmootherSettings(), 68)
    middle = FACE.mean(0)
    for i in range(30):
        size, turn = 1 + 0.01 * i, 0.02 * i
        spin = size * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        last, _ = smoother.update(i / FPS, ((FACE - middle) @ spin.T + middle).astype(np.float32), CLEAR, SIZE_PX)
    for k in range(1, 8):
        after, _ = smoother.coast((29 + k) / FPS)
    np.testing.assert_allclose(after - after.mean(0), last - last.mean(0), atol=1e-3)


def test_a_blink_does_not_go_on_while_coasting() -> None:
    smoother = Smoother(SmootherSettings(), 68)
    for i in range(30):
        smoother.update(i / FPS, FACE, CLEAR, SIZE_PX)
    closing = FACE.copy()
    closing[UPPER_LIDS, 1] += 4
    closed, speed = smoother.update(30 / FPS, closing, CLEAR, SIZE_PX)
    assert speed[UPPER_LIDS, 1].min() > 50
    np.testing.assert_allclose(smoother.coast(40 / FPS)[0], closed, atol=0.5)


def test_a_measurement_after_coasting_is_taken_up() -> None:
    smoother = Smoother(SmootherSettings(), 68)
    for i in range(30):
        smoother.update(i / FPS, FACE, CLEAR, SIZE_PX)
    for i in range(30, 40):
        smoother.coast(i / FPS)
    xy, _ = smoother.update(40 / FPS, FACE + 20, CLEAR, SIZE_PX)
    np.testing.assert_allclose(xy, FACE + 20, atol=0.1)


def test_coasting_to_no_later_time_changes_nothing() -> None:
    smoother = Smoother(SmootherSettings(), 68)
    smoother.update(0.0, FACE, CLEAR, SIZE_PX)
    before = smoother.update(0.1, FACE + 3, CLEAR, SIZE_PX)
    for time_s in (0.1, -5.0):
        np.testing.assert_array_equal(smoother.coast(time_s), before)


def test_results_are_float32_copies() -> None:
    smoother = Smoother(SmootherSettings(), 68)
    first, speed = smoother.update(0.0, FACE, CLEAR, SIZE_PX)
    assert first.dtype == speed.dtype == np.float32
    kept = first.copy()
    smoother.update(0.1, FACE + 9, CLEAR, SIZE_PX)
    np.testing.assert_array_equal(first, kept)


def test_smoothers_of_two_faces_are_independent() -> None:
    a, b = measured(riding(5.0), 1), measured(riding(-2.0), 2)
    one, two = Smoother(SmootherSettings(), 68), Smoother(SmootherSettings(), 68)
    for i in range(len(a)):
        out_a, _ = one.update(i / FPS, a[i], CLEAR, SIZE_PX)
        out_b, _ = two.update(i / FPS, b[i], CLEAR, SIZE_PX)
    np.testing.assert_array_equal(out_a, smoothed(a)[-1])
    np.testing.assert_array_equal(out_b, smoothed(b)[-1])


@pytest.mark.parametrize("points", [1, 2, 5, 19, 98])
def test_any_number_of_points_works(points: int) -> None:
    seen = np.random.default_rng(points).normal(100, 30, (20, points, 2)).astype(np.float32)
    assert np.isfinite(smoothed(seen)).all()


@pytest.mark.parametrize(
    ("time_s", "xy", "score", "size_px", "message"),
    [
        (0.0, FACE[:5], CLEAR, SIZE_PX, r"wanted \(68, 2\) points"),
        (0.0, FACE, CLEAR[:5], SIZE_PX, r"\(68,\) scores"),
        (np.nan, FACE, CLEAR, SIZE_PX, "finite"),
        (0.0, FACE * np.nan, CLEAR, SIZE_PX, "finite"),
        (0.0, FACE, CLEAR * np.inf, SIZE_PX, "finite"),
        (0.0, FACE, CLEAR, 0.0, "size"),
    ],
)
def test_bad_input_is_named(time_s: float, xy: Float32, score: Float32, size_px: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Smoother(SmootherSettings(), 68).update(time_s, xy, score, size_px)


def test_close_timestamps_do_not_fling_a_hidden_face_away() -> None:
    smoother, time_s = Smoother(SmootherSettings(), 68), 0.0
    for i in range(20):
        time_s = i // 2 / FPS + i % 2 * 1e-5
        where = FACE + np.array([4.0 * i, 0])
        smoother.update(time_s, where.astype(np.float32), CLEAR, SIZE_PX)
    coasted, _ = smoother.coast(time_s + 0.1)
    assert np.abs(coasted - where).max() < SIZE_PX


def test_coasting_needs_a_measurement_and_a_smoother_needs_points() -> None:
    with pytest.raises(ValueError, match="after a measurement"):
        Smoother(SmootherSettings(), 68).coast(0.0)
    with pytest.raises(ValueError, match="at least 1 point"):
        Smoother(SmootherSettings(), 0)


@pytest.mark.parametrize(
    "bad", [{"noise": 0.0}, {"shared_noise": -1.0}, {"noisiest": 0.5}, {"outlier_s": -1.0}, {"moving_s": np.nan}]
)
def test_settings_that_cannot_work_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SmootherSettings(**bad)


def test_warming_up_compiles_every_kernel_that_a_frame_needs() -> None:
    warm_up()
    kernels = (kalman.init_state, kalman.update, kalman.coast)
    before = [len(kernel.signatures) for kernel in kernels]
    track = smoothed(measured(still(5)))
    smoother = Smoother(SmootherSettings(), 68)
    smoother.update(0.0, track[0], CLEAR, SIZE_PX)
    smoother.coast(0.1)
    assert [len(kernel.signatures) for kernel in kernels] == before == [1, 1, 1]
