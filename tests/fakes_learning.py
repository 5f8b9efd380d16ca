"""Faces drawn straight into crops with NumPy alone, so that every machine learns from the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fakes import PaintedFace, PaintedSource
from fakes_training import write_faces
from torch import Tensor, nn

from facetrack.tracker.types import Float32, UInt8
from facetrack.training.alignment.networks import VectorAlignment
from facetrack.training.config import Config, Corpus, Network, Schedule
from facetrack.training.train import Run

STEPS, BATCH, SIDE = 20, 8, 64


def drawn_face(index: int, side: int) -> tuple[UInt8, Float32]:
    """Face number `index`: a crop (side, side, 3) and its 68 points in crop pixels."""
    rng = np.random.default_rng((7, index))
    middle = (side - 1) / 2 + rng.uniform(-0.05, 0.05, 2) * side
    width, angle = side * rng.uniform(0.6, 0.7), rng.uniform(-0.2, 0.2)
    face = PaintedFace((float(middle[0]), float(middle[1])), width=width, angle=angle)
    source = PaintedSource(shape=(side, side), faces=[face])
    return source.picture(0).copy(), source.truth(0)[0]  # tensors need writable memory


def settings() -> Config:
    """Settings of a short run of a small GV; no item is drawn from its one corpus, "faces"."""
    return Config(
        network=Network("gv", 68, {"encoder": "mobilenetv3-small", "width": 8, "face_score": True}),
        corpora=(Corpus("faces"),),
        negative_share=0.0,
        validation="faces",
        schedule=Schedule(
            steps=STEPS,
            batch=BATCH,
            learning_rate=1e-3,
            warm_up=5,
            sizes=((0.0, SIDE),),
            validate_every=STEPS,
            checkpoint_every=STEPS,
            workers=0,
        ),
    )


class DrawnAlignment(VectorAlignment):
    """GV's objective on drawn faces; it keeps every step's terms in `curve`."""

    def __init__(self, folder: Path) -> None:
        """Take a folder for the one picture that the objective needs."""
        write_faces(folder / "faces", 1)
        super().__init__(settings(), folder)
        self.curve: list[dict[str, float]] = []

    def item(self, index: int, progress: float) -> tuple[UInt8, Float32, np.float32]:  # noqa: ARG002 - as the seam has it
        """Every sixth picture shows no face."""
        if index % 6 == 5:
            noise = np.random.default_rng((8, index)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            return noise, np.full((68, 2), np.nan, np.float32), np.float32(0)
        crop, xy = drawn_face(index, SIDE)
        return crop, xy, np.float32(1)

    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """See `Alignment`."""
        total, terms = super().loss(net, batch)
        self.curve.append({"total": total.item(), **terms})
        return total, terms


def loss_curve(folder: Path, *ends: int) -> list[dict[str, float]]:
    """Loss terms of every step of a run that stops at each of `ends` and is resumed by a new trainer."""
    curve: list[dict[str, float]] = []
    for end in ends:
        objective = DrawnAlignment(folder)
        Run(objective.config, objective, folder / "run").train(end)
        curve += objective.curve
    return curve


def as_table(curve: list[dict[str, float]]) -> dict[str, Any]:
    """A curve by the names of its terms, with five significant digits."""
    return {name: [float(f"{terms[name]:.5g}") for terms in curve] for name in curve[0]}
