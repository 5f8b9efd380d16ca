"""What the smoother does to a synthetic face: jitter, lag, overshoot, blinks. Run: python benchmarks/smoothing.py

A mean face of 150 px is moved in a known way at 30 frames a second and measured with 0.3 px of noise on every
coordinate plus 0.15 px that all points of a frame have in common. Three tracks are compared with the truth: the
measurements, a Kalman filter of fixed noise (the same one with its adaptation turned off), and the smoother.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from facetrack.tracker.metrics import jitter, lag
from facetrack.tracker.pose import MEAN_FACE_MM, rotation_matrix
from facetrack.tracker.smooth import Smoother, SmootherSettings, warm_up
from facetrack.tracker.types import Float32, Float64

FPS = 30.0
SIZE_PX = 150.0
OWN_NOISE_PX, SHARED_NOISE_PX = 0.3, 0.15
SCORE = np.full(68, 0.65, np.float32)  # what the GV network says of a clear face
REPEATS = 20

UPPER_LIDS = [37, 38, 43, 44]
LOWER_LIP_AND_JAW = [5, 6, 7, 8, 9, 10, 11, 55, 56, 57, 58, 59, 65, 66, 67]
DISTANCE_MM = 600.0

FIXED = SmootherSettings(surprise=np.inf, noisiest=1.0)
Settings = SmootherSettings | None  # None: the measurements as they are


def face(rotation_rad: tuple[float, float, float] = (0, 0, 0)) -> Float64:
    """Give (68, 2) pixels of the mean face, 150 px wide when it is frontal, seen from 600 mm."""
    seen = MEAN_FACE_MM @ rotation_matrix(np.array(rotation_rad)).T + [0, 0, DISTANCE_MM]
    widest = MEAN_FACE_MM[[0, 16]]
    focal_px = SIZE_PX * (DISTANCE_MM + widest[0, 2]) / np.ptp(widest[:, 0])
    return np.asarray(focal_px * seen[:, :2] / seen[:, 2:] + [320, 240])


def still(frames: int) -> Float64:
    """Give (T, 68, 2) of a face that does not move."""
    return np.repeat(face()[None], frames, 0)


def ride(px_per_frame: float) -> Float64:
    """Give (120, 68, 2) of a face that rests for 40 frames, moves for 40 at full speed, and rests again."""
    way = np.clip(np.arange(120) - 40, 0, 40) * px_per_frame
    return still(120) + np.stack((way, np.zeros(120)), -1)[:, None]


def blink(depth_px: float = 8.0, length_s: float = 0.15, phase: float = 0.0) -> Float64:
    """Give (60, 68, 2) of upper lids that fall and rise once, as a squared sine."""
    t = (np.arange(60) - 30 + phase) / FPS / length_s
    fall = np.where((t > 0) & (t < 1), np.sin(np.pi * t) ** 2, 0) * depth_px
    truth = still(60)
    truth[:, UPPER_LIDS, 1] += fall[:, None]
    return truth


def mouth(depth_px: float = 15.0, length_s: float = 0.2) -> Float64:
    """Give (60, 68, 2) of a lower lip and a jaw that go down evenly and stay."""
    t = np.clip((np.arange(60) - 30) / FPS / length_s, 0, 1)
    truth = still(60)
    truth[:, LOWER_LIP_AND_JAW, 1] += depth_px * t[:, None]
    return truth


def shake(degrees: float, hertz: float, axis: int) -> Float64:
    """Give (240, 68, 2) of a head that swings about one axis (0 nods, 1 says no, 2 rolls) for eight seconds."""
    swings = np.radians(degrees) * np.sin(2 * np.pi * hertz * np.arange(240) / FPS)
    return np.stack([face(tuple(swing * np.eye(3)[axis])) for swing in swings])


def measured(truth: Float64, rng: np.random.Generator, louder: float = 1.0) -> Float32:
    """Add noise to (T, 68, 2) true points."""
    own = rng.normal(0, louder * OWN_NOISE_PX, truth.shape)
    shared = rng.normal(0, louder * SHARED_NOISE_PX, (len(truth), 1, 2))
    return (truth + own + shared).astype(np.float32)


def track(seen: Float32, settings: Settings) -> Float32:
    """Smooth (T, 68, 2) measurements."""
    if settings is None:
        return seen
    smoother = Smoother(settings, 68)
    return np.stack([smoother.update(i / FPS, xy, SCORE, SIZE_PX)[0] for i, xy in enumerate(seen)])


def jitter_px(settings: Settings, rng: np.random.Generator, louder: float) -> float:
    """Jitter of a resting face after its first second."""
    return jitter(track(measured(still(330), rng, louder), settings)[30:])


def ride_px(settings: Settings, rng: np.random.Generator, part: slice) -> float:
    """Lag of a face that moves 8 px a frame, over part of its way."""
    truth = ride(8.0)
    return lag(track(measured(truth, rng), settings)[part], truth[part])


def overshoot_px(settings: Settings, rng: np.random.Generator) -> float:
    """How far the face as a whole runs beyond the place where it stops, at most."""
    truth = ride(8.0)
    return float((track(measured(truth, rng), settings) - truth)[80:95, :, 0].mean(1).max())


def lost_part(settings: Settings, rng: np.random.Generator, truth: Float64, points: list[int]) -> float:
    """Part of the points' largest downward way that the track does not show."""
    way = (track(measured(truth, rng), settings) - truth[0])[:, points, 1].mean(1)
    return 1 - float(way.max() / (truth - truth[0])[:, points, 1].mean(1).max())


def blink_part(settings: Settings, rng: np.random.Generator) -> float:
    """Part of a blink that is lost, in per cent; it begins anywhere between two frames."""
    return 100 * lost_part(settings, rng, blink(phase=rng.random()), UPPER_LIDS)


def mouth_part(settings: Settings, rng: np.random.Generator) -> float:
    """Part of an opening mouth that is lost, in per cent."""
    return 100 * lost_part(settings, rng, mouth(), LOWER_LIP_AND_JAW)


def brow_drag_px(settings: Settings, rng: np.random.Generator) -> float:
    """How far the opening mouth drags the brows along, at most."""
    truth = mouth()
    error = (track(measured(truth, rng), settings) - truth)[30:45, 17:27, 1].mean(1)
    return float(np.abs(error).max())


def error_px(settings: Settings, rng: np.random.Generator, truth: Float64) -> float:
    """RMS error of a coordinate after the first second."""
    return float(np.sqrt(((track(measured(truth, rng), settings) - truth)[30:] ** 2).mean()))


def rows() -> Iterator[tuple[str, str, Callable[[Settings, np.random.Generator], float]]]:
    """Name, unit and measurement of each row of the table."""
    for louder in (1.0, 2.0):
        yield f"jitter of a still face, noise x {louder:g}", "px", partial(jitter_px, louder=louder)
    yield "8 px/frame: lag in the first frame", "px", partial(ride_px, part=slice(40, 42))
    yield "8 px/frame: lag from the sixth frame on", "px", partial(ride_px, part=slice(45, 81))
    yield "8 px/frame: overshoot at the sudden stop", "px", overshoot_px
    yield "blink of 150 ms: part lost", "%", blink_part
    yield "mouth opens in 200 ms: part lost", "%", mouth_part
    yield "mouth opens in 200 ms: drag of the brows", "px", brow_drag_px
    for name, swing in (("no", (25, 1.0, 1)), ("yes", (15, 0.8, 0)), ("tilt", (20, 1.0, 2))):
        yield f"head says {name}: RMS error", "px", partial(error_px, truth=shake(*swing))


def microseconds() -> float:
    """Median time of one update of 68 points."""
    seen = measured(still(3000), np.random.default_rng(0))
    smoother, spans = Smoother(SmootherSettings(), 68), []
    for i, xy in enumerate(seen):
        start = time.perf_counter()
        smoother.update(i / FPS, xy, SCORE, SIZE_PX)
        spans.append(time.perf_counter() - start)
    return float(np.median(spans)) * 1e6


def main() -> None:
    """Print the table."""
    warm_up()
    print(f"{'':44s}{'measured':>10s}{'fixed':>10s}{'smoother':>10s}")
    for name, unit, measure in rows():
        cells = []
        for settings in (None, FIXED, SmootherSettings()):
            rng = np.random.default_rng(0)
            cells.append(np.mean([measure(settings, rng) for _ in range(REPEATS)]))
        print(f"{name + ', ' + unit:44s}" + "".join(f"{cell:10.2f}" for cell in cells))
    print(f"{'one update of 68 points, us':64s}{microseconds():10.1f}")


if __name__ == "__main__":
    main()
