"""Engines that output `encode(truth)`: the whole program runs on painted faces, without weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import cv2
import numpy as np
from fakes import PaintedSource, read_landmarks, write_video

from facetrack.engines.aligner import Aligner
from facetrack.engines.backend import Outputs, Shapes
from facetrack.engines.card import ModelCard, Weights
from facetrack.pipeline.open import Choices, Engines
from facetrack.tracker import markup
from facetrack.tracker.geometry import bounding_box
from facetrack.tracker.types import Float32, Proposals, UInt8
from facetrack.training.alignment.targets import gaussian_vectors

SIDE, STRIDE, SIGMA, PEAK = 128, 4, 1.2, 3.0
SURE = 6.0  # logit
REACH = 1.6  # side of the square that is read round a painted face, over the width of its paint


def painted_card(name: str = "painted-68", task: str = "align") -> ModelCard:
    """A card for the painted networks; its weights do not exist."""
    return ModelCard(
        name=name,
        network="painted",
        task=task,
        markup="ibug68",
        size=(SIDE, SIDE),
        box_scale=1.3,
        codec={"kind": "vectors", "stride": STRIDE, "sigma": SIGMA, "peak": PEAK},
        weights={"net": Weights(Path("painted.onnx"), "0" * 64, "fp32")},
        parameters=0,
        gmac=0.0,
        data=("paint",),
        licence="none",
        measured={},
        calibration={},
    )


@dataclass
class PaintedBackend:
    """An alignment network that reads painted faces.

    Attributes:
        failing: call number (from 0) -> the exception that it raises.
        endless: number of the call that blocks until it is interrupted.
        calls: number of calls so far.
    """

    failing: dict[int, BaseException] = field(default_factory=dict)
    endless: int | None = None
    calls: int = 0
    description: str = "paint"
    precision: str | None = None
    shapes: Shapes | None = None
    max_atlas: tuple[int, int] | None = None
    preferred_batch: int = 1

    def run(self, images: UInt8) -> Outputs:
        """Vectors (B, 68, 32, 2) and two logits (B, 2) of crops (B, 128, 128, 3)."""
        self.calls += 1
        if self.calls - 1 in self.failing:
            raise self.failing[self.calls - 1]
        if self.calls - 1 == self.endless:
            Event().wait()
        found = [read_landmarks(image) for image in images]
        nothing = np.full((68, 2), -1e3, np.float32)
        xy = np.stack([nothing if points is None else points for points in found] or [nothing])[: len(images)]
        logits = [[-SURE if points is None else SURE] * 2 for points in found]
        vectors = gaussian_vectors(xy, SIDE // STRIDE, STRIDE, SIGMA, PEAK)
        return vectors, np.asarray(logits, np.float32).reshape(-1, 2)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class PaintedDetector:
    """Finds painted faces that do not touch each other.

    Attributes:
        searched: number of pictures searched.
        deadly_height: a picture of this height ends the process, as a crash in a library would.
    """

    searched: int = 0
    deadly_height: int = 0

    def min_reliable_face(self, bgr: UInt8) -> float:
        """Faces of any size are found by every search."""
        del bgr
        return 0.0

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        """All painted faces, the largest first."""
        del small, faint
        self.searched += 1
        if len(bgr) == self.deadly_height:
            os._exit(3)
        red = ((bgr[..., 2] > 235) & (bgr[..., :2].max(-1) >= 12)).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(cv2.erode(red, np.ones((3, 3), np.uint8)))
        faces = [self._read(bgr, *box) for *box, area in stats[1:].tolist() if area >= 100]
        found = sorted((face for face in faces if face is not None), key=lambda xy: -float(np.ptp(xy)))
        if not found:
            return Proposals.none()
        xy = np.stack(found)
        five = markup.load("ibug68").subset("five5", xy)
        return Proposals(bounding_box(xy), np.full(len(xy), 0.9, np.float32), five)

    def _read(self, bgr: UInt8, x: int, y: int, width: int, height: int) -> Float32 | None:
        reach = round(max(width, height) * (REACH - 1) / 2)
        left, top = max(x - reach, 0), max(y - reach, 0)
        xy = read_landmarks(bgr[top : y + height + reach, left : x + width + reach])
        return None if xy is None else xy + np.float32([left, top])


@dataclass
class PaintedEngines:
    """Replaces `pipeline.open.open_engines`.

    Attributes:
        backend: of the aligner.
        opened: the choices of each call.
    """

    backend: PaintedBackend = field(default_factory=PaintedBackend)
    detector: PaintedDetector = field(default_factory=PaintedDetector)
    opened: list[Choices] = field(default_factory=list)

    def __call__(self, choices: Choices) -> AbstractContextManager[Engines]:
        return self._open(choices)

    @contextmanager
    def _open(self, choices: Choices) -> Iterator[Engines]:
        self.opened.append(choices)
        card = painted_card()
        try:
            yield Engines(self.detector, Aligner(card, self.backend), (card,), self.detector, choices)
        finally:
            self.backend.close()


def paint_video(path: Path, source: PaintedSource | None = None) -> Path:
    """Encode a painted source as a video."""
    source = source or PaintedSource()
    return write_video(path, (source.picture(index) for index in range(source.count)))


def paint_pictures(folder: Path, source: PaintedSource, names: list[str]) -> Path:
    """Write the source's frames as files of these names."""
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        (folder / name).write_bytes(cv2.imencode(Path(name).suffix, source.picture(index))[1].tobytes())
    return folder
