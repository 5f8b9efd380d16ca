"""Inputs that are too large for a runtime: batches are split, pictures are cut into overlapping tiles."""

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
# Border pixels of a tile whose responses are discarded. The receptive field of BB-FCN's backbone reaches 35 pixels to
# either side: 4 from its convolutions at full size, 12 at half, 16 at a quarter, 3 within a pooling cell. Rounded up to
# a multiple of 4, so that all tiles have the same pooling cells.
HALO = 36


def run_in_batches(run: Run, images: UInt8, most: int) -> Outputs:
    """Run a network on (B, h, w, 3) uint8 pictures in batches of at most `most`, and join its outputs."""
    if len(images) <= most:
        return run(images)
    starts = range(0, len(images), most)
    parts = [tuple(output.copy() for output in run(images[i : i + most])) for i in starts]
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))


def run_in_tiles(run: Run, images: UInt8, most: tuple[int, int]) -> Outputs:
    """Run a network in tiles; the outputs are those of the whole pictures, up to rounding.

    Args:
        run: a fully convolutional network that returns maps (B, C, h, w), with a receptive field of at most `HALO`
            pixels to either side.
        images: (B, h, w, 3) uint8, h and w divisible by 4.
        most: (h, w) of a tile, divisible by 4 and more than twice `HALO`.
    Raises:
        BackendError: the network's outputs are not maps of its pictures' size.
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
            raise BackendError(
                f"pictures {images.shape}: wanted at most {most}; the outputs of this network's tiles cannot be joined"
            )
        whole = whole or [np.empty((batch, part.shape[1], *size), np.float32) for part in maps]
        top, left = y and y + HALO, x and x + HALO  # the halo at the far edges is overwritten by the next tile
        for part, target in zip(maps, whole, strict=True):
            target[:, :, top : y + most[0], left : x + most[1]] = part[:, :, top - y :, left - x :]
    return tuple(whole)


def _starts(length: int, limit: int) -> Iterator[int]:
    """First pixels of the tiles along an axis, which overlap by twice the halo."""
    last = max(length - limit, 0)
    yield from range(0, last, limit - 2 * HALO)
    yield last
