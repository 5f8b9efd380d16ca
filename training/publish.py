"""From a finished run to a card and weights that the program can use.

    python -m facetrack.training.publish CONFIG.toml RUN_FOLDER --data DIR --out DIR

writes DIR/cards/NAME.toml, DIR/weights/NAME.onnx and NAME.torch.npz from the run's best average. The figures on the
card are measured here, on the exported file, with the same code that tracks videos.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..engines import nets
from ..engines.aligner import Aligner
from ..engines.backend import open_backend
from ..engines.card import read_card
from ..engines.codec import decoder
from ..engines.export import check_parity, export_onnx, store_half
from ..engines.torch_backend import save_torch_weights
from ..tracker import markup
from ..tracker.errors import BackendError
from ..tracker.geometry import CropTransform, bounding_box, box_centre_side
from ..tracker.metrics import nme
from ..tracker.types import Float32, UInt8
from .alignment import Alignment
from .config import Config, load
from .datasets import Sample
from .objectives import open_alignment

OUTPUTS = {
    "vectors": ("vectors", "logits"),
    "heatmaps": ("heatmaps", "logits"),
    "fields": ("heatmaps", "field", "logits"),
}
WIDEST_PARITY = 0.05  # pixels after decoding between the stored file and torch; 16-bit weights cost about 0.01


def publish(config: Config, run: Path, data: Path, out: Path) -> Path:
    """Export the best average of a run of an alignment network with its card.

    Args:
        config: of the run.
        run: its folder, with best.pt.
        data: root of the data sets, for the validation pictures.
        out: `cards` and `weights` are made in it.
    Returns:
        The card's path.
    Raises:
        BackendError: the exported network does not compute what torch does.
        ConfigError: the network is no alignment network.
    """
    objective = open_alignment(config, data)
    net = objective.build().eval()
    net.load_state_dict(torch.load(run / "best.pt", map_location="cpu", weights_only=True)["average"])
    weights, card = (out / folder / f"{config.card.name}.{end}" for folder, end in _PLACES)
    for path in (weights, card):
        path.parent.mkdir(parents=True, exist_ok=True)
    crops = _validation_crops(objective)
    export_onnx(net, weights, crops[:2], OUTPUTS[objective.codec["kind"]])
    check_parity(net, weights, crops[:16], 1e-3)
    store_half(weights)
    card.write_text(_card_text(objective, net, weights, {}), encoding="utf-8")
    measured = _measure(card, objective.validation)
    measured["parity of the file with torch, px"] = _parity_px(card, net, crops)
    card.write_text(_card_text(objective, net, weights, measured), encoding="utf-8")
    network = config.network
    save_torch_weights(net, weights, network.name, network.landmarks, network.options)
    return card


_PLACES = (("weights", "onnx"), ("cards", "toml"))


def _validation_crops(objective: Alignment) -> UInt8:
    aligned = [(sample, box_centre_side(bounding_box(sample.points[0]))) for sample in objective.validation]
    size, scale = objective.config.schedule.sizes[-1][1], objective.config.box_scale
    return np.stack([CropTransform.around(c, s * scale, size).crop(sample.bgr()) for sample, (c, s) in aligned])


def _measure(card: Path, samples: list[Sample]) -> dict[str, float]:
    """Inter-ocular NME in percent of the exported network in the annotations' boxes."""
    loaded = read_card(card)
    aligner = Aligner(loaded, open_backend(loaded.weights["net"]))
    truth = np.concatenate([sample.points for sample in samples])
    report = {}
    for name, angle in (("", 0.0), (", crop turned 30 degrees", np.pi / 6)):
        found = np.stack([_locate(aligner, sample, angle) for sample in samples])
        report[f"NME io %, LFPW test{name}"] = float(nme(found, truth, aligner.markup, "io").mean() * 100)
    return report


def _locate(aligner: Aligner, sample: Sample, angle: float) -> Float32:
    centre, side = box_centre_side(bounding_box(sample.points[0]))
    return aligner.align(sample.bgr(), [aligner.crop_around(centre, side, angle)])[0].xy


def _parity_px(card: Path, net: nn.Module, crops: UInt8) -> float:
    """Mean distance in crop pixels between the landmarks of the stored file and those of torch."""
    loaded = read_card(card)
    backend = open_backend(loaded.weights["net"])
    decode = decoder(loaded.codec, markup.load(loaded.markup), loaded.name)
    distances = []
    for crop in crops:
        with torch.inference_mode():
            wanted = tuple(output.numpy() for output in net(torch.from_numpy(crop[None])))
        stored, exact = decode(backend.run(crop[None]))[0], decode(wanted)[0]
        distances.append(np.linalg.norm(stored - exact, axis=-1).mean())
    distance = float(np.mean(distances))
    if distance > WIDEST_PARITY:
        raise BackendError(f"{card}: stored weights move landmarks by {distance:.3f} px, more than {WIDEST_PARITY}")
    return distance


def _card_text(objective: Alignment, net: nets.FromBytes, weights: Path, measured: dict[str, float]) -> str:
    config = objective.config
    size = config.schedule.sizes[-1][1]
    lines = [
        f"name = {json.dumps(config.card.name)}",
        f"network = {json.dumps(config.network.name)}",
        'task = "align"',
        f"markup = {json.dumps(markup.for_points(config.network.landmarks).name)}",
        f"parameters = {nets.parameters(net)}",
        f"gmac = {nets.gmac(net.net, (size, size)):.3f} # one crop",
        f"data = {json.dumps(config.card.data)}",
        f"licence = {json.dumps(config.card.licence)}",
        "",
        "[input]",
        f"size = [{size}, {size}]",
        f"box_scale = {config.box_scale}",
        "",
        "[codec]",
        *(f"{key} = {json.dumps(value)}" for key, value in objective.codec.items()),
        "",
        "[weights]",
        f'net = {{ file = "{weights.name}", sha256 = "{_sha256(weights)}", precision = "fp16" }}',
        "",
        "[measured]",
        *(f"{json.dumps(key)} = {value:.3f}" for key, value in measured.items()),
    ]
    return "\n".join(lines) + "\n"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Read the arguments and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    print(publish(load(arguments.config), arguments.run, arguments.data, arguments.out))


if __name__ == "__main__":
    main()
