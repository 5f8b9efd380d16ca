"""A probe's report as a text table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...pipeline.tables import columns

_COLUMNS = (
    ("clip", ""),
    ("NME", "%"),
    ("jitter", "px"),
    ("lag", "px"),
    ("lag", "ms"),
    ("overshoot", "px"),
    ("lost", "frames"),
    ("found", "frames"),
    ("again", "frames"),
    ("held on", "frames"),
    ("switched", "times"),
    ("false", "tracks"),
    ("false", "rows"),
)


def report_as_table(report: Mapping[str, Any]) -> str:
    """A line for each clip and one for all of them.

    "lost" counts frames of single faces: two faces in one frame count as two. "found" and "again" are the frames until
    a face was found, for the first time and after it was out of sight. "held on" are the frames in which it was still
    reported while it was out of sight. If there are several values the largest is shown.
    """
    rows = [*zip(*_COLUMNS, strict=True), *(_row(clip) for clip in report["clips"])]
    total = report["total"]
    if not total["wanted_face_frames"]:
        rates = "; no face is clearly visible, so there is no MOTA"
    elif total["mota"] is None:
        rates = '; for MOTA and IDF1: pip install "facetrack[eval]"'
    else:
        rates = f", MOTA {total['mota']:.4f}, IDF1 {total['idf1']:.4f}"
    lost = f"{total['lost_face_frames']} of {total['wanted_face_frames']} face-frames lost"
    false = f"{total['false_tracks']} false tracks, {total['false_rows']} false rows"
    return "\n".join([columns(rows, numbers_from=1), f"{lost}, {total['switches']} switches, {false}{rates}"])


def _row(clip: Mapping[str, Any]) -> tuple[str, ...]:
    steady = clip["smoothed"]
    numbers = [
        _number(clip["mean_nme_percent"], 2),
        _number(steady["jitter_px"], 3),
        _number(steady["lag_px"], 2),
        _number(steady["lag_ms"], 1),
        _number(steady["overshoot_px"], 2),
    ]
    lost = f"{clip['lost_face_frames']}/{clip['wanted_face_frames']}"
    waits = (_largest(clip[name]) for name in ("first_found_frames", "found_again_frames", "held_on_frames"))
    counts = (str(clip[name]) for name in ("switches", "false_tracks", "false_rows"))
    return (clip["name"], *numbers, lost, *waits, *counts)


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _largest(waits: Sequence[int | None]) -> str:
    """The longest wait; "never" if one of them did not end."""
    if not waits:
        return ""
    return "never" if None in waits else str(max(wait for wait in waits if wait is not None))
