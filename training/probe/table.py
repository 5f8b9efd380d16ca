"""A probe's report in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...pipeline.tables import columns

_COLUMNS = (
    "clip",
    "NME %",
    "jitter px",
    "lag px",
    "lag ms",
    "overshoot",
    "lost",
    "found",
    "again",
    "held on",
    "switch",
    "false",
)


def report_as_table(report: Mapping[str, Any]) -> str:
    """A line for each clip and one for all of them.

    "found" and "again" are the frames until a face was found at first, and after it was out of sight; "held on" those
    for which it was still reported when it was not to be seen. The largest counts where there are several.
    """
    rows = [_COLUMNS, *(_row(clip) for clip in report["clips"])]
    total = report["total"]
    rates = "" if total["mota"] is None else f", MOTA {total['mota']:.4f}, IDF1 {total['idf1']:.4f}"
    if not rates:
        rates = '; for MOTA and IDF1: pip install "facetrack[eval]"'
    counts = f"{total['lost']} of {total['wanted']} faces lost, {total['switches']} switches"
    return "\n".join([columns(rows, numbers_from=1), f"{counts}, {total['false_tracks']} false tracks{rates}"])


def _row(clip: Mapping[str, Any]) -> tuple[str, ...]:
    steady = clip["smoothed"]
    nme = None if clip["mean_nme"] is None else 100 * clip["mean_nme"]
    numbers = [
        _number(nme, 2),
        _number(steady["jitter_px"], 3),
        _number(steady["lag_px"], 2),
        _number(steady["lag_ms"], 1),
    ]
    numbers.append(_number(steady["overshoot_px"], 2))
    lost = f"{clip['lost']}/{clip['wanted']}"
    waits = (_largest(clip[name]) for name in ("first_found", "found_again", "held_on"))
    return (clip["name"], *numbers, lost, *waits, str(clip["switches"]), str(clip["false_tracks"]))


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _largest(waits: Sequence[int | None]) -> str:
    """The longest wait; one without end is longer than all."""
    if not waits:
        return ""
    return "never" if None in waits else str(max(wait for wait in waits if wait is not None))
