"""How well closed eyes and open mouths are measured on annotated photographs.

    python benchmarks/openings.py FOLDER [--model gv]

FOLDER is in the 300-W layout (NAME.jpg beside NAME.pts). Eyes: mean gap of the lids over the eye's width, annotated and
found, for eyes as they are (also grouped by the annotated gap), and for eyes closed by drawing (`training.expressions`)
to a share of their opening. Mouths: mean gap of the inner lips over the mouth's width, grouped by the annotated gap.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from alignment import asked

from facetrack.tracker.pose import eye_aspect_ratio, facing, openness
from facetrack.tracker.types import Float32, Float64
from facetrack.training.datasets import Sample
from facetrack.training.evaluation.locate import GivenBoxLocator
from facetrack.training.expressions import close_eyes

OPENINGS = (1.0, 0.5, 0.25, 0.0)
EYE_STEPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.7)
MOUTH_STEPS = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)


def find(samples: list[Sample], given: GivenBoxLocator, opening: float) -> tuple[Float32, Float32]:
    """True and found points, (F, N, 2) each, with the eyes closed to a share of their opening."""
    drawn = [close_eyes(s.bgr(), s.points[0], opening) if opening < 1 else (s.bgr(), s.points[0]) for s in samples]
    return np.stack([xy for _, xy in drawn]), np.stack([given(bgr, xy).xy for bgr, xy in drawn])


def print_steps(wanted: Float64, found: Float64, steps: tuple[float, ...]) -> None:
    """Print the mean annotated and found openings, grouped by the annotated one."""
    for low, high in pairwise(steps):
        inside = (wanted >= low) & (wanted < high)
        if inside.any():
            name = f"  annotated {low:.2f} to {high:.2f}"
            print(f"{name:40}{inside.sum():7}{wanted[inside].mean():10.3f}{found[inside].mean():8.3f}")


def main() -> None:
    _, aligner, samples = asked(__doc__)
    given, lips = GivenBoxLocator(aligner, aligner.markup), facing(aligner.markup.points)[2]
    print(f"{'eyes':40}{'number':>7}{'annotated':>10}{'found':>8}")
    for opening in OPENINGS:
        pair = find(samples, given, opening)
        wanted, found = (np.array([eye_aspect_ratio(xy) for xy in points]).ravel() for points in pair)
        both = np.isfinite(wanted) & np.isfinite(found)  # not if an eye's width is 0
        wanted, found = wanted[both], found[both]
        name = "as they are" if opening == 1 else f"closed to {100 * opening:.0f} % by drawing"
        print(f"{name:40}{len(wanted):7}{wanted.mean():10.3f}{found.mean():8.3f}")
        if opening == 1:
            print_steps(wanted, found, EYE_STEPS)
            mouths = [np.array([openness(xy, *lips) for xy in points.astype(np.float64)]) for points in pair]
    print("mouths")
    print_steps(*mouths, MOUTH_STEPS)


if __name__ == "__main__":
    main()
