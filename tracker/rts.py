"""The smoother for recorded video: it also uses the frames that come later.

A Rauch-Tung-Striebel smoother over the filter of `smooth`: the filter runs forward as it does in live use, and a
second pass runs backward over the states that it recorded. The result has no lag, neither where a movement starts nor
where it stops, and half the jitter. The filter's split into the shared motion and each point's own is kept: each part
is smoothed with a gain of its own. A face that was out of sight for a moment is interpolated between the measurements
before and after.

Source: Rauch, Tung and Striebel, "Maximum likelihood estimates of linear dynamic systems", AIAA Journal 1965;
Bar-Shalom, Li and Kirubarajan, "Estimation with Applications to Tracking and Navigation", 2001, section 8.6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from .kalman import FilterState
from .smooth import Smoother, SmootherSettings
from .types import Float32, Float64


@dataclass(frozen=True, slots=True)
class _Note:
    """The filter's state at one time."""

    time_s: float
    measured: bool
    state: FilterState

    @property
    def starts(self) -> bool:
        """Whether the filter restarted here, so that nothing before this time affects it."""
        return bool(self.state.prior[0, 0] == np.inf)


class RtsSmoother:
    """The smoother of one face in a recording: one object for each stay of a track in the picture.

    Pass it frame after frame with `update` and `coast`, and take them back in the same order with `take`. All frames
    passed before a frame is taken contribute to it; two seconds of them are nearly as good as all.
    """

    def __init__(self, settings: SmootherSettings, points: int) -> None:
        """Prepare for faces of this many points.

        Raises:
            ValueError: points is not positive.
        """
        self._filter = Smoother(settings, points)
        self._notes: list[_Note] = []
        self._before: tuple[float, Float64] | None = None  # time and place of the last measured frame that was taken

    def __len__(self) -> int:
        return len(self._notes)

    def update(self, time_s: float, xy: Float32, score: Float32, size_px: float) -> None:
        """Take a measurement; arguments and errors are those of `Smoother.update`."""
        self._filter.update(time_s, xy, score, size_px)
        self._note(time_s, measured=True)

    def coast(self, time_s: float) -> None:
        """Take a frame in which the face was not measured; errors are those of `Smoother.coast`."""
        self._filter.coast(time_s)
        last = self._notes[-1] if self._notes else None
        if last is not None and time_s <= last.time_s:  # nothing was predicted and nothing corrected
            still = np.zeros_like(last.state.own_step)
            again = last.state._replace(prior=last.state.covariance, shared_step=still, own_step=still)
            self._notes.append(_Note(last.time_s, False, again))
        else:
            self._note(time_s, measured=False)

    def take(self, count: int) -> tuple[Float32, Float32]:
        """Return the oldest frames that wait, and forget them.

        Args:
            count: how many.
        Returns:
            smoothed: (count, N, 2) frame pixels.
            speed: (count, N, 2) pixels per second.
        Raises:
            ValueError: fewer frames wait, or count is not positive.
        """
        if not 0 < count <= len(self._notes):
            raise ValueError(f"RTS smoother: wanted 1 to {len(self._notes)} waiting frames, got {count}")
        notes = self._notes
        run = FilterState(*map(np.stack, zip(*(note.state for note in notes), strict=True)))
        smooth_backward(run, np.array([note.time_s for note in notes]))
        _bridge(self._before, notes, run.position, run.velocity)
        for k in range(count):
            if notes[k].measured:
                self._before = notes[k].time_s, run.position[k].copy()
        self._notes = notes[count:]
        return run.position[:count].astype(np.float32), run.velocity[:count].astype(np.float32)

    def _note(self, time_s: float, *, measured: bool) -> None:
        self._notes.append(_Note(time_s, measured, FilterState(*map(np.copy, self._filter.state))))


@njit(cache=True, nogil=True)
def smooth_backward(run: FilterState, time_s: Float64) -> None:
    """Turn the filtered positions and velocities of a run into smoothed ones, in place.

    Args:
        run: of T frames, stacked along the first axis of each array.
        time_s: (T,)
    Source: Bar-Shalom et al. 2001, Eq. 8.6.2-9 and 8.6.2-12, once for each of the two parts.
    """
    frames, points, _ = run.position.shape
    shared, own = run.shared_step[frames - 1].copy(), run.own_step[frames - 1].copy()  # smoothed minus predicted
    for t in range(frames - 2, -1, -1):
        dt = time_s[t + 1] - time_s[t]
        for i in range(points):
            _propagate_back(shared[i], run.covariance[t, points], run.prior[t + 1, points], dt)
            _propagate_back(own[i], run.covariance[t, i], run.prior[t + 1, i], dt)
            for axis in range(2):
                run.position[t, i, axis] += shared[i, axis] + own[i, axis]
                run.velocity[t, i, axis] += shared[i, 2 + axis] + own[i, 2 + axis]
            for k in range(4):
                shared[i, k] += run.shared_step[t, i, k]
                own[i, k] += run.own_step[t, i, k]


@njit(cache=True, nogil=True)
def _propagate_back(change: Float64, covariance: Float64, prior: Float64, dt: float) -> None:
    """Replace a change of one state (x, y and their speeds) by what follows from it for the state dt seconds before."""
    if prior[0] == np.inf:
        change[:] = 0.0
        return
    pp, pv = covariance[0] + dt * covariance[1], covariance[1]  # covariance of this state with the predicted one
    vp, vv = covariance[1] + dt * covariance[2], covariance[2]
    determinant = prior[0] * prior[2] - prior[1] * prior[1]
    for axis in range(2):
        x = (prior[2] * change[axis] - prior[1] * change[2 + axis]) / determinant
        v = (prior[0] * change[2 + axis] - prior[1] * change[axis]) / determinant
        change[axis] = pp * x + pv * v
        change[2 + axis] = vp * x + vv * v


def _bridge(before: tuple[float, Float64] | None, notes: list[_Note], position: Float64, velocity: Float64) -> None:
    """Put the frames between two measurements of one motion on the straight line between them, in place.

    Args:
        before: time and smoothed place (N, 2) of the last measurement before these notes; None if there was none.
        notes: T of them.
        position, velocity: (T, N, 2).
    """
    begin, first = before, 0
    for t, note in enumerate(notes):
        if not note.measured:
            continue
        if begin is not None and first < t and not note.starts:
            begin_s, place = begin
            span_s = note.time_s - begin_s
            for k in range(first, t):
                share = (notes[k].time_s - begin_s) / span_s
                position[k] = (1 - share) * place + share * position[t]
                velocity[k] = (position[t] - place) / span_s
        begin, first = (note.time_s, position[t]), t + 1


def warm_up() -> None:
    """Compile the kernel, or load it from Numba's cache."""
    smoother = RtsSmoother(SmootherSettings(), 5)
    for frame in range(2):
        smoother.update(float(frame), np.eye(5, 2, dtype=np.float32), np.ones(5, np.float32), 1.0)
    smoother.take(2)
