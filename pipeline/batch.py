"""Many recordings, one after the other or side by side: each to its own table, none of them stopping the others."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from ..tracker.errors import ConfigError, SinkError, SourceError, told
from ..tracker.types import Result
from .camera_file import refuse_other_aspect
from .csv_sink import CsvSink, TableOptions
from .hindsight import with_pictures
from .image_source import printable
from .open import Choices, Engines, OpenEngines
from .progress import Reporter, Task
from .record import Record
from .sidecar import (
    Origin,
    Outcome,
    claimed_video,
    models_that_run,
    recorded_failures,
    whose_table,
    why_not_finished,
    write_sidecar,
)
from .sinks import exist_already, make_folder
from .sources import IMAGE_SUFFIXES, Source, open_source, pictures_among, without_credentials
from .video_sink import VideoSink
from .workers import do_all

log = logging.getLogger(__name__)

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
    """What could not be read or written, and why, in one line."""

    what: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.reason.startswith(self.what) else f"{self.what}: {self.reason}"


def plan(
    inputs: Sequence[str], outputs: Outputs, shard: tuple[int, int] = (1, 1), *, keep_folders: bool = False
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
    Raises:
        ConfigError: two inputs would write the same files, or one would be written over.
        SinkError: outputs of this share exist that must not be overwritten.
    """
    found: dict[tuple[str, str], Task] = {}
    for spec in inputs:
        for task in _expand(spec, keep_folders=keep_folders):
            found.setdefault((where(task.spec), task.name), task)
    tasks = list(found.values())
    names: dict[str, Task] = {}
    for task in tasks:
        other = names.setdefault(task.name.casefold(), task)
        if other is not task:
            raise ConfigError(
                f"{other.spec} and {task.spec} would both be written to {outputs.table(task)}; rename one of "
                "them, give them different --out folders, or let matches of a glob keep theirs (--keep-folders)"
            )
        if Path(task.spec).is_file() and Path(task.spec).resolve() in {f.resolve() for f in outputs.files(task)}:
            raise ConfigError(f"{task.spec}: would be written over by its own output; choose another --out folder")
    if shard != (1, 1):
        tasks = sorted(tasks, key=lambda task: task.spec)[shard[0] - 1 :: shard[1]]
    existing = [file for task in tasks for file in outputs.files(task) if file.exists()]
    if existing and outputs.existing == "refuse":
        raise SinkError(f"{exist_already(existing)}; add --overwrite or --resume, or choose another --out")
    return tasks


def _expand(spec: str, *, keep_folders: bool) -> list[Task]:
    path = Path(without_credentials(spec) if "://" in spec else spec)
    if spec.isdecimal() and not path.exists():
        raise ConfigError(f"{spec}: a camera never ends; `facetrack live --camera {spec} --csv FILE` records from it")
    if "://" in spec or path.exists() or not glob.has_magic(spec):
        name = path.resolve().name if path.is_dir() else path.stem
        return [Task(spec, name or "input")]
    matches = sorted(glob.glob(spec, recursive=True))  # noqa: PTH207 - pathlib refuses absolute patterns
    root = _fixed_part(path)
    if all(Path(match).suffix.lower() in IMAGE_SUFFIXES for match in matches):
        return [Task(spec, root.resolve().name)]
    stems = [Path(match) if Path(match).is_dir() else Path(match).with_suffix("") for match in matches]
    names = [stem.relative_to(root).as_posix() if keep_folders else stem.name for stem in stems]
    return [Task(match, name) for match, name in zip(matches, names, strict=True)]


def _fixed_part(path: Path) -> Path:
    """The part of a glob without wildcards."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))


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
    return [failure for failures in do_all(tasks, work, reporter, workers) for failure in failures]


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
            make_folder(self.outputs.folder)
            yield lambda task, reporter: _track(task, self.outputs, engines, reporter, alone=self.alone)

    def lost(self, task: Task, reason: str, reporter: Reporter) -> list[Failure]:
        reporter.ended(task, f"failed: {reason}")
        return [Failure(task.spec, reason)]


def _track(task: Task, outputs: Outputs, engines: Engines, reporter: Reporter, *, alone: bool) -> list[Failure]:
    """Do one task, whatever it meets."""
    try:
        return _Run(task, outputs, engines, reporter).track()
    except KeyboardInterrupt:
        reporter.ended(task, f"interrupted; the rows so far are in {outputs.table(task)}.part")
        raise
    except Exception as error:
        log.debug("%s failed", task.spec, exc_info=True)
        reason = told(error)
        if not alone:  # a single failure is the end, which the caller tells
            reporter.ended(task, f"failed: {reason}")
        return [Failure(task.spec, reason)]


class _Run:
    """One task from its input to its files."""

    def __init__(self, task: Task, outputs: Outputs, engines: Engines, reporter: Reporter) -> None:
        self.task, self.outputs, self.engines, self.reporter = task, outputs, engines, reporter
        self.choices, self.record = engines.choices, Record()
        settings = asdict(self.choices) | outputs.columns.settings() | {"video": outputs.video}
        self.origin = Origin(identify_input(task), settings, models_that_run(engines))
        self.input_path = where(task.spec)
        self.table: CsvSink | None = None
        self.video: VideoSink | None = None

    def track(self) -> list[Failure]:
        """Read, track, write; the answer is what had to be left out.

        Raises:
            FacetrackError: nothing could be read, or something could not be written.
        """
        sidecar = self.outputs.sidecar(self.task)
        if sidecar.is_dir():
            raise SinkError(f"{sidecar}: is a folder; remove it, or choose another --out")
        if self.outputs.existing == "resume" and self._is_finished():
            return self._left_out(recorded_failures(sidecar))
        began_s = time.monotonic()
        with open_source(self.task.spec, decoder=self.choices.decoder) as source:
            if source.live:
                raise SourceError(f"{self.task.spec}: is live and never ends; use `facetrack live --camera ... --csv`")
            self.reporter.began(self.task, source.frames)
            error = self._write(source)
            wall_s = time.monotonic() - began_s
            outcome = Outcome(told(error) if error else "", source.failed, 0, wall_s, self.engines.backend)
        sinks = {"table_bytes": self.table, "video_bytes": self.video}
        sizes = {name: sink.size_bytes for name, sink in sinks.items() if sink is not None}
        write_sidecar(sidecar, self.origin, self.record.tally, outcome, input_path=self.input_path, sizes=sizes)
        self.reporter.ended(self.task, self._line(outcome))
        return self._failures(source, outcome)

    def _is_finished(self) -> bool:
        missing = [file.name for file in self.outputs.files(self.task) if not file.exists()]
        if len(missing) == len(self.outputs.files(self.task)):
            return False
        table, sidecar = self.outputs.table(self.task), self.outputs.sidecar(self.task)
        other = whose_table(sidecar, self.origin, self.input_path) if table.exists() else ""
        if other:
            raise SinkError(f"{table}: is the table of {other}; choose another --out or --keep-folders")
        files = {"table": table} | ({"video": self.outputs.video_file(self.task)} if self.outputs.video else {})
        reason = f"there is no {missing[0]}" if missing else why_not_finished(sidecar, self.origin, files)
        if reason:
            log.warning("%s: done again: %s", table, reason)
            return False
        self.reporter.ended(self.task, "finished before")
        return True

    def _write(self, source: Source) -> SourceError | None:
        """Track into the sinks; the answer is why the source broke off after at least one frame."""
        broken: SourceError | None = None
        with self.record as record:
            self._open_sinks(source)
            try:
                with closing(self._results(source)) as results:
                    for result in results:
                        record.write(result)
                        self.reporter.advanced(self.task)
            except SourceError as error:
                if not record.tally.frames:
                    raise
                broken = error
            outdated = self._outdated_video()
            self.outputs.sidecar(self.task).unlink(missing_ok=True)  # it would vouch for the table that follows
            record.finish()
            if outdated is not None:
                outdated.unlink(missing_ok=True)
        return broken

    def _outdated_video(self) -> Path | None:
        """The annotated video of the table that is there, if this run makes another table and no video."""
        video = self.outputs.video_file(self.task)
        if self.outputs.video or where(self.task.spec) == where(str(video)):
            return None
        return video if claimed_video(self.outputs.sidecar(self.task), video) else None

    def _open_sinks(self, source: Source) -> None:
        refuse_other_aspect(self.outputs.columns.intrinsics, source)
        overwrite = self.outputs.existing != "refuse"
        make_folder(self.outputs.table(self.task).parent)
        points, images = self.engines.aligner.markup.points, source.kind == "images"
        columns = self.outputs.columns.for_faces(points, images=images)
        self.table = CsvSink(self.outputs.table(self.task), columns, overwrite=overwrite)
        try:  # the table is opened first and gets its name last, so that its lock is the video's too
            if self.outputs.video:
                file = self.outputs.video_file(self.task)
                self.video = VideoSink(file, rate=source.rate, overwrite=overwrite)
                self.record.add(self.video)
        finally:
            self.record.add(self.table)

    def _results(self, source: Source) -> Generator[Result, None, None]:
        """What the engines find; where it comes in hindsight, pictures for a video are read a second time."""
        with closing(self.engines.track(source)) as results:
            if not self.outputs.video or self.choices.smooth != "rts" or source.kind == "images":
                yield from results
                return
            with open_source(self.task.spec, decoder=self.choices.decoder) as again:
                yield from with_pictures(results, again)

    def _line(self, outcome: Outcome) -> str:
        tally = self.record.tally
        rate = tally.frames / max(outcome.wall_s, 1e-9)
        line = f"{tally.frames} frames, {tally.with_face} with a face, {rate:.0f} frames/s"
        return f"{line} -> {self.outputs.table(self.task)}"

    def _failures(self, source: Source, outcome: Outcome) -> list[Failure]:
        if outcome.error:
            return [Failure(self.task.spec, outcome.error)]
        if source.kind == "images":
            return self._left_out(outcome.failed)
        if outcome.failed:
            first, count = ": ".join(outcome.failed[0]), len(outcome.failed)
            log.warning("%s: damaged in %d place%s, at first %s", self.task.spec, count, "s" * (count > 1), first)
        return []

    def _left_out(self, pictures: list[tuple[str, str]]) -> list[Failure]:
        return [Failure(f"{self.task.spec}: {name}", reason) for name, reason in pictures]


def where(spec: str) -> str:
    """The one path of an input by whatever path it is named, or its URL without credentials."""
    return without_credentials(spec) if "://" in spec else printable(os.path.realpath(spec))


def identify_input(task: Task) -> dict[str, Any]:
    """What tells whether an input is still the same: its name, the number and bytes of its files, and a digest.

    The digest, 16 hexadecimal digits of a SHA-256, is of the files' names, sizes and times of their last change. The
    names are those below the folder, or the part of a glob without wildcards: the same wherever it is named from. Of a
    URL it is of the URL, without credentials: nothing tells whether what lies there has changed.
    """
    if "://" in task.spec:
        url = without_credentials(task.spec)
        return {"name": Path(url).name, "files": 0, "bytes": 0, "digest": _digest(url)}
    path = Path(task.spec)
    if path.is_dir():
        root, files = path, pictures_among(path.iterdir())
        path = path.resolve() if path.name in ("", "..") else path
    elif path.exists():
        root, files = path.parent, [path]
    else:
        matches = (Path(match) for match in glob.glob(task.spec, recursive=True))  # noqa: PTH207
        root, files = _fixed_part(path), pictures_among(matches)
    stats = [(printable(file.relative_to(root).as_posix()), file.stat()) for file in sorted(files) if file.is_file()]
    listing = "\n".join(f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}" for name, stat in stats)
    return {
        "name": printable(path.name or task.spec),
        "files": len(stats),
        "bytes": sum(stat.st_size for _, stat in stats),
        "digest": _digest(listing),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(printable(text).encode()).hexdigest()[:16]
