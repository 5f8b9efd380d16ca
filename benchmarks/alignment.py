"""How far the landmarks are off on annotated photographs, with given boxes and fully automatically.

    python benchmarks/alignment.py FOLDER [--model gv]

FOLDER is in the 300-W layout (NAME.jpg beside NAME.pts). The table gives the inter-ocular NME in percent, the share
of faces above 8 %, and the faces that were not found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from facetrack.engines.aligner import Aligner
from facetrack.engines.backend import open_backend
from facetrack.engines.card import find_card
from facetrack.pipeline.open import Choices, open_engines
from facetrack.pipeline.run import Pipeline
from facetrack.tracker import metrics
from facetrack.tracker.geometry import CropTransform, bounding_box, box_centre_side, iou
from facetrack.tracker.types import Float32, Frame, UInt8
from facetrack.training.datasets import Sample, read_pts_folder

Locate = Callable[[UInt8, Float32], Float32]


def given_box(aligner: Aligner, angle: float = 0.0, passes: int = 1) -> Locate:
    """Landmarks in the annotation's own tight box, turned by `angle`; a second pass follows the first one's points."""

    def locate(bgr: UInt8, truth: Float32) -> Float32:
        centre, side = box_centre_side(bounding_box(truth))
        face = aligner.align(bgr, [aligner.crop_around(centre, side, angle)])[0]
        for _ in range(passes - 1):
            face = aligner.align(bgr, [aligner.crop_of_points(face.xy)])[0]
        return face.xy

    return locate


def automatic(pipeline: Pipeline) -> Locate:
    """What the program itself finds in the picture; NaN if no face overlaps the annotated one."""

    def locate(bgr: UInt8, truth: Float32) -> Float32:
        faces = next(iter(pipeline.serial([Frame(0, 0.0, 0.0, bgr)]))).faces
        boxes = np.array([face.box for face in faces], np.float32).reshape(-1, 4)
        overlap = iou(boxes, bounding_box(truth)[None])[:, 0] if len(boxes) else np.zeros(0)
        if not len(overlap) or overlap.max() < 0.3:
            return np.full_like(truth, np.nan)
        return faces[int(overlap.argmax())].smoothed

    return locate


def turned(locate: Locate, quarters: int) -> Locate:
    """The same for pictures that are turned by quarters of a circle; the landmarks come back as in the picture."""

    def locate_turned(bgr: UInt8, truth: Float32) -> Float32:
        turn = CropTransform.quarter_turns(quarters, bgr.shape[:2])
        return turn.to_frame(locate(np.ascontiguousarray(np.rot90(bgr, quarters)), turn.to_crop(truth)))

    return locate_turned


def measure(samples: list[Sample], locate: Locate, aligner: Aligner) -> tuple[float, float, int]:
    """Mean inter-ocular NME and failure rate at 8 %, both in percent, and the number of faces not found."""
    truth = np.concatenate([sample.points for sample in samples])
    found = np.stack([locate(sample.bgr(), sample.points[0]) for sample in samples])
    errors = metrics.nme(found, truth, aligner.markup, "io")
    mean, _ = metrics.mean_of_found(errors)
    return mean * 100, metrics.failure_rate(errors, 0.08) * 100, int(np.isinf(errors).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="gv")
    arguments = parser.parse_args()
    samples = list(read_pts_folder(arguments.folder))
    card = find_card(arguments.model, "align")
    aligner = Aligner(card, open_backend(card.weights["net"]))
    ways: dict[str, Locate] = {
        "given box": given_box(aligner),
        "given box, two passes": given_box(aligner, passes=2),
        "given box, crop turned 30 degrees": given_box(aligner, np.pi / 6),
        "given box, crop turned 60 degrees": given_box(aligner, np.pi / 3),
    }
    print(f"{card.name}, {len(samples)} faces of {arguments.folder.name}")
    print(f"{'':48}{'NME io %':>9}{'> 8 %':>8}{'missed':>8}")
    choices = Choices(model=arguments.model)
    with open_engines(choices) as engines:
        by_itself = automatic(engines.pipeline_for_pictures(choices))
        ways["fully automatic"] = by_itself
        ways["fully automatic, picture turned by 90 degrees"] = turned(by_itself, 1)
        ways["fully automatic, picture upside down"] = turned(by_itself, 2)
        for name, locate in ways.items():
            mean, failed, missed = measure(samples, locate, aligner)
            print(f"{name:48}{mean:9.2f}{failed:8.1f}{missed:8d}")


if __name__ == "__main__":
    main()
