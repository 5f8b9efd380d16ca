"""Tracking, landmark error and yaw of heads that turn into profile, on photographs turned out of the picture's plane.

    python benchmarks/profiles.py lfpw/testset [--model gv] [--heads 12] [--most 80]

makes clips of nearly frontal annotated faces (`facetrack.training.turned`) in which the head turns by 2 degrees per
frame to one side and back. The ground truth is the landmarks' place on the turned relief; beyond 70 degrees, for which
the relief was not made, it is only a trend. Needs `pip install "facetrack[eval]"`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facetrack.pipeline.open import Choices, Engines, open_engines
from facetrack.tracker.geometry import bounding_box, box_centre_side
from facetrack.tracker.types import Float32, Frame
from facetrack.training.datasets import Sample, read_pts_folder
from facetrack.training.turned import STRAIGHT_RAD, Head, fit_head, turn_face

STEP_DEG = 2.0
RATE = 25.0
NODDING_RAD = np.deg2rad(15)
AROUND_DEG = 1.0  # of a row's yaw


@dataclass(frozen=True)
class Seen:
    """One frame.

    Attributes:
        yaw_deg: of the head.
        track: track ID of the face found, -1 for none.
        error: mean distance of the landmarks from the truth over the face's side; NaN without a face.
        confidence: of the face.
        read_deg: its yaw by `head_pose`, seen from far away, because the clips are drawn without perspective.
    """

    yaw_deg: float
    track: int
    error: float = float("nan")
    confidence: float = float("nan")
    read_deg: float = float("nan")


def straight_heads(folder: Path, count: int) -> Iterator[tuple[Sample, Head]]:
    """Up to `count` nearly frontal faces of a folder, in random order."""
    samples = list(read_pts_folder(folder))
    for i in np.random.default_rng(0).permutation(len(samples)):
        head = fit_head(samples[i].points[0])
        if head is not None and abs(head.yaw_rad) < STRAIGHT_RAD / 2 and abs(head.pitch_rad) < NODDING_RAD:
            yield samples[i], head
            count -= 1
        if not count:
            return


def turn(sample: Sample, head: Head, most_deg: float, side: int, engines: Engines) -> list[Seen]:
    """Turn one head to a side and back, and track it."""
    there = np.arange(0, most_deg + 0.1, STEP_DEG)
    yaws = side * np.concatenate((there, there[-2::-1]))
    faces = [turn_face(sample.bgr(), sample.points[0], head, head.pitch_rad, np.deg2rad(yaw)) for yaw in yaws]
    frames = [Frame(i, i / RATE, i / RATE, np.ascontiguousarray(face.bgr)) for i, face in enumerate(faces)]
    seen = []
    for yaw, face, result in zip(yaws, faces, engines.pipeline(engines.choices).serial(frames), strict=True):
        if not result.faces:
            seen.append(Seen(yaw, -1))
            continue
        found = result.faces[0]
        posed = fit_head(found.smoothed)
        read = float("nan") if posed is None else float(np.rad2deg(posed.yaw_rad))
        seen.append(Seen(yaw, found.track, _distance(found.smoothed, face.points), found.confidence, read))
    return seen


def _distance(xy: Float32, truth: Float32) -> float:
    return float(np.linalg.norm(xy - truth, axis=-1).mean() / box_centre_side(bounding_box(truth))[1])


def main() -> None:
    """Read the arguments, track and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=Choices().model)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--most", type=float, default=80.0, help="degrees")
    arguments = parser.parse_args()
    with open_engines(Choices(model=arguments.model)) as engines:
        runs = [
            turn(sample, head, arguments.most, (-1, 1)[number % 2], engines)
            for number, (sample, head) in enumerate(straight_heads(arguments.folder, arguments.heads))
        ]
    frames = [frame for run in runs for frame in run]
    numbers = [len({frame.track for frame in run if frame.track >= 0}) for run in runs]
    print(
        f"{len(runs)} heads, {sum(frame.track >= 0 for frame in frames)} of {len(frames)} frames with a face, ", end=""
    )
    print(f"{sum(count == 1 for count in numbers)} heads under one number all the way")
    print(f"{'yaw':>5}{'found':>8}{'error, % of the side':>23}{'confidence':>12}{'yaw read':>10}{'off by':>8}")
    for yaw in np.arange(0, arguments.most + 1, 10):
        rows = [frame for frame in frames if abs(abs(frame.yaw_deg) - yaw) <= AROUND_DEG]
        found = [frame for frame in rows if frame.track >= 0]
        error, sure = (float(np.mean([getattr(f, name) for f in found])) for name in ("error", "confidence"))
        read = [f.read_deg * np.sign(f.yaw_deg or 1.0) for f in found]
        off = float(np.mean([abs(r - abs(f.yaw_deg)) for r, f in zip(read, found, strict=True)]))
        print(f"{yaw:5.0f}{len(found) / len(rows):8.2f}{100 * error:23.2f}{sure:12.2f}{np.mean(read):10.1f}{off:8.1f}")


if __name__ == "__main__":
    main()
