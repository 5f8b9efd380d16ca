from __future__ import annotations

import numpy as np
import pytest
from fakes_motion import CLEAR, FACE, FPS, SIZE_PX, blinking, lids_depth, measured, riding, still
from filterpy.common import Q_discrete_white_noise
from filterpy.kalman import KalmanFilter

from facetrack.tracker import kalman, rts
from facetrack.tracker.metrics import jitter, lag
from facetrack.tracker.rts import RtsSmoother
from facetrack.tracker.smooth import Smoother, SmootherSettings
from facetrack.tracker.types import Float32

JAW = [5, 6, 7, 8, 9, 10, 11]


def forward(seen: Float32) -> Float32:
    smoother = Smoother(SmootherSettings(), seen.shape[1])
    return np.stack([smoother.update(i / FPS, xy, CLEAR, SIZE_PX)[0] for i, xy in enumerate(seen)])


def smoothed(seen: Float32, *, wait: int = 1000) -> Float32:
    smoother, out = RtsSmoother(SmootherSettings(), seen.shape[1]), []
    for i, xy in enumerate(seen):
        smoother.update(i / FPS, xy, np.full(seen.shape[1], CLEAR[0]), SIZE_PX)
        if len(smoother) > wait:
            out.append(smoother.take(1)[0])
    return np.concatenate([*out, smoother.take(len(smoother))[0]])


# Against filterpy


@pytest.mark.parametrize("maneuver", [np.inf, 4.0])
def test_one_point_at_uneven_times_matches_filterpys_rts_smoother(maneuver: float) -> None:
    settings = SmootherSettings(
        maneuver=maneuver, noisiest=1.0, rest_shared=3.0, outlier=np.inf, restart_jump=np.inf, moving=1.0
    )
    rng = np.random.default_rng(1)
    times_s = np.cumsum(rng.uniform(0.01, 0.1, 60))
    path = np.cumsum(rng.normal(0, 2, 60))
    path[30:] += 20  # a movement, where movements are looked for
    smoother, copy = RtsSmoother(settings, 1), Smoother(settings, 1)
    means, covariances, transitions, noises = [], [], [], []
    for i, (time_s, x) in enumerate(zip(times_s, path, strict=True)):
        point, score = np.array([[x, 5.0]], np.float32), np.full(1, 0.5, np.float32)
        smoother.update(time_s, point, score, SIZE_PX)
        copy.update(time_s, point, score, SIZE_PX)
        (pp, pv, vv), (prior_pp, prior_pv, prior_vv) = copy.state.covariance[1], copy.state.prior[1]
        step = np.array([[1, times_s[i] - times_s[i - 1] if i else 0.0], [0, 1]])
        prior = np.array([[prior_pp, prior_pv], [prior_pv, prior_vv]])
        transitions.append(step)
        noises.append(prior - step @ covariances[-1] @ step.T if i else np.zeros((2, 2)))
        means.append([copy.state.position[0, 0], copy.state.velocity[0, 0]])
        covariances.append(np.array([[pp, pv], [pv, vv]]))
    if maneuver == np.inf:
        dt = times_s[1] - times_s[0]
        np.testing.assert_allclose(noises[1], Q_discrete_white_noise(2, dt, (3.0 * SIZE_PX) ** 2), rtol=1e-6, atol=1e-6)
    wanted, *_ = KalmanFilter(2, 1).rts_smoother(np.array(means), np.array(covariances), transitions, noises)
    xy, speed = smoother.take(60)
    np.testing.assert_allclose(xy[:, 0, 0], wanted[:, 0], atol=1e-3)  # float32 results
    np.testing.assert_allclose(speed[:, 0, 0], wanted[:, 1], rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(xy[:, 0, 1], 5.0, atol=1e-6)


def test_partly_unseen_point_matches_filterpys_rts_smoother_without_those_frames() -> None:
    """Unseen it stays where its face, which rests, has it: a known displacement, for which filterpy has no room."""
    settings = SmootherSettings(maneuver=np.inf, noisiest=1.0, rest_own=3.0, outlier=np.inf)
    rng, score, smoother = np.random.default_rng(3), np.ones(68, np.float32), RtsSmoother(settings, 68)
    times_s, path = np.cumsum(rng.uniform(0.01, 0.1, 60)), np.cumsum(rng.normal(0, 3, 60))
    oracle, displaced = KalmanFilter(dim_x=2, dim_z=1), np.zeros((2, 1))
    oracle.H, oracle.x, oracle.R = np.array([[1.0, 0.0]]), np.array([[path[0]], [0.0]]), (0.013 * SIZE_PX) ** 2
    oracle.P = np.diag([oracle.R, (settings.first_speed * SIZE_PX) ** 2])
    oracle.F, oracle.Q = np.eye(2), np.zeros((2, 2))
    means, covariances, transitions, noises, known = [], [], [], [], []
    for i, x in enumerate(path):
        seen = i not in (8, 20, 21, 22, 40, 58, 59)
        xy = FACE.astype(np.float32)
        xy[30, 0] += x
        score[30] = 0.1 if seen else 0.0
        smoother.update(times_s[i], xy, score, SIZE_PX)
        if i:
            rest = np.array([[oracle.x[0, 0]], [0.0]])
            dt = times_s[i] - times_s[i - 1]
            oracle.F = np.array([[1, dt], [0, 1]])
            oracle.Q = Q_discrete_white_noise(2, dt, (settings.rest_own * SIZE_PX) ** 2)
            oracle.predict()
            displaced = oracle.F @ displaced + (0 if seen else rest - oracle.x)
            oracle.x = oracle.x if seen else rest
            oracle.update(x if seen else None)
        known.append(displaced[:, 0])
        means.append(oracle.x[:, 0])
        covariances.append(oracle.P)
        transitions.append(oracle.F)
        noises.append(oracle.Q)
    linear, *_ = KalmanFilter(2, 1).rts_smoother(np.array(means) - known, np.array(covariances), transitions, noises)
    xy, speed = smoother.take(60)
    off, off_speed = xy[:, 30, 0] - FACE[30, 0] - (linear + known)[:, 0], speed[:, 30, 0] - (linear + known)[:, 1]
    assert np.abs(off).max() < 0.03  # the face as a whole gives way to the point a little
    assert np.abs(off_speed).max() < 5.0


def test_shared_and_own_parts_with_equal_gains_add_up_to_one_filter() -> None:
    rng, points, frames = np.random.default_rng(2), 7, 12
    time_s, covariance = np.arange(frames) / FPS, np.tile([2.0, 0.5, 30.0], (frames, points + 1, 1))
    prior = np.tile([3.0, 1.5, 40.0], (frames, points + 1, 1))
    position, velocity = rng.normal(0, 5, (2, frames, points, 2))
    steps = rng.normal(0, 1, (frames, points, 4))
    part = rng.uniform(-1, 2, (frames, points, 1))
    empty = kalman.FilterState(*(np.stack([array] * frames) for array in kalman.allocate_state(points)))
    one, both = (
        empty._replace(
            position=position.copy(),
            velocity=velocity.copy(),
            covariance=covariance,
            prior=prior,
            shared_step=shared,
            own_step=steps - shared,
        )
        for shared in (steps, part * steps)
    )
    for run in (one, both):
        rts.smooth_backward(run, time_s)
    np.testing.assert_allclose(both.position, one.position, atol=1e-9)
    np.testing.assert_allclose(both.velocity, one.velocity, atol=1e-7)


# What the user sees


def test_last_frame_equals_that_of_the_forward_filter() -> None:
    seen = measured(riding(3.0))
    np.testing.assert_array_equal(smoothed(seen)[-1], forward(seen)[-1])


def test_still_face_jitters_under_60_percent_of_the_forward_filter() -> None:
    seen = measured(still(330))
    assert jitter(smoothed(seen)[30:-30]) < 0.6 * jitter(forward(seen)[30:-30])


def test_smoothed_motion_starts_and_stops_without_lag_or_offset() -> None:
    truth = riding(8.0)
    errors = np.mean([smoothed(measured(truth, seed)) - truth for seed in range(6)], 0).mean(1)
    assert np.abs(errors[35:85]).max() < 0.25  # of which the mean of six common noises is 0.15 at most
    track = smoothed(measured(truth))
    assert abs(lag(track[40:81], truth[40:81])) < 0.1


@pytest.mark.parametrize("phase", [0.0, 0.25, 0.5, 0.75])
def test_a_blink_of_150_ms_keeps_its_depth(phase: float) -> None:
    truth = blinking(phase)
    depth = np.mean([lids_depth(smoothed(measured(truth, seed))) for seed in range(4)])
    assert depth > 0.9 * lids_depth(truth)


def test_two_seconds_of_look_ahead_are_nearly_as_good_as_all_frames() -> None:
    truth = riding(2.0)
    some, everything = (smoothed(measured(truth), wait=wait) - truth for wait in (60, 1000))
    assert (some**2).mean() < 1.1 * (everything**2).mean()


@pytest.mark.parametrize("gap", [range(0), *(range(start, start + 6) for start in range(1, 24))], ids=str)
def test_taking_frames_at_once_or_in_parts_gives_the_same_result(gap: range) -> None:
    seen = measured(riding(2.0))[30:60]
    one, other = RtsSmoother(SmootherSettings(), 68), RtsSmoother(SmootherSettings(), 68)
    for smoother in (one, other):
        for i, xy in enumerate(seen):
            if i in gap:
                smoother.coast(i / FPS)
            else:
                smoother.update(i / FPS, xy, CLEAR, SIZE_PX)
    whole, _ = one.take(30)
    parts = [other.take(count)[0] for count in (1, 12, 17)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(other) == 0


def test_gap_is_interpolated_to_where_the_face_reappears() -> None:
    truth, smoother = riding(4.0), RtsSmoother(SmootherSettings(), 68)
    for i, xy in enumerate(truth.astype(np.float32)):
        if 50 <= i < 57:
            smoother.coast(i / FPS)
        else:
            smoother.update(i / FPS, xy, CLEAR, SIZE_PX)
    track, speed = smoother.take(len(smoother))
    np.testing.assert_allclose(track[50:57], truth[50:57], atol=0.2)
    np.testing.assert_allclose(speed[50:57, :, 0], 4.0 * FPS, atol=2)


def test_face_that_never_reappears_coasts_like_the_live_filter() -> None:
    seen, live, smoother = measured(riding(4.0)), Smoother(SmootherSettings(), 68), RtsSmoother(SmootherSettings(), 68)
    for i, xy in enumerate(seen[:50]):
        live.update(i / FPS, xy, CLEAR, SIZE_PX)
        smoother.update(i / FPS, xy, CLEAR, SIZE_PX)
    coasted = []
    for i in range(50, 56):
        smoother.coast(i / FPS)
        coasted.append(live.coast(i / FPS)[0])
    np.testing.assert_allclose(smoother.take(56)[0][50:], coasted, atol=1e-4)


def test_frame_with_a_repeated_timestamp_changes_no_other_frame() -> None:
    seen = measured(riding(4.0))[:60]
    plain, doubled = (RtsSmoother(SmootherSettings(), 68) for _ in range(2))
    for i, xy in enumerate(seen):
        for smoother in (plain, doubled):
            smoother.update(i / FPS, xy, CLEAR, SIZE_PX)
        if i == 49:  # while it moves
            doubled.coast(i / FPS)
    wanted, got = plain.take(60)[0], doubled.take(61)[0]
    np.testing.assert_allclose(np.delete(got, 50, 0), wanted, atol=1e-3)
    np.testing.assert_allclose(got[50], wanted[49], atol=1e-3)


@pytest.mark.parametrize("frame", [40, 50, 59])
def test_outlier_point_in_one_frame_does_not_disturb_the_other_frames(frame: int) -> None:
    """Its mouth opens slowly; in that one frame the point is put where its face, which rests, would have it."""
    truth = still(60)
    truth[:, JAW, 1] += np.arange(60)[:, None]
    seen = measured(truth)
    seen[frame, 8] += 0.5 * SIZE_PX
    assert np.abs(np.delete(smoothed(seen) - truth, frame, 0)).max() < 2.0


def test_restart_does_not_affect_the_frames_before_it() -> None:
    seen = measured(still(60))
    jumped = seen.copy()
    jumped[30:] += SIZE_PX  # restarts the filter
    np.testing.assert_array_equal(smoothed(jumped)[:30], smoothed(seen[:30]))


def test_gap_before_a_restart_coasts_instead_of_being_interpolated() -> None:
    """What comes after a jump is no end of the way on which it was lost: it coasts as if nothing came back."""
    seen = measured(riding(4.0))
    back, gone = RtsSmoother(SmootherSettings(), 68), RtsSmoother(SmootherSettings(), 68)
    for smoother in (back, gone):
        for i, xy in enumerate(seen[:50]):
            smoother.update(i / FPS, xy, CLEAR, SIZE_PX)
        for i in range(50, 56):
            smoother.coast(i / FPS)
    back.update(56 / FPS, seen[50] + np.float32(2 * SIZE_PX), CLEAR, SIZE_PX)
    np.testing.assert_array_equal(back.take(57)[0][:56], gone.take(56)[0])


def test_taking_no_frames_or_too_many_raises() -> None:
    smoother = RtsSmoother(SmootherSettings(), 68)
    smoother.update(0.0, FACE.astype(np.float32), CLEAR, SIZE_PX)
    for count in (0, 2):
        with pytest.raises(ValueError, match="wanted 1 to 1 waiting frames"):
            smoother.take(count)


def test_warming_up_compiles_the_kernel() -> None:
    rts.warm_up()
    before = len(rts.smooth_backward.signatures)
    smoothed(measured(still(3)))
    assert len(rts.smooth_backward.signatures) == before == 1
