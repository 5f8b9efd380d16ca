"""Pseudo-labels: make a new corpus of what a trained network finds in pictures without labels, or with poor ones.

    python -m facetrack.training.relabel FOLDER OUT [--model M] [--asymmetry A]

writes every picture below FOLDER in which the network is sure of one face, with its landmarks, in the 300-W layout
below OUT. A student that is trained on such a corpus learns what its teacher knows (distillation), and a network that
is trained again on labels better than those it was given learns from itself. Called again, the command resumes:
pictures that are already in OUT or listed in OUT/refused.txt are skipped. Use another OUT for another network.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..engines.aligner import Aligner
from ..pipeline.open import Choices, Engines, open_engines
from ..pipeline.search import FaceDetector
from ..tracker.errors import SourceError
from ..tracker.geometry import CropTransform, box_centre_side
from ..tracker.types import Float32, UInt8
from ..tracker.views import box_of_five, face_box, rotated_face_box
from .augment import mirror, mirror_points
from .command_line import errors_in_one_line
from .datasets import Sample, images_below, read_images
from .datasets.point_files import read_pts, write_pts

log = logging.getLogger(__name__)

LEAST_CONFIDENCE = 0.6  # mean over all looks
WIDEST_SPREAD = 0.03  # of the face's side: mean distance of a look's landmarks from the mean of all looks
ASYMMETRY = 0.006  # of 300-W: `geometry.asymmetry` of the shipped networks' configurations
REFUSED = "refused.txt"  # names of the pictures in which the network was not sure of one face, one per line
TURNS = (-0.12, 0.0, 0.12)  # radians: the looks are at crops turned by these, of the picture and its mirror picture


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
        """Whether the label is good enough to learn from."""
        return self.confidence >= LEAST_CONFIDENCE and self.spread <= WIDEST_SPREAD


@dataclass(frozen=True, slots=True)
class Relabelled:
    """Progress of a corpus: how many pictures were processed, how many of them are written, and whether it is done."""

    seen: int
    written: int
    finished: bool


def align_augmented(aligner: Aligner, bgr: UInt8, start: CropTransform, asymmetry: float = ASYMMETRY) -> PseudoLabel:
    """Measure a face in turned and mirrored crops around the place where a first look finds it.

    Args:
        aligner: the teacher.
        bgr: (H, W, 3) uint8.
        start: the crop of the first look.
        asymmetry: of the annotations that the teacher was trained on, see `augment.Geometry`.
    """
    first = aligner.align(bgr, [start])[0].xy
    mirrored, back = mirror(bgr, first, aligner.markup)
    looks = aligner.align(bgr, _turned_crops(aligner, first))
    seen = aligner.align(mirrored, _turned_crops(aligner, back))
    side = box_centre_side(face_box(first))[1]
    annotators = np.array([2 * asymmetry * side, 0], np.float32)
    xy = [look.xy for look in looks]
    xy += [mirror_points(look.xy, aligner.markup, bgr.shape[1]) + annotators for look in seen]
    mean = np.mean(xy, 0)
    spread = float(np.linalg.norm(np.stack(xy) - mean, axis=-1).mean() / max(side, 1.0))
    confidence = float(np.mean([look.confidence for look in (*looks, *seen)]))
    return PseudoLabel(mean.astype(np.float32), confidence, spread)


def _turned_crops(aligner: Aligner, xy: Float32) -> list[CropTransform]:
    centre, side, angle = rotated_face_box(xy, aligner.markup.subset("five5", xy))
    return [aligner.crop_around(centre, side, angle + turn) for turn in TURNS]


def first_crop(detector: FaceDetector, aligner: Aligner, bgr: UInt8, points: Float32) -> CropTransform | None:
    """Crop of the first look: round the picture's first label, or round the detector's best face.

    Args:
        points: (F, N, 2) labels, which may be poor; F = 0 for none.
    """
    if len(points):
        return aligner.crop_around(*box_centre_side(face_box(points[0])))
    found = detector.detect(bgr)
    return aligner.crop_around(*box_of_five(found.points[0])) if len(found.points) else None


def relabel(
    folder: Path, out: Path, choices: Choices, asymmetry: float = ASYMMETRY, ends: float = math.inf
) -> Relabelled:
    """Write the corpus, or resume writing it; see the module docstring.

    Args:
        folder: pictures, each with or without a .pts beside it, as in 300-W.
        out: gets the pictures under the same relative paths.
        choices: the network and its backend.
        asymmetry: of the annotations that the network was trained on, see `augment.Geometry`.
        ends: `time.monotonic` from which no further picture is begun.
    Raises:
        CardError, BackendError: the network cannot be opened.
        SourceError: there is no picture, a picture or its .pts is broken, or two pictures would share a label.
    """
    _check_unique_names(folder)
    out.mkdir(parents=True, exist_ok=True)
    seen = written = 0
    with open_engines(choices) as engines, (out / REFUSED).open("a+", encoding="utf-8") as file:
        file.seek(0)
        refused = set(file.read().splitlines())
        for sample in map(_with_its_label, read_images(folder)):
            name = sample.path.relative_to(folder)
            if not (_is_written(out / name) or name.as_posix() in refused):
                if time.monotonic() >= ends:
                    return Relabelled(seen, written, finished=False)
                label = _label(engines, sample, asymmetry)
                if label is not None and label.sure:
                    _write(out / name, sample.encoded, label.xy)
                else:
                    print(name.as_posix(), file=file, flush=True)
            seen += 1
            written += _is_written(out / name)
    return Relabelled(seen, written, finished=True)


def _check_unique_names(folder: Path) -> None:
    """Check that no two pictures differ in the suffix alone: they would share one label file.

    Raises:
        SourceError: two do; names them.
    """
    pictures: dict[Path, list[Path]] = {}
    for path in images_below(folder):
        pictures.setdefault(path.with_suffix(""), []).append(path)
    for name, paths in pictures.items():
        if len(paths) > 1:
            told = " and ".join(path.name for path in paths)
            raise SourceError(f"{name}: wanted one picture with this name, got {told}; keep one")


def _with_its_label(sample: Sample) -> Sample:
    """The picture with the annotation of the .pts beside it, if there is one."""
    label = sample.path.with_suffix(".pts")
    return replace(sample, points=read_pts(label)[None]) if label.is_file() else sample


def _label(engines: Engines, sample: Sample, asymmetry: float) -> PseudoLabel | None:
    """The label found in one picture; None if no face is found."""
    bgr = sample.bgr()
    crop = first_crop(engines.detector, engines.aligner, bgr, sample.points)
    return None if crop is None else align_augmented(engines.aligner, bgr, crop, asymmetry)


def _is_written(picture: Path) -> bool:
    return picture.is_file() and picture.with_suffix(".pts").is_file()


def _write(picture: Path, encoded: bytes, xy: Float32) -> None:
    """Write the picture, then its label through a temporary file, so that a kill leaves no incomplete label."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(encoded)
    part = picture.with_suffix(".part")
    write_pts(part, xy)
    part.replace(picture.with_suffix(".pts"))


def main() -> None:
    """Read the arguments and relabel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default=Choices().model)
    parser.add_argument("--asymmetry", type=float, default=ASYMMETRY, help="geometry.asymmetry of M's configuration")
    arguments = parser.parse_args()
    choices = Choices(model=arguments.model)
    with errors_in_one_line("relabel"):
        found = relabel(arguments.folder, arguments.out, choices, asymmetry=arguments.asymmetry)
    print(f"{found.written} of {found.seen} pictures labelled in {arguments.out}")


if __name__ == "__main__":
    main()
