"""How an evaluation finds a face: in the ground-truth box, or by detection as the program does in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ...engines.aligner import Aligner
from ...pipeline.run import Pipeline
from ...pipeline.sidecar import describe_models
from ...tracker.errors import MarkupError
from ...tracker.geometry import box_centre_side, iou
from ...tracker.markup import Markup
from ...tracker.types import Face, Float32, Frame, Landmarks, UInt8
from ...tracker.views import face_box

if TYPE_CHECKING:
    from ...pipeline.open import Choices, Engines

Boxes = Literal["gt", "detector"]
FOUND_IOU = 0.3  # a face that overlaps the annotated one less than this is another face
TRACKING = frozenset({"detect_every", "min_face", "max_faces", "smooth"})  # choices without effect in given boxes
IN_TIME = frozenset({"detect_every", "smooth"})  # choices without effect on pictures


def models_measured(engines: Engines, boxes: Boxes) -> list[dict[str, Any]]:
    """`describe_models` for the networks that an evaluation uses: in given boxes the aligner alone."""
    return describe_models(engines if boxes == "detector" else replace(engines, cards=engines.cards[:1]))


def settings_measured(choices: Choices, boxes: Boxes, *, pictures: bool = False) -> dict[str, Any]:
    """The choices that the figures of an evaluation depend on, in JSON types; those without effect are left out."""
    idle = TRACKING if boxes == "gt" else IN_TIME if pictures else frozenset()
    return {name: value for name, value in asdict(choices).items() if name not in idle}


@dataclass(frozen=True, slots=True)
class CommonPoints:
    """The points in which a model can be compared with a data set.

    Attributes:
        name: of the subset (or whole markup) that both have.
        count: of its points.
        model, data: both markups.
    """

    name: str
    count: int
    model: Markup
    data: Markup

    @property
    def whole(self) -> bool:
        """Whether model and data have the same markup, so that the papers' numbers are of the same points."""
        return self.name == self.data.name == self.model.name

    def of_model(self, xy: Float32) -> Float32:
        """The common points (..., M, 2) of the model's (..., N, 2)."""
        return self.model.subset(self.name, xy)

    def of_data(self, xy: Float32) -> Float32:
        """The common points (..., M, 2) of the annotation's (..., N, 2)."""
        return self.data.subset(self.name, xy)


def common_points(model: Markup, data: Markup) -> CommonPoints:
    """The largest set of points that both markups name.

    Raises:
        MarkupError: they have none in common.
    """
    sizes = [
        {markup.name: markup.points} | {name: len(groups) for name, groups in markup.subsets.items()}
        for markup in (model, data)
    ]
    shared = [name for name, count in sizes[0].items() if sizes[1].get(name) == count]
    if not shared:
        raise MarkupError(
            f"a model of {model.name} cannot be measured on {data.name}: they share no subset; choose another --model"
        )
    name = max(shared, key=lambda shared_name: (sizes[0][shared_name], shared_name == data.name))
    return CommonPoints(name, sizes[0][name], model, data)


class Locate(Protocol):
    """Finds the landmarks of the face that an annotation (N, 2) marks in a picture; None if the face is missed."""

    def __call__(self, bgr: UInt8, truth: Float32) -> Landmarks | None: ...


class GivenBoxLocator:
    """Landmarks in a crop round the annotated points, upright or turned; papers take a data set's own box instead."""

    def __init__(self, aligner: Aligner, data: Markup, angle: float = 0.0) -> None:
        self._aligner, self._data, self._angle = aligner, data, angle
        outlines = [len(markup.parts.get("contour", ())) > 1 for markup in (aligner.markup, data)]
        self._tight = aligner.markup.name == data.name or all(outlines)

    def __call__(self, bgr: UInt8, truth: Float32) -> Landmarks:
        """Align once. If only one of the markups has the face's outline, the box is estimated from five points."""
        box = face_box(truth if self._tight else self._data.subset("five5", truth))
        return self._aligner.align(bgr, [self._aligner.crop_around(*box_centre_side(box), self._angle)])[0]


class DetectorLocator:
    """Landmarks that the program finds by itself in a picture."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def __call__(self, bgr: UInt8, truth: Float32) -> Landmarks | None:
        """Detect and align; return the face that overlaps the annotated one most, see `overlapping`."""
        faces = next(iter(self._pipeline.serial([Frame(0, 0.0, 0.0, bgr)]))).faces
        face = overlapping(faces, truth)
        return None if face is None else face.measured


def overlapping(faces: Sequence[Face], truth: Float32) -> Face | None:
    """The measured face whose box overlaps that of the annotated points (N, 2) most.

    None if the intersection over union of the two boxes is below `FOUND_IOU`.
    """
    measured = [face for face in faces if face.measured is not None]
    if not measured:
        return None
    overlap = iou(np.stack([face.box for face in measured]), face_box(truth)[None])[:, 0]
    best = int(overlap.argmax())
    return measured[best] if overlap[best] >= FOUND_IOU else None
