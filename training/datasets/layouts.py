"""300-W and WFLW as they are distributed: text annotations beside the pictures or above their folders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ...tracker.errors import SourceError, shortened
from .pairs import entries_of, pairs_among
from .places import find_place
from .point_files import read_pts_sample
from .samples import Entry, Sample, coordinates, first_existing, read_bytes

# Folder -> subsets. Sagonas et al., 2013; common and challenging as in Zhu et al. (CFSS), CVPR 2015.
Folders = Mapping[str, tuple[str, ...]]
TRAIN_300W: Folders = {"afw": (), "helen/trainset": (), "lfpw/trainset": ()}
TEST_300W: Folders = {
    "lfpw/testset": ("common", "full"),
    "helen/testset": ("common", "full"),
    "ibug": ("challenging", "full"),
    "01_Indoor": ("test", "indoor"),
    "02_Outdoor": ("test", "outdoor"),
}
COMPETITION_300W: Folders = {place: subsets for place, subsets in TEST_300W.items() if "test" in subsets}
# SPAN's training set for the competition's test set: 3,148 + 689 faces (section IV-A, as in LUVLi and KDN)
ALL_300W: Folders = {**TRAIN_300W, **{place: () for place, subsets in TEST_300W.items() if "full" in subsets}}

WFLW_LISTS = "list_98pt_rect_attr_train_test"
WFLW_ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
WFLW_POINTS = 98


def list_300w(folder: Path, folders: Folders = TEST_300W) -> list[Entry]:
    """300-W: NAME.jpg or NAME.png beside NAME.pts (68 points, 1-based) in folders named after their sources.

    Some copies also hold each picture mirrored, as NAME_mirror; no benchmark uses those, so they are left out.

    Args:
        folder: holds lfpw/testset, helen/testset, ibug, 01_Indoor and 02_Outdoor, or some of them, at any depth.
        folders: which of them to read, with the subsets that they belong to.
    Returns:
        One entry per annotation, also for those without a picture, which raise when they are read.
    Raises:
        SourceError: none of them holds an annotated picture, or one of them is found several times.
    """
    entries: list[Entry] = []
    pictures = 0
    for place, subsets in folders.items():
        home = find_place(folder, place, fits=_holds_pts)
        if home:
            pairs = pairs_among(home.iterdir(), ".pts")
            originals = [pair for pair in pairs if not pair.annotation.stem.endswith("_mirror")]
            entries += entries_of(originals, partial(_name_300w, place), partial(read_pts_sample, subsets=subsets))
            pictures += sum(len(pair.pictures) for pair in originals)
    if not pictures:
        raise SourceError(f"{folder}: no pictures with .pts files in {', '.join(folders)}; wanted the folder of 300-W")
    return entries


def _holds_pts(folder: Path) -> bool:
    return folder.is_dir() and bool(pairs_among(folder.iterdir(), ".pts"))


def _name_300w(place: str, path: Path) -> str:
    return f"{place}/{path.name}"


def list_300w_train(folder: Path) -> list[Entry]:
    """The training part of 300-W, see `list_300w`."""
    return list_300w(folder, TRAIN_300W)


def list_300w_all(folder: Path) -> list[Entry]:
    """The training part and the full set of 300-W, that is all but the competition's test set, see `list_300w`."""
    return list_300w(folder, ALL_300W)


def list_300w_test(folder: Path) -> list[Entry]:
    """The competition's test set of 300-W, 01_Indoor and 02_Outdoor alone, see `list_300w`."""
    return list_300w(folder, COMPETITION_300W)


def list_wflw(folder: Path, part: str = "test") -> list[Entry]:
    """WFLW: a line of 98 points, a rectangle, six attributes and the picture's name for every face.

    Args:
        folder: holds WFLW_annotations and WFLW_images, at any depth.
        part: "test" or "train".
    Returns:
        One entry per face; a face belongs to the subset "test" and to those of its attributes.
    Raises:
        SourceError: the list or the folder of the pictures is missing, empty or found several times.
    Source: Wu et al., CVPR 2018; the README inside WFLW_annotations.tar.gz.
    """
    name = f"{WFLW_LISTS}/list_98pt_rect_attr_{part}.txt"
    tables, pictures = (f"WFLW_annotations/{name}", name), "WFLW_images"
    table = find_place(folder, *tables) or first_existing(folder, *tables)
    images = find_place(folder, pictures) or first_existing(folder, pictures)
    lines = read_bytes(table).decode("utf-8", "replace").splitlines()
    entries = [
        Entry(f"{line.split()[-1]}#{number}", partial(_wflw_sample, table, images, number, line, part))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not entries:
        raise SourceError(f"{table}: there is no face in it")
    return entries


def list_wflw_train(folder: Path) -> list[Entry]:
    """The training part of WFLW, see `list_wflw`."""
    return list_wflw(folder, "train")


def _wflw_sample(table: Path, images: Path, number: int, line: str, part: str) -> Sample:
    *cells, name = line.split()
    place = f"{table}, line {number}"
    wanted = 2 * WFLW_POINTS + 4 + len(WFLW_ATTRIBUTES)
    if len(cells) != wanted:
        raise SourceError(f"{place}: wanted {wanted} numbers and a name, got {len(cells)} before it")
    try:
        numbers = coordinates(np.array([float(cell) for cell in cells]), place)
    except ValueError as error:
        raise SourceError(f"{place}: {shortened(error)}") from error
    points, box, flags = np.split(numbers, [2 * WFLW_POINTS, 2 * WFLW_POINTS + 4])
    subsets = (part, *(attribute for attribute, flag in zip(WFLW_ATTRIBUTES, flags, strict=True) if flag))
    image, xy = images / name, points.reshape(1, -1, 2)
    return Sample(image, xy, read_bytes(image), boxes=box[None], subsets=subsets, annotation=place)
