"""Match annotations with the pictures beside them (NAME.pts or NAME.mat with NAME.jpg), and report those without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from ...tracker.errors import SourceError
from .samples import IMAGE_SUFFIXES, Entry, Sample, images_among

Read = Callable[[Path, Path], Sample]
KINDS = ", ".join(sorted(IMAGE_SUFFIXES))


@dataclass(frozen=True, slots=True)
class Pair:
    """An annotation with the pictures of its name; there should be exactly one."""

    annotation: Path
    pictures: tuple[Path, ...]

    @property
    def path(self) -> Path:
        """The picture, or the annotation if there is no picture."""
        return self.pictures[0] if self.pictures else self.annotation


def pairs_among(paths: Iterable[Path], suffix: str) -> list[Pair]:
    """The annotations among files, in the order of their pictures; pictures without annotation are ignored.

    Args:
        paths: files; hidden ones are ignored.
        suffix: of the annotations, in lower case; files in upper case match, too.
    """
    paths = sorted(paths)
    told = {path.with_suffix(""): path for path in paths if _is_annotation(path, suffix)}  # NAME.pts before NAME.PTS
    pictures: dict[Path, list[Path]] = {}
    for image in images_among(paths):
        pictures.setdefault(image.with_suffix(""), []).append(image)
    pairs = [Pair(path, tuple(pictures.get(name, ()))) for name, path in told.items()]
    return sorted(pairs, key=lambda pair: pair.path)


def _is_annotation(path: Path, suffix: str) -> bool:
    return path.suffix.lower() == suffix and path.name[0] != "."


def entries_of(pairs: Iterable[Pair], name: Callable[[Path], str], read: Read) -> list[Entry]:
    """An entry for each annotation; one without a picture, or with several, raises SourceError when it is read.

    Args:
        pairs: from `pairs_among`.
        name: gives an entry's name from its picture (or from its annotation, if it has no picture).
        read: reads a sample; takes the picture and its annotation, in this order.
    """
    return [Entry(name(pair.path), _reader(pair, read)) for pair in pairs]


def _reader(pair: Pair, read: Read) -> Callable[[], Sample]:
    match pair.pictures:
        case (picture,):
            return partial(read, picture, pair.annotation)
        case ():
            return partial(
                _refuse, f"{pair.annotation}: wanted a picture ({KINDS}) of its name beside it; restore or remove it"
            )
    names = " and ".join(picture.name for picture in pair.pictures)
    return partial(_refuse, f"{pair.annotation}: wanted one picture of its name beside it, got {names}; keep one")


def _refuse(message: str) -> NoReturn:
    raise SourceError(message)
