"""Make BB-FCN's card and weights from its two finished runs; the command is `training.publish`.

The score is fitted with the card's own files on one half of the pictures that were held out of the training. The
figures are measured on the other half, also for the 8-bit files. Both use the code that runs at inference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...engines import graph, nets
from ...engines.backend import Backend, Outputs
from ...engines.card import ROLES, ModelCard, Weights
from ...engines.card_text import card_path, install_card
from ...engines.detector import Detector, DetectorSettings, logistic
from ...engines.export import check_parity, export_onnx
from ...engines.nets.bbfcn import Backbone
from ...engines.nets.folded import FoldedBackbone
from ...engines.onnx_backend import OnnxBackend
from ...engines.quantise import quantise_onnx
from ...engines.torch_backend import TorchBackend, save_torch_weights
from ...tracker.errors import ConfigError
from ...tracker.types import UInt8
from ..config import Config
from ..datasets import Sample, read_faces
from ..evaluation.card_figures import forms, rounded
from ..finished import check_own_settings, load_average
from ..negatives import faceless
from .mining import draft_card
from .objectives import held_out
from .score import SECOND_LOOK_LOSS, TEST, Measured, evaluate, fit_face_weights, load_held_out, measure

PARITY = 1e-3  # of the responses, which are about 1 on a face
PEAK = 0.4  # lowest response of a peak at inference; scores are fitted on more candidates, with the draft card's peak
NAMES = {  # names of data folders on a card; others appear by their path
    "webfaces": "WebFaces",
    "lfw5": "LFW",
    "taught/unlabelled/aflw2000": "AFLW2000",
    "hard/unlabelled/aflw2000": "AFLW2000",
    TEST: "LFPW test",
    "negatives/flowers": "flowers",
    "negatives/catsdogs": "cats and dogs",
    "negatives/dtd": "textures",
}
GMAC = 31.7  # per megapixel of the scan; a crop of the second look costs 0.04


@dataclass(frozen=True, slots=True)
class Pair:
    """The two networks of a detector."""

    scan: nets.FromBytes
    refine: nets.FromBytes

    @classmethod
    def of_run(cls, config: Config, run: Path) -> Pair:
        """The averages of a run of the branches and of the backbone that it was trained on.

        Raises:
            ConfigError: a file is missing, or belongs to another network.
        """
        check_own_settings(config, run)
        scan = nets.FromBytes(nets.build("bbfcn-backbone", config.network.landmarks))
        load_average(scan, run / "backbone.pt")
        refine = nets.FromBytes(nets.build("bbfcn", config.network.landmarks))
        load_average(refine, run / "best.pt")
        return cls(scan.eval(), refine.eval())


class Recorder:
    """A backend that keeps its inputs, as examples for the quantisation."""

    description = "recorder"
    precision = shapes = max_atlas = None  # no atlas: each level is an example of its own
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
    """Export, quantise, fit the score, measure; then move the files into `out`, the card last.

    Until then nothing in `out` changes.

    Args:
        config: of the branches' run.
        run: its folder, with best.pt and, as backbone.pt, that of the backbone's run.
        data: root of the data sets.
        out: gets weights/NAME-scan.onnx (the backbone, for whole pictures), weights/NAME-refine.onnx (backbone and
            branches, for crops), beside each of them NAME-ROLE-int8.onnx for CPUs with 8-bit multiplication and
            NAME-ROLE.torch.npz, and cards/NAME.toml.
    Returns:
        The card's path.
    Raises:
        BackendError: the exported networks do not compute what torch does.
        ConfigError: the run's files are missing or belong to another network; too few pictures were held out of the
            training; or the training was too short for a score to be fitted to what the detector finds.
        SinkError: a file cannot be written.
        SourceError: a folder of data is missing or broken.
    """
    pair = Pair.of_run(config, run)
    for half in (0, 1):
        load_held_out(config, data, half)  # raises before anything is exported
    with TemporaryDirectory() as folder:
        weights = _store(config, pair, data, Path(folder))
        card = replace(draft_card(config), weights=weights, parameters=nets.parameters(pair.refine), gmac=GMAC)
        card = replace(card, calibration=fit(card, config, data))
        card = replace(card, codec={**card.codec, "peak": PEAK})
        card = replace(card, measured=detector_figures(card, config, data))
        install_card(_rounded(card), Path(folder), out)
    return card_path(card.name, out)


def _store(config: Config, pair: Pair, data: Path, folder: Path) -> dict[str, Weights]:
    """Write both networks: stored in 16 bits, quantised to 8 bits, and for torch."""
    examples = _examples(config, pair, data)
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
    for role, pictures in examples.items():
        path, small = full[role], full[role].with_name(f"{full[role].stem}-int8.onnx")
        quantise_onnx(path, small, pictures)
        path.write_bytes(graph.store_fp16(path.read_bytes()))
        save_torch_weights(nets_of[role][1], path, nets_of[role][0], config.network.landmarks, {})
        stored[role] = Weights.of(path, "fp16", Weights.of(small, "int8"))
    return stored


def _examples(config: Config, pair: Pair, data: Path) -> dict[str, list[UInt8]]:
    """Pyramid levels and crops that the networks are given for some training pictures with and without faces.

    Raises:
        ConfigError: the scan finds no candidate in them.
    """
    scan, refine = Recorder(TorchBackend(pair.scan)), Recorder(TorchBackend(pair.refine))
    detector = Detector(draft_card(config), scan, refine, DetectorSettings(min_face=22))
    corpora = [read_faces(data / c.path, c.layout, config.broken) for c in config.corpora]
    learnt = [[s for s in samples if not held_out(s)] for samples in corpora]
    pictures = [s for samples in learnt for s in samples[::60]]
    pictures += [s for s in faceless(config, data) if not held_out(s)][::100]
    for sample in pictures:
        detector.detect(sample.bgr())
    if not refine.seen:
        raise ConfigError(
            f"{config.card.name}: its scan finds no candidate in {len(pictures)} of its training pictures; train it "
            "longer"
        )
    return {"scan": scan.seen, "refine": refine.seen}


def fit(card: ModelCard, config: Config, data: Path) -> dict[str, Any]:
    """Fit the scores of scan and second look on the first half of the held-out pictures.

    Raises:
        ConfigError: there are too few of these pictures, or the detector finds too little in them.
    """
    folders, empty = load_held_out(config, data, half=0)
    faces = list(chain.from_iterable(folders.values()))
    scanned = measure(_open(card, threshold=0.0), faces, empty, refined=False)
    scan = _fitted(scanned, "scan")
    chance = logistic(scanned.features[scanned.is_face], scan)
    second_look = float(np.quantile(chance, SECOND_LOOK_LOSS))
    card = replace(card, calibration={**card.calibration, "scan": scan, "second_look": second_look})
    refine = _fitted(measure(_open(card, threshold=0.0), faces, empty, refined=True), "second look")
    return {**card.calibration, "refine": refine}


def _fitted(measured: Measured, look: str) -> list[float]:
    faces = int(np.count_nonzero(measured.is_face))
    others = len(measured.is_face) - faces
    if not (faces and others):
        raise ConfigError(
            f"score of the {look}: wanted candidates on faces and elsewhere to fit it to, got {faces} and {others}; "
            "train longer, or add pictures"
        )
    return fit_face_weights(measured)


def detector_figures(card: ModelCard, config: Config, data: Path) -> dict[str, float]:
    """Recall, five-point errors and false alarms of each of the card's pairs of files, by their names on the card.

    They are measured on the second half of the held-out pictures, separately for each folder.

    Raises:
        ConfigError: there are too few of these pictures.
        SourceError: a folder is missing or broken.
    """
    faces, empty = load_held_out(config, data, half=1)
    figures: dict[str, float] = {}
    for ending, form in forms(card).items():
        found = _figures(_open(form, threshold=0.01), _by_name(faces), empty, _name_of(config.negatives))
        figures |= {f"{name}{ending}": value for name, value in found.items()}
    return rounded(figures)


def _figures(detector: Detector, faces: dict[str, list[Sample]], empty: list[Sample], nothing: str) -> dict[str, float]:
    threshold = DetectorSettings().threshold
    figures: dict[str, float] = {}
    for name, samples in faces.items():
        report = evaluate(detector, samples, ())
        if len(report.best):
            figures[f"faces found %, {name}"] = 100 * report.recall(threshold)
        if np.isfinite(report.errors).any():
            figures[f"five-point error % of the eye distance, {name}"] = 100 * float(np.nanmean(report.errors))
    figures[f"false alarms a picture, {nothing}"] = evaluate(detector, (), empty).false_alarms(threshold)
    return figures


def _by_name(folders: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    """Pictures by the names of their folders on a card; several folders may have one name."""
    groups: dict[str, list[Sample]] = {}
    for folder, samples in folders.items():
        groups.setdefault(_name_of([folder]), []).extend(samples)
    return groups


def _name_of(folders: Iterable[str]) -> str:
    return ", ".join(NAMES.get(folder, folder) for folder in folders)


def _open(card: ModelCard, threshold: float) -> Detector:
    """Run the card's own files on ONNX Runtime, whatever this machine would use: a card is the same everywhere."""
    scan, refine = (OnnxBackend(card.weights[role]) for role in ROLES["detect"])
    return Detector(card, scan, refine, DetectorSettings(threshold=threshold))


def _rounded(card: ModelCard) -> ModelCard:
    """The card with its numbers rounded to meaningful digits."""
    fitted = {
        name: [round(v, 4) for v in value] if isinstance(value, list) else round(value, 5)
        for name, value in card.calibration.items()
    }
    return replace(card, box_scale=round(card.box_scale, 4), calibration=fitted)
