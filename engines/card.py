"""Model cards: what a weight file is, how it must be used, where it comes from and how well it does.

A card is one TOML file. Those that ship are in `engines/cards` with their weights in `engines/weights`; further ones
are found in `$FACETRACK_HOME/cards` and `$FACETRACK_HOME/weights` (default: the user's data folder).
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..tracker.errors import CardError

SHIPPED = Path(__file__).parent
TASKS = ("align", "detect")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Weights:
    """One file of weights.

    Attributes:
        path: where it should be.
        sha256: of the whole file; checked at every load.
        precision: "fp32", "fp16" or "int8": how the numbers are stored.
        cpu: the same network as a CPU that multiplies bytes computes it faster, if there is such a file.
    """

    path: Path
    sha256: str
    precision: str
    cpu: Weights | None = None

    def read(self) -> bytes:
        """The file's bytes, once their hash is the card's.

        Raises:
            CardError: the file is missing, unreadable or not the one that the card describes.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise CardError(f"{self.path}: cannot read the weights ({error.strerror}); reinstall them") from error
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise CardError(
                f"{self.path}: these are not the weights of the card: wanted sha256 {self.sha256[:16]}..., got "
                f"{found[:16]}...; the file is damaged or was changed, reinstall it"
            )
        return content


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Everything needed to use a network and to judge it.

    Attributes:
        name: unique, e.g. "gv-mobilenetv3-68".
        network: family: "gv", "tab", "propnet", "span" or "bbfcn".
        task: one of `TASKS`.
        markup: name of the landmark markup.
        size: (height, width) of the crops in pixels; (0, 0) for a detector that takes any picture.
        box_scale: side of the square crop over the longer side of the landmarks' upright box.
        codec: kind and parameters of the decoding.
        weights: role -> file; an aligner has the one role "net".
        parameters: number of trained values.
        gmac: billions of multiplications for one crop (one megapixel for a detector).
        data: what it was trained on.
        licence: the terms that follow from that.
        measured: figure -> value, each with the data named in the key.
        calibration: constants measured after the training.
    """

    name: str
    network: str
    task: str
    markup: str
    size: tuple[int, int]
    box_scale: float
    codec: Mapping[str, Any]
    weights: Mapping[str, Weights]
    parameters: int
    gmac: float
    data: tuple[str, ...]
    licence: str
    measured: Mapping[str, float]
    calibration: Mapping[str, Any]

    @property
    def files(self) -> dict[str, Weights]:
        """Every file of weights by what it is for: the roles, and "ROLE on a CPU" where there are such."""
        on_cpu = {f"{role} on a CPU": weights.cpu for role, weights in self.weights.items() if weights.cpu}
        return {**self.weights, **on_cpu}


def home() -> Path:
    """Give the user's own folder of cards and weights: `$FACETRACK_HOME`, else the platform's data folder."""
    configured = os.environ.get("FACETRACK_HOME")
    if configured:
        return Path(configured)
    from platformdirs import user_data_path

    return user_data_path("facetrack", appauthor=False)


def read_card(path: Path) -> ModelCard:
    """Read one card; its weights are looked for in the folder `weights` beside the card's own folder.

    Raises:
        CardError: unreadable, or a field is missing or of the wrong kind; says which.
    """
    try:
        return _card(tomllib.loads(path.read_text(encoding="utf-8")), path.parent.parent / "weights")
    except OSError as error:
        raise CardError(f"{path}: cannot read the model card: {error.strerror}") from error
    except KeyError as error:
        raise CardError(f"{path}: not a usable model card: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise CardError(f"{path}: not a usable model card: {error}") from error


def _card(table: dict[str, Any], folder: Path) -> ModelCard:
    shape, weights = _field(table, "input", dict), _field(table, "weights", dict)
    height, width = _field(shape, "size", list)
    return ModelCard(
        name=_field(table, "name", str),
        network=_field(table, "network", str),
        task=_task(_field(table, "task", str)),
        markup=_field(table, "markup", str),
        size=(int(height), int(width)),
        box_scale=float(shape.get("box_scale", 1.0)),
        codec=_field(table, "codec", dict),
        weights={role: _weights(_field(weights, role, dict), folder) for role in weights},
        parameters=_field(table, "parameters", int),
        gmac=float(table["gmac"]),
        data=tuple(_field(table, "data", list)),
        licence=_field(table, "licence", str),
        measured=_field({"measured": {}, **table}, "measured", dict),
        calibration=_field({"calibration": {}, **table}, "calibration", dict),
    )


def _weights(table: dict[str, Any], folder: Path) -> Weights:
    path = folder / _field(table, "file", str)
    cpu = _weights(_field(table, "cpu", dict), folder) if "cpu" in table else None
    return Weights(path, _field(table, "sha256", str), _field(table, "precision", str), cpu)


def _task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"task: wanted one of {', '.join(TASKS)}, got {name!r}")
    return name


def _field(table: dict[str, Any], key: str, kind: type[T]) -> T:
    value = table[key]
    if not isinstance(value, kind):
        raise TypeError(f"{key}: wanted {kind.__name__}, got {value!r}")
    return value


def all_cards() -> list[ModelCard]:
    """Every card that can be found, the user's own before the shipped ones, each name once."""
    cards: dict[str, ModelCard] = {}
    for folder in (home() / "cards", SHIPPED / "cards"):
        for path in sorted(folder.glob("*.toml")):
            card = read_card(path)
            cards.setdefault(card.name, card)
    return list(cards.values())


def find_card(name: str, task: str) -> ModelCard:
    """The card of this name, or the default (first) card of the network of this name.

    Raises:
        CardError: nothing of that name does this task.
    """
    cards = [card for card in all_cards() if card.task == task]
    for card in cards:
        if card.name == name:
            return card
    for card in cards:
        if card.network == name:
            return card
    known = ", ".join(f"{card.name} ({card.network})" for card in cards) or "none"
    raise CardError(f"no model {name!r} to {task} with; there is {known}; `facetrack models` lists them all")
