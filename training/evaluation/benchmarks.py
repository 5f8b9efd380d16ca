"""What the field measures on each picture data set: subsets, figures, and the papers' results."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, cast, get_args

import numpy as np

from ...tracker import metrics
from ...tracker.errors import ConfigError
from ...tracker.metrics import Normaliser
from ...tracker.types import Float64

MEAN = "mean"  # the column of `Benchmark.mean_of`
Measure = Literal["NME", "FR", "AUC"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that summarises the errors of many faces.

    Attributes:
        measure: mean error of the faces found, share of faces above the threshold, or area under the curve up to it.
        percent: the threshold; 0 for NME.
        normaliser: what errors are divided by.
    """

    measure: Measure
    percent: int
    normaliser: Normaliser

    @classmethod
    def parse(cls, text: str) -> Figure:
        """Read a figure such as "NME io", "FR10 io" or "AUC8 box".

        Raises:
            ValueError: it does not have this form.
        """
        match = re.fullmatch(r"(NME|FR|AUC)(\d*) (\w+)", text)
        if match is None or match[3] not in get_args(Normaliser) or (match[1] == "NME") is bool(match[2]):
            raise ValueError(f"wanted a figure such as 'NME io', 'FR10 io' or 'AUC8 box', got {text!r}")
        return cls(cast(Measure, match[1]), int(match[2] or 0), cast(Normaliser, match[3]))

    def __str__(self) -> str:
        return f"{self.measure}{self.percent or ''} {self.normaliser}"

    def of(self, errors: Float64) -> float:
        """Summarise (F >= 1,) fractions, infinity for lost faces, as a percentage."""
        if self.measure == "NME":
            return 100 * metrics.mean_of_found(errors)[0]
        measure = metrics.failure_rate if self.measure == "FR" else metrics.auc
        return 100 * measure(errors, self.percent / 100)


@dataclass(frozen=True, slots=True)
class Published:
    """A row of a paper: a method's values of one figure, subset -> percentage."""

    method: str
    figure: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A set of annotated pictures and how the field reports on it.

    Attributes:
        name: as on the command line and in `datasets.LAYOUTS`.
        title: as in papers.
        markup: of its annotations.
        subsets: name -> faces in the published data set, in the order of the papers' columns.
        figures: in the order of the rows.
        curve: the normaliser of the cumulative error curve and its end in per cent.
        papers: rows to compare with.
        mean_of: subsets whose mean is a column of its own; empty if there is no such column.
    """

    name: str
    title: str
    markup: str
    subsets: Mapping[str, int]
    figures: tuple[Figure, ...]
    curve: tuple[Normaliser, int]
    papers: tuple[Published, ...]
    mean_of: tuple[str, ...] = ()

    @property
    def normalisers(self) -> tuple[Normaliser, ...]:
        """All normalisers that the figures and the curve need, each once."""
        return tuple(dict.fromkeys([*(figure.normaliser for figure in self.figures), self.curve[0]]))

    def columns(self, present: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The table's columns: name -> the subsets whose mean it is; only columns whose subsets are all present."""
        columns: dict[str, tuple[str, ...]] = {name: (name,) for name in self.subsets if name in present}
        if self.mean_of and all(name in columns for name in self.mean_of):
            columns[MEAN] = self.mean_of
        return columns


@cache
def benchmarks() -> dict[str, Benchmark]:
    """All benchmarks by name."""
    table = tomllib.loads(resources.files(__package__).joinpath("benchmarks.toml").read_text(encoding="utf-8"))
    return {name: _benchmark(name, fields) for name, fields in table.items()}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in benchmarks():
        raise ConfigError(f"no benchmark {name!r}; there are {', '.join(benchmarks())}")
    return benchmarks()[name]


def _benchmark(name: str, fields: Mapping[str, Any]) -> Benchmark:
    normaliser, percent = fields["curve"]
    return Benchmark(
        name=name,
        title=fields["title"],
        markup=fields["markup"],
        subsets=fields["subsets"],
        figures=tuple(map(Figure.parse, fields["figures"])),
        curve=(normaliser, percent),
        papers=tuple(_published(dict(row)) for row in fields["papers"]),
        mean_of=tuple(fields.get("mean_of", ())),
    )


def _published(row: dict[str, Any]) -> Published:
    return Published(row.pop("method"), row.pop("figure"), row)


def summarise(benchmark: Benchmark, errors: Mapping[str, Mapping[str, Float64]]) -> dict[str, dict[str, float]]:
    """Every figure in every column.

    Args:
        benchmark: whose figures and columns.
        errors: subset -> normaliser -> (F >= 1,) fractions, infinity for a lost face.
    Returns:
        figure -> column -> percentage; NaN for the mean error if no face was found.
    """
    return {
        str(figure): {
            column: float(np.mean([figure.of(errors[subset][figure.normaliser]) for subset in subsets]))
            for column, subsets in benchmark.columns(list(errors)).items()
        }
        for figure in benchmark.figures
    }
