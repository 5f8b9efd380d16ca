"""Frames from single pictures: a file, a folder or a glob."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import cv2
import numpy as np

from ..tracker.errors import SourceError
from ..tracker.types import Frame, UInt8
from .video_reader import why
from .video_source import Kind, ReadOnce

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


class ImageSource:
    """Pictures in their natural order, each a frame that carries its file's name.

    Pictures have no clock: they count as one second apart, and are tracked each by itself (see
    `pictures.track_independently`). A picture that cannot be read is noted in `failed` and the rest goes on. Grey
    becomes BGR, 16 bits become 8, alpha is left out and the camera's orientation (EXIF) is applied.

    Attributes:
        failed: (name, reason) of each picture that could not be read.
        See `sources.Source` for the rest.

    Args:
        root: the folder that the frames' names are relative to.
        files: the pictures, in any order.
        name: the stem of output files.
    """

    kind: Kind = "images"
    live = False
    size = None
    rate = None

    def __init__(self, root: Path, files: Sequence[Path], name: str) -> None:
        named = [(printable(file.relative_to(root).as_posix()), file) for file in files]
        self._files = sorted(named, key=lambda item: natural_key(item[0]))
        self.name = name
        self.frames: int | None = len(files)
        self.failed: list[tuple[str, str]] = []
        self._stopped = False
        self._frames = ReadOnce(self._deliver(), name)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the iteration."""
        self._stopped = True
        self._frames.close()

    def _deliver(self) -> Generator[Frame, None, None]:
        index = 0
        for name, file in self._files:
            if self._stopped:
                return
            try:
                bgr = read_image(file)
            except SourceError as error:
                self.failed.append((name, str(error).removeprefix(f"{file}: ")))
                continue
            yield Frame(index, float(index), time.perf_counter(), bgr, name)
            index += 1
        if index == 0:
            (name, reason), others = self.failed[0], len(self.failed) - 1
            also = f", nor can the {'other' if others == 1 else f'{others} others'}" if others else ""
            raise SourceError(f"{name}: {reason}{also}")


def read_image(path: Path) -> UInt8:
    """Read a picture as (H, W, 3) uint8 BGR, read-only.

    Raises:
        SourceError: it cannot be read or decoded.
    """
    try:
        encoded = np.fromfile(path, np.uint8)  # not cv2.imread: on Windows it reads ASCII paths only
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {why(error)}") from error
    if not encoded.size:
        raise SourceError(f"{path}: the file is empty; copy it again")
    try:
        bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise SourceError(f"{path}: cannot be decoded: {error.err}") from error
    if bgr is None:
        raise SourceError(f"{path}: is not a whole picture of a kind that can be decoded; save it as PNG or JPEG")
    bgr.flags.writeable = False
    return cast(UInt8, bgr)


def printable(name: str) -> str:
    """A file's name as UTF-8 can hold it; on Linux a name is bytes that may be no text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts img2 before img10 and pays no heed to upper and lower case."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name
