"""A face's appearance in 192 numbers: enough to tell the faces of one video apart, not to recognise people.

It is a thumbnail of the face's upright crop as a unit vector, three numbers for each cell. Cells of which nothing
is known, for they lie outside the picture, are zero; two are compared over the cells that both know.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from .types import Float32, UInt8

DESCRIPTOR_SIDE = 8  # pixels of the thumbnail
SKIN_CHROMA = np.array([12.0, 13.0], np.float32)  # a, b of CIELAB less 128: mean of the 300-W training faces
CHROMA_SPREAD = 12.0  # chroma that counts as much as one standard deviation of the thumbnail's lightness
COLOURLESS, COLOURED = 1.5, 4.5  # chroma of half the thumbnail: a grey picture, one in colour; between them it fades
BLACK = 0.25  # of a cell: with more black than this it lies outside the picture, and nothing is known of it
TINY = np.float32(1e-3)  # lightness of a known cell that is as light as the mean: 0 would say that it is not known
LEAST_KNOWN = 0.25  # of the cells that both know; of less than that nothing follows
HALF_COSTS = 0.1  # of similarity: half a face is less proof than a whole one, see `similarity_in_part`


def describe_appearance(upright_crop: UInt8) -> Float32:
    """What an upright face crop (s, s, 3) looks like, as a unit vector; the dot product of two tells their similarity.

    Lightness, without its mean and contrast, and chroma, as it differs from the usual skin's: cheap (30 microseconds)
    and good for minutes of one video. What is black lies outside the picture and says nothing. On 3,462 YouTube frames
    of 350 persons, crops off by 4 %, 99 % of the similarities within a shot exceed 0.45 and 95 % exceed 0.61 (0.32 and
    0.53 with a third of the crop outside the picture); of those between two persons half are under 0.24, 95 % under
    0.60 and 99 % under 0.71 (0.26, 0.65, 0.75).
    """
    small = cv2.resize(upright_crop, (DESCRIPTOR_SIDE, DESCRIPTOR_SIDE), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small, cv2.COLOR_BGR2LAB)
    known = _inside(upright_crop)
    mean, deviation = cv2.meanStdDev(lab, mask=known)
    middle = np.array([mean[0, 0], 128.0, 128.0], np.float32)
    pixels: Float32 = np.subtract(lab.reshape(-1, 3), middle, dtype=np.float32)
    pixels[:, 0] /= deviation[0, 0] + 1e-3
    pixels[pixels[:, 0] == 0, 0] = TINY
    # in a grey video the same distance from skin in every face would make all faces alike
    seen = pixels if known is None else pixels[known.ravel() != 0]
    chroma = np.sort(np.abs(seen[:, 1]) + np.abs(seen[:, 2]))[len(seen) // 2] / 2 if len(seen) else 0.0
    colour = min(max((float(chroma) - COLOURLESS) / (COLOURED - COLOURLESS), 0.0), 1.0)
    pixels[:, 1:] -= SKIN_CHROMA * np.float32(colour)
    pixels[:, 1:] /= CHROMA_SPREAD
    if known is not None:
        pixels *= known.reshape(-1, 1)
    return _unit(pixels.ravel())


def _inside(crop: UInt8) -> UInt8 | None:
    """1 for each cell of the thumbnail of a crop (s, s, 3) that lies inside the picture, None where all do."""
    black = cv2.inRange(crop, 0, 0)
    if cv2.countNonZero(black) == 0:
        return None
    share = cv2.resize(black, (DESCRIPTOR_SIDE, DESCRIPTOR_SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(share <= 255 * BLACK, np.uint8)


def _unit(vector: Float32) -> Float32:
    return np.asarray(vector / (math.sqrt(np.vdot(vector, vector)) + 1e-6), np.float32)


def known_cells(appearance: Float32) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which cells of a thumbnail (C,) lie inside the picture."""
    return np.asarray(appearance[::3] != 0)


def blended(appearance: Float32, newest: Float32, weight: float) -> Float32:
    """A face's appearance with the newest counted in by a weight in [0, 1]; of a new cell wholly."""
    blend = (1 - weight) * appearance + weight * newest
    both = known_cells(appearance) & known_cells(newest)
    if not both.all():
        blend = np.where(
            np.repeat(both, 3), blend, appearance + newest
        )  # of a cell that one of them does not know, its is 0
    return _unit(blend)


def similarity(one: Float32, other: Float32) -> float:
    """How alike two appearances are, in [-1, 1]: the cosine over what both know; 0 where that is too little."""
    both = known_cells(one) & known_cells(other)
    if both.all():
        return float(one @ other)
    if both.mean() < LEAST_KNOWN:
        return 0.0
    cells = np.repeat(both, 3)
    return float(_unit(one[cells]) @ _unit(other[cells]))


def similarity_in_part(one: Float32, other: Float32) -> float:
    """How alike two appearances are where something may cover a part of one: the whole, or the best half less a cost.

    With a third of the crop covered (same frames as above), 81 % of the similarities within a shot exceed 99 % of those
    between persons, 38 % without halves; of whole faces 89 % both ways.
    """
    return max(similarity(one, other), _half_similarity(one, other) - HALF_COSTS)


def _half_similarity(one: Float32, other: Float32) -> float:
    """Likeness of the best half (left, right, upper or lower), -1 where too little of each is known."""
    side = math.isqrt(len(one) // 3)
    half = side // 2
    a, b = (vector.reshape(side, side, 3) for vector in (one, other))
    both = (a[..., 0] != 0) & (b[..., 0] != 0)
    halves = (np.s_[:, :half], np.s_[:, half:], np.s_[:half], np.s_[half:])
    shared = [where for where in halves if both[where].mean() > 2 * LEAST_KNOWN]
    parts = [(_part(a[where], both[where]), _part(b[where], both[where])) for where in shared]
    return max((float(x @ y) for x, y in parts), default=-1.0)


def _part(appearance: Float32, known: Any) -> Float32:
    """The known cells (h, w) of a part (h, w, 3) of a thumbnail, as a unit vector, its own mean lightness taken off."""
    part = appearance[known].copy()
    part[:, 0] -= part[:, 0].mean()
    return _unit(part.ravel())
