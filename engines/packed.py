"""The levels of a pyramid side by side on one canvas: one run of the network in place of one for each level.

Meant for GPUs, where beginning a run (launches, copies, another shape than the last) should cost more than the pixels
of a small picture; no GPU has run it yet. A CPU's time goes by pixels, of which a canvas has more: there the levels run
one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .parts import REACH

if TYPE_CHECKING:
    from ..tracker.types import Float32, UInt8
    from .backend import Backend

Size = tuple[int, int]

# Between levels, so that none has a part in another's answers. As all of them begin and end with a cell of the pooling,
# 32 would do; see `REACH`.
GUTTER = REACH
# Beyond a picture the network sees zeros, in every layer. Of a grey this is true in the first one alone, and nearly.
FILL = 127


@dataclass(frozen=True, slots=True)
class Layout:
    """Where levels lie on a canvas.

    Attributes:
        size: (h, w) of the canvas, pixels.
        corners: (y, x) of each level's first pixel.
    """

    size: Size
    corners: tuple[Size, ...]

    @property
    def area(self) -> int:
        """Pixels of the canvas."""
        return self.size[0] * self.size[1]


def lay_out(sizes: Sequence[Size]) -> Layout:
    """Put the first level to the left of all others or above them, whichever needs less room; and so on.

    Args:
        sizes: (h, w) of each level (at least one), divisible by 4, the largest first.
    """
    (height, width), others = sizes[0], sizes[1:]
    if not others:
        return Layout((height, width), ((0, 0),))
    rest = lay_out(others)
    right, down = width + GUTTER, height + GUTTER
    beside = Layout((max(height, rest.size[0]), right + rest.size[1]), _moved(rest, 0, right))
    below = Layout((down + rest.size[0], max(width, rest.size[1])), _moved(rest, down, 0))
    return min(beside, below, key=lambda layout: layout.area)


def _moved(rest: Layout, down: int, right: int) -> tuple[Size, ...]:
    return ((0, 0), *((y + down, x + right) for y, x in rest.corners))


def run_levels(backend: Backend, levels: Iterable[UInt8]) -> Iterator[Float32]:
    """Response maps (K, h, w) of every level, each valid until the next one is asked for.

    Args:
        backend: a network that scans. If its `canvas` holds all levels, it runs once.
        levels: (h, w, 3) uint8 BGR, h and w divisible by 4, the largest first.
    """
    most = backend.canvas
    if most is not None:
        levels = list(levels)
        layout = lay_out([level.shape[:2] for level in levels])
        if layout.size[0] <= most[0] and layout.size[1] <= most[1]:
            yield from _run_packed(backend, levels, layout)
            return
    for level in levels:
        yield backend.run(level[None])[0][0]


def _run_packed(backend: Backend, levels: Sequence[UInt8], layout: Layout) -> Iterator[Float32]:
    canvas = np.full((*layout.size, 3), FILL, np.uint8)
    places = [
        (slice(y, y + level.shape[0]), slice(x, x + level.shape[1]))
        for level, (y, x) in zip(levels, layout.corners, strict=True)
    ]
    for level, place in zip(levels, places, strict=True):
        canvas[place] = level
    maps = backend.run(canvas[None])[0][0]
    for rows, columns in places:
        yield np.ascontiguousarray(maps[:, rows, columns])
