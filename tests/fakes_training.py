"""A corpus of painted faces on disk, to train on."""

from __future__ import annotations

from pathlib import Path

import cv2
from fakes import PaintedFace, PaintedSource


def write_faces(folder: Path, count: int, first: int = 0) -> None:
    """Write pictures of one face each with 68 points in the 300-W layout; every number gives a different face."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        face = PaintedFace((100 + 5 * i, 110), width=90 + 4 * i, angle=0.1 * i)
        source = PaintedSource(count=1, shape=(220, 240), faces=[face])
        (folder / f"{i}.png").write_bytes(cv2.imencode(".png", source.picture(0))[1].tobytes())
        rows = "\n".join(f"{x + 1:.4f} {y + 1:.4f}" for x, y in source.truth(0)[0])
        (folder / f"{i}.pts").write_text(f"version: 1\nn_points: 68\n{{\n{rows}\n}}\n")
