"""From BB-FCN's response maps to faces: peaks per landmark type, peaks grouped into candidates, duplicates dropped.

A single response proves little: leaves can respond like eyes, knuckles like mouths. A face is proposed where peaks of
at least three types are arranged as in a mean face that was shifted, scaled and rotated. Two peaks of different types
determine such a similarity transform. Every pair is tried with seven views (frontal, and three of a head turned to each
side), its inliers are counted and the similarity is refitted to them: RANSAC with all samples instead of random ones.

Source: Fischler and Bolles, "Random sample consensus", CACM 1981.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

from .types import Float32, Float64, Int64
from .views import VIEWS

OVERLAP = 0.5  # shared part of the smaller square's area above which the worse of two faces is dropped
MAX_SIDE_RATIO = 1.5  # a face larger than a better one by more than this factor is not a duplicate of it
RESPONSES, POINTS, COLUMNS = 5, 10, 20  # columns of a grouped face: centre 2, side, roll, residual come first


class Limits(NamedTuple):
    """When peaks of different landmark types make a face. An int for a float makes Numba compile the kernels again.

    Attributes:
        min_side, max_side: smallest and largest longer side of a face's landmark box, pixels of the map.
        max_roll: largest roll to either side, radians.
        distance: largest distance of an inlier from its expected place, share of the side; 0.7 px are added.
        residual: largest root mean square distance of the inliers after the fit, share of the side.
        min_inliers: types that need an inlier.
    """

    min_side: float = 13.0
    max_side: float = 34.0
    max_roll: float = float(np.deg2rad(55.0))
    distance: float = 0.14
    residual: float = 0.12
    min_inliers: int = 3


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Possible faces on one response map or, after scaling, in one frame.

    Attributes:
        centre: (C, 2) float32 pixels, of the landmarks' box.
        side: (C,) float32 longer side of that box, pixels.
        roll: (C,) float32 radians.
        responses: (C, 5) float32 response of each type's inlier, 0 where there is none.
        residual: (C,) float32 root mean square misfit over the side.
        points: (C, 5, 2) float32 pixels; for a type without an inlier, its place in the fitted mean face.
    """

    centre: Float32
    side: Float32
    roll: Float32
    responses: Float32
    residual: Float32
    points: Float32

    def __len__(self) -> int:
        return len(self.side)

    def to_frame(self, factor: tuple[float, float], margin: int) -> Candidates:
        """Convert the faces from pixels of a pyramid level, a smaller copy of the frame, to frame pixels.

        Args:
            factor: frame pixels per level pixel, x and y.
            margin: width of the border that was added round the level, pixels.
        """
        scale, shift = np.asarray(factor, np.float32), np.float32(margin - 0.5)
        return Candidates(
            (self.centre - shift) * scale - np.float32(0.5),
            self.side * scale.mean(),
            self.roll,
            self.responses,
            self.residual,
            (self.points - shift) * scale - np.float32(0.5),
        )

    def take(self, index: Int64) -> Candidates:
        """The candidates with these indices, in this order."""
        return Candidates(*(values[index] for values in self._arrays()))

    @classmethod
    def joined(cls, parts: list[Candidates]) -> Candidates:
        """All candidates of several maps (at least one)."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*(p._arrays() for p in parts), strict=True)))

    def _arrays(self) -> tuple[Float32, ...]:
        return self.centre, self.side, self.roll, self.responses, self.residual, self.points


@njit(cache=True, nogil=True)
def find_peaks(maps: Float32, threshold: float, most: int) -> tuple[Int64, Float32, Float32]:
    """Local maxima of every map: non-maximum suppression per landmark type.

    A peak is finite, exceeds `threshold` and is the largest within two pixels; of equal values, the first in reading
    order is the peak. Its place is the centroid of the positive responses in the disc of 13 pixels around it.

    Args:
        maps: (K, h, w) float32 responses.
        threshold: a peak's response must exceed it.
        most: most peaks per type, 1 or more; the highest are kept.
    Returns:
        kind: (P,) int64 landmark type; within each type the highest peaks come first.
        xy: (P, 2) float32 pixels.
        response: (P,) float32.
    """
    kinds, height, width = maps.shape
    kind = np.empty(kinds * most, np.int64)
    xy = np.empty((kinds * most, 2), np.float32)
    response = np.empty(kinds * most, np.float32)
    end = 0
    for k in range(kinds):
        first = end
        for y in range(height):
            for x in range(width):
                if threshold < maps[k, y, x] < np.inf and _is_peak(maps[k], y, x):
                    at, end = _make_room(response, xy, maps[k, y, x], first, end, first + most)
                    if at < end:
                        response[at] = maps[k, y, x]
                        xy[at, 0], xy[at, 1] = _disc_centroid(maps[k], y, x)
        kind[first:end] = k
    return kind[:end], xy[:end], response[:end]


@njit(cache=True, nogil=True)
def _is_peak(plane: Float32, y: int, x: int) -> bool:
    height, width = plane.shape
    value = plane[y, x]
    for j in range(max(y - 2, 0), min(y + 3, height)):
        for i in range(max(x - 2, 0), min(x + 3, width)):
            other = plane[j, i]
            if other > value or (other == value and (j < y or (j == y and i < x))):
                return False
    return True


@njit(cache=True, nogil=True)
def _make_room(response: Float32, xy: Float32, value: float, first: int, end: int, limit: int) -> tuple[int, int]:
    """Shift the lower peaks of a descending list down to make room for one of this value.

    Args:
        response, xy: the list, in rows `first` to `end - 1`; rows from `limit` on are not used.
    Returns:
        The free row and the new end; twice the old end if the list is full of peaks that are not lower.
    """
    if end == limit:
        if value <= response[end - 1]:
            return end, end
        end -= 1
    at = end
    while at > first and response[at - 1] < value:
        response[at], xy[at, 0], xy[at, 1] = response[at - 1], xy[at - 1, 0], xy[at - 1, 1]
        at -= 1
    return at, end + 1


@njit(cache=True, nogil=True)
def _disc_centroid(plane: Float32, y: int, x: int) -> tuple[float, float]:
    height, width = plane.shape
    weight, sum_x, sum_y = 0.0, 0.0, 0.0
    for j in range(max(y - 2, 0), min(y + 3, height)):
        for i in range(max(x - 2, 0), min(x + 3, width)):
            if (j - y) ** 2 + (i - x) ** 2 <= 4 and plane[j, i] > 0:
                weight += plane[j, i]
                sum_x += plane[j, i] * i
                sum_y += plane[j, i] * j
    return sum_x / weight, sum_y / weight


def group_peaks(kind: Int64, xy: Float32, response: Float32, limits: Limits = LIMITS) -> Candidates:
    """Group peaks into faces with inliers of at least `limits.min_inliers` types; at most one per peak, its best.

    Args:
        kind: (P,) int64 landmark type, as returned by `find_peaks`.
        xy: (P, 2) float32 pixels.
        response: (P,) float32.
        limits: when peaks make a face.
    """
    rows = _group_peaks(kind, xy.astype(np.float64), response.astype(np.float64), VIEWS, limits).astype(np.float32)
    return Candidates(
        centre=rows[:, 0:2],
        side=rows[:, 2],
        roll=rows[:, 3],
        responses=rows[:, RESPONSES:POINTS],
        residual=rows[:, 4],
        points=rows[:, POINTS:].reshape(-1, 5, 2),
    )


@njit(cache=True, nogil=True)
def _group_peaks(kind: Int64, xy: Float64, response: Float64, views: Float64, limits: Limits) -> Float64:
    """Rows of centre 2, side, roll, residual, responses 5, points 10; at most one per peak."""
    peaks = len(kind)
    out = np.empty((peaks, COLUMNS))
    found = 0
    row, inliers = np.empty(COLUMNS), np.empty(5, np.int64)
    for i in range(peaks):
        best = 0.0
        for j in range(peaks):
            dx, dy = xy[j, 0] - xy[i, 0], xy[j, 1] - xy[i, 1]
            # two points of one face are always less than 0.9 of its side apart
            if kind[i] == kind[j] or not 1.0 <= dx * dx + dy * dy <= (0.9 * limits.max_side) ** 2:
                continue
            for view in views:
                cos, sin = _turn_of_pair(view, kind[i], kind[j], dx, dy)
                if not _may_be_face(cos, sin, limits):
                    continue
                x = xy[i, 0] - (cos * view[kind[i], 0] - sin * view[kind[i], 1])
                y = xy[i, 1] - (sin * view[kind[i], 0] + cos * view[kind[i], 1])
                _place(view, x, y, cos, sin, row)
                radius = limits.distance * np.sqrt(cos * cos + sin * sin) + 0.7
                if _find_inliers(kind, xy, response, row, radius, inliers) >= limits.min_inliers:
                    score = _refit(xy, response, view, inliers, limits, row)
                    if score > best:
                        best = score
                        out[found] = row
        if best > 0.0:
            found += 1
    return out[:found]


@njit(cache=True, nogil=True)
def _turn_of_pair(view: Float64, first: int, second: int, dx: float, dy: float) -> tuple[float, float]:
    """Side * (cos, sin) of the roll that turns the vector between two points of a view (5, 2) into (dx, dy)."""
    tx, ty = view[second, 0] - view[first, 0], view[second, 1] - view[first, 1]
    norm = tx * tx + ty * ty
    return (dx * tx + dy * ty) / norm, (dy * tx - dx * ty) / norm


@njit(cache=True, nogil=True)
def _may_be_face(cos: float, sin: float, limits: Limits) -> bool:
    """Whether size and roll are within or near their limits: two points determine them less exactly than the fit."""
    side = np.sqrt(cos * cos + sin * sin)
    if side < 0.8 * limits.min_side or side > 1.25 * limits.max_side:
        return False
    return bool(abs(np.arctan2(sin, cos)) <= 1.2 * limits.max_roll)


@njit(cache=True, nogil=True)
def _place(view: Float64, x: float, y: float, cos: float, sin: float, row: Float64) -> None:
    """Write the five points of a view, rotated and scaled by cos and sin and moved to this centre, to the row."""
    for k in range(5):
        row[POINTS + 2 * k] = x + cos * view[k, 0] - sin * view[k, 1]
        row[POINTS + 2 * k + 1] = y + sin * view[k, 0] + cos * view[k, 1]


@njit(cache=True, nogil=True)
def _find_inliers(kind: Int64, xy: Float64, response: Float64, row: Float64, radius: float, inliers: Int64) -> int:
    """Find and count each type's best peak within a radius of its place in the row: high, and close to that place.

    Args:
        inliers: (5,) int64, filled with the peaks' indices, -1 for a type that has none.
    """
    inliers[:] = -1
    worth = np.zeros(5)
    count = 0
    for p in range(len(kind)):
        k = kind[p]
        apart = (xy[p, 0] - row[POINTS + 2 * k]) ** 2 + (xy[p, 1] - row[POINTS + 2 * k + 1]) ** 2
        apart /= radius * radius
        if apart < 1.0 and response[p] * (1.0 - 0.5 * apart) > worth[k]:
            count += inliers[k] < 0
            worth[k] = response[p] * (1.0 - 0.5 * apart)
            inliers[k] = p
    return count


@njit(cache=True, nogil=True)
def _refit(xy: Float64, response: Float64, view: Float64, inliers: Int64, limits: Limits, row: Float64) -> float:
    """Fit the view to the inliers by least squares; fill the row and return its score, or 0 if it is not a face."""
    x, y, cos, sin = _similarity(xy, view, inliers)
    side, roll = np.sqrt(cos * cos + sin * sin), np.arctan2(sin, cos)
    if side < limits.min_side or side > limits.max_side or abs(roll) > limits.max_roll:
        return 0.0
    _place(view, x, y, cos, sin, row)
    misfit, total, count = 0.0, 0.0, 0
    for k in range(5):
        p, at = inliers[k], POINTS + 2 * k
        row[RESPONSES + k] = 0.0
        if p >= 0:
            misfit += (xy[p, 0] - row[at]) ** 2 + (xy[p, 1] - row[at + 1]) ** 2
            total += min(response[p], 1.0)
            count += 1
            row[RESPONSES + k] = response[p]
            row[at], row[at + 1] = xy[p, 0], xy[p, 1]
    residual = np.sqrt(misfit / count) / side
    row[0], row[1], row[2], row[3], row[4] = x, y, side, roll, residual
    return total * (1.0 - 2.0 * residual) if residual <= limits.residual else 0.0


@njit(cache=True, nogil=True)
def _similarity(xy: Float64, view: Float64, inliers: Int64) -> tuple[float, float, float, float]:
    """Least-squares similarity from a view (5, 2) to its inliers: centre x, y and side * (cos, sin) of the roll."""
    n, mx, my, ux, uy = 0, 0.0, 0.0, 0.0, 0.0
    for k in range(5):
        if inliers[k] >= 0:
            n += 1
            mx += xy[inliers[k], 0]
            my += xy[inliers[k], 1]
            ux += view[k, 0]
            uy += view[k, 1]
    mx, my, ux, uy = mx / n, my / n, ux / n, uy / n
    norm, cos, sin = 0.0, 0.0, 0.0
    for k in range(5):
        if inliers[k] >= 0:
            tx, ty = view[k, 0] - ux, view[k, 1] - uy
            dx, dy = xy[inliers[k], 0] - mx, xy[inliers[k], 1] - my
            norm += tx * tx + ty * ty
            cos += dx * tx + dy * ty
            sin += dy * tx - dx * ty
    cos, sin = cos / norm, sin / norm
    return mx - (cos * ux - sin * uy), my - (sin * ux + cos * uy), cos, sin


def suppress(centre: Float32, side: Float32, score: Float32) -> Int64:
    """Non-maximum suppression by intersection over the smaller area, so that no part of a face survives inside it.

    A face larger than a better one by more than the factor `MAX_SIDE_RATIO` stays: the better one may be a part of it.

    Args:
        centre: (F, 2) float32 pixels, of the faces' squares.
        side: (F,) float32 pixels.
        score: (F,) float32.
    Returns:
        (K,) int64 indices of the faces that stay, best first.
    """
    order = np.argsort(-score, kind="stable")
    keep = _suppress(centre[order].astype(np.float64), side[order].astype(np.float64))
    return np.asarray(order[keep], np.int64)


@njit(cache=True, nogil=True)
def _suppress(centre: Float64, side: Float64) -> Int64:
    keep = np.empty(len(side), np.int64)
    kept = 0
    for i in range(len(side)):
        for n in range(kept):
            if _duplicates(centre, side, i, keep[n]):
                break
        else:
            keep[kept] = i
            kept += 1
    return keep[:kept]


@njit(cache=True, nogil=True)
def _duplicates(centre: Float64, side: Float64, i: int, better: int) -> bool:
    """Whether face i is suppressed by a better one."""
    reach = (side[i] + side[better]) / 2
    smaller = min(side[i], side[better])
    w = min(reach - abs(centre[i, 0] - centre[better, 0]), smaller)
    h = min(reach - abs(centre[i, 1] - centre[better, 1]), smaller)
    covers = w > 0 and h > 0 and w * h > OVERLAP * smaller * smaller
    return bool(covers and side[i] <= MAX_SIDE_RATIO * side[better])


def warm_up() -> None:
    """Compile every kernel, so that no live frame pays for it."""
    kind, xy, response = find_peaks(np.zeros((5, 8, 8), np.float32), 0.3, 4)
    found = group_peaks(kind, xy, response)
    suppress(found.centre, found.side, found.side)
