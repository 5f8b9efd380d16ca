"""How often single points of outline and brows leave their line, in tables of moving faces.

    facetrack batch VIDEO... --out RESULTS --raw
    python benchmarks/outlines.py RESULTS/NAME.csv...

A point's bend is its offset from the middle between its neighbours on the line. The table counts the frames in which a
bend differs from its median over the seven frames before and after by more than 8 % (outline) or 6 % (brows) of the
distance between the outer eye corners, for the face with most rows, as measured and smoothed. No ground truth is
needed, because lines move as a whole.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

import numpy as np

from facetrack.tracker.types import Float64

LINES = {"outline": (0, 17, 0.08), "right brow": (17, 22, 0.06), "left brow": (22, 27, 0.06)}
EYES, REACH = (36, 45), 7


def faces(table: Path, kind: str) -> Float64:
    """The face with most rows, (frames, 68, 2) pixels; `kind` "r": as measured, "": smoothed."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["success"] == "1"]
    number = Counter(row["face_id"] for row in rows).most_common(1)[0][0]
    columns = [[f"{axis}{kind}_{point}" for axis in "xy"] for point in range(68)]
    mine = [row for row in rows if row["face_id"] == number]
    return np.array([[[float(row[x]), float(row[y])] for x, y in columns] for row in mine])


def jumps(xy: Float64, first: int, end: int, most: float) -> int:
    """Number of frames in which a point leaves the line."""
    line = xy[:, first:end]
    bends = line[:, 1:-1] - (line[:, :-2] + line[:, 2:]) / 2
    usual = np.stack([np.median(bends[max(0, i - REACH) : i + REACH + 1], 0) for i in range(len(bends))])
    eyes = np.linalg.norm(xy[:, EYES[0]] - xy[:, EYES[1]], axis=1)
    return int((np.linalg.norm(bends - usual, axis=-1) > most * eyes[:, None]).any(1).sum())


def main() -> None:
    """Read the arguments, count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+", metavar="TABLE.csv")
    print(f"| | frames | {' | '.join(LINES)} |\n|---|---|{'---|' * len(LINES)}")
    for table in parser.parse_args().tables:
        for name, kind in (("as measured", "r"), ("smoothed", "")):
            xy = faces(table, kind)
            counts = " | ".join(str(jumps(xy, *line)) for line in LINES.values())
            print(f"| {table.stem}, {name} | {len(xy)} | {counts} |")


if __name__ == "__main__":
    main()
