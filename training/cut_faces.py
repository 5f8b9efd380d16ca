"""Cut each annotated face out of whole photographs, into a picture of its own.

    python -m facetrack.training.cut_faces FOLDER OUT [--layout table]

cuts squares of 4.2 times the points' tight box, clipped to the photograph, at pixel boundaries and without resampling.
Where the points are the centres of eyes, nose and mouth, such a square shows the head and some background. The results
suit whatever needs one face per picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ..tracker.geometry import bounding_box, box_centre_side
from .command_line import errors_in_one_line
from .datasets import LAYOUTS, one_face_each, read_faces
from .datasets.point_files import write_jpeg

LEAST_SIDE = 15.0  # pixels of the points' box: nothing about landmarks can be learnt from smaller faces
ROOM = 4.2  # side of the square over that of the box


def cut_faces(folder: Path, out: Path, layout: str) -> int:
    """Write the faces as NAME_number.jpg.

    Args:
        folder: a data set.
        out: flat folder for the cut pictures, created if missing.
        layout: name of the data set's layout, see `datasets`.
    Returns:
        Number of faces written: those that have points, are large enough and not wholly outside their picture.
    Raises:
        OSError: a picture cannot be written.
        SourceError: the folder does not have this layout, or a file is broken.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    for number, sample in enumerate(one_face_each(read_faces(folder, layout))):
        points = sample.points[0]
        known = points[~np.isnan(points).any(-1)]
        if not len(known):
            continue
        box, bgr = bounding_box(known), sample.bgr()
        (x, y), side = box_centre_side(box)
        height, width = bgr.shape[:2]
        if side < LEAST_SIDE or not (box[2] > 0 and box[3] > 0 and box[0] < width - 1 and box[1] < height - 1):
            continue
        half = side * ROOM / 2
        x0, y0, x1, y1 = (max(0, round(v)) for v in (x - half, y - half, x + half, y + half))
        write_jpeg(out / f"{sample.path.stem}_{number}.jpg", bgr[y0:y1, x0:x1])
        written += 1
    return written


def main() -> None:
    """Read the arguments and cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="table")
    arguments = parser.parse_args()
    with errors_in_one_line("cut_faces"):
        print(f"{cut_faces(arguments.folder, arguments.out, arguments.layout)} faces in {arguments.out}")


if __name__ == "__main__":
    main()
