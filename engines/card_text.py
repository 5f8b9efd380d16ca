"""Write model cards as TOML that `card.read_card` reads, and the files of weights beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..tracker.errors import SinkError
from .card import Folder, ModelCard, Weights
from .files import replace_file


def write_card(card: ModelCard, out: Path, text: str | None = None) -> ModelCard:
    """Write OUT/cards/NAME.toml, completely or not at all, and return the card.

    Args:
        card: the card to write.
        out: folder of `cards` and `weights`.
        text: the text to write; default: `card_text` of the card.
    Raises:
        SinkError: it cannot be written.
    """
    replace_file(card_path(card.name, out), (text or card_text(card)).encode(), SinkError)
    return card


def card_path(name: str, out: Path) -> Path:
    """Where `write_card` puts the card of this name."""
    return out / "cards" / f"{name}.toml"


def refuse_files_of_others(out: Path, name: str, contents: Mapping[str, bytes]) -> None:
    """Check, before anything is written, that no other card in OUT would lose a file of weights.

    Args:
        out: folder of `cards` and `weights`.
        name: name of the card to write.
        contents: name of each of its files without suffix -> bytes.
    Raises:
        SinkError: another card there has a file of the same name with other content.
    """
    hashes = {f"{stem}.onnx": hashlib.sha256(content).hexdigest() for stem, content in contents.items()}
    others = [card for card in Folder.read(out / "cards").cards.values() if card.name != name]
    for other in others:
        for weights in other.files.values():
            if hashes.get(weights.path.name, weights.sha256) != weights.sha256:
                raise SinkError(
                    f"{weights.path}: belongs to the card {other.name}, but {name} needs another file of that name; "
                    "choose another folder for --out"
                )


def write_weights(out: Path, name: str, content: bytes, precision: str) -> Weights:
    """Write OUT/weights/NAME.onnx, completely or not at all.

    Raises:
        SinkError: it cannot be written.
    """
    path = out / "weights" / f"{name}.onnx"
    replace_file(path, content, SinkError)
    return Weights(path, hashlib.sha256(content).hexdigest(), precision)


def install_card(card: ModelCard, folder: Path, out: Path) -> ModelCard:
    """Put a card that was made and measured elsewhere into OUT: its files into OUT/weights, then OUT/cards/NAME.toml.

    Args:
        card: the finished card.
        folder: has all files of the card, and no others.
        out: folder of `cards` and `weights`.
    Returns:
        The card.
    Raises:
        SinkError: a file cannot be written.
    """
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for name, content in contents.items():
        replace_file(out / "weights" / name, content, SinkError)
    return write_card(card, out)


def card_text(card: ModelCard) -> str:
    """A card as TOML; weights are named without a folder, because they are always in `weights` beside the cards."""
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
    return json.dumps(value, ensure_ascii=False)  # TOML writes strings, numbers, booleans and lists as JSON does
