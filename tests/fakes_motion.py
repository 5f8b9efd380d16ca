"""Landmarks with known motion, and the noise that they are measured with."""

from __future__ import annotations

import numpy as np

from facetrack.tracker.pose import MEAN_FACE_MM
from facetrack.tracker.types import Float32, Float64

FPS = 30.0
SIZE_PX = 150.0
FACE: Float64 = MEAN_FACE_MM[:, :2] * SIZE_PX / np.ptp(MEAN_FACE_MM[:, 0]) + [320, 240]
UPPER_LIDS = [37, 38, 43, 44]
CLEAR = np.full(68, 0.65, np.float32)  # the GV network's scores on a clear face


def still(frames: int) -> Float64:
    return np.repeat(FACE[None], frames, 0)


def riding(px_per_frame: float) -> Float64:
    """A face at rest for 40 frames, at full speed for 40, at rest for 40."""
    way = np.clip(np.arange(120) - 40, 0, 40) * px_per_frame
    return still(120) + np.stack((way, np.zeros(120)), -1)[:, None]


def blinking(phase: float) -> Float64:
    """Two seconds with a blink of 150 ms, which begins `phase` frames before frame 30."""
    t = (np.arange(60) - 30 + phase) / FPS / 0.15
    truth = still(60)
    truth[:, UPPER_LIDS, 1] += np.where((t > 0) & (t < 1), np.sin(np.pi * t) ** 2, 0)[:, None] * 8
    return truth


def lids_depth(xy: Float32 | Float64) -> float:
    """How far the upper lids come down, pixels."""
    return float((xy - FACE)[:, UPPER_LIDS, 1].mean(1).max())


def measured(truth: Float64, seed: int = 0, louder: float = 1.0) -> Float32:
    """Add white noise as the default settings expect it: 0.3 px for each point and 0.15 px shared by all points."""
    rng = np.random.default_rng(seed)
    own, shared = rng.normal(0, 0.3, truth.shape), rng.normal(0, 0.15, (len(truth), 1, 2))
    return (truth + louder * (own + shared)).astype(np.float32)
