"""Readers for the published layouts: pictures with landmark annotations, and pictures alone.

Everything comes out 0-based with pixel centres on whole numbers, whatever the file's own convention.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..tracker.errors import SourceError
from ..tracker.types import Float32, UInt8

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotated picture, still compressed.

    Attributes:
        path: the picture's file.
        points: (F, N, 2) float32, 0-based, NaN where a point is not annotated; F = 0 for a picture without faces.
        encoded: the file's bytes, so that epochs do not touch the disk.
    """

    path: Path
    points: Float32
    encoded: bytes

    def bgr(self) -> UInt8:
        """Decode the picture, (H, W, 3) uint8 BGR.

        Raises:
            SourceError: the file is not a readable picture.
        """
        image = cv2.imdecode(np.frombuffer(self.encoded, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise SourceError(f"{self.path}: not a readable picture; remove it or fix it")
        return image.astype(np.uint8, copy=False)


def read_pts(path: Path) -> Float32:
    """Read landmarks from a `.pts` file, which counts pixels from 1, as (N, 2) float32 counted from 0.

    Tolerates trailing spaces, "version: 1.0" and a missing last newline.

    Raises:
        SourceError: the file has no `{ ... }` block of number pairs or another count than it announces.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    head, brace, rest = text.partition("{")
    body, end, _ = rest.partition("}")
    try:
        if not brace or not end:
            raise ValueError("no { ... } block")
        points = np.array([[float(v) for v in line.split()] for line in body.split("\n") if line.strip()])
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"wanted two numbers a line, got shape {points.shape}")
        announced = [
            int(line.split(":")[1]) for line in head.split("\n") if line.strip().startswith("n_points")
        ]
        if announced and announced[0] != len(points):
            raise ValueError(f"n_points says {announced[0]}, the block holds {len(points)}")
    except ValueError as error:
        raise SourceError(f"{path}: not a .pts file: {error}") from error
    return (points - 1.0).astype(np.float32)


def images_below(folder: Path) -> list[Path]:
    """All pictures below a folder, sorted.

    Raises:
        SourceError: the folder is missing or holds no picture.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise SourceError(
            f"{folder}: no pictures found; wanted a folder with {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return found


def read_pts_folder(folder: Path) -> Iterator[Sample]:
    """300-W layout: NAME.jpg (or .png) beside NAME.pts, at any depth; pictures without .pts are passed over."""
    for image in images_below(folder):
        annotation = image.with_suffix(".pts")
        if annotation.is_file():
            yield Sample(image, read_pts(annotation)[None], image.read_bytes())


def read_point_table(folder: Path) -> Iterator[Sample]:
    """A `labels.csv` beside the pictures: `file` and then x, y of every point, one row per face.

    Rows of the same picture become one Sample with several faces.

    Raises:
        SourceError: there is no labels.csv, or a row has something else than numbers.
    """
    table = folder / "labels.csv"
    if not table.is_file():
        raise SourceError(f"{folder}: no labels.csv; wanted a table with a column `file` and x, y columns")
    faces: dict[str, list[list[float]]] = {}
    with table.open(newline="", encoding="utf-8") as rows:
        reader = csv.reader(rows)
        next(reader)
        for number, row in enumerate(reader, start=2):
            try:
                faces.setdefault(row[0], []).append([float(value) for value in row[1:]])
            except ValueError as error:
                raise SourceError(f"{table}, line {number}: {error}") from error
    for name, values in faces.items():
        path = folder / name
        yield Sample(path, np.asarray(values, np.float32).reshape(len(values), -1, 2), path.read_bytes())


def read_images(folder: Path, points: int) -> Iterator[Sample]:
    """Pictures without any face (or without annotation), as Samples with zero faces."""
    for path in images_below(folder):
        yield Sample(path, np.empty((0, points, 2), np.float32), path.read_bytes())


def one_face_each(samples: Iterable[Sample]) -> list[Sample]:
    """Split pictures with several faces into one Sample per face."""
    return [Sample(s.path, s.points[i : i + 1], s.encoded) for s in samples for i in range(len(s.points))]
