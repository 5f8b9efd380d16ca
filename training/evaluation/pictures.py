"""`facetrack evaluate 300w|wflw|cofw|cofw68|aflw|aflw2000`: measure a folder of pictures and write the report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...pipeline.open import Engines
from ...pipeline.part_file import check_folder_writable, make_folder, refuse_existing
from ...pipeline.progress import Reporter, Task
from ...tracker import markup
from ..datasets import Broken, list_faces
from .benchmarks import find_benchmark
from .error_curves import require_matplotlib
from .locate import Boxes, DetectorLocator, GivenBoxLocator, Locate, common_points, models_measured
from .measure import Measuring, measure
from .report import Evaluation, PictureReportFiles, as_table, write_report


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What to evaluate, and where to write the results.

    Attributes:
        benchmark: name of one of `benchmarks.benchmarks()`.
        folder: the data set in its published layout.
        out: folder of the results; created if it is missing.
        boxes: "gt" takes ground-truth boxes, "detector" detects the faces.
        broken: whether to refuse or to skip files that cannot be read.
        overwrite: replace existing results.
    """

    benchmark: str
    folder: Path
    out: Path
    boxes: Boxes = "gt"
    broken: Broken = "refuse"
    overwrite: bool = False

    @property
    def files(self) -> PictureReportFiles:
        """The results."""
        return PictureReportFiles(self.out, f"{self.benchmark}-{self.boxes}")


def check(settings: EvaluationSettings) -> None:
    """Check before the work that the results can be written.

    Raises:
        ConfigError: there is no such benchmark.
        SinkError: there are results that must not be replaced, or the folder cannot be written.
        BackendError: a library that the report needs is missing.
    """
    find_benchmark(settings.benchmark)
    require_matplotlib()
    if not settings.overwrite:
        refuse_existing(settings.files.all(), "add --overwrite, or choose another --out")
    check_folder_writable(settings.out)


def evaluate(settings: EvaluationSettings, engines: Engines, reporter: Reporter) -> str:
    """Measure, write the results, and return the table.

    Nothing is written before everything is measured.

    Raises:
        MarkupError: model and data set have no points in common.
        SourceError: the folder is not in the benchmark's layout, or a file is broken and must not be skipped.
        SinkError: the results cannot be written.
    """
    began_s = time.perf_counter()
    benchmark = find_benchmark(settings.benchmark)
    common = common_points(engines.aligner.markup, markup.load(benchmark.markup))
    entries = list_faces(settings.folder, benchmark.name)
    how = Measuring(_locate(settings.boxes, engines, common.data), common, benchmark.normalisers, settings.broken)
    task = Task(str(settings.folder), benchmark.title)
    reporter.began(task, len(entries))
    measured = measure(entries, how, partial(reporter.advanced, task))
    models = models_measured(engines, settings.boxes)
    wall_s = time.perf_counter() - began_s
    evaluation = Evaluation(
        benchmark, common, measured, settings.folder, settings.boxes, models, engines.choices, engines.backend, wall_s
    )
    make_folder(settings.out)
    write_report(evaluation, settings.files)
    reporter.ended(task, f"{len(measured.faces)} faces in {wall_s:.1f} s -> {settings.files.summary}")
    return as_table(evaluation)


def _locate(boxes: Boxes, engines: Engines, data: markup.Markup) -> Locate:
    if boxes == "gt":
        return GivenBoxLocator(engines.aligner, data)
    return DetectorLocator(engines.pipeline_for_pictures(engines.choices))
