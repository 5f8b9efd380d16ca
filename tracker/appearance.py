"""A face's appearance in 192 numbers: enough to tell the faces of one video apart, not to recognise people.

It is a thumbnail of the face's upright crop as a unit vector, three numbers per cell. Cells outside the picture are
unknown and zero; two appearances are compared over the cells that are known in both.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from .geometry import CropTransform
from .types import Float32, Float64, UInt8

DESCRIPTOR_SIDE = 8  # cells of the thumbnail
SAMPLES = 6  # of the picture along each side of a cell
SKIN_CHROMA = (12.0, 13.0)  # a, b of CIELAB: mean of the 300-W training faces
CHROMA_SPREAD = 12.0  # chroma that counts as much as one standard deviation of the thumbnail's lightness
# median chroma of a grey thumbnail and of one in colour; between the two, `SKIN_CHROMA` fades in
COLOURLESS, COLOURED = 1.5, 4.5
BLACK = 0.25  # of a cell: with more black than this it counts as outside the picture and is unknown
TINY = np.float32(1e-3)  # lightness of a known cell that is as light as the mean: 0 would mark it as unknown
LEAST_KNOWN = 0.25  # share of the cells that must be known in both; with fewer, similarity means nothing
SAME_SHOT = 0.75  # similarity of two successive pictures: 0.84 and more on clips, 0.68 and less where they are cut
HALF_COSTS = 0.1  # taken off the similarity: half a face proves less than a whole one, see `similarity_in_part`
# Linear light of an sRGB byte. Source: IEC 61966-2-1.
LINEAR = np.where(np.arange(256) <= 10, np.arange(256) / 3294.6, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4)


def describe_appearance(bgr: UInt8, crop: CropTransform) -> Float32:
    """Describe the face in an upright crop of a picture as a unit vector; dot products give the similarity of two.

    It has lightness, without its mean and contrast, and chroma relative to typical skin. It is cheap (30 microseconds)
    and good for minutes of one video. Pixels that are black or outside the picture are ignored. On 3,462 YouTube frames
    of 350 persons, with crops off by 4 %, 99 % of the similarities within a shot exceed 0.45 and 95 % exceed 0.61 (0.32
    and 0.53 with a third of the crop outside the picture). Of the similarities between two persons, half are under
    0.24, 95 % under 0.60 and 99 % under 0.71 (0.26, 0.65, 0.75).

    Args:
        bgr: (H, W, 3) uint8.
        crop: a square of it in which the face stands upright.
    Returns:
        (192,): lightness and both chromas of 8 x 8 cells; three zeros for an unknown cell.
    """
    described = np.empty(3 * DESCRIPTOR_SIDE**2, np.float32)
    _describe(np.ascontiguousarray(bgr), crop.matrix, crop.size[0], described)
    return described


def begins_shot(before: UInt8 | None, now: UInt8) -> bool:
    """Whether a (H, W, 3) uint8 picture is of another shot than the one before; False if there is none before."""
    return before is not None and similarity(_describe_whole(before), _describe_whole(now)) < SAME_SHOT


def _describe_whole(bgr: UInt8) -> Float32:
    (height, width), side = bgr.shape[:2], SAMPLES * DESCRIPTOR_SIDE
    across, down = side / width, side / height
    matrix = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2]])
    return describe_appearance(bgr, CropTransform(matrix, (side, side)))


# The kernels of this file keep the GIL: each finishes sooner than another thread would give it back.
@njit(cache=True)
def _describe(bgr: UInt8, matrix: Float64, size: int, described: Float32) -> None:
    cells = DESCRIPTOR_SIDE * DESCRIPTOR_SIDE
    to_frame = _from_samples(matrix, size / (DESCRIPTOR_SIDE * SAMPLES))
    known = np.empty(cells, np.bool_)
    chroma = np.empty(cells)
    seen, mean, square = 0, 0.0, 0.0
    for cell in range(cells):
        known[cell], light, a, b = _cell_in_lab(bgr, to_frame, cell // DESCRIPTOR_SIDE, cell % DESCRIPTOR_SIDE)
        described[3 * cell], described[3 * cell + 1], described[3 * cell + 2] = light, a, b
        if known[cell]:
            chroma[seen] = abs(a) + abs(b)
            seen, mean, square = seen + 1, mean + light, square + light * light
    # in a grey video every face is equally far from the colour of skin, which would make all faces alike
    middle = np.sort(chroma[:seen])[seen // 2] / 2 if seen else 0.0
    colour = min(max((middle - COLOURLESS) / (COLOURED - COLOURLESS), 0.0), 1.0)
    mean /= max(seen, 1)
    contrast = math.sqrt(max(square / max(seen, 1) - mean * mean, 0.0)) + 1e-3
    for cell in range(cells):
        light = (described[3 * cell] - mean) / contrast
        described[3 * cell] = (light if light != 0.0 else TINY) if known[cell] else 0.0
        for i in range(2):
            off = (described[3 * cell + 1 + i] - SKIN_CHROMA[i] * colour) / CHROMA_SPREAD
            described[3 * cell + 1 + i] = off if known[cell] else 0.0
    _make_unit(described)


@njit(cache=True)
def _from_samples(matrix: Float64, step: float) -> tuple[float, float, float, float, float, float]:
    """Map sample (i, j), at intervals of `step` in the crop, to the frame: x = x_j * j + x_i * i + x_0, y likewise."""
    (a, b, left), (c, d, top) = matrix[0], matrix[1]
    determinant = a * d - b * c
    u, v = 0.5 * step - 0.5 - left, 0.5 * step - 0.5 - top
    x_j, x_i, x_0 = step * d / determinant, -step * b / determinant, (d * u - b * v) / determinant
    y_j, y_i, y_0 = -step * c / determinant, step * a / determinant, (a * v - c * u) / determinant
    return x_j, x_i, x_0, y_j, y_i, y_0


@njit(cache=True)
def _cell_in_lab(
    bgr: UInt8, to_frame: tuple[float, float, float, float, float, float], row: int, column: int
) -> tuple[bool, float, float, float]:
    """Whether a cell of the thumbnail is known, and its mean colour as L (0 to 100), a and b of CIELAB."""
    x_j, x_i, x_0, y_j, y_i, y_0 = to_frame
    height, width = bgr.shape[:2]
    count = blue = green = red = 0
    for i in range(SAMPLES * row, SAMPLES * (row + 1)):
        for j in range(SAMPLES * column, SAMPLES * (column + 1)):
            x = math.floor(x_j * j + x_i * i + x_0 + 0.5)
            y = math.floor(y_j * j + y_i * i + y_0 + 0.5)
            if 0 <= x < width and 0 <= y < height and (bgr[y, x, 0] or bgr[y, x, 1] or bgr[y, x, 2]):
                count += 1
                blue, green, red = blue + bgr[y, x, 0], green + bgr[y, x, 1], red + bgr[y, x, 2]
    if count < (1 - BLACK) * SAMPLES * SAMPLES:
        return False, 0.0, 0.0, 0.0
    light, a, b = _lab(LINEAR[blue // count], LINEAR[green // count], LINEAR[red // count])
    return True, light, a, b


@njit(cache=True)
def _lab(blue: float, green: float, red: float) -> tuple[float, float, float]:
    """CIELAB of linear light under D65. Source: ITU-R BT.709 primaries, CIE 15."""
    x = _cube_root((0.412453 * red + 0.357580 * green + 0.180423 * blue) / 0.950456)
    y = _cube_root(0.212671 * red + 0.715160 * green + 0.072169 * blue)
    z = _cube_root((0.019334 * red + 0.119193 * green + 0.950227 * blue) / 1.088754)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@njit(cache=True)
def _cube_root(share: float) -> float:
    """CIELAB's cube root, linear near black."""
    return float(np.cbrt(share)) if share > 0.008856 else 7.787 * share + 16 / 116


@njit(cache=True)
def _make_unit(vector: Float32) -> None:
    square = 0.0
    for value in vector:
        square += value * value
    length = math.sqrt(square) + 1e-6
    for i in range(len(vector)):
        vector[i] /= length


def known_cells(appearance: Float32) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which cells of a thumbnail (C,) lie inside the picture."""
    return np.asarray(appearance[::3] != 0)


def blended(appearance: Float32, newest: Float32, weight: float) -> Float32:
    """Blend the newest appearance into a face's by a weight in [0, 1]; cells known in only one keep its values."""
    blend = np.empty_like(appearance)
    _blend(appearance, newest, weight, blend)
    return blend


@njit(cache=True)
def _blend(appearance: Float32, newest: Float32, weight: float, blend: Float32) -> None:
    for i in range(len(blend)):
        cell = i - i % 3
        if appearance[cell] != 0 and newest[cell] != 0:
            blend[i] = (1 - weight) * appearance[i] + weight * newest[i]
        else:  # the one in which the cell is unknown has 0 there
            blend[i] = appearance[i] + newest[i]
    _make_unit(blend)


def similarity(one: Float32, other: Float32) -> float:
    """Similarity of two appearances in [-1, 1]: the cosine over the cells known in both; 0 if these are too few."""
    return float(_similarity(one, other))


@njit(cache=True)
def _similarity(one: Float32, other: Float32) -> float:
    cells = len(one) // 3
    known, product, length_one, length_other = 0, 0.0, 0.0, 0.0
    for cell in range(cells):
        if one[3 * cell] == 0 or other[3 * cell] == 0:
            continue
        known += 1
        for i in range(3 * cell, 3 * cell + 3):
            product += one[i] * other[i]
            length_one += one[i] * one[i]
            length_other += other[i] * other[i]
    if known < LEAST_KNOWN * cells:
        return 0.0
    return product / (math.sqrt(length_one) * math.sqrt(length_other) + 1e-6)


def similarity_in_part(one: Float32, other: Float32) -> float:
    """Similarity of two appearances of which one may be partly covered: of the whole, or of the best half less a cost.

    With a third of the crop covered (same frames as in `describe_appearance`), 81 % of the similarities within a shot
    exceed 99 % of those between persons, and 38 % without halves. For whole faces it is 89 % either way.
    """
    return max(similarity(one, other), float(_half_similarity(one, other)) - HALF_COSTS)


@njit(cache=True)
def _half_similarity(one: Float32, other: Float32) -> float:
    """Similarity of the best half (left, right, upper or lower); -1 if too little of each is known."""
    side = int(math.sqrt(len(one) // 3))
    half, best = side // 2, -1.0
    for rows, columns in (
        ((0, side), (0, half)),
        ((0, side), (half, side)),
        ((0, half), (0, side)),
        ((half, side), (0, side)),
    ):
        best = max(best, _similarity_in(one, other, rows, columns, side))
    return best


@njit(cache=True)
def _similarity_in(one: Float32, other: Float32, rows: tuple[int, int], columns: tuple[int, int], side: int) -> float:
    """Similarity of some cells of two thumbnails, less the mean lightness of each; -1 if too few are known."""
    known, mean_one, mean_other = 0, 0.0, 0.0
    for row in range(rows[0], rows[1]):
        for i in range(3 * (side * row + columns[0]), 3 * (side * row + columns[1]), 3):
            if one[i] != 0 and other[i] != 0:
                known, mean_one, mean_other = known + 1, mean_one + one[i], mean_other + other[i]
    if known <= 2 * LEAST_KNOWN * (rows[1] - rows[0]) * (columns[1] - columns[0]):
        return -1.0
    mean_one, mean_other = mean_one / known, mean_other / known
    product, square_one, square_other = 0.0, 0.0, 0.0
    for row in range(rows[0], rows[1]):
        for i in range(3 * (side * row + columns[0]), 3 * (side * row + columns[1]), 3):
            if one[i] != 0 and other[i] != 0:
                light_one, light_other = one[i] - mean_one, other[i] - mean_other
                product += light_one * light_other + one[i + 1] * other[i + 1] + one[i + 2] * other[i + 2]
                square_one += light_one**2 + one[i + 1] ** 2 + one[i + 2] ** 2
                square_other += light_other**2 + other[i + 1] ** 2 + other[i + 2] ** 2
    return product / ((math.sqrt(square_one) + 1e-6) * (math.sqrt(square_other) + 1e-6))


def warm_up() -> None:
    """Compile the kernels, or load them from Numba's cache, for writeable and for read-only pictures."""
    picture = np.full((8, 8, 3), 127, np.uint8)
    one = describe_appearance(picture, CropTransform.around((4.0, 4.0), 8.0, 8))
    picture.flags.writeable = False
    other = describe_appearance(picture, CropTransform.around((4.0, 4.0), 8.0, 8))
    similarity_in_part(one, blended(one, other, 0.5))
