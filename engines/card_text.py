"""Model cards written as TOML, the way `card.read_card` reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .card import ModelCard, Weights


def card_text(card: ModelCard) -> str:
    """A card as TOML; its weights are named by their files alone, for they lie in the folder beside the cards'."""
    head = {
        "name": card.name,
        "network": card.network,
        "task": card.task,
        "markup": card.markup,
        "parameters": card.parameters,
        "gmac": card.gmac,
        "data": list(card.data),
        "licence": card.licence,
    }
    tables = {
        "input": {"size": list(card.size), "box_scale": card.box_scale},
        "codec": card.codec,
        "weights": {role: _file(weights) for role, weights in card.weights.items()},
        "measured": card.measured,
        "calibration": card.calibration,
    }
    lines = _lines(head)
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_lines(table)] if table else []
    return "\n".join(lines) + "\n"


def _file(weights: Weights) -> dict[str, Any]:
    table = {"file": weights.path.name, "sha256": weights.sha256, "precision": weights.precision}
    return table | ({"cpu": _file(weights.cpu)} if weights.cpu else {})


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {_value(value)}" for name, value in table.items()]


def _key(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_lines(value)) + " }"
    return json.dumps(value, ensure_ascii=False)  # TOML writes texts, numbers, truths and lists as JSON does
