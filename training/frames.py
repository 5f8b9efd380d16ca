"""Extract frames of videos as training pictures: of 300VW with annotations, of any other videos without.

    python -m facetrack.training.frames FOLDER OUT [--layout 300vw|videos] [--every 10] [--first 1]

makes a folder below OUT for each video, with every tenth frame as NNNNNN.jpg, counted from 1. Of an annotated frame it
writes only the part round the face, with NNNNNN.pts beside it: the layout "pts" of a corpus. `--layout 300vw` takes the
50 training videos of 300VW without the frames whose annotation is known to be inaccurate. `--layout videos` takes every
video below FOLDER; `python -m facetrack.training.relabel` then finds the faces in the frames. If a video cannot be used
the command prints its name and the reason, and exits with code 3. Called again, it resumes with the videos that are not
done.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from ..pipeline.image_source import VIDEO_SUFFIXES
from ..pipeline.part_file import atomic_write_text, make_folder
from ..pipeline.sources import open_source
from ..pipeline.talk import SOME_FAILED
from ..tracker.errors import ConfigError, SinkError, SourceError
from ..tracker.geometry import bounding_box, box_centre_side
from ..tracker.types import Float32, Frame, UInt8
from .command_line import errors_in_one_line
from .datasets.places import paths_below
from .datasets.point_files import write_jpeg, write_pts
from .evaluation.video_benchmark import (
    AnnotatedVideo,
    excluded_frames,
    list_training_videos,
    read_annotation,
    refuse_damage,
)

LAYOUTS = ("300vw", "videos")
SHOWN = 3.0  # sides of the face's box: a training crop shows at most 2.5, and a little more if turned and shifted
ABOUT = "frames.json"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which frames to take of every video.

    Attributes:
        layout: one of `LAYOUTS`.
        every: step from one frame to the next.
        first: number of the first frame, counted from 1.
    """

    layout: str = "300vw"
    every: int = 10
    first: int = 1

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ConfigError(f"layout: wanted one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.every < 1 or self.first < 1:
            raise ConfigError(f"frames: wanted every and first of at least 1, got {self.every} and {self.first}")

    def has(self, number: int) -> bool:
        """Whether frame `number`, counted from 1, is selected."""
        return number >= self.first and (number - self.first) % self.every == 0


@dataclass(frozen=True, slots=True)
class Footage:
    """One video, the name of its picture folder, and the numbers, from 1, of the frames to leave out."""

    name: str
    video: AnnotatedVideo
    excluded: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Taken:
    """The result of one video.

    Attributes:
        name: of its folder.
        pictures, annotated: number of pictures written, and of those with points.
        before: whether an earlier call has done it.
        reason: why it was left out; "" if it was not.
    """

    name: str
    pictures: int = 0
    annotated: int = 0
    before: bool = False
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"left out: {self.reason}"
        return f"{self.name}: " + (
            "already done" if self.before else f"{self.pictures} frames, {self.annotated} labelled"
        )


def list_footage(folder: Path, layout: str) -> tuple[list[Footage], list[Taken]]:
    """The videos of a folder: the training part of 300VW, or every video at any depth, also in linked folders.

    Returns:
        The videos, and those of 300VW that are left out because the video file or its annotation is missing.
    Raises:
        SourceError: no video can be used.
    """
    if layout == "300vw":
        excluded = excluded_frames(folder)
        videos, failures = list_training_videos(folder)
        footage = [Footage(video.number, video, excluded.get(video.number, frozenset())) for video in videos]
        return footage, [Taken(Path(failure.what).name, reason=failure.reason) for failure in failures]
    found = (path for path in paths_below(folder) if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    paths = sorted(path for path in found if path.name[0] != ".")  # macOS puts ._1.mp4 beside 1.mp4
    if not paths:
        raise SourceError(f"{folder}: no videos found; wanted a folder with {', '.join(sorted(VIDEO_SUFFIXES))}")
    names = [path.relative_to(folder).as_posix() for path in paths]
    nothing: Mapping[int, Path] = {}
    return [Footage(name, AnnotatedVideo(name, 0, path, nothing)) for name, path in zip(names, paths, strict=True)], []


def take_frames(footage: Iterable[Footage], out: Path, selection: Selection) -> Iterator[Taken]:
    """Write the pictures, video by video; a broken video is left out completely.

    Args:
        footage: from `list_footage`.
        out: gets a folder for each video, complete or not at all.
        selection: the same as in earlier calls with this folder.
    Yields:
        The result of each video.
    Raises:
        SinkError: the folder cannot be written, or holds another selection.
    """
    _claim(out, selection)
    for shot in footage:
        if (out / shot.name).is_dir():
            yield Taken(shot.name, before=True)
            continue
        try:
            yield _take(shot, out / shot.name, selection)
        except SourceError as error:
            yield Taken(shot.name, reason=str(error))


def _claim(out: Path, selection: Selection) -> None:
    """Record a folder's selection of frames, and refuse to mix it with another one."""
    about, wanted = out / ABOUT, asdict(selection)
    make_folder(out)
    try:
        found = json.loads(about.read_text(encoding="utf-8")) if about.exists() else wanted
    except (OSError, ValueError) as error:
        raise SinkError(f"{about}: cannot be read: {error}; choose another folder") from error
    if found != wanted:
        raise SinkError(f"{out}: holds another selection of frames: {found}, wanted {wanted}; choose another folder")
    atomic_write_text(about, json.dumps(wanted) + "\n")


def _take(shot: Footage, folder: Path, selection: Selection) -> Taken:
    part = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a call that was interrupted
        part.mkdir(parents=True)
        annotated = [_write(part, frame, shot.video) for frame in _selected(shot, selection)]
        part.rename(folder)
    except OSError as error:
        raise SinkError(
            f"{part}: cannot be written: {error.strerror or error}; make room, or choose another folder"
        ) from error
    except SourceError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    written = [points for points in annotated if points is not None]
    return Taken(shot.name, len(written), sum(written))


def _selected(shot: Footage, selection: Selection) -> Iterator[Frame]:
    """The selected frames of a video.

    Raises:
        SourceError: the video is broken, or it has annotations and a frame in its middle is missing: annotations are
            matched by frame number.
    """
    with open_source(shot.video.path) as source:
        for frame in source:
            number = frame.index + 1
            if selection.has(number) and number not in shot.excluded:
                yield frame
            if shot.video.annotations:
                refuse_damage(shot.video, source.failed)


def _write(folder: Path, frame: Frame, video: AnnotatedVideo) -> bool | None:
    """Write a frame and return whether it has points; None if by its annotation the face is outside the picture."""
    number = frame.index + 1
    stem, bgr = folder / f"{number:06d}", frame.bgr
    if number in video.annotations:
        piece = cut_out(bgr, read_annotation(video.annotations[number]))
        if piece is None:
            return None
        bgr, points = piece
        write_pts(stem.with_suffix(".pts"), points)
    write_jpeg(stem.with_suffix(".jpg"), bgr)
    return number in video.annotations


def cut_out(bgr: UInt8, points: Float32) -> tuple[UInt8, Float32] | None:
    """The part of a picture round a face, cut at pixel boundaries so that nothing is resampled.

    Args:
        bgr: (H, W, 3) uint8.
        points: (N, 2) pixels; some may lie outside.
    Returns:
        The part, and the points in it; None if the whole face is outside.
    """
    height, width = bgr.shape[:2]
    box = bounding_box(points)
    if not (np.isfinite(box).all() and box[2] > 0 and box[3] > 0 and box[0] < width - 1 and box[1] < height - 1):
        return None
    (x, y), side = box_centre_side(box)
    reach = SHOWN / 2 * side
    left, top = max(math.floor(x - reach), 0), max(math.floor(y - reach), 0)
    part = bgr[top : math.ceil(y + reach) + 1, left : math.ceil(x + reach) + 1]
    return part, points - np.array([left, top], np.float32)


def main() -> int:
    """Run the command; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0])
    parser.add_argument("--every", type=int, default=Selection().every)
    parser.add_argument("--first", type=int, default=Selection().first)
    options = parser.parse_args()
    failed = False
    with errors_in_one_line("frames"):
        selection = Selection(options.layout, options.every, options.first)
        footage, left_out = list_footage(options.folder, selection.layout)
        for taken in chain(left_out, take_frames(footage, options.out, selection)):
            print(taken, file=sys.stderr if taken.reason else sys.stdout, flush=True)
            failed |= bool(taken.reason)
    return SOME_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
