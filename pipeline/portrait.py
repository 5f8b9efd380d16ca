"""A picture of a real face that is always available, for warming up, measuring and self-tests."""

from __future__ import annotations

from importlib import resources

import cv2
import numpy as np

from ..tracker.types import Float64, UInt8

# Centres of the eyes' openings, the picture's left one first, in pixels; measured by hand.
EYES: Float64 = np.array([[106.5, 101.0], [149.5, 102.3]])


def portrait() -> UInt8:
    """Eileen Collins by NASA, public domain: (256, 256, 3) uint8 BGR, the face 85 pixels wide."""
    content = resources.files(__package__).joinpath("portrait.jpg").read_bytes()
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), np.uint8)
