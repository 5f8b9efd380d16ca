"""Learn the modes of variation of annotated faces, for `engines.shape`.

    python -m facetrack.training.shape_model DATA engines/weights

learns from 68 points each: the training photographs, their copies turned out of the picture's plane, and faces labelled
by a face mesh, all with their mirror pictures. It writes shape-68.npz with `mean` (68, 2) and, as `ways`, the modes
(136, 25), the first principal components, float16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ..engines.shape import FILES
from ..tracker import markup
from ..tracker.types import Float64
from .command_line import errors_in_one_line
from .datasets import read_faces

MARKUP = "ibug68"
FOLDERS = (
    *("helen/trainset", "lfpw/trainset", "afw", "infanface"),
    *("turned/helen/trainset", "profiles/helen/trainset", "taught/helen/trainset", "taught/unlabelled/aflw2000"),
)
MODES = 25
ROUNDS = 4  # of fitting all faces to their mean and updating the mean


def principal_modes(faces: Float64, count: int) -> tuple[Float64, Float64]:
    """Mean and principal components of faces after removing position, size and roll.

    Args:
        faces: (F, N, 2)
        count: of the components, fewer than F.
    Returns:
        mean: (N, 2) about 0, of norm 1. modes: (2 N, count), orthonormal, in descending order of variance.
    """
    points = faces[..., 0] + 1j * faces[..., 1]
    points -= points.mean(1, keepdims=True)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    mean = points[0]
    for _ in range(ROUNDS):
        turns = points.conj() @ mean
        fitted = points * (turns / np.abs(turns))[:, None]
        mean = fitted.mean(0)
        mean /= np.linalg.norm(mean)
    apart = np.stack(((fitted - mean).real, (fitted - mean).imag), -1).reshape(len(faces), -1)
    modes = np.linalg.svd(apart, full_matrices=False)[2][:count].T
    return np.stack((mean.real, mean.imag), 1), modes


def main() -> None:
    """Read the arguments, learn and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with errors_in_one_line("shape_model"):
        samples = (sample for folder in FOLDERS for sample in read_faces(arguments.data / folder, "pts"))
        faces = np.stack([sample.points[0] for sample in samples if np.isfinite(sample.points[0]).all()])
        mirrored = faces[:, markup.load(MARKUP).mirror] * np.array([-1, 1], np.float32)
        mean, modes = principal_modes(np.concatenate((faces, mirrored)).astype(np.float64), MODES)
        path = arguments.out / FILES[MARKUP]
        np.savez_compressed(path, mean=mean.astype(np.float16), ways=modes.astype(np.float16))
        print(f"{path}: {len(faces)} faces and their mirror pictures")


if __name__ == "__main__":
    main()
