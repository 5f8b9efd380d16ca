"""Recall of landmarks and faces in whole pictures with a number of guesses: BB-FCN's unconstrained setting.

Every level of a pyramid gives candidates of each type of landmark. Non-maximum suppression over all levels keeps the
one with the highest response of those that overlap, and the branches refine the places of the rest.

Source: BB-FCN, sections III-E (candidates, suppression, refinement), IV-C (recall) and IV-F (proposals).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...engines.codec import DISC
from ...engines.detector import MARGIN, Detector
from ...engines.nets import MEAN, STD
from ...engines.nets.bbfcn import WINDOW, Branches
from ...tracker.codecs import mean_of_highest
from ...tracker.geometry import iou
from ...tracker.proposals import find_peaks
from ...tracker.types import Float32, Float64, Int64, UInt8
from ..datasets import Sample
from .chips import five_points
from .score import SMALLEST_FACE, true_boxes

STEP = 1.16  # f, ratio of neighbouring levels
THRESHOLD = 0.1  # theta, not stated in the paper: low enough for `GUESSES`
PEAKS = 64  # of a type on a level
SIDE = WINDOW // 2  # level pixels of a candidate's window
OVERLAP = 0.5  # of windows of one landmark
GUESSES = (15, 30)  # m, of each type in a picture
ERRORS = (0.05, 0.08, 0.10, 0.15, 0.25)  # largest accepted errors, over the eye distance
PROPOSALS = (2, 3, 20)  # proposed faces per picture
SAME_FACE = 0.5  # overlap, as on FDDB


@dataclass(frozen=True, slots=True)
class LandmarkCandidates:
    """Places where landmarks may be.

    Attributes:
        kind: (P,) int64 type.
        response: (P,) float32.
        xy: (P, 2) float32 frame pixels.
        side: (P,) float32 side of the square window round it, frame pixels.
        planes: (P, 4, 24, 24) float32, input of the type's branch: the window in RGB, normalised for the network, and
            in the type's map, both enlarged.
        origin, step: (P, 2) float32 frame pixels, place of the planes' first pixel and distance from pixel to pixel.
    """

    kind: Int64
    response: Float32
    xy: Float32
    side: Float32
    planes: Float32
    origin: Float32
    step: Float32

    def take(self, index: Int64) -> LandmarkCandidates:
        """The candidates with these indices, in this order."""
        return LandmarkCandidates(*(values[index] for values in self._arrays()))

    @classmethod
    def joined(cls, parts: list[LandmarkCandidates]) -> LandmarkCandidates:
        """All candidates of several levels (at least one)."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*(p._arrays() for p in parts), strict=True)))

    def _arrays(self) -> tuple[Any, ...]:
        return self.kind, self.response, self.xy, self.side, self.planes, self.origin, self.step


def find_candidates(detector: Detector, bgr: UInt8) -> LandmarkCandidates:
    """All candidates of all levels of a picture (H, W, 3) uint8."""
    return LandmarkCandidates.joined([_of_level(*level, bgr.shape) for level in detector.levels(bgr)])


def _of_level(size: tuple[int, int], level: UInt8, maps: Float32, frame: tuple[int, ...]) -> LandmarkCandidates:
    """The candidates of one level; `size` is the level's without margins, `level` and `maps` have them."""
    kind, xy, response = find_peaks(maps, THRESHOLD, PEAKS)
    corner = np.rint(xy - np.float32((SIDE - 1) / 2))
    rgb = (level[..., ::-1].transpose(2, 0, 1).astype(np.float32) - MEAN) / STD
    seen = np.pad(np.concatenate((rgb, maps)), ((0, 0), (SIDE, SIDE), (SIDE, SIDE))).astype(np.float32)
    planes = np.empty((len(kind), 4, SIDE, SIDE), np.float32)
    for i, (x, y) in enumerate((corner + SIDE).astype(np.int64)):
        planes[i] = seen[[0, 1, 2, 3 + kind[i]], y : y + SIDE, x : x + SIDE]
    factor = np.array([frame[1] / size[1], frame[0] / size[0]], np.float32)

    def in_frame(level_xy: Float32) -> Float32:
        return np.asarray((level_xy - MARGIN + 0.5) * factor - 0.5, np.float32)

    enlarged = F.interpolate(torch.from_numpy(planes), scale_factor=2.0, mode="bilinear", align_corners=False).numpy()
    side = np.full(len(kind), SIDE * factor.mean(), np.float32)
    step = np.tile(factor / np.float32(2), (len(kind), 1))
    return LandmarkCandidates(kind, response, in_frame(xy), side, enlarged, in_frame(corner - 0.25), step)


def suppress_windows(kind: Int64, xy: Float32, side: Float32, response: Float32) -> Int64:
    """Non-maximum suppression of landmarks' windows over all levels, separately for each type.

    Args:
        kind: (P,) int64. xy: (P, 2) float32. side, response: (P,) float32.
    Returns:
        (S,) int64 indices of the remaining ones, at most max(`GUESSES`) of each type, highest response first.
    """
    half = side[:, None] / np.float32(2)
    boxes: Float32 = np.concatenate((xy - half, xy + half), 1)
    stay: list[np.int64] = []
    for k in np.unique(kind):
        left = np.flatnonzero(kind == k)
        left = left[np.argsort(-response[left], kind="stable")]
        first = len(stay)
        while len(left) and len(stay) < first + max(GUESSES):
            stay.append(left[0])
            left = left[1:][iou(boxes[left[:1]], boxes[left[1:]])[0] <= OVERLAP]
    found = np.array(stay, np.int64)
    return np.asarray(found[np.argsort(-response[found], kind="stable")], np.int64)


def refine(branches: Branches, found: LandmarkCandidates) -> Float32:
    """The candidates' places as refined by the branches, (P, 2) float32 frame pixels."""
    number = np.array([(found.kind[:i] == k).sum() for i, k in enumerate(found.kind)], np.int64)  # within its type
    each = torch.from_numpy(number), torch.from_numpy(found.kind)
    planes = torch.zeros(int(number.max(initial=0)) + 1, branches.landmarks, *found.planes.shape[1:])
    planes[each] = torch.from_numpy(found.planes)
    with torch.inference_mode():
        fine = branches(planes)[each]
    place, _ = mean_of_highest(fine.numpy()[:, None], DISC)
    return np.asarray(found.origin + found.step * place[:, 0], np.float32)


@dataclass(frozen=True, slots=True)
class Recall:
    """Percentages of the annotated landmarks and faces that are found.

    Attributes:
        landmarks: (backbone alone, with branches) x (`GUESSES`) x (`ERRORS`).
        faces: found by the first `PROPOSALS` of each picture.
        counts: number of annotated landmarks and of annotated faces.
    """

    landmarks: Float64
    faces: Float64
    counts: tuple[int, int]


def measure_recall(detector: Detector, branches: Branches, samples: Iterable[Sample]) -> Recall:
    """Look for the five5 landmarks and the faces of annotated pictures.

    Args:
        detector: with a threshold of 0; in the paper its step is `STEP`.
        branches: of its network.
        samples: the pictures; faces under `SMALLEST_FACE` do not count.
    """
    errors, hits = [], []
    for sample in samples:
        bgr, boxes = sample.bgr(), true_boxes(sample)
        counted = boxes[:, 2] - boxes[:, 0] >= SMALLEST_FACE
        truth = np.array([five_points(points)[0] for points in sample.points[counted]], np.float32).reshape(-1, 5, 2)
        errors.append(_nearest(find_candidates(detector, bgr), branches, truth))
        overlap = iou(boxes[counted], detector.detect(bgr).boxes) > SAME_FACE
        hits.append(np.stack([overlap[:, :most].any(1) for most in PROPOSALS]))
    error, hit = np.concatenate(errors, 2), np.concatenate(hits, 1)
    known = error[..., ~np.isnan(error[0, 0])]  # ways, guesses, landmarks
    landmarks = np.stack([(known <= accepted).mean(2) for accepted in ERRORS], 2)
    return Recall(100 * landmarks, 100 * hit.mean(1), (known.shape[2], hit.shape[1]))


def _nearest(found: LandmarkCandidates, branches: Branches, truth: Float32) -> Float32:
    """Distance from each landmark (F, 5, 2) to the nearest guess of its type, over the eye distance.

    Returns:
        (2, `GUESSES`, F, 5) of the backbone and with branches; infinite without a guess, NaN for a landmark that is not
        annotated.
    """
    found = found.take(suppress_windows(found.kind, found.xy, found.side, found.response))
    eyes = np.linalg.norm(truth[:, 0] - truth[:, 1], axis=-1)[:, None, None]
    nearest = np.full((2, len(GUESSES), *truth.shape[:2]), np.inf, np.float32)
    for way, xy in enumerate((found.xy, refine(branches, found))):
        for k in range(truth.shape[1]):
            apart = np.linalg.norm(truth[:, k, None] - xy[None, found.kind == k], axis=-1) / eyes[:, 0]
            for number, most in enumerate(GUESSES):
                nearest[way, number, :, k] = apart[:, :most].min(1, initial=np.inf)
    nearest[..., np.isnan(truth).any(-1)] = np.nan
    return nearest
