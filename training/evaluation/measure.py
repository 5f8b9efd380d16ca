"""Errors of a model on annotated pictures, face by face."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...tracker import metrics
from ...tracker.errors import SourceError
from ...tracker.metrics import Normaliser
from ...tracker.types import Float32, Float64
from ..datasets import Broken, Entry, Sample
from .locate import CommonPoints, Locate

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FaceResult:
    """The result for one face.

    Attributes:
        entry: its entry in the data set, to read the picture again.
        subsets: of the data set that it belongs to.
        errors: normaliser -> fraction; infinity if the face was missed.
        confidence: the model's own, in [0, 1]; 0 if the face was missed.
        truth: (M, 2) the compared points as annotated.
        found: (M, 2) the compared points as found by the model; None if the face was missed.
    """

    entry: Entry
    subsets: tuple[str, ...]
    errors: Mapping[Normaliser, float]
    confidence: float
    truth: Float32
    found: Float32 | None


@dataclass(frozen=True, slots=True)
class Measured:
    """The results for all faces.

    Attributes:
        faces: in the data set's order.
        left_out: (name, reason) of each broken file.
    """

    faces: tuple[FaceResult, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def missed(self) -> int:
        """Number of faces that were not found."""
        return sum(face.found is None for face in self.faces)

    def errors(self, subset: str, normaliser: Normaliser) -> Float64:
        """(F,) errors of the faces of a subset."""
        return np.array([face.errors[normaliser] for face in self.faces if subset in face.subsets], np.float64)

    def by_subset(
        self, subsets: Sequence[str], normalisers: Sequence[Normaliser]
    ) -> dict[str, dict[Normaliser, Float64]]:
        """subset -> normaliser -> (F >= 1,) errors; subsets without a measured face are left out."""
        present = [name for name in subsets if any(name in face.subsets for face in self.faces)]
        return {name: {kind: self.errors(name, kind) for kind in normalisers} for name in present}


@dataclass(frozen=True, slots=True)
class Measuring:
    """How faces are measured.

    Attributes:
        locate: finds them.
        common: points in which they are compared.
        normalisers: what errors are divided by.
        broken: whether to refuse or to skip files that cannot be read.
    """

    locate: Locate
    common: CommonPoints
    normalisers: tuple[Normaliser, ...]
    broken: Broken = "refuse"


def measure(entries: Sequence[Entry], how: Measuring, advanced: Callable[[], None] = lambda: None) -> Measured:
    """Measure every face that a data set lists.

    Args:
        entries: one face each.
        how: see `Measuring`.
        advanced: called after each entry.
    Raises:
        SourceError: a file is broken and must not be skipped, or no face is left.
    """
    faces: list[FaceResult] = []
    left_out: list[tuple[str, str]] = []
    for entry in entries:
        try:
            faces.append(_measure(entry, how))
        except SourceError as error:
            if how.broken == "refuse":
                raise
            log.warning("%s; left out", error)
            left_out.append((entry.name, str(error)))
        advanced()
    if not faces:
        raise SourceError("no face could be measured: every file is broken")
    return Measured(tuple(faces), tuple(left_out))


def _measure(entry: Entry, how: Measuring) -> FaceResult:
    sample = entry.read()
    bgr, truth = sample.bgr(), _only_face(sample, how.common.data.points)
    lengths = _lengths(sample, how)
    found = how.locate(bgr, truth)
    wanted = how.common.of_data(truth)
    placed = None if found is None else how.common.of_model(found.xy)
    compared = np.full_like(wanted, np.nan) if placed is None else placed
    errors = {
        kind: float(metrics.normalised_errors(compared[None], wanted[None], length)[0])
        for kind, length in lengths.items()
    }
    confidence = 0.0 if found is None else found.confidence
    return FaceResult(entry, sample.subsets, errors, confidence, wanted, placed)


def _lengths(sample: Sample, how: Measuring) -> dict[Normaliser, Float64]:
    try:
        return {
            kind: metrics.normalising_lengths(sample.points, how.common.data, kind, sample.boxes)
            for kind in how.normalisers
        }
    except ValueError as error:
        raise SourceError(f"{sample.place}: cannot serve as ground truth: {error}") from error


def _only_face(sample: Sample, points: int) -> Float32:
    """The points (N, 2) of a sample, which must have exactly one, completely annotated face."""
    if sample.points.shape != (1, points, 2):
        raise SourceError(f"{sample.place}: wanted one face of {points} points, got {sample.points.shape}")
    if not np.isfinite(sample.points).all():
        known = int(np.isfinite(sample.points[0]).all(-1).sum())
        raise SourceError(f"{sample.place}: wanted all {points} points annotated, got {known}; leave the picture out")
    return np.asarray(sample.points[0], np.float32)
