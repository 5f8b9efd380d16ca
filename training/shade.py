"""What cameras often see and photographs of faces seldom show: patterned shade, light of one colour, fences and rain.

A network that was trained on evenly lit faces loses them behind a fence, in the shade of leaves or blinds, and in the
coloured light of stages and screens. Sizes are random shares of the crop, so that they fit the face in it.
"""

from __future__ import annotations

import cv2
import numpy as np

from ..tracker.types import Float32, UInt8


def cast_shade(bgr: UInt8, rng: np.random.Generator) -> UInt8:
    """Darken part of the picture: in stripes as of blinds, in spots as of leaves, or on one side of an edge.

    Args:
        bgr: (h, w, 3) uint8, not changed.
        rng: the item's own.
    """
    kind = rng.integers(3)
    if kind == 0:
        pattern = np.sin(_along(bgr, rng) * rng.uniform(8, 40) + rng.uniform(0, 2 * np.pi))
    elif kind == 1:
        pattern = _spots(bgr, rng)
    else:
        pattern = _along(bgr, rng) - rng.uniform(-0.25, 0.25)
    hardness = float(np.exp(rng.uniform(np.log(1.5), np.log(12))))
    lit = 1 / (1 + np.exp(-hardness * pattern))
    dark = float(np.exp(rng.uniform(np.log(0.15), np.log(0.7))))
    light = (dark + (1 - dark) * lit) * rng.uniform(1.0, 1.5)
    return _clipped(light[..., None].astype(np.float32) * bgr)


def colour_light(bgr: UInt8, rng: np.random.Generator) -> UInt8:
    """Light a picture in one strong colour, or in two from two sides; cameras often record only its brightness.

    Args:
        bgr: (h, w, 3) uint8, not changed.
        rng: the item's own.
    """
    colours = np.exp(rng.normal(0, 0.9, (2, 3))).astype(np.float32)
    colours /= colours.max(1, keepdims=True)
    if rng.random() < 0.6:
        colours[1] = colours[0]
    blend = 1 / (1 + np.exp(-8 * _along(bgr, rng)))[..., None].astype(np.float32)
    grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)[..., None]
    paleness = np.float32(rng.uniform(0, 1) * rng.integers(2))
    seen = bgr + (grey - bgr.astype(np.float32)) * paleness
    return _clipped(seen * (colours[0] + (colours[1] - colours[0]) * blend) * np.float32(rng.uniform(1.0, 1.8)))


def draw_lines(bgr: UInt8, rng: np.random.Generator) -> UInt8:
    """Draw lines in front of the face: bars or wire mesh of one colour, or short strokes like rain, snow and scratches.

    Args:
        bgr: (h, w, 3) uint8, not changed.
        rng: the item's own.
    """
    bgr = bgr.copy()
    side = max(bgr.shape[:2])
    colour = tuple(int(v) for v in rng.integers(0, 256, 3)) if rng.random() < 0.4 else (int(rng.integers(256)),) * 3
    turn = rng.uniform(0, np.pi)
    if rng.random() < 0.3:
        thickness = max(round(side * rng.uniform(0.004, 0.012)), 1)
        step = np.array([np.cos(turn), np.sin(turn)]) * side * rng.uniform(0.02, 0.12)
        starts = rng.uniform(-0.05, 1.05, (int(rng.integers(20, 150)), 2)) * side
        _draw(bgr, starts, starts + step, colour, thickness)
        return bgr
    spacing = side * float(np.exp(rng.uniform(np.log(0.06), np.log(0.35))))
    thickness = max(round(spacing * rng.uniform(0.05, 0.35)), 1)
    for angle in (turn, turn + np.pi / 2 + rng.normal(0, 0.2))[: int(rng.integers(1, 3))]:
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        offsets = np.arange(-side, side, spacing) + rng.uniform(0, spacing)
        middles = side / 2 + offsets[:, None] * across
        _draw(bgr, middles - side * along, middles + side * along, colour, thickness)
    return bgr


def _draw(bgr: UInt8, starts: Float32, ends: Float32, colour: tuple[int, ...], thickness: int) -> None:
    for (x1, y1), (x2, y2) in zip(
        np.rint(starts).astype(int).tolist(), np.rint(ends).astype(int).tolist(), strict=True
    ):
        cv2.line(bgr, (x1, y1), (x2, y2), colour, thickness, cv2.LINE_AA)


def _along(bgr: UInt8, rng: np.random.Generator) -> Float32:
    """How far each pixel lies along a random direction, (h, w), about -0.5 to 0.5."""
    height, width = bgr.shape[:2]
    x, y = (np.linspace(-0.5, 0.5, length, dtype=np.float32) for length in (width, height))
    turn = rng.uniform(0, 2 * np.pi)
    return np.asarray(np.cos(turn) * x[None, :] + np.sin(turn) * y[:, None], np.float32)


def _spots(bgr: UInt8, rng: np.random.Generator) -> Float32:
    """Smooth noise (h, w) around 0, with a grain of a third to a fifteenth of the picture."""
    grain = int(rng.integers(3, 16))
    coarse = rng.normal(0.0, 1.0, (grain, grain)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, bgr.shape[1::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _clipped(picture: Float32) -> UInt8:
    return np.asarray(np.clip(picture, 0, 255), np.uint8)
