"""What a network for landmarks takes for faces where there are none, for its face score to learn from.

    python -m facetrack.training.false_faces FOLDER... OUT [--model M] [--per-picture N]

lays squares of any place, size and turn over every picture below the FOLDERs, which must show no face, follows what the
network finds in them as it follows faces, and writes as OUT/NUMBER.jpg where it still half believes in one, with some
of what is round it. `false_faces = ["OUT"]` of a configuration lets a network learn from these pictures. Look at them:
people among the pictures without faces would be learnt to be none.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..engines.aligner import Aligner
from ..pipeline.open import Choices, open_engines
from ..tracker.errors import ConfigError
from ..tracker.geometry import CropTransform
from ..tracker.types import UInt8
from .command_line import errors_in_one_line
from .datasets import read_images
from .datasets.point_files import write_jpeg

ROOM = 1.5  # side of a written picture over that of the crop which was taken for a face
SIDE = 160  # of a written picture, pixels
BELIEVED = 0.02  # least presence: far fewer than half of the squares, most of those that training could still move
ROUNDS = 2  # as many as a proposed face is looked at again
PER_PICTURE = 24  # squares
SIZES = 0.06, 0.9  # of a square, over the picture's shorter side; all between are equally likely in the logarithm


def believed(aligner: Aligner, bgr: UInt8, squares: Sequence[CropTransform]) -> list[CropTransform]:
    """Where squares of a picture lead a network that follows what it finds there, if it takes that for a face.

    Args:
        aligner: a network that scores faces.
        bgr: (H, W, 3) uint8.
        squares: crops of the network's size.
    Returns:
        The crops round what was found last, each with `BELIEVED` presence or more.
    """
    for _ in range(ROUNDS):
        squares = [aligner.crop_of_points(found.xy) for found in aligner.align(bgr, squares)]
    seen = aligner.align(bgr, squares)
    return [crop for crop, found in zip(squares, seen, strict=True) if found.presence >= BELIEVED]


def false_faces(
    aligner: Aligner, pictures: Iterable[UInt8], rng: np.random.Generator, per_picture: int = PER_PICTURE
) -> Iterator[UInt8]:
    """What a network takes for faces in pictures (H, W, 3) that show none, each (`SIDE`, `SIDE`, 3) uint8."""
    for bgr in pictures:
        squares = [_square(aligner, bgr.shape[:2], rng) for _ in range(per_picture)]
        for crop in believed(aligner, bgr, squares):
            if _is_inside(crop, bgr.shape[:2]):
                yield _with_room(crop).crop(bgr)


def _square(aligner: Aligner, size: tuple[int, int], rng: np.random.Generator) -> CropTransform:
    height, width = size
    centre = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
    side = min(size) * np.exp(rng.uniform(*np.log(SIZES)))
    return aligner.crop_around(centre, float(side), rng.uniform(-np.pi, np.pi))


def _is_inside(crop: CropTransform, size: tuple[int, int]) -> bool:
    """Whether no corner of a crop is black for being outside the picture: faces at its edge have such corners, too."""
    height, width = crop.size
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float32) - 0.5
    xy = crop.to_frame(corners)
    return bool((xy >= -1).all() and (xy <= np.array(size[::-1])).all())


def _with_room(crop: CropTransform) -> CropTransform:
    """The square of `ROOM` sides about a crop's middle, in a picture of `SIDE` pixels."""
    grown = SIDE / (crop.size[0] * ROOM)
    matrix = crop.matrix * grown
    middle = (crop.size[0] - 1) / 2
    matrix[:, 2] += (SIDE - 1) / 2 - grown * middle
    return CropTransform(matrix, (SIDE, SIDE))


def write_false_faces(folders: Sequence[Path], out: Path, choices: Choices, per_picture: int = PER_PICTURE) -> int:
    """Write them; see the module.

    Returns:
        How many there are.
    Raises:
        CardError, BackendError: the network cannot be had, or scores no faces.
        ConfigError: `out` holds something.
        OSError: it cannot be written.
        SourceError: there is no picture, or one is broken.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ConfigError(f"{out}: is not empty; wanted a new folder, for what one network takes for faces")
    rng, written = np.random.default_rng(0), 0
    with open_engines(choices) as engines:
        engines.aligner.demand_face_score()
        pictures = (sample.bgr() for folder in folders for sample in read_images(folder))
        for written, found in enumerate(false_faces(engines.aligner, pictures, rng, per_picture), 1):
            write_jpeg(out / f"{written:06}.jpg", found)
    return written


def main() -> None:
    """Read the arguments and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default=Choices().model)
    parser.add_argument("--per-picture", type=int, default=PER_PICTURE, metavar="N")
    arguments = parser.parse_args()
    with errors_in_one_line("false_faces"):
        written = write_false_faces(
            arguments.folders, arguments.out, Choices(model=arguments.model), arguments.per_picture
        )
        print(f"{written} false faces in {arguments.out}")


if __name__ == "__main__":
    main()
