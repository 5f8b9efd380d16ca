"""How many faces the program finds, and how exactly, in photographs disturbed as by real cameras and scenes.

    python benchmarks/conditions.py FOLDER [--model gv] [--only NAME ...]

FOLDER is in the 300-W layout (NAME.jpg beside NAME.pts), with one annotated face per picture. Each picture is disturbed
in each of the ways in this file and searched on its own, as `facetrack batch` does. A face counts as found if the mean
error of its landmarks is less than a quarter of the distance between the outer eye corners; the error in the table is
the mean over the faces found. Lengths are shares of the face's side, the longer side of its landmarks' box.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from facetrack import Choices, open_engines
from facetrack.tracker.geometry import bounding_box, box_centre_side
from facetrack.tracker.types import Float32, Float64, UInt8
from facetrack.training.datasets import Sample, read_pts_folder

FOUND = 0.25  # of the distance between the outer eye corners
EYES, MOUTH, NOSE, JAW, OUTER = (slice(36, 42), slice(42, 48)), slice(48, 68), 30, slice(2, 15), (36, 45)


@dataclass(frozen=True, slots=True)
class Scene:
    """One face in its picture.

    Attributes:
        bgr: (H, W, 3) uint8.
        xy: (68, 2) pixels.
        centre, side: of the landmarks' tight box, pixels.
        rng: the picture's own.
    """

    bgr: UInt8
    xy: Float32
    centre: tuple[float, float]
    side: float
    rng: np.random.Generator

    @classmethod
    def of(cls, sample: Sample, number: int) -> Scene:
        """The sample's first face."""
        (x, y), side = box_centre_side(bounding_box(sample.points[0]))
        return cls(
            sample.bgr(), sample.points[0], (float(x), float(y)), float(side), np.random.default_rng((3, number))
        )


Spoil = Callable[[Scene], UInt8]


def levels(values: Float64) -> UInt8:
    """Values as bytes, clipped and rounded down."""
    return np.asarray(np.clip(values, 0, 255), np.uint8)


def light(*bgr: float, seen_as: str = "colours") -> Spoil:
    """These factors of blue, green and red; of the brightness alone if the light has one wavelength."""

    def spoil(scene: Scene) -> UInt8:
        grey = cv2.cvtColor(scene.bgr, cv2.COLOR_BGR2GRAY)[..., None]
        return levels((grey if seen_as == "brightness" else scene.bgr) * np.array(bgr))

    return spoil


def linear(gain: float, offset: float, noise: float = 0.0) -> Spoil:
    """Levels times a gain plus an offset, with sensor noise."""
    return lambda scene: levels(scene.bgr * gain + offset + scene.rng.normal(0, noise, scene.bgr.shape))


def half_in_shade(scene: Scene) -> UInt8:
    """A tenth of the light on the left half of the face."""
    x = np.arange(scene.bgr.shape[1]) - scene.centre[0]
    lit = 1 / (1 + np.exp(-x / (0.05 * scene.side)))
    return levels(scene.bgr * (0.1 + 0.9 * lit)[None, :, None])


def blinds(scene: Scene) -> UInt8:
    """Horizontal stripes with a third of the light."""
    dark = np.sin(np.arange(scene.bgr.shape[0]) * 2 * np.pi / (0.18 * scene.side)) <= 0
    return levels(scene.bgr * np.where(dark, 0.3, 1.0)[:, None, None])


def leaves(scene: Scene) -> UInt8:
    """Spots with a third of the light, as under a tree."""
    noise = cv2.GaussianBlur(scene.rng.normal(0, 1, scene.bgr.shape[:2]), (0, 0), 0.06 * scene.side)
    lit = cv2.GaussianBlur((noise > 0).astype(np.float64), (0, 0), 0.01 * scene.side)
    return levels(scene.bgr * (0.3 + 0.7 * lit)[..., None])


def defocus(sigma: float) -> Spoil:
    """A Gaussian of this width."""
    return lambda scene: np.asarray(cv2.GaussianBlur(scene.bgr, (0, 0), sigma * scene.side), np.uint8)


def motion_blur(scene: Scene) -> UInt8:
    """Horizontal blur over a fifth of the face."""
    length = int(0.2 * scene.side) | 1
    return np.asarray(cv2.blur(scene.bgr, (length, 1)), np.uint8)


def jpeg(scene: Scene) -> UInt8:
    """Quality 6 of 100."""
    coded = cv2.imencode(".jpg", scene.bgr, [cv2.IMWRITE_JPEG_QUALITY, 6])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


def low_resolution(pixels: int) -> Spoil:
    """As if the face had been filmed with this many pixels."""

    def spoil(scene: Scene) -> UInt8:
        height, width = scene.bgr.shape[:2]
        scale = pixels / scene.side
        small = cv2.resize(scene.bgr, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)

    return spoil


def mask(scene: Scene) -> UInt8:
    """A cloth of one colour from the nose down."""
    bgr = scene.bgr.copy()
    outline = cv2.convexHull(np.concatenate((scene.xy[JAW], scene.xy[[NOSE - 1]])).astype(np.int32))
    cv2.fillPoly(bgr, [outline], tuple(int(v) for v in scene.rng.integers(60, 250, 3)))
    return bgr


def sunglasses(scene: Scene) -> UInt8:
    """A black ellipse on each eye."""
    bgr = scene.bgr.copy()
    for eye in EYES:
        x, y = scene.xy[eye].mean(0)
        radius = 0.95 * float(np.ptp(scene.xy[eye], axis=0).max())
        axes = (int(radius), int(0.75 * radius))
        cv2.ellipse(bgr, (int(x), int(y + 0.2 * radius)), axes, 0, 0, 360, (20, 20, 20), -1, cv2.LINE_AA)
    return bgr


def hand(scene: Scene) -> UInt8:
    """Four fingers of the nose's colour over mouth or eye."""
    bgr, side = scene.bgr.copy(), scene.side
    x, y = (int(np.clip(v, 0, most - 1)) for v, most in zip(scene.xy[NOSE], bgr.shape[1::-1], strict=True))
    skin = bgr[y, x].astype(float)
    middle = scene.xy[MOUTH if scene.rng.random() < 0.5 else EYES[0]].mean(0)
    for finger in range(4):
        start = middle + np.array([-0.5, 0.2 + (finger - 1.5) * 0.09]) * side
        end = middle + np.array([0.2, (finger - 1.5) * 0.09]) * side
        colour = tuple(float(v) for v in skin * (0.9 + 0.05 * finger))
        cv2.line(bgr, _pixel(start), _pixel(end), colour, max(2, int(0.085 * side)), cv2.LINE_AA)
    return bgr


def writing(scene: Scene) -> UInt8:
    """Three lines of large white letters."""
    bgr, side = scene.bgr.copy(), scene.side
    left, top = scene.xy.min(0)
    for row in range(3):
        place = _pixel(np.array([left - 0.2 * side, top + (0.35 + 0.3 * row) * side]))
        thickness, font = max(1, int(side / 50)), cv2.FONT_HERSHEY_DUPLEX
        cv2.putText(bgr, "BREAKING NEWS TONIGHT", place, font, side / 200, (255,) * 3, thickness, cv2.LINE_AA)
    return bgr


def fence(scene: Scene) -> UInt8:
    """Vertical grey bars and crossbars."""
    bgr, side = scene.bgr.copy(), scene.side
    height, width = bgr.shape[:2]
    thickness = max(1, int(0.05 * side))
    for x in np.arange(0, width, 0.2 * side):
        cv2.line(bgr, (int(x), 0), (int(x), height), (90,) * 3, thickness)
    for y in np.arange(0, height, 0.35 * side):
        cv2.line(bgr, (0, int(y)), (width, int(y)), (90,) * 3, thickness)
    return bgr


def wire(scene: Scene) -> UInt8:
    """A bright diagonal wire mesh."""
    bgr, side = scene.bgr.copy(), scene.side
    height, width = bgr.shape[:2]
    thickness = max(1, int(0.02 * side))
    for x in np.arange(-height, width, 0.12 * side):
        for ends in (((int(x), 0), (int(x + height), height)), ((int(x + height), 0), (int(x), height))):
            cv2.line(bgr, *ends, (200,) * 3, thickness, cv2.LINE_AA)
    return bgr


def rain(scene: Scene) -> UInt8:
    """150 bright strokes."""
    bgr = scene.bgr.copy()
    for x, y in scene.rng.uniform(0, 1, (150, 2)) * bgr.shape[1::-1]:
        end = (int(x + 0.024 * scene.side), int(y + 0.12 * scene.side))
        cv2.line(bgr, (int(x), int(y)), end, (220,) * 3, max(1, int(scene.side / 150)), cv2.LINE_AA)
    return bgr


def _pixel(xy: Float64) -> tuple[int, int]:
    return int(xy[0]), int(xy[1])


CONDITIONS: dict[str, Spoil] = {
    "as it is": lambda scene: scene.bgr,
    "blue light": light(1.2, 0.35, 0.12),
    "green light": light(0.15, 1.1, 0.2),
    "magenta light": light(1.1, 0.15, 1.1),
    "blue light, no other colour": light(1.2, 0.18, 0.06, seen_as="brightness"),
    "dark and noisy": linear(0.1, 0.0, 4.0),
    "overexposed": linear(2.2, 30.0),
    "fog": linear(0.2, 150.0),
    "noise of 35": linear(1.0, 0.0, 35.0),
    "half in shade": half_in_shade,
    "shade of blinds": blinds,
    "shade of leaves": leaves,
    "out of focus by 4 %": defocus(0.04),
    "out of focus by 7 %": defocus(0.07),
    "motion blur of 20 %": motion_blur,
    "JPEG of quality 6": jpeg,
    "20 pixels large": low_resolution(20),
    "14 pixels large": low_resolution(14),
    "mask": mask,
    "sunglasses": sunglasses,
    "fingers": hand,
    "writing": writing,
    "fence": fence,
    "wire mesh": wire,
    "rain": rain,
}
CLOSE_UPS = {f"close-up, {closer:g} of the picture": closer for closer in (1.0, 1.3, 1.7)}


def close_up(scene: Scene, closer: float) -> tuple[UInt8, Float64]:
    """A square window `closer` times smaller than the face, and its first pixel (x, y)."""
    half = scene.side / closer / 2
    x1, y1 = (max(int(v - half), 0) for v in scene.centre)
    x2, y2 = (int(v + half) for v in scene.centre)
    return np.ascontiguousarray(scene.bgr[y1:y2, x1:x2]), np.array([x1, y1], np.float64)


def main() -> None:
    """Read the arguments, disturb, search and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="gv")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*CONDITIONS, *CLOSE_UPS])
    arguments = parser.parse_args()
    samples = list(read_pts_folder(arguments.folder))
    print(f"{arguments.model}, {len(samples)} faces of {arguments.folder.name}")
    print("| | found, % | NME, % | other faces |\n|---|---|---|---|")
    with open_engines(Choices(model=arguments.model)) as engines:
        for name in arguments.only or [*CONDITIONS, *CLOSE_UPS]:
            errors, others = [], 0
            for number, sample in enumerate(samples):
                scene, corner = Scene.of(sample, number), np.zeros(2)
                if name in CONDITIONS:
                    bgr = CONDITIONS[name](scene)
                else:
                    bgr, corner = close_up(scene, CLOSE_UPS[name])
                eyes = float(np.linalg.norm(np.subtract(*scene.xy[list(OUTER)])))
                faces = engines.detect(bgr)
                off = [float(np.linalg.norm(face.smoothed + corner - scene.xy, axis=1).mean()) / eyes for face in faces]
                found = [error for error in off if error < FOUND]
                if found:
                    errors.append(min(found))
                others += len(off) - bool(found)
            error = f"{100 * np.mean(errors):.2f}" if errors else ""
            print(f"| {name} | {100 * len(errors) / len(samples):.1f} | {error} | {others} |", flush=True)


if __name__ == "__main__":
    main()
