"""Fit the probability that a candidate is a face to the detector's features, on pictures held out of its training.

Also measure how often the detector finds annotated faces, and how many false positives it has.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...engines.aligner import sigmoid
from ...engines.detector import Detector, scan_features
from ...tracker.errors import ConfigError
from ...tracker.geometry import iou
from ...tracker.types import Float32, UInt8
from ...tracker.views import fit_views
from ..config import Config
from ..datasets import Sample, read_faces
from ..negatives import faceless
from .chips import five_points
from .objectives import held_out

TEST = "lfpw/testset"  # below the data; not for training
SAME_FACE = 0.4  # overlap from which a candidate counts as an annotated face
SMALLEST_FACE = 22.0  # pixels; annotated faces with a smaller side do not count
SECOND_LOOK_LOSS = 0.004  # share of true candidates that the scan's score may lose


@dataclass(frozen=True, slots=True)
class Measured:
    """Features of candidates, and whether each is a face (True) or certainly not (False)."""

    features: Float32
    is_face: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Report:
    """Results of a detector on pictures.

    Attributes:
        best: (F,) score of the best proposal on each annotated face, 0 if there is none.
        errors: (F, 5) distance of that proposal's points from the annotated ones over the eye distance; NaN: unknown.
        false: scores of the proposals on pictures without faces.
        faceless: number of these pictures.
    """

    best: Float32
    errors: Float32
    false: Float32
    faceless: int

    def recall(self, threshold: float) -> float:
        """Share of the annotated faces that were found."""
        return float((self.best >= threshold).mean())

    def false_alarms(self, threshold: float) -> float:
        """Proposals per picture without faces."""
        return float((self.false >= threshold).sum() / self.faceless)


def load_held_out(config: Config, data: Path, half: int) -> tuple[dict[str, list[Sample]], list[Sample]]:
    """One half, by name, of the pictures that the training did not see.

    Args:
        config: of the run.
        data: root of the data sets.
        half: 0 or 1.
    Returns:
        The pictures with faces, by their folder below `data`: the held-out ones of the corpora, and all of LFPW's test
        set if it is there and not a corpus. Then those without faces.
    Raises:
        ConfigError: this half has no pictures with faces, or none without.
        SourceError: a folder is missing or broken.
    """
    faces: dict[str, list[Sample]] = {}
    for c in config.corpora:
        if c.held_out:
            read = read_faces(data / c.path, c.layout, config.broken)
            faces.setdefault(c.path, []).extend(s for s in read if held_out(s) and _half(s) == half)
    if (data / TEST).is_dir() and TEST not in [c.path for c in config.corpora]:
        faces[TEST] = [s for s in read_faces(data / TEST, "pts", config.broken) if _half(s) == half]
    faces = {folder: samples for folder, samples in faces.items() if samples}
    empty = [s for s in faceless(config, data) if held_out(s) and _half(s) == half]
    if not (faces and empty):
        count = sum(map(len, faces.values()))
        raise ConfigError(
            "corpora, negatives: a detector is measured on the tenth of its pictures that it is not trained on: "
            f"wanted some with and some without faces in either half of it, got {count} and {len(empty)} in half "
            f"{half + 1}; add pictures"
        )
    return faces, empty


def _half(sample: Sample) -> int:
    return zlib.crc32(sample.path.name.encode()) // 10 % 2


def true_boxes(sample: Sample) -> Float32:
    """Square boxes (F, 4) of a picture's annotated faces."""
    boxes = np.array([five_points(annotated)[2] for annotated in sample.points], np.float32).reshape(-1, 3)
    return np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)


def evaluate(detector: Detector, faces: Iterable[Sample], others: Iterable[Sample]) -> Report:
    """Run the whole detector; give it a low threshold to get a whole curve."""
    best, errors = [], []
    for sample in faces:
        found, boxes = detector.detect(sample.bgr()), true_boxes(sample)
        overlap = iou(boxes, found.boxes)
        for i in np.flatnonzero(boxes[:, 2] - boxes[:, 0] >= SMALLEST_FACE):
            hits = np.flatnonzero(overlap[i] >= SAME_FACE)
            best.append(found.scores[hits[0]] if len(hits) else 0.0)
            truth = five_points(sample.points[i])[0]
            away = found.points[hits[0]] - truth if len(hits) else np.full((5, 2), np.nan)
            errors.append(np.linalg.norm(away, axis=-1) / np.linalg.norm(truth[0] - truth[1]))
    pictures = list(others)
    false = [detector.detect(sample.bgr()).scores for sample in pictures]
    return Report(np.array(best, np.float32), np.array(errors, np.float32), np.concatenate([*false, []]), len(pictures))


def measure(detector: Detector, faces: Iterable[Sample], others: Iterable[Sample], *, refined: bool) -> Measured:
    """Collect candidates' features: the scan's own, or those of the second look (`refined`).

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
    for sample in others:
        features, _ = _candidates(detector, sample.bgr(), refined=refined)
        rows += list(features)
        labels += [False] * len(features)
    return Measured(np.array(rows, np.float32), np.array(labels))


def _candidates(detector: Detector, bgr: UInt8, *, refined: bool) -> tuple[Float32, Float32]:
    """Features and square boxes of one picture's candidates."""
    candidates, chance = detector.scan(bgr)
    if not refined:
        half = candidates.side[:, None] / 2
        return scan_features(candidates), np.concatenate((candidates.centre - half, candidates.centre + half), 1)
    worth = np.flatnonzero(chance >= detector.card.calibration["second_look"])[: detector.settings.most]
    if not len(worth):
        return np.empty((0, 12), np.float32), np.empty((0, 4), np.float32)
    points, features = detector.refine(bgr, candidates.take(worth), chance[worth])
    return features, fit_views(points).boxes


def fit_face_weights(measured: Measured, ridge: float = 3.0, rounds: int = 30) -> list[float]:
    """Weights of a logistic regression, the constant last; faces and others have the same total weight.

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
        p = sigmoid(design @ w)
        gradient = design.T @ (share * (y - p)) - penalty @ w
        hessian = (design * (share * p * (1 - p) + 1e-9)[:, None]).T @ design + penalty
        w += np.linalg.solve(hessian, gradient)
    scaled = w[:-1] / std
    return [float(v) for v in (*scaled, w[-1] - scaled @ mean)]
