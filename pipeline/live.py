"""One camera, stream or recording as it happens: into a window, files and a stream of JSON lines at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from ..tracker.errors import SourceError
from ..tracker.types import Result
from .csv_sink import CsvColumns, CsvSink
from .open import Choices, Engines
from .sidecar import Origin, Outcome, Tally, identify_models, write_sidecar
from .sinks import JsonLinesSink, Sink
from .sources import Source, open_source
from .video_sink import VideoSink
from .window import LiveWindow

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LiveOutputs:
    """Where live results go.

    Attributes:
        csv: a table of schema 1, with its sidecar beside it.
        record: an mp4 with the faces drawn.
        jsonl: a line for each frame.
        window: show the newest frame.
        raw, landmark_confidence: more columns, see `CsvColumns`.
        overwrite: replace existing files.
    """

    csv: Path | None = None
    record: Path | None = None
    jsonl: TextIO | None = None
    window: bool = True
    raw: bool = False
    landmark_confidence: bool = False
    overwrite: bool = False


class LiveRun:
    """From one source to all outputs, until the source ends, the window is closed or Ctrl-C comes.

    All three are a good end: what was recorded until then is complete.
    """

    def __init__(self, engines: Engines, choices: Choices, outputs: LiveOutputs) -> None:
        self.engines, self.choices, self.outputs = engines, choices, outputs
        self.pipeline = engines.pipeline(choices)
        self.tally = Tally()
        self._window: LiveWindow | None = None

    def track(self, spec: str) -> str:
        """Run; the answer says in words how it went.

        Raises:
            SourceError: the source cannot be opened, or was lost; the files then end with its last frame.
            SinkError: an output cannot be written, or there is no display.
            KeyboardInterrupt: Ctrl-C; the files are complete.
        """
        began_s = time.monotonic()
        with ExitStack() as stack:
            source = stack.enter_context(open_source(spec, realtime=True))
            sinks = self._open_sinks(source)
            error: BaseException | None = None
            try:
                self._pump(source, sinks)
            except (SourceError, KeyboardInterrupt) as end:
                error = end
            except BaseException:
                _close(sinks, complete=False)
                raise
            _close(sinks, complete=self.tally.frames > 0)
            reason = str(error) if isinstance(error, SourceError) else ""
            outcome = Outcome(reason, source.failed, self.pipeline.dropped, time.monotonic() - began_s)
        if self.outputs.csv is not None and self.tally.frames:
            write_sidecar(self.outputs.csv.with_suffix(".json"), self._origin(spec), self.tally, outcome)
        log.info("%s", self._line(outcome))
        if error is not None:
            raise error
        return self._line(outcome)
