"""Faces that are hard to see: behind masks and hands, in fog, in the dark, cut by the picture's edge.

A detector that was trained on whole, well-lit faces alone loses these first. Covered landmarks must still be found
where the rest of the face suggests they are; those beyond an edge need not be.
"""

from __future__ import annotations

import cv2
import numpy as np

from ...tracker.types import Float32, Int64, UInt8
from ..augment import filling
from .discs import UNKNOWN

GREY = 127  # border of a pyramid's levels; crops for the second look have a black one
CLOSE_UP = 0.35  # share of the cut faces that are cut at all four sides
UPPER = 0.3  # share of the covered faces that lose eyes and brow; the others lose nose, mouth and chin


def cover(bgr: UInt8, eyes: Float32, mouths: Float32, patches: list[UInt8], rng: np.random.Generator) -> UInt8:
    """Cover half of each face, as a mask, a bottle, a hand, a hat or hair does.

    Args:
        bgr: (h, w, 3) uint8, not changed.
        eyes: (F, 2, 2) pixels. mouths: (F, 2) their centres.
        patches: pieces of other pictures.
    """
    bgr = bgr.copy()
    for pair, mouth in zip(eyes, mouths, strict=True):
        if np.isfinite(pair).all() and np.isfinite(mouth).all():
            _cover_one(bgr, _outline(pair, mouth, rng), patches, rng)
    return bgr


def _outline(eyes: Float32, mouth: Float32, rng: np.random.Generator) -> Int64:
    """A polygon (6, 2) over half of a face, whole pixels."""
    middle, across = eyes.mean(0), eyes[1] - eyes[0]
    down = mouth - middle
    length = float(np.linalg.norm(across)) + 1e-3
    across *= max(length, 0.8 * float(np.linalg.norm(down))) / length  # in a profile the eyes are close together
    if rng.random() < UPPER:
        top, waist, bottom = rng.uniform(-1.2, -0.5), 0.0, rng.uniform(0.2, 0.45)
    else:
        top, waist, bottom = rng.uniform(0.3, 0.7), 1.0, rng.uniform(1.4, 2.2)
    wide, narrow = rng.uniform(0.75, 1.3), rng.uniform(0.3, 0.9)
    rows = ((top, wide * 0.9), (waist, wide), (bottom, wide * narrow))
    left, right = ([middle + y * down + side * x * across for y, x in rows] for side in (-1, 1))
    return np.asarray(np.rint(np.array([*left, *right[::-1]])), np.int64)


def _cover_one(bgr: UInt8, outline: Int64, patches: list[UInt8], rng: np.random.Generator) -> None:
    height, width = bgr.shape[:2]
    (x1, y1), (x2, y2) = outline.min(0).clip(0), (outline.max(0) + 1).clip(None, (width, height))
    if x2 - x1 < 2 or y2 - y1 < 2:
        return
    mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
    cv2.fillPoly(mask, [(outline - (x1, y1)).astype(np.int32)], 1)
    np.copyto(bgr[y1:y2, x1:x2], filling(mask.shape, patches, rng), where=mask[..., None].astype(bool))


def veil(bgr: UInt8, rng: np.random.Generator) -> UInt8:
    """Reduce the contrast, as in fog or in the dark, often with light of one colour."""
    contrast = float(np.exp(rng.uniform(np.log(0.1), 0)))
    lowest = rng.uniform(0, 1 - contrast) * rng.integers(0, 2)  # fog is bright, the dark is dark
    light = np.exp(rng.normal(0, 0.6 * rng.integers(0, 2), 3))
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    table = np.clip((levels * contrast + lowest) * light / light.max() * 255, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(bgr, table[None]), np.uint8)


def cut(bgr: UInt8, maps: UInt8, box: Float32, rng: np.random.Generator) -> tuple[UInt8, UInt8]:
    """Make the picture end within a face: at one of its four sides, or at all of them as in a close-up.

    Args:
        bgr: (2 s, 2 s, 3) uint8, not changed.
        maps: (5, s, s) its disc maps, not changed.
        box: (3,) centre x, y and longer side of the face in `bgr`, pixels.
    Returns:
        The picture, and its maps, which are UNKNOWN beyond the edge.
    """
    half = len(maps[0])
    low, high = [0, 0], [half, half]  # x and y of what is left of the maps
    if rng.random() < CLOSE_UP:
        shown = box[2] / rng.uniform(1.0, 1.8)
        middle = box[:2] + rng.uniform(-0.12, 0.12, 2) * box[2]
        low, high = ([int(v) for v in np.clip((middle + d * shown) / 2, 0, half)] for d in (-0.5, 0.5))
    else:
        axis, sign = int(rng.integers(2)), int(rng.choice((-1, 1)))
        edge = box[axis] + sign * box[2] * (0.5 - rng.uniform(0.1, 0.5))
        (high if sign > 0 else low)[axis] = int(np.clip(edge / 2, 0, half))
    colour = GREY if rng.random() < 0.5 else 0
    ended, unknown = np.full_like(bgr, colour), np.full_like(maps, UNKNOWN)
    whole = np.s_[2 * low[1] : 2 * high[1], 2 * low[0] : 2 * high[0]]
    left = np.s_[:, low[1] : high[1], low[0] : high[0]]
    ended[whole], unknown[left] = bgr[whole], maps[left]
    return ended, unknown
