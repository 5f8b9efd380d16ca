"""Draw expressions: photographs seldom show closed eyes, and a network that has hardly seen any finds them open.

Blinks: the upper lid is drawn down over the eye with its lashes, the skin below the brow is stretched after it, and the
lower lid rises a little to meet it. Grimaces: mouth, eyes and brows are stretched, pressed and moved as if the face
were rubber. The points move with the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..tracker.markup import for_points
from ..tracker.pose import facing, lids, openness
from ..tracker.types import Float32, Float64, Int64, UInt8

CLOSED = 0.15  # opening over width under which an eye counts as closed
LEAST_WIDTH = 6.0  # pixels: narrower eyes are not closed, narrower parts are not stretched
SKIN, CHEEK = 0.33, 0.3  # how far above and below the lids the skin stretches, over the eye's width
LASHES = 0.04  # width of the strip on either side of the lid's line that moves unchanged, over the eye's width
INVERSION_STEPS = 20  # of the fixed-point search for where a pixel goes; each removes at least a third of the error
DEGREE = 3  # of the polynomial through a lid's points
GRID = 4  # pixels between the places where the displacement is computed
MARGIN = 2  # pixels round the area that changes
STILL = 0.3  # share of the parts that a grimace leaves as they are
# For each part, over its width: the ellipse's radii, bounds of the logarithms of its scales, largest shifts.
GRIMACES = {
    "mouth_outer": ((1.4, 1.1), ((-0.5, 0.15), (-0.15, 0.3)), (0.12, 0.08)),
    "eye_left": ((0.9, 0.6), ((-0.1, 0.1), (-0.1, 0.3)), (0.0, 0.0)),
    "eye_right": ((0.9, 0.6), ((-0.1, 0.1), (-0.1, 0.3)), (0.0, 0.0)),
    "brow_left": ((0.8, 0.5), ((-0.1, 0.1), (0.0, 0.0)), (0.03, 0.12)),
    "brow_right": ((0.8, 0.5), ((-0.1, 0.1), (0.0, 0.0)), (0.03, 0.12)),
}


@dataclass(frozen=True, slots=True)
class Eye:
    """One eye in its own coordinate frame: origin in one corner, x to the other, y from the upper to the lower lid.

    Attributes:
        origin: (2,) pixels.
        axes: (2, 2), the frame's unit vectors as rows, pixels.
        width: from corner to corner, pixels.
        upper, lower: polynomials of the lids, y of x.
    """

    origin: Float64
    axes: Float64
    width: float
    upper: Float64
    lower: Float64

    @classmethod
    def of(cls, upper: Float64, lower: Float64) -> Eye | None:
        """The eye between two lids (P, 2), corner to corner; None if it is closed, too small or seen from the side."""
        along = upper[-1] - upper[0]
        width = float(np.linalg.norm(along))
        if not width >= LEAST_WIDTH:
            return None
        x = along / width
        y = np.array([-x[1], x[0]])
        if (lower - upper).mean(0) @ y < 0:
            y = -y
        axes = np.stack([x, y])
        lines = [(lid - upper[0]) @ axes.T for lid in (upper, lower)]
        gap = (lines[1][1:-1, 1] - lines[0][1:-1, 1]) / width
        if any((np.diff(line[:, 0]) < 0.05 * width).any() for line in lines) or gap.min() < CLOSED:
            return None
        above, below = (np.polyfit(line[:, 0], line[:, 1], min(DEGREE, len(line) - 1)) for line in lines)
        return cls(upper[0], axes, width, above, below)

    def to_frame(self, xy: Float64) -> Float64:
        """Pixels (..., 2) in the eye's frame."""
        return np.asarray((xy - self.origin) @ self.axes.T)

    def to_pixels(self, xy: Float64) -> Float64:
        """The inverse of `to_frame`."""
        return np.asarray(xy @ self.axes + self.origin)

    def lines(self, x: Float64) -> tuple[Float64, Float64]:
        """Height of both lids at `x`; beyond the corners both are 0, the line through the corners."""
        upper, lower = np.polyval(self.upper, x), np.polyval(self.lower, x)
        inside = (x > 0) & (x < self.width) & (lower > upper)
        return np.where(inside, upper, 0.0), np.where(inside, lower, 0.0)


def close_eye(bgr: UInt8, eye: Eye, opening: float, rise: float) -> None:
    """Draw an eye less open, in place.

    Args:
        bgr: (H, W, 3) uint8, changed.
        eye: the eye in it.
        opening: share of its own opening that is left.
        rise: share of the lost opening by which the lower lid comes up.
    """
    width = eye.width
    ends = np.array([[0, -SKIN * width], [width, -SKIN * width], [0, CHEEK * width], [width, CHEEK * width]])
    room = np.array([np.polyval(line, width / 2) for line in (eye.upper, eye.lower)])
    ends[:2, 1] += min(room[0], 0)
    ends[2:, 1] += max(room[1], 0)
    corners = eye.to_pixels(ends)
    low = np.maximum(np.floor(corners.min(0)).astype(int) - MARGIN, 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int) + MARGIN + 1, [bgr.shape[1], bgr.shape[0]])
    if (high - low < 2).any():
        return
    pixels = np.stack(np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1])), -1).astype(np.float64)
    place = eye.to_frame(pixels)
    place[..., 1] = _source(eye, place[..., 0], place[..., 1], opening, rise)
    source = (eye.to_pixels(place) - low).astype(np.float32)
    piece = np.ascontiguousarray(bgr[low[1] : high[1], low[0] : high[0]])
    bgr[low[1] : high[1], low[0] : high[0]] = _taken(piece, source)


def _source(eye: Eye, x: Float64, y: Float64, opening: float, rise: float) -> Float64:
    """Height in the open eye of what is seen at (x, y) of the eye as it is being closed."""
    upper, lower = eye.lines(x)
    closed = (1 - opening) * (lower - upper)
    new_lower = lower - rise * closed
    new_upper = upper + (1 - rise) * closed
    lashes = LASHES * eye.width
    top, bottom = upper - SKIN * eye.width, lower + CHEEK * eye.width
    skin = top + (y - top) * (upper - lashes - top) / (new_upper - lashes - top)
    cheek = bottom - (bottom - y) * (bottom - lower) / (bottom - new_lower)
    source = np.where(y < new_lower, y, cheek)
    source = np.where(y < new_upper + lashes, y - (new_upper - upper), source)
    source = np.where(y < new_upper - lashes, skin, source)
    return np.where((y <= top) | (y >= bottom) | (lower <= upper), y, source)


def close_eyes(
    bgr: UInt8, xy: Float32, opening: float, rise: float = 0.1, chosen: tuple[bool, bool] = (True, True)
) -> tuple[UInt8, Float32]:
    """Draw a face with its eyes less open.

    Args:
        bgr: (H, W, 3) uint8, not changed.
        xy: (N, 2) points of a known markup, pixels.
        opening: share of their own opening that is left, 0 to 1.
        rise: share of the lost opening by which the lower lids come up.
        chosen: whether to close the subject's left eye and right eye.
    Returns:
        Picture and points of the changed face. Eyes that are closed already, hidden in a profile, or without lids in
        the markup stay as they are.
    """
    points = xy.astype(np.float64)
    drawn = bgr
    for (upper, lower), close in zip(lids(len(xy)), chosen, strict=True):
        eye = Eye.of(points[upper], points[lower]) if close and upper.size else None
        if eye is None:
            continue
        drawn = drawn.copy() if drawn is bgr else drawn
        close_eye(drawn, eye, opening, rise)
        points[upper], points[lower] = _closed(eye, points[upper], points[lower], opening, rise)
    return drawn, points.astype(np.float32)


def blink(bgr: UInt8, xy: Float32, rng: np.random.Generator) -> tuple[UInt8, Float32]:
    """`close_eyes` by a random amount: half of the time completely, one time in five a single eye."""
    opening = rng.uniform(0, 0.08) if rng.random() < 0.5 else rng.uniform(0.08, 0.8)
    rise = rng.uniform(0, 0.3)
    chosen = (True, True) if rng.random() < 0.8 else (True, False) if rng.random() < 0.5 else (False, True)
    return close_eyes(bgr, xy, opening, rise, chosen)


def _closed(eye: Eye, upper: Float64, lower: Float64, opening: float, rise: float) -> tuple[Float64, Float64]:
    """Where the points (P, 2) of both lids move to; the corners stay."""
    moved = []
    for points, share in ((upper, 1 - rise), (lower, -rise)):
        place = eye.to_frame(points)
        above, below = eye.lines(place[1:-1, 0])
        place[1:-1, 1] += share * (1 - opening) * (below - above)
        moved.append(eye.to_pixels(place))
    return moved[0], moved[1]


@dataclass(frozen=True, slots=True)
class StretchRegion:
    """A part of a face that is stretched and moved, less and less towards the edge of an ellipse.

    Attributes:
        centre: (2,) pixels.
        axes: (2, 2), the ellipse's unit vectors as rows, pixels.
        radii: (2,) pixels.
        scale: (2,) of the middle along the axes; above 0.5, or pixels fold over each other.
        shift: (2,) of the middle along the axes, pixels.
    """

    centre: Float64
    axes: Float64
    radii: Float64
    scale: Float64
    shift: Float64

    def away(self, xy: Float64) -> Float64:
        """Offset from pixels (..., 2) of the drawn picture to where they come from."""
        place = (xy - self.centre) @ self.axes.T
        weight = np.maximum(1 - np.square(place / self.radii).sum(-1, keepdims=True), 0) ** 2
        return np.asarray(weight * ((1 / self.scale - 1) * place - self.shift / self.scale) @ self.axes)


def stretch(bgr: UInt8, xy: Float32, parts: list[StretchRegion]) -> tuple[UInt8, Float32]:
    """Draw a face with some of its parts stretched.

    Args:
        bgr: (H, W, 3) uint8, not changed.
        xy: (N, 2) pixels.
        parts: the parts; where ellipses overlap, their offsets add up.
    Returns:
        Picture and points of the changed face.
    """

    def away(place: Float64) -> Float64:
        return np.asarray(np.sum([part.away(place) for part in parts], axis=0), np.float64)

    reach = np.stack([part.radii.max() + np.abs(part.shift).max() for part in parts])[:, None]
    centres = np.stack([part.centre for part in parts])
    low = np.maximum(np.floor((centres - reach).min(0)).astype(int), 0)
    high = np.minimum(np.ceil((centres + reach).max(0)).astype(int) + 1, [bgr.shape[1], bgr.shape[0]])
    wanted = xy.astype(np.float64)
    moved = wanted
    for _ in range(INVERSION_STEPS):
        moved = wanted - away(moved)
    if (high - low < 2).any():
        return bgr, moved.astype(np.float32)
    width, height = high - low
    pixels = np.stack(np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1])), -1).astype(np.float32)
    x, y = (low[i] + (np.arange(-(-size // GRID)) + 0.5) * GRID - 0.5 for i, size in enumerate((width, height)))
    coarse = away(np.stack(np.meshgrid(x, y), -1)).astype(np.float32)
    whole = cv2.resize(coarse, (len(x) * GRID, len(y) * GRID), interpolation=cv2.INTER_LINEAR)
    drawn = bgr.copy()
    drawn[low[1] : high[1], low[0] : high[0]] = _taken(bgr, pixels + whole[:height, :width])
    return drawn, moved.astype(np.float32)


def _taken(bgr: UInt8, source: Float32) -> UInt8:
    """The pixels (h, w, 3) of a picture at some places (h, w, 2)."""
    x, y = source[..., 0], source[..., 1]
    return np.asarray(cv2.remap(bgr, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def grimace(bgr: UInt8, xy: Float32, rng: np.random.Generator) -> tuple[UInt8, Float32]:
    """Stretch mouth, eyes and brows of a face by random amounts, along the line of its eyes and across it.

    Args:
        bgr: (H, W, 3) uint8, not changed.
        xy: (N, 2) points of a known markup with eyes, pixels; parts that the markup lacks are not stretched.
        rng: the item's own.
    """
    marks = for_points(len(xy))
    eyes = marks.subset("five5", xy)[:2].astype(np.float64)
    line = eyes[1] - eyes[0]
    x = line / max(float(np.linalg.norm(line)), 1e-6)
    axes = np.stack([x, [-x[1], x[0]]])
    parts = []
    for name, (radii, scales, shifts) in GRIMACES.items():
        scale = np.exp([rng.uniform(*bounds) for bounds in scales])
        shift = rng.uniform(-1, 1, 2) * shifts
        if rng.random() < STILL or name not in marks.parts:
            continue
        points = xy[list(marks.parts[name])].astype(np.float64)
        width = float(np.ptp(points @ x))
        if width >= LEAST_WIDTH:
            parts.append(StretchRegion(points.mean(0), axes, width * np.array(radii), scale, width * shift))
    return stretch(bgr, xy, parts) if parts else (bgr, xy)


def has_closed_eye(xy: Float32) -> bool:
    """Whether an eye of a face (N, 2) is closed or nearly closed."""
    points = xy.astype(np.float64)
    return any(
        np.linalg.norm(points[upper[-1]] - points[upper[0]]) >= LEAST_WIDTH and openness(points, upper, lower) < CLOSED
        for upper, lower in lids(len(xy))
        if upper.size
    )


def facing_points(count: int) -> Int64:
    """Pairs (P, 2) of a markup's `count` points that face each other across the openings of eyes and mouth."""
    return np.concatenate([np.stack([upper[1:-1], lower[1:-1]], 1) for upper, lower in facing(count)])
