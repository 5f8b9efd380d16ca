"""Runs of more than a runtime takes at once: batches in parts, pictures in tiles that overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..tracker.errors import BackendError

if TYPE_CHECKING:
    from ..tracker.types import UInt8
    from .backend import Outputs

Run = Callable[["UInt8"], "Outputs"]
# Pixels that a tile shows beyond those that count. BB-FCN's backbone sees 35 to either side: 4 by its convolutions in
# full size, 12 in half, 16 in a quarter, 3 within a cell of its pooling. Of cells of 4, so that these stay in step.
REACH = 36


def run_in_batches(run: Run, images: UInt8, most: int) -> Outputs:
    """Run (B, h, w, 3) pictures in batches of at most `most`."""
    if len(images) <= most:
        return run(images)
    starts = range(0, len(images), most)
    parts = [tuple(output.copy() for output in run(images[i : i + most])) for i in starts]
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))


def run_in_tiles(run: Run, images: UInt8, most: tuple[int, int]) -> Outputs:
    """Run (B, h, w, 3) pictures through a network that gives maps (B, C, h, w), in tiles of at most `most`.

    Args:
        run: the network; a map's pixel depends on the picture within `REACH` pixels of it.
        images: h and w divisible by 4.
        most: (h, w) of a tile, divisible by 4 and more than twice the reach.
    Raises:
        BackendError: the network gives something else than maps of its pictures' size.
    """
    batch, *size = images.shape[:3]
    if all(length <= limit for length, limit in zip(size, most, strict=True)):
        return run(images)
    rows, columns = (list(_starts(length, limit)) for length, limit in zip(size, most, strict=True))
    whole: list[NDArray[np.float32]] = []
    for y, x in product(rows, columns):
        tile = np.ascontiguousarray(images[:, y : y + most[0], x : x + most[1]])
        maps = run(tile)
        if any(part.shape[2:] != tile.shape[1:3] for part in maps):
            raise BackendError(f"pictures {images.shape}: wanted at most {most}; its answers cannot be put together")
        whole = whole or [np.empty((batch, part.shape[1], *size), np.float32) for part in maps]
        top, left = y and y + REACH, x and x + REACH  # what lies beyond the far edges is written over by the next tile
        for part, target in zip(maps, whole, strict=True):
            target[:, :, top : y + most[0], left : x + most[1]] = part[:, :, top - y :, left - x :]
    return tuple(whole)


def _starts(length: int, limit: int) -> Iterator[int]:
    """Where tiles begin, so that each ends `REACH` behind the place from which the next one counts."""
    last = max(length - limit, 0)
    yield from range(0, last, limit - 2 * REACH)
    yield last
