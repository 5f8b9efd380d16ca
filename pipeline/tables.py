"""Reports as plain text: aligned columns that stay readable in a pipe, a log and an e-mail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..engines.card import ModelCard

if TYPE_CHECKING:
    from .check import Check

MARKS = {"ok": "ok", "absent": "--", "failed": "NO"}


def columns(rows: Sequence[Sequence[str]], *, numbers_from: int | None = None) -> str:
    """Rows as aligned columns; those from `numbers_from` on are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first = len(widths) if numbers_from is None else numbers_from
    aligned = (
        [
            cell.rjust(width) if i >= first else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def file_bytes(card: ModelCard) -> int:
    """Bytes of a card's weights; missing files count as 0."""
    return sum(weights.path.stat().st_size for weights in card.files.values() if weights.path.is_file())


def cards_as_table(cards: Sequence[ModelCard]) -> str:
    """One line per card, and below each its figures, data and terms."""
    if not cards:
        return "no models are installed"
    head = ["MODEL", "NETWORK", "TASK", "MARKUP", "PARAMETERS", "FILE", "GMAC"]
    lines = columns([head, *(_card_cells(card) for card in cards)], numbers_from=4).splitlines()
    text = lines[:1]
    for card, line in zip(cards, lines[1:], strict=True):
        measured = "; ".join(f"{name}: {value:g}" for name, value in card.measured.items())
        text += [line, f"    measured: {measured or 'nothing yet'}"]
        text += [f"    trained on: {', '.join(card.data)}", f"    {card.licence}"]
    return "\n".join(text)


def _card_cells(card: ModelCard) -> list[str]:
    size = f"{file_bytes(card) / 1e6:.1f} MB"
    return [card.name, card.network, card.task, card.markup, f"{card.parameters:,}", size, f"{card.gmac:g}"]


def cards_as_json(cards: Sequence[ModelCard]) -> list[dict[str, Any]]:
    """The same in JSON's types, with file names and hashes."""
    return [
        {
            "name": card.name,
            "network": card.network,
            "task": card.task,
            "markup": card.markup,
            "input_size": list(card.size),
            "parameters": card.parameters,
            "bytes": file_bytes(card),
            "gmac": card.gmac,
            "measured": dict(card.measured),
            "data": list(card.data),
            "licence": card.licence,
            "weights": {
                role: {"file": str(weights.path), "sha256": weights.sha256, "precision": weights.precision}
                for role, weights in card.files.items()
            },
        }
        for card in cards
    ]


def check_as_lines(check: Check) -> str:
    """One line, and a second one with the remedy if there is one."""
    line = f"{MARKS[check.status]}  {check.subject}: {check.detail}"
    return f"{line}\n    -> {check.remedy}" if check.remedy else line


def bench_as_table(report: dict[str, Any]) -> str:
    """The figures of `bench.run_bench` for people."""
    machine, counts = report["machine"], report["counts"]
    head = [
        f"facetrack {report['facetrack']} on {machine['processor']}, {machine['cores']} cores; {report['backend']}",
        f"{report['input']}: {counts['frames']} frames, {counts['frames_with_face']} with a face",
        f"{report['wall_ms_per_frame']:.2f} ms per frame ({report['frames_per_s']:.0f} frames/s), "
        f"{report['cpu_ms_per_frame']:.2f} ms of processor time",
    ]
    return "\n".join(
        [*head, "", _durations("STAGE, ms", report["stages_ms"]), "", _durations("PART, ms", report["parts_ms"])]
    )


def _durations(title: str, rows: dict[str, dict[str, float]]) -> str:
    names = ["mean", "p50", "p90", "p99", "max"]
    cells = [[name, *(f"{values[key]:.3f}" for key in names)] for name, values in rows.items()]
    return columns([[title, *names], *cells], numbers_from=1)


def networks_as_table(report: dict[str, Any]) -> str:
    """The figures of `model_bench.bench_networks` for people."""
    machine, peaks = report["machine"], report["peaks"]
    head = [
        f"facetrack {report['facetrack']} ({report['commit']}) on {machine['processor']}, {machine['cores']} cores",
        f"at best {peaks['gmac_per_s']:.0f} GMAC/s and {peaks['gb_per_s']:.1f} GB/s ({peaks['how']})",
    ]
    names = ["NETWORK", "BACKEND", "PRECISION", "BATCH", "MS", "MS EACH", "GMAC/S", "OF ROOFLINE"]
    rows = columns([names, *(_network_cells(run) for run in report["networks"])], numbers_from=3)
    missing = [f"not measured: {kind}: {reason}" for kind, reason in report["not_measured"].items()]
    return "\n".join([*head, rows, *missing])


def _network_cells(run: dict[str, Any]) -> list[str]:
    share = f"{run['of_roofline']:.0%}" if run.get("of_roofline") is not None else ""
    speed = [f"{run['ms']['p50']:.3f}", f"{run['ms_per_picture']:.3f}", f"{run['gmac_per_s']:.1f}", share]
    return [f"{run['card']} {run['role']}", run["backend"], run["precision"], str(run["batch"]), *speed]
