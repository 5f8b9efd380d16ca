"""An alignment network behind one call: crop, run, decode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..tracker import markup
from ..tracker.codecs import decode_vectors
from ..tracker.errors import CardError
from ..tracker.geometry import CropTransform, rotated_box
from ..tracker.types import Float32, Landmarks, UInt8
from .backend import Backend
from .card import ModelCard

LARGEST_BATCH = 8  # faces in one run; more than this is split, so that memory stays bounded in a crowd


class Aligner:
    """Finds the landmarks of faces whose rough place is known."""

    def __init__(self, card: ModelCard, backend: Backend) -> None:
        if card.codec.get("kind") != "vectors":
            raise CardError(f"{card.name}: cannot decode {card.codec.get('kind')!r}; wanted codec kind vectors")
        self.card, self.backend = card, backend
        self.markup = markup.load(card.markup)
        self._crops = np.empty((LARGEST_BATCH, *card.size, 3), np.uint8)

    def crop_around(self, centre: tuple[float, float], side: float, angle: float = 0.0) -> CropTransform:
        """The crop that the network wants for a face: `side` is the longer side of its landmarks' upright box."""
        return CropTransform.around(centre, side * self.card.box_scale, self.card.size[0], angle=angle)

    def crop_of_points(self, xy: Float32) -> CropTransform:
        """The upright crop for a face whose landmarks (N, 2) are known, for instance from the last frame."""
        return self.crop_around(*rotated_box(xy, self.markup.subset("five5", xy)))

    def align(self, bgr: UInt8, crops: Sequence[CropTransform]) -> list[Landmarks]:
        """Measure the landmarks in each crop of one picture.

        Args:
            bgr: (H, W, 3) uint8.
            crops: one per face, of the card's size.
        Returns:
            One Landmarks per crop, in frame pixels.
        """
        found: list[Landmarks] = []
        for start in range(0, len(crops), LARGEST_BATCH):
            found += self._align(bgr, crops[start : start + LARGEST_BATCH])
        return found

    def _align(self, bgr: UInt8, crops: Sequence[CropTransform]) -> list[Landmarks]:
        batch = self._crops[: len(crops)]
        for crop, out in zip(crops, batch, strict=True):
            crop.crop(bgr, out)
        vectors, logits = self.backend.run(batch)
        codec = self.card.codec
        xy, score = decode_vectors(vectors, codec["stride"], codec["sigma"], codec["peak"])
        confidence = self._confidence(logits)
        return [
            Landmarks(crop.to_frame(xy[i]), score[i], float(confidence[i]), self.markup.name)
            for i, crop in enumerate(crops)
        ]

    def _confidence(self, logits: Float32) -> Float32:
        """Chance that the crop shows a face whose landmarks are right: both logits must agree."""
        return (1.0 / (1.0 + np.exp(-logits.min(1)))).astype(np.float32)

    def warm_up(self) -> None:
        """Run once on black, so that no live frame pays for compilation and first allocation."""
        self.align(np.zeros((8, 8, 3), np.uint8), [self.crop_around((4.0, 4.0), 4.0)])

    def close(self) -> None:
        """Free the backend."""
        self.backend.close()
