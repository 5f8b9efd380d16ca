"""From the two finished runs of BB-FCN to its card and weights; the command is `training.publish`.

The score is fitted on one half of the pictures that were kept out of the training, on the card's own files. The figures
are measured on the other half, of the files in 8 bits too. Both with the code that runs in use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...engines import graph, nets
from ...engines.backend import Backend, Outputs
from ...engines.card import ROLES, ModelCard, Weights
from ...engines.card_text import card_path, put_in_place
from ...engines.detector import Detector, DetectorSettings, logistic
from ...engines.export import check_parity, export_onnx
from ...engines.nets.bbfcn import Backbone
from ...engines.nets.folded import FoldedBackbone
from ...engines.onnx_backend import OnnxBackend
from ...engines.quantise import quantise_onnx
from ...engines.torch_backend import TorchBackend, save_torch_weights
from ...tracker.types import UInt8
from ..config import Config
from ..datasets import Sample, read_faces
from ..evaluation.card_figures import forms, rounded
from ..finished import demand_own_settings, load_average
from .mining import draft_card
from .objectives import faceless, held_out
from .score import SECOND_LOOK_LOSS, Report, evaluate, fit_face_weights, kept_out, measure

PARITY = 1e-3  # response; a face answers with about 1
PEAK = 0.4  # response from which a pixel counts in use; scores are fitted on more candidates, the draft card's
GMAC = 31.7  # one megapixel of the scan; a crop of the second look costs 0.04


@dataclass(frozen=True, slots=True)
class Pair:
    """The two networks of a detector."""

    scan: nets.FromBytes
    refine: nets.FromBytes

    @classmethod
    def of_run(cls, config: Config, run: Path) -> Pair:
        """The averages of a branches' run and of the backbone that it was trained on.

        Raises:
            ConfigError: a file is missing, or of another network.
        """
        demand_own_settings(config, run)
        scan = nets.FromBytes(nets.build("bbfcn-backbone", config.network.landmarks))
        load_average(scan, run / "backbone.pt")
        refine = nets.FromBytes(nets.build("bbfcn", config.network.landmarks))
        load_average(refine, run / "best.pt")
        return cls(scan.eval(), refine.eval())


class Recorder:
    """A backend that remembers what it was asked, to quantise with."""

    description = "recorder"
    precision = shapes = max_atlas = None  # each level is an example of its own
    preferred_batch = 1

    def __init__(self, backend: Backend) -> None:
        self.seen: list[UInt8] = []
        self._backend = backend

    def run(self, images: UInt8) -> Outputs:
        """See `Backend`."""
        self.seen.append(images.copy())
        return self._backend.run(images)

    def close(self) -> None:
        """See `Backend`."""
        self._backend.close()


def publish_detector(config: Config, run: Path, data: Path, out: Path) -> Path:
    """Export, quantise, fit the score, measure; then put the files into `out`, the card last.

    Until then nothing in `out` changes.

    Args:
        config: of the branches' run.
        run: its folder, with best.pt and, as backbone.pt, that of the backbone's run.
        data: root of the data sets.
        out: gets weights/NAME-scan.onnx (the backbone, for whole pictures), weights/NAME-refine.onnx (backbone and
            branches, for crops), beside each of them NAME-ROLE-int8.onnx for CPUs that multiply bytes and
            NAME-ROLE.torch.npz, and cards/NAME.toml.
    Returns:
        The card's path.
    Raises:
        BackendError: the exported networks do not compute what torch does.
        ConfigError: the run's files are missing, or of another network.
        SinkError: a file cannot be written.
    """
    pair = Pair.of_run(config, run)
    with TemporaryDirectory() as folder:
        weights = _store(config, pair, data, Path(folder))
        card = replace(draft_card(config), weights=weights, parameters=nets.parameters(pair.refine), gmac=GMAC)
        card = replace(card, calibration=fit(card, config, data))
        card = replace(card, codec={**card.codec, "peak": PEAK})
        card = replace(card, measured=detector_figures(card, config, data))
        put_in_place(_rounded(card), Path(folder), out)
    return card_path(card.name, out)


def _store(config: Config, pair: Pair, data: Path, folder: Path) -> dict[str, Weights]:
    """Write both networks, stored in 16 bits, computing in 8 bits, and for torch."""
    rng = np.random.default_rng(0)
    whole, crops = (rng.integers(0, 256, (2, h, w, 3), np.uint8) for h, w in ((48, 64), (64, 64)))
    full = {role: folder / f"{config.card.name}-{role}.onnx" for role in ROLES["detect"]}
    sizes = {0: "batch", 1: "height", 2: "width"}
    assert isinstance(pair.scan.net, Backbone)
    folded = nets.FromBytes(FoldedBackbone(pair.scan.net))
    export_onnx(folded, full["scan"], whole, ("maps",), sizes, multiple={1: 4, 2: 4})
    export_onnx(pair.refine, full["refine"], crops, ("coarse", "fine", "corner"))
    check_parity(pair.scan, full["scan"], whole[:, :36], PARITY)
    check_parity(pair.refine, full["refine"], crops, PARITY)
    stored = {}
    nets_of = {"scan": ("bbfcn-backbone", pair.scan), "refine": ("bbfcn", pair.refine)}
    for role, pictures in _examples(config, pair, data).items():
        path, small = full[role], full[role].with_name(f"{full[role].stem}-int8.onnx")
        quantise_onnx(path, small, pictures)
        path.write_bytes(graph.store_fp16(path.read_bytes()))
        save_torch_weights(nets_of[role][1], path, nets_of[role][0], config.network.landmarks, {})
        stored[role] = Weights.of(path, "fp16", Weights.of(small, "int8"))
    return stored


def _examples(config: Config, pair: Pair, data: Path) -> dict[str, list[UInt8]]:
    """Pyramid levels and crops that the networks meet in some training pictures with and without faces."""
    scan, refine = Recorder(TorchBackend(pair.scan)), Recorder(TorchBackend(pair.refine))
    detector = Detector(draft_card(config), scan, refine, DetectorSettings(min_face=22))
    faces = [
        s
        for c in config.corpora
        for s in list(read_faces(data / c.path, c.layout, config.broken))[::60]
        if not held_out(s)
    ]
    for sample in (*faces, *(s for s in faceless(config, data)[::100] if not held_out(s))):
        detector.detect(sample.bgr())
    return {"scan": scan.seen, "refine": refine.seen}


def fit(card: ModelCard, config: Config, data: Path) -> dict[str, Any]:
    """Fit the scores of scan and second look on the first half of the pictures that were kept out."""
    faces, empty = kept_out(config, data, half=0)
    scanned = measure(_open(card, threshold=0.0), faces, empty, refined=False)
    scan = fit_face_weights(scanned)
    chance = logistic(scanned.features[scanned.is_face], scan)
    second_look = float(np.quantile(chance, SECOND_LOOK_LOSS))
    card = replace(card, calibration={**card.calibration, "scan": scan, "second_look": second_look})
    refine = fit_face_weights(measure(_open(card, threshold=0.0), faces, empty, refined=True))
    return {**card.calibration, "refine": refine}


def detector_figures(card: ModelCard, config: Config, data: Path) -> dict[str, float]:
    """Recall, five-point errors and false alarms of each of the card's pairs of files, as the card names them.

    They are measured on the second half of the pictures that were kept out.
    """
    faces, empty = kept_out(config, data, half=1)
    figures: dict[str, float] = {}
    for ending, form in forms(card).items():
        found = _figures(_open(form, threshold=0.01), _by_folder(faces), empty)
        figures |= {f"{name}{ending}": value for name, value in found.items()}
    return rounded(figures)


def _figures(detector: Detector, faces: dict[str, list[Sample]], empty: list[Sample]) -> dict[str, float]:
    threshold = DetectorSettings().threshold
    figures: dict[str, float] = {}
    for name, samples in faces.items():
        report = evaluate(detector, samples, ())
        figures[f"faces found %, {name}"] = 100 * report.recall(threshold)
        figures[f"five-point error % of the eye distance, {name}"] = 100 * float(np.nanmean(report.errors))
    nothing: Report = evaluate(detector, (), empty)
    figures["false alarms a picture, flowers, cats and dogs, textures"] = nothing.false_alarms(threshold)
    return figures


def _by_folder(samples: list[Sample]) -> dict[str, list[Sample]]:
    names = {"testset": "LFPW test", "webfaces": "WebFaces", "lfw5": "LFW", "aflw2000": "AFLW2000"}
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.path.parent.name in names:
            groups.setdefault(names[sample.path.parent.name], []).append(sample)
    return groups


def _open(card: ModelCard, threshold: float) -> Detector:
    """On ONNX Runtime and the card's own files, whatever this machine would run: a card is the same everywhere."""
    scan, refine = (OnnxBackend(card.weights[role]) for role in ROLES["detect"])
    return Detector(card, scan, refine, DetectorSettings(threshold=threshold))


def _rounded(card: ModelCard) -> ModelCard:
    """The card with as many digits as its numbers are worth."""
    fitted = {
        name: [round(v, 4) for v in value] if isinstance(value, list) else round(value, 5)
        for name, value in card.calibration.items()
    }
    return replace(card, box_scale=round(card.box_scale, 4), calibration=fitted)
