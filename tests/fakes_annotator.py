"""An annotator that reads painted faces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fakes import read_landmarks

from facetrack.tracker import markup
from facetrack.tracker.geometry import CropTransform, bounding_box, box_centre_side
from facetrack.tracker.types import Float32, Landmarks, UInt8

IBUG = markup.load("ibug68")


class Annotator:
    """Replaces a network: reads painted faces and marks every point `asymmetry` of the face's side to the right."""

    markup = IBUG

    def __init__(self, asymmetry: float) -> None:
        self.asymmetry = asymmetry

    def crop_around(self, centre: tuple[float, float], side: float, angle: float = 0.0) -> CropTransform:
        return CropTransform.around(centre, side * 1.3, 128, angle=angle)

    def align(self, bgr: UInt8, crops: Sequence[CropTransform]) -> list[Landmarks]:
        return [Landmarks(self.annotate(bgr), np.ones(68, np.float32), 1.0, 1.0, "ibug68") for _ in crops]

    def annotate(self, bgr: UInt8) -> Float32:
        xy = read_landmarks(bgr)
        assert xy is not None
        if xy[45, 0] < xy[36, 0]:  # the chart is mirrored; a person would still call the left corner number 36
            xy = xy[IBUG.mirror]
        return xy + np.array([self.asymmetry * box_centre_side(bounding_box(xy))[1], 0], np.float32)
