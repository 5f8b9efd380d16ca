"""300VW as it is distributed: 114 videos with one annotated face in every frame, the split and the bad frames."""

from __future__ import annotations

import hashlib
import logging
import re
import tomllib
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from ...pipeline.batch import Failure
from ...tracker.errors import SourceError, shortened
from ...tracker.types import Float32
from ..datasets.matlab_file import MatlabFile
from ..datasets.point_files import read_pts
from ..datasets.samples import first_existing, read_bytes

log = logging.getLogger(__name__)

HOME = "300VW_Dataset_2015_12_14"
VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv")  # the data set's own are .avi
EXTRA = "extra"  # an archive, or a folder into which it was unpacked
POINTS = 68


@dataclass(frozen=True, slots=True)
class Split:
    """The split that 300VW prescribes.

    Attributes:
        train: numbers of the 50 training videos.
        scenarios: scenario 1, 2, 3 -> numbers of its test videos.
        excluded: number -> frames (from 1) whose annotation is known to be inaccurate.
        scored_frames: scenario -> number of frames that are left.
        papers: method -> NME io % of the three scenarios, protocol A.
    """

    train: tuple[str, ...]
    scenarios: Mapping[int, tuple[str, ...]]
    excluded: Mapping[str, frozenset[int]]
    scored_frames: Mapping[int, int]
    papers: Mapping[str, tuple[float, ...]]


@cache
def published_split() -> Split:
    """The split that ships with the package."""
    table = tomllib.loads(resources.files(__package__).joinpath("300vw.toml").read_text(encoding="utf-8"))
    return Split(
        train=tuple(table["train"].split()),
        scenarios={int(name): tuple(numbers.split()) for name, numbers in table["scenarios"].items()},
        excluded={number: _frames(ranges) for number, ranges in table["excluded"].items()},
        scored_frames={int(name): count for name, count in table["scored_frames"].items()},
        papers={method: tuple(values) for method, values in table["papers"].items()},
    )


def _frames(ranges: str) -> frozenset[int]:
    """The numbers in "3 7-9"."""
    ends = [list(map(int, word.split("-"))) for word in ranges.split()]
    return frozenset(frame for end in ends for frame in range(end[0], end[-1] + 1))


def ranges_of(frames: Iterable[int]) -> str:
    """Numbers in ascending order as "3 7-9"."""
    there = set(frames)
    begins, ends = (sorted(frame for frame in there if frame + step not in there) for step in (-1, 1))
    return " ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in zip(begins, ends, strict=True))


@dataclass(frozen=True, slots=True)
class AnnotatedVideo:
    """One video of 300VW.

    Attributes:
        number: its folder's name, three digits.
        scenario: 1, 2 or 3; 0 for a training video.
        path: of the video file.
        annotations: frame number, from 1 -> its .pts file.
    """

    number: str
    scenario: int
    path: Path
    annotations: Mapping[int, Path]


Found = tuple[list[AnnotatedVideo], list[Failure]]  # the second: videos with something missing


def find_home(folder: Path) -> Path:
    """The folder that holds the numbered folders: this one, or `HOME` in it.

    Raises:
        SourceError: the folder does not exist.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: there is no such folder; wanted that of 300VW")
    return folder / HOME if (folder / HOME).is_dir() else folder


def list_test_videos(folder: Path) -> Found:
    """The test videos of a folder by scenario, and those with a missing video file or annotation.

    Raises:
        SourceError: none of them can be used.
    """
    return _list_videos(folder, "test", published_split().scenarios)


def list_training_videos(folder: Path) -> Found:
    """The training videos of a folder, and those with a missing video file or annotation.

    Raises:
        SourceError: none of them can be used.
    """
    return _list_videos(folder, "training", {0: published_split().train})


def _list_videos(folder: Path, kind: str, scenarios: Mapping[int, Sequence[str]]) -> Found:
    home = find_home(folder)
    places = [(home / number, scenario) for scenario, numbers in scenarios.items() for number in numbers]
    videos: list[AnnotatedVideo] = []
    failures: list[Failure] = []
    for place, scenario in places:
        if place.is_dir():
            try:
                videos.append(_video(place, scenario))
            except SourceError as error:
                failures.append(Failure(str(place), str(error)))
    if failures and not videos:
        raise SourceError(str(failures[0]))
    if not videos:
        wanted = f"wanted folders such as {places[0][0].name}/ with vid.avi"
        raise SourceError(f"{folder}: none of the {len(places)} {kind} videos is in it; {wanted}")
    return videos, failures


def _video(folder: Path, scenario: int) -> AnnotatedVideo:
    path = first_existing(folder, *(f"vid{suffix}" for suffix in VIDEO_SUFFIXES))
    place = first_existing(folder, "annot")
    try:
        files = sorted(place.iterdir())
    except OSError as error:
        raise SourceError(f"{place}: cannot be read: {error.strerror}; wanted a folder of .pts files") from error
    annotations = {int(file.stem): file for file in files if file.suffix.lower() == ".pts" and file.stem.isdecimal()}
    if not annotations:
        raise SourceError(f"{place}: wanted files such as 000001.pts in it; unpack the data set again")
    return AnnotatedVideo(folder.name, scenario, path, dict(sorted(annotations.items())))


def refuse_damage(video: AnnotatedVideo, failed: Sequence[tuple[str, str]]) -> None:
    """Raise if frames are missing, because annotations are matched by frame number.

    Args:
        video: the one that is being read.
        failed: damaged places and reasons so far; see `pipeline.source.Source`.
    Raises:
        SourceError: there is a damaged place.
    """
    if failed:
        place, reason = failed[0]
        raise SourceError(
            f"{video.path}: {place} is damaged ({reason}), the annotation no longer fits what follows; unpack the data "
            "set again"
        )


def read_annotation(path: Path) -> Float32:
    """One frame's landmarks, (68, 2) frame pixels, all finite, with a box that is not empty.

    Raises:
        SourceError: the file is broken or has other points.
    """
    points = read_pts(path)
    if points.shape != (POINTS, 2):
        raise SourceError(f"{path}: wanted {POINTS} points, got {len(points)}")
    known = int(np.isfinite(points).all(-1).sum())
    if known != POINTS:
        raise SourceError(f"{path}: wanted {POINTS} points that are numbers, got {known}; restore the file")
    width, height = np.ptp(points, axis=0).tolist()
    if not (width and height):
        raise SourceError(f"{path}: wanted points round a face, got a box of {width:g}x{height:g}; restore the file")
    return points


def digest_annotations(video: AnnotatedVideo) -> str:
    """Fingerprint of a video's annotations: a sha256 of their frame numbers and contents. 2,000 files take 25 ms.

    Raises:
        SourceError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for number, path in video.annotations.items():
        content = read_bytes(path)
        digest.update(f"{number} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def find_extra(folder: Path) -> Path | None:
    """The data set's own extra.zip, or the folder into which it was unpacked; None if there is neither."""
    unpacked = find_home(folder) / EXTRA
    packed = unpacked.with_suffix(".zip")
    return packed if packed.is_file() else unpacked if unpacked.is_dir() else None


def excluded_frames(folder: Path) -> Mapping[str, frozenset[int]]:
    """Frames with inaccurate annotations, from 1, by the data set's extra.zip, or by the published list without it.

    Raises:
        SourceError: extra.zip (or the folder extra) is broken, or contains no such frames.
        BackendError: SciPy, which reads the files, is not installed.
    Source: extra/NUMBER.mat with the variable `error`, as OpenFace's evaluation on 300VW reads it.
    """
    path = find_extra(folder)
    if path is None:
        return published_split().excluded
    if path.is_file():
        excluded = _excluded_in_archive(path)
    else:
        names = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*.mat"))]
        excluded = {_number(path, name): _bad_frames(path / name) for name in names if not _added_by_macos(name)}
    if not excluded:  # for example an archive that was unpacked elsewhere: no frame would be excluded
        raise SourceError(f"{path}: wanted files such as 401.mat in it; unpack the data set again, or remove it")
    log.info("%s: %d frames of %d videos are excluded", path, sum(map(len, excluded.values())), len(excluded))
    return excluded


def _excluded_in_archive(path: Path) -> dict[str, frozenset[int]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".mat") and not _added_by_macos(name)]
            return {_number(path, name): _bad_frames(path / name, archive.read(name)) for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        told = shortened(error) or "it is cut off"
        raise SourceError(f"{path}: cannot be read: {told}; unpack the data set again, or remove it") from error


def _added_by_macos(name: str) -> bool:
    """Whether macOS has added the file: it puts ._401.mat beside 401.mat, in archives below __MACOSX."""
    return name.rpartition("/")[2].startswith("._") or "__MACOSX" in name.split("/")


def _number(archive: Path, name: str) -> str:
    found = re.search(r"(\d{3})\D*\.mat$", name)
    if found is None:
        raise SourceError(f"{archive}: wanted .mat files named after videos in it, got {shortened(name)}")
    return found[1]


def _bad_frames(path: Path, content: bytes | None = None) -> frozenset[int]:
    """The variable `error` of a MATLAB file, which may be given by its content."""
    frames = MatlabFile(path, content).numbers("error")
    strange = frames[~(np.abs(frames) < 2**31)]
    if strange.size:
        raise SourceError(f"{path}: error: wanted numbers of frames, got {strange[0]}")
    return frozenset(frames.ravel().astype(int).tolist())
