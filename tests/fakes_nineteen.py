"""A network of AFLW's 19 points that reads painted faces, and its card."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from fakes import read_landmarks
from fakes_pipeline import PEAK, SIDE, SIGMA, STRIDE, SURE, PaintedBackend, painted_card

from facetrack.engines.backend import Outputs
from facetrack.engines.card import ModelCard
from facetrack.tracker.types import UInt8
from facetrack.training.alignment.targets import gaussian_vectors

# The painted points, of 68, used for brows, eyes, nose, mouth and chin; a lid's point is used for the eye's centre.
OF_68 = [17, 19, 21, 22, 24, 26, 36, 37, 39, 42, 44, 45, 31, 30, 35, 48, 51, 54, 8]


def nineteen_card() -> ModelCard:
    """Like `painted_card`, for 19 points."""
    return replace(painted_card("painted-19"), markup="aflw19")


@dataclass
class NineteenBackend(PaintedBackend):
    """Outputs the points `OF_68` of a painted face, `right` crop pixels to the right of the truth."""

    right: float = 0.0

    def run(self, images: UInt8) -> Outputs:
        """Vectors (B, 19, 32, 2) and two logits (B, 2) of crops (B, 128, 128, 3)."""
        found = [read_landmarks(image) for image in images]
        nothing = np.full((68, 2), -1e3, np.float32)
        xy = np.stack([nothing if points is None else points for points in found])[:, OF_68]
        logits = np.float32([[-SURE if points is None else SURE] * 2 for points in found])
        shifted = xy + np.float32([self.right, 0])
        return gaussian_vectors(shifted, SIDE // STRIDE, STRIDE, SIGMA, PEAK), logits
