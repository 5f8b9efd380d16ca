"""NAME.json beside NAME.csv: what made the table, from what, how far it got and how long it took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..engines.card import ModelCard
from .csv_sink import SCHEMA
from .machine import describe_machine
from .record import Tally
from .sinks import atomic_write_text


@dataclass(frozen=True, slots=True)
class Origin:
    """What a table depends on: two tables of the same origin, made on the same kind of machine, have the same bytes.

    Attributes:
        input: what identifies the input.
        settings: all choices.
        models: what identifies the weights.
    """

    input: dict[str, Any]
    settings: dict[str, Any]
    models: list[dict[str, Any]]

    def table(self) -> dict[str, Any]:
        """The first part of the sidecar."""
        made_by = {"schema": SCHEMA, "facetrack": __version__}
        return made_by | {"input": self.input, "settings": self.settings, "models": self.models}


def identify_models(cards: Sequence[ModelCard]) -> list[dict[str, Any]]:
    """Names and weights of cards, in JSON's types."""
    return [
        {"name": card.name, "task": card.task, "sha256": {role: w.sha256 for role, w in card.files.items()}}
        for card in cards
    ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run over one input ended.

    Attributes:
        error: why it broke off; "" where everything was read.
        failed: (place, reason) of what could not be read, wholly or in part.
        dropped: frames that were never looked at, live.
        wall_s: from opening the source to the last row.
        backend: what the network for the landmarks ran on, in words.
    """

    error: str
    failed: list[tuple[str, str]]
    dropped: int
    wall_s: float
    backend: str


def write_sidecar(
    path: Path, origin: Origin, tally: Tally, outcome: Outcome, *, input_path: str = "", table_bytes: int | None = None
) -> None:
    """Write the sidecar.

    Args:
        path, origin, tally, outcome: where, and what it tells.
        input_path: where the input is, which does not have to be the same for the table to be the same; "": unknown.
        table_bytes: the size of the table.
    Raises:
        SinkError: it cannot be written.
    """
    counts = {**tally.counts(), "dropped": outcome.dropped, "failed": len(outcome.failed)}
    content = origin.table()
    content |= {"path": input_path} if input_path else {}
    content |= {} if table_bytes is None else {"table_bytes": table_bytes}
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
    atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def recorded_failures(path: Path) -> list[tuple[str, str]]:
    """(place, reason) of what a run had to leave out, by its sidecar, which `why_not_finished` has accepted."""
    return [(entry["place"], entry["reason"]) for entry in json.loads(path.read_text(encoding="utf-8"))["failed"]]


def _what_differs(key: str, wanted: Any, found: Any) -> str:
    """A part of two sidecars that differs; of settings, which ones."""
    settings = found.get(key) if isinstance(found, dict) else None
    if key != "settings" or not isinstance(settings, dict):
        return f"{key} differs"
    names = [name for name in wanted | settings if wanted.get(name, ...) != settings.get(name, ...)]
    return f"settings differ: {', '.join(names)}"


def _are_failures(found: Any) -> bool:
    """Whether a sidecar's "failed" is what `recorded_failures` reads."""
    return isinstance(found, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("place", "reason"))
        for entry in found
    )


def whose_table(path: Path, origin: Origin, input_path: str) -> str:
    """The path of the other input that a complete table is of, by its sidecar; "" where it is of this one.

    An input that has changed where it was is no other one. Sidecars that have no path, or cannot be read, tell nothing.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(found, dict) or found.get("complete") is not True or not isinstance(found.get("path"), str):
        return ""
    same = found.get("input") == json.loads(json.dumps(origin.input)) or found["path"] == input_path
    return "" if same else found["path"]


def why_not_finished(path: Path, origin: Origin, table: Path) -> str:
    """Say why the table beside this sidecar is not the whole answer to the same question; "" where it is."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        size = table.stat().st_size
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, ValueError, RecursionError):
        return f"{path.name} cannot be read"
    wanted = json.loads(json.dumps(origin.table()))
    for key, value in wanted.items():
        if not isinstance(found, dict) or found.get(key) != value:
            return _what_differs(key, value, found)
    if found.get("complete") is not True:
        return f"it is not whole: {found.get('error')}"
    if not _are_failures(found.get("failed")):
        return f"{path.name} cannot be read"
    written = found.get("table_bytes", size)  # sidecars of before do not tell
    return "" if written == size else f"the table has {size} bytes, {written} were written"
