"""`facetrack evaluate 300vw`: measure every test video, in one process or several, and write the protocols' table."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...pipeline.batch import Failure
from ...pipeline.open import Choices, Engines, OpenEngines
from ...pipeline.part_file import check_folder_writable, make_folder, refuse_existing
from ...pipeline.progress import Reporter, Task
from ...pipeline.workers import run_jobs
from ...tracker import metrics
from ...tracker.errors import SourceError
from .error_curves import require_matplotlib
from .files import remove_all
from .locate import Boxes
from .measure_video import VideoErrors, VideoMeasuring, measure_video
from .video_benchmark import AnnotatedVideo, Found, excluded_frames, find_extra
from .video_report import Pooled, VideoEvaluation, VideoReportFiles, as_table, write_video_report

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """What to evaluate, and where to write the results.

    Attributes:
        folder: 300VW in its published layout.
        out: folder of the results; created if it is missing.
        boxes: "gt" takes ground-truth boxes, "detector" tracks as `facetrack batch` does.
        keep_bad: score frames with inaccurate annotations as well.
        workers: processes, each with its own networks.
        resume: take the errors of videos that an earlier run has finished.
        overwrite: replace existing results.
    """

    folder: Path
    out: Path
    boxes: Boxes = "gt"
    keep_bad: bool = False
    workers: int = 1
    resume: bool = False
    overwrite: bool = False

    @property
    def files(self) -> VideoReportFiles:
        """The results."""
        return VideoReportFiles(self.out, f"300vw-{self.boxes}")


def check_videos(settings: VideoSettings) -> None:
    """Check before the work that the results can be written.

    Raises:
        SinkError: there are results that must not be replaced, or the folder cannot be written.
        BackendError: a library that the report needs is missing.
    """
    require_matplotlib()
    if not (settings.overwrite or settings.resume):
        refuse_existing(settings.files.all(), "add --overwrite or --resume, or choose another --out")
    for folder in (settings.out, settings.files.frames):
        check_folder_writable(folder)


def evaluate_videos(
    settings: VideoSettings, found: Found, open_engines: OpenEngines, choices: Choices, reporter: Reporter
) -> tuple[str, list[Failure]]:
    """Measure what `list_test_videos` found, write the results, return the table and the videos that failed.

    The errors of each video are saved as soon as it is finished. The summary is written at the end. An earlier summary
    is removed before the first errors change, so that an interruption never leaves it beside errors of other networks.

    Raises:
        SourceError: no video could be measured.
        MarkupError: the model has other points.
        SinkError: the results cannot be written.
    """
    began_s = time.perf_counter()
    videos, missing = found
    excluded = {} if settings.keep_bad else excluded_frames(settings.folder)
    extra = find_extra(settings.folder)
    excluded_by = None if settings.keep_bad else "the published list" if extra is None else extra.name
    make_folder(settings.files.frames)
    for failure in missing:
        task = Task(failure.what, f"300VW {Path(failure.what).name}")
        reporter.ended(task, f"failed: {failure.reason}", "failed")
    files = settings.files
    how = VideoMeasuring(files.frames, settings.boxes, choices, settings.resume, files.of_all_videos)
    outcomes = run_jobs(videos, _Measuring(open_engines, how, excluded), reporter, settings.workers)
    measured = [outcome for outcome in outcomes if isinstance(outcome, VideoErrors)]
    failures = missing + [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if not measured:
        raise SourceError(f"no video could be measured; the first: {failures[0]}")
    others = _others(files.frames, {errors.number for errors in measured})
    if settings.overwrite:
        remove_all(others)
    elif others:
        log.warning(
            "%s: errors of videos that are not in the table, from an earlier run: %s; remove them, or leave them out "
            "when you compute from this folder",
            files.frames,
            ", ".join(file.name for file in others),
        )
    wall_s = time.perf_counter() - began_s
    evaluation = VideoEvaluation(tuple(measured), excluded, excluded_by, tuple(failures), settings.boxes, wall_s)
    write_video_report(evaluation, files)
    return as_table(evaluation), failures


def _others(folder: Path, measured: set[str]) -> list[Path]:
    """The files with errors of other videos from an earlier run, which are not in this run's table."""
    return sorted(file for file in folder.glob("[0-9][0-9][0-9].json") if file.stem not in measured)


@dataclass(frozen=True, slots=True)
class _Measuring:
    """The work of an evaluation, see `workers.Work`."""

    open_engines: OpenEngines
    how: VideoMeasuring
    excluded: Mapping[str, frozenset[int]]

    @contextmanager
    def open(self) -> Iterator[Callable[[AnnotatedVideo, Reporter], VideoErrors | Failure]]:
        with self.open_engines(self.how.choices) as engines:
            yield partial(self._measure, engines)

    def lost(self, video: AnnotatedVideo, reason: str, reporter: Reporter) -> Failure:
        self.how.forget(video.number)
        return self._failed(video, reason, reporter)

    def _failed(self, video: AnnotatedVideo, reason: str, reporter: Reporter) -> Failure:
        task = _task(video)
        reporter.ended(task, f"failed: {reason}", "failed")
        return Failure(task.spec, reason)

    def _measure(self, engines: Engines, video: AnnotatedVideo, reporter: Reporter) -> VideoErrors | Failure:
        task = _task(video)
        reporter.began(task, len(video.annotations))
        try:
            errors = measure_video(video, self.how, engines, partial(reporter.advanced, task))
        except SourceError as error:
            return self._failed(video, str(error), reporter)
        reporter.ended(task, _line(errors.scored(self.excluded.get(video.number, frozenset()))))
        return errors


def _task(video: AnnotatedVideo) -> Task:
    return Task(str(video.path), f"300VW {video.number}")


def _line(scored: Pooled) -> str:
    errors = scored["io", 68]
    if not len(errors):
        return "no frame counts: the annotation of all of them is known to be inaccurate"
    mean, lost = metrics.mean_of_found(errors)
    return f"{len(errors)} frames, NME io {100 * mean:.2f} %, {100 * lost:.1f} % lost"
