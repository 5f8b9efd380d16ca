"""Jitter, lag, overshoot and blinks of the smoothers on a synthetic face.

    python benchmarks/smoothing.py [--plot FILE] [--repeats 10]

A mean face of 150 px is moved in a known way at 30 frames per second and measured with 0.3 px of noise on every
coordinate plus 0.15 px of noise that all points of a frame share. These tracks are compared with the truth:

    measured   the measurements
    fixed      the Kalman filter with its adaptation turned off
    alone      a Kalman filter for each point, without the motion that all points share
    oneeuro    the One-Euro filter
    kalman     the Kalman filter as shipped
    rts        the same filter with RTS smoothing, which looks ahead by two seconds

The plot shows the jitter of a resting face against the lag of one that starts suddenly: each smoother over a range of
its main setting, with the defaults marked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from facetrack.pipeline.hindsight import BLOCK, LOOK_AHEAD_S
from facetrack.pipeline.part_file import PartFile
from facetrack.tracker.errors import SinkError
from facetrack.tracker.metrics import jitter, lag
from facetrack.tracker.one_euro import OneEuro, OneEuroSettings
from facetrack.tracker.pose import MEAN_FACE_MM, rotation_matrix
from facetrack.tracker.rts import RtsSmoother
from facetrack.tracker.smooth import Smoother, SmootherSettings, warm_up
from facetrack.tracker.types import Float32, Float64

FPS = 30.0
SIZE_PX = 150.0
OWN_NOISE_PX, SHARED_NOISE_PX = 0.3, 0.15
SCORE = np.full(68, 0.65, np.float32)  # the GV network's scores on a clear face

UPPER_LIDS = [37, 38, 43, 44]
LOWER_LIP_AND_JAW = [5, 6, 7, 8, 9, 10, 11, 55, 56, 57, 58, 59, 65, 66, 67]
DISTANCE_MM = 600.0

KALMAN = SmootherSettings()
FIXED = replace(KALMAN, maneuver=np.inf, noisiest=1.0)
Track = Callable[[Float32], Float32]  # (T, 68, 2) measurements -> smoothed points


def face(rotation_rad: tuple[float, float, float] = (0, 0, 0)) -> Float64:
    """The mean face, (68, 2) pixels, 150 px wide when it is frontal, seen from 600 mm."""
    seen = MEAN_FACE_MM @ rotation_matrix(np.array(rotation_rad)).T + [0, 0, DISTANCE_MM]
    widest = MEAN_FACE_MM[[0, 16]]
    focal_px = SIZE_PX * (DISTANCE_MM + widest[0, 2]) / np.ptp(widest[:, 0])
    return np.asarray(focal_px * seen[:, :2] / seen[:, 2:] + [320, 240])


def still(frames: int) -> Float64:
    """(T, 68, 2) a face that does not move."""
    return np.repeat(face()[None], frames, 0)


def ride(px_per_frame: float) -> Float64:
    """(120, 68, 2) a face that rests for 40 frames, moves for 40 at full speed, and rests again."""
    way = np.clip(np.arange(120) - 40, 0, 40) * px_per_frame
    return still(120) + np.stack((way, np.zeros(120)), -1)[:, None]


def blink(depth_px: float = 8.0, length_s: float = 0.15, phase: float = 0.0) -> Float64:
    """(60, 68, 2) a face whose upper lids fall and rise once, as a squared sine."""
    t = (np.arange(60) - 30 + phase) / FPS / length_s
    fall = np.where((t > 0) & (t < 1), np.sin(np.pi * t) ** 2, 0) * depth_px
    truth = still(60)
    truth[:, UPPER_LIDS, 1] += fall[:, None]
    return truth


def mouth(depth_px: float = 15.0, length_s: float = 0.2) -> Float64:
    """(60, 68, 2) a face whose lower lip and jaw go down at constant speed and stay."""
    t = np.clip((np.arange(60) - 30) / FPS / length_s, 0, 1)
    truth = still(60)
    truth[:, LOWER_LIP_AND_JAW, 1] += depth_px * t[:, None]
    return truth


def shake(degrees: float, hertz: float, axis: int) -> Float64:
    """(240, 68, 2) a head that swings about one axis (0 nods, 1 says no, 2 rolls) for eight seconds."""
    swings = np.radians(degrees) * np.sin(2 * np.pi * hertz * np.arange(240) / FPS)
    return np.stack([face(tuple(swing * np.eye(3)[axis])) for swing in swings])


def measured(truth: Float64, rng: np.random.Generator, louder: float = 1.0) -> Float32:
    """Add noise to (T, 68, 2) true points."""
    own = rng.normal(0, louder * OWN_NOISE_PX, truth.shape)
    shared = rng.normal(0, louder * SHARED_NOISE_PX, (len(truth), 1, 2))
    return (truth + own + shared).astype(np.float32)


def as_measured(seen: Float32) -> Float32:
    """The measurements, unchanged."""
    return seen


def by_kalman(seen: Float32, settings: SmootherSettings = KALMAN) -> Float32:
    """The Kalman filter of all points together."""
    smoother = Smoother(settings, 68)
    return np.stack([smoother.update(i / FPS, xy, SCORE, SIZE_PX)[0] for i, xy in enumerate(seen)])


def by_point(seen: Float32, settings: SmootherSettings = KALMAN) -> Float32:
    """A Kalman filter for each point."""
    alone = [Smoother(settings, 1) for _ in range(68)]
    score = SCORE[:1]
    track = np.empty_like(seen)
    for i, xy in enumerate(seen):
        for k, smoother in enumerate(alone):
            track[i, k] = smoother.update(i / FPS, xy[k : k + 1], score, SIZE_PX)[0][0]
    return track


def by_one_euro(seen: Float32, settings: OneEuroSettings | None = None) -> Float32:
    """The One-Euro filter."""
    smoother = OneEuro(settings or OneEuroSettings(), 68)
    return np.stack([smoother.update(i / FPS, xy, SCORE, SIZE_PX)[0] for i, xy in enumerate(seen)])


def by_rts(seen: Float32, settings: SmootherSettings = KALMAN) -> Float32:
    """The RTS smoother, as a batch runs it."""
    smoother, out = RtsSmoother(settings, 68), []
    for i, xy in enumerate(seen):
        smoother.update(i / FPS, xy, SCORE, SIZE_PX)
        if len(smoother) >= LOOK_AHEAD_S * FPS + BLOCK:
            out.append(smoother.take(BLOCK)[0])
    return np.concatenate([*out, smoother.take(len(smoother))[0]])


TRACKS: dict[str, Track] = {
    "measured": as_measured,
    "fixed": partial(by_kalman, settings=FIXED),
    "alone": by_point,
    "oneeuro": by_one_euro,
    "kalman": by_kalman,
    "rts": by_rts,
}


def jitter_px(track: Track, rng: np.random.Generator, louder: float) -> float:
    """Jitter of a resting face after its first second."""
    return jitter(track(measured(still(330), rng, louder))[30:])


def ride_px(track: Track, rng: np.random.Generator, part: slice) -> float:
    """Lag of a face that moves 8 px per frame, over part of its way."""
    truth = ride(8.0)
    return lag(track(measured(truth, rng))[part], truth[part])


def overshoot_px(track: Track, rng: np.random.Generator) -> float:
    """How far the face as a whole runs beyond the place where it stops, at most."""
    truth = ride(8.0)
    return float((track(measured(truth, rng)) - truth)[80:95, :, 0].mean(1).max())


def lost_part(track: Track, rng: np.random.Generator, truth: Float64, points: list[int]) -> float:
    """Share of the points' largest downward movement that is missing in the track."""
    way = (track(measured(truth, rng)) - truth[0])[:, points, 1].mean(1)
    return 1 - float(way.max() / (truth - truth[0])[:, points, 1].mean(1).max())


def blink_part(track: Track, rng: np.random.Generator) -> float:
    """Share of a blink that is lost, in per cent; the blink begins at a random time between two frames."""
    return 100 * lost_part(track, rng, blink(phase=rng.random()), UPPER_LIDS)


def mouth_part(track: Track, rng: np.random.Generator) -> float:
    """Share of an opening mouth's movement that is lost, in per cent."""
    return 100 * lost_part(track, rng, mouth(), LOWER_LIP_AND_JAW)


def brow_drag_px(track: Track, rng: np.random.Generator) -> float:
    """How far an opening mouth drags the brows along, at most."""
    truth = mouth()
    error = (track(measured(truth, rng)) - truth)[30:45, 17:27, 1].mean(1)
    return float(np.abs(error).max())


def error_px(track: Track, rng: np.random.Generator, truth: Float64) -> float:
    """RMS error of a coordinate after the first second."""
    return float(np.sqrt(((track(measured(truth, rng)) - truth)[30:] ** 2).mean()))


def rows() -> Iterator[tuple[str, str, Callable[[Track, np.random.Generator], float]]]:
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


def mean_of(measure: Callable[[Track, np.random.Generator], float], track: Track, repeats: int) -> float:
    """The mean over repeats with different noise."""
    rng = np.random.default_rng(0)
    return float(np.mean([measure(track, rng) for _ in range(repeats)]))


def microseconds(track: Track) -> float:
    """Time per frame of 68 points."""
    seen = measured(still(1000), np.random.default_rng(0))
    start = time.perf_counter()
    track(seen)
    return (time.perf_counter() - start) / len(seen) * 1e6


def start_lag_px(track: Track, rng: np.random.Generator) -> float:
    """Mean lag over the first third of a second after a sudden start to 8 px per frame."""
    return ride_px(track, rng, slice(40, 51))


def ranges() -> Iterator[tuple[str, list[Track]]]:
    """Each smoother over a range of its main setting, the default among them."""
    factors = np.geomspace(1 / 30, 300, 9)
    for name, track, base in (("fixed", by_kalman, FIXED), ("kalman", by_kalman, KALMAN), ("rts", by_rts, KALMAN)):
        rests = [
            replace(base, rest_shared=base.rest_shared * factor, rest_own=base.rest_own * factor) for factor in factors
        ]
        yield name, [partial(track, settings=settings) for settings in rests]
    for cutoff_hz in (0.05, 1.0):
        betas = [OneEuroSettings(cutoff_hz=cutoff_hz, beta=beta) for beta in np.geomspace(2, 1000, 9)]
        yield f"oneeuro, {cutoff_hz:g} Hz", [partial(by_one_euro, settings=settings) for settings in betas]


def plot(path: Path, repeats: int) -> None:
    """Draw jitter against lag."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()

    def place(track: Track) -> tuple[float, float]:
        still_px = mean_of(partial(jitter_px, louder=1.0), track, repeats)
        return still_px, max(abs(mean_of(start_lag_px, track, repeats)), 0.01)

    for name, tracks in ranges():
        axes.plot(*zip(*map(place, tracks), strict=True), ".-", label=name)
    for name, track in TRACKS.items():
        x, y = place(track)
        axes.plot(x, y, "k*", markersize=12)
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(8, 5))
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="jitter of a resting face of 150 px, px",
        ylabel="lag in the first third of a second at 8 px a frame, px (0.01: none)",
        title="Stars: the defaults. Lines: over a range of the main setting",
    )
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.2)
    figure.savefig(path)


def refuse_plot(path: Path, parser: argparse.ArgumentParser) -> None:
    """Check before anything is measured that the plot can be written; otherwise exit as for bad usage."""
    if path.suffix.lower() not in (".png", ".svg"):
        parser.error(f"argument --plot: wanted a name that ends in .png or .svg, got {path}")
    try:
        PartFile(path, overwrite=True).check_writable()
    except SinkError as error:
        parser.error(str(error))


def main() -> None:
    """Print the table, and draw the plot if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG or SVG; needs matplotlib")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.plot is not None:
        refuse_plot(arguments.plot, parser)
    warm_up()
    print(f"{'':44s}" + "".join(f"{name:>10s}" for name in TRACKS))
    for name, unit, measure in rows():
        cells = [mean_of(measure, track, arguments.repeats) for track in TRACKS.values()]
        print(f"{name + ', ' + unit:44s}" + "".join(f"{cell:10.2f}" for cell in cells), flush=True)
    print(f"{'a frame of 68 points, us':44s}" + "".join(f"{microseconds(track):10.1f}" for track in TRACKS.values()))
    if arguments.plot is not None:
        plot(arguments.plot, max(arguments.repeats // 4, 1))


if __name__ == "__main__":
    main()
