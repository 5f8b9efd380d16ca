"""Annotated pictures: the common form of all data sets, and how to read many of them if some are broken.

Coordinates are 0-based with pixel centres at whole numbers, whatever the file's own convention.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ...tracker.errors import SourceError
from ...tracker.types import Float32, Float64, UInt8
from .places import paths_below

log = logging.getLogger(__name__)

FARTHEST_PX = 2.0**20  # from the corner: no picture is larger (OpenCV reads up to 2**20 pixels per side)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}  # those of the data sets; another would change what `held_out` keeps
JPEG_MAGIC = b"\xff\xd8"
TURNED = "_turned"  # follows the photograph's name in the name of a copy by `training.turned`
Broken = Literal["refuse", "skip"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotated picture, still compressed.

    Attributes:
        path: the picture's file, or the file that holds it.
        points: (F, N, 2) float32, 0-based, NaN where a point is not annotated; F = 0 for a picture without faces.
        encoded: the picture's bytes, so that epochs do not touch the disk.
        hidden: (F, N) bool, which points are annotated as occluded; None where the data set does not say.
        boxes: (F, 4) float32, the data set's own face boxes (x1, y1, x2, y2); None where it has none.
        subsets: names of the parts of the data set that it belongs to.
        annotation: the file of the points, and the place in it, for messages; "" if the picture's path is enough.
    Raises:
        SourceError: a point or a box is infinite, or farther away than any picture is large.
    """

    path: Path
    points: Float32
    encoded: bytes
    hidden: NDArray[np.bool_] | None = None
    boxes: Float32 | None = None
    subsets: tuple[str, ...] = ()
    annotation: str = ""

    def __post_init__(self) -> None:
        for numbers in (self.points, self.boxes):
            if numbers is not None:
                coordinates(numbers, self.place)

    @property
    def place(self) -> str:
        """Where the annotation is, for messages."""
        return self.annotation or str(self.path)

    def bgr(self) -> UInt8:
        """Decode the picture, (H, W, 3) uint8 BGR.

        Raises:
            SourceError: the file is not a readable picture.
        """
        return self._decoded(cv2.IMREAD_COLOR).astype(np.uint8, copy=False)

    def check_decodable(self) -> None:
        """Check that the picture can be decoded; a JPEG at an eighth of its size, in a third of the time.

        Raises:
            SourceError: the file is not a readable picture.
        """
        jpeg = self.encoded.startswith(JPEG_MAGIC)  # for other formats OpenCV refuses an eighth that has no pixel
        self._decoded(cv2.IMREAD_REDUCED_GRAYSCALE_8 if jpeg else cv2.IMREAD_GRAYSCALE)

    def _decoded(self, kind: int) -> cv2.typing.MatLike:
        buffer = np.frombuffer(self.encoded, np.uint8)
        try:
            image = cv2.imdecode(buffer, kind)
        except cv2.error:  # no bytes, or more pixels than OpenCV takes
            image = None
        if image is None:
            raise SourceError(f"{self.path}: not a readable picture; remove it or fix it")
        return image


def coordinates(numbers: Float32 | Float64, annotation: str | Path) -> Float32:
    """Pixels (...) of an annotation as float32; NaN is kept.

    Raises:
        SourceError: some are farther away than `FARTHEST_PX`; the message begins with the annotation's place.
    """
    if (np.abs(numbers) > FARTHEST_PX).any():
        wanted, farthest = f"wanted coordinates up to {FARTHEST_PX:.0f} pixels", float(np.nanmax(np.abs(numbers)))
        raise SourceError(f"{annotation}: {wanted}, got {farthest:g}; restore or remove the annotation")
    return numbers.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture that a data set lists, not read yet.

    Attributes:
        name: unique in the data set, for tables and messages.
        read: reads picture and annotation; raises a SourceError that names what is broken.
    """

    name: str
    read: Callable[[], Sample]


def read_entries(entries: Iterable[Entry], broken: Broken = "refuse") -> Iterator[Sample]:
    """Read what a data set lists.

    Args:
        entries: from one of the listing functions.
        broken: "refuse" raises at the first broken file; "skip" logs a warning that names it and continues. Skipping
            decodes every picture once, so that none turns out to be broken in the middle of a training.
    Raises:
        SourceError: a file is broken and must not be skipped, or all are.
    """
    whole, fault = 0, None
    for entry in entries:
        try:
            sample = entry.read()
            if broken == "skip":
                sample.check_decodable()
        except SourceError as error:
            if broken == "refuse":
                raise
            log.warning("%s; left out", error)
            fault = error
        else:
            whole += 1
            yield sample
    if fault and not whole:
        raise SourceError(f"{fault}; nothing is left of its folder without the broken files") from fault


def verify_pictures(samples: Iterable[Sample], broken: Broken = "refuse") -> list[Sample]:
    """Decode every picture once, so that none turns out to be broken in the middle of a training.

    Args:
        samples: the pictures that were read.
        broken: "refuse" raises for the first broken picture; "skip" logs a warning that names it and leaves it out.
    Raises:
        SourceError: a picture is broken and must not be skipped, or all are.
    """
    samples, whole, fault = list(samples), [], None
    with ThreadPoolExecutor() as threads:
        for sample, error in zip(samples, threads.map(_fault, samples), strict=True):
            if error is None:
                whole.append(sample)
            elif broken == "refuse":
                threads.shutdown(cancel_futures=True)
                raise error
            else:
                log.warning("%s; left out", error)
                fault = error
    if fault and not whole:
        raise SourceError(f"{fault}; nothing is left without the broken pictures") from fault
    return whole


def _fault(sample: Sample) -> SourceError | None:
    """The error of a broken picture, or None."""
    try:
        sample.check_decodable()
    except SourceError as error:
        return error
    return None


def one_face_each(samples: Iterable[Sample]) -> list[Sample]:
    """Split pictures with several faces into one Sample per face."""
    return [_face(sample, i) for sample in samples for i in range(len(sample.points))]


def _face(sample: Sample, i: int) -> Sample:
    hidden = None if sample.hidden is None else sample.hidden[i : i + 1]
    boxes = None if sample.boxes is None else sample.boxes[i : i + 1]
    return replace(sample, points=sample.points[i : i + 1], hidden=hidden, boxes=boxes)


def images_below(folder: Path) -> list[Path]:
    """All pictures below a folder, sorted; links are followed.

    Raises:
        SourceError: the folder is missing or holds no picture.
    """
    found = images_among(paths_below(folder))
    if not found:
        raise SourceError(f"{folder}: no pictures found; wanted a folder with {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def images_among(paths: Iterable[Path]) -> list[Path]:
    """The pictures, sorted, without hidden files: macOS puts ._1.jpg beside 1.jpg."""
    return sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")


def first_existing(folder: Path, *places: str) -> Path:
    """The first of these paths below a folder that exists.

    Raises:
        SourceError: none does; names them all.
    """
    for place in places:
        if (folder / place).exists():
            return folder / place
    raise SourceError(f"{folder}: wanted {' or '.join(places)} in it; is it another data set, or not unpacked?")


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # no file has a NUL in its name
        raise SourceError(f"{path}: cannot be read: {error}") from error
