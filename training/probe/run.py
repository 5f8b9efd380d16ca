"""Run the shipped batch pipeline over a probe and score it."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...pipeline.batch import Failure, track_all
from ...pipeline.csv_sink import TableOptions
from ...pipeline.machine import describe_machine
from ...pipeline.open import Engines
from ...pipeline.part_file import atomic_write_text, make_folder, refuse_existing
from ...pipeline.progress import NoProgress, Task
from ...pipeline.sidecar import describe_models
from ...pipeline.tasks import Existing, Outputs
from ...tracker.errors import SinkError, SourceError
from ..evaluation.files import remove_all
from .clips import POINTS, Clip, Probe
from .score import TrackedClip, mota_idf1, score

REPORT = "report.json"


def measure_probe(
    probe: Probe, out: Path | None, engines: Engines, existing: Existing = "refuse"
) -> tuple[dict[str, Any], list[Failure]]:
    """Track each clip into its own table, as `facetrack batch --raw` does, and score the tables.

    Args:
        probe: from `clips.read_probe`.
        out: folder for the tables and their `report.json`; None: nothing is kept.
        engines: as for a batch.
        existing: what to do with files that are in out already; "resume" takes complete tables, as a batch does.
    Returns:
        The report, and the clips that could not be measured.
    Raises:
        SourceError: no clip could be measured.
        SinkError: out cannot be written, or holds files that must not be overwritten.
    """
    failures, results = list(probe.failures), []
    if out is not None:
        _make_room(probe.clips, out, existing)
    tables: Existing = "resume" if existing == "resume" else "overwrite"  # with "refuse" there are none by now
    with tempfile.TemporaryDirectory(prefix="facetrack-probe-") as passing:
        outputs = Outputs(out or Path(passing), columns=TableOptions(raw=True), existing=tables)
        for clip in probe.clips:
            try:
                results.append((clip, _tracked(clip, outputs, engines)))
            except SourceError as error:
                failures.append(Failure(str(clip.folder), str(error)))
    failures.sort(key=lambda failure: failure.what)
    if not results:
        raise SourceError(f"no clip could be measured; the first: {failures[0]}")
    report = compile_report(results, _origin(probe, engines), failures)
    if out is not None:
        atomic_write_text(out / REPORT, json.dumps(report, indent=2) + "\n")
    return report, failures


def _origin(probe: Probe, engines: Engines) -> dict[str, Any]:
    """Everything that the scores depend on besides each clip's seed, as in an evaluation's report."""
    return {
        "facetrack": __version__,
        "folder": probe.folder.name,
        "settings": asdict(engines.choices),
        "models": describe_models(engines),
        "backend": engines.backend,
        "machine": describe_machine(),
    }


def _make_room(clips: Sequence[Clip], out: Path, existing: Existing) -> None:
    """Check before tracking that nothing is replaced which must not be, and remove the report, which will be outdated.

    Raises:
        SinkError: something must not be replaced, or out cannot be written.
    """
    outputs, report = Outputs(out), out / REPORT
    if existing == "refuse":
        files = [file for clip in clips for file in outputs.files(Task(str(clip.video), clip.name))]
        refuse_existing([*files, report], "add --overwrite or --resume, or choose another --out")
    make_folder(out)
    if existing == "resume" and report.exists() and not _is_ours(report):
        raise SinkError(
            f"{report}: was not written by `facetrack probe run`, so --resume does not replace it; move it, "
            "choose another --out, or replace it with --overwrite"
        )
    remove_all([report])


def _is_ours(report: Path) -> bool:
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= {"facetrack", "total", "clips"}


def _tracked(clip: Clip, outputs: Outputs, engines: Engines) -> TrackedClip:
    """Track a clip into its table and read the table.

    Raises:
        SourceError: the clip could not be tracked, or its truth has another number of frames.
    """
    task = Task(str(clip.video), clip.name)
    failures = track_all([task], outputs, engines, NoProgress())
    if failures:
        raise SourceError(str(failures[0]))
    tracked, frames = read_table(outputs.table(task)), clip.visible.shape[1]
    if tracked.frames != frames:
        raise SourceError(
            f"{clip.video}: wanted {frames} frames, as its ground truth has, got {tracked.frames}; make the probe again"
        )
    return tracked


def read_table(path: Path) -> TrackedClip:
    """The rows with a face of a table (schema 1) that was written with --raw.

    Raises:
        SourceError: it cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            names, *lines = csv.reader(file)
        column = {name: i for i, name in enumerate(names)}
        frames = len({line[column["frame"]] for line in lines})
        lines = [line for line in lines if line[column["face_id"]]]
        return TrackedClip(
            frame=np.array([int(line[column["frame"]]) - 1 for line in lines], np.int64),
            track=np.array([int(line[column["face_id"]]) for line in lines], np.int64),
            measured=np.array([line[column["success"]] == "1" for line in lines], bool),
            xy=_points(lines, column, "x", "y"),
            raw=_points(lines, column, "xr", "yr"),
            frames=frames,
        )
    except (OSError, KeyError, ValueError) as error:
        raise SourceError(f"{path}: not a table of facetrack with --raw: {error}") from error


def _points(lines: list[list[str]], column: dict[str, int], x: str, y: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    places = [[column[f"{name}_{i}"] for name in (x, y)] for i in range(POINTS)]
    cells = [[[float(line[place] or "nan") for place in pair] for pair in places] for line in lines]
    return np.array(cells, np.float32).reshape(-1, POINTS, 2)


def compile_report(
    results: Sequence[tuple[Clip, TrackedClip]], origin: Mapping[str, Any], failures: Sequence[Failure] = ()
) -> dict[str, Any]:
    """The results after everything that they depend on, in JSON types.

    MOTA is None if no face is plain to see ("wanted_face_frames" is 0), or if py-motmetrics is not installed.
    """
    scores = [score(clip, tracked) for clip, tracked in results]
    mota, idf1 = _mota_idf1(results)
    counts = ("wanted_face_frames", "lost_face_frames", "switches", "false_tracks", "false_rows")
    total = {name: sum(getattr(s, name) for s in scores) for name in counts} | {"mota": mota, "idf1": idf1}
    told = [{"seed": clip.seed, **s.table()} for (clip, _), s in zip(results, scores, strict=True)]
    failed = [{"clip": Path(failure.what).name, "reason": failure.reason} for failure in failures]
    return {**origin, "total": total, "clips": told, "failures": failed}


def _mota_idf1(results: Sequence[tuple[Clip, TrackedClip]]) -> tuple[float | None, float | None]:
    """MOTA and IDF1; None if they do not exist (no face to be seen), or if py-motmetrics is not installed."""
    try:
        mota, idf1 = mota_idf1(results)
    except ImportError:
        return None, None
    return (mota if math.isfinite(mota) else None), (idf1 if math.isfinite(idf1) else None)
