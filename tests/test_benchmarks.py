"""The figures of published benchmarks: what they are called, how they are computed, what the papers say."""

from __future__ import annotations

import numpy as np
import pytest

from facetrack.tracker import markup
from facetrack.tracker.errors import ConfigError
from facetrack.tracker.types import Float64
from facetrack.training.datasets import LAYOUTS
from facetrack.training.evaluation.benchmarks import Benchmark, Figure, benchmarks, find_benchmark, summarise

ERRORS: Float64 = np.array([0.02, 0.04, 0.09, 0.12, np.inf])


@pytest.mark.parametrize(
    ("name", "percent"),
    [
        ("NME io", 100 * (0.02 + 0.04 + 0.09 + 0.12) / 4),  # of the faces found
        ("FR10 io", 100 * 2 / 5),  # the lost face fails
        ("FR8 ip", 100 * 3 / 5),
        ("AUC10 box", 100 * (0.8 + 0.6 + 0.1) / 5),
    ],
)
def test_a_figure_sums_up_errors_in_per_cent(name: str, percent: float) -> None:
    assert str(Figure.parse(name)) == name
    assert Figure.parse(name).of(ERRORS) == pytest.approx(percent)


@pytest.mark.parametrize("name", ["NME", "NME10 io", "FR io", "AUC10 pupils", "MSE io"])
def test_what_is_not_a_figure_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="wanted a figure such as 'NME io'"):
        Figure.parse(name)


@pytest.mark.parametrize("benchmark", benchmarks().values(), ids=list(benchmarks()))
def test_every_benchmark_is_whole(benchmark: Benchmark) -> None:
    columns = benchmark.columns(list(benchmark.subsets))
    figures = set(map(str, benchmark.figures))
    assert benchmark.name in LAYOUTS
    assert set(benchmark.normalisers) <= {*markup.load(benchmark.markup).normalisers, "box", "diag"}
    for paper in benchmark.papers:
        assert paper.figure in figures
        assert paper.values.keys() <= columns.keys(), paper
        assert all(0 < value < 100 for value in paper.values.values())


def test_the_subsets_of_300w_add_up() -> None:
    subsets = find_benchmark("300w").subsets
    assert subsets["common"] + subsets["challenging"] == subsets["full"] == 689
    assert subsets["indoor"] + subsets["outdoor"] == subsets["test"] == 600
    assert sum(find_benchmark("aflw2000").subsets[name] for name in ("0-30", "30-60", "60-90")) == 2000


def test_papers_full_sets_are_the_weighted_means_of_their_parts() -> None:
    """Whoever copies a number wrongly from a table is found out by the other columns."""
    papers = [p for p in find_benchmark("300w").papers if p.figure in ("NME io", "NME ip") and "common" in p.values]
    for paper in papers:
        mean = (554 * paper.values["common"] + 135 * paper.values["challenging"]) / 689
        assert paper.values["full"] == pytest.approx(mean, abs=0.02), paper


def test_the_mean_of_the_bins_of_yaw_is_that_of_the_bins_and_not_of_the_faces() -> None:
    benchmark = find_benchmark("aflw2000")
    bins = {"0-30": np.full(8, 0.02), "30-60": np.full(3, 0.03), "60-90": np.full(1, 0.07)}
    bins["all"] = np.concatenate(list(bins.values()))
    figures = summarise(benchmark, {name: {"box": errors} for name, errors in bins.items()})
    assert figures["NME box"] == pytest.approx(
        {"0-30": 2.0, "30-60": 3.0, "60-90": 7.0, "all": (8 * 2 + 3 * 3 + 7) / 12, "mean": 4.0}
    )
    assert "mean" not in summarise(benchmark, {"all": {"box": bins["all"]}})["NME box"]


def test_an_unknown_benchmark_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no benchmark 'coco'; there are 300w, wflw"):
        find_benchmark("coco")
