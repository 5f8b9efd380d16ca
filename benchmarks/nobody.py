"""In how many pictures of nobody the program finds a face.

    python benchmarks/nobody.py FOLDER... [--every N] [--model gv]

searches every Nth picture below the FOLDERs on its own, as `facetrack batch` does, and prints how many have a face, and
how many have one with a confidence of at least 0.5. `--names` prints the names of pictures with a face, because some
may show somebody.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from facetrack import Choices, open_engines
from facetrack.training.datasets import read_images


def main() -> None:
    """Read the arguments, search and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    parser.add_argument("--model", default="gv")
    parser.add_argument("--names", action="store_true")
    arguments = parser.parse_args()
    samples = [sample for folder in arguments.folders for sample in read_images(folder)][:: arguments.every]
    some, sure = 0, 0
    with open_engines(Choices(model=arguments.model)) as engines:
        for sample in samples:
            faces = engines.detect(sample.bgr())
            some += bool(faces)
            sure += any(face.confidence >= 0.5 for face in faces)
            if faces and arguments.names:
                print(sample.path, *(f"{face.confidence:.2f}" for face in faces), flush=True)
    found = f"{some} have a face, {sure} one with a confidence of 0.5 or more"
    print(f"{arguments.model}, {len(samples)} pictures: {found}")


if __name__ == "__main__":
    main()
