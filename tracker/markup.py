"""Landmark markups as data: which point is where, which points mirror each other, what normalises errors.

Each markup is one TOML file in `markups/`. Left and right are the subject's: the picture's left eye is the
subject's right eye.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from .errors import MarkupError
from .types import Float32, Int64


@dataclass(frozen=True, slots=True)
class Markup:
    """The meaning of N landmarks.

    Attributes:
        name: as in file names and cards, e.g. "ibug68".
        points: N.
        parts: indices of each facial part, e.g. parts["eye_left"].
        boundaries: point sequences of the 15 boundary lines in channel order; empty where a markup has none.
        mirror: (N,) the point that takes each point's place in a mirrored picture; an involution.
        normalisers: name -> two groups of points; errors are divided by the distance between the groups' means.
        subsets: name -> groups of points whose means form another set ("five5", "inner49").
    """

    name: str
    points: int
    parts: dict[str, tuple[int, ...]]
    boundaries: dict[str, tuple[int, ...]]
    mirror: Int64
    normalisers: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    subsets: dict[str, tuple[tuple[int, ...], ...]]

    def subset(self, name: str, xy: Float32) -> Float32:
        """Return the points of a named subset, (..., N, 2) -> (..., M, 2); a group of points becomes its mean."""
        if name == self.name:
            return xy
        if name not in self.subsets:
            raise MarkupError(f"{self.name} has no subset {name!r}; it has {', '.join(self.subsets) or 'none'}")
        members, starts, sizes = _flat(self.subsets[name])
        return np.asarray(np.add.reduceat(xy[..., members, :], starts, axis=-2) / sizes, np.float32)


@cache
def _flat(groups: tuple[tuple[int, ...], ...]) -> tuple[Int64, Int64, Float32]:
    """Return the members of all groups in one array, where each group starts in it, and the group sizes (M, 1)."""
    sizes = np.array([len(group) for group in groups], np.float32)
    starts = np.cumsum([0, *map(len, groups[:-1])])
    return np.concatenate(groups).astype(np.int64), starts, sizes[:, None]


def names() -> list[str]:
    """Names of the markups that ship with the package, sorted."""
    folder = resources.files(__package__).joinpath("markups")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


@cache
def load(name: str) -> Markup:
    """Read a markup by name.

    Raises:
        MarkupError: there is no such markup, or its file contradicts itself.
    """
    file = resources.files(__package__).joinpath("markups", f"{name}.toml")
    if not file.is_file():
        raise MarkupError(f"unknown markup {name!r}: wanted one of {', '.join(names())}")
    return _parse(tomllib.loads(file.read_text(encoding="utf-8")))


def for_points(count: int) -> Markup:
    """The markup with this many points.

    Raises:
        MarkupError: no markup has that many.
    """
    for name in names():
        if load(name).points == count:
            return load(name)
    wanted = ", ".join(f"{load(name).points} ({name})" for name in names())
    raise MarkupError(f"no markup has {count} points; wanted {wanted}")


def _parse(table: dict[str, Any]) -> Markup:
    mirror = np.asarray(table["mirror"], np.int64)
    mirror.flags.writeable = False
    markup = Markup(
        name=table["name"],
        points=table["points"],
        parts={key: tuple(value) for key, value in table["parts"].items()},
        boundaries={key: tuple(value) for key, value in table.get("boundaries", {}).items()},
        mirror=mirror,
        normalisers={key: (tuple(a), tuple(b)) for key, (a, b) in table["normalisers"].items()},
        subsets={key: tuple(map(tuple, value)) for key, value in table.get("subsets", {}).items()},
    )
    every = np.arange(markup.points)
    if not np.array_equal(np.sort(mirror), every) or not np.array_equal(mirror[mirror], every):
        raise MarkupError(f"markup {markup.name}: mirror is not an involution of {markup.points} points")
    return markup
