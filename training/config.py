"""The trainer's settings: frozen dataclasses as the schema, TOML as the file, unknown keys refused.

Every default is a working one; a TOML file names only what its run changes.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..tracker.errors import ConfigError
from .augment import Geometry


@dataclass(frozen=True, slots=True)
class Network:
    """What `engines.nets.build` is called with."""

    name: str = "gv"
    landmarks: int = 68
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Corpus:
    """One folder of the training mixture.

    Attributes:
        path: folder below the data root.
        layout: "pts" (300-W), "table" (labels.csv) or "images" (no faces).
        weight: share of the mixture at the start, relative to the other corpora.
        late_weight: the same at the end; weights move linearly over the run. Negative: as at the start.
    """

    path: str
    layout: str = "pts"
    weight: float = 1.0
    late_weight: float = -1.0


@dataclass(frozen=True, slots=True)
class Vectors:
    """Labels and losses of GV."""

    sigma: float = 1.2
    peak: float = 3.0
    mse: float = 10.0
    coordinate: float = 1.0
    negatives: float = 0.14


@dataclass(frozen=True, slots=True)
class Discs:
    """Labels and negatives of BB-FCN.

    Attributes:
        face_px: smallest and largest side of a face's landmark box that the backbone must answer to, pixels.
        radius: of the discs, pixels.
        ring: width of the band round a disc that is left out of the loss, pixels.
        random_share: for this share of the run negative pixels are drawn at random, later the loudest are taken.
        chip_px: the faces in memory are shrunk to boxes of this side.
        shift: how far a face's centre may be from the window's, over the face's side; large: anywhere in it.
        positives: share of the pictures that show a face.
        hard_share: share of the negative pictures that come from mined false alarms, once there are any.
    """

    face_px: tuple[float, float] = (14.0, 32.0)
    radius: float = 2.0
    ring: float = 1.0
    random_share: float = 0.12
    chip_px: float = 40.0
    shift: float = 10.0
    positives: float = 0.5
    hard_share: float = 0.5


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: optimiser steps of the whole run.
        batch: pictures per step over all processes.
        learning_rate: peak of AdamW's rate; linear warm-up, then a cosine to zero.
        sizes: (share of the run, crop side): crops grow during training, small ones are cheap.
    """

    steps: int = 10_000
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warm_up: int = 300
    ema: float = 0.999
    clip: float = 5.0
    sizes: tuple[tuple[float, int], ...] = ((0.0, 128),)
    validate_every: int = 500
    checkpoint_every: int = 200
    workers: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Config:
    """One training run."""

    network: Network = field(default_factory=Network)
    corpora: tuple[Corpus, ...] = ()
    negatives: tuple[str, ...] = ()
    validation: str = ""
    geometry: Geometry = field(default_factory=Geometry)
    vectors: Vectors = field(default_factory=Vectors)
    discs: Discs = field(default_factory=Discs)
    schedule: Schedule = field(default_factory=Schedule)


def load(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a TOML file and apply `a.b=value` overrides, whose values are TOML too.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest known one) or a value of the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from error
    for override in overrides or []:
        _override(table, override)
    config = _build(Config, table, "")
    assert isinstance(config, Config)
    return config


def _override(table: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: wanted key.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *path, last = key.strip().split(".")
    for name in path:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {text}: {name} is not a table")
    table[last] = parsed


def _build(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _tuple(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or kind
    wrong = not isinstance(value, plain) or (plain is int and isinstance(value, bool))
    if plain is not Any and wrong:
        raise ConfigError(f"{where}: wanted {plain.__name__}, got {value!r}")
    return value


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where or 'configuration'}: wanted a table, got {value!r}")
    hints = typing.get_type_hints(kind)
    for key in value:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(hints)}"
            raise ConfigError(f"unknown setting {where}{key}{hint}")
    return kind(**{key: _build(hints[key], entry, f"{where}{key}.") for key, entry in value.items()})


def _tuple(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{where.rstrip('.')}: wanted a list, got {value!r}")
    inner = typing.get_args(kind)
    if len(inner) == 2 and isinstance(inner[1], types.EllipsisType):
        return tuple(_build(inner[0], entry, f"{where}{i}.") for i, entry in enumerate(value))
    if len(inner) != len(value):
        raise ConfigError(f"{where.rstrip('.')}: wanted {len(inner)} values, got {value!r}")
    return tuple(
        _build(k, entry, f"{where}{i}.") for i, (k, entry) in enumerate(zip(inner, value, strict=True))
    )
