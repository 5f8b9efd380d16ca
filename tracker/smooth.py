"""A Kalman smoother for all landmarks of one face: still when the face rests, without lag when it moves.

Every coordinate has a constant-velocity model with white-noise acceleration. No single noise level is enough: smoothing
that is strong enough for a resting face trails a starting head by a tenth of the face and swallows blinks. Three
mechanisms decide, from the data alone, how far each measurement is trusted.

1. Shared and own motion. The innovation, measurement minus prediction, is split into an affine motion of the whole
   face, fitted robustly to all points, and the remainder of each point. A motion averaged over 68 points has little
   noise and may be followed at once, while the wobble of single points is smoothed away. Each part has a covariance and
   a gain of its own.
2. Maneuvers. An innovation of more than `maneuver` standard deviations is a movement, not noise: the variance of the
   velocity before the step is raised until each coordinate's variance is the innovation's squared length, so that the
   same frame is followed nearly in full. What has moved counts as moving for a while. Over a step of less than half the
   usual length (a late frame, a duplicate time stamp) only the position is followed: the speed would be far too high.
3. Noise level. A point's distance from the straight line between its neighbours in time shows the noise of this
   video; if the median over the points exceeds the expected noise, all measurement variances grow with it.

`benchmarks/smoothing.py`, a face of 150 px at 30 frames/s with 0.3 px of noise per point and 0.15 px common to all:

| | measured | fixed noise | this |
|---|---|---|---|
| jitter of a still face, px | 0.34 | 0.07 | 0.08 |
| the same with twice the noise, px | 0.67 | 0.15 | 0.20 |
| sudden start to 8 px/frame: lag from the sixth frame on, px | -0.01 | 19.14 | -0.01 |
| sudden stop: overshoot of the face, px (measured: the noise) | 0.28 | 34.91 | 0.26 |
| part lost of a blink of 150 ms, % | -0.2 | 75.1 | -1.2 |
| drag of the brows by an opening mouth, px (measured: the noise) | 0.40 | 0.09 | 0.09 |
| RMS error while the head says no, px | 0.33 | 6.58 | 0.34 |

Tried and rejected: evidence summed over several innovations follows slow accelerations a little better (0.32 px in the
last row), but mistakes noise that is correlated in time, which an aligner may well have, for movement (jitter 0.20
instead of 0.13 px at a correlation of 0.5 from frame to frame).

Source: Bar-Shalom, Li and Kirubarajan, "Estimation with Applications to Tracking and Navigation", 2001, sections 6.3.2
(the model) and 11.2 (adjustable process noise).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from .errors import ConfigError
from .kalman import MIN_STEP_S, FilterState, Tuning, allocate_state, coast, init_state, update
from .types import Float32, Float64

# "kalman" is this module, "oneeuro" is `one_euro`, "rts" is `rts`, "none" leaves points as measured
Smoothing = Literal["kalman", "oneeuro", "rts", "none"]
LEAST = {"noisiest": 1.0, "shared_noise": 0.0, "score_power": 0.0}  # smallest values; other settings must be above 0
PACE = 0.1  # weight of the last step in the running mean of steps
HURRIED = 0.5  # of that mean: a shorter step is due to a late frame or a duplicate time stamp and gives no speed


@dataclass(frozen=True, slots=True)
class SmootherSettings:
    """How much noise to expect and when to call something a movement.

    Lengths are in face sizes (the `size_px` of an update), so that one setting fits near and far faces. The defaults
    were chosen with `benchmarks/smoothing.py`.

    Raises:
        ConfigError: a value is out of range.
    Attributes:
        noise: sigma of one coordinate of a point of score 1; at 0.65, the score that GV gives a clear face, it is 0.002
            (0.3 px on a face of 150 px; 0.0011 for eyelids to 0.0033 for the contour on clips of talking heads).
        shared_noise: sigma of the error that all points have in common (0.15 px on a face of 150 px), 0 or more.
        score_floor: sigma grows with a falling score down to this score; a score of 0 means "not seen at all".
        score_power: sigma is proportional to score ** -score_power; with 0, scores only say which points were seen.
        noisiest: the largest factor by which a noisy video may raise both sigmas; 1 turns it off.
        noise_memory_s: time constant with which that factor follows the video.
        rest_shared: sigma of the acceleration of a face at rest, sizes / s^2.
        rest_own: sigma of the acceleration of a point at rest in its face, sizes / s^2.
        moving: sigma of the acceleration of whatever has just moved, sizes / s^2.
        moving_s: time constant with which it comes to rest.
        maneuver: innovations of more standard deviations than this are movements; infinity turns it off.
        first_speed: sigma of the speed of a face that was just found, sizes / s.
        outlier: a point that is farther than this from where its face would carry it is not believed, but carried
            along, sizes. In nine clips of 24 to 30 frames/s only errors were that far off.
        outlier_speed: a point that could have got there at this speed since it was last believed is not an outlier,
            sizes / s. In the same clips with frames left out, down to 2 frames/s, points that were farther off without
            being errors had a speed of 2.1 at most.
        outlier_spread: a point that is off by at most this many times the median over the points is not an outlier,
            because at a cut to another attitude of the same face all points disagree: there the farthest were off by up
            to 9 times the median, errors by 14 times and more.
        outlier_s: a point that has been an outlier for this long is believed again.
        restart_jump: if a face jumps by more than this in one step, the filter restarts without speed, sizes.
        restart_gap_s: if a face was not measured for longer than this, the filter restarts, too.
        coast_s: time constant with which the speed of an unmeasured face fades.
    """

    noise: float = 0.0013
    shared_noise: float = 0.001
    score_floor: float = 0.1
    score_power: float = 1.0
    noisiest: float = 3.0
    noise_memory_s: float = 0.65
    rest_shared: float = 0.01
    rest_own: float = 0.001
    moving: float = 4.0
    moving_s: float = 0.2
    maneuver: float = 4.0
    first_speed: float = 0.5
    outlier: float = 0.2
    outlier_speed: float = 2.5
    outlier_spread: float = 10.0
    outlier_s: float = 0.06
    restart_jump: float = 0.5
    restart_gap_s: float = 1.0
    coast_s: float = 0.15

    def __post_init__(self) -> None:
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            least = LEAST.get(name)
            if not (value > 0 if least is None else value >= least):
                wanted = "above 0" if least is None else f"of {least:g} or more"
                raise ConfigError(f"smoother: wanted {name} {wanted}, got {value}")


class Smoother:
    """The smoother of one face, one object per track.

    Times are media times in seconds. A measurement at a time that is not after the last one, or is long after it,
    restarts the filter there, so that a stream that was rewound or looped goes on at once.
    """

    def __init__(self, settings: SmootherSettings, points: int) -> None:
        """Prepare for faces of this many points.

        Raises:
            ValueError: points is not positive.
        """
        if points < 1:
            raise ValueError(f"smoother: wanted at least 1 point, got {points}")
        self._settings = settings
        self._points = points
        self._state = allocate_state(points)
        self._time_s = math.nan  # of the state
        self._recent_s: tuple[float, ...] = ()  # times of the last measurements since the start, at most two
        self._pace_s = 0.0  # mean of the last steps
        self._size_px = 0.0
        self._noisier = 1.0  # variance of the video's noise over the expected one

    def update(self, time_s: float, xy: Float32, score: Float32, size_px: float) -> tuple[Float32, Float32]:
        """Take a measurement.

        Args:
            time_s: media time of the frame.
            xy: (N, 2) measured points, frame pixels.
            score: (N,) in [0, 1], how sharply each point was seen; a point with 0 is carried along by the others, a
                face with 0 everywhere coasts.
            size_px: longer side of the face's box.
        Returns:
            smoothed: (N, 2) frame pixels.
            speed: (N, 2) pixels per second.
        Raises:
            ValueError: a shape differs, a number is not finite, or size_px is not positive.
        """
        measured, trust = self._checked(time_s, xy, score, size_px)
        self._size_px = size_px
        if not self._is_continuation(time_s):
            return self._start(time_s, measured, trust)
        if not trust @ trust > 0:
            return self.coast(time_s)
        share, dt = self._time_ratio(time_s), time_s - self._time_s
        self._pace_s += (PACE if self._pace_s else 1.0) * (dt - self._pace_s)
        followed, noise = update(self._state, measured, trust, dt, share, self._tuning())
        if not followed:
            return self._start(time_s, measured, trust)
        self._learn_noise(noise, time_s - self._recent_s[-1])
        self._note(time_s)
        return self._answer()

    def coast(self, time_s: float) -> tuple[Float32, Float32]:
        """Extrapolate the face without a measurement: as a rigid whole, with a fading speed.

        A time that is not after the last one changes nothing.

        Returns:
            smoothed, speed: as in `update`.
        Raises:
            ValueError: there was no measurement yet, or time_s is not finite.
        """
        if not self._recent_s or not math.isfinite(time_s):
            raise ValueError(f"smoother: wanted a finite time after a measurement, got {time_s}")
        if time_s > self._time_s:
            coast(self._state, time_s - self._time_s, self._settings.coast_s, self._tuning())
            self._time_s = time_s
        return self._answer()

    @property
    def state(self) -> FilterState:
        """The filter's state after the last update or coast; the next one changes it in place."""
        return self._state

    def _checked(self, time_s: float, xy: Float32, score: Float32, size_px: float) -> tuple[Float64, Float64]:
        measured = np.ascontiguousarray(xy, np.float64)
        trust = np.ascontiguousarray(score, np.float64)
        if measured.shape != (self._points, 2) or trust.shape != (self._points,):
            wanted = f"({self._points}, 2) points and ({self._points},) scores"
            raise ValueError(f"smoother: wanted {wanted}, got {measured.shape} and {trust.shape}")
        # one bad number spoils the sum of squares, which is faster than checking each
        if not math.isfinite(time_s + np.vdot(measured, measured) + np.vdot(trust, trust)):
            raise ValueError("smoother: wanted finite points and scores at a finite time, got some that are not")
        if not 0 < size_px < math.inf:
            raise ValueError(f"smoother: wanted a face size above 0 px, got {size_px}")
        return measured, trust

    def _is_continuation(self, time_s: float) -> bool:
        gap_s = self._settings.restart_gap_s
        return bool(self._recent_s) and self._time_s < time_s <= self._recent_s[-1] + gap_s

    def _start(self, time_s: float, measured: Float64, trust: Float64) -> tuple[Float32, Float32]:
        self._recent_s = ()
        speed_px = self._settings.first_speed * self._size_px
        init_state(self._state, measured, trust, speed_px**2, self._tuning())
        self._note(time_s)
        return self._answer()

    def _note(self, time_s: float) -> None:
        self._recent_s = (*self._recent_s, time_s)[-2:]
        self._time_s = time_s

    def _time_ratio(self, time_s: float) -> float:
        """Time since the last measurement over the time since the one before it; 0 if there was none."""
        if len(self._recent_s) < 2:
            return 0.0
        return (time_s - self._recent_s[1]) / (time_s - self._recent_s[0])

    def _learn_noise(self, noise: float, passed_s: float) -> None:
        level = min(max(self._noisier * noise, 1.0), self._settings.noisiest**2)
        self._noisier += (1 - math.exp(-passed_s / self._settings.noise_memory_s)) * (level - self._noisier)

    def _tuning(self) -> Tuning:
        settings, area, noisier = self._settings, self._size_px**2, self._noisier
        return Tuning(
            noise=settings.noise**2 * area * noisier,
            shared_noise=settings.shared_noise**2 * area * noisier,
            score_floor=settings.score_floor,
            score_power=settings.score_power,
            rest_shared=settings.rest_shared**2 * area,
            rest_own=settings.rest_own**2 * area,
            moving=settings.moving**2 * area,
            moving_s=settings.moving_s,
            maneuver=settings.maneuver**2,
            outlier_px2=settings.outlier**2 * area,
            outlier_speed_px2=settings.outlier_speed**2 * area,
            outlier_spread=settings.outlier_spread,
            outlier_s=settings.outlier_s,
            jump_px2=settings.restart_jump**2 * area,
            least_step_s=max(MIN_STEP_S, HURRIED * self._pace_s),
        )

    def _answer(self) -> tuple[Float32, Float32]:
        return self._state.position.astype(np.float32), self._state.velocity.astype(np.float32)


def warm_up() -> None:
    """Compile the kernels, or load them from Numba's cache, so that no frame has to wait for them."""
    smoother = Smoother(SmootherSettings(), 5)
    xy, score = np.eye(5, 2, dtype=np.float32), np.ones(5, np.float32)
    for frame in range(3):
        smoother.update(float(frame), xy, score, 1.0)
    smoother.coast(3.0)
