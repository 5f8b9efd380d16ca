"""Turn what the detector measures of a candidate into the chance that it is a face, on pictures it never saw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..engines.detector import Detector, scan_features
from ..tracker.geometry import iou
from ..tracker.proposals import fit_views
from ..tracker.types import Float32, UInt8
from .chips import five_points
from .datasets import Sample

SAME_FACE = 0.4  # overlap from which a candidate counts as an annotated face
SMALLEST_FACE = 20.0  # annotated faces under this side are nobody's fault


@dataclass(frozen=True, slots=True)
class Measured:
    """Features of candidates and whether each is a face (True) or certainly none (False)."""

    features: Float32
    is_face: np.ndarray[tuple[int], np.dtype[np.bool_]]


def true_boxes(sample: Sample) -> Float32:
    """Square boxes (F, 4) of a picture's annotated faces."""
    boxes = np.array([five_points(annotated)[2] for annotated in sample.points], np.float32).reshape(-1, 3)
    return np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)


def measure(detector: Detector, faces: Iterable[Sample], others: Iterable[UInt8], *, refined: bool) -> Measured:
    """Collect candidates' features: the scan's own, or those of the second look.

    On pictures with faces only candidates on an annotated face count, because some faces are not annotated; on
    pictures without faces all count.
    """
    rows: list[Float32] = []
    labels: list[bool] = []
    for sample in faces:
        features, boxes = _candidates(detector, sample.bgr(), refined=refined)
        hit = (iou(boxes, true_boxes(sample)) >= SAME_FACE).any(1)
        rows += list(features[hit])
        labels += [True] * int(hit.sum())
    for bgr in others:
        features, _ = _candidates(detector, bgr, refined=refined)
        rows += list(features)
        labels += [False] * len(features)
    return Measured(np.array(rows, np.float32), np.array(labels))


def _candidates(detector: Detector, bgr: UInt8, *, refined: bool) -> tuple[Float32, Float32]:
    candidates, chance = detector.scan(bgr)
    if not refined:
        half = candidates.side[:, None] / 2
        return scan_features(candidates), np.concatenate((candidates.centre - half, candidates.centre + half), 1)
    worth = np.flatnonzero(chance >= detector.card.calibration["second_look"])[: detector.settings.most]
    if not len(worth):
        return np.empty((0, 12), np.float32), np.empty((0, 4), np.float32)
    points, features = detector.look_again(bgr, candidates.take(worth), chance[worth])
    return features, fit_views(points).boxes


def fit_logistic(measured: Measured, ridge: float = 3.0, rounds: int = 30) -> list[float]:
    """Weights of a logistic regression, the constant last; faces and others weigh the same in total.

    Newton's method on the penalised likelihood of standardised features.
    """
    x = measured.features.astype(np.float64)
    mean, std = x.mean(0), x.std(0) + 1e-6
    design = np.column_stack(((x - mean) / std, np.ones(len(x))))
    y = measured.is_face.astype(np.float64)
    share = np.where(measured.is_face, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    penalty = ridge * np.diag([*np.ones(x.shape[1]), 0.0])
    w = np.zeros(design.shape[1])
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-np.clip(design @ w, -30, 30)))
        gradient = design.T @ (share * (y - p)) - penalty @ w
        hessian = (design * (share * p * (1 - p) + 1e-9)[:, None]).T @ design + penalty
        w += np.linalg.solve(hessian, gradient)
    scaled = w[:-1] / std
    return [float(v) for v in (*scaled, w[-1] - scaled @ mean)]
