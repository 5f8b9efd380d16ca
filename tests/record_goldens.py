"""Write down what every shipped network answers, for `test_golden.py`; to be run when weights were replaced on purpose.

    python tests/record_goldens.py [CARD...]

Without names all shipped cards are recorded, and what belongs to none of them is removed. Look at the answers before
they are committed: `--sheet FILE.png` draws them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np

from facetrack.engines.aligner import Aligner
from facetrack.engines.card import SHIPPED, ModelCard, Weights, read_card
from facetrack.engines.detector import Detector
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.engines.parity import proof_for
from facetrack.pipeline.portrait import portrait
from facetrack.tracker.geometry import CropTransform
from facetrack.tracker.types import Float32, UInt8
from facetrack.tracker.views import box_of_five

FOLDER = Path(__file__).parent / "data" / "goldens"
# Of the landmarks' box in the portrait, pixels; written down once, so that no crop depends on a network.
FACE_CENTRE, FACE_SIDE = (129.5, 132.5), 92.0
# BB-FCN's scan is trained for faces of 14 to 32 pixels: (side of the crop, side over the face's).
SCAN_CROP = 64, 2.9
Points = list[list[float]]


@dataclass
class Golden:
    """What the networks of one card answered.

    Attributes:
        sha256: file of the card -> the weights that answered.
        tight: file of the card -> landmarks in the stored crop's pixels.
        loose: landmarks in the portrait's pixels, found by detector and aligner as they run on a CPU.
    """

    sha256: dict[str, str] = field(default_factory=dict)
    tight: dict[str, Points] = field(default_factory=dict)
    loose: Points = field(default_factory=list)


def shipped_cards() -> list[ModelCard]:
    """The cards of this checkout, whatever the user has in `$FACETRACK_HOME`."""
    return [read_card(path) for path in sorted((SHIPPED / "cards").glob("*.toml"))]


def crop_transform(card: ModelCard, name: str) -> CropTransform:
    """From the portrait to the crop that a file of weights is shown."""
    side, scale = SCAN_CROP if name.startswith("scan") else (card.size[0], card.box_scale)
    return CropTransform.around(FACE_CENTRE, FACE_SIDE * scale, side)


def crop_path(card: ModelCard, name: str) -> Path:
    """Where the stored crop lies; cards that want the same crop share it."""
    transform = crop_transform(card, name)
    return FOLDER / f"crop-{transform.size[0]}px-{transform.size[0] / transform.scale / FACE_SIDE:.4g}.png"


def stored_crop(card: ModelCard, name: str) -> UInt8:
    """(h, w, 3) uint8 BGR."""
    content = np.frombuffer(crop_path(card, name).read_bytes(), np.uint8)
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.uint8)


def tight_answer(card: ModelCard, name: str, weights: Weights) -> Float32:
    """(N, 2) landmarks in the stored crop's pixels, by ONNX Runtime on the CPU from exactly this file."""
    proof = proof_for(card, name.partition(" ")[0], stored_crop(card, name)[None])
    backend = OnnxBackend(weights)
    xy: Float32 = proof.decode(backend.run(proof.pictures))[0]
    backend.close()
    return xy


def loose_answer(card: ModelCard) -> Float32:
    """(N, 2) landmarks in the portrait's pixels: its JPEG decoded, the face detected, aligned, and aligned again.

    By the cards' own files: which CPUs would take the ones in 8 bits differs from machine to machine.
    """
    detector_card = next(c for c in shipped_cards() if c.task == "detect")
    scan, refine = (OnnxBackend(detector_card.weights[role]) for role in ("scan", "refine"))
    detector = Detector(detector_card, scan, refine)
    five: Float32 = detector.detect(portrait()).points[0]
    for backend in (scan, refine):
        backend.close()
    if card.task == "detect":
        return five
    aligner = Aligner(card, OnnxBackend(card.weights["net"]))
    first = aligner.align(portrait(), [aligner.crop_around(*box_of_five(five))])[0]
    second = aligner.align(portrait(), [aligner.crop_of_points(first.xy)])[0]
    aligner.backend.close()
    return second.xy


def golden_path(card: ModelCard) -> Path:
    """Where a card's golden lies."""
    return FOLDER / f"{card.name}.json"


def read_golden(card: ModelCard) -> Golden:
    """What was written down for a card; nothing, if nothing was."""
    path = golden_path(card)
    return Golden(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else Golden()


def record(card: ModelCard) -> Golden:
    """Let every network of a card answer and write that down; a crop that is stored already stays as it is."""
    golden = Golden()
    for name, weights in card.files.items():
        if not crop_path(card, name).is_file():
            png = cv2.imencode(".png", crop_transform(card, name).crop(portrait()))[1]
            crop_path(card, name).write_bytes(png.tobytes())
        golden.sha256[name] = weights.sha256
        golden.tight[name] = _points(tight_answer(card, name, weights))
    golden.loose = _points(loose_answer(card))
    golden_path(card).write_text(_json(golden), encoding="utf-8")
    return golden


def _points(xy: Float32) -> Points:
    return [[round(float(x), 3), round(float(y), 3)] for x, y in xy]


def _json(golden: Golden) -> str:
    """One line per list of points, so that a diff shows which one changed."""
    lists = asdict(golden)
    tight = ",\n".join(f"    {json.dumps(name)}: {json.dumps(points)}" for name, points in lists["tight"].items())
    lines = [
        f'  "sha256": {json.dumps(lists["sha256"])}',
        f'  "tight": {{\n{tight}\n  }}',
        f'  "loose": {json.dumps(lists["loose"])}',
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def sheet(cards: list[ModelCard]) -> UInt8:
    """All goldens drawn: a row per card, every file's answer on its crop, then the loose one on the portrait."""
    rows = []
    for card in cards:
        golden = read_golden(card)
        tiles = [_drawn(stored_crop(card, name), points) for name, points in golden.tight.items()]
        tiles.append(_drawn(portrait(), golden.loose))
        rows.append(np.concatenate(tiles, 1))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def _drawn(bgr: UInt8, points: Points, side: int = 512) -> UInt8:
    scale = side / len(bgr)
    large = cv2.resize(bgr, (side, side), interpolation=cv2.INTER_CUBIC)
    for x, y in points:
        cv2.circle(large, (round((x + 0.5) * scale - 0.5), round((y + 0.5) * scale - 0.5)), 3, (0, 255, 0), -1)
    return np.asarray(large, np.uint8)


def main() -> None:
    """Record the named cards, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cards", nargs="*", metavar="CARD")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    cards = shipped_cards()
    for card in cards:
        if not arguments.cards or card.name in arguments.cards:
            record(card)
            print(golden_path(card))
    kept = {golden_path(card) for card in cards} | {crop_path(card, name) for card in cards for name in card.files}
    for path in FOLDER.iterdir():
        if path not in kept:
            path.unlink()
    if arguments.sheet:
        cv2.imwrite(str(arguments.sheet), sheet(cards))


if __name__ == "__main__":
    main()
