"""Report of an evaluation: the papers' table, a table of faces, JSON, curves and the worst cases."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...pipeline.machine import describe_machine
from ...pipeline.open import Choices
from ...pipeline.tables import columns
from ...tracker.types import Float64
from .benchmarks import Benchmark, summarise
from .contact_sheet import contact_sheet
from .error_curves import Curve, draw_curves
from .files import ReportFiles, replace_all
from .locate import Boxes, CommonPoints, settings_measured
from .measure import Measured

BOXES = {"gt": "ground-truth boxes", "detector": "the detector's boxes"}
WORST = 24


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        benchmark, common, measured: what was measured, in which points, and the results.
        folder: of the data set.
        boxes: where the face boxes came from.
        models: the networks and files that ran, from `locate.models_measured`; the aligner's first.
        choices, backend: the other settings that the results depend on.
        wall_s: how long it took.
    """

    benchmark: Benchmark
    common: CommonPoints
    measured: Measured
    folder: Path
    boxes: Boxes
    models: list[dict[str, Any]]
    choices: Choices
    backend: str
    wall_s: float

    @property
    def model(self) -> str:
        """The name of the aligner's card."""
        return str(self.models[0]["name"])

    def errors(self) -> Mapping[str, Mapping[Any, Float64]]:
        """subset -> normaliser -> errors, for the subsets that have faces."""
        return self.measured.by_subset(list(self.benchmark.subsets), self.benchmark.normalisers)


class PictureReportFiles(ReportFiles):
    """The files of an evaluation on pictures: a table with a row per face, and a sheet of the worst faces."""

    __slots__ = ()

    @property
    def worst(self) -> Path:
        """The contact sheet."""
        return self.folder / f"{self.stem}-worst.jpg"

    def all(self) -> list[Path]:
        """See `ReportFiles`."""
        return [*super().all(), self.worst]


def write_report(evaluation: Evaluation, files: PictureReportFiles) -> None:
    """Write all files, or none.

    Raises:
        SinkError: one of them cannot be written.
    """
    png, svg = draw_curves(_curves(evaluation), _curve_title(evaluation), evaluation.benchmark.curve[1] / 100)
    normaliser = evaluation.benchmark.curve[0]
    worst = sorted(evaluation.measured.faces, key=lambda face: -face.errors[normaliser])[:WORST]
    replace_all(
        {
            files.table: faces_as_csv(evaluation).encode(),
            files.curves[0]: png,
            files.curves[1]: svg,
            files.worst: contact_sheet(worst, normaliser),
            files.summary: (json.dumps(as_json(evaluation), indent=2, ensure_ascii=False) + "\n").encode(),
        }
    )


def as_table(evaluation: Evaluation) -> str:
    """The papers' table in per cent: a row per figure with the papers' below it, a column per subset."""
    benchmark, errors = evaluation.benchmark, evaluation.errors()
    shown = benchmark.columns(list(errors))
    ours = summarise(benchmark, errors)
    rows = [["", *shown], ["faces", *(_count(benchmark, errors, column) for column in shown)]]
    for figure in map(str, benchmark.figures):
        rows.append([f"{figure} %", *(cell(ours[figure][column]) for column in shown)])
        theirs = [paper for paper in benchmark.papers if paper.figure == figure]
        for paper in theirs if evaluation.common.whole else []:
            cells = [cell(paper.values.get(column)) for column in shown]
            rows += [[f"    {paper.method}", *cells]] if any(cells) else []
    if evaluation.boxes == "detector":
        missed = {name: float(100 - 100 * _found(errors, name)) for name in errors}
        rows.append(["missed %", *(cell(missed.get(column)) for column in shown)])
    return "\n".join([*_head(evaluation), "", columns(rows, numbers_from=1)])


def _head(evaluation: Evaluation) -> list[str]:
    common, measured, kinds = evaluation.common, evaluation.measured, evaluation.benchmark.normalisers
    lines = [f"{evaluation.benchmark.title}: {evaluation.model}, {common.count} points, {BOXES[evaluation.boxes]}"]
    if not common.whole:
        lines.append(
            f"compared in {common.name}, which {common.model.name} and {common.data.name} share: the papers' numbers "
            "are for other points and are left out"
        )
    if evaluation.boxes == "detector":
        lines.append("NME is the mean of the faces found; a missed face counts as a failure in FR and AUC")
    published = evaluation.benchmark.subsets
    partial = [name for name, of in evaluation.errors().items() if len(of[kinds[0]]) != published[name]]
    if partial:
        lines.append(f"not all faces of {', '.join(partial)} were measured: not comparable with the papers' numbers")
    if measured.left_out:
        lines.append(f"{len(measured.left_out)} broken files were left out")
    return lines


def _count(benchmark: Benchmark, errors: Mapping[str, Mapping[Any, Float64]], column: str) -> str:
    if column not in errors:
        return ""
    count, published = len(errors[column][benchmark.normalisers[0]]), benchmark.subsets[column]
    return str(count) if count == published else f"{count} of {published}"


def _found(errors: Mapping[str, Mapping[Any, Float64]], subset: str) -> float:
    of_any = next(iter(errors[subset].values()))
    return sum(map(math.isfinite, of_any)) / len(of_any)


def cell(value: float | None) -> str:
    """A figure as text for a table."""
    if value is None:
        return ""
    return "-" if math.isnan(value) else f"{value:.2f}"


def faces_as_csv(evaluation: Evaluation) -> str:
    """A row per face: its name, its subsets, whether it was found, the model's confidence, errors in per cent."""
    text = io.StringIO()
    kinds = evaluation.benchmark.normalisers
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["face", "subsets", "found", "confidence", *(f"nme_{kind}_percent" for kind in kinds)])
    for face in evaluation.measured.faces:
        cells = [f"{100 * face.errors[kind]:.4f}" for kind in kinds]
        found = int(face.found is not None)
        writer.writerow([face.entry.name, " ".join(face.subsets), found, f"{face.confidence:.4f}", *cells])
    return text.getvalue()


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything in JSON types; figures that do not exist are null, and papers' rows of other points are left out."""
    benchmark, errors, whole = evaluation.benchmark, evaluation.errors(), evaluation.common.whole
    ours = summarise(benchmark, errors)
    counts = {name: len(next(iter(of.values()))) for name, of in errors.items()}
    return {
        "facetrack": __version__,
        "benchmark": benchmark.name,
        "folder": evaluation.folder.name,
        "boxes": evaluation.boxes,
        "points": {"name": evaluation.common.name, "count": evaluation.common.count},
        "faces": len(evaluation.measured.faces),
        "missed": evaluation.measured.missed,
        "left_out": [{"name": name, "reason": reason} for name, reason in evaluation.measured.left_out],
        "subsets": {
            name: {
                "faces": count,
                "published": benchmark.subsets[name],
                "comparable": whole and count == benchmark.subsets[name],
                "found_percent": 100 * _found(errors, name),
            }
            for name, count in counts.items()
        },
        "figures_percent": {
            figure: {column: None if math.isnan(value) else value for column, value in values.items()}
            for figure, values in ours.items()
        },
        "papers_percent": [
            {"method": paper.method, "figure": paper.figure, **paper.values}
            for paper in (benchmark.papers if whole else ())
        ],
        "settings": settings_measured(evaluation.choices, evaluation.boxes, pictures=True),
        "models": evaluation.models,
        "backend": evaluation.backend,
        "wall_s": round(evaluation.wall_s, 3),
        "machine": describe_machine(),
    }


def _curves(evaluation: Evaluation) -> list[Curve]:
    kind = evaluation.benchmark.curve[0]
    return [Curve(name, of[kind]) for name, of in evaluation.errors().items()]


def _curve_title(evaluation: Evaluation) -> str:
    kind, points = evaluation.benchmark.curve[0], evaluation.common.count
    head = f"{evaluation.benchmark.title}, NME {kind}, {points} points"
    return f"{head}\n{evaluation.model}, {BOXES[evaluation.boxes]}"
