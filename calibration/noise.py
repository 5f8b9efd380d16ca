"""What an aligner's scores are worth: how far a point may be off, and how likely a face is right.

Two things are learned from photographs with annotated landmarks that the network was not trained on.

Confidence: the probability that a face's error is under `metrics.GOOD_NME` of the distance between its outer eye
corners, or of its box if the markup has no such points (AFLW's 19). Crops are shifted, turned, scaled, covered, blurred
and degraded by noise, from as mild as in tracking to hopeless. A logistic regression on the network's own logit (Platt
scaling: two numbers, monotone) is fitted to which of them went well. How well it is calibrated is measured on
photographs that it was not fitted to.

Noise: the same photographs with fresh sensor noise, in crops that differ as those of successive frames do. What changes
from one crop to the next is noise for the Kalman filter; an error that all of them share is not. As in the filter, the
noise is split into what all points have in common and each point's own, whose sigma is a power of its score.

Source: Platt, "Probabilistic outputs for support vector machines", 1999; Guo et al., "On calibration of modern neural
networks", ICML 2017 (expected calibration error).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.aligner import Aligner, sigmoid
from ..engines.backend import Backend
from ..engines.card import ModelCard
from ..tracker import metrics
from ..tracker.errors import ConfigError
from ..tracker.geometry import CropTransform, box_centre_side
from ..tracker.markup import Markup
from ..tracker.types import Float32, Float64, Int64
from ..tracker.views import face_box
from ..training.augment import Geometry, crop_over_background, disturb, random_crop
from ..training.datasets import Sample, one_face_each, read_pts_folder
from ..training.evaluation.card_figures import usual_normaliser

BINS = 10
FOLDS = 5
NEWTON_STEPS = 50
RIDGE = 1e-6  # keeps the fit finite if the logit separates good from bad without an error
LARGEST_LOGIT = 15.0  # beyond this a float32 confidence is 0 or 1
# crops as in tracking, and crops of which half go wrong
MILD = Geometry(log_scale=0.13, shift=0.05)
WILD = Geometry(log_scale=0.35, shift=0.15, roll_deg=30.0, wide_share=0.3)
NEXT_FRAME = Geometry(roll_deg=1.0, wide_share=0.0, log_scale=0.01, shift=0.01, stretch=0.0, flip=0.0)
SENSOR_NOISE = 4.0  # grey levels


@dataclass(frozen=True, slots=True)
class Judged:
    """Crops and how well they were aligned.

    Attributes:
        picture: (M,) index of the photograph.
        logit: (M,) of the network's own confidence.
        nme: (M,) error, a fraction of the normalising length.
    """

    picture: Int64
    logit: Float64
    nme: Float64

    @property
    def good(self) -> Float64:
        """(M,) 1 if the error is small enough, else 0."""
        return (self.nme < metrics.GOOD_NME).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of landmarks in face sizes, as in `SmootherSettings`.

    Attributes:
        own: sigma of one coordinate of a point of score 1; that of a score s is own * s ** -power.
        shared: sigma of the error that all points have in common.
        bins: (score, sigma) pairs: sigma of the points in each tenth of the scores.
    """

    own: float
    shared: float
    power: float
    bins: tuple[tuple[float, float], ...]

    def sigma(self, score: float) -> float:
        """Sigma of one coordinate of a point with this score."""
        return float(self.own * score**-self.power)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned about a card.

    Attributes:
        confidence: slope and offset on the logit.
        noise: of landmarks.
        errors: data -> expected calibration error, on photographs that the fit did not see.
        before: the same without the fit.
        reliability: (lower edge, crops, mean confidence, share that was right) of each bin of confidence, unseen data.
    """

    confidence: tuple[float, float]
    noise: Noise
    errors: dict[str, float]
    before: dict[str, float]
    reliability: tuple[tuple[float, int, float, float], ...]

    def table(self) -> dict[str, Any]:
        """The card's [calibration] table."""
        return {
            "confidence": [round(value, 4) for value in self.confidence],
            "noise": [round(self.noise.own, 6), round(self.noise.shared, 6), round(self.noise.power, 3)],
            "confidence_ece": {name: round(value, 4) for name, value in self.errors.items()},
        }


def plain_aligner(card: ModelCard, net: Backend) -> Aligner:
    """The aligner of a card without its earlier calibration of the confidence."""
    rest = {name: value for name, value in card.calibration.items() if name != "confidence"}
    return Aligner(replace(card, calibration=rest), net)


def annotated_faces(folder: Path, marks: Markup) -> list[Sample]:
    """All faces of a folder of pictures with a .pts file beside each, one per sample.

    Raises:
        ConfigError: a face lacks points of the markup.
        SourceError: no picture has a .pts file, or one of the files is broken.
    """
    samples = one_face_each(read_pts_folder(folder))
    for sample in samples:
        if sample.points.shape[1] != marks.points or np.isnan(sample.points).any():
            raise ConfigError(
                f"{sample.path}: wanted all {marks.points} points of {marks.name}, the model's markup, got "
                f"{int(np.isfinite(sample.points[0]).all(1).sum())}; choose photographs annotated with it"
            )
    return samples


def calibrate(
    aligner: Aligner, faces: Sequence[Sample], tests: Mapping[str, Sequence[Sample]], crops: int = 8
) -> Calibration:
    """Learn everything about an aligner; the same photographs give the same numbers.

    Args:
        aligner: from `plain_aligner`.
        faces: one annotated face each, none of them from the network's training.
        tests: further data, used for measuring only.
        crops: number per photograph.
    Raises:
        CardError: the network does not score faces.
        ConfigError: the photographs are too few, or all crops went well, or none did.
    """
    aligner.require_face_score()
    judged = judge(aligner, faces, crops, np.random.default_rng([0, 0]))
    unseen = np.empty_like(judged.logit)
    for fold in range(FOLDS):
        out = judged.picture % FOLDS == fold
        unseen[out] = chance(judged.logit[out], fit_logistic(judged.logit[~out], judged.good[~out]))
    fitted = fit_logistic(judged.logit, judged.good)
    own = f"{FOLDS}-fold"
    errors = {own: calibration_error(unseen, judged.good)}
    before = {own: calibration_error(chance(judged.logit, (1.0, 0.0)), judged.good)}
    for number, (name, samples) in enumerate(tests.items(), start=1):
        other = judge(aligner, samples, crops, np.random.default_rng([0, number]))
        errors[name] = calibration_error(chance(other.logit, fitted), other.good)
        before[name] = calibration_error(chance(other.logit, (1.0, 0.0)), other.good)
    noise = measure_noise(aligner, faces, crops, np.random.default_rng([0, len(tests) + 1]))
    return Calibration(fitted, noise, errors, before, reliability(unseen, judged.good))


def judge(aligner: Aligner, faces: Sequence[Sample], crops: int, rng: np.random.Generator) -> Judged:
    """Align disturbed crops of photographs, half of them `MILD` and half `WILD`, and compare with the annotation."""
    rows, kind = [], usual_normaliser(aligner.markup)
    still = CropTransform(np.eye(2, 3), aligner.card.size)
    for number, sample in enumerate(faces):
        bgr, other = sample.bgr(), faces[int(rng.integers(len(faces)))].bgr()
        for i in range(crops):
            spread = replace(WILD if i % 2 else MILD, box_scale=aligner.card.box_scale, flip=0.0)
            transform = random_crop(sample.points[0], aligner.card.size[0], spread, rng)
            crop = disturb(crop_over_background(bgr, transform, other, rng), [other], rng)
            (found,) = aligner.align(crop, [still])
            truth = transform.to_crop(sample.points[0])
            error = metrics.nme(found.xy[None], truth[None], aligner.markup, kind)[0]
            rows.append((number, logit(found.confidence), error))
    numbers, logits, errors = np.array(rows, np.float64).reshape(-1, 3).T
    return Judged(numbers.astype(np.int64), logits, errors)


def measure_noise(aligner: Aligner, faces: Sequence[Sample], crops: int, rng: np.random.Generator) -> Noise:
    """Measure how much landmarks change between crops of one photograph that differ as those of successive frames do.

    Raises:
        ConfigError: there are too few photographs on which the aligner does well.
    """
    own, shared, scores, kind = [], [], [], usual_normaliser(aligner.markup)
    for sample in faces:
        bgr = sample.bgr()
        _, side = box_centre_side(face_box(sample.points[0]))
        found = []
        for _ in range(crops):
            transform = random_crop(
                sample.points[0], aligner.card.size[0], replace(NEXT_FRAME, box_scale=aligner.card.box_scale), rng
            )
            noisy = bgr + SENSOR_NOISE * rng.standard_normal(bgr.shape, np.float32)
            found += aligner.align(np.clip(noisy, 0, 255).astype(np.uint8), [transform])
        places = np.stack([face.xy for face in found]).astype(np.float64) / side
        mean = np.mean([face.xy for face in found], 0)
        if metrics.nme(mean[None], sample.points[:1], aligner.markup, kind)[0] >= metrics.GOOD_NME:
            continue
        common, rest = split_noise(places)
        own.append(rest)
        shared.append(common)
        scores.append(np.mean([face.score for face in found], 0))
    if len(own) < FOLDS:
        raise ConfigError(
            f"calibration: wanted at least {FOLDS} photographs whose landmarks the aligner finds well, got {len(own)}"
        )
    return fit_noise(np.concatenate(scores), np.concatenate(own), float(np.mean(shared)))


def split_noise(places: Float64) -> tuple[float, Float64]:
    """Split what changes between repeated measurements of N points.

    Args:
        places: (K, N, 2) of one face.
    Returns:
        Variance of a coordinate of the shift that all points have in common, and (N,) that of each point beyond the
        affine motion of all.
    """
    repeats, points = places.shape[:2]
    mean = places.mean(0)
    design = np.column_stack((np.ones(points), mean - mean.mean(0)))
    moves = places - mean
    coefficients, *_ = np.linalg.lstsq(design, moves.transpose(1, 0, 2).reshape(points, -1), rcond=None)
    rest = moves - (design @ coefficients).reshape(points, repeats, 2).transpose(1, 0, 2)
    own = (rest**2).sum((0, 2)) / (2 * (repeats - 1)) * points / (points - 3)
    common = (moves.mean(1) ** 2).sum() / (2 * (repeats - 1)) - own.mean() / points
    return max(float(common), 0.0), own


def fit_noise(score: Float64 | Float32, variance: Float64, shared: float) -> Noise:
    """Fit own * score ** -power to the sigmas of points: a straight line through the logarithms of their tenths.

    If the line does not fall, a level one is fitted instead: a high score is no reason to trust a point less.

    Args:
        score: (M,) in (0, 1].
        variance: (M,) of each point's coordinates, face sizes^2.
        shared: variance of the common part.
    """
    trusted = np.asarray(score, np.float64)
    order = np.array_split(np.argsort(trusted), BINS)
    bins = tuple((float(trusted[part].mean()), float(np.sqrt(variance[part].mean()))) for part in order if len(part))
    at, sigma = np.log(np.array(bins, np.float64)).T
    slope, height = np.polyfit(at, sigma, 1) if np.ptp(at) > 0 else (0.0, 0.0)
    power, height = (-slope, height) if slope < 0 else (0.0, sigma.mean())
    return Noise(float(np.exp(height)), float(np.sqrt(shared)), float(power), bins)


def fit_logistic(logits: Float64, good: Float64) -> tuple[float, float]:
    """Fit chance = sigmoid(slope * logit + offset) by maximum likelihood; Newton's method with Platt's soft targets.

    Args:
        logits: (M,)
        good: (M,) 1 or 0.
    Returns:
        slope and offset.
    Raises:
        ConfigError: all crops went well, or none did, or a higher logit means a worse crop.
    """
    rights, wrongs = good.sum(), (1 - good).sum()
    if not rights or not wrongs:
        raise ConfigError(
            f"calibration: wanted crops that succeed and crops that fail, got {rights:.0f} and {wrongs:.0f}"
        )
    target = np.where(good > 0, (rights + 1) / (rights + 2), 1 / (wrongs + 2))
    design, beta = np.column_stack((logits, np.ones_like(logits))), np.array([1.0, 0.0])
    for _ in range(NEWTON_STEPS):
        p = chance(logits, (beta[0], beta[1]))
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, design.T @ (p - target))
        while _misfit(design @ (beta - step), target) > _misfit(design @ beta, target) and np.abs(step).max() > 1e-9:
            step /= 2
        beta -= step
        if np.abs(step).max() < 1e-9:
            break
    if not beta[0] > 0:
        raise ConfigError(f"calibration: wanted confidence to rise with the logit, got a slope of {beta[0]:.3f}")
    return float(beta[0]), float(beta[1])


def _misfit(logits: Float64, target: Float64) -> float:
    """Negative log-likelihood."""
    return float((np.logaddexp(0, logits) - target * logits).sum())


def logit(confidence: float) -> float:
    """The logit of a confidence."""
    p = float(np.clip(confidence, np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).eps))
    return float(np.clip(np.log(p / (1 - p)), -LARGEST_LOGIT, LARGEST_LOGIT))


def chance(logits: Float64, fitted: tuple[float, float]) -> Float64:
    """(M,) calibrated confidences."""
    return sigmoid(fitted[0] * logits + fitted[1])


def reliability(confidence: Float64, good: Float64) -> tuple[tuple[float, int, float, float], ...]:
    """Return (lower edge, count, mean confidence, share that was right) of each non-empty bin, all of equal width."""
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = []
    for k in range(BINS):
        there = number == k
        if there.any():
            rows.append((k / BINS, int(there.sum()), float(confidence[there].mean()), float(good[there].mean())))
    return tuple(rows)


def calibration_error(confidence: Float64, good: Float64) -> float:
    """Return the expected calibration error: mean distance of confidence and share that was right, over `BINS` bins.

    Source: Guo et al. 2017, Eq. 3.
    """
    return sum(count * abs(mean - right) for _, count, mean, right in reliability(confidence, good)) / len(good)
