"""Percentiles in a fixed amount of memory agree with NumPy's on all the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from facetrack.pipeline.timing import BINS, FASTEST_S, SLOWEST_S, Percentiles, StageTimes, measure

BIN = (SLOWEST_S / FASTEST_S) ** (1 / BINS)  # ratio of a bin's ends


@pytest.mark.parametrize("percent", [0, 50, 90, 99, 100])
def test_percentile_matches_numpy_to_within_a_bin(percent: float) -> None:
    durations_s = np.random.default_rng(3).lognormal(-6, 1.5, 5000)
    times = Percentiles()
    for duration_s in durations_s.tolist():
        times.add(duration_s)
    wanted = np.percentile(durations_s, percent, method="inverted_cdf")
    assert wanted / BIN <= times.at(percent) <= wanted * BIN


def test_mean_and_maximum_are_exact_and_no_percentile_exceeds_the_maximum() -> None:
    times = Percentiles()
    for duration_s in (0.001, 0.002, 0.006):
        times.add(duration_s)
    summary = times.summary_ms()
    assert summary["mean"] == 3.0
    assert summary["max"] == 6.0
    assert summary["p99"] <= 6.0


def test_durations_beyond_the_scale_count_as_its_ends() -> None:
    times = Percentiles()
    times.add(0.0)
    times.add(1e6)
    assert times.at(50) == pytest.approx(FASTEST_S, rel=BIN - 1)
    assert times.at(100) == pytest.approx(SLOWEST_S, rel=BIN - 1)


def test_percentile_without_durations_is_nan_and_the_summary_empty() -> None:
    assert math.isnan(Percentiles().at(50))
    assert Percentiles().summary_ms() == {}


def test_a_percentile_beyond_100_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.100, got 101"):
        Percentiles().at(101)


def test_stages_are_counted_apart() -> None:
    stages = StageTimes()
    stages.add({"detect": 0.004, "align": 0.002})
    stages.add({"align": 0.004})
    assert {name: times["mean"] for name, times in stages.summary_ms().items()} == {"detect": 4.0, "align": 3.0}


def test_measure_stops_after_a_count_or_a_time_and_ignores_warm_up_runs() -> None:
    done: list[int] = []
    assert measure(lambda: done.append(1), 5, math.inf, before=2).count == 5
    assert len(done) == 7
    assert measure(lambda: done.append(1), 5, 1e-12).count == 1
