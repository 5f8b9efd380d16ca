"""Readers for published data set layouts, by name: pictures with landmark annotations, and pictures alone.

A listing function finds the contents of a data set and returns one `Entry` per picture, or per face if the data set
counts faces. Files are read one by one when they are needed; a broken file is refused or skipped, as requested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ...tracker.errors import ConfigError
from .layouts import (
    WFLW_ATTRIBUTES,
    list_300w,
    list_300w_all,
    list_300w_test,
    list_300w_train,
    list_wflw,
    list_wflw_train,
)
from .matlab_layouts import (
    list_300w_lp,
    list_aflw,
    list_aflw2000,
    list_aflw_train,
    list_cofw,
    list_cofw68,
    list_cofw_train,
)
from .point_files import list_point_table, list_pts_folder, read_pts
from .samples import (
    IMAGE_SUFFIXES,
    TURNED,
    Broken,
    Entry,
    Sample,
    images_below,
    one_face_each,
    read_bytes,
    read_entries,
    verify_pictures,
)

__all__ = [
    "ATTRIBUTES",
    "IMAGE_SUFFIXES",
    "LAYOUTS",
    "TURNED",
    "Broken",
    "Entry",
    "Sample",
    "images_below",
    "list_faces",
    "one_face_each",
    "read_entries",
    "read_faces",
    "read_images",
    "read_pts",
    "read_pts_folder",
    "verify_pictures",
]

# name -> listing function; "pts" and "table" are our own plain layouts, the others those of published data sets.
LAYOUTS: dict[str, Callable[[Path], list[Entry]]] = {
    "pts": list_pts_folder,
    "table": list_point_table,
    "300w": list_300w,
    "300w-train": list_300w_train,
    "300w-all": list_300w_all,
    "300w-test": list_300w_test,
    "wflw": list_wflw,
    "wflw-train": list_wflw_train,
    "cofw": list_cofw,
    "cofw-train": list_cofw_train,
    "cofw68": list_cofw68,
    "aflw": list_aflw,
    "aflw-train": list_aflw_train,
    "aflw2000": list_aflw2000,
    "300w-lp": list_300w_lp,
}
# layout -> attributes of its faces, among a `Sample`'s subsets
ATTRIBUTES: dict[str, tuple[str, ...]] = {"wflw": WFLW_ATTRIBUTES, "wflw-train": WFLW_ATTRIBUTES}


def list_faces(folder: Path, layout: str) -> list[Entry]:
    """The contents of a folder in one of the `LAYOUTS`, in a fixed order, not read yet.

    Raises:
        ConfigError: there is no such layout.
        SourceError: the folder does not have this layout.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"corpus {folder}: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return LAYOUTS[layout](folder)


def read_faces(folder: Path, layout: str, broken: Broken = "refuse") -> Iterator[Sample]:
    """All annotated pictures of a folder in one of the `LAYOUTS`; see `read_entries` for `broken`.

    Raises:
        ConfigError: there is no such layout.
        SourceError: the folder does not have this layout, or a file is broken and must not be skipped.
    """
    return read_entries(list_faces(folder, layout), broken)


def read_pts_folder(folder: Path) -> Iterator[Sample]:
    """NAME.jpg (or .png) beside NAME.pts, at any depth; pictures without .pts are ignored.

    Raises:
        SourceError: no picture has its .pts, or one of the files is broken.
    """
    return read_faces(folder, "pts")


def read_images(folder: Path) -> Iterator[Sample]:
    """Pictures without faces, or without annotation, as Samples with zero faces.

    Raises:
        SourceError: the folder is missing or holds no picture, or one of them cannot be read.
    """
    for path in images_below(folder):
        yield Sample(path, np.empty((0, 0, 2), np.float32), read_bytes(path))
