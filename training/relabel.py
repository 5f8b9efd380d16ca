"""Pseudo-labels: what a trained network finds in pictures without labels, or with poor ones, as a new corpus.

    python -m facetrack.training.relabel FOLDER OUT [--model M]

writes, for every picture below FOLDER in which the network is sure of one face, the picture and its landmarks in the
300-W layout below OUT. A student that is trained on such a corpus learns what its teacher knows (distillation), and a
network that is trained again on better labels than it was given learns from itself.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..engines.aligner import Aligner
from ..pipeline.open import Choices, open_engines
from ..pipeline.search import FaceDetector
from ..tracker.geometry import CropTransform, bounding_box, box_centre_side, box_of_five, rotated_box
from ..tracker.types import Float32, UInt8
from .augment import mirror, mirror_points
from .datasets import read_faces, read_images
from .datasets.point_files import write_pts

log = logging.getLogger(__name__)

LEAST_CONFIDENCE = 0.6  # of the mean over all looks
WIDEST_SPREAD = 0.03  # of the face's side: mean distance of a look's landmarks from the mean of all looks
ASYMMETRY = 0.006  # of the annotations that the networks learnt from, see `augment.Geometry`
TURNS = (-0.12, 0.0, 0.12)  # radians: each look is at a crop turned a little, and at its mirror picture


@dataclass(frozen=True, slots=True)
class PseudoLabel:
    """What a network found in several looks at a face.

    Attributes:
        xy: (N, 2) mean of the looks, picture pixels.
        confidence: mean of the looks.
        spread: mean distance of the looks' landmarks from their mean, over the face's side.
    """

    xy: Float32
    confidence: float
    spread: float

    @property
    def sure(self) -> bool:
        """Whether the label is worth learning from."""
        return self.confidence >= LEAST_CONFIDENCE and self.spread <= WIDEST_SPREAD


def look_often(aligner: Aligner, bgr: UInt8, start: CropTransform) -> PseudoLabel:
    """Measure a face in turned and mirrored crops, round where a first look finds it.

    Args:
        aligner: the teacher.
        bgr: (H, W, 3) uint8.
        start: the crop of the first look.
    """
    first = aligner.align(bgr, [start])[0].xy
    mirrored, back = mirror(bgr, first, aligner.markup)
    looks = aligner.align(bgr, _turned_crops(aligner, first))
    seen = aligner.align(mirrored, _turned_crops(aligner, back))
    side = box_centre_side(bounding_box(first))[1]
    annotators = np.array([2 * ASYMMETRY * side, 0], np.float32)
    xy = [look.xy for look in looks]
    xy += [mirror_points(look.xy, aligner.markup, bgr.shape[1]) + annotators for look in seen]
    mean = np.mean(xy, 0)
    spread = float(np.linalg.norm(np.stack(xy) - mean, axis=-1).mean() / max(side, 1.0))
    confidence = float(np.mean([look.confidence for look in (*looks, *seen)]))
    return PseudoLabel(mean.astype(np.float32), confidence, spread)


def _turned_crops(aligner: Aligner, xy: Float32) -> list[CropTransform]:
    centre, side, angle = rotated_box(xy, aligner.markup.subset("five5", xy))
    return [aligner.crop_around(centre, side, angle + turn) for turn in TURNS]


def first_crop(detector: FaceDetector, aligner: Aligner, bgr: UInt8, points: Float32) -> CropTransform | None:
    """Where to look first: round the picture's label, or where the detector sees its best face.

    Args:
        points: (F, N, 2) labels, poor as they may be; F = 0 for none.
    """
    if len(points):
        return aligner.crop_around(*box_centre_side(bounding_box(points[0])))
    found = detector.detect(bgr)
    return aligner.crop_around(*box_of_five(found.points[0])) if len(found.points) else None


def relabel(folder: Path, out: Path, choices: Choices) -> tuple[int, int]:
    """Write the corpus; see the module.

    Args:
        folder: 300-W layout, or pictures alone.
        out: pictures keep their place below it.
        choices: which network, on what.
    Returns:
        How many pictures there were, and how many were written.
    Raises:
        CardError, BackendError: the network cannot be had.
        SourceError: a picture is broken.
    """
    labelled = any(folder.rglob("*.pts"))
    samples = read_faces(folder, "pts") if labelled else read_images(folder)
    total = written = 0
    with open_engines(choices) as engines:
        for sample in samples:
            total += 1
            bgr = sample.bgr()
            crop = first_crop(engines.detector, engines.aligner, bgr, sample.points)
            label = look_often(engines.aligner, bgr, crop) if crop is not None else None
            if label is None or not label.sure:
                continue
            written += 1
            target = out / sample.path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(sample.encoded)
            write_pts(target.with_suffix(".pts"), label.xy)
    return total, written


def main() -> None:
    """Read the arguments and relabel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default=Choices().model)
    arguments = parser.parse_args()
    total, written = relabel(arguments.folder, arguments.out, Choices(model=arguments.model))
    print(f"{written} of {total} pictures labelled in {arguments.out}")


if __name__ == "__main__":
    main()
