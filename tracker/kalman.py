"""The compiled arithmetic of `smooth`: constant-velocity Kalman filters, and the affine motion that points share.

Everything here runs once per frame and is written as plain loops, which Numba compiles faster than array expressions.
All kernels live in this one file because Numba's cache does not notice changes in other files. Letters follow the
literature: pp, pv and vv are the three different entries of a 2x2 covariance of position and velocity.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from .types import Float64

CHI2_MEDIAN = 2 * math.log(2)  # median of the sum of two squared standard normal numbers
ROBUST_CUTOFF = 2.4  # standard deviations at which a point's weight in the shared motion is a quarter
ROBUST_ROUNDS = 4
BISECTIONS = 12
MIN_STEP_S = 0.004  # no velocity is estimated over a shorter step: a burst of time stamps, not camera frames
FLAT = 1e-9  # determinant over squared trace below which a scatter matrix is that of a line


class FilterState(NamedTuple):
    """The state of N points; row N of `covariance`, `moving` and `prior` belongs to the motion that they share."""

    position: Float64  # (N, 2) px
    velocity: Float64  # (N, 2) px/s
    covariance: Float64  # (N + 1, 3) variance of position, covariance, variance of velocity
    moving: Float64  # (N + 1,) 1 at a movement, fading to 0
    since_accepted_s: Float64  # (N,) seconds since a measurement of the point was last believed
    rejected_at_s: Float64  # (N,) `since_accepted_s` when the point became an outlier; 0 if it is not one
    recent: Float64  # (2, N, 2) the last two measurements, the older one first
    prior: Float64  # (N + 1, 3) `covariance` before the last measurement; infinite at a start
    shared_step: Float64  # (N, 4) what the last measurement changed through the shared motion: x, y and their speeds
    own_step: Float64  # (N, 4) what else it changed; 0 for a point that was not seen or not believed


def allocate_state(points: int) -> FilterState:
    """Allocate the state of N points; `init_state` fills it."""
    return FilterState(
        position=np.zeros((points, 2)),
        velocity=np.zeros((points, 2)),
        covariance=np.zeros((points + 1, 3)),
        moving=np.zeros(points + 1),
        since_accepted_s=np.zeros(points),
        rejected_at_s=np.zeros(points),
        recent=np.zeros((2, points, 2)),
        prior=np.zeros((points + 1, 3)),
        shared_step=np.zeros((points, 4)),
        own_step=np.zeros((points, 4)),
    )


class Tuning(NamedTuple):
    """`SmootherSettings` of one face in pixels; variances instead of sigmas."""

    noise: float
    shared_noise: float
    score_floor: float
    score_power: float
    rest_shared: float
    rest_own: float
    moving: float
    moving_s: float
    maneuver: float
    outlier_px2: float
    outlier_speed_px2: float  # per s^2
    outlier_spread: float
    outlier_s: float
    jump_px2: float
    least_step_s: float  # no velocity is estimated over a shorter step


@njit(cache=True, nogil=True)
def process_noise(acceleration: float, dt: float) -> tuple[float, float, float]:
    """Return the variance of position, the covariance and the variance of velocity that one step adds.

    Args:
        acceleration: variance of an acceleration that is constant within a step and independent between steps.
        dt: length of the step in seconds.
    Source: Bar-Shalom et al. 2001, Eq. 6.3.2-4; the closed form of `filterpy.common.Q_discrete_white_noise`.
    """
    return acceleration * dt**4 / 4, acceleration * dt**3 / 2, acceleration * dt**2


@njit(cache=True, nogil=True)
def init_state(state: FilterState, measured: Float64, score: Float64, speed: float, tuning: Tuning) -> None:
    """Put the points where they were measured, at rest, with the given variance of their speed."""
    points, precision = len(measured), 0.0
    for i in range(points):
        state.covariance[i, 0] = _variance(max(score[i], tuning.score_floor), tuning)
        precision += 1 / state.covariance[i, 0]
        state.since_accepted_s[i], state.rejected_at_s[i] = 0.0, 0.0
        for axis in range(2):
            state.position[i, axis] = measured[i, axis]
            state.velocity[i, axis] = 0.0
            state.recent[1, i, axis] = measured[i, axis]
    state.covariance[points, 0] = tuning.shared_noise + 1 / precision
    for row in range(points + 1):
        state.covariance[row, 1] = 0.0
        state.covariance[row, 2] = speed
        state.moving[row] = 0.0
    state.prior[:] = np.inf
    state.shared_step[:] = 0.0
    state.own_step[:] = 0.0


@njit(cache=True, nogil=True)
def update(
    state: FilterState, measured: Float64, score: Float64, dt: float, share: float, tuning: Tuning
) -> tuple[bool, float]:
    """Take a measurement: everything that one frame needs, in one call.

    Args:
        state: the state at the last frame; changed in place.
        measured: (N, 2) px.
        score: (N,), at least one above 0.
        dt: seconds since the last frame.
        share: see `noise_level`; 0 if there were fewer than two measurements before this one.
        tuning: of this face.
    Returns:
        Whether the face could be followed (if not, call `init_state`), and the variance of the noise over the
        expected one.
    """
    noise = noise_level(state, measured, score, share, tuning) if share > 0 else 1.0
    followed = predict_and_correct(state, measured, score, dt, tuning)
    for i in range(len(measured)):
        for axis in range(2):
            state.recent[0, i, axis] = state.recent[1, i, axis]
            state.recent[1, i, axis] = measured[i, axis]
    return followed, noise


@njit(cache=True, nogil=True)
def predict_and_correct(state: FilterState, measured: Float64, score: Float64, dt: float, tuning: Tuning) -> bool:
    """Predict over dt seconds and take the measurement; False if the face as a whole jumped too far for that."""
    start = state.position.copy()
    carried = affine_part(start, state.velocity, np.ones(len(start)))  # a velocity; after the loop a place
    for i in range(len(start)):
        for axis in range(2):
            carried[i, axis] = start[i, axis] + dt * carried[i, axis]
    _predict(state, dt, tuning)
    points = len(measured)
    innovation, variance = np.empty((points, 2)), np.empty(points)
    precision = 0.0
    for i in range(points):
        innovation[i, 0] = measured[i, 0] - state.position[i, 0]
        innovation[i, 1] = measured[i, 1] - state.position[i, 1]
        variance[i] = _variance(score[i], tuning)
        precision += 1 / variance[i]
    shared = affine_part(state.position, innovation, variance)
    moved_px2 = 0.0
    for i in range(points):
        moved_px2 += (shared[i, 0] ** 2 + shared[i, 1] ** 2) / points
    if moved_px2 > tuning.jump_px2:
        return False
    shared_variance = tuning.shared_noise + min(3, points) / precision  # an affine motion has 3 coefficients per axis
    step = dt if dt >= tuning.least_step_s else 0.0
    _follow_maneuver(state, points, moved_px2, shared_variance, step, tuning.maneuver)
    gains = _gains(state, points, shared_variance)
    off_px2 = np.empty(points)
    for i in range(points):
        _correct(state, state.shared_step, i, shared[i, 0], shared[i, 1], gains)
        x, y = innovation[i, 0] - shared[i, 0], innovation[i, 1] - shared[i, 1]
        u, v = measured[i, 0] - carried[i, 0] - shared[i, 0], measured[i, 1] - carried[i, 1] - shared[i, 1]
        off_px2[i] = min(x**2 + y**2, u**2 + v**2)
    _gate_outliers(state, off_px2, variance, tuning)
    for i in range(points):
        if variance[i] < np.inf:
            x, y = innovation[i, 0] - shared[i, 0], innovation[i, 1] - shared[i, 1]
            _follow_maneuver(state, i, x**2 + y**2, variance[i], step, tuning.maneuver)
            _correct(state, state.own_step, i, x, y, _gains(state, i, variance[i]))
            state.since_accepted_s[i], state.rejected_at_s[i] = 0.0, 0.0
    _carry(state, start, variance, step)
    return True


@njit(cache=True, nogil=True)
def coast(state: FilterState, dt: float, fading_s: float, tuning: Tuning) -> None:
    """Move the points for dt seconds at the mean of their shared velocity, which fades; the face keeps its size."""
    points = len(state.position)
    speeds, shared = affine_part(state.position, state.velocity, np.ones(points)), np.zeros(2)
    for i in range(points):
        shared[0] += speeds[i, 0] / points
        shared[1] += speeds[i, 1] / points
    left = math.exp(-dt / fading_s)
    _predict(state, dt, tuning)
    for i in range(points):
        for axis in range(2):
            state.position[i, axis] += shared[axis] * fading_s * (1 - left) - dt * state.velocity[i, axis]
            state.velocity[i, axis] = shared[axis] * left


@njit(cache=True, nogil=True)
def _predict(state: FilterState, dt: float, tuning: Tuning) -> None:
    points = len(state.position)
    for i in range(points):
        state.position[i, 0] += dt * state.velocity[i, 0]
        state.position[i, 1] += dt * state.velocity[i, 1]
        state.since_accepted_s[i] += dt
    calmer = math.exp(-dt / tuning.moving_s)
    for row in range(points + 1):
        rest = tuning.rest_own if row < points else tuning.rest_shared
        pp, pv, vv = process_noise(rest + state.moving[row] * tuning.moving, dt)
        state.covariance[row, 0] += 2 * dt * state.covariance[row, 1] + dt**2 * state.covariance[row, 2] + pp
        state.covariance[row, 1] += dt * state.covariance[row, 2] + pv
        state.covariance[row, 2] += vv
        state.moving[row] *= calmer
        for column in range(3):
            state.prior[row, column] = state.covariance[row, column]
    state.shared_step[:] = 0.0
    state.own_step[:] = 0.0


@njit(cache=True, nogil=True)
def _follow_maneuver(
    state: FilterState, row: int, innovation_px2: float, variance: float, step: float, maneuver: float
) -> None:
    """If an innovation is not noise, widen the row's prior covariance until it is expected, and mark the row as moving.

    Args:
        state: its `covariance`, `prior` and `moving` change.
        row: the point; N for the shared motion.
        innovation_px2: squared length of the innovation.
        variance: that of one coordinate of the measurement, px^2.
        step: seconds since the last frame; 0 if that is too short to estimate the speed of a movement.
        maneuver: the largest `innovation_px2` over its expected variance that passes for noise.
    """
    pp, pv, vv = state.covariance[row, 0], state.covariance[row, 1], state.covariance[row, 2]
    if innovation_px2 <= maneuver * (pp + variance):
        return
    excess = innovation_px2 - (pp + variance)
    pp += excess
    if step > 0:
        pv, vv = pv + excess / step, vv + excess / step**2
    state.moving[row] = 1.0
    state.covariance[row, 0], state.covariance[row, 1], state.covariance[row, 2] = pp, pv, vv
    state.prior[row, 0], state.prior[row, 1], state.prior[row, 2] = pp, pv, vv


@njit(cache=True, nogil=True)
def _gains(state: FilterState, row: int, variance: float) -> tuple[float, float]:
    """Turn one prior covariance into the posterior one and return the Kalman gains of position and velocity."""
    pp, pv, vv = state.covariance[row, 0], state.covariance[row, 1], state.covariance[row, 2]
    of_position, of_velocity = pp / (pp + variance), pv / (pp + variance)
    state.covariance[row, 0] = (1 - of_position) * pp
    state.covariance[row, 1] = (1 - of_position) * pv
    state.covariance[row, 2] = vv - of_velocity * pv
    return of_position, of_velocity


@njit(cache=True, nogil=True)
def _correct(state: FilterState, step: Float64, i: int, x: float, y: float, gains: tuple[float, float]) -> None:
    """Move point i by its gains times an innovation (x, y), and record the change in its row of `step`."""
    step[i, 0], step[i, 1] = gains[0] * x, gains[0] * y
    step[i, 2], step[i, 3] = gains[1] * x, gains[1] * y
    for axis in range(2):
        state.position[i, axis] += step[i, axis]
        state.velocity[i, axis] += step[i, 2 + axis]


@njit(cache=True, nogil=True)
def _carry(state: FilterState, start: Float64, variance: Float64, step: float) -> None:
    """Move the points that were not seen or not believed as the others have moved since `start`.

    This motion was not measured: it displaces the prediction, as in `coast`, and is not part of `own_step`, by which
    the RTS smoother corrects earlier frames.
    """
    points = len(start)
    moved, unseen = np.empty((points, 2)), 0
    for i in range(points):
        unseen += variance[i] == np.inf
        for axis in range(2):
            moved[i, axis] = state.position[i, axis] - start[i, axis]
    if unseen == 0:
        return
    shared = affine_part(start, moved, variance)
    for i in range(points):
        if variance[i] == np.inf:
            for axis in range(2):
                position = start[i, axis] + shared[i, axis]
                velocity = shared[i, axis] / step if step > 0 else state.velocity[i, axis]
                state.position[i, axis], state.velocity[i, axis] = position, velocity


@njit(cache=True, nogil=True)
def _gate_outliers(state: FilterState, off_px2: Float64, variance: Float64, tuning: Tuning) -> None:
    """Gate outliers: give points that cannot be where they were measured an infinite variance, as if unseen.

    Args:
        state: `since_accepted_s` is read; `rejected_at_s` changes.
        off_px2: (N,) squared distances from where their face would have carried them.
        variance: (N,) of a coordinate of the measurement; changes.
        tuning: of this face.
    """
    seen, count = np.empty(len(off_px2)), 0
    for i in range(len(off_px2)):
        if variance[i] < np.inf:
            seen[count] = off_px2[i]
            count += 1
    usual_px2 = tuning.outlier_spread**2 * median(seen, count)
    for i in range(len(off_px2)):
        possible_px2 = tuning.outlier_speed_px2 * state.since_accepted_s[i] ** 2
        if off_px2[i] > max(tuning.outlier_px2, usual_px2, possible_px2):
            if state.rejected_at_s[i] == 0:
                state.rejected_at_s[i] = state.since_accepted_s[i]
            if state.since_accepted_s[i] - state.rejected_at_s[i] < tuning.outlier_s:
                variance[i] = np.inf


@njit(cache=True, nogil=True)
def _variance(score: float, tuning: Tuning) -> float:
    """Variance of one coordinate of a point, px^2; infinite for a score of 0."""
    if score <= 0:
        return math.inf
    trusted = max(score, tuning.score_floor)
    if tuning.score_power == 1.0:
        return tuning.noise / (trusted * trusted)
    return float(tuning.noise * trusted ** (-2 * tuning.score_power))


@njit(cache=True, nogil=True)
def noise_level(state: FilterState, measured: Float64, score: Float64, share: float, tuning: Tuning) -> float:
    """Return the variance of the noise over the expected one, as the median over the points.

    Args:
        state: its `recent` measurements.
        measured: (N, 2) the measurement after those two.
        score: (N,)
        share: time from the second to the third measurement over the time from the first to the third.
        tuning: gives the expected variance.
    """
    points = len(measured)
    bend, variance = np.empty((points, 2)), np.empty(points)
    for i in range(points):
        variance[i] = _variance(score[i], tuning) * (1 + share**2 + (1 - share) ** 2)
        for axis in range(2):
            line = share * state.recent[0, i, axis] + (1 - share) * measured[i, axis]
            bend[i, axis] = state.recent[1, i, axis] - line
    return float(_misfit(bend, affine_part(measured, bend, variance), variance, np.empty(points)))


@njit(cache=True, nogil=True)
def affine_part(at: Float64, move: Float64, variance: Float64) -> Float64:
    """Fit an affine motion to the moves of points and return the move that it gives each point.

    Iteratively reweighted least squares, started from the median move, with the redescending weights of Geman and
    McClure. An opening mouth, which is a fifth of the points, hardly changes the fit: it drags the brows by 0.05 px
    (with Cauchy's weights by 0.5). If the points lie on one line, the motion is a translation.

    Args:
        at: (N, 2) places of the points.
        move: (N, 2) their moves.
        variance: (N,) of each coordinate of a move; infinite for points that do not count.
    Returns:
        (N, 2), zero if no point counts.
    Source: Geman and McClure, "Statistical methods for tomographic image reconstruction", 1987; Holland and Welsch,
        "Robust regression using iteratively reweighted least-squares", 1977.
    """
    points = len(at)
    fitted, misfit = np.zeros((points, 2)), np.empty(points)
    for axis in range(2):
        count = 0
        for i in range(points):
            if variance[i] < np.inf:
                misfit[count] = move[i, axis]
                count += 1
        fitted[:, axis] = median(misfit, count)
    for _ in range(ROBUST_ROUNDS):
        scale = max(1.0, _misfit(move, fitted, variance, misfit)) * ROBUST_CUTOFF**2
        _fit_affine(at, move, variance, scale, fitted)
    return fitted


@njit(cache=True, nogil=True)
def _misfit(move: Float64, fitted: Float64, variance: Float64, scratch: Float64) -> float:
    """Median, over the points that count, of the squared misfit over its variance; about 1 for normal noise."""
    count = 0
    for i in range(len(move)):
        if variance[i] < np.inf:
            x, y = move[i, 0] - fitted[i, 0], move[i, 1] - fitted[i, 1]
            scratch[count] = (x**2 + y**2) / variance[i]
            count += 1
    return float(median(scratch, count) / CHI2_MEDIAN)


@njit(cache=True, nogil=True)
def _fit_affine(at: Float64, move: Float64, variance: Float64, scale: float, fitted: Float64) -> None:
    """Improve a fitted affine motion by one round of weighted least squares, in place."""
    points = len(at)
    weight = np.empty(points)
    total, cx, cy, shift_x, shift_y = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(points):
        x, y = move[i, 0] - fitted[i, 0], move[i, 1] - fitted[i, 1]
        w = variance[i] / (variance[i] + (x**2 + y**2) / scale) ** 2 if variance[i] < np.inf else 0.0
        weight[i], total = w, total + w
        cx, cy = cx + w * at[i, 0], cy + w * at[i, 1]
        shift_x, shift_y = shift_x + w * move[i, 0], shift_y + w * move[i, 1]
    if total == 0:
        return
    cx, cy, shift_x, shift_y = cx / total, cy / total, shift_x / total, shift_y / total
    xx, xy, yy, x_of_x, y_of_x, x_of_y, y_of_y = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(points):
        w, x, y = weight[i], at[i, 0] - cx, at[i, 1] - cy
        xx, xy, yy = xx + w * x * x, xy + w * x * y, yy + w * y * y
        x_of_x, y_of_x = x_of_x + w * x * (move[i, 0] - shift_x), y_of_x + w * x * (move[i, 1] - shift_y)
        x_of_y, y_of_y = x_of_y + w * y * (move[i, 0] - shift_x), y_of_y + w * y * (move[i, 1] - shift_y)
    determinant = xx * yy - xy * xy
    inverse = 1 / determinant if determinant > FLAT * (xx + yy) ** 2 else 0.0
    for i in range(points):
        x, y = (at[i, 0] - cx) * inverse, (at[i, 1] - cy) * inverse
        along_x, along_y = yy * x - xy * y, xx * y - xy * x
        fitted[i, 0] = shift_x + x_of_x * along_x + x_of_y * along_y
        fitted[i, 1] = shift_y + y_of_x * along_x + y_of_y * along_y


@njit(cache=True, nogil=True)
def median(values: Float64, count: int) -> float:
    """Median of the first `count` values by bisection, to 1/4096 of their range; 0 if there are none.

    For an even count, the lower of the two middle values. Counting has no branches: it is five times as fast as
    selection here, and `np.median` takes seconds to compile.
    """
    if count == 0:
        return 0.0
    low, high = values[0], values[0]
    for i in range(1, count):
        low, high = min(low, values[i]), max(high, values[i])
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = 0
        for i in range(count):
            below += values[i] <= middle
        if 2 * below >= count:
            high = middle
        else:
            low = middle
    return float(high)
