"""Track one camera, stream or recording as it happens: into a window, files and a stream of JSON lines at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ..tracker.errors import ConfigError, SourceError
from ..tracker.types import Result
from .camera_file import refuse_other_aspect
from .camera_mode import CameraMode
from .csv_sink import CsvSink, TableOptions, is_table
from .line_writer import ReaderGone
from .live_source import Retry
from .open import Engines
from .osc_sink import OscSink
from .part_file import refuse_existing
from .record import Record, Tally
from .sidecar import (
    Origin,
    Outcome,
    describe_libraries,
    describe_models,
    describe_source,
    identify_input,
    when_started,
    write_sidecar,
)
from .sinks import JsonLinesSink
from .source import Decoder, Kind, Source, counted, is_same_file, is_url, resolve_spec, without_credentials
from .sources import open_source
from .video_sink import VideoSink
from .window import LiveWindow

log = logging.getLogger(__name__)

TELL_EVERY_S = 1.0  # least time between two log lines about dropped frames
MANY_DROPPED, OVER_S = 0.05, 60.0  # a larger share in this time is worth a warning


@dataclass(frozen=True, slots=True)
class LiveOutputs:
    """Where live results go.

    Attributes:
        csv: a table of schema 1, with its sidecar beside it.
        record: an mp4 with the faces drawn.
        jsonl: a line for each frame.
        osc: host and port that each frame is sent to.
        window: show the newest frame.
        columns: what the table holds; all outputs use its intrinsics.
        overwrite: replace existing files.
    """

    csv: Path | None = None
    record: Path | None = None
    jsonl: TextIO | None = None
    osc: tuple[str, int] | None = None
    window: bool = True
    columns: TableOptions = field(default_factory=TableOptions)
    overwrite: bool = False

    @property
    def sidecar(self) -> Path | None:
        """The path of the sidecar, beside the table."""
        return self.csv and self.csv.with_suffix(".json")

    def files(self) -> list[Path]:
        """All files of a run."""
        return [file for file in (self.csv, self.sidecar, self.record) if file is not None]

    def refuse_collisions(self, spec: str) -> None:
        """Check that no output would overwrite another one, the source, or a file that must stay.

        Raises:
            ConfigError: two outputs are the same file, one is the source, or the sidecar belongs to another table.
            SinkError: one exists and must not be overwritten.
        """
        files = self.files()
        places = [file.resolve() for file in files]
        if len(set(places)) < len(places):
            names = ", ".join(str(file) for file in files)
            raise ConfigError(f"wanted different files for the table, its .json and the recording, got {names}")
        if any(is_same_file(spec, file) for file in files):
            raise ConfigError(f"{spec}: would be overwritten by its own output; choose another name")
        if self.csv is not None and self.sidecar is not None and self.sidecar.exists():
            others = [file for file in self.csv.parent.glob("*") if _shares_sidecar(file, self.csv)]
            if others:
                raise ConfigError(f"{self.sidecar}: belongs to {others[0]}; give the new table another name")
        if not self.overwrite:
            refuse_existing(files, "choose another name or add --overwrite")


class Drops:
    """Logs dropped frames: how many, at level INFO, and one warning if they are many."""

    def __init__(self, now_s: float) -> None:
        self._told_s, self._told, self._warned = now_s, 0, False
        self._since_s, self._tracked, self._dropped = now_s, 0, 0

    def see(self, tracked: int, dropped: int, now_s: float) -> None:
        """Update the numbers of frames tracked and dropped so far."""
        if dropped > self._told and now_s - self._told_s >= TELL_EVERY_S:
            self._told_s, self._told = now_s, dropped
            log.info("%d frames dropped so far", dropped)
        if now_s - self._since_s < OVER_S or self._warned:
            return
        lost, all_frames = dropped - self._dropped, dropped - self._dropped + tracked - self._tracked
        self._since_s, self._tracked, self._dropped = now_s, tracked, dropped
        if lost > MANY_DROPPED * all_frames:
            self._warned = True
            log.warning(
                "%d of %d frames in a minute were dropped: they come faster than they can be tracked", lost, all_frames
            )


class LiveRun:
    """Tracks a source into all outputs until it ends, the window is closed, nobody reads the lines or Ctrl-C comes.

    Each of these is a regular end: what was recorded until then is completed. The same applies when a camera is lost.
    """

    def __init__(
        self,
        engines: Engines,
        outputs: LiveOutputs,
        camera_mode: CameraMode | None = None,
        decoder: Decoder = "cpu",
        retry: Retry | None = None,
    ) -> None:
        self.engines, self.outputs, self.camera_mode = engines, outputs, camera_mode
        self.decoder, self.retry = decoder, retry
        self._pipeline = engines.pipeline(engines.choices)
        self._window: LiveWindow | None = None
        self._lines: JsonLinesSink | None = None
        self._started = ""
        self._tally: Tally | None = None

    @property
    def summary(self) -> str:
        """A message about how it went; "" if the first frame failed, or nobody reads the JSON lines any more."""
        if self._tally is None:
            return ""
        return f"{counted(self._tally.frames, 'frame')} tracked, {self._pipeline.dropped} dropped"

    def track(self, spec: str) -> None:
        """Track a source until the run ends.

        Raises:
            SourceError: the source cannot be opened, or was lost.
            SinkError: an output cannot be written or exists, or there is no display.
            ConfigError: the pictures have another aspect than the intrinsics, or outputs would overwrite something.
            KeyboardInterrupt: Ctrl-C, or a signal that the command line treats alike.
        """
        spec = resolve_spec(spec)
        self.outputs.refuse_collisions(spec)
        began_s = time.perf_counter()
        ended_by: SourceError | ReaderGone | KeyboardInterrupt | None = None
        opening = open_source(spec, realtime=True, retry=self.retry, decoder=self.decoder, camera_mode=self.camera_mode)
        with opening as source, Record() as record:
            identity = identify_live(spec, source.kind)
            self._open_sinks(source, record)
            try:
                self._pump(source, record)
            except (SourceError, ReaderGone, KeyboardInterrupt) as error:
                ended_by = error
            if ended_by is None or isinstance(ended_by, SourceError):
                interrupt = self._drained()
                ended_by = ended_by or interrupt
            _warn_failed(source)
            if record.tally.frames:
                if self.outputs.sidecar is not None:  # of an earlier run; it would vouch for the new table
                    self.outputs.sidecar.unlink(missing_ok=True)
                record.finish()
                reason = str(ended_by) if isinstance(ended_by, SourceError) else ""
                wall_s, dropped = time.perf_counter() - began_s, self._pipeline.dropped
                backend, described = self.engines.backend, describe_source(source)
                outcome = Outcome(reason, source.failed, dropped, wall_s, backend, described, self._started)
                self._write_sidecar(identity, record.tally, outcome)
        self._tally = None if isinstance(ended_by, ReaderGone) else record.tally
        if self._tally is not None and ended_by is not None:
            raise ended_by

    def _open_sinks(self, source: Source, record: Record) -> None:
        outputs = self.outputs
        intrinsics = outputs.columns.intrinsics
        refuse_other_aspect(intrinsics, source)
        if outputs.osc is not None:  # first: it waits for nobody, and an avatar should not wait for a file
            record.add(OscSink(*outputs.osc, intrinsics))
        if outputs.csv is not None:
            columns = outputs.columns.for_faces(self.engines.aligner.markup.points, images=source.kind == "images")
            record.add_table(CsvSink(outputs.csv, columns, overwrite=outputs.overwrite, flush_rows=True))
        if outputs.record is not None:
            record.add(VideoSink(outputs.record, rate=source.rate, size=source.size, overwrite=outputs.overwrite))
        if outputs.jsonl is not None:
            self._lines = JsonLinesSink(outputs.jsonl, intrinsics)
            record.add(self._lines)
        if outputs.window:
            self._window = LiveWindow(f"facetrack: {source.name}")
            record.add(self._window)

    def _pump(self, source: Source, record: Record) -> None:
        drops = Drops(time.monotonic())
        with closing(self._results(source)) as results:
            for result in results:
                if source.live and not self._started:
                    self._started = when_started(result.frame)
                record.write(result)
                self._tally = record.tally
                drops.see(record.tally.frames, self._pipeline.dropped, time.monotonic())
                if self._window is not None and self._window.closed:
                    return

    def _drained(self) -> KeyboardInterrupt | None:
        """Wait until all lines are read, as their reader may pause; return the interrupt that ended the wait."""
        try:
            if self._lines is not None:
                self._lines.drain()
        except KeyboardInterrupt as error:
            return error
        return None

    def _results(self, source: Source) -> Generator[Result, None, None]:
        """The engines' results; pictures are tracked independently, as in a batch."""
        if source.kind == "images":
            return self.engines.track(source)
        return self._pipeline.run(source, live=source.live, idle=self._answer_window)

    def _answer_window(self) -> bool:
        """Handle the window's events while no frame comes; False once the user has closed it."""
        if self._window is None:
            return True
        self._window.pump()
        return not self._window.closed

    def _write_sidecar(self, identity: dict[str, Any], tally: Tally, outcome: Outcome) -> None:
        if self.outputs.sidecar is None:
            return
        settings = asdict(self.engines.choices) | {"decoder": self.decoder} | self.outputs.columns.settings()
        origin = Origin(identity, settings, describe_models(self.engines), describe_libraries(self.engines))
        write_sidecar(self.outputs.sidecar, origin, tally, outcome)


def _shares_sidecar(file: Path, table: Path) -> bool:
    """Whether a file is another table whose .json would have the same name, as with rec.left and rec.right."""
    if file.stem != table.stem or file.name == table.name or file.suffix == ".json" or not file.is_file():
        return False
    return file.stat().st_size > 0 and is_table(file)


def _warn_failed(source: Source) -> None:
    """Warn about what could not be read, wholly or in part."""
    if source.failed:
        (place, reason), count = source.failed[0], len(source.failed)
        log.warning("%s: problems in %s, first: %s: %s", source.name, counted(count, "place"), place, reason)


def identify_live(spec: str, kind: Kind) -> dict[str, Any]:
    """Identify a source: files and URLs as in a batch, except that URLs are in full; a camera by its name."""
    if is_url(spec):
        return identify_input(spec) | {"name": without_credentials(spec)}
    return identify_input(spec) if kind in ("video", "images") else {"name": spec}
