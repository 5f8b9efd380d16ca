"""From network outputs to landmarks: the decoding halves of the codecs, as Numba kernels.

The encoding halves are the targets in `training.alignment.targets` and `.maps`; tests check that the two agree.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .markup import Markup
from .types import Float32, Float64, Int64

REACH = 4  # cells on either side of the maximum that enter the centroid; where a network is unsure, its bell has
# shoulders: 2 cells with squared values, which suffice for a clean bell, gave 3.72 % on LFPW test; this gives 3.63 %
LOWEST = 1e-6  # floor of a vector's maximum, so that an all-zero vector has a logarithm
FARTHEST = 6.0  # sigmas: how far beyond the crop a landmark may be placed; a guard, not from the paper
SHIFT = 0.25  # cells towards the higher neighbour; Newell et al., ECCV 2016


@njit(cache=True, nogil=True)
def _positive(value: float) -> float:
    """The value if it is positive and finite, else 0, so that invalid outputs of a broken runtime do not count."""
    return value if 0.0 < value < np.inf else 0.0


@njit(cache=True, nogil=True)
def _decode_vectors(vectors: Float32, stride: float, sigma: float, peak: float, xy: Float32, score: Float32) -> None:
    """Write places and scores of all landmarks into `xy` and `score`."""
    faces, landmarks, cells, _ = vectors.shape
    for f in range(faces):
        for n in range(landmarks):
            heights = 1.0
            for axis in range(2):
                top, height = 0, 0.0
                for i in range(cells):
                    if height < vectors[f, n, i, axis] < np.inf:
                        top, height = i, vectors[f, n, i, axis]
                height = max(height, LOWEST)
                if top == 0 or top == cells - 1:
                    beyond = min(np.sqrt(-2.0 * np.log(min(height / peak, 1.0))), FARTHEST) * sigma
                    place = -beyond if top == 0 else cells - 1 + beyond
                else:
                    weights = moment = 0.0
                    for i in range(max(top - REACH, 0), min(top + REACH, cells - 1) + 1):
                        value = _positive(vectors[f, n, i, axis])
                        weight = value * np.sqrt(value) + LOWEST
                        weights += weight
                        moment += weight * i
                    place = moment / weights
                xy[f, n, axis] = stride * (place + 0.5) - 0.5
                heights *= min(height / peak, 1.0)
            score[f, n] = np.sqrt(heights)


def decode_vectors(vectors: Float32, stride: float, sigma: float, peak: float) -> tuple[Float32, Float32]:
    """Place each landmark where its two vectors have their maximum, inside the crop or beyond it.

    Inside, the place is the centroid of the values to the power 1.5 round the maximum. If the maximum is an end cell,
    the bell's centre is outside, at a distance that follows from that maximum (Eqs. 6 and 7): 0 if it equals `peak`.

    Args:
        vectors: (F, N, w, 2) float32, [..., 0] for x and [..., 1] for y; negative and non-finite values count as 0.
        stride: crop pixels per cell.
        sigma: width of the bell, cells.
        peak: height of a whole bell, tau in the paper.
    Returns:
        xy: (F, N, 2) float32 crop pixels.
        score: (F, N) float32 in [0, 1], geometric mean of the two maxima over `peak`.
    Raises:
        ValueError: vectors is not (F, N, w >= 3, 2).
    Source: Xiong et al., Gaussian Vector, ECCV 2020, section 3.4; the centroid is ours (the paper shifts by 0.25).
    """
    if vectors.ndim != 4 or vectors.shape[2] < 3 or vectors.shape[3] != 2:
        raise ValueError(f"vectors: wanted (F, N, w >= 3, 2), got {vectors.shape}")
    xy = np.empty((*vectors.shape[:2], 2), np.float32)
    score = np.empty(vectors.shape[:2], np.float32)
    vectors = np.ascontiguousarray(vectors, np.float32)
    _decode_vectors(vectors, float(stride), float(sigma), float(peak), xy, score)  # floats only: compiled once
    return xy, score


@njit(cache=True, nogil=True)
def _sign(difference: float) -> float:
    return 1.0 if difference > 0 else -1.0 if difference < 0 else 0.0


@njit(cache=True, nogil=True)
def _decode_heatmaps(maps: Float32, tops: Int64, stride: float, reach: int, xy: Float32, score: Float32) -> None:
    faces, landmarks, h, w = maps.shape
    for f in range(faces):
        for n in range(landmarks):
            heat = maps[f, n]
            row, column = tops[f, n] // w, tops[f, n] % w
            x, y = float(column), float(row)
            if reach == 0:
                if 0 < column < w - 1:
                    x += SHIFT * _sign(heat[row, column + 1] - heat[row, column - 1])
                if 0 < row < h - 1:
                    y += SHIFT * _sign(heat[row + 1, column] - heat[row - 1, column])
            else:
                weights = along_x = along_y = 0.0
                for r in range(max(row - reach, 0), min(row + reach, h - 1) + 1):
                    for c in range(max(column - reach, 0), min(column + reach, w - 1) + 1):
                        value = _positive(heat[r, c])
                        weight = value * value + LOWEST
                        weights += weight
                        along_x += weight * c
                        along_y += weight * r
                x, y = along_x / weights, along_y / weights
            xy[f, n, 0] = stride * (x + 0.5) - 0.5
            xy[f, n, 1] = stride * (y + 0.5) - 0.5
            score[f, n] = min(_positive(heat[row, column]), 1.0)


def decode_heatmaps(maps: Float32, stride: float, reach: int = 0) -> tuple[Float32, Float32]:
    """Place each landmark on its heat map's peak.

    Args:
        maps: (F, N, h, w) float32; a whole bell has height 1.
        stride: crop pixels per cell.
        reach: 0 for PropNet's decoding, a quarter cell from the peak towards the higher neighbour on each axis, which
            leaves an error of up to a quarter cell; above 0 for the centroid of the squared values within this many
            cells, which is ours and has no such quantisation (2 for bells of sigma 1, 3 for 1.5).
    Returns:
        xy: (F, N, 2) float32 crop pixels.
        score: (F, N) float32, height of the peak, clipped to [0, 1].
    Raises:
        ValueError: maps is not (F, N, h, w), or has no cell.
    """
    tops = _highest(maps)
    xy = np.empty((*maps.shape[:2], 2), np.float32)
    score = np.empty(maps.shape[:2], np.float32)
    _decode_heatmaps(np.ascontiguousarray(maps, np.float32), tops, stride, reach, xy, score)
    return xy, score


def _highest(maps: Float32) -> Int64:
    """Flat index of each map's highest finite cell, (F, N)."""
    if maps.ndim != 4 or 0 in maps.shape[2:]:
        raise ValueError(f"heat maps: wanted (F, N, h, w) with cells in them, got {maps.shape}")
    flat = maps.reshape(*maps.shape[:2], maps.shape[2] * maps.shape[3])  # -1 cannot be inferred without faces
    tops = flat.argmax(2)
    if not np.isfinite(np.take_along_axis(flat, tops[..., None], 2)).all():  # argmax prefers NaN and infinity
        tops = np.where(np.isfinite(flat), flat, -np.inf).argmax(2)
    return np.asarray(tops, np.int64)


def field_lines(marks: Markup, fields: int) -> list[tuple[int, ...]]:
    """The landmarks that each channel of an offset field points to: those of a boundary line, or one per channel.

    Raises:
        ValueError: `fields` is neither the number of the markup's lines nor that of its points.
    """
    if fields == len(marks.boundaries):
        return list(marks.boundaries.values())
    if fields == marks.points:
        return [(point,) for point in range(marks.points)]
    raise ValueError(
        f"field: wanted {len(marks.boundaries)} lines or {marks.points} points of {marks.name}, got {fields}"
    )


def lines_of_points(marks: Markup, fields: int) -> Int64:
    """The channels of an offset field that point to each landmark, (N, M); rows with fewer than M end in -1.

    Raises:
        ValueError: as `field_lines`.
    """
    own: list[list[int]] = [[] for _ in range(marks.points)]
    for number, points in enumerate(field_lines(marks, fields)):
        for point in points:
            own[point].append(number)
    most = max(map(len, own))
    return np.array([numbers + [-1] * (most - len(numbers)) for numbers in own], np.int64)


@njit(cache=True, nogil=True)
def _decode_fields(
    maps: Float32,
    field: Float32,
    lines: Int64,
    tops: Int64,
    stride: float,
    reach: int,
    xy: Float32,
    score: Float32,
) -> None:
    faces, landmarks, h, w = maps.shape
    for f in range(faces):
        for n in range(landmarks):
            row, column = tops[f, n] // w, tops[f, n] % w
            count = 0
            for line in lines[n]:
                count += line >= 0
            heat = x = y = 0.0
            for r in range(max(row - reach, 0), min(row + reach, h - 1) + 1):
                for c in range(max(column - reach, 0), min(column + reach, w - 1) + 1):
                    u = v = 0.0
                    for line in lines[n]:
                        if line >= 0:
                            u += field[f, line, 0, r, c]
                            v += field[f, line, 1, r, c]
                    here = _positive(maps[f, n, r, c])
                    heat += here
                    x += here * (c + u / max(count, 1))
                    y += here * (r + v / max(count, 1))
            pointed = heat > 0 and np.isfinite(x) and np.isfinite(y)
            xy[f, n, 0] = stride * ((x / heat if pointed else column) + 0.5) - 0.5
            xy[f, n, 1] = stride * ((y / heat if pointed else row) + 0.5) - 0.5
            score[f, n] = min(heat, 1.0)


def decode_fields(
    maps: Float32, field: Float32, lines: Int64, stride: float, reach: int = 3
) -> tuple[Float32, Float32]:
    """Place each landmark where the cells round its heat map's peak point to, weighted by their heat (Eq. 5).

    A landmark on several lines (a corner of an eye or of the mouth) uses the mean of their fields; a landmark on no
    line (a pupil) is placed at the plain centroid.

    Args:
        maps: (F, N, h, w) float32 probabilities, each map's sum is 1.
        field: (F, B, 2, h, w) float32, for each line the offset to its nearest landmark, (x, y), cells.
        lines: (N, M) from `lines_of_points`.
        stride: crop pixels per cell.
        reach: r; cells on either side of the peak that are used, clipped at the map's border.
    Returns:
        xy: (F, N, 2) float32 crop pixels.
        score: (F, N) float32 in [0, 1], the probability within reach of the peak.
    Raises:
        ValueError: the shapes do not fit each other.
    Source: Wan et al. (SPAN), Eqs. 4 and 5; r = 3 from section IV-A.
    """
    tops = _highest(maps)
    faces, landmarks, h, w = maps.shape
    if field.ndim != 5 or (field.shape[0], *field.shape[2:]) != (faces, 2, h, w):
        raise ValueError(f"field: wanted ({faces}, B, 2, {h}, {w}) for maps {maps.shape}, got {field.shape}")
    if len(lines) != landmarks or (lines >= field.shape[1]).any():
        raise ValueError(f"lines: wanted {landmarks} rows of numbers below {field.shape[1]}, got {lines.shape}")
    xy = np.empty((faces, landmarks, 2), np.float32)
    score = np.empty((faces, landmarks), np.float32)
    arrays = (np.ascontiguousarray(a, np.float32) for a in (maps, field))
    _decode_fields(*arrays, lines, tops, stride, reach, xy, score)
    return xy, score


@njit(cache=True, nogil=True)
def mean_of_highest(maps: Float32, count: int) -> tuple[Float32, Float32]:
    """Mean position and mean value of the `count` highest responses of each map.

    Args:
        maps: (B, K, h, w) float32.
        count: 1 or more; all responses of a map that has fewer.
    Returns:
        xy: (B, K, 2) float32 pixels.
        response: (B, K) float32.
    Source: BB-FCN, section III-E, Ave{M, n}.
    """
    pictures, kinds = maps.shape[:2]
    xy = np.empty((pictures, kinds, 2), np.float32)
    response = np.empty((pictures, kinds), np.float32)
    top = np.empty((count, 3))
    for b in range(pictures):
        for k in range(kinds):
            held = _select_highest(maps[b, k], top)
            total, sum_x, sum_y = 0.0, 0.0, 0.0
            for n in range(held):
                total, sum_x, sum_y = total + top[n, 0], sum_x + top[n, 1], sum_y + top[n, 2]
            response[b, k] = total / max(held, 1)
            xy[b, k, 0], xy[b, k, 1] = sum_x / max(held, 1), sum_y / max(held, 1)
    return xy, response


@njit(cache=True, nogil=True)
def _select_highest(plane: Float32, top: Float64) -> int:
    """Fill `top` (n, 3) with value, x, y of the highest pixels, descending; return how many there are."""
    height, width = plane.shape
    held = 0
    for y in range(height):
        for x in range(width):
            value = plane[y, x]
            if held == len(top) and value <= top[held - 1, 0]:
                continue
            at = min(held, len(top) - 1)
            held = at + 1
            while at > 0 and top[at - 1, 0] < value:
                top[at, 0], top[at, 1], top[at, 2] = top[at - 1, 0], top[at - 1, 1], top[at - 1, 2]
                at -= 1
            top[at, 0], top[at, 1], top[at, 2] = value, x, y
    return held


def decode_discs(maps: Float32, stride: float, pixels: int) -> tuple[Float32, Float32]:
    """Place each landmark at the mean position of its map's highest responses, as many as a disc has pixels.

    Args:
        maps: (F, N, h, w) float32 responses, 1 on a landmark.
        stride: crop pixels per cell.
        pixels: number of pixels of a disc, 1 or more.
    Returns:
        xy: (F, N, 2) float32 crop pixels.
        score: (F, N) float32 in [0, 1], the mean of these responses; 0 if it is not finite.
    Raises:
        ValueError: maps is not (F, N, h, w), or pixels is below 1.
    Source: BB-FCN, section III-E, Ave{M, n}.
    """
    if maps.ndim != 4:
        raise ValueError(f"discs: wanted (F, N, h, w), got {maps.shape}")
    if pixels < 1:
        raise ValueError(f"discs: wanted 1 pixel or more, got {pixels}")
    place, response = mean_of_highest(np.ascontiguousarray(maps, np.float32), pixels)
    xy = np.float32(stride) * (place + np.float32(0.5)) - np.float32(0.5)
    return xy, np.clip(np.nan_to_num(response, posinf=0.0), 0.0, 1.0)


@njit(cache=True, nogil=True)
def _decode_cells(cells: Float32, stride: float, xy: Float32, score: Float32) -> None:
    faces, planes, h, w = cells.shape
    for f in range(faces):
        for n in range(planes // 3):
            probability, x, y = cells[f, 3 * n], cells[f, 3 * n + 1], cells[f, 3 * n + 2]
            row, column, height = 0, 0, -np.inf
            for r in range(h):
                for c in range(w):
                    if height < probability[r, c] < np.inf:
                        row, column, height = r, c, probability[r, c]
            across = x[row, column] if np.isfinite(x[row, column]) else 0.0
            down = y[row, column] if np.isfinite(y[row, column]) else 0.0
            xy[f, n, 0] = stride * (column + 0.5 + across) - 0.5
            xy[f, n, 1] = stride * (row + 0.5 + down) - 0.5
            score[f, n] = min(_positive(height), 1.0)


def decode_cells(cells: Float32, stride: float) -> tuple[Float32, Float32]:
    """Place each landmark where its most likely cell points to.

    Args:
        cells: (F, 3 N, h, w) float32: the probability that the landmark is in a cell, and its offset from the cell's
            centre, x and y in cells; non-finite values count as 0.
        stride: crop pixels per cell.
    Returns:
        xy: (F, N, 2) float32 crop pixels.
        score: (F, N) float32, the probability, clipped to [0, 1].
    Raises:
        ValueError: cells is not (F, 3 N, h >= 1, w >= 1).
    Source: BB-FCN, section IV-C, the regression network.
    """
    if cells.ndim != 4 or cells.shape[1] % 3 or 0 in cells.shape[2:]:
        raise ValueError(f"cells: wanted (F, 3 N, h >= 1, w >= 1), got {cells.shape}")
    faces, landmarks = len(cells), cells.shape[1] // 3
    xy = np.empty((faces, landmarks, 2), np.float32)
    score = np.empty((faces, landmarks), np.float32)
    _decode_cells(np.ascontiguousarray(cells, np.float32), float(stride), xy, score)
    return xy, score


def warm_up() -> None:
    """Compile BB-FCN's kernel, which every run needs; that of the aligner's codec is compiled when it first decodes."""
    mean_of_highest(np.zeros((1, 5, 8, 8), np.float32), 13)
