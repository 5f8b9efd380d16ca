"""Track many recordings, one after the other or in parallel: each to its own table, and none stops the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ..tracker.errors import ConfigError, SinkError, SourceError, describe_error
from ..tracker.types import Result
from .camera_file import refuse_other_aspect
from .csv_sink import CsvSink
from .hindsight import with_pictures
from .image_source import ImageSource, holds_pictures
from .open import Choices, Engines, OpenEngines
from .part_file import make_folder, part_of
from .progress import Reporter, Task
from .record import Record
from .resume import PreviousRun
from .sidecar import (
    Origin,
    Outcome,
    describe_libraries,
    describe_models,
    describe_source,
    identify_input,
    load_origin,
    save_origin,
    where,
    write_sidecar,
)
from .source import Source, counted, is_pipe, is_same_file, is_url, without_credentials
from .sources import open_source
from .tasks import Outputs
from .video_sink import VideoSink
from .workers import run_jobs

log = logging.getLogger(__name__)

ROUND_RATE = 10  # frames per second; lower rates are printed with two digits


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be read or written, and why; as text, one line without passwords.

    Attributes:
        what: as the user named it.
        reason: why it failed.
        in_part: the rest of the input was tracked.
    """

    what: str
    reason: str
    in_part: bool = False

    def __str__(self) -> str:
        what = without_credentials(self.what)
        return self.reason if self.reason.startswith(what) else f"{what}: {self.reason}"

    @property
    def bare_reason(self) -> str:
        """The reason without the name, for lines that begin with it."""
        return self.reason.removeprefix(f"{without_credentials(self.what)}: ")


def track_all(tasks: Sequence[Task], outputs: Outputs, engines: Engines, reporter: Reporter) -> list[Failure]:
    """Do all tasks with the choices that the engines were opened with; return what failed.

    Raises:
        SinkError: the output folder cannot be made.
        KeyboardInterrupt: the rows so far are in NAME.csv.part.
    """
    make_folder(outputs.folder)
    alone = len(tasks) == 1
    return [failure for task in tasks for failure in _track(task, outputs, engines, reporter, alone=alone)]


def open_and_track_all(
    tasks: Sequence[Task],
    outputs: Outputs,
    open_engines: OpenEngines,
    choices: Choices,
    reporter: Reporter,
    workers: int = 1,
) -> list[Failure]:
    """Do all tasks, several at a time; return what failed, in the order of the tasks.

    Args:
        tasks, outputs, reporter: as for `track_all`.
        open_engines: is called once in each process.
        choices: those to open the engines with.
        workers: number of processes; what is written does not depend on it.
    Raises:
        CardError, BackendError: of the first process that opens the engines.
        SinkError: the output folder cannot be made.
        KeyboardInterrupt: the rows so far are in NAME.csv.part.
    """
    work = _Tracking(outputs, open_engines, choices, alone=len(tasks) == 1)
    return [failure for failures in run_jobs(tasks, work, reporter, workers) for failure in failures]


@dataclass(frozen=True, slots=True)
class _Tracking:
    """The work of a batch, see `workers.Work`."""

    outputs: Outputs
    open_engines: OpenEngines
    choices: Choices
    alone: bool

    @contextmanager
    def open(self) -> Iterator[Callable[[Task, Reporter], list[Failure]]]:
        with self.open_engines(self.choices) as engines:
            engines.aligner.require_face_score()
            make_folder(self.outputs.folder)
            yield lambda task, reporter: _track(task, self.outputs, engines, reporter, alone=self.alone)

    def lost(self, task: Task, reason: str, reporter: Reporter) -> list[Failure]:
        reporter.ended(task, f"failed: {reason}", "failed")
        return [Failure(task.spec, reason)]


def _track(task: Task, outputs: Outputs, engines: Engines, reporter: Reporter, *, alone: bool) -> list[Failure]:
    """Do one task; any error becomes a failure."""
    try:
        return _Run(task, outputs, engines, reporter).track()
    except Exception as error:
        log.debug("%s failed", task.label, exc_info=True)
        failure = Failure(task.spec, describe_error(error))
        if not alone:  # the caller reports the failure of a single task
            reporter.ended(task, f"failed: {failure.bare_reason}", "failed")
        return [failure]


class _Run:
    """One task from its input to its files."""

    def __init__(self, task: Task, outputs: Outputs, engines: Engines, reporter: Reporter) -> None:
        self.task, self.outputs, self.engines, self.reporter = task, outputs, engines, reporter
        self.choices, self.record = engines.choices, Record()
        opening = {"decoder": task.decoder, "frame_rate": task.frame_rate}
        settings = asdict(self.choices) | opening | outputs.columns.settings() | {"video": outputs.video}
        self.origin = Origin(identify_input(task.spec), settings, describe_models(engines), describe_libraries(engines))
        self.input_path = where(task.spec)
        self.table: CsvSink | None = None
        self.video: VideoSink | None = None
        self.earlier_frames = 0  # of this table, from an interrupted run
        self.rerun_reason = ""  # why the existing table is not the wanted one

    def track(self) -> list[Failure]:
        """Read, track, write; return what had to be left out.

        Raises:
            FacetrackError: nothing could be read, or something could not be written.
            KeyboardInterrupt: after what is kept has been reported.
        """
        try:
            return self._track()
        except KeyboardInterrupt:
            self.reporter.ended(self.task, self._what_is_kept(), "interrupted")
            raise

    def _track(self) -> list[Failure]:
        sidecar = self.outputs.sidecar(self.task)
        self._check_sidecar_path(sidecar)
        if self.outputs.existing == "resume":
            earlier = self._earlier(self.outputs.video_file(self.task) if self.outputs.video else None)
            if self._is_finished(earlier):
                return failures_in(self.task, earlier.failures)
        began_s = time.perf_counter()
        with self._open_source() as source:
            if source.live:
                raise SourceError(f"{self.task.label}: is live and never ends; use `facetrack live --camera ... --csv`")
            self.reporter.began(self.task, source.frames)
            error = self._write(source)
            wall_s = time.perf_counter() - began_s
            reason, backend = describe_error(error) if error else "", self.engines.backend
            outcome = Outcome(reason, source.failed, 0, wall_s, backend, describe_source(source))
        sinks = {"table_bytes": self.table, "video_bytes": self.video}
        sizes = {name: sink.size_bytes for name, sink in sinks.items() if sink is not None}
        write_sidecar(sidecar, self.origin, self.record.tally, outcome, input_path=self.input_path, sizes=sizes)
        self.reporter.ended(self.task, self._line(outcome))
        if outcome.error:
            return [Failure(self.task.spec, outcome.error, in_part=True)]
        return failures_in(self.task, outcome.failed)

    @staticmethod
    def _check_sidecar_path(sidecar: Path) -> None:
        """Check that the sidecar, which is written last and has the longest name, can be written.

        Raises:
            SinkError: a folder has its name, or the name is too long.
        """
        try:
            for place in (sidecar, part_of(sidecar)):
                if place.is_dir():
                    raise SinkError(f"{place}: is a folder; remove it, or choose another --out")
        except OSError as error:
            advice = "give the video a shorter name, or choose another --out"
            raise SinkError(f"{part_of(sidecar)}: cannot be written: {error.strerror}; {advice}") from error

    def _open_source(self) -> Source:
        return open_source(self.task.spec, decoder=self.task.decoder, frame_rate=self.task.frame_rate or None)

    def _what_is_kept(self) -> str:
        """A message about what an interruption has left."""
        part = part_of(self.outputs.table(self.task))
        if not part.exists():
            return "interrupted"
        mine = self.table is not None and self.table.counts.frames
        return f"interrupted; the rows so far are in {part}" if mine else f"interrupted; {part} is from an earlier run"

    def _earlier(self, video: Path | None) -> PreviousRun:
        return PreviousRun.read(self.outputs.table(self.task), self.outputs.sidecar(self.task), video)

    def _is_finished(self, earlier: PreviousRun) -> bool:
        missing = [file.name for file in self.outputs.files(self.task) if not file.exists()]
        if len(missing) == len(self.outputs.files(self.task)):
            return False
        table = earlier.table
        for file in earlier.foreign_files:
            raise SinkError(
                f"{file}: was not written by facetrack, so --resume does not replace it; move it, choose another "
                "--out, or replace it with --overwrite"
            )
        if table.exists() and is_pipe(self.task.spec):
            raise SinkError(
                f"{table}: exists already, and --resume cannot tell whether a pipe is the same as before; choose "
                "another --out, or replace the table with --overwrite"
            )
        other = earlier.other_input(self.origin, self.input_path) if table.exists() else ""
        if other:
            gone = not is_url(other) and not Path(other).exists()
            moved = "; if this is the same input, moved and changed since, use --overwrite" if gone else ""
            raise SinkError(f"{table}: is the table of {other}; choose another --out or --keep-folders{moved}")
        self.rerun_reason = f"{missing[0]} is missing" if missing else earlier.why_not_finished(self.origin)
        if self.rerun_reason:
            return False
        self.reporter.ended(self.task, "already finished")
        return True

    def _write(self, source: Source) -> SourceError | None:
        """Track into the sinks; return the error if the source broke off after at least one frame."""
        broken: SourceError | None = None
        misfit: ConfigError | None = None
        with self.record as record:
            self._open_sinks(source)
            self._resume_rows(source)
            self._log_rerun()
            stale = self._stale_video()
            sidecar = self.outputs.sidecar(self.task)
            noted = source.kind != "images" or self.earlier_frames > 0
            try:
                with closing(self._results(source)) as results:
                    for result in results:
                        misfit = self._misfit(result, source)
                        if misfit is not None:
                            source.failed.append((result.frame.name, describe_error(misfit)))
                            continue
                        if not noted:  # it is of other rows, which these replace
                            part_of(sidecar).unlink(missing_ok=True)
                        record.write(result)
                        if not noted:
                            save_origin(sidecar, self.origin)
                            noted = True
                        if stale is not None:
                            stale.unlink(missing_ok=True)
                        self.reporter.advanced(self.task)
            except SourceError as error:
                if not record.tally.frames:
                    raise
                broken = error
            if misfit is not None and not record.tally.frames:
                raise misfit  # no picture fits
            outdated = self._outdated_video()
            sidecar.unlink(missing_ok=True)  # or it would vouch for the new table
            record.finish()
            if outdated is not None:
                outdated.unlink(missing_ok=True)
        return broken

    def _resume_rows(self, source: Source) -> None:
        """With --resume, keep the rows of the pictures that an interrupted run of the same origin has done."""
        if self.outputs.existing != "resume" or self.outputs.video or self.table is None:
            return
        if not isinstance(source, ImageSource) or source.kind != "images" or not source.names_differ:
            return
        noted = load_origin(self.outputs.sidecar(self.task))
        if noted is None:
            return
        differs = self.origin.what_differs(noted)
        self.rerun_reason = self.rerun_reason or differs
        if not differs:
            source.done = frozenset(self.table.resume_rows())
            self.record.tally.counts, self.earlier_frames = self.table.counts, len(source.done)
            self.reporter.advanced(self.task, self.earlier_frames)

    def _log_rerun(self) -> None:
        table = self.outputs.table(self.task)
        if self.earlier_frames:
            log.info("%s: continues after %s", table, counted(self.earlier_frames, "picture"))
        elif self.rerun_reason:
            log.warning("%s: processed again: %s", table, self.rerun_reason)

    def _stale_video(self) -> Path | None:
        """The video of an interrupted run whose rows the first new row replaces, if this run makes no video."""
        inherits = self.table is not None and self.table.inherits
        return part_of(self.outputs.video_file(self.task)) if inherits and not self.outputs.video else None

    def _outdated_video(self) -> Path | None:
        """The annotated video of the existing table, if this run makes a new table and no video."""
        video = self.outputs.video_file(self.task)
        if self.outputs.video or is_same_file(self.task.spec, video):
            return None
        return video if self._earlier(video).claims_video else None

    def _open_sinks(self, source: Source) -> None:
        refuse_other_aspect(self.outputs.columns.intrinsics, source)
        if self._needs_pictures_again(source) and source.kind == "stream" and not is_url(self.task.spec):
            raise ConfigError(
                f"{self.task.label}: a pipe cannot be read twice, as --smooth rts does for the annotated video; leave "
                "--video out, choose --smooth kalman, or save the video to a file first"
            )
        overwrite = self.outputs.existing != "refuse"
        make_folder(self.outputs.table(self.task).parent)
        points, images = self.engines.aligner.markup.points, source.kind == "images"
        columns = self.outputs.columns.for_faces(points, images=images)
        self.table = CsvSink(self.outputs.table(self.task), columns, overwrite=overwrite)
        try:  # the table is opened first and renamed last, so that its lock protects the video too
            if self.outputs.video:
                file = self.outputs.video_file(self.task)
                self.video = VideoSink(file, rate=source.rate, size=source.size, overwrite=overwrite)
                self.record.add(self.video)
        finally:
            self.record.add_table(self.table)

    def _results(self, source: Source) -> Generator[Result, None, None]:
        """The engines' results; if they are smoothed in hindsight, the pictures for a video are read a second time."""
        with closing(self.engines.track(source)) as results:
            if not self._needs_pictures_again(source):
                yield from results
                return
            with self._open_source() as again:
                yield from with_pictures(results, again)

    def _needs_pictures_again(self, source: Source) -> bool:
        return self.outputs.video and self.choices.smooth == "rts" and source.kind != "images"

    def _misfit(self, result: Result, source: Source) -> ConfigError | None:
        """Why a picture cannot be from the calibrated camera; a video's frames all have the size of the first."""
        intrinsics = self.outputs.columns.intrinsics
        if intrinsics is None or source.kind != "images":
            return None
        try:
            intrinsics.scaled(result.frame.size)
        except ConfigError as error:
            return error
        return None

    def _line(self, outcome: Outcome) -> str:
        tally = self.record.tally
        rate = (tally.frames - self.earlier_frames) / max(outcome.wall_s, 1e-9)
        speed = f"{rate:.0f}" if rate >= ROUND_RATE else f"{rate:.2g}"
        line = f"{counted(tally.frames, 'frame')}, {tally.counts.frames_with_face} with a face, {speed} frames/s"
        return f"{line} -> {self.outputs.table(self.task)}"


def failures_in(task: Task, failed: Sequence[tuple[str, str]]) -> list[Failure]:
    """The pictures that were left out; for a video, none: its flaws are logged, and the rest was read.

    Args:
        task: what was read.
        failed: that of its source.
    """
    if holds_pictures(task.spec):
        return [Failure(f"{task.spec}: {name}", reason, in_part=True) for name, reason in failed]
    if failed:
        places, first = counted(len(failed), "place"), ": ".join(failed[0])
        last = "; last: " + ": ".join(failed[-1]) if len(failed) > 1 else ""
        log.warning("%s: problems in %s, first: %s%s", task.label, places, first, last)
    return []
