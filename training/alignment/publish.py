"""Make the card and weights of an alignment network from a finished run; the command is `training.publish`.

The figures on the card are measured on the exported files, with the same code that tracks videos.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from torch import nn

from ...engines import graph, nets
from ...engines.card import ModelCard, Weights
from ...engines.card_text import card_path, install_card
from ...engines.codec import decoder
from ...engines.export import check_parity, export_onnx
from ...engines.onnx_backend import OnnxBackend
from ...engines.torch_backend import save_torch_weights
from ...pipeline.machine import usable_cores
from ...tracker import markup
from ...tracker.errors import BackendError
from ...tracker.geometry import CropTransform, box_centre_side
from ...tracker.metrics import Normaliser
from ...tracker.types import UInt8
from ...tracker.views import face_box
from ..config import Config
from ..datasets import one_face_each, read_faces
from ..evaluation.card_figures import alignment_figures, rounded
from ..finished import check_own_settings, load_average
from .networks import open_alignment
from .objective import Alignment, fault_of, in_markup

OUTPUTS = {
    "vectors": ("vectors", "logits"),
    "heatmaps": ("heatmaps", "logits"),
    "fields": ("heatmaps", "field", "logits"),
    "discs-in-windows": ("coarse", "fine", "corner", "logits"),
    "discs-in-maps": ("coarse", "logits"),
    "cells": ("cells", "logits"),
}
SETS = {"lfpw/testset": "LFPW test"}  # folders whose figures have another name on the card
PARITY_CROPS = 64  # crops to compare torch and the stored file on: on CPUs a full-size network takes seconds for each
WIDEST_PARITY = 0.05  # pixels after decoding between the stored file and torch; 16-bit weights cost about 0.01


def publish_aligner(config: Config, run: Path, data: Path, out: Path) -> Path:
    """Export and measure the best average of an alignment network's run, then move the files into `out`, the card last.

    Until then nothing in `out` changes.

    Args:
        config: of the run.
        run: its folder, with best.pt.
        data: root of the data sets, for the validation pictures.
        out: gets weights/NAME.onnx, weights/NAME.torch.npz and cards/NAME.toml.
    Returns:
        The card's path.
    Raises:
        BackendError: the exported network does not compute what torch does.
        ConfigError: the network is not an alignment network, or the run belongs to another network or card.
        SinkError: a file cannot be written.
    """
    check_own_settings(config, run)
    objective, network = open_alignment(config, data), config.network
    net = objective.build().eval()
    load_average(net, run / "best.pt")
    crops = _validation_crops(objective)
    with TemporaryDirectory() as folder:
        weights = Path(folder) / f"{config.card.name}.onnx"
        export_onnx(net, weights, crops[:2], _outputs(net, crops[:2], objective.codec["kind"]))
        check_parity(net, weights, crops[:16], 1e-3)
        weights.write_bytes(graph.store_fp16(weights.read_bytes()))
        save_torch_weights(net, weights, network.name, network.landmarks, network.options)
        card = _unmeasured_card(objective, net, weights)
        parity = {"parity of the file with torch, px": _parity_px(card, net, crops[:PARITY_CROPS])}
        card = replace(card, measured={**aligner_figures(card, config, data), **rounded(parity)})
        install_card(card, Path(folder), out)
    return card_path(card.name, out)


def aligner_figures(card: ModelCard, config: Config, data: Path) -> dict[str, float]:
    """The errors of each of the card's files on the configuration's validation pictures, by their names on the card.

    Raises:
        SourceError: the folder is missing or broken.
    """
    marks, normaliser = markup.load(card.markup), cast(Normaliser, config.normaliser)
    faces = one_face_each(read_faces(data / config.validation, config.validation_layout, config.broken))
    samples = [in_markup(sample, marks) for sample in faces]
    if config.skip_broken:
        samples = [sample for sample in samples if fault_of(sample, marks, normaliser) is None]
    name = SETS.get(config.validation, config.validation)
    return alignment_figures(card, samples, name, normaliser)


def _validation_crops(objective: Alignment) -> UInt8:
    aligned = [(sample, box_centre_side(face_box(sample.points[0]))) for sample in objective.validation]
    size, scale = objective.config.schedule.sizes[-1][1], objective.config.box_scale
    return np.stack([CropTransform.around(c, s * scale, size).crop(sample.bgr()) for sample, (c, s) in aligned])


def _outputs(net: nn.Module, crops: UInt8, kind: str) -> tuple[str, ...]:
    """Names of a network's outputs; a network without face score has no logits."""
    with torch.inference_mode():
        return OUTPUTS[kind][: len(net(torch.from_numpy(crops)))]


def _unmeasured_card(objective: Alignment, net: nets.FromBytes, weights: Path) -> ModelCard:
    config = objective.config
    size = config.schedule.sizes[-1][1]
    return ModelCard(
        name=config.card.name,
        network=config.network.name,
        task="align",
        markup=objective.markup.name,
        size=(size, size),
        box_scale=config.box_scale,
        codec=objective.codec,
        weights={"net": Weights.of(weights, "fp16")},
        parameters=nets.deployed_parameters(net.net, (size, size)),
        gmac=round(nets.gmac(net.net, (size, size)), 3),
        data=config.card.data,
        licence=config.card.licence,
        measured={},
        calibration={"shape": config.card.shape} if config.card.shape > 0 else {},
    )


def _parity_px(card: ModelCard, net: nn.Module, crops: UInt8) -> float:
    """Mean distance in crop pixels between the landmarks of the stored file and those of torch."""
    decode = decoder(card.codec, markup.load(card.markup), card.name)
    distances = []
    with closing(OnnxBackend(card.weights["net"], usable_cores())) as backend:
        for crop in crops:
            with torch.inference_mode():
                wanted = tuple(output.numpy() for output in net(torch.from_numpy(crop[None])))
            stored, exact = decode(backend.run(crop[None]))[0], decode(wanted)[0]
            distances.append(np.linalg.norm(stored - exact, axis=-1).mean())
    distance = float(np.mean(distances))
    if distance > WIDEST_PARITY:
        raise BackendError(
            f"{card.name}: stored weights move landmarks by {distance:.3f} px, more than {WIDEST_PARITY}"
        )
    return distance
