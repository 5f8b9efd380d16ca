"""The detector on painted faces: networks that respond to colours replace the trained ones."""

from __future__ import annotations

import cv2
import numpy as np

from facetrack.engines.card import ModelCard
from facetrack.engines.detector import Detector, DetectorSettings
from facetrack.tracker.codecs import mean_of_highest
from facetrack.tracker.views import VIEWS

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], np.float32)  # by type
SHADE = 40  # of the background
CARD = ModelCard(
    name="painted",
    network="bbfcn",
    task="detect",
    markup="five5",
    size=(64, 64),
    box_scale=64 / 44,
    codec={"kind": "discs", "face_px": 15.0, "peak": 0.3},
    weights={},
    parameters=0,
    gmac=0.0,
    data=(),
    licence="",
    measured={},
    calibration={
        "second_look": 0.5,
        "scan": [2.0, 2.0, 2.0, 2.0, 2.0, -1.0, 0.0, 0.0, -3.0],
        "refine": [1.0] * 10 + [-1.0, 0.0, -3.0],
    },
)


def answers(pictures: np.ndarray) -> np.ndarray:
    """Maps (B, 5, h, w): how close each pixel is to each type's colour."""
    away = np.linalg.norm(pictures[:, None].astype(np.float32) - COLOURS[None, :, None, None], axis=-1)
    return np.clip(1.2 - away / 150, 0, 1).astype(np.float32)


class PaintedScan:
    """Replaces the backbone."""

    description = "painted"
    precision = max_atlas = None

    def run(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        return (answers(images),)

    def close(self) -> None:
        pass


class PaintedRefine:
    """Replaces backbone and branches: the same responses at half size, and at full size in windows."""

    description = "painted"
    precision = max_atlas = None

    def run(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        halves = np.stack([cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for image in images])
        coarse = answers(halves)
        corner = np.rint(2 * mean_of_highest(coarse, 13)[0] - 11).astype(int)
        padded = np.pad(answers(images), ((0, 0), (0, 0), (12, 12), (12, 12)))
        fine = np.array(
            [
                [padded[b, k, y + 12 : y + 36, x + 12 : x + 36] for k, (x, y) in enumerate(corner[b])]
                for b in range(len(images))
            ]
        )
        return coarse, fine, corner.astype(np.float32)

    def close(self) -> None:
        pass


def detector(scan: PaintedScan | None = None, **settings: float) -> Detector:
    """The detector with these fake networks."""
    return Detector(CARD, scan or PaintedScan(), PaintedRefine(), DetectorSettings(**settings))


def painted(size: tuple[int, int], faces: list[tuple[float, float, float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """A picture of faces (x, y, side, roll in degrees) of five soft spots each, and their points (F, 5, 2)."""
    picture = np.full((*size, 3), SHADE, np.float32)
    points = np.empty((len(faces), 5, 2))
    for i, (x, y, side, roll_deg) in enumerate(faces):
        angle = np.deg2rad(roll_deg)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        points[i] = VIEWS[0] @ turn * side + (x, y)
        for colour, place in zip(COLOURS, points[i], strict=True):
            x1, y1 = np.maximum(np.floor(place - 0.3 * side), 0).astype(int)
            x2, y2 = np.ceil(place + 0.3 * side).astype(int)
            patch = picture[y1:y2, x1:x2]
            rows, columns = np.mgrid[y1 : y1 + patch.shape[0], x1 : x1 + patch.shape[1]]
            square = ((columns - place[0]) ** 2 + (rows - place[1]) ** 2) / (0.1 * side) ** 2
            patch += np.exp(-0.5 * square)[..., None] * (colour - patch)
    return picture.astype(np.uint8), points
