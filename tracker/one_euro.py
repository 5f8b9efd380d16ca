"""The One-Euro filter: a low pass whose cutoff rises with the speed; the usual choice elsewhere, here for comparison.

It is simple and cheap, but it filters each point on its own: it does not use the motion that 68 points share, and a
cutoff that passes a start or a blink also passes the noise of that moment. `docs/smoothing.md` compares it with the
others.

Source: Casiez, Roussel and Vogel, "1 Euro filter: a simple speed-based low-pass filter for noisy input in interactive
systems", CHI 2012, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .errors import ConfigError
from .types import Float32, Float64


@dataclass(frozen=True, slots=True)
class OneEuroSettings:
    """When to follow and when to rest; lengths are in face sizes, so that one setting fits near and far faces.

    Raises:
        ConfigError: a value is out of range.
    Attributes:
        cutoff_hz: cutoff of a point at rest; lower is steadier.
        beta: how much the cutoff rises with the speed, Hz per face size per second; higher reacts faster.
        speed_cutoff_hz: cutoff of the speed itself.
        restart_gap_s: if a face was not measured for longer than this, the filter restarts.
    """

    cutoff_hz: float = 0.05
    beta: float = 80.0
    speed_cutoff_hz: float = 1.0
    restart_gap_s: float = 1.0

    def __post_init__(self) -> None:
        for name in ("cutoff_hz", "speed_cutoff_hz", "restart_gap_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"One-Euro filter: wanted {name} above 0, got {getattr(self, name)}")
        if not self.beta >= 0:
            raise ConfigError(f"One-Euro filter: wanted beta of 0 or more, got {self.beta}")


class OneEuro:
    """The One-Euro filter of all points of one face, one object per track.

    The cutoff of a point depends on the length of its velocity, not on each axis alone, so that rotating the picture
    rotates the result. Times are media times in seconds. A time that is not after the last one, or is long after it,
    restarts the filter.
    """

    def __init__(self, settings: OneEuroSettings, points: int) -> None:
        """Prepare for faces of this many points.

        Raises:
            ValueError: points is not positive.
        """
        if points < 1:
            raise ValueError(f"One-Euro filter: wanted at least 1 point, got {points}")
        self._settings = settings
        self._position: Float64 = np.zeros((points, 2))
        self._velocity: Float64 = np.zeros((points, 2))
        self._time_s = math.nan

    def update(self, time_s: float, xy: Float32, score: Float32, size_px: float) -> tuple[Float32, Float32]:
        """Take a measurement.

        Args:
            time_s: media time of the frame.
            xy: (N, 2) measured points, frame pixels.
            score: (N,) in [0, 1]; a point with 0 stays where it is, otherwise scores do not matter.
            size_px: longer side of the face's box.
        Returns:
            smoothed: (N, 2) frame pixels.
            speed: (N, 2) pixels per second.
        Raises:
            ValueError: a shape differs, a number is not finite, or size_px is not positive.
        """
        if xy.shape != self._position.shape or score.shape != self._position.shape[:1]:
            wanted = f"{self._position.shape} points and {self._position.shape[:1]} scores"
            raise ValueError(f"One-Euro filter: wanted {wanted}, got {xy.shape} and {score.shape}")
        if not (
            math.isfinite(time_s) and np.isfinite(xy).all() and np.isfinite(score).all() and 0 < size_px < math.inf
        ):
            raise ValueError("One-Euro filter: wanted finite points, scores and time and a size above 0 px")
        passed_s = time_s - self._time_s
        if not 0 < passed_s <= self._settings.restart_gap_s:  # NaN at the first update
            self._position, self._velocity = xy.astype(np.float64), np.zeros_like(self._position)
        else:
            self._filter(xy.astype(np.float64), score > 0, passed_s, size_px)
        self._time_s = time_s
        return self._answer()

    def _filter(self, xy: Float64, seen: np.ndarray[tuple[int], np.dtype[np.bool_]], dt: float, size_px: float) -> None:
        settings = self._settings
        velocity = (xy - self._position) / dt
        self._velocity[seen] += _smoothing_factor(settings.speed_cutoff_hz, dt) * (velocity - self._velocity)[seen]
        speed = np.hypot(self._velocity[:, 0], self._velocity[:, 1]) / size_px
        factor = _smoothing_factor(settings.cutoff_hz + settings.beta * speed, dt)[:, None]
        self._position[seen] += (factor * (xy - self._position))[seen]

    def coast(self, time_s: float) -> tuple[Float32, Float32]:
        """Leave the face where it is: the filter has no model of its motion.

        Returns:
            smoothed, speed: as in `update`; the speed is 0.
        Raises:
            ValueError: there was no measurement yet, or time_s is not finite.
        """
        if not math.isfinite(time_s + self._time_s):
            raise ValueError(f"One-Euro filter: wanted a finite time after a measurement, got {time_s}")
        return self._position.astype(np.float32), np.zeros(self._position.shape, np.float32)

    def _answer(self) -> tuple[Float32, Float32]:
        return self._position.astype(np.float32), self._velocity.astype(np.float32)


def _smoothing_factor(cutoff_hz: Float64 | float, dt: float) -> Float64:
    """The share of a step that a low pass with this cutoff follows within dt seconds."""
    return np.asarray(1 / (1 + 1 / (2 * np.pi * np.asarray(cutoff_hz) * dt)), np.float64)
