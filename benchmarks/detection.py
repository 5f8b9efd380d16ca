"""How many faces the detector finds, how many false positives it has, and how long it takes.

    python benchmarks/detection.py DATA [--portraits FOLDER ...] [--min-face PX] [--pictures] [--recall]

DATA is the data root of training/configs/bbfcn-5.toml; only pictures that were held out of the training and of the fit
of the score count. FOLDERs hold pictures of one face each without annotation; a proposal anywhere counts as found.
Times are CPU time of one thread, the median of 20 runs, on the first annotated picture resized to each size.

--recall measures as BB-FCN's paper does instead, with a pyramid of its step (needs the `train` extra): how many of the
annotated landmarks lie within a share of the eye distance of one of the 15 or 30 candidates of their type with the
highest responses, and how many faces are among a picture's first proposals; in photographs, not in their turned copies.
"""

from __future__ import annotations

import argparse
import time
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from facetrack.engines.backend import open_backend
from facetrack.engines.card import find_card
from facetrack.engines.detector import Detector, DetectorSettings
from facetrack.tracker.types import UInt8
from facetrack.training import config
from facetrack.training.datasets import TURNED, Sample, images_below
from facetrack.training.detection.score import evaluate, load_held_out

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
CONFIG = Path(__file__).parent.parent / "training" / "configs" / "bbfcn-5.toml"
SIZES = (((480, 640), 60.0), ((480, 640), 0.0), ((720, 1280), 0.0), ((1080, 1920), 60.0), ((1080, 1920), 0.0))
REPEATS = 20


def detector(threshold: float, min_face: float, step: float = DetectorSettings().step) -> Detector:
    """The default detector on one thread."""
    card = find_card("bbfcn", "detect")
    backends = [open_backend(card.weights[role]) for role in ("scan", "refine")]
    return Detector(card, *backends, DetectorSettings(min_face=min_face, threshold=threshold, step=step))


def row(name: str, values: list[float], unit: str) -> str:
    return f"{name:28}" + "".join(f"{value:8.3f}" for value in values) + f"  {unit}"


def annotated_rows(looking: Detector, faces: list[Sample], empty: list[Sample]) -> list[str]:
    lines = []
    for folder in sorted({sample.path.parent for sample in faces}):
        report = evaluate(looking, [s for s in faces if s.path.parent == folder], ())
        recall = [100 * report.recall(t) for t in THRESHOLDS]
        error = 100 * np.nanmean(report.errors)
        lines.append(row(folder.name, recall, f"% of {len(report.best)} faces; points {error:.1f} % of the eyes"))
    report = evaluate(looking, (), empty)
    lines.append(row("without a face", [report.false_alarms(t) for t in THRESHOLDS], f"a picture, {len(empty)}"))
    return lines


def recall_rows(faces: list[Sample], min_face: float) -> list[str]:
    """The paper's table I, and its recall of face proposals, measured here."""
    from facetrack.engines.nets.bbfcn import BBFCN
    from facetrack.engines.torch_backend import load_net, torch_file
    from facetrack.training.detection import recall

    looking = detector(0.0, min_face, recall.STEP).for_pictures()
    weights = looking.card.weights["refine"]
    net = load_net(torch_file(weights.path), weights.sha256).net
    assert isinstance(net, BBFCN)
    assert net.branches is not None
    photographs = [sample for sample in faces if TURNED not in sample.path.name]
    found = recall.measure_recall(looking, net.branches, photographs)
    landmarks, people = found.counts
    lines = [row("within, of the eyes' distance", list(recall.ERRORS), "")]
    for way, name in enumerate(("backbone", "backbone and branches")):
        for number, guesses in enumerate(recall.GUESSES):
            lines.append(row(f"{name}, {guesses}", list(found.landmarks[way, number]), f"% of {landmarks} landmarks"))
    lines.append(row("first proposals", list(recall.PROPOSALS), "a picture"))
    lines.append(row("faces among them", list(found.faces), f"% of {people} faces"))
    return lines


def portrait_row(looking: Detector, folder: Path) -> str:
    """Share of the pictures with a proposal."""
    best = []
    for path in images_below(folder):
        found = looking.detect(np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR), np.uint8))
        best.append(float(found.scores[0]) if len(found) else 0.0)
    return row(folder.name, [100 * float((np.array(best) >= t).mean()) for t in THRESHOLDS], f"% of {len(best)}")


def milliseconds(bgr: UInt8, size: tuple[int, int], min_face: float) -> float:
    looking = detector(DetectorSettings().threshold, min_face)
    picture = np.asarray(cv2.resize(bgr, size[::-1]), np.uint8)
    looking.detect(picture)
    times = []
    for _ in range(REPEATS):
        began = time.thread_time()
        looking.detect(picture)
        times.append(time.thread_time() - began)
    return float(np.median(times)) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--portraits", type=Path, action="append", default=[])
    parser.add_argument("--min-face", type=float, default=0.0)
    parser.add_argument("--pictures", action="store_true", help="search as pictures are, not as frames of videos")
    parser.add_argument("--recall", action="store_true", help="measure as the paper does")
    arguments = parser.parse_args()
    if arguments.recall and (arguments.pictures or arguments.portraits):
        parser.error("--recall measures nothing else: leave --pictures and --portraits out")
    cv2.setNumThreads(1)
    folders, empty = load_held_out(config.load(CONFIG), arguments.data, half=1)
    faces = list(chain.from_iterable(folders.values()))
    if arguments.recall:
        print(*recall_rows(faces, arguments.min_face), sep="\n")
        return
    looking = detector(min(THRESHOLDS), arguments.min_face)
    looking = looking.for_pictures() if arguments.pictures else looking
    print(row("score at least", list(THRESHOLDS), ""))
    print(*annotated_rows(looking, faces, empty), sep="\n")
    for folder in arguments.portraits:
        print(portrait_row(looking, folder), flush=True)
    for size, min_face in SIZES:
        face = f"faces from {min_face:.0f} px" if min_face else "usual smallest face"
        print(f"{size[1]}x{size[0]}, {face}: {milliseconds(faces[0].bgr(), size, min_face):.1f} ms")


if __name__ == "__main__":
    main()
