"""Landmarks in plain files beside the pictures: 300-W's `.pts`, and tables with a row per face."""

from __future__ import annotations

import csv
import logging
import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ...tracker.errors import SourceError, shortened
from ...tracker.types import Float32, UInt8
from .pairs import KINDS, entries_of, pairs_among
from .places import paths_below
from .samples import Entry, Sample, coordinates, images_below, read_bytes

log = logging.getLogger(__name__)

QUALITY = 95  # of JPEG files made from other pictures


def read_pts(path: Path) -> Float32:
    """Read landmarks from a `.pts` file, which counts pixels from 1, as (N, 2) float32 counted from 0.

    Tolerates trailing spaces, "version: 1.0" and a missing last newline. "nan nan" is a point that is not annotated.

    Raises:
        SourceError: the file cannot be read; it has no `{ ... }` block of number pairs, or another number of points
            than it announces; or a point is infinite, or farther away than any picture is large.
    """
    text = read_bytes(path).decode("utf-8", "replace")
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
        raise SourceError(f"{path}: not a .pts file: {shortened(error)}") from error
    return coordinates(points - 1.0, path)


def write_pts(path: Path, points: Float32) -> None:
    """Write landmarks (N, 2), counted from 0, as a `.pts` file, which counts from 1."""
    rows = "\n".join(f"{x + 1:.3f} {y + 1:.3f}" for x, y in points)
    path.write_text(f"version: 1\nn_points: {len(points)}\n{{\n{rows}\n}}\n", encoding="ascii")


def write_jpeg(path: Path, bgr: UInt8, quality: int = QUALITY) -> None:
    """Write a picture (H, W, 3) BGR.

    Raises:
        OSError: it cannot be written; `cv2.imwrite` would not report that.
    """
    path.write_bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


def read_pts_sample(image: Path, annotation: Path, subsets: tuple[str, ...] = ()) -> Sample:
    """A picture with its NAME.pts.

    Raises:
        SourceError: one of the two cannot be read.
    """
    return Sample(image, read_pts(annotation)[None], read_bytes(image), subsets=subsets, annotation=str(annotation))


def list_pts_folder(folder: Path) -> list[Entry]:
    """NAME.jpg (or .png) beside NAME.pts, at any depth; pictures without .pts are ignored.

    Annotations without a picture, for example because it has another format, are reported by a warning. An annotation
    with several pictures is a broken file: its face would be there several times.

    Raises:
        SourceError: no picture has its .pts.
    """
    images_below(folder)  # raises if there is none
    pairs = pairs_among(paths_below(folder), ".pts")
    annotated = [pair for pair in pairs if pair.pictures]
    alone = [pair.annotation.stem for pair in pairs if not pair.pictures]
    if not annotated:
        raise SourceError(f"{folder}: no picture has a .pts file of its name beside it; is it another layout?")
    if alone:
        log.warning("%s: %d .pts files have no picture (%s), as %s", folder, len(alone), KINDS, alone[0])
    return entries_of(annotated, lambda image: image.relative_to(folder).as_posix(), read_pts_sample)


def list_point_table(folder: Path) -> list[Entry]:
    """A `labels.csv` beside the pictures: `file`, then x and y of every point, one row per face, 0-based.

    Rows of the same picture become one Sample with several faces; an empty cell is a point that is not annotated.

    Raises:
        SourceError: there is no labels.csv or no face in it, or a row has another number of cells than the first line
            or a cell that is not a number.
    """
    table = folder / "labels.csv"
    try:
        header, *rows = [*csv.reader(read_bytes(table).decode("utf-8-sig", "replace").splitlines())] or [[]]
    except csv.Error as error:
        raise SourceError(f"{table}: cannot be read: {error}") from error
    if header[:1] != ["file"] or len(header) < 3 or len(header) % 2 == 0 or not any(rows):
        raise SourceError(f"{table}: wanted a first line `file` and x, y of each point, and lines with faces after it")
    faces: dict[str, list[Float32]] = {}
    for number, row in enumerate(rows, start=2):
        if row and len(row) != len(header):
            raise SourceError(f"{table}, line {number}: wanted {len(header)} cells, got {len(row)}")
        try:
            numbers = [float(cell) if cell.strip() else np.nan for cell in row[1:]]
        except ValueError as error:
            raise SourceError(f"{table}, line {number}: {shortened(error)}") from error
        if row:
            faces.setdefault(row[0], []).append(coordinates(np.array(numbers), f"{table}, line {number}"))
    return [Entry(name, partial(_table_sample, folder / name, values)) for name, values in faces.items()]


def _table_sample(image: Path, values: list[Float32]) -> Sample:
    return Sample(image, np.stack(values).reshape(len(values), -1, 2), read_bytes(image))
