"""COFW, COFW-68, AFLW, AFLW2000-3D and 300W-LP as they are distributed: annotations in MATLAB files.

MATLAB counts pixels from 1. If a data set's own MATLAB code draws the points on the pictures without a shift, they are
taken as counted from 1.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...tracker.errors import SourceError
from ...tracker.types import Float32, Float64
from .matlab_file import MatlabFile
from .pairs import Pair, entries_of, pairs_among
from .places import find_place, paths_below
from .samples import Entry, Sample, coordinates, first_existing, read_bytes

COFW_POINTS, AFLW_POINTS = 29, 19
COFW68_FOLDERS = "COFW68_Data/test_annotations", "test_annotations"
AFLW_TRAIN = 20_000  # number of faces at the beginning of `ra` for training: Zhu et al., CVPR 2016
YAW_BINS = {"0-30": 30.0, "30-60": 60.0, "60-90": math.inf}  # upper ends in degrees: Zhu et al. (3DDFA), CVPR 2016
FOLDERS_300W_LP = ("AFW", "HELEN", "IBUG", "LFPW")


def list_cofw(folder: Path, part: str = "test") -> list[Entry]:
    """COFW: pictures, 29 points with occlusion flags, and boxes in one MATLAB file.

    Args:
        folder: holds COFW_test_color.mat and COFW_train_color.mat, or the grey COFW_test.mat and COFW_train.mat, at any
            depth.
        part: "test" or "train".
    Raises:
        SourceError: the file is missing or found several times, or its variables do not match.
        BackendError: h5py (or SciPy, for files of an older version) is not installed.
    Source: Burgos-Artizzu et al., ICCV 2013: IsT, phisT and bboxesT (IsTr, phisTr, bboxesTr for training).
    """
    path = _cofw_file(folder, part)
    file, end = MatlabFile(path), "T" if part == "test" else "Tr"
    shapes, boxes = file.numbers(f"phis{end}"), file.numbers(f"bboxes{end}")
    count = file.count(f"Is{end}")
    if shapes.shape != (count, 3 * COFW_POINTS) or boxes.shape != (count, 4):
        wanted = f"({count}, {3 * COFW_POINTS}) shapes and ({count}, 4) boxes for its {count} pictures"
        raise SourceError(f"{path}: wanted {wanted}, got {shapes.shape} and {boxes.shape}")
    read = partial(_cofw_sample, path, file, f"Is{end}", part)
    return [Entry(f"{path.stem}#{i + 1}", partial(read, i, shapes[i], boxes[i])) for i in range(count)]


def list_cofw_train(folder: Path) -> list[Entry]:
    """The training part of COFW, see `list_cofw`."""
    return list_cofw(folder, "train")


def list_cofw68(folder: Path) -> list[Entry]:
    """COFW-68: the test pictures of COFW with 68 points in a MATLAB file each, 1_points.mat to 507_points.mat.

    Args:
        folder: holds COFW68_Data/test_annotations or test_annotations, and COFW's own test file, at any depth.
    Returns:
        One entry per picture, also for one without annotation, which raises when it is read.
    Raises:
        SourceError: the file or the folder is missing or found several times.
        BackendError: h5py (or SciPy, for files of an older version) is not installed.
    Source: Ghiasi and Fowlkes, arXiv 1506.08347: Points (68, 2) and Occ. Its boxes are a detector's and are not used.
    """
    path = _cofw_file(folder, "test")
    places = find_place(folder, *COFW68_FOLDERS) or first_existing(folder, *COFW68_FOLDERS)
    file = MatlabFile(path)
    numbers = range(1, file.count("IsT") + 1)
    return [Entry(f"{path.stem}#{i}", partial(_cofw68_sample, path, file, i, places)) for i in numbers]


def _cofw_file(folder: Path, part: str) -> Path:
    colour, grey = f"COFW_{part}_color.mat", f"COFW_{part}.mat"
    return find_place(folder, colour) or find_place(folder, grey) or first_existing(folder, colour, grey)


def _cofw68_sample(path: Path, file: MatlabFile, number: int, places: Path) -> Sample:
    annotation = places / f"{number}_points.mat"
    told = MatlabFile(annotation)
    points, hidden = told.numbers("Points"), told.numbers("Occ").ravel() > 0
    if points.shape != (68, 2) or hidden.shape != (68,):
        raise SourceError(f"{annotation}: wanted Points (68, 2) and 68 of Occ, got {points.shape} and {hidden.size}")
    encoded = _cofw_picture(path, file, "IsT", number - 1)
    xy = _points(points.T - 1, annotation)
    return Sample(path, xy, encoded, hidden=hidden[None], subsets=("test",), annotation=str(annotation))


def _cofw_picture(path: Path, file: MatlabFile, variable: str, index: int) -> bytes:
    picture = file.cell(variable, index)
    if picture.dtype != np.uint8 or picture.ndim < 2 or picture.shape[2:] not in ((), (3,)) or not picture.size:
        raise SourceError(f"{path}: wanted picture {index + 1} as uint8 (H, W) or (H, W, 3), got {picture.shape}")
    return _as_png(picture)


def _cofw_sample(
    path: Path, file: MatlabFile, variable: str, part: str, index: int, shape: Float64, box: Float64
) -> Sample:
    encoded = _cofw_picture(path, file, variable, index)
    x, y, hidden = shape.reshape(3, COFW_POINTS)
    left, top, width, height = box
    place = f"{path}, picture {index + 1}"
    return Sample(
        path,
        _points(np.stack([x, y]) - 1, place),
        encoded,
        hidden=hidden[None] > 0,
        boxes=coordinates(np.array([[left, top, left + width, top + height]]) - 1, place),
        subsets=(part,),
        annotation=place,
    )


def _as_png(picture: NDArray[Any]) -> bytes:
    """Encode (H, W) or RGB (H, W, 3) uint8 without loss."""
    bgr = picture if picture.ndim == 2 else picture[..., ::-1]
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    return bytes(cv2.imencode(".png", np.ascontiguousarray(bgr), fast)[1])


def list_aflw(folder: Path, part: str = "test") -> list[Entry]:
    """AFLW with the 19 points that the literature uses, all of them annotated, also the invisible ones.

    The points are taken as counted from 0, as in other code for AFLW.

    Args:
        folder: holds AFLWinfo_release.mat and the pictures in data/flickr, flickr or images, at any depth.
        part: "test" (4,386 faces; the 1,314 of them with all points visible are "frontal") or "train" (20,000).
    Raises:
        SourceError: the file or the folder of the pictures is missing or found several times, or the file's variables
            do not match.
        BackendError: SciPy is not installed.
    Source: Zhu et al., CVPR 2016: nameList, bbox (left, right, top, bottom), data (19 x, then 19 y), mask_new and ra.
    """
    tables, flickr = ("AFLWinfo_release.mat", "data/AFLWinfo_release.mat"), ("data/flickr", "flickr")
    path = find_place(folder, *tables) or first_existing(folder, *tables)
    images = find_place(folder, *flickr) or find_place(folder, "images") or first_existing(folder, *flickr, "images")
    file = MatlabFile(path)
    names, order = file.strings("nameList"), file.numbers("ra").ravel() - 1
    points, boxes, visible = file.numbers("data"), file.numbers("bbox"), file.numbers("mask_new") == 1
    count = len(names)
    shapes = [points.shape, boxes.shape, visible.shape]
    if shapes != [(count, 2 * AFLW_POINTS), (count, 4), (count, AFLW_POINTS)]:
        raise SourceError(f"{path}: data, bbox and mask_new {shapes} do not fit its {count} names")
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise SourceError(f"{path}: ra is not an order of its {count} names")
    chosen = order[:AFLW_TRAIN] if part == "train" else order[AFLW_TRAIN:]
    if not len(chosen):
        raise SourceError(f"{path}: {count} faces, but the first {AFLW_TRAIN} of ra are for training; none is left")
    read = partial(_aflw_sample, path, part)
    return [
        Entry(f"{names[i]}#{i + 1}", partial(read, i, images / names[i], points[i], boxes[i], visible[i]))
        for i in chosen.astype(int).tolist()
    ]


def list_aflw_train(folder: Path) -> list[Entry]:
    """The training part of AFLW, see `list_aflw`."""
    return list_aflw(folder, "train")


def _aflw_sample(
    path: Path, part: str, index: int, image: Path, points: Float64, box: Float64, visible: NDArray[np.bool_]
) -> Sample:
    left, right, top, bottom = box
    place = f"{path}, face {index + 1}"
    whole = "full" if part == "test" else part
    return Sample(
        image,
        _points(points.reshape(2, AFLW_POINTS), place),
        read_bytes(image),
        hidden=~visible[None],
        boxes=coordinates(np.array([[left, top, right, bottom]]), place),
        subsets=(whole, "frontal") if visible.all() else (whole,),
        annotation=place,
    )


def list_aflw2000(folder: Path) -> list[Entry]:
    """AFLW2000-3D: NAME.jpg beside NAME.mat with pt3d_68 (its x and y are used) and Pose_Para (yaw second).

    Args:
        folder: holds them, directly or in AFLW2000 or AFLW2000-3D at any depth.
    Returns:
        One entry per annotation, also for image*.mat without a picture, which raise when they are read.
    Raises:
        SourceError: no picture has its .mat, or the folder is found several times.
    Source: Zhu et al. (3DDFA), CVPR 2016; the bins of yaw are those of its evaluation.
    """
    direct = next((home for home in (folder / "AFLW2000", folder) if _holds_pictures_with_mat(home)), None)
    home = direct or find_place(folder, "AFLW2000", "AFLW2000-3D", fits=_holds_pictures_with_mat) or folder
    pairs = pairs_among(home.iterdir() if home.is_dir() else [], ".mat")
    faces = [pair for pair in pairs if pair.pictures or pair.annotation.name.startswith("image")]
    return entries_of(_some_with_picture(faces, home), lambda path: path.name, _aflw2000_sample)


def _holds_pictures_with_mat(folder: Path) -> bool:
    return folder.is_dir() and any(pair.pictures for pair in pairs_among(folder.iterdir(), ".mat"))


def _aflw2000_sample(image: Path, path: Path) -> Sample:
    file = MatlabFile(path)
    points, pose = file.numbers("pt3d_68"), file.numbers("Pose_Para").ravel()
    if points.shape != (3, 68) or len(pose) < 3:
        raise SourceError(f"{path}: wanted pt3d_68 (3, 68) and Pose_Para (1, 7), got {points.shape} and {pose.shape}")
    yaw = abs(math.degrees(pose[1]))
    if not math.isfinite(yaw):
        raise SourceError(f"{path}: Pose_Para: wanted an angle of yaw, got {yaw}; restore the annotation")
    name = next(name for name, end in YAW_BINS.items() if yaw <= end)
    xy = _points(points[:2] - 1, path)
    return Sample(image, xy, read_bytes(image), subsets=(name, "all"), annotation=str(path))


def list_300w_lp(folder: Path) -> list[Entry]:
    """300W-LP: NAME.jpg beside NAME.mat with pt2d (68 points), in AFW, HELEN, IBUG, LFPW and their mirrored _Flip.

    Returns:
        One entry per annotation, also for those without a picture, which raise when they are read.
    Raises:
        SourceError: no picture has its .mat.
    Source: Zhu et al. (3DDFA), CVPR 2016.
    """
    places = [folder / f"{name}{flip}" for name in FOLDERS_300W_LP for flip in ("", "_Flip")]
    pairs = [pair for place in places for pair in pairs_among(paths_below(place), ".mat")]
    annotated = _some_with_picture(pairs, folder)
    return entries_of(annotated, lambda path: path.relative_to(folder).as_posix(), _300w_lp_sample)


def _300w_lp_sample(image: Path, path: Path) -> Sample:
    points = MatlabFile(path).numbers("pt2d")
    if points.shape != (2, 68):
        raise SourceError(f"{path}: wanted pt2d (2, 68), got {points.shape}")
    return Sample(image, _points(points - 1, path), read_bytes(image), subsets=("train",), annotation=str(path))


def _some_with_picture(pairs: list[Pair], folder: Path) -> list[Pair]:
    if not any(pair.pictures for pair in pairs):
        raise SourceError(f"{folder}: no picture has a .mat file of its name beside it; is it another layout?")
    return pairs


def _points(rows: Float64, annotation: str | Path) -> Float32:
    """One face (1, N, 2) from its x and y (2, N)."""
    return np.ascontiguousarray(coordinates(rows.T[None], annotation))
