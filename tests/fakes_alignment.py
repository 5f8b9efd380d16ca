"""Painted corpora for alignment networks, small networks of every kind, and the outputs that fit the labels exactly."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from fakes_training import write_faces
from torch import Tensor

from facetrack.engines.nets.hourglass import Supervision
from facetrack.tracker import markup
from facetrack.tracker.codecs import field_lines
from facetrack.training.alignment.boundaries import curve_maps, segment_maps, with_union
from facetrack.training.alignment.maps import bali_fields, gaussian_maps
from facetrack.training.config import Config, Corpus, Network, Schedule

SIDE = 96
IBUG = markup.load("ibug68")
OPTIONS = {
    "tab": {"stacks": 1, "width": 16},
    "propnet": {"stacks": 2, "width": 16},
    "span": {"stacks": 2, "width": 16, "field_per_landmark": True},
    "shn": {"stacks": 2, "width": 16},
}


def write_corpora(root: Path) -> Path:
    """Write the corpora and backgrounds of `configuration` below a folder; return the folder."""
    write_faces(root / "train", 4)
    write_faces(root / "weak", 3, first=4)
    write_faces(root / "held", 3, first=7)
    (root / "grass").mkdir()
    for i in range(3):
        green = np.random.default_rng(i).integers(0, 120, (150, 160, 3), np.uint8)
        green[..., 2] = 0  # no red, so that nothing in it is read as a painted face
        (root / "grass" / f"{i}.png").write_bytes(cv2.imencode(".png", green)[1].tobytes())
    return root


def configuration(**changes: object) -> Config:
    """A small GV on `write_corpora`'s pictures."""
    settings: dict[str, object] = {
        "network": Network("gv", 68, {"encoder": "mobilenetv3-small", "face_score": True}),
        "corpora": (Corpus("train", weight=0.8, late_weight=0.0), Corpus("weak", weight=0.2)),
        "negatives": ("grass",),
        "validation": "held",
        "schedule": Schedule(steps=100, sizes=((0.0, 64), (0.5, SIDE))),
    }
    return Config(**(settings | changes))  # type: ignore[arg-type]


def perfect(name: str, xy: Tensor) -> Supervision:
    """The output of a network in training mode that knows the labels."""
    gaussians = gaussian_maps(xy, (32, 32), 4, 1.0)
    if name == "tab":
        return Supervision((gaussians,), (with_union(curve_maps(xy, IBUG, (32, 32), 4)),))
    if name == "propnet":
        return Supervision((gaussians, gaussians), (segment_maps(xy, IBUG, (32, 32), 4),) * 2)
    fine = gaussian_maps(xy, (64, 64), 2, 1.5)
    lines = [curve_maps(xy, IBUG, (64 // s, 64 // s), 2 * s, w, 2.0) for s, w in ((2, 1.0), (1, 1.5))]
    field, _ = bali_fields(xy, field_lines(IBUG, 68), (64, 64), 2)
    logs = [(maps + 1e-9).log() for maps in (gaussians, fine, *lines)]
    if name == "shn":
        return Supervision(tuple(logs[:2]), ())
    return Supervision(tuple(logs[:2]), tuple(logs[2:]), field)
