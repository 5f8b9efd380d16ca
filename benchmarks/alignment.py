"""Error of the landmarks on annotated photographs, in given boxes and fully automatic.

    python benchmarks/alignment.py FOLDER [--model gv]

FOLDER is in the 300-W layout (NAME.jpg beside NAME.pts). The table gives the inter-ocular NME in percent, the share
of faces above 8 %, and the number of faces that were not found.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from facetrack.engines.aligner import Aligner
from facetrack.engines.backend import open_backend
from facetrack.engines.card import find_card
from facetrack.pipeline.open import Choices, open_engines
from facetrack.tracker import metrics
from facetrack.tracker.geometry import CropTransform, box_centre_side
from facetrack.tracker.types import Float32, Landmarks, UInt8
from facetrack.tracker.views import face_box
from facetrack.training.datasets import Sample, read_pts_folder
from facetrack.training.evaluation.locate import DetectorLocator, GivenBoxLocator, Locate


def twice(locate: Locate, aligner: Aligner) -> Locate:
    """Locate, then locate again in the crop round the first result."""

    def locate_twice(bgr: UInt8, truth: Float32) -> Landmarks | None:
        first = locate(bgr, truth)
        return None if first is None else aligner.align(bgr, [aligner.crop_of_points(first.xy)])[0]

    return locate_twice


def guessed(aligner: Aligner) -> Locate:
    """Locate in a box estimated from the annotation's five points, as for data sets without the face's outline."""

    def locate_guessed(bgr: UInt8, truth: Float32) -> Landmarks | None:
        box = face_box(aligner.markup.subset("five5", truth))
        return aligner.align(bgr, [aligner.crop_around(*box_centre_side(box))])[0]

    return locate_guessed


def turned(locate: Locate, quarters: int) -> Locate:
    """Locate in the picture turned by quarters of a circle; the landmarks are returned in the original picture."""

    def locate_turned(bgr: UInt8, truth: Float32) -> Landmarks | None:
        turn = CropTransform.quarter_turns(quarters, bgr.shape[:2])
        found = locate(np.ascontiguousarray(np.rot90(bgr, quarters)), turn.to_crop(truth))
        return None if found is None else replace(found, xy=turn.to_frame(found.xy))

    return locate_turned


def measure(samples: list[Sample], locate: Locate, aligner: Aligner) -> tuple[float, float, int]:
    """Mean inter-ocular NME and failure rate at 8 %, both in percent, and the number of faces not found."""
    truth = np.concatenate([sample.points for sample in samples])
    found = [locate(sample.bgr(), sample.points[0]) for sample in samples]
    xy = np.stack([np.full_like(wanted, np.nan) if f is None else f.xy for f, wanted in zip(found, truth, strict=True)])
    errors = metrics.nme(xy, truth, aligner.markup, "io")
    mean, _ = metrics.mean_of_found(errors)
    return mean * 100, metrics.failure_rate(errors, 0.08) * 100, int(np.isinf(errors).sum())


def asked(description: str | None) -> tuple[str, Aligner, list[Sample]]:
    """Read the command line; return the model's name, the opened aligner and the annotated faces, and print them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="gv")
    arguments = parser.parse_args()
    samples = list(read_pts_folder(arguments.folder))
    card = find_card(arguments.model, "align")
    aligner = Aligner(card, open_backend(card.weights["net"]))
    print(f"{card.name}, {len(samples)} faces of {arguments.folder.name}")
    return arguments.model, aligner, samples


def main() -> None:
    model, aligner, samples = asked(__doc__)
    given = GivenBoxLocator(aligner, aligner.markup)
    ways: dict[str, Locate] = {
        "given box": given,
        "given box, two passes": twice(given, aligner),
        "box guessed from five points": guessed(aligner),
        "given box, crop turned 30 degrees": GivenBoxLocator(aligner, aligner.markup, np.pi / 6),
        "given box, crop turned 60 degrees": GivenBoxLocator(aligner, aligner.markup, np.pi / 3),
    }
    print(f"{'':48}{'NME io %':>9}{'> 8 %':>8}{'missed':>8}")
    choices = Choices(model=model)
    with open_engines(choices) as engines:
        by_itself = DetectorLocator(engines.pipeline_for_pictures(choices))
        ways["fully automatic"] = by_itself
        ways["fully automatic, picture turned by 90 degrees"] = turned(by_itself, 1)
        ways["fully automatic, picture upside down"] = turned(by_itself, 2)
        for name, locate in ways.items():
            mean, failed, missed = measure(samples, locate, aligner)
            print(f"{name:48}{mean:9.2f}{failed:8.1f}{missed:8d}")


if __name__ == "__main__":
    main()
