"""Find the files and folders of a data set: archives are unpacked in many ways, and disks contain links."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ...tracker.errors import SourceError

ADDED_BY_MACOS = "__MACOSX"  # beside the folders of an archive, with folders of the same names


def folders_below(folder: Path) -> Iterator[Path]:
    """A folder and all folders below it, each once, in a fixed order; none if the folder does not exist.

    Symbolic links are followed after all real folders. Links to a folder that was visited before, or to one that
    contains the first folder, are not followed: they would never end. Hidden folders, __MACOSX and folders that may not
    be read are skipped.
    """
    if not folder.is_dir():
        return
    seen = {_identity(parent) for parent in folder.resolve().parents}
    folders, links = [folder], list[Path]()
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        try:
            identity = _identity(here)
            inside = [] if identity in seen else [here / item.name for item in os.scandir(here) if _leads_on(item)]
        except OSError:
            continue
        if identity not in seen:
            seen.add(identity)
            yield here
            folders += sorted((path for path in inside if not path.is_symlink()), reverse=True)
            links += sorted(path for path in inside if path.is_symlink())


def _leads_on(item: os.DirEntry[str]) -> bool:
    """Whether it is a folder to visit, or a link to one; a link that leads back to itself is not."""
    try:
        return item.is_dir() and item.name[0] != "." and item.name != ADDED_BY_MACOS
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    told = folder.stat()
    return told.st_dev, told.st_ino


def paths_below(folder: Path) -> Iterator[Path]:
    """The contents of a folder and of all folders below it; see `folders_below`."""
    return (path for home in folders_below(folder) for path in home.iterdir())


def is_there(path: Path) -> bool:
    """Whether it exists and is not just the folder into which an archive was unpacked, with the real one inside."""
    return path.exists() and not (path / path.name).exists()


def find_place(folder: Path, *places: str, fits: Callable[[Path], bool] = is_there) -> Path | None:
    """Find one of the files or folders of a data set.

    Args:
        folder: of the data set.
        places: paths below it, in order of preference. The first one that fits is returned; if none fits, the only one
            that does at any depth, also through links.
        fits: whether a path is the one that is looked for.
    Returns:
        The path, or None if there is none.
    Raises:
        SourceError: several fit farther down; names them.
    """
    direct = next((folder / place for place in places if fits(folder / place)), None)
    if direct:
        return direct
    below = (home / place for home in folders_below(folder) for place in places)
    found = {path.resolve(): path for path in below if fits(path)}
    if len(found) > 1:
        names = ", ".join(sorted(path.relative_to(folder).as_posix() for path in found.values()))
        raise SourceError(
            f"{folder}: wanted {' or '.join(places)} once in it, got {names}; remove all but one, or name its folder"
        )
    return next(iter(found.values()), None)
