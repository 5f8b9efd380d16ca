"""From network outputs to landmarks: the decoding halves of the codecs, as Numba kernels.

The encoding halves are the targets in `training.targets`; a test holds the two against each other.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .types import Float32

REACH = 2  # cells on either side of the maximum that vote for its place; the bell is about 1.2 cells wide
LOWEST = 1e-6  # floor of a vector's maximum, so that a dead vector has a logarithm
FARTHEST = 6.0  # sigmas: how far beyond the box a landmark may be placed; a guard, not from the paper


@njit(cache=True, nogil=True)  # type: ignore[misc]
def _decode_vectors(
    vectors: Float32, stride: float, sigma: float, peak: float, xy: Float32, score: Float32
) -> None:
    faces, landmarks, cells, _ = vectors.shape
    for f in range(faces):
        for n in range(landmarks):
            heights = 1.0
            for axis in range(2):
                top = 0
                for i in range(1, cells):
                    if vectors[f, n, i, axis] > vectors[f, n, top, axis]:
                        top = i
                height = max(vectors[f, n, top, axis], LOWEST)
                if (top == 0 or top == cells - 1) and height < peak:
                    beyond = min(np.sqrt(-2.0 * np.log(height / peak)), FARTHEST) * sigma
                    place = -beyond if top == 0 else cells - 1 + beyond
                else:
                    weights = moment = 0.0
                    for i in range(max(top - REACH, 0), min(top + REACH, cells - 1) + 1):
                        value = max(vectors[f, n, i, axis], 0.0)
                        weights += value * value + LOWEST
                        moment += (value * value + LOWEST) * i
                    place = moment / weights
                xy[f, n, axis] = stride * (place + 0.5) - 0.5
                heights *= min(height / peak, 1.0)
            score[f, n] = np.sqrt(heights)


def decode_vectors(vectors: Float32, stride: float, sigma: float, peak: float) -> tuple[Float32, Float32]:
    """Place each landmark where its two vectors have their maximum, inside the crop or beyond it.

    Inside, the place is the centroid of the squared values round the maximum. If the maximum is an end cell and
    lower than a whole bell, the bell stands outside and its distance follows from that height (Eqs. 6 and 7).

    Args:
        vectors: (F, N, w, 2) float32, [..., 0] for x and [..., 1] for y.
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
    _decode_vectors(np.ascontiguousarray(vectors, np.float32), stride, sigma, peak, xy, score)
    return xy, score
