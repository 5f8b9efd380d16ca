"""Frames from pictures: a file, a folder or a glob."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from fractions import Fraction
from glob import escape, glob, has_magic, iglob
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import cv2
import numpy as np

from ..tracker.errors import SourceError
from ..tracker.types import Frame, UInt8
from .source import Kind, ReadOnce, counted, is_url

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
PAGED_SUFFIXES = frozenset({".avif", ".png", ".tif", ".tiff", ".webp"})
# to distinguish a folder's videos from its other files; a video that is named directly may have any suffix
VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ts", ".webm", ".wmv"}
)
MOST_KINDS = 5  # most kinds of left-out files that a message lists


class ImageSource:
    """Pictures in their natural order, each a frame that carries its file's name.

    Without a rate, pictures have no clock: they count as one second apart and are tracked independently (see
    `pictures.track_independently`). With a rate, they are the frames of a video. A picture that cannot be read is noted
    in `failed` and skipped. So is a frame of a video whose size differs from the first one's. Skipped frames of a video
    leave gaps in the frame numbers. Grey becomes BGR, 16 bits become 8, alpha is dropped and the camera's orientation
    (EXIF) is applied.

    Attributes:
        failed: (name, reason) of each picture that was left out.
        done: names of pictures to count without reading them; only without a rate.
        See `source.Source` for the rest.

    Args:
        root: the folder that the frames' names are relative to.
        files: the pictures, in any order.
        name: the stem of output files.
        rate: frames per second of the video that they form; None: they are unrelated.
    Raises:
        SourceError: there is a rate, and none of the pictures can be read.
    """

    live = False
    start_s = None

    def __init__(self, root: Path, files: Sequence[Path], name: str, rate: Fraction | None = None) -> None:
        named = [(printable(file.relative_to(root).as_posix()), file) for file in files]
        self._files = sorted(named, key=lambda item: (natural_key(item[0]), item[1]))
        self.name, self.rate = name, rate
        self.kind: Kind = "images" if rate is None else "video"
        self.frames: int | None = len(files)
        self.failed: list[tuple[str, str]] = []
        self._with_pages: list[tuple[str, int]] = []
        self.done: Set[str] = frozenset()
        self._stopped = False
        self.size: tuple[int, int] | None = None
        if rate is not None:
            self.size = self._first_size()
        self._frames = ReadOnce(self._deliver(), name)

    @property
    def names_differ(self) -> bool:
        """Whether each name identifies one picture; names that are not valid text may print alike."""
        return len({name for name, _ in self._files}) == len(self._files)

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
        try:
            yield from self._read()
        finally:
            self._warn_pages()

    def _read(self) -> Generator[Frame, None, None]:
        given = 0
        for place, (name, file) in enumerate(self._files):
            if self._stopped:
                return
            if name in self.done:
                given += 1
                continue
            bgr = self._read_one(name, file)
            if bgr is None:
                continue
            pages = _pages_of(file)
            if pages > 1:
                self._with_pages.append((name, pages))
            index = given if self.rate is None else place
            yield Frame(index, float(index / (self.rate or 1)), time.perf_counter(), bgr, name)
            given += 1
        if given == 0:
            raise self._nothing_read()

    def _read_one(self, name: str, file: Path) -> UInt8 | None:
        """Read one of the pictures; None if it is to be left out, with the reason noted in `failed`."""
        try:
            bgr = read_image(file)
        except SourceError as error:
            self.failed.append((name, str(error).removeprefix(f"{file}: ")))
            return None
        if self.size is not None and self.size != bgr.shape[:2]:
            (h, w), (own_h, own_w) = self.size, bgr.shape[:2]
            self.failed.append((name, f"is {own_w}x{own_h}, but the first frame of the video is {w}x{h}"))
            return None
        return bgr

    def _first_size(self) -> tuple[int, int]:
        """(height, width) of the first frame, read now so that what cannot be opened fails at once."""
        for name, file in self._files:
            bgr = self._read_one(name, file)
            if bgr is not None:
                self.failed.clear()  # reading notes them again
                return bgr.shape[0], bgr.shape[1]
        raise self._nothing_read()

    def _nothing_read(self) -> SourceError:
        (name, reason), others = self.failed[0], len(self.failed) - 1
        also = f", nor can the {'other' if others == 1 else f'{others} others'}" if others else ""
        return SourceError(f"{name}: {reason}{also}")

    def _warn_pages(self) -> None:
        """Warn once about pictures with more than one page: TIFF, and animated PNG, WebP and AVIF."""
        if self._with_pages:
            (name, pages), others = self._with_pages[0], len(self._with_pages) - 1
            also = f"; the same goes for {counted(others, 'other picture')}" if others else ""
            log.warning("%s: has %d pages, of which only the first is used%s", name, pages, also)


def open_folder(folder: Path, rate: Fraction | None) -> ImageSource:
    """The pictures of a folder, without those of its subfolders; warns about what else is there.

    Args:
        folder: where they are.
        rate: see `ImageSource`.

    Raises:
        SourceError: there is none; the message says what is there instead.
    """
    found = list(folder.iterdir())
    files = pictures_among(found)
    if not files:
        raise SourceError(f"{folder}: {_without_pictures(folder)}")
    _warn_left_out(folder, set(found).difference(files))
    return ImageSource(folder, files, folder.resolve().name, rate)


def _warn_left_out(folder: Path, others: Iterable[Path]) -> None:
    """Warn about folders, and files without a picture's suffix; names that start with a dot are ignored."""
    seen = [path for path in others if path.name[0] != "."]
    files, folders = [path for path in seen if path.is_file()], [path for path in seen if path.is_dir()]
    told = [f"{counted(len(files), 'other file')} ({_kinds_of(files)})"] if files else []
    if folders:
        told.append(f"{counted(len(folders), 'folder')} (a glob such as {_deep_glob(folder)} includes them)")
    if told:
        log.warning("%s: left out: %s", folder, ", ".join(told))


def _deep_glob(folder: Path) -> str:
    return f'"{escape(str(folder))}/**/*.jpg"'


def _kinds_of(files: Iterable[Path]) -> str:
    """The files' suffixes as text."""
    return ", ".join(sorted({file.suffix.lower() or "without a suffix" for file in files})[:MOST_KINDS])


def _without_pictures(folder: Path) -> str:
    """What a folder without pictures holds instead, and what to name."""
    videos = sorted(_files_of(VIDEO_SUFFIXES, folder.iterdir()))
    if not videos:
        others = [path for path in folder.iterdir() if path.name[0] != "."]
        files, deeper = [path for path in others if path.is_file()], any(path.is_dir() for path in others)
        found = f" (its files: {_kinds_of(files)})" if files else ""
        where = f", or a glob such as {_deep_glob(folder)} for those in its subfolders" if deeper else ""
        return f"a folder without pictures{found}; wanted files such as .jpg or .png in it{where}"
    count, them = counted(len(videos), "video"), "it" if len(videos) == 1 else "them"
    # in double quotes, which Windows' command prompt understands, too
    return f'holds {count} and no picture; name {them}, e.g. "{escape(str(folder))}/*{videos[0].suffix}"'


def open_glob(pattern: str, rate: Fraction | None) -> ImageSource:
    """The pictures that a pattern with wildcards matches.

    Args:
        pattern: of their paths.
        rate: see `ImageSource`.

    Raises:
        SourceError: it matches no picture.
    """
    root, matches = glob_root(Path(pattern)), expand_glob(pattern)
    files = pictures_among(matches)
    if not files:
        wanted = "matches no picture; wanted files such as .jpg or .png"
        raise SourceError(f"{pattern}: {wanted if matches else _why_no_match(pattern)}")
    return ImageSource(root, files, root.resolve().name, rate)


def _why_no_match(pattern: str) -> str:
    """Say that nothing matches, and what to write if a folder's own name was taken for a pattern."""
    path = Path(pattern)
    for folder in path.parents:  # on a drive that is not plugged in, none exists
        if folder.exists():
            meant = str(Path(escape(str(folder)), path.relative_to(folder)))
            if has_magic(str(folder)) and any(iglob(meant, recursive=True)):  # noqa: PTH207 - as a batch does
                return f'matches no file; for the folder {folder}, whose name looks like a pattern, write "{meant}"'
            break
    return "matches no file"


def expand_glob(pattern: str) -> list[Path]:
    """What a pattern matches, sorted by name; "**" goes into linked folders, but not into hidden ones.

    What is found again through a linked folder is left out; the match that needs no link is kept.
    """
    root = glob_root(Path(pattern))
    real_root = Path(os.path.realpath(root))
    once: dict[Path, Path] = {}
    matches = sorted(set(_glob(Path(pattern))), key=str)
    for match in matches:
        place = Path(os.path.realpath(match.parent), match.name)  # a linked file counts by itself
        if place == real_root / match.relative_to(root):
            once[place] = match
        else:
            once.setdefault(place, match)
    kept = set(once.values())
    return [match for match in matches if match in kept]


def _glob(pattern: Path) -> Iterator[Path]:
    """Match like `glob.glob`, but do not follow links in circles.

    `glob.glob` follows a link to a folder above it some forty times, and two such links forever.
    """
    if "**" not in pattern.parts:
        yield from map(Path, glob(str(pattern)))  # noqa: PTH207 - pathlib's goes into hidden folders
        return
    place = pattern.parts.index("**")
    begin, rest = Path(*pattern.parts[:place]), pattern.parts[place + 1 :]
    for folder in _with_folders_below(_glob(begin) if place else [begin]):
        if not rest and folder != Path():
            yield folder
        yield from _glob(Path(escape(str(folder)), *(rest or ("*",))))


def _with_folders_below(folders: Iterable[Path]) -> Iterator[Path]:
    """Folders and all below them, except hidden ones: each once, under a name without a link if it has one."""
    waiting, linked = deque(folders), deque[Path]()
    seen = set[str]()
    while waiting or linked:
        folder = waiting.popleft() if waiting else linked.popleft()
        real = os.path.realpath(folder)
        if real in seen or not folder.is_dir():
            continue
        seen.add(real)
        yield folder
        with suppress(OSError):  # such as a folder that may not be read
            for path in folder.iterdir():
                if path.name[0] != "." and path.is_dir():
                    (linked if path.is_symlink() else waiting).append(path)


def glob_root(path: Path) -> Path:
    r"""The part of a glob without wildcards; the "?" of `\\?\C:\`, as Windows begins long paths, is not one."""
    return next(part for part in (path, *path.parents) if not has_magic(str(part)[len(part.anchor) :]))


def pictures_among(paths: Iterable[Path]) -> list[Path]:
    """Keep the pictures; files whose name starts with a dot are leftovers of other programs."""
    return _files_of(IMAGE_SUFFIXES, paths)


def _files_of(suffixes: Set[str], paths: Iterable[Path]) -> list[Path]:
    return [p for p in paths if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file()]


def holds_pictures(spec: str) -> bool:
    """Whether `open_source` takes a name as that of one or several pictures."""
    return names_several_pictures(spec) or (
        not is_url(spec) and Path(spec).exists() and Path(spec).suffix.lower() in IMAGE_SUFFIXES
    )


def names_several_pictures(spec: str) -> bool:
    """Whether `open_source` takes a name as that of a folder or a glob."""
    if is_url(spec):
        return False
    path = Path(spec)
    return path.is_dir() if path.exists() else has_magic(spec)


def read_image(path: Path) -> UInt8:
    """Read a picture as (H, W, 3) uint8 BGR, read-only.

    Raises:
        SourceError: it cannot be read or decoded.
    """
    try:
        encoded = np.fromfile(path, np.uint8)  # not cv2.imread: on Windows it reads ASCII paths only
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not encoded.size:
        raise SourceError(f"{path}: the file is empty; copy it again")
    try:
        bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise SourceError(f"{path}: cannot be decoded: {error.err}") from error
    if bgr is None:
        raise SourceError(f"{path}: is not a complete picture in a format that can be decoded; save it as PNG or JPEG")
    bgr.flags.writeable = False
    return cast(UInt8, bgr)


def _pages_of(path: Path) -> int:
    """How many pictures that can be decoded a file holds; 0 if unknown."""
    if path.suffix.lower() not in PAGED_SUFFIXES:
        return 1
    if printable(str(path)) != str(path):  # OpenCV crashes on a name that is not valid text
        return 0
    if sys.platform == "win32" and not str(path).isascii():  # OpenCV does not find it, and prints that
        return 0
    try:
        return cv2.imcount(str(path))
    except cv2.error:
        return 0


def printable(name: str) -> str:
    """A file's name as valid UTF-8; on Linux a name is bytes that need not be text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts img2 before img10 and ignores case."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name
