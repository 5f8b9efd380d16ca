"""Re-identification after cuts: two people shown in turn in the same place, and one person before and after jump cuts.

    python benchmarks/shots.py YT68 [--films 200] [--seed 0] [--model gv]

YT68 is a folder of frames of videos of many people, NAME_VF.jpg (person, video, frame) with NAME_VF.pts beside it. Each
film has four shots of 15 frames. A film of a talk shows A, B, A, B, always with the face in the middle and of the same
size, which is the worst case. A film of jump cuts shows frames of one video of A. A shot is one frame, swaying, with
sensor noise. Three things are counted: cuts between two people after which the track ID stayed, returns of a person
under the old track ID, and jump cuts after which the track ID stayed.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from facetrack.pipeline.open import Choices, Engines, open_engines
from facetrack.tracker.types import Frame, UInt8
from facetrack.training.datasets import Sample, read_faces

SHOT, SIDE, FACE, RATE = 15, 256, 100.0, 25.0  # frames; pixels of the picture and of the face in it; frames per second
SETTLED = 3  # frames of a shot after which its track ID counts


def film(shots: Sequence[Sample], rng: np.random.Generator) -> Iterator[Frame]:
    """The frames of the shots, one shot after the other."""
    for index in range(SHOT * len(shots)):
        bgr, xy = shots[index // SHOT].bgr(), shots[index // SHOT].points[0]
        low, high = np.nanmin(xy, 0), np.nanmax(xy, 0)
        scale = FACE / float((high - low).max())
        middle = SIDE / 2 + np.array([3 * np.sin(index / 4), 2 * np.cos(index / 5)]) - scale * (low + high) / 2
        matrix = np.array([[scale, 0, middle[0]], [0, scale, middle[1]]])
        picture = cv2.warpAffine(bgr, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
        noisy: UInt8 = np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)
        yield Frame(index, index / RATE, 0.0, noisy)


def numbers(engines: Engines, shots: Sequence[Sample], rng: np.random.Generator) -> list[int | None]:
    """The track ID of the face in each shot; None if there is none, or more than one."""
    seen: list[set[int]] = [set() for _ in shots]
    for index, result in enumerate(engines.pipeline(engines.choices).serial(film(shots, rng))):
        if index % SHOT >= SETTLED:
            seen[index // SHOT].update(face.track for face in result.faces)
    return [next(iter(found)) if len(found) == 1 else None for found in seen]


def share(matches: Sequence[bool]) -> str:
    """How many are true, as text."""
    return f"{sum(matches)} of {len(matches)} ({100 * np.mean(matches):.1f} %)"


def main() -> None:
    """Read the arguments, make the films, track them and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--films", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="gv")
    given = parser.parse_args()
    choose, rng = random.Random(given.seed), np.random.default_rng(given.seed)
    videos: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in read_faces(given.folder, "pts"):
        name, frame = sample.path.stem.rsplit("_", 1)
        videos[name, frame[0]].append(sample)
    known = sorted(video for video, frames in videos.items() if len(frames) > 1)
    stayed: list[bool] = []
    back: list[bool] = []
    kept: list[bool] = []
    with open_engines(Choices(model=given.model)) as engines:
        for _ in range(given.films):
            one, other = choose.sample(known, 2)
            if one[0] != other[0]:
                talk = [videos[one][0], videos[other][0], videos[one][-1], videos[other][-1]]
                a, b, c, d = numbers(engines, talk, rng)
                stayed += [a == b, b == c, c == d]
                back += [a == c, b == d]
            frames = videos[one]
            ids = numbers(engines, [frames[0], frames[-1], frames[len(frames) // 2], frames[0]], rng)
            kept += [before == after for before, after in pairwise(ids)]
    print(f"cuts to somebody else that kept the number: {share(stayed)}")
    print(f"returns under the old number: {share(back)}")
    print(f"jump cuts that kept the number: {share(kept)}")


if __name__ == "__main__":
    main()
