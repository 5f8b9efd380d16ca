"""NAME.json beside NAME.csv: what made the table and from what, how far the run got and how long it took."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from .. import __version__
from ..engines.backend import weights_for
from ..tracker.types import Frame
from .csv_sink import SCHEMA
from .image_source import expand_glob, glob_root, pictures_among, printable
from .machine import describe_machine
from .part_file import atomic_write_text, part_of
from .record import Tally
from .source import Source, is_url, without_credentials

if TYPE_CHECKING:
    from .open import Engines

WHOLE_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Origin:
    """What a table depends on: two tables of the same origin, made on the same kind of machine, have the same bytes.

    Attributes:
        input: what identifies the input.
        settings: all choices.
        models: what identifies the weights.
        libraries: those that compute, each with its version.
    """

    input: dict[str, Any]
    settings: dict[str, Any]
    models: list[dict[str, Any]]
    libraries: list[str]

    def table(self) -> dict[str, Any]:
        """The first part of the sidecar."""
        return {"schema": SCHEMA, "facetrack": __version__} | asdict(self)

    def what_differs(self, found: Mapping[str, Any]) -> str:
        """Say what differs in a sidecar, and which settings or libraries; "" if nothing does."""
        for key, wanted in json.loads(json.dumps(self.table())).items():
            if found.get(key) != wanted:
                return _in_words(key, wanted, found.get(key))
        return ""


def _in_words(key: str, wanted: Any, found: Any) -> str:
    """A message about a part that differs between two sidecars."""
    if key == "settings" and isinstance(found, dict):
        names = [name for name in wanted | found if wanted.get(name, ...) != found.get(name, ...)]
        return f"settings differ: {', '.join(names)}"
    if key == "libraries" and isinstance(found, list):
        made_with = " and ".join(str(library) for library in found if library not in wanted)
        return f"it was made with {made_with}, this run has {' and '.join(one for one in wanted if one not in found)}"
    return f"{key} {'differ' if key.endswith('s') else 'differs'}"


def where(spec: str) -> str:
    """The canonical path of an input, or its URL without credentials."""
    return without_credentials(spec) if is_url(spec) else printable(os.path.realpath(spec))


def identify_input(spec: str) -> dict[str, Any]:
    """What shows whether an input is still the same: its name, the number and bytes of its files, and a digest.

    The digest, 16 hexadecimal digits of a SHA-256, covers the files' names, sizes and modification times in whole
    seconds: archives, `scp -p` and some file systems keep no more. The names are relative to the folder, or to the part
    of a glob without wildcards, so they do not depend on where the input is named from. For a URL, the digest is of the
    URL without credentials: nothing shows whether its content has changed.
    """
    if is_url(spec):
        url = without_credentials(spec)
        return {"name": Path(url).name, "files": 0, "bytes": 0, "digest": _digest(url)}
    path = Path(spec)
    if path.is_dir():
        root, files = path, pictures_among(path.iterdir())
        path = path.resolve() if path.name in ("", "..") else path
    elif path.exists():
        root, files = path.parent, [path]
    else:
        root, files = glob_root(path), pictures_among(expand_glob(spec))
    stats = [(printable(file.relative_to(root).as_posix()), file.stat()) for file in sorted(files) if file.is_file()]
    listing = "\n".join(f"{name}\t{stat.st_size}\t{stat.st_mtime_ns // WHOLE_SECOND_NS}" for name, stat in stats)
    return {
        "name": printable(path.name or spec),
        "files": len(stats),
        "bytes": sum(stat.st_size for _, stat in stats),
        "digest": _digest(listing),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(printable(text).encode()).hexdigest()[:16]


def describe_models(engines: Engines) -> list[dict[str, Any]]:
    """Names of the networks in use and, by role, the files that run and their precision, in JSON's types."""
    kind, computes_in = engines.choices.backend, engines.aligner.backend.precision
    if kind == "auto":
        kind = "tensorrt" if engines.backend.startswith("TensorRT") else "onnx"
    models = []
    for card in engines.cards:
        files = {role: weights_for(kind, weights) for role, weights in card.weights.items()}
        models.append(
            {
                "name": card.name,
                "task": card.task,
                "file": {role: weights.path.name for role, weights in files.items()},
                "sha256": {role: weights.sha256 for role, weights in files.items()},
                "precision": {role: computes_in or weights.precision for role, weights in files.items()},
            }
        )
    return models


def describe_libraries(engines: Engines) -> list[str]:
    """The runtime of the network for the landmarks, and OpenCV, with their versions: other versions move landmarks."""
    return [engines.backend.partition(",")[0], f"OpenCV {cv2.__version__}"]


def describe_source(source: Source) -> dict[str, Any]:
    """What relates a table to its recording, after that has been read, in JSON's types; None for what is unknown.

    The recording's own timestamp at `timestamp` 0 in seconds, [width, height] in pixels, frames per second.
    """
    return {
        "start_s": None if source.start_s is None else round(source.start_s, 6),
        "size": None if source.size is None else [source.size[1], source.size[0]],
        "rate": None if source.rate is None else round(float(source.rate), 6),
    }


def when_started(frame: Frame) -> str:
    """When a live source's time was 0, from a frame that has just arrived: UTC, in ISO 8601."""
    now, age_s = datetime.now(UTC), time.perf_counter() - frame.taken_s
    started = now - timedelta(seconds=age_s + frame.time_s)
    return started.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run over one input ended.

    Attributes:
        error: why it broke off; "" if everything was read.
        failed: (place, reason) of what could not be read, wholly or in part.
        dropped: frames that a live run did not process.
        wall_s: from opening the source to the last row.
        backend: what the network for the landmarks ran on, in words.
        source: from `describe_source`.
        started: from `when_started`, for a live source; "": unknown.
    """

    error: str
    failed: list[tuple[str, str]]
    dropped: int
    wall_s: float
    backend: str
    source: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""


def save_origin(sidecar: Path, origin: Origin) -> None:
    """Write what a table depends on beside its part file, if possible; the sidecar later replaces it."""
    with suppress(OSError):
        part_of(sidecar).write_text(json.dumps(origin.table()), encoding="utf-8")


def load_origin(sidecar: Path) -> dict[str, Any] | None:
    """What `save_origin` has written; None if that cannot be read."""
    try:
        noted = json.loads(part_of(sidecar).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return noted if isinstance(noted, dict) else None


def write_sidecar(
    path: Path,
    origin: Origin,
    tally: Tally,
    outcome: Outcome,
    *,
    input_path: str = "",
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Write the sidecar.

    Args:
        path: where to write it.
        origin, tally, outcome: its content.
        input_path: where the input is, which may change without changing the table; "": unknown.
        sizes: of the files beside it, by the names that `resume.PreviousRun` looks for.
    Raises:
        SinkError: it cannot be written.
    """
    counts = {**asdict(tally.counts), "dropped": outcome.dropped, "failed": len(outcome.failed)}
    content = origin.table()
    content |= {"path": input_path} if input_path else {}
    content |= sizes or {}
    content |= outcome.source
    content |= {"started": outcome.started} if outcome.started else {}
    content |= {
        "complete": not outcome.error,
        "error": outcome.error or None,
        "counts": counts,
        "failed": [{"place": place, "reason": reason} for place, reason in outcome.failed],
        "wall_s": round(outcome.wall_s, 3),
        "stages_ms": tally.stages.summary_ms(),
        "backend": outcome.backend,
        "machine": describe_machine(),
    }
    atomic_write_text(path, printable(json.dumps(content, indent=2, ensure_ascii=False)) + "\n")
