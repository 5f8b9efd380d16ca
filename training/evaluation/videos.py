"""`facetrack evaluate 300vw`: every test video, on one process or several, and the protocols' table."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

from ...pipeline.batch import Failure, Reporter, Task
from ...pipeline.open import Choices, Engines, OpenEngines
from ...tracker import metrics
from ...tracker.errors import BackendError, SourceError
from .error_curves import require_matplotlib
from .files import make_folder, refuse_existing
from .locate import Boxes
from .measure_video import VideoErrors, VideoMeasuring, measure_video
from .video_benchmark import AnnotatedVideo, excluded_frames, list_test_videos
from .video_report import VideoEvaluation, VideoReportFiles, as_table, write_video_report


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """What is evaluated, and where the results go.

    Attributes:
        folder: 300VW in its published layout.
        out: folder of the results; made if it is not there.
        boxes: "gt" takes the annotation's own boxes, "detector" tracks as `facetrack batch` does.
        keep_bad: score frames with inaccurate annotations as well.
        workers: processes, each with its own networks.
        resume: take the errors of videos that a former run has finished.
        overwrite: replace results that are there.
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
    """Find out before the work what could not end well.

    Raises:
        SinkError: results are there that must not be replaced.
        BackendError: a library that the report needs is missing.
    """
    require_matplotlib()
    if not (settings.overwrite or settings.resume):
        refuse_existing(settings.files.all(), "add --overwrite or --resume, or choose another --out")


def evaluate_videos(
    settings: VideoSettings, open_engines: OpenEngines, choices: Choices, reporter: Reporter
) -> tuple[str, list[Failure]]:
    """Measure all test videos, write the results, give the table and what could not be measured.

    The errors of each video are kept as soon as it is finished; the summary is written at the end.

    Raises:
        SourceError: the folder is not in the layout of 300VW, or no video could be measured.
        MarkupError: the model has other points.
        SinkError: the results cannot be written.
    """
    began_s = time.monotonic()
    videos = list_test_videos(settings.folder)
    excluded = {} if settings.keep_bad else excluded_frames(settings.folder)
    make_folder(settings.files.frames)
    how = VideoMeasuring(settings.files.frames, settings.boxes, choices, settings.resume)
    if settings.workers == 1 or len(videos) == 1:
        outcomes = dict(_one_by_one(videos, how, open_engines, reporter))
    else:
        outcomes = dict(_side_by_side(videos, how, open_engines, reporter, settings.workers))
    measured = [outcome for outcome in (outcomes[video.number] for video in videos) if isinstance(outcome, VideoErrors)]
    failures = [outcome for outcome in (outcomes[video.number] for video in videos) if isinstance(outcome, Failure)]
    if not measured:
        raise SourceError(f"no video could be measured; the first: {failures[0]}")
    wall_s = time.monotonic() - began_s
    evaluation = VideoEvaluation(tuple(measured), excluded, tuple(failures), settings.boxes, wall_s)
    write_video_report(evaluation, settings.files)
    return as_table(evaluation), failures


_Outcome = tuple[str, VideoErrors | Failure]


def _one_by_one(
    videos: Sequence[AnnotatedVideo], how: VideoMeasuring, open_engines: OpenEngines, reporter: Reporter
) -> Iterator[_Outcome]:
    with open_engines(how.choices) as engines:
        for place, video in enumerate(videos, start=1):
            task = Task(str(video.path), f"300VW {video.number}, video {place} of {len(videos)}")
            reporter.began(task, len(video.annotations))
            try:
                errors = measure_video(video, how, engines, reporter.advanced)
            except SourceError as error:
                yield video.number, _failed(task, error, reporter)
            else:
                reporter.ended(task, _line(errors))
                yield video.number, errors


def _line(errors: VideoErrors) -> str:
    mean, lost = metrics.mean_of_found(errors.errors["io", 68])
    return f"{len(errors.frames)} frames, NME io {100 * mean:.2f} %, {100 * lost:.1f} % lost"


def _failed(task: Task, error: Exception, reporter: Reporter) -> Failure:
    reporter.ended(task, f"failed: {error}")
    return Failure(task.spec, str(error))


def _side_by_side(
    videos: Sequence[AnnotatedVideo],
    how: VideoMeasuring,
    open_engines: OpenEngines,
    reporter: Reporter,
    workers: int,
) -> Iterator[_Outcome]:
    """The same with several processes; the reporter hears of whole videos."""
    context = multiprocessing.get_context("spawn")  # threads and networks do not survive a fork
    stop = context.Event()
    whole = Task("300VW", "300VW, videos")
    reporter.began(whole, len(videos))
    with ProcessPoolExecutor(
        min(workers, len(videos)), context, _open_in_worker, (open_engines, how.choices, stop)
    ) as pool:
        waiting = {pool.submit(_measure_in_worker, video, how): video for video in videos}
        try:
            for future in as_completed(waiting):
                video = waiting[future]
                try:
                    outcome: VideoErrors | Failure = future.result()
                except SourceError as error:
                    outcome = _failed(Task(str(video.path), video.number), error, reporter)
                reporter.advanced()
                yield video.number, outcome
        except BrokenProcessPool as error:
            raise BackendError(
                "a worker process died, perhaps for want of memory; give fewer --workers, and --resume what is finished"
            ) from error
        except BaseException:
            stop.set()  # the workers give up their videos at the next frame
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    reporter.ended(whole, f"{len(videos)} videos measured by {workers} processes")


class _Stopped(Exception):  # noqa: N818 - no error: the parent asked for it
    """The parent was interrupted."""


@dataclass(slots=True)
class _Worker:
    """What a worker process holds while it lives."""

    engines: Engines
    stop: Event
    opened: ExitStack  # closes the engines when the process ends


_worker: _Worker | None = None


def _open_in_worker(open_engines: OpenEngines, choices: Choices, stop: Event) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer, which then sets `stop`
    opened = ExitStack()
    _worker = _Worker(opened.enter_context(open_engines(choices)), stop, opened)


def _measure_in_worker(video: AnnotatedVideo, how: VideoMeasuring) -> VideoErrors:
    worker = _worker
    assert worker is not None  # the pool's initialiser has run

    def go_on() -> None:
        if worker.stop.is_set():
            raise _Stopped

    return measure_video(video, how, worker.engines, go_on)
