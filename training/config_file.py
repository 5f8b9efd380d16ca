"""TOML files as dataclasses: unknown keys are refused, a file may build on another, `a.b=value` overrides both."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..tracker.errors import ConfigError, suggestion

BASE = "base"
Kind = TypeVar("Kind")


def read_as(kind: type[Kind], path: Path, overrides: Sequence[str] = ()) -> Kind:
    """Read a TOML file as a dataclass and apply `a.b=value` overrides, whose values are TOML, too.

    A file with `base = "other.toml"` builds on that file in the same folder: tables are merged, values replaced.

    Raises:
        ConfigError: unreadable file, unknown key (names the nearest known one) or a value of the wrong type.
    """
    table = _read(path)
    of_base = [override for override in overrides if override.partition("=")[0].strip() == BASE]
    for override in of_base:  # before the base is read
        _override(table, override)
    table = _with_base(table, path)
    for override in overrides:
        if override not in of_base:
            _override(table, override)
    try:
        settings: Kind = _build(kind, table, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return settings


def _read(path: Path, asker: str = "") -> dict[str, Any]:
    """One file's own settings; error messages name `asker`, which wants them."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration{asker}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not TOML, or not even text; or too deep
        raise ConfigError(f"{path}: not a TOML file{asker}: {error}") from error


def _with_base(table: dict[str, Any], *paths: Path) -> dict[str, Any]:
    """The settings `table` of the last of `paths`, merged over those of its base, and so on.

    Each path is the base of the one before it.
    """
    if BASE not in table:
        return table
    base = paths[-1].parent / str(table.pop(BASE))
    below = _read(base, f", the base of {paths[-1]}")
    if base.resolve() in (path.resolve() for path in paths):
        told = " -> ".join(map(str, (*paths, base)))
        raise ConfigError(f"{paths[0]}: base: wanted a file that does not build on itself, got {told}")
    return _joined(_with_base(below, *paths, base), table)


def _joined(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _joined(base[key], value) if both else value
    return result


def _override(table: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: wanted key.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # not TOML, or nested too deeply: a plain string
        parsed = value
    *path, last = key.strip().split(".")
    for name in path:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {text}: {name} is not a table")
    table[last] = parsed


def _build(kind: Any, value: Any, where: str) -> Any:
    """Convert a TOML value to an annotated type; `where` is the setting's dotted name."""
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if typing.get_origin(kind) is tuple:
        return _tuple(kind, value, where)
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{where}: wanted a number of at most 64 bits, got one of {value.bit_length() + 1}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = typing.get_origin(kind) or kind
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: wanted {plain.__name__}, got {value!r}")
    return value


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: wanted a table, got {value!r}")
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in hints:
            raise ConfigError(f"unknown setting {prefix}{key}; {suggestion(key, hints)}")
    for field in dataclasses.fields(kind):
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in value:
            raise ConfigError(f"{prefix}{field.name}: is missing")
    return kind(**{key: _build(hints[key], entry, f"{prefix}{key}") for key, entry in value.items()})


def _tuple(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: wanted a list, got {value!r}")
    kinds = typing.get_args(kind)
    if len(kinds) == 2 and isinstance(kinds[1], types.EllipsisType):
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{where}: wanted {len(kinds)} values, got {value!r}")
    return tuple(_build(k, v, f"{where}.{i}") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
