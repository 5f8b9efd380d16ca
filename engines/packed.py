"""The levels of a pyramid packed into one atlas: one run of the network instead of one for each level.

Meant for GPUs, where the fixed cost of a run (launches, copies, a new shape) should exceed that of the pixels of a
small picture; it has not been run on a GPU yet. On a CPU the time is proportional to the number of pixels, of which an
atlas has more, so there the levels run one after the other.

Source: Dubout and Fleuret, "Exact acceleration of linear object detectors", ECCV 2012 (patchworks of pyramid levels).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .parts import HALO

if TYPE_CHECKING:
    from ..tracker.types import Float32, UInt8
    from .backend import Backend

Size = tuple[int, int]

# Pixels between levels, so that none influences the responses to another. 32 would be enough, because all levels begin
# and end with a pooling cell; see `HALO`.
GUTTER = HALO
# (h, w) on GPUs. It holds the atlas of a 4K frame, and the finest level of 4K pictures and of photographs of 12
# megapixels in either orientation. Larger atlases are not packed, larger levels run in tiles.
LARGEST_ATLAS = 2304, 2304
# Beyond a picture every layer sees zeros (its padding). Grey is about zero for the first layer, but only for that one.
FILL = 127


@dataclass(frozen=True, slots=True)
class AtlasLayout:
    """Where levels lie in an atlas.

    Attributes:
        size: (h, w) of the atlas, pixels.
        corners: (y, x) of each level's first pixel.
    """

    size: Size
    corners: tuple[Size, ...]

    @property
    def area(self) -> int:
        """Pixels of the atlas."""
        return self.size[0] * self.size[1]


@lru_cache(256)
def pack_levels(sizes: tuple[Size, ...]) -> AtlasLayout:
    """Pack levels into an atlas: each to the left of all smaller ones or above them, whichever gives the smallest area.

    Args:
        sizes: (h, w) of each level (at least one), divisible by 4, the largest first.
    """
    return min(_layouts(sizes), key=lambda layout: layout.area)


def _layouts(sizes: tuple[Size, ...]) -> Iterator[AtlasLayout]:
    (height, width), others = sizes[0], sizes[1:]
    if not others:
        yield AtlasLayout((height, width), ((0, 0),))
        return
    right, down = width + GUTTER, height + GUTTER
    for rest in _layouts(others):
        yield AtlasLayout((max(height, rest.size[0]), right + rest.size[1]), _offset(rest, 0, right))
        yield AtlasLayout((down + rest.size[0], max(width, rest.size[1])), _offset(rest, down, 0))


def _offset(rest: AtlasLayout, down: int, right: int) -> tuple[Size, ...]:
    """The corners of the first level and of the others, which are moved down and right by these many pixels."""
    return ((0, 0), *((y + down, x + right) for y, x in rest.corners))


def run_levels(backend: Backend, levels: Iterable[UInt8]) -> Iterator[Float32]:
    """Yield the response maps of every level; each is valid until the next one is requested.

    Args:
        backend: a fully convolutional network. It runs once if all levels fit into its `max_atlas`.
        levels: (h, w, 3) uint8 BGR, h and w divisible by 4, the largest first.
    Yields:
        (K, h, w) float32, one for each level.
    """
    limit = backend.max_atlas
    if limit is not None:
        levels = list(levels)
        layout = pack_levels(tuple(level.shape[:2] for level in levels))
        if layout.size[0] <= limit[0] and layout.size[1] <= limit[1]:
            yield from _run_packed(backend, levels, layout)
            return
    for level in levels:
        yield backend.run(level[None])[0][0]


def _run_packed(backend: Backend, levels: Sequence[UInt8], layout: AtlasLayout) -> Iterator[Float32]:
    atlas = np.full((*layout.size, 3), FILL, np.uint8)
    windows = [
        (slice(y, y + level.shape[0]), slice(x, x + level.shape[1]))
        for level, (y, x) in zip(levels, layout.corners, strict=True)
    ]
    for level, window in zip(levels, windows, strict=True):
        atlas[window] = level
    maps = backend.run(atlas[None])[0][0]
    for rows, columns in windows:
        yield np.ascontiguousarray(maps[:, rows, columns])
