"""An alignment network behind one call: crop, run, decode."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..tracker import markup
from ..tracker.errors import CardError
from ..tracker.geometry import CropTransform
from ..tracker.types import Float32, Landmarks, UInt8, checked_picture
from ..tracker.views import rotated_face_box
from .backend import Backend
from .card import ModelCard
from .codec import decoder
from .fit import scores_faces
from .shape import shape_model

Real = TypeVar("Real", np.float32, np.float64)

View = tuple[UInt8, CropTransform]  # a picture and the crop of it
LARGEST_BATCH = 8  # faces in one run; more than this are split, so that memory stays bounded in a crowd
SMALLEST_FACE = 1.0  # frame pixels; a broken network may put all points in one place, which has no crop


class Aligner:
    """Finds the landmarks of faces whose rough place is known. Calls from several threads wait for each other.

    Attributes:
        scores_faces: whether the network says if a crop shows a face; for a backend without `shapes`, True until it
            has run.
    """

    def __init__(self, card: ModelCard, backend: Backend) -> None:
        """Take a card and its loaded network.

        Raises:
            CardError: the card's outputs cannot be decoded, or there is no shape model of its markup.
        """
        self.card, self.backend = card, backend
        self.markup = markup.load(card.markup)
        self._decode = decoder(card.codec, self.markup, card.name)
        self._reach = float(card.calibration.get("shape", 0.0))
        self._shape = shape_model(card.markup) if self._reach > 0 else None
        self._trust: tuple[float, float] = tuple(card.calibration.get("confidence", (1.0, 0.0)))
        self._crops = np.empty((LARGEST_BATCH, *card.size, 3), np.uint8)
        self.scores_faces = scores_faces(backend)
        self._lock = threading.Lock()  # for the crops, and for the backend's outputs until they are decoded

    def crop_around(self, centre: tuple[float, float], side: float, angle: float = 0.0) -> CropTransform:
        """The crop that the network expects for a face.

        Args:
            centre: (x, y) of the face's upright box, frame pixels.
            side: its longer side; faces smaller than `SMALLEST_FACE` get the crop of a face of that size.
            angle: roll in radians, positive clockwise.
        """
        side = max(side, SMALLEST_FACE) * self.card.box_scale
        return CropTransform.around(centre, side, self.card.size[0], angle=angle)

    def crop_of_points(self, xy: Float32) -> CropTransform:
        """The upright crop for a face whose landmarks (N, 2) are known, for instance from the last frame."""
        return self.crop_around(*rotated_face_box(xy, self.markup.subset("five5", xy)))

    @property
    def preferred_batch(self) -> int:
        """How many crops are best measured at once: see `Backend`."""
        return min(self.backend.preferred_batch, LARGEST_BATCH)

    def require_face_score(self) -> None:
        """Check that the network scores faces, as tracking needs.

        Raises:
            CardError: it does not.
        """
        if not self.scores_faces:
            raise CardError(
                f"{self.card.name}: cannot track: it does not score faces; wanted a network that was trained with "
                "network.options.face_score = true (docs/training.md); `facetrack evaluate` in given boxes needs no "
                "score"
            )

    def align(self, bgr: UInt8, crops: Sequence[CropTransform]) -> list[Landmarks]:
        """Measure the landmarks in each crop of one picture.

        Args:
            bgr: (H, W, 3) uint8.
            crops: one per face, of the card's size.
        Returns:
            One Landmarks per crop, in frame pixels. If the network does not score faces, the confidence is the mean
            score of the landmarks and the presence is 1, because the caller says where the faces are.
        Raises:
            ValueError: bgr is not such an array, or a crop has another size.
        """
        return self.align_views([(bgr, crop) for crop in crops])

    def align_views(self, views: Sequence[View]) -> list[Landmarks]:
        """Measure the landmarks in crops of several pictures, the neighbouring frames of a video for instance.

        Args:
            views: pictures (H, W, 3) uint8, each with a crop of it of the card's size.
        Returns:
            One Landmarks per view, in its picture's pixels.
        Raises:
            ValueError: a picture is not such an array, or a crop has another size.
        """
        self._check_views(views)
        found: list[Landmarks] = []
        runs = math.ceil(len(views) / LARGEST_BATCH)
        for i in range(runs):  # of nearly equal lengths: nine faces are four and five
            found += self._align(views[len(views) * i // runs : len(views) * (i + 1) // runs])
        return found

    def _check_views(self, views: Sequence[View]) -> None:
        for i, (bgr, crop) in enumerate(views):
            if i == 0 or bgr is not views[i - 1][0]:  # a crowd's faces are all of one picture
                checked_picture(bgr, "align")
            if tuple(crop.size) != self.card.size:
                raise ValueError(
                    f"align: wanted crops of {self.card.size}, got {crop.size}; see crop_around and crop_of_points"
                )

    def _align(self, views: Sequence[View]) -> list[Landmarks]:
        with self._lock:
            batch = self._crops[: len(views)]
            for (bgr, crop), out in zip(views, batch, strict=True):
                crop.crop(bgr, out)
            outputs = self.backend.run(batch)
            xy, score = self._decode(outputs)
            if self._shape is not None:
                for points in xy:
                    points[:] = self._shape.correct_points(points, self._reach)
            self.scores_faces = outputs[-1].ndim == 2  # (B, 2); the maps, vectors or corners before have more axes
            if self.scores_faces:
                probabilities = [self._probabilities(*logits) for logits in outputs[-1].tolist()]
            else:
                probabilities = [(mean, 1.0) for mean in score.mean(1).tolist()]
        return [
            Landmarks(crop.to_frame(xy[i]), score[i], *probabilities[i], self.markup.name)
            for i, (_, crop) in enumerate(views)
        ]

    def _probabilities(self, face: float, right: float) -> tuple[float, float]:
        """Confidence and presence of a crop from its two logits: that it shows a face, that its landmarks are right.

        The confidence is the probability, by the card's calibration, of an NME under 8 %; it takes the lower logit. The
        presence is the probability of a face at all: profile views show faces, but may not have good landmarks.
        """
        slope, offset = self._trust
        return _probability(slope * min(face, right) + offset), _probability(face)


def _probability(logit: float) -> float:
    """`sigmoid` of one number, without NumPy, whose code a run of the network evicts from the processor's cache."""
    return 0.5 + 0.5 * math.tanh(0.5 * logit)


def sigmoid(logit: NDArray[Real]) -> NDArray[Real]:
    """1 / (1 + exp(-logit)) of any logit without overflow, of the same shape and type."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logit), logit.dtype)
