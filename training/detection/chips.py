"""Pieces of pictures round annotated faces (chips), kept decoded in memory, and the windows drawn from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from ...tracker import markup
from ...tracker.geometry import MEAN_FIVE, CropTransform, bounding_box, box_centre_side
from ...tracker.types import Float32, Float64, UInt8
from ...tracker.views import fit_mean_face
from ..augment import mirror
from ..config import Discs
from ..datasets import Sample
from .discs import UNKNOWN, disc_maps

FIVE = markup.load("five5")
MEAN_FOUR = np.vstack((MEAN_FIVE[:3], MEAN_FIVE[3:].mean(0)))
REACH = 2.2  # a chip extends this many face sides from the face's centre


@dataclass(frozen=True, slots=True)
class Chip:
    """A piece of a picture with its faces; the first one is the face that it was cut for.

    Attributes:
        bgr: (h, w, 3) uint8.
        points: (F, 5, 2) float32 chip pixels; NaN: not annotated.
        mouths: (F, 2) centre of each mouth.
        boxes: (F, 3) centre x, y and longer side of each face's landmark box.
    """

    bgr: UInt8
    points: Float32
    mouths: Float32
    boxes: Float32

    @classmethod
    def without_faces(cls, bgr: UInt8) -> Chip:
        """A picture in which there is nothing to find."""
        return cls(bgr, np.empty((0, 5, 2), np.float32), np.empty((0, 2), np.float32), np.empty((0, 3), np.float32))


def five_points(annotated: Float32) -> tuple[Float32, Float32, Float32]:
    """The five5 points (5, 2), mouth centre (2,) and box (x, y, side) from 68, 5 or 4 annotated points.

    Four points are eyes, base of the nose and mouth centre, as in Caltech WebFaces; the mouth corners are then NaN.
    From 4 or 5 points the box is that of the mean face fitted to them.
    """
    if len(annotated) == 4:
        eyes_and_nose = np.vstack((annotated[:2], _nose_tip(annotated)))
        centre, side, _ = fit_mean_face(np.vstack((eyes_and_nose, annotated[3:])), MEAN_FOUR)
        points = np.vstack((eyes_and_nose, np.full((2, 2), np.nan))).astype(np.float32)
        return points, annotated[3], np.array([*centre, side], np.float32)
    if len(annotated) == 5:
        centre, side, _ = fit_mean_face(annotated)
        return annotated, annotated[3:].mean(0), np.array([*centre, side], np.float32)
    points = markup.for_points(len(annotated)).subset("five5", annotated)
    (x, y), side = box_centre_side(bounding_box(annotated))
    return points, points[3:].mean(0), np.array([x, y, side], np.float32)


def _nose_tip(four: Float32) -> Float32:
    """Estimate the tip of the nose from eyes, base of the nose and mouth centre (4, 2).

    Measured in shares of the way from the eyes to the mouth, the tip moves farther than the base when the head turns or
    nods. The coefficients are a linear regression on the 300-W and YouTube faces, which have both points (residual 7 %
    of the eye distance).
    """
    left, right, base, mouth = four.astype(np.float64) @ np.array([1, 1j])
    eyes = (left + right) / 2
    down = (base - eyes) / (mouth - eyes)  # real: along the way, imaginary: to its side
    tip = eyes + (1.236 * down.real - 0.314 + 1.535j * down.imag) * (mouth - eyes)
    return np.array([tip.real, tip.imag], np.float32)


def cut_chips(samples: Iterable[Sample], face_px: float) -> list[Chip]:
    """One chip per face, shrunk (never enlarged) to a box of `face_px`; faces below a quarter of that are left out."""
    chips = []
    for sample in samples:
        faces = [five_points(annotated) for annotated in sample.points]
        bgr = sample.bgr()
        for i, (_, _, box) in enumerate(faces):
            if box[2] >= face_px / 4:
                order = [i, *(j for j in range(len(faces)) if j != i)]
                chips.append(_chip(bgr, [faces[j] for j in order], face_px))
    return chips


def _chip(bgr: UInt8, faces: list[tuple[Float32, Float32, Float32]], face_px: float) -> Chip:
    x, y, side = (float(v) for v in faces[0][2])
    height, width = bgr.shape[:2]
    x1, y1 = max(int(x - REACH * side), 0), max(int(y - REACH * side), 0)
    part = bgr[y1 : min(int(y + REACH * side), height) + 1, x1 : min(int(x + REACH * side), width) + 1]
    scale = min(face_px / side, 1.0)
    size = max(round(part.shape[1] * scale), 1), max(round(part.shape[0] * scale), 1)
    small = cv2.resize(part, size, interpolation=cv2.INTER_AREA) if scale < 1 else part.copy()
    factor = np.array([size[0] / part.shape[1], size[1] / part.shape[0]], np.float32)

    def moved(xy: list[Float32]) -> Float32:
        return ((np.stack(xy) - [x1, y1] + 0.5) * factor - 0.5).astype(np.float32)

    sides = np.array([f[2][2] for f in faces]) * factor.mean()
    boxes = np.column_stack((moved([f[2][:2] for f in faces]), sides)).astype(np.float32)
    return Chip(np.asarray(small, np.uint8), moved([f[0] for f in faces]), moved([f[1] for f in faces]), boxes)


def draw_targets(chip: Chip, transform: CropTransform, size: int, discs: Discs) -> UInt8:
    """Disc maps (5, size, size) of the chip's faces seen through a transform onto `size` pixels.

    Faces of a size that the network need not find, and mouths without annotated corners, become UNKNOWN.
    """
    sides = chip.boxes[:, 2] * transform.scale
    asked = (sides >= 0.9 * discs.face_px[0]) & (sides <= 1.1 * discs.face_px[1])
    maps = disc_maps(transform.to_crop(chip.points[asked]), size, discs.radius, discs.ring)
    centres, mouths = transform.to_crop(chip.boxes[:, :2]), transform.to_crop(chip.mouths)
    for i in range(len(sides)):
        if not asked[i]:
            _forget(maps, centres[i], 0.6 * sides[i])
        elif np.isnan(chip.points[i, 3:]).any():
            _forget(maps[3:], mouths[i], 0.4 * sides[i])
    return maps


def _forget(maps: UInt8, centre: Float32, radius: float) -> None:
    """Make the pixels round a place UNKNOWN."""
    y, x = np.ogrid[: maps.shape[1], : maps.shape[2]]
    maps[:, (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2] = UNKNOWN


def place_box(box: Float32, face_px: float, roll: float, away: Float64, size: int) -> CropTransform:
    """Transform that puts a box (x, y, side), `face_px` large and turned by `roll` radians, `away` from the middle."""
    upright = CropTransform.around((float(box[0]), float(box[1])), float(box[2]) * size / face_px, size, angle=roll)
    matrix = upright.matrix.copy()
    matrix[:, 2] += away
    return CropTransform(matrix, (size, size))


def doubled(transform: CropTransform) -> CropTransform:
    """The same window with twice as many pixels on either side."""
    height, width = transform.size
    half = np.array([[0, 0, 0.5], [0, 0, 0.5]])  # pixel centres: X = 2 x + 0.5
    return CropTransform(transform.matrix * 2 + half, (2 * height, 2 * width))


def mirrored(chip: Chip, transform: CropTransform) -> tuple[Chip, CropTransform]:
    """The mirrored chip, and the transform that shows the mirror image of the old window."""
    last = chip.bgr.shape[1] - 1
    bgr, points = mirror(chip.bgr, chip.points, FIVE)
    mouths, boxes = chip.mouths.copy(), chip.boxes.copy()
    mouths[:, 0], boxes[:, 0] = last - mouths[:, 0], last - boxes[:, 0]
    back = np.array([[-1.0, 0, last], [0, 1, 0], [0, 0, 1]])
    front = np.array([[-1.0, 0, transform.size[1] - 1], [0, 1, 0]])
    whole = front @ np.vstack((transform.matrix, [0, 0, 1])) @ back
    return Chip(bgr, points, mouths, boxes), CropTransform(whole, transform.size)
