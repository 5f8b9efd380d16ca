"""Rasterise a mesh of triangles: which source position every pixel of a drawing shows."""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

from ..tracker.types import Float32, Float64, Int64, UInt8


@cache
def square_grid(reach: float, step: float) -> tuple[Float64, Int64]:
    """Grid points (V, 2), `step` apart and up to `reach` from the origin, and the triangles (T, 3) between them."""
    count = int(2 * reach / step) + 1
    line = np.linspace(-reach, reach, count)
    x, y = np.meshgrid(line, line)
    first = (np.arange(count - 1)[:, None] * count + np.arange(count - 1)).ravel()
    a, b, c, d = first, first + 1, first + count, first + count + 1
    triangles = np.vstack((np.column_stack((a, b, c)), np.column_stack((b, d, c))))
    return np.column_stack((x.ravel(), y.ravel())), triangles.astype(np.int64)


@njit(cache=True, nogil=True)
def rasterise(drawn: Float32, source: Float32, triangles: Int64, size: int) -> tuple[Float32, UInt8]:
    """Find for every pixel of a drawing which position in the source it shows.

    Args:
        drawn: (V, 3) float32 pixel and depth of the vertices; the smallest depth is nearest and is seen.
        source: (V, 2) float32 pixel of the vertices in the source.
        triangles: (T, 3) vertices.
        size: side of the drawing.
    Returns:
        lookup: (size, size, 2) float32 source pixels; -1e4 where there is no triangle.
        spoilt: (size, size) uint8, 1 where a triangle is seen from behind, and where there is none.
    """
    lookup = np.full((size, size, 2), -1e4, np.float32)
    nearest = np.full((size, size), np.inf, np.float32)
    spoilt = np.ones((size, size), np.uint8)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ax, ay, bx, by, cx, cy = drawn[a, 0], drawn[a, 1], drawn[b, 0], drawn[b, 1], drawn[c, 0], drawn[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-9:
            continue
        flat = (source[b, 0] - source[a, 0]) * (source[c, 1] - source[a, 1]) - (source[b, 1] - source[a, 1]) * (
            source[c, 0] - source[a, 0]
        )
        x1, x2 = max(int(np.ceil(min(ax, bx, cx))), 0), min(int(np.floor(max(ax, bx, cx))), size - 1)
        y1, y2 = max(int(np.ceil(min(ay, by, cy))), 0), min(int(np.floor(max(ay, by, cy))), size - 1)
        for y in range(y1, y2 + 1):
            for x in range(x1, x2 + 1):
                q = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / area
                r = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
                if q < -1e-6 or r < -1e-6 or q + r > 1 + 1e-6:
                    continue
                p = 1 - q - r
                depth = p * drawn[a, 2] + q * drawn[b, 2] + r * drawn[c, 2]
                if depth < nearest[y, x]:
                    nearest[y, x] = depth
                    lookup[y, x, 0] = p * source[a, 0] + q * source[b, 0] + r * source[c, 0]
                    lookup[y, x, 1] = p * source[a, 1] + q * source[b, 1] + r * source[c, 1]
                    spoilt[y, x] = area * flat < 0
    return lookup, spoilt
