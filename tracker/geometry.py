"""Crops that move pixels and points alike, boxes, roll, overlap.

Code that runs once per face and frame is plain arithmetic on a few numbers. A run of a network evicts NumPy's functions
from the processor's cache, and a 2x2 inverse by LAPACK then takes 50 us instead of 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from .types import Float32, Float64, UInt8, frozen_array


@dataclass(frozen=True, slots=True)
class CropTransform:
    """An affine map from frame pixels to crop pixels that moves pictures and points with the same arithmetic.

    Attributes:
        matrix: (2, 3) float64, frame -> crop, pixel centres on whole numbers on both sides.
        size: (height, width) of the crop.
    """

    matrix: Float64
    size: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", frozen_array(self.matrix, (2, 3), "CropTransform.matrix", np.float64))

    @classmethod
    def around(cls, centre: tuple[float, float], side: float, size: int, *, angle: float = 0.0) -> CropTransform:
        """Map a square of the frame onto a square crop.

        Args:
            centre: (x, y) of the square's centre, frame pixels.
            side: edge length of the square, frame pixels.
            size: edge length of the crop, crop pixels.
            angle: radians by which the square is turned in the frame, positive from x towards y (clockwise on
                screen); a face tilted by this angle stands upright in the crop.
        Raises:
            ValueError: side or size is not positive.
        """
        if not side > 0 or size <= 0:
            raise ValueError(f"crop: wanted side > 0 and size > 0, got side {side} and size {size}")
        scale, middle, (x, y) = size / side, (size - 1) / 2, centre
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        matrix = np.array([[cos, sin, middle - (cos * x + sin * y)], [-sin, cos, middle - (cos * y - sin * x)]])
        return cls(matrix, (size, size))

    @classmethod
    def quarter_turns(cls, turns: int, size: tuple[int, int]) -> CropTransform:
        """Map a whole picture of this (height, width) onto itself turned anticlockwise, as `np.rot90` turns it."""
        height, width = size
        matrix = np.array([[1, 0, 0], [0, 1, 0]], np.float64)
        for _ in range(turns % 4):  # what was the last column becomes the first row
            matrix = np.stack((matrix[1], (0, 0, width - 1) - matrix[0]))
            height, width = width, height
        return cls(matrix, (height, width))

    def crop(self, bgr: UInt8, out: UInt8 | None = None) -> UInt8:
        """Sample the crop from a (H, W, 3) picture; what lies outside the picture is black.

        Downscaling by two or more averages over the area first, so that large faces do not alias.

        Args:
            bgr: (H, W, 3) uint8.
            out: contiguous array of the crop's size to write to.
        Raises:
            ValueError: out differs from the crop of this picture in shape or dtype.
        """
        matrix = self.matrix
        halvings = int(math.log2(1.0 / max(self.scale, 1e-6)))
        if halvings >= 1:
            bgr, matrix = self._reduced(bgr, halvings)
        height, width = self.size
        sampled = cv2.warpAffine(bgr, matrix, (width, height), dst=out, flags=cv2.INTER_LINEAR)
        if out is not None and sampled is not out:  # OpenCV has allocated its own array
            raise ValueError(f"crop: wanted out of {sampled.shape} and {sampled.dtype}, got {out.shape} of {out.dtype}")
        return np.asarray(sampled, np.uint8)

    def _reduced(self, bgr: UInt8, halvings: int) -> tuple[UInt8, Float64]:
        """Return the part of the picture that the crop sees, halved `halvings` times, and its matrix to the crop.

        It is halved step by step because OpenCV averages over 2x2 pixels five times as fast as over 3x3 or 4x4.
        """
        reduction = 2**halvings
        height, width = self.size
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float32)
        left, top, right, bottom = bounding_box(self.to_frame(corners)).tolist()
        x1, y1 = (max(math.floor(v) - reduction, 0) for v in (left, top))
        x2, y2 = (max(math.ceil(v) + reduction + 1, 0) for v in (right, bottom))
        part = bgr[y1:y2, x1:x2]
        if part.shape[0] < 2 * reduction or part.shape[1] < 2 * reduction:
            return bgr, self.matrix
        small = part[: part.shape[0] // reduction * reduction, : part.shape[1] // reduction * reduction]
        for _ in range(halvings):
            size = small.shape[1] // 2, small.shape[0] // 2
            small = np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_AREA), np.uint8)
        # part pixel x (centre convention) = reduction * (small + 0.5) - 0.5, frame pixel = part pixel + (x1, y1)
        (a, b, x), (c, d, y) = self.matrix.tolist()
        left, top = x1 + (reduction - 1) / 2, y1 + (reduction - 1) / 2
        x, y = x + a * left + b * top, y + c * left + d * top
        return small, np.array([[reduction * a, reduction * b, x], [reduction * c, reduction * d, y]])

    @property
    def scale(self) -> float:
        """Crop pixels per frame pixel (geometric mean over directions)."""
        (a, b, _), (c, d, _) = self.matrix.tolist()
        return math.sqrt(abs(a * d - b * c))

    def off(self, other: CropTransform) -> float:
        """Largest distance between this crop's corners and those of another crop of its size, in sides of this one."""
        height, width = self.size
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float32)
        return float(np.hypot(*(self.to_crop(other.to_frame(corners)) - corners).T).max()) / width

    def to_crop(self, xy: Float32) -> Float32:
        """Move points (..., 2) from frame to crop pixels."""
        return (xy @ self.matrix[:, :2].T + self.matrix[:, 2]).astype(np.float32)

    def to_frame(self, xy: Float32) -> Float32:
        """Move points (..., 2) from crop to frame pixels."""
        moved = np.empty(xy.shape, np.float32)
        _move_back(_own(xy).reshape(-1, 2), self.matrix, moved.reshape(-1, 2))
        return moved


def _own(xy: Float32) -> Float32:
    """Copy points for a kernel: Numba compiles writeable and read-only arrays separately, as different types."""
    return np.array(xy, np.float32, order="C")


@njit(cache=True)
def _move_back(xy: Float32, matrix: Float64, moved: Float32) -> None:
    """Write to `moved` where points (P, 2) were before an affine map (2, 3)."""
    (a, b, left), (c, d, top) = matrix[0], matrix[1]
    determinant = a * d - b * c
    for i in range(len(xy)):
        x, y = xy[i, 0] - left, xy[i, 1] - top
        moved[i, 0] = x * (d / determinant) - y * (b / determinant)
        moved[i, 1] = y * (a / determinant) - x * (c / determinant)


def bounding_box(xy: Float32) -> Float32:
    """Tight box (x1, y1, x2, y2) of points (..., N, 2); a NaN coordinate makes both edges of its axis NaN.

    Raises:
        ValueError: there are no points.
    """
    *faces, count, _ = xy.shape
    if not count:
        raise ValueError("bounding_box: wanted points, got none")
    boxes = np.empty((*faces, 4), np.float32)
    _bound(_own(xy).reshape(-1, count, 2), boxes.reshape(-1, 4))
    return boxes


@njit(cache=True)
def _bound(faces: Float32, boxes: Float32) -> None:
    """Write the tight boxes (F, 4) of faces (F, N, 2)."""
    for face in range(len(faces)):
        for axis in range(2):
            least, most = faces[face, 0, axis], faces[face, 0, axis]
            for value in faces[face, :, axis]:
                if value < least or value != value:
                    least = value
                if value > most or value != value:
                    most = value
            boxes[face, axis], boxes[face, 2 + axis] = least, most


def longer_side(box: Float32) -> float:
    """Longer side of a box (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = box.tolist()
    return float(max(x2 - x1, y2 - y1))


def box_centre_side(box: Float32) -> tuple[tuple[float, float], float]:
    """Centre (x, y) and longer side of a box."""
    x1, y1, x2, y2 = (float(v) for v in box)
    return ((x1 + x2) / 2, (y1 + y2) / 2), max(x2 - x1, y2 - y1)


def iou(a: Float32, b: Float32) -> Float32:
    """Intersection over union of boxes (A, 4) and (B, 4) as an (A, B) matrix; empty boxes overlap nothing."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(bottom_right - top_left, 0), -1)
    area_a, area_b = (np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), -1) for boxes in (a, b))
    union = area_a[:, None] + area_b[None, :] - shared
    ratio: Float32 = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio.astype(np.float32)


def roll(five: Float32) -> float:
    """In-plane rotation in radians of a face from its five5 points (5, 2); 0 is upright, positive clockwise.

    The line between the eyes and the line from the eyes to the mouth are weighted by their lengths, so that the roll
    of a profile view, in which the eyes coincide, stays stable.
    """
    (left_x, left_y), (right_x, right_y), _, (x3, y3), (x4, y4) = five.tolist()
    down_x, down_y = (x3 + x4 - left_x - right_x) / 2, (y3 + y4 - left_y - right_y) / 2
    # "down" turned by -90 degrees, (down_y, -down_x), also points across
    return math.atan2(right_y - left_y - down_x, right_x - left_x + down_y)


def rotated_box(xy: Float32, five: Float32) -> tuple[tuple[float, float], float, float]:
    """The box of a face in its own upright frame.

    Args:
        xy: (N, 2) landmarks.
        five: (5, 2) the same face's five5 points, which give its roll.
    Returns:
        centre (x, y) and longer side of the tight box round the landmarks after turning the face upright, both
        in frame pixels, and the roll in radians: the arguments of `CropTransform.around`.
    """
    angle = roll(five)
    cos, sin = math.cos(angle), math.sin(angle)
    left, right, top, bottom = _turned_box(_own(xy), cos, sin)
    cx, cy = (left + right) / 2, (top + bottom) / 2
    return (cos * cx - sin * cy, sin * cx + cos * cy), max(right - left, bottom - top), angle


@njit(cache=True)
def _turned_box(xy: Float32, cos: float, sin: float) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of points (N, 2) turned back by the angle with this cosine and sine."""
    left = top = math.inf
    right = bottom = -math.inf
    for i in range(len(xy)):
        across, down = cos * xy[i, 0] + sin * xy[i, 1], cos * xy[i, 1] - sin * xy[i, 0]
        left, right, top, bottom = min(left, across), max(right, across), min(top, down), max(bottom, down)
    return left, right, top, bottom


# Mean five5 points of 11,354 training faces of all yaws (300-W, InfAnFace, YouTube, each with its mirror picture),
# relative to the centre of the 68 landmarks' tight box, in units of its longer side. Symmetric.
MEAN_FIVE = np.array(
    [[-0.2124, -0.3048], [0.2124, -0.3048], [0.0, -0.0665], [-0.1861, 0.1489], [0.1861, 0.1489]], np.float32
)


def warm_up() -> None:
    """Compile the kernels, or load them from Numba's cache."""
    centre, side, angle = rotated_box(MEAN_FIVE, MEAN_FIVE)
    CropTransform.around(centre, side, 2, angle=angle).to_frame(MEAN_FIVE)
    bounding_box(MEAN_FIVE)
