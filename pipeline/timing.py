"""How long things take: percentiles over any number of frames in a fixed amount of memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np

FASTEST_S, SLOWEST_S = 1e-6, 1e3
BINS = 2048  # each 1.02 % wider than the one before: a percentile is off by at most half of that


class Percentiles:
    """A histogram of durations on a logarithmic scale.

    A ten-minute video fills the same 16 kB as a ten-second one. Durations outside 1 us .. 1000 s count as the
    nearest of these; mean and maximum are exact.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(BINS, np.int64)
        self._per_bin = BINS / math.log(SLOWEST_S / FASTEST_S)
        self.count, self.sum_s, self.max_s = 0, 0.0, 0.0

    def add(self, duration_s: float) -> None:
        """Count one duration in seconds."""
        within = min(max(duration_s, FASTEST_S), SLOWEST_S)
        self._counts[min(int(math.log(within / FASTEST_S) * self._per_bin), BINS - 1)] += 1
        self.count += 1
        self.sum_s += duration_s
        self.max_s = max(self.max_s, duration_s)

    def at(self, percent: float) -> float:
        """The duration in seconds that `percent` of all durations do not exceed; nan before the first.

        Raises:
            ValueError: percent is not within 0..100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percentile: wanted 0..100, got {percent}")
        if not self.count:
            return math.nan
        rank = math.ceil(self.count * percent / 100)
        index = int(np.searchsorted(np.cumsum(self._counts), max(rank, 1)))
        return min(FASTEST_S * math.exp((index + 0.5) / self._per_bin), self.max_s)

    def summary_ms(self) -> dict[str, float]:
        """Mean, p50, p90, p99 and maximum in milliseconds, rounded to a microsecond; {} before the first."""
        if not self.count:
            return {}
        values = {"mean": self.sum_s / self.count, "p50": self.at(50), "p90": self.at(90), "p99": self.at(99)}
        return {name: round(1000 * value, 3) for name, value in (*values.items(), ("max", self.max_s))}


def seconds_of(work: Callable[[], object]) -> float:
    """How long a piece of work takes."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def measure(work: Callable[[], object], most: int, longest_s: float, *, before: int = 1) -> Percentiles:
    """Repeat a piece of work until `most` runs or `longest_s` seconds are measured, after `before` unmeasured runs."""
    for _ in range(before):
        work()
    times = Percentiles()
    while times.count < most and times.sum_s < longest_s:
        times.add(seconds_of(work))
    return times


class StageTimes:
    """Percentiles of each stage of the pipeline, by name."""

    def __init__(self) -> None:
        self._stages: dict[str, Percentiles] = {}

    def add(self, spans_s: Mapping[str, float]) -> None:
        """Count one frame's seconds per stage."""
        for name, duration_s in spans_s.items():
            self._stages.setdefault(name, Percentiles()).add(duration_s)

    def summary_ms(self) -> dict[str, dict[str, float]]:
        """`Percentiles.summary_ms` of each stage, in the order of their first appearance."""
        return {name: stage.summary_ms() for name, stage in self._stages.items()}
