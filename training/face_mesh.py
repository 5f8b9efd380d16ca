"""Find MediaPipe's face mesh in pictures, for `mesh_labels` to learn landmarks from.

    python training/face_mesh.py DATA MESHES.npz FOLDER...

looks for a face mesh in every picture of each FOLDER below DATA and in its mirror picture; the pictures should show one
face each. MESHES.npz gets `names` (P,), the paths below DATA of the pictures with a mesh in both, and `meshes`
(P, 2, 478, 3) float32: x and y in pixels of the picture and of its mirror picture, with pixel centres at whole numbers,
and the depth in the same unit.

This file imports nothing from facetrack: MediaPipe 0.10.21, the last release that includes its networks (Apache-2.0),
needs NumPy 1. Run it in an environment of its own, made by `pip install mediapipe==0.10.21`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

BORDERS = (0.25, 0.6, 0.0)  # tried in turn: a face that fills its picture is found if there is room round it
LEAST_SCORE = 0.3
SUFFIXES = {".jpg", ".jpeg", ".png"}


def find_mesh(finder: Any, bgr: np.ndarray) -> np.ndarray | None:
    """The mesh of a picture's face.

    Args:
        finder: a `mediapipe.solutions.face_mesh.FaceMesh` for single pictures.
        bgr: (H, W, 3) uint8.
    Returns:
        (478, 3) float32, pixels; None if no face is found.
    """
    height, width = bgr.shape[:2]
    for border in BORDERS:
        side = int(max(height, width) * (1 + 2 * border))  # square: MediaPipe's projection is exact only for squares
        left, top = (side - width) // 2, (side - height) // 2
        room = (top, side - height - top, left, side - width - left)
        square = cv2.copyMakeBorder(bgr, *room, cv2.BORDER_REPLICATE)
        found = finder.process(cv2.cvtColor(square, cv2.COLOR_BGR2RGB)).multi_face_landmarks
        if found:
            mesh = np.array([(p.x, p.y, p.z) for p in found[0].landmark], np.float32) * side
            return mesh - np.array([left + 0.5, top + 0.5, 0], np.float32)
    return None


def find_meshes(finder: Any, data: Path, folders: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and meshes (2, 478, 3) of every picture below the folders in which both looks find a face."""
    for folder in folders:
        for path in sorted(p for p in (data / folder).rglob("*") if p.suffix.lower() in SUFFIXES):
            encoded = np.fromfile(path, np.uint8)  # not cv2.imread: on Windows it reads ASCII paths only
            bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
            if bgr is None:
                raise SystemExit(f"{path}: not a readable picture; remove it or fix it")
            plain, mirrored = find_mesh(finder, bgr), find_mesh(finder, np.ascontiguousarray(bgr[:, ::-1]))
            if plain is not None and mirrored is not None:
                yield path.relative_to(data).as_posix(), np.stack([plain, mirrored])


def main() -> None:
    """Read the arguments, find the meshes and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", nargs="+")
    arguments = parser.parse_args()
    import mediapipe

    finder = mediapipe.solutions.face_mesh.FaceMesh(
        static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=LEAST_SCORE
    )
    with finder:
        found = [*find_meshes(finder, arguments.data, arguments.folders)]
    if not found:
        raise SystemExit(f"{arguments.data}: no face found in {', '.join(arguments.folders)}; wanted pictures of faces")
    names, meshes = zip(*found, strict=True)
    np.savez_compressed(arguments.out, names=np.array(names), meshes=np.stack(meshes))
    print(f"{len(names)} faces in {arguments.out}")


if __name__ == "__main__":
    main()
