"""How wrong landmarks are in a picture (NME, failures, AUC, CED) and how they behave over time (jitter, lag).

Errors are fractions of a normalising length (0.035 is "3.5 %"). The error of a lost face is infinity, so that no
metric can overlook it. Points are frame pixels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from .geometry import bounding_box
from .markup import Markup
from .types import Float32, Float64

Normaliser = Literal["io", "ip", "box", "diag", "edge", "face"]
OF_BOXES = ("box", "diag", "edge", "face")
GOOD_NME = 0.08  # landmarks below it count as right: the failure threshold of 300-W and 300VW


def normalising_lengths(
    truth: Float32, markup: Markup, kind: Normaliser = "io", boxes: Float32 | None = None
) -> Float64:
    """Return the length by which each face's error is divided.

    Args:
        truth: (F, N, 2) annotated points.
        markup: their markup.
        kind: "io": between the outer eye corners; "ip": between the pupils or eye centres; of the points' tight box,
            "box": sqrt(width * height), "diag": diagonal, "edge": (width + height) / 2; "face": sqrt(width * height) of
            the annotated box.
        boxes: (F, 4) annotated boxes for "face", as AFLW has them; default: the points' tight boxes.
    Returns:
        (F,) pixels.
    Raises:
        ValueError: truth is not (F, N, 2) of this markup, the markup has no such normaliser, or a length is 0.
    Source: Sagonas et al., 2013 (io), Kumar et al., CVPR 2020 (box, diag), Chrysos et al., IJCV 2018 (edge), Zhu et
        al., CVPR 2016 (face, of AFLW).
    """
    points = _faces(truth, markup, "truth")
    if kind in OF_BOXES:
        lengths = _box_lengths(bounding_box(truth) if boxes is None or kind != "face" else boxes, kind)
    elif kind in markup.normalisers:
        first, second = (points[:, list(group)].mean(1) for group in markup.normalisers[kind])
        lengths = np.linalg.norm(first - second, axis=-1)
    else:
        wanted = ", ".join([*markup.normalisers, *OF_BOXES])
        raise ValueError(f"NME of {markup.name}: wanted one of the normalisers {wanted}, got {kind!r}")
    if not (lengths > 0).all():
        zero = int((~(lengths > 0)).sum())
        raise ValueError(f"NME: wanted normalising lengths above 0, got {zero} that are not; leave these faces out")
    return lengths


def nme(
    predicted: Float32, truth: Float32, markup: Markup, kind: Normaliser = "io", boxes: Float32 | None = None
) -> Float64:
    """Return the normalised mean error of each face: mean distance of its points over its normalising length.

    Args:
        predicted: (F, N, 2) points; a face with any point that is not finite counts as lost.
        truth: (F, N, 2) annotated points.
        markup: the markup of both.
        kind: the normaliser, see `normalising_lengths`.
        boxes: (F, 4) annotated boxes or None, see `normalising_lengths`.
    Returns:
        (F,) fractions, infinity for a lost face.
    Raises:
        ValueError: the shapes differ or do not fit the markup, or a normalising length is 0.
    """
    lengths = normalising_lengths(truth, markup, kind, boxes)
    guess = _faces(predicted, markup, "predicted")
    if len(guess) != len(truth):
        raise ValueError(f"NME: wanted {len(truth)} predicted faces, as many as annotated, got {len(guess)}")
    return normalised_errors(guess, truth, lengths)


def normalised_errors(predicted: Float32 | Float64, truth: Float32 | Float64, lengths: Float64) -> Float64:
    """Return the mean distance of each face's points over a length of its own.

    While `nme` takes both from whole faces of one markup, this takes any part of a face with the length of the whole
    face, as needed for the 49 points of 300VW.

    Args:
        predicted, truth: (F, M, 2) points; a face with any predicted point that is not finite counts as lost.
        lengths: (F,) pixels, from `normalising_lengths`.
    Returns:
        (F,) fractions, infinity for a lost face.
    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != truth.shape or predicted.ndim != 3 or len(lengths) != len(truth):
        shapes = f"{predicted.shape}, {truth.shape} and {lengths.shape}"
        raise ValueError(f"NME: wanted predicted and true points (F, M, 2) and lengths (F,), got {shapes}")
    errors = np.linalg.norm(np.subtract(predicted, truth, dtype=np.float64), axis=-1).mean(-1) / lengths
    return np.where(np.isfinite(errors), errors, np.inf)


def mean_of_found(errors: Float64) -> tuple[float, float]:
    """Return the mean error of the faces that were found and the fraction that were lost.

    Returns:
        (mean, lost); the mean is NaN when nothing was found.
    Raises:
        ValueError: there are no errors.
    """
    found = _checked(errors)
    found = found[np.isfinite(found)]
    mean = float(found.mean()) if found.size else float("nan")
    return mean, 1.0 - found.size / len(errors)


def failure_rate(errors: Float64, threshold: float) -> float:
    """Return the fraction of (F,) errors above the threshold; a lost face fails at every threshold.

    Raises:
        ValueError: there are no errors.
    """
    return float((_checked(errors) > threshold).mean())


def auc(errors: Float64, threshold: float) -> float:
    """Return the area under the cumulative error curve up to the threshold, over the threshold; 1 is perfect.

    This is the exact integral, mean(max(0, 1 - e / threshold)), not a sum over a grid.

    Raises:
        ValueError: there are no errors, or the threshold is not positive.
    """
    if not threshold > 0:
        raise ValueError(f"AUC: wanted a threshold above 0, got {threshold}")
    return float(np.maximum(0.0, 1.0 - _checked(errors) / threshold).mean())


def ced(errors: Float64, thresholds: Float64) -> Float64:
    """Return the cumulative error distribution: the fraction of (F,) errors at or below each of (T,) thresholds.

    Raises:
        ValueError: there are no errors.
    """
    ordered = np.sort(_checked(errors))
    fractions: Float64 = np.searchsorted(ordered, thresholds, side="right") / len(ordered)
    return fractions


def jitter(track: Float32 | Float64) -> float:
    """Return how much a still face's points wander: the RMS deviation of a coordinate from its mean over time.

    It is the RMS over all coordinates, so for white noise it is the noise's sigma. Use it only where the truth stands
    still; for a moving face, subtract the truth first.

    Args:
        track: (T, N, 2) the points in T >= 2 frames.
    Returns:
        Pixels.
    Raises:
        ValueError: track is not (T >= 2, N, 2).
    """
    points = _over_time(track)
    return float(np.sqrt(((points - points.mean(0)) ** 2).mean()))


def lag(track: Float32 | Float64, truth: Float32 | Float64) -> float:
    """Return how far a track stays behind the true points along their motion; negative if it runs ahead.

    Each point's error is projected onto its true step to this frame; points at rest do not count.

    Args:
        track: (T, N, 2) the points in T >= 2 frames.
        truth: (T, N, 2) where they really were.
    Returns:
        Pixels, the mean over points and frames, NaN when nothing moved.
    Raises:
        ValueError: the shapes differ or are not (T >= 2, N, 2).
    """
    points, true = _over_time(track), _over_time(truth)
    if points.shape != true.shape:
        raise ValueError(f"lag: wanted track and truth of the same shape, got {points.shape} and {true.shape}")
    step = np.diff(true, axis=0)
    length = np.linalg.norm(step, axis=-1)
    behind = ((true - points)[1:] * step).sum(-1)
    moved = length > 0
    return float((behind[moved] / length[moved]).mean()) if moved.any() else float("nan")


def _box_lengths(boxes: Float32, kind: Normaliser) -> Float64:
    corners = np.asarray(boxes, np.float64)
    width, height = np.maximum(corners[:, 2:] - corners[:, :2], 0).T
    lengths: Float64 = (width + height) / 2
    if kind in ("box", "face"):
        lengths = np.sqrt(width * height)
    elif kind == "diag":
        lengths = np.hypot(width, height)
    return lengths


def _faces(points: Float32, markup: Markup, what: str) -> Float64:
    given = np.asarray(points, np.float64)
    if given.ndim != 3 or given.shape[1:] != (markup.points, 2):
        raise ValueError(f"{what}: wanted (F, {markup.points}, 2) points of {markup.name}, got {given.shape}")
    return given


def _checked(errors: Float64) -> Float64:
    given = np.asarray(errors, np.float64)
    if given.ndim != 1 or not given.size or np.isnan(given).any():
        raise ValueError(f"errors: wanted (F >= 1,) without NaN (a lost face is infinity), got {given.shape}")
    return given


def _over_time(track: Float32 | Float64) -> Float64:
    given = np.asarray(track, np.float64)
    if given.ndim != 3 or given.shape[2] != 2 or len(given) < 2:
        raise ValueError(f"track: wanted (T >= 2, N, 2) points, got {given.shape}")
    return given
