"""Model cards: what a weight file is, how it must be used, where it comes from and how well it performs.

A card is one TOML file. Those that ship are in `engines/cards` with their weights in `engines/weights`; users' own are
in `$FACETRACK_HOME/cards` and `$FACETRACK_HOME/weights` (default: the user's data folder).
"""

from __future__ import annotations

import hashlib
import logging
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ..tracker.errors import CardError, suggestion

SHIPPED = Path(__file__).parent
ROLES = {"align": ("net",), "detect": ("scan", "refine")}  # the networks of each task
TASKS = tuple(ROLES)
CALIBRATION = {"align": ("confidence", "noise", "confidence_ece", "shape"), "detect": ("scan", "refine", "second_look")}
TABLES = ("input", "codec", "weights", "measured", "calibration")  # codec.py knows the keys of the codec
FIELDS = ("name", "network", "task", "markup", "parameters", "gmac", "data", "licence", *TABLES)
LISTS = {"input.size": 2, "calibration.confidence": 2, "calibration.noise": 3}  # -> how many numbers
LISTS |= {"calibration.scan": 9, "calibration.refine": 13}
ABOVE_0 = ("input.box_scale", *(f"codec.{name}" for name in ("stride", "sigma", "peak", "pixels", "face_px")))
LARGEST = 2.0**63  # limit of TOML's integers; it also rejects NaN and infinity
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Weights:
    """One file of weights.

    Attributes:
        path: where it should be.
        sha256: of the whole file; checked at every load.
        precision: "fp32", "fp16" or "int8": how the numbers are stored.
        cpu: the same network in a form that is faster on CPUs with an 8-bit dot product, if there is such a file.
    """

    path: Path
    sha256: str
    precision: str
    cpu: Weights | None = None

    @classmethod
    def of(cls, path: Path, precision: str, cpu: Weights | None = None) -> Weights:
        """Describe a file of weights as it is now."""
        return cls(path, hashlib.sha256(path.read_bytes()).hexdigest(), precision, cpu)

    def read(self) -> bytes:
        """Read the file and check that its hash is the card's.

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
        box_scale: side of the square crop over the longer side of the face's upright box, see `views.face_box`.
        codec: kind and parameters of the decoding.
        weights: role -> file, for each of the task's `ROLES`.
        parameters: number of trained values that the deployed network has.
        gmac: its billions of multiplications for one crop (one megapixel for a detector).
        data: what it was trained on.
        licence: the terms that follow from the data.
        measured: name of a figure -> value; the name says on which data it was measured.
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
        """Every file of weights by its purpose: the roles, and "ROLE on a CPU" where there is such a file."""
        on_cpu = {f"{role} on a CPU": weights.cpu for role, weights in self.weights.items() if weights.cpu}
        return {**self.weights, **on_cpu}


def home() -> Path:
    """Return the user's own folder of cards and weights: `$FACETRACK_HOME`, else the platform's data folder."""
    configured = os.environ.get("FACETRACK_HOME")
    if configured:
        return Path(configured)
    from platformdirs import user_data_path

    return user_data_path("facetrack", appauthor=False)


def read_card(path: Path) -> ModelCard:
    """Read one card; its weights are expected in the folder `weights` beside the card's own folder.

    Raises:
        CardError: the card is unreadable, or a field is missing, unknown or of the wrong type; the message says which.
    """
    try:
        return _card(tomllib.loads(path.read_text(encoding="utf-8")), path.parent.parent / "weights")
    except OSError as error:
        raise CardError(f"{path}: cannot read the model card: {error.strerror}") from error
    except KeyError as error:
        raise CardError(f"{path}: not a usable model card: {error} is missing") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise CardError(f"{path}: not a usable model card: {error}") from error


def _card(table: dict[str, Any], folder: Path) -> ModelCard:
    _refuse_unknown(table, FIELDS)
    shape, task = _field(table, "input", dict), _task(_field(table, "task", str))
    _refuse_unknown(shape, ("size", "box_scale"), "input.")
    height, width = _numbers(shape, "input.")["size"]
    calibration = _field({"calibration": {}, **table}, "calibration", dict)
    _refuse_unknown(calibration, CALIBRATION[task], "calibration.")
    _numbers(calibration, "calibration.", but=("confidence_ece",))
    return ModelCard(
        name=_field(table, "name", str),
        network=_field(table, "network", str),
        task=task,
        markup=_field(table, "markup", str),
        size=(int(height), int(width)),
        box_scale=float(shape.get("box_scale", 1.0)),
        codec=_numbers(_field(table, "codec", dict), "codec.", but=("kind",)),
        weights=_roles(_field(table, "weights", dict), task, folder),
        parameters=_field(table, "parameters", int),
        gmac=float(_numbers({"gmac": table["gmac"]})["gmac"]),
        data=tuple(_field({"data": text}, "data", str) for text in _field(table, "data", list)),
        licence=_field(table, "licence", str),
        measured=_numbers(_field({"measured": {}, **table}, "measured", dict), "measured."),
        calibration=calibration,
    )


def _roles(table: dict[str, Any], task: str, folder: Path) -> dict[str, Weights]:
    files = {role: _weights(_field(table, role, dict), folder, f"weights.{role}.") for role in table}
    _refuse_unknown(table, ROLES[task], "weights.")
    for role in ROLES[task]:
        if role not in files:
            raise KeyError(f"weights.{role}")
    return files


def _weights(table: dict[str, Any], folder: Path, where: str) -> Weights:
    _refuse_unknown(table, ("file", "sha256", "precision", "cpu"), where)
    path = folder / _field(table, "file", str)
    cpu = _weights(_field(table, "cpu", dict), folder, f"{where}cpu.") if "cpu" in table else None
    return Weights(path, _field(table, "sha256", str), _field(table, "precision", str), cpu)


def _task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"task: wanted one of {', '.join(TASKS)}, got {name!r}")
    return name


def _refuse_unknown(table: Iterable[str], known: tuple[str, ...], where: str = "") -> None:
    """Refuse names that nobody reads: they are probably mistyped, and their settings would be ignored silently."""
    for key in table:
        if key not in known:
            raise ValueError(f"unknown key {where}{key}; {suggestion(key, known)}")


def _numbers(table: dict[str, Any], where: str = "", but: tuple[str, ...] = ()) -> dict[str, Any]:
    """Check that all values except `but` are finite numbers, above 0 or in lists as needed; return the table."""
    for key, value in table.items():
        if key in but:
            continue
        count, least = LISTS.get(where + key), 0.0 if where + key in ABOVE_0 else -LARGEST
        numbers = value if count and isinstance(value, list) else [value]
        fit = [type(number) in (int, float) and least < number < LARGEST for number in numbers]
        if not all(fit) or len(fit) != (count or 1):
            wanted = f"{count} numbers" if count else "a number above 0" if least == 0 else "a number"
            raise ValueError(f"{where}{key}: wanted {wanted}, got {value!r}")
    return table


def _field(table: dict[str, Any], key: str, kind: type[T]) -> T:
    value = table[key]
    if not isinstance(value, kind):
        raise TypeError(f"{key}: wanted {kind.__name__}, got {value!r}")
    if isinstance(value, str) and any(sign < " " for sign in value):
        raise ValueError(f"{key}: wanted text in one line, got {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class Folder:
    """The contents of a folder of cards.

    Attributes:
        cards: those that can be read, by their names.
        broken: file name without suffix, which should be the card's name -> what is wrong with the file.
    """

    cards: Mapping[str, ModelCard]
    broken: Mapping[str, CardError]

    @classmethod
    def read(cls, folder: Path) -> Folder:
        """Read all cards of a folder; of two with the same name the first counts."""
        cards: dict[str, ModelCard] = {}
        broken: dict[str, CardError] = {}
        for path in sorted(folder.glob("*.toml")):
            try:
                card = read_card(path)
            except CardError as error:
                broken[path.stem] = error
            else:
                cards.setdefault(card.name, card)
        return cls(cards, broken)


def _folders() -> tuple[Folder, Folder]:
    """The user's own folder and the shipped one."""
    return Folder.read(home() / "cards"), Folder.read(SHIPPED / "cards")


def all_cards() -> list[ModelCard]:
    """Every card that can be read, the user's own before the shipped ones, each name once."""
    own, shipped = _folders()
    return [*own.cards.values(), *(card for name, card in shipped.cards.items() if name not in own.cards)]


def broken_cards() -> dict[str, CardError]:
    """What is wrong with each card that cannot be read, by its file name without suffix."""
    own, shipped = _folders()
    return {**shipped.broken, **own.broken}


def broken_weights(cards: Iterable[ModelCard]) -> list[CardError]:
    """What is wrong with the files of weights: the first fault of each card that has one."""
    faults = []
    for card in cards:
        try:
            for weights in card.files.values():
                weights.read()
        except CardError as error:
            faults.append(error)
    return faults


def find_card(name: str, *tasks: str) -> ModelCard:
    """Find the card of this name, or the default card of the network of this name, for one of these tasks.

    A user's own card takes precedence over a shipped card of the same name. A network's default is its shipped card, or
    the user's own of the same name as that; if the network has no shipped card, it is the first of the user's own.
    Cards that cannot be read and are not requested are logged and left out.

    Raises:
        CardError: there is no such card for these tasks, or it cannot be read.
    """
    folders = own, shipped = _folders()
    cards = [card for folder in (shipped, own) for card in folder.cards.values() if card.task in tasks]
    default = next((card.name for card in cards if card.network == name), name)
    for wanted in (name, default):
        for folder in folders:
            if wanted in folder.cards and folder.cards[wanted].task in tasks:
                _warn_broken_cards(own, shipped)
                return folder.cards[wanted]
            if wanted in folder.broken:
                raise folder.broken[wanted]
    _warn_broken_cards(own, shipped)
    known = ", ".join(f"{card.name} ({card.network})" for card in all_cards() if card.task in tasks) or "none"
    raise CardError(
        f"no model {name!r} to {' or '.join(tasks)} with; available: {known}; `facetrack models` lists them all"
    )


def _warn_broken_cards(*folders: Folder) -> None:
    for folder in folders:
        for error in folder.broken.values():
            _warn(f"{error}; it is left out: correct or remove it")


@cache
def _warn(line: str) -> None:
    """Log a line only once, because several cards are looked for at the start."""
    log.warning("%s", line)
