"""Jitter of a still face and lag of a moving one, measured through the whole program on a real photograph.

    python benchmarks/steadiness.py [PICTURE] [--model gv] [--face 150] [--noise 4]

The picture (default: scikit-image's public-domain astronaut) is scaled so that its face has the given width. Still: 120
frames of the picture, each with new sensor noise. Moving: the picture rests for 20 frames, moves at 8 px per frame for
40, then stops. The truth is what the network finds in the clean picture, moved along, so that the network's own bias
cancels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from facetrack.pipeline.open import Choices, open_engines
from facetrack.tracker import metrics
from facetrack.tracker.types import Float32, Frame, Result, UInt8

RATE = 30.0
SPEED = 8.0  # px per frame


def picture_with_face(path: Path | None) -> UInt8:
    """The picture, BGR."""
    if path is not None:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise SystemExit(f"{path}: not a readable picture")
        return np.asarray(image, np.uint8)
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[:, :, ::-1])


def noisy(bgr: UInt8, sigma: float, rng: np.random.Generator) -> UInt8:
    """The picture with independent Gaussian noise in every channel."""
    return np.clip(bgr + rng.normal(0, sigma, bgr.shape), 0, 255).astype(np.uint8)


def shifted(bgr: UInt8, dx: float) -> UInt8:
    """The picture moved to the right with sub-pixel interpolation and its border replicated."""
    matrix = np.array([[1, 0, dx], [0, 1, 0]], np.float64)
    size = (bgr.shape[1], bgr.shape[0])
    return np.asarray(cv2.warpAffine(bgr, matrix, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def frames(pictures: Iterator[UInt8]) -> Iterator[Frame]:
    """Pictures as frames at a constant rate."""
    for index, bgr in enumerate(pictures):
        yield Frame(index, index / RATE, 0.0, bgr)


def first_face(results: list[Result], what: str) -> Float32:
    """(T, N, 2) smoothed points (what="smoothed") or measured ones (what="raw") of the first track."""
    faces = [next(face for face in result.faces if face.track == 0) for result in results]
    if what == "smoothed":
        return np.stack([face.smoothed for face in faces])
    return np.stack([face.measured.xy for face in faces if face.measured is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, nargs="?")
    parser.add_argument("--model", default="gv")
    parser.add_argument("--face", type=float, default=150.0, help="width of the face, pixels")
    parser.add_argument("--noise", type=float, default=4.0, help="sigma of the sensor noise, grey levels")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    bgr = picture_with_face(arguments.picture)
    choices = Choices(model=arguments.model)
    with open_engines(choices) as engines:
        pipeline = engines.pipeline(choices)
        box = next(iter(pipeline.serial(frames(iter([bgr]))))).faces[0].box
        scale = arguments.face / float(box[2] - box[0])
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        bgr = np.asarray(cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=interpolation), np.uint8)
        bgr = np.asarray(cv2.copyMakeBorder(bgr, 0, 0, 0, 400, cv2.BORDER_REPLICATE), np.uint8)
        clean = first_face(list(pipeline.serial(frames(bgr for _ in range(30)))), "raw")[-1]
        still = list(pipeline.serial(frames(noisy(bgr, arguments.noise, rng) for _ in range(120))))
        moves = np.concatenate((np.zeros(20), np.arange(1, 41) * SPEED, np.full(30, 40 * SPEED)))
        moving = list(pipeline.serial(frames(noisy(shifted(bgr, dx), arguments.noise, rng) for dx in moves)))
    truth = clean[None] + np.stack((moves, np.zeros_like(moves)), -1)[:, None].astype(np.float32)
    print(f"face {arguments.face:.0f} px wide, noise sigma {arguments.noise:g}, {SPEED:g} px per frame")
    print(f"{'':10}{'jitter px':>11}{'lag px':>9}{'overshoot px':>14}")
    for what in ("raw", "smoothed"):
        rest, track = first_face(still, what)[30:], first_face(moving, what)
        lag = metrics.lag(track[30:60], truth[30:60])
        past = (track[60:] - truth[60:]).mean(1)[:, 0].max()
        print(f"{what:10}{metrics.jitter(rest):11.3f}{lag:9.2f}{past:14.2f}")


if __name__ == "__main__":
    main()
