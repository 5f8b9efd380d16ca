"""Many recordings, one after the other or side by side: each to its own table, none of them stopping the others."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from glob import has_magic
from pathlib import Path
from typing import Literal

from ..tracker.errors import ConfigError, SinkError, SourceError, told
from ..tracker.types import Result
from .camera_file import refuse_other_aspect
from .csv_sink import CsvSink, TableOptions
from .hindsight import with_pictures
from .image_source import IMAGE_SUFFIXES, fixed_part, holds_pictures, matches_of, names_several_pictures
from .open import Choices, Engines, OpenEngines
from .progress import Reporter, Task
from .record import Record
from .sidecar import (
    Origin,
    Outcome,
    claimed_video,
    describe_source,
    identify_input,
    models_that_run,
    recorded_failures,
    where,
    whose_table,
    why_not_finished,
    write_sidecar,
    written_by_others,
)
from .sinks import exist_already, make_folder, part_of
from .source import Source, counted, is_pipe, is_same_file, is_url, meant_by, without_credentials
from .sources import open_source
from .video_sink import VideoSink
from .workers import run_jobs

log = logging.getLogger(__name__)

ROUND_RATE = 10  # frames a second; slower ones are told with two digits

Existing = Literal["refuse", "overwrite", "resume"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is written, and where.

    Attributes:
        folder: made if it is not there.
        video: also NAME.mp4, with the faces drawn.
        columns: what the tables hold.
        existing: what to do about tables that are there already.
    """

    folder: Path
    video: bool = False
    columns: TableOptions = field(default_factory=TableOptions)
    existing: Existing = "refuse"

    def table(self, task: Task) -> Path:
        """NAME.csv."""
        return self.folder / f"{task.name}.csv"

    def sidecar(self, task: Task) -> Path:
        """NAME.json."""
        return self.folder / f"{task.name}.json"

    def video_file(self, task: Task) -> Path:
        """NAME.mp4."""
        return self.folder / f"{task.name}.mp4"

    def files(self, task: Task) -> list[Path]:
        """All files of a task."""
        return [self.table(task), self.sidecar(task)] + [self.video_file(task)] * self.video


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be read or written, as it was named, and why, in one line that holds no password.

    Attributes:
        what, reason: as told.
        in_part: the rest of the input has its rows.
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


def plan(
    inputs: Sequence[str],
    outputs: Outputs,
    shard: tuple[int, int] = (1, 1),
    *,
    keep_folders: bool = False,
    frame_rate: float = 0.0,
) -> list[Task]:
    """Turn what a user named into tasks, and find out beforehand what could not end well.

    A folder, or a glob that matches pictures alone, is one task; any other glob is a task for each match. What is named
    twice is done once.

    Args:
        inputs: files, folders, globs, URLs.
        outputs: what is to be written.
        shard: (i, n) leaves the i-th, from 1, of n shares, which together are everything; each takes every n-th of the
            tasks in the order of their names.
        keep_folders: matches of a glob keep their place below its part without wildcards.
        frame_rate: see `Choices`.
    Raises:
        ConfigError: two inputs would write the same files, or one would be written over, is a camera or is no name;
            or there is a frame rate and nothing that it could be of.
        SinkError: outputs of this share exist that must not be overwritten.
    """
    found: dict[tuple[str, str], Task] = {}
    for spec in inputs:
        for task in _expand(meant_by(spec), keep_folders=keep_folders):
            found.setdefault((where(task.spec), task.name), task)
    tasks = list(found.values())
    if frame_rate:
        _refuse_lone_pictures(tasks)
    names: dict[str, Task] = {}
    for task in tasks:
        other = names.setdefault(task.name.casefold(), task)
        if other is not task:
            advice = "rename one of them, or leave one to a batch with another --out"
            if not keep_folders and _lie_apart(other, task):
                advice += ", or let matches of a glob keep their folders (--keep-folders)"
            raise ConfigError(
                f"{other.label} and {task.label} would both be written to {outputs.table(task)}; {advice}"
            )
        if any(is_same_file(task.spec, file) for file in outputs.files(task)):
            raise ConfigError(f"{task.spec}: would be written over by its own output; choose another --out folder")
    if shard != (1, 1):
        tasks = sorted(tasks, key=lambda task: task.spec)[shard[0] - 1 :: shard[1]]
    existing = [file for task in tasks for file in outputs.files(task) if file.exists()]
    if existing and outputs.existing == "refuse":
        raise SinkError(f"{exist_already(existing)}; add --overwrite or --resume, or choose another --out")
    return tasks


def _refuse_lone_pictures(tasks: Sequence[Task]) -> None:
    """See that a frame rate has pictures that it is of.

    Raises:
        ConfigError: a picture is named by itself, as by a shell that has expanded a glob; or there is none.
    """
    if alone := next((t for t in tasks if holds_pictures(t.spec) and not names_several_pictures(t.spec)), None):
        raise ConfigError(
            f"--frame-rate: {alone.spec} is a single picture; name the folder of the frames, or put the glob in quotes"
        )
    if not any(names_several_pictures(task.spec) for task in tasks):
        raise ConfigError("--frame-rate is for folders and globs of pictures, and none was given: leave it out")


def _lie_apart(one: Task, other: Task) -> bool:
    """Whether two inputs are files in different folders."""
    if is_url(one.spec) or is_url(other.spec):
        return False
    return Path(where(one.spec)).parent != Path(where(other.spec)).parent


def _expand(spec: str, *, keep_folders: bool) -> list[Task]:
    if not spec:
        raise ConfigError("input: wanted a file, a folder, a glob or a URL, got an empty name; is a variable not set?")
    if is_url(spec):
        return [Task(spec, _name_of_url(without_credentials(spec)))]
    path = Path(spec)
    if spec.isdecimal() and not path.exists():
        raise ConfigError(f"{spec}: a camera never ends; `facetrack live --camera {spec} --csv FILE` records from it")
    if path.exists() or not has_magic(spec):
        name = path.resolve().name if path.is_dir() else path.stem
        return [Task(spec, name or "input")]
    matches = matches_of(spec)
    root = fixed_part(path)
    if all(match.suffix.lower() in IMAGE_SUFFIXES for match in matches):
        return [Task(spec, root.resolve().name or "input")]
    stems = [match if match.is_dir() else match.with_suffix("") for match in matches]
    names = [stem.relative_to(root).as_posix() if keep_folders else stem.name for stem in stems]
    return [Task(str(match), name) for match, name in zip(matches, names, strict=True)]


def _name_of_url(url: str) -> str:
    """The stem of its file; where it names none, what is behind the last slash tells it from others.

    Signs that no file of Windows may have in its name become "_"; of what stands before a colon it would make a file.
    """
    file = Path(re.split("[?#]", url, maxsplit=1)[0])
    return re.sub(r'[<>:"\\|?*]', "_", (file if file.suffix else Path(url)).stem) or "input"


def track_all(tasks: Sequence[Task], outputs: Outputs, engines: Engines, reporter: Reporter) -> list[Failure]:
    """Do all tasks, by the choices that the engines were opened with; the answer is what failed.

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
    """Do all tasks, several at a time; the answer is what failed, in the order of the tasks.

    Args:
        tasks, outputs, reporter: as for `track_all`.
        open_engines: is called once in each process.
        choices: the engines are opened with.
        workers: processes; what is written does not depend on it.
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
            engines.aligner.demand_face_score()
            make_folder(self.outputs.folder)
            yield lambda task, reporter: _track(task, self.outputs, engines, reporter, alone=self.alone)

    def lost(self, task: Task, reason: str, reporter: Reporter) -> list[Failure]:
        reporter.ended(task, f"failed: {reason}")
        return [Failure(task.spec, reason)]


def _track(task: Task, outputs: Outputs, engines: Engines, reporter: Reporter, *, alone: bool) -> list[Failure]:
    """Do one task, whatever it meets."""
    try:
        return _Run(task, outputs, engines, reporter).track()
    except Exception as error:
        log.debug("%s failed", task.label, exc_info=True)
        failure = Failure(task.spec, told(error))
        if not alone:  # a single failure is the end, which the caller tells
            reporter.ended(task, f"failed: {failure.bare_reason}")
        return [failure]


class _Run:
    """One task from its input to its files."""

    def __init__(self, task: Task, outputs: Outputs, engines: Engines, reporter: Reporter) -> None:
        self.task, self.outputs, self.engines, self.reporter = task, outputs, engines, reporter
        self.choices, self.record = engines.choices, Record()
        settings = asdict(self.choices) | outputs.columns.settings() | {"video": outputs.video}
        self.origin = Origin(identify_input(task.spec), settings, models_that_run(engines))
        self.input_path = where(task.spec)
        self.table: CsvSink | None = None
        self.video: VideoSink | None = None

    def track(self) -> list[Failure]:
        """Read, track, write; the answer is what had to be left out.

        Raises:
            FacetrackError: nothing could be read, or something could not be written.
            KeyboardInterrupt: once it is told what is kept.
        """
        try:
            return self._track()
        except KeyboardInterrupt:
            self.reporter.ended(self.task, self._what_is_kept())
            raise

    def _track(self) -> list[Failure]:
        sidecar = self.outputs.sidecar(self.task)
        if sidecar.is_dir():
            raise SinkError(f"{sidecar}: is a folder; remove it, or choose another --out")
        if self.outputs.existing == "resume" and self._is_finished():
            return self._failures(recorded_failures(sidecar))
        began_s = time.perf_counter()
        with self._open_source() as source:
            if source.live:
                raise SourceError(f"{self.task.label}: is live and never ends; use `facetrack live --camera ... --csv`")
            self.reporter.began(self.task, source.frames)
            error = self._write(source)
            wall_s = time.perf_counter() - began_s
            reason, backend = told(error) if error else "", self.engines.backend
            outcome = Outcome(reason, source.failed, 0, wall_s, backend, describe_source(source))
        sinks = {"table_bytes": self.table, "video_bytes": self.video}
        sizes = {name: sink.size_bytes for name, sink in sinks.items() if sink is not None}
        write_sidecar(sidecar, self.origin, self.record.tally, outcome, input_path=self.input_path, sizes=sizes)
        self.reporter.ended(self.task, self._line(outcome))
        if outcome.error:
            return [Failure(self.task.spec, outcome.error, in_part=True)]
        return self._failures(outcome.failed)

    def _open_source(self) -> Source:
        rate = self.choices.frame_rate if names_several_pictures(self.task.spec) else 0
        return open_source(self.task.spec, decoder=self.choices.decoder, frame_rate=rate or None)

    def _what_is_kept(self) -> str:
        """What an interruption has left, in words."""
        part = part_of(self.outputs.table(self.task))
        if not part.exists():
            return "interrupted"
        mine = self.table is not None and self.table.counts.frames
        return f"interrupted; the rows so far are in {part}" if mine else f"interrupted; {part} is an earlier run's"

    def _is_finished(self) -> bool:
        missing = [file.name for file in self.outputs.files(self.task) if not file.exists()]
        if len(missing) == len(self.outputs.files(self.task)):
            return False
        table, sidecar = self.outputs.table(self.task), self.outputs.sidecar(self.task)
        video = self.outputs.video_file(self.task) if self.outputs.video else None
        for file in written_by_others(table, sidecar, video):
            raise SinkError(
                f"{file}: was not written by facetrack, and --resume replaces nothing else; move it, choose another "
                "--out, or have it replaced with --overwrite"
            )
        if table.exists() and is_pipe(self.task.spec):
            raise SinkError(
                f"{table}: is there, and of a pipe nobody can tell whether it is the same as before; choose another "
                "--out, or have it done with --overwrite"
            )
        origin = replace(self.origin, input_before=identify_input(self.task.spec, tick_ns=1))
        other = whose_table(sidecar, origin, self.input_path) if table.exists() else ""
        if other:
            gone = not is_url(other) and not Path(other).exists()
            moved = "; if this is what was there, changed since, have it done with --overwrite" if gone else ""
            raise SinkError(f"{table}: is the table of {other}; choose another --out or --keep-folders{moved}")
        files = {"table": table} | ({"video": video} if video is not None else {})
        reason = f"there is no {missing[0]}" if missing else why_not_finished(sidecar, origin, files)
        if reason:
            log.warning("%s: done again: %s", table, reason)
            return False
        self.reporter.ended(self.task, "finished before")
        return True

    def _write(self, source: Source) -> SourceError | None:
        """Track into the sinks; the answer is why the source broke off after at least one frame."""
        broken: SourceError | None = None
        misfit: ConfigError | None = None
        with self.record as record:
            self._open_sinks(source)
            stale = self._stale_video()
            try:
                with closing(self._results(source)) as results:
                    for result in results:
                        misfit = self._misfit(result, source)
                        if misfit is not None:
                            source.failed.append((result.frame.name, told(misfit)))
                            continue
                        record.write(result)
                        if stale is not None:
                            stale.unlink(missing_ok=True)
                        self.reporter.advanced(self.task)
            except SourceError as error:
                if not record.tally.frames:
                    raise
                broken = error
            if misfit is not None and not record.tally.frames:
                raise misfit  # as of all the others
            outdated = self._outdated_video()
            self.outputs.sidecar(self.task).unlink(missing_ok=True)  # it would vouch for the table that follows
            record.finish()
            if outdated is not None:
                outdated.unlink(missing_ok=True)
        return broken

    def _stale_video(self) -> Path | None:
        """The annotated video of the interrupted run whose rows the first new one replaces, if this run makes none."""
        inherits = self.table is not None and self.table.inherits
        return part_of(self.outputs.video_file(self.task)) if inherits and not self.outputs.video else None

    def _outdated_video(self) -> Path | None:
        """The annotated video of the table that is there, if this run makes another table and no video."""
        video = self.outputs.video_file(self.task)
        if self.outputs.video or is_same_file(self.task.spec, video):
            return None
        return video if claimed_video(self.outputs.sidecar(self.task), video) else None

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
        try:  # the table is opened first and gets its name last, so that its lock is the video's too
            if self.outputs.video:
                file = self.outputs.video_file(self.task)
                self.video = VideoSink(file, rate=source.rate, size=source.size, overwrite=overwrite)
                self.record.add(self.video)
        finally:
            self.record.add_table(self.table)

    def _results(self, source: Source) -> Generator[Result, None, None]:
        """What the engines find; where it comes in hindsight, pictures for a video are read a second time."""
        with closing(self.engines.track(source)) as results:
            if not self._needs_pictures_again(source):
                yield from results
                return
            with self._open_source() as again:
                yield from with_pictures(results, again)

    def _needs_pictures_again(self, source: Source) -> bool:
        return self.outputs.video and self.choices.smooth == "rts" and source.kind != "images"

    def _misfit(self, result: Result, source: Source) -> ConfigError | None:
        """Why a picture cannot be of the calibrated camera; a video's frames are all of the size of the first."""
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
        rate = tally.frames / max(outcome.wall_s, 1e-9)
        speed = f"{rate:.0f}" if rate >= ROUND_RATE else f"{rate:.2g}"
        line = f"{counted(tally.frames, 'frame')}, {tally.counts.with_face} with a face, {speed} frames/s"
        return f"{line} -> {self.outputs.table(self.task)}"

    def _failures(self, failed: list[tuple[str, str]]) -> list[Failure]:
        """Of pictures those without rows; of a video none: its flaws are told, and all else has its rows."""
        if holds_pictures(self.task.spec):
            return [Failure(f"{self.task.spec}: {name}", reason, in_part=True) for name, reason in failed]
        if failed:
            places = counted(len(failed), "place")
            log.warning("%s: flawed in %s, at first %s", self.task.label, places, ": ".join(failed[0]))
        return []
