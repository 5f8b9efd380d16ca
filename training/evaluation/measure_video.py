"""Errors of a model on one annotated video, frame by frame, saved in a file so that a long evaluation can resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...pipeline.open import Choices, Engines
from ...pipeline.part_file import atomic_write_text
from ...pipeline.sidecar import describe_libraries
from ...pipeline.sources import open_source
from ...tracker import markup, metrics
from ...tracker.errors import MarkupError, SourceError
from ...tracker.metrics import Normaliser
from ...tracker.types import Float32, Float64, Int64
from .files import remove_all
from .locate import Boxes, GivenBoxLocator, models_measured, overlapping, settings_measured
from .video_benchmark import AnnotatedVideo, digest_annotations, read_annotation, refuse_damage

log = logging.getLogger(__name__)

IBUG = "ibug68"
SUBSETS = {68: IBUG, 49: "inner49"}
MEASURES: tuple[tuple[Normaliser, int], ...] = (("io", 68), ("ip", 68), ("edge", 68), ("io", 49), ("ip", 49))
LOST = -1
SCHEMA = 3  # of the files with a video's errors
DECIMALS = 5  # of the errors in them, in per cent


@dataclass(frozen=True, slots=True)
class VideoErrors:
    """The results for the frames of one video.

    Attributes:
        number, scenario: of the video.
        frames: (T,) numbers of the measured frames, from 1.
        tracks: (T,) the track on the annotated face, `LOST` if there is none.
        errors: (normaliser, points) -> (T,) fractions, rounded as in the file, infinity in lost frames.
        unread: number of annotated frames that the video does not have.
        unannotated: number of frames of the video without an annotation.
        origin: everything that the errors depend on.
    """

    number: str
    scenario: int
    frames: Int64
    tracks: Int64
    errors: Mapping[tuple[Normaliser, int], Float64]
    unread: int
    unannotated: int
    origin: Mapping[str, Any]

    def scored(self, excluded: frozenset[int]) -> dict[tuple[Normaliser, int], Float64]:
        """The errors of the frames that are not excluded."""
        kept = ~np.isin(self.frames, list(excluded))
        return {measure: errors[kept] for measure, errors in self.errors.items()}


@dataclass(frozen=True, slots=True)
class VideoMeasuring:
    """How videos are measured.

    Attributes:
        folder: of the files with each video's errors.
        boxes: "gt" aligns every frame in the ground-truth box, "detector" tracks as `facetrack batch` does.
        choices: settings of the tracking.
        resume: take existing errors of the same origin.
        summary: files that are computed from the errors of all videos; removed before the errors of one video change.
    """

    folder: Path
    boxes: Boxes
    choices: Choices
    resume: bool = False
    summary: tuple[Path, ...] = ()

    def file(self, number: str) -> Path:
        """The file with a video's errors."""
        return self.folder / f"{number}.json"

    def keep(self, errors: VideoErrors) -> None:
        """Save a video's errors, replacing existing ones in one step.

        Raises:
            SinkError: they cannot be written.
        """
        remove_all(self.summary)
        write_errors(self.file(errors.number), errors)

    def forget(self, number: str) -> None:
        """Remove a video's errors of another origin, so that they are not taken for those of a video that fails now.

        Raises:
            SinkError: they cannot be removed.
        """
        remove_all([*self.summary, self.file(number)])


def measure_video(
    video: AnnotatedVideo, how: VideoMeasuring, engines: Engines, advanced: Callable[[], None] = lambda: None
) -> VideoErrors:
    """Measure every annotated frame of a video, or take the errors that an earlier run has saved.

    Args:
        video: see `AnnotatedVideo`.
        how: see `VideoMeasuring`.
        engines: opened with `how.choices`.
        advanced: called after each frame of the video.
    Raises:
        SourceError: the video or an annotation is broken, or none of its frames is annotated.
        MarkupError: the model does not have the 68 points of 300VW.
        SinkError: the errors cannot be saved, or those of another origin cannot be removed.
    """
    if engines.aligner.markup.name != IBUG:
        raise MarkupError(
            f"300VW is measured in {IBUG}, the model has {engines.aligner.markup.name}; choose another model"
        )
    origin = _origin(video, how, engines)
    errors = read_errors(how.file(video.number), video, origin) if how.resume else None
    if errors is None:
        try:
            errors = _errors(video, list(_follow(video, how, engines, advanced)), origin)
        except SourceError:
            how.forget(video.number)
            raise
        how.keep(errors)
    _warn_of_another_video(video, errors)
    return errors


def _warn_of_another_video(video: AnnotatedVideo, errors: VideoErrors) -> None:
    """Warn if the numbers of frames and annotations differ: they are matched by frame number."""
    advice = "annotations are matched by frame number: compare the video with the data set's own"
    if errors.unread:
        log.warning("%s: %d annotated frames are not in the video; %s", video.path, errors.unread, advice)
    if errors.unannotated:
        log.warning("%s: frames without an annotation: %d; %s", video.path, errors.unannotated, advice)


def _origin(video: AnnotatedVideo, how: VideoMeasuring, engines: Engines) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "facetrack": __version__,
        "video": {"name": f"{video.number}/{video.path.name}", "bytes": video.path.stat().st_size},
        "annotations": {"files": len(video.annotations), "sha256": digest_annotations(video)},
        "boxes": how.boxes,
        "settings": settings_measured(how.choices, how.boxes),
        "models": models_measured(engines, how.boxes),
        "backend": engines.backend,
        "libraries": describe_libraries(engines),
    }


_Placed = tuple[int, Float32, Float32 | None, int]  # frame from 1, truth (68, 2), found (68, 2), track


def _follow(
    video: AnnotatedVideo, how: VideoMeasuring, engines: Engines, advanced: Callable[[], None]
) -> Iterator[_Placed | None]:
    """Measure each frame of the video; None for a frame without an annotation."""
    with open_source(video.path) as source:
        if how.boxes == "gt":
            yield from _in_given_boxes(video, engines, source, advanced)
            return
        with closing(engines.track(source)) as results:  # as `facetrack batch` does
            for result in results:
                number = result.frame.index + 1
                if number in video.annotations:
                    truth = _truth(video.annotations[number])
                    face = overlapping(result.faces, truth)
                    yield number, truth, None if face is None else face.smoothed, LOST if face is None else face.track
                else:
                    yield None
                refuse_damage(video, source.failed)
                advanced()


def _in_given_boxes(
    video: AnnotatedVideo, engines: Engines, source: Any, advanced: Callable[[], None]
) -> Iterator[_Placed | None]:
    locate = GivenBoxLocator(engines.aligner, markup.load(IBUG))
    for frame in source:
        number = frame.index + 1
        if number in video.annotations:
            truth = _truth(video.annotations[number])
            yield number, truth, locate(frame.bgr, truth).xy, 0
        else:
            yield None
        refuse_damage(video, source.failed)
        advanced()


def _truth(path: Path) -> Float32:
    """Read an annotation (68, 2) and check that errors can be measured against it."""
    truth = read_annotation(path)
    try:
        for kind, _ in MEASURES:
            metrics.normalising_lengths(truth[None], markup.load(IBUG), kind)
    except ValueError as error:
        raise SourceError(f"{path}: cannot serve as ground truth: {error}") from error
    return truth


def _errors(video: AnnotatedVideo, read: list[_Placed | None], origin: Mapping[str, Any]) -> VideoErrors:
    placed = [frame for frame in read if frame is not None]
    if not placed:
        raise SourceError(f"{video.path}: none of its frames is annotated in {len(video.annotations)} files")
    frames, truths, found, tracks = zip(*placed, strict=True)
    truth = np.stack(truths)
    guess = np.stack([np.full((68, 2), np.nan, np.float32) if xy is None else xy for xy in found])
    ibug = markup.load(IBUG)
    errors: dict[tuple[Normaliser, int], Float64] = {}
    for kind, points in MEASURES:
        lengths = metrics.normalising_lengths(truth, ibug, kind)
        subset = SUBSETS[points]
        errors[kind, points] = _as_kept(
            metrics.normalised_errors(ibug.subset(subset, guess), ibug.subset(subset, truth), lengths)
        )
    return VideoErrors(
        video.number,
        video.scenario,
        np.array(frames),
        np.array(tracks),
        errors,
        unread=len(video.annotations) - len(placed),
        unannotated=len(read) - len(placed),
        origin=origin,
    )


def _as_kept(errors: Float64) -> Float64:
    """Fractions as read from a file, so that a resumed run has exactly the figures of an uninterrupted one."""
    return np.array([round(100 * e, DECIMALS) / 100 for e in errors.tolist()], np.float64)


def write_errors(path: Path, errors: VideoErrors) -> None:
    """Write a video's errors, in per cent with `DECIMALS` decimals; null in lost frames.

    Raises:
        SinkError: they cannot be written.
    """
    content = {
        "origin": errors.origin,
        "unread": errors.unread,
        "unannotated": errors.unannotated,
        "frames": errors.frames.tolist(),
        "tracks": errors.tracks.tolist(),
        "errors_percent": {
            f"{kind} {points}": [round(100 * e, DECIMALS) if np.isfinite(e) else None for e in of.tolist()]
            for (kind, points), of in errors.errors.items()
        },
    }
    atomic_write_text(path, json.dumps(content, separators=(",", ":")) + "\n")


def read_errors(path: Path, video: AnnotatedVideo, origin: Mapping[str, Any]) -> VideoErrors | None:
    """Read what `write_errors` wrote; None if the file is missing, unreadable or of another origin."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["origin"] != json.loads(json.dumps(origin)):
            log.warning(
                "%s: measured again: it was made by another version, with other settings or from other files", path
            )
            return None
        errors = {
            (kind, points): np.array(
                [np.inf if e is None else e / 100 for e in content["errors_percent"][f"{kind} {points}"]], np.float64
            )
            for kind, points in MEASURES
        }
        frames, tracks = (np.array(content[name]).astype(np.int64, casting="safe") for name in ("frames", "tracks"))
        counts = {name: int(content[name]) for name in ("unread", "unannotated")}
        kept = VideoErrors(video.number, video.scenario, frames, tracks, errors, **counts, origin=origin)
        _check_plausible(kept)
        return kept
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        log.warning("%s: measured again: it cannot be read", path)
        return None


def _check_plausible(kept: VideoErrors) -> None:
    """Check that frames rise from 1, each with a track and errors, and that errors and counts are 0 or more."""
    frames, errors = kept.frames, [*kept.errors.values()]
    if {numbers.shape for numbers in (frames, kept.tracks, *errors)} != {(frames.size,)}:
        raise ValueError("wanted a track and errors for each frame")
    if not (np.diff(frames, prepend=0) > 0).all() or not (np.array(errors) >= 0).all():
        raise ValueError("wanted frames that rise from 1, and errors of 0 or more")
    if kept.unread < 0 or kept.unannotated < 0:
        raise ValueError("wanted counts of 0 or more")
