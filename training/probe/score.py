"""Score a tracker on a clip of the probe against the exact ground truth.

A face that shows at least `PLAIN` of its landmarks has to be tracked, one that shows at most `HIDDEN` of them must not
be; in between either is accepted. Localisation errors are split into the aligner's standing error, which differs from
photograph to photograph, and what motion adds to it: jitter, lag and overshoot are measured relative to the track's
position while the face is at rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...tracker import markup, metrics
from ...tracker.types import Float32, Float64, Int64
from .clips import Clip

PLAIN, HIDDEN = 0.8, 0.2
SAME_FACE = 0.2  # largest mean distance of the landmarks over the face's size at which a track is on a face
SETTLED = 30  # frames, one second, after which a track has settled
STEADY = 10  # fewest frames of motion at constant speed that count as a ride
NOBODY = -1


@dataclass(frozen=True, slots=True)
class TrackedClip:
    """A tracker's results for the T frames of a clip; rows of the same frame belong to different faces.

    Attributes:
        frame: (R,) 0-based frame of each row.
        track: (R,) track ID.
        measured: (R,) bool, False if the face was carried on without a measurement.
        xy: (R, 68, 2) landmarks.
        raw: (R, 68, 2) as measured, NaN if they were not.
        frames: number of frames read, T for a complete clip.
    """

    frame: Int64
    track: Int64
    measured: np.ndarray[Any, np.dtype[np.bool_]]
    xy: Float32
    raw: Float32
    frames: int


@dataclass(frozen=True, slots=True)
class Steadiness:
    """Steadiness of a track of one kind (smoothed or raw); None for what the clip does not show.

    Attributes:
        jitter_px: RMS deviation of a coordinate while the face is at rest.
        lag_px: distance behind a face that moves at constant speed, from the sixth frame on.
        lag_ms: the same as time.
        start_px: distance behind it in the first two frames after a sudden start.
        overshoot_px: how far the whole face runs beyond the place of a sudden stop, at most.
        error_px: RMS error of a coordinate after subtracting the standing error, over all tracked frames.
    """

    jitter_px: float | None = None
    lag_px: float | None = None
    lag_ms: float | None = None
    start_px: float | None = None
    overshoot_px: float | None = None
    error_px: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """The scores of one clip.

    Attributes:
        name: of the clip.
        nme: inter-ocular, fractions, per face and frame; None if the face was not tracked.
        wanted_face_frames: frames in which a face was plain to see, summed over the faces.
        lost_face_frames: those of them in which it was not tracked.
        first_found_frames: frames from when each face was plain to see until it was found; None: never.
        found_again_frames: frames from when a face came back into sight until it was found, for each time it did.
        held_on_frames: frames in which a face was still reported after it went out of sight, for each time it did.
        switches: identity switches.
        false_tracks: track IDs that were on no face most of the time.
        false_rows: measured rows on no face.
        smoothed, raw: steadiness.
    """

    name: str
    nme: list[list[float | None]]
    wanted_face_frames: int
    lost_face_frames: int
    first_found_frames: list[int | None]
    found_again_frames: list[int | None]
    held_on_frames: list[int]
    switches: int
    false_tracks: int
    false_rows: int
    smoothed: Steadiness
    raw: Steadiness

    @property
    def mean_nme(self) -> float | None:
        """Mean error over all frames in which a face was tracked, a fraction; None if there are none."""
        values = [value for face in self.nme for value in face if value is not None]
        return float(np.mean(values)) if values else None

    def table(self) -> dict[str, Any]:
        """All values in JSON types; names of values that are not counts end with the unit."""
        told = asdict(self)
        del told["nme"]
        nme = [[_percent(error) for error in face] for face in self.nme]
        return {**told, "mean_nme_percent": _percent(self.mean_nme), "nme_percent": nme}


def _percent(error: float | None) -> float | None:
    return None if error is None else 100 * error


def score(clip: Clip, tracked: TrackedClip) -> Score:
    """Measure a tracked clip."""
    rows = match(clip, tracked)
    faces = range(len(clip.truth))
    plain, hidden = clip.visible >= PLAIN, clip.visible <= HIDDEN
    seen = rows != NOBODY
    strays = _strays(clip, tracked)
    return Score(
        name=clip.name,
        nme=[_errors(clip.truth[f], tracked.xy, np.where(plain[f], rows[f], NOBODY)) for f in faces],
        wanted_face_frames=int(plain.sum()),
        lost_face_frames=int((plain & ~seen).sum()),
        first_found_frames=[_first(seen[f, _first(plain[f]) or 0 :]) for f in faces],
        found_again_frames=[_first(seen[f, t:]) for f in faces for t in _returns(plain[f], hidden[f])],
        held_on_frames=[_until_lost(seen[f], t) for f in faces for t in _starts(hidden[f])],
        switches=sum(_switches(tracked.track[rows[f][seen[f]]]) for f in faces),
        false_tracks=_false_tracks(tracked, strays),
        false_rows=int(strays.sum()),
        smoothed=_steadiness(clip, tracked.xy, rows),
        raw=_steadiness(clip, tracked.raw, rows),
    )


def match(clip: Clip, tracked: TrackedClip) -> Int64:
    """The measured row on each face, (F, T); `NOBODY` if there is none.

    A row that is near enough is matched to the nearest face, but a track that was on a face stays on it while it is
    near enough, as in the CLEAR metrics. Hidden faces are matched like the others.
    """
    faces, frames = clip.visible.shape
    rows = np.full((faces, frames), NOBODY, np.int64)
    last: dict[int, int] = {}  # face -> track
    for t in range(frames):
        here = np.flatnonzero((tracked.frame == t) & tracked.measured)
        distance = _distances(clip, tracked.xy[here], t)
        pairs = [
            (last.get(f) != int(tracked.track[here[r]]), float(distance[f, r]), f, r)
            for f, r in np.argwhere(distance <= SAME_FACE).tolist()
        ]
        taken: set[int] = set()
        for _, _, f, r in sorted(pairs):
            if rows[f, t] == NOBODY and r not in taken:
                rows[f, t] = here[r]
                taken.add(r)
                last[f] = int(tracked.track[here[r]])
    return rows


def _distances(clip: Clip, xy: Float32, t: int) -> Float64:
    """(F, R) mean landmark distances over the face's size."""
    truth = clip.truth[:, t].astype(np.float64)
    if not len(truth) or not len(xy):
        return np.empty((len(truth), len(xy)))
    size = np.ptp(truth, axis=1).max(-1)
    apart = np.linalg.norm(truth[:, None] - xy[None], axis=-1).mean(-1)
    return np.asarray(apart / size[:, None], np.float64)


def _strays(clip: Clip, tracked: TrackedClip) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(R,) whether a measured row is on no face, plain or half hidden."""
    stray = np.zeros(len(tracked.frame), bool)
    for r in np.flatnonzero(tracked.measured):
        t = int(tracked.frame[r])
        distance = _distances(clip, tracked.xy[r : r + 1], t)[:, 0]
        stray[r] = not ((distance <= SAME_FACE) & (clip.visible[:, t] > HIDDEN)).any()
    return stray


def _false_tracks(tracked: TrackedClip, strays: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    return sum(
        bool(strays[(tracked.track == track) & tracked.measured].mean() > 0.5)
        for track in np.unique(tracked.track[tracked.measured])
    )


def _errors(truth: Float32, xy: Float32, rows: Int64) -> list[float | None]:
    """NME of one face in each frame."""
    there = np.flatnonzero(rows != NOBODY)
    errors: list[float | None] = [None] * len(rows)
    if there.size:
        found = metrics.nme(xy[rows[there]], truth[there], markup.load("ibug68"))
        for t, error in zip(there.tolist(), found.tolist(), strict=True):
            errors[t] = error
    return errors


def _first(flags: Iterable[Any]) -> int | None:
    return next((i for i, flag in enumerate(flags) if flag), None)


def _starts(flags: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int]:
    """Where runs of True begin, except one at 0."""
    return [int(i) + 1 for i in np.flatnonzero(np.diff(flags.astype(np.int8)) == 1)]


def _returns(plain: np.ndarray[Any, np.dtype[np.bool_]], hidden: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int]:
    """The first plain frame after each time a face was hidden."""
    back = [_first(plain[t:]) for t in _starts(hidden)]
    return [t + wait for t, wait in zip(_starts(hidden), back, strict=True) if wait is not None]


def _until_lost(seen: np.ndarray[Any, np.dtype[np.bool_]], start: int) -> int:
    run = _first(~seen[start:])
    return len(seen) - start if run is None else run


def _switches(tracks: Int64) -> int:
    return int((np.diff(tracks) != 0).sum())


def _steadiness(clip: Clip, points: Float32, rows: Int64) -> Steadiness:
    """Steadiness on a clip with one face that was always tracked from frame `SETTLED` on; else all None."""
    if len(clip.truth) != 1 or (rows[0, SETTLED:] == NOBODY).any():
        return Steadiness()
    track, truth = points[rows[0]].astype(np.float64), clip.truth[0].astype(np.float64)
    step = np.diff(truth.mean(1), axis=0, prepend=truth[:1].mean(1))
    rest = np.linalg.norm(step, axis=1) < 1e-3
    ride = _ride(step)
    error = track - truth
    settled = np.arange(len(truth)) >= SETTLED
    jitter = metrics.jitter(error[rest & settled]) if rest.all() else None
    spread = (error - error[settled].mean(0))[settled]
    overall = float(np.sqrt((spread**2).mean()))
    if ride is None:
        return Steadiness(jitter_px=jitter, error_px=overall)
    start, stop = ride
    standing = error[start - SETTLED : start].mean(0)
    speed = float(np.linalg.norm(step[start]))
    along = step[start] / speed
    behind = -((error - standing) @ along).mean(1)
    after = behind[stop + SETTLED // 2 :].mean()
    lag = float(behind[start + 5 : stop].mean())
    return Steadiness(
        lag_px=lag,
        lag_ms=1000 * lag / (speed * clip.rate),
        start_px=float(behind[start : start + 2].mean()),
        overshoot_px=float((after - behind[stop : stop + SETTLED // 2]).max()),
        error_px=overall,
    )


def _ride(step: Float64) -> tuple[int, int] | None:
    """First frame of a motion at constant speed between two rests, and the first frame after it; None without one."""
    speed = np.linalg.norm(step, axis=1)
    moving = np.flatnonzero(speed > 0.5)
    if moving.size < STEADY or np.ptp(moving) + 1 != moving.size or moving[0] < 2 * SETTLED - 1:
        return None
    inner = speed[moving[1:-1]]
    return (int(moving[0]), int(moving[-1]) + 1) if np.ptp(inner) < 0.05 * inner.mean() else None


def mota_idf1(clips: Sequence[tuple[Clip, TrackedClip]]) -> tuple[float, float]:
    """MOTA and IDF1 over all clips, by py-motmetrics.

    Faces count while they are plain to see; rows on a face that is not are ignored.

    Raises:
        ImportError: py-motmetrics is not installed.
    Source: Bernardin and Stiefelhagen, "Evaluating multiple object tracking performance: the CLEAR MOT metrics", 2008;
        Ristani et al., "Performance measures and a data set for multi-target, multi-camera tracking", 2016.
    """
    import motmetrics

    accumulators = []
    for clip, tracked in clips:
        accumulator = motmetrics.MOTAccumulator(auto_id=True)
        for t in range(clip.visible.shape[1]):
            rows = np.flatnonzero((tracked.frame == t) & tracked.measured)
            distance = _distances(clip, tracked.xy[rows], t)
            plain = clip.visible[:, t] >= PLAIN
            near = distance <= SAME_FACE
            passed_over = near[~plain].any(0) & ~near[plain].any(0)
            costs = np.where(near, distance, np.nan)[plain][:, ~passed_over]
            accumulator.update(np.flatnonzero(plain).tolist(), tracked.track[rows[~passed_over]].tolist(), costs)
        accumulators.append(accumulator)
    host = motmetrics.metrics.create()
    summary = host.compute_many(accumulators, metrics=["mota", "idf1"], generate_overall=True)
    return float(summary.loc["OVERALL", "mota"]), float(summary.loc["OVERALL", "idf1"])
