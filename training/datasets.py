"""Readers for the published layouts: pictures with landmark annotations, and pictures alone.

Everything comes out 0-based with pixel centres on whole numbers, whatever the file's own convention.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..tracker.errors import ConfigError, SourceError
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
        SourceError: the file cannot be read, has no `{ ... }` block of number pairs or another count than it
            announces.
    """
    text = _read(path).decode("utf-8", "replace")
    head, brace, rest = text.partition("{")
    body, end, _ = rest.partition("}")
    try:
        if not brace or not end:
            raise ValueError("no { ... } block")
        points = np.array([[float(v) for v in line.split()] for line in body.split("\n") if line.strip()])
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"wanted two numbers a line, got shape {points.shape}")
        announced = re.search(r"n_points\s*:\s*(\d+)", head)
        if announced and int(announced[1]) != len(points):
            raise ValueError(f"n_points says {announced[1]}, the block holds {len(points)}")
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
        raise SourceError(f"{folder}: no pictures found; wanted a folder with {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def read_pts_folder(folder: Path) -> Iterator[Sample]:
    """300-W layout: NAME.jpg (or .png) beside NAME.pts, at any depth; pictures without .pts are passed over.

    Raises:
        SourceError: no picture has its .pts, or one of the files is broken.
    """
    annotated = [image for image in images_below(folder) if image.with_suffix(".pts").is_file()]
    if not annotated:
        raise SourceError(f"{folder}: no picture has a .pts file of its name beside it; is it another layout?")
    for image in annotated:
        yield Sample(image, read_pts(image.with_suffix(".pts"))[None], _read(image))


def read_point_table(folder: Path) -> Iterator[Sample]:
    """A `labels.csv` beside the pictures: `file` and then x, y of every point, one row per face, 0-based.

    Rows of the same picture become one Sample with several faces; an empty cell is a point not annotated.

    Raises:
        SourceError: there is no labels.csv or no face in it, a row is not made of as many numbers as the first line
            has names, or a picture is missing.
    """
    table = folder / "labels.csv"
    header, *rows = [*csv.reader(_read(table).decode("utf-8-sig", "replace").splitlines())] or [[]]
    if header[:1] != ["file"] or len(header) < 3 or len(header) % 2 == 0 or not any(rows):
        raise SourceError(f"{table}: wanted a first line `file` and x, y of each point, and lines with faces after it")
    faces: dict[str, list[list[float]]] = {}
    for number, row in enumerate(rows, start=2):
        if row and len(row) != len(header):
            raise SourceError(f"{table}, line {number}: wanted {len(header)} cells, got {len(row)}")
        try:
            numbers = [float(cell) if cell.strip() else np.nan for cell in row[1:]]
        except ValueError as error:
            raise SourceError(f"{table}, line {number}: {error}") from error
        if row:
            faces.setdefault(row[0], []).append(numbers)
    for name, values in faces.items():
        points = np.asarray(values, np.float32).reshape(len(values), -1, 2)
        yield Sample(folder / name, points, _read(folder / name))


def read_images(folder: Path, points: int) -> Iterator[Sample]:
    """Pictures without any face (or without annotation), as Samples with zero faces."""
    for path in images_below(folder):
        yield Sample(path, np.empty((0, points, 2), np.float32), _read(path))


LAYOUTS = {"pts": read_pts_folder, "table": read_point_table}


def read_faces(folder: Path, layout: str) -> Iterator[Sample]:
    """All annotated pictures of a folder in one of the `LAYOUTS`.

    Raises:
        ConfigError: there is no such layout.
        SourceError: the folder does not follow it.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"corpus {folder}: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return LAYOUTS[layout](folder)


def one_face_each(samples: Iterable[Sample]) -> list[Sample]:
    """Split pictures with several faces into one Sample per face."""
    return [Sample(s.path, s.points[i : i + 1], s.encoded) for s in samples for i in range(len(s.points))]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
