"""A tiny network that fits a line: whole runs of the training loop in no time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facetrack.training.config import Config, Schedule


class Killed(BaseException):
    """Simulates a kill: nothing in the loop may catch it."""


class Fit:
    """Fits a noisy line; its loss draws random numbers, as dropout and random negatives do.

    Attributes:
        kill_at: number of the call of `loss` that is killed, counted from 0.
        validations: what `validate` returns, one after the other; then the true error.
    """

    def __init__(self, width: int = 4, kill_at: int | None = None, validations: tuple[float, ...] = ()) -> None:
        self.width, self.kill_at, self.validations = width, kill_at, list(validations)
        self.losses = 0
        self.drawn: list[tuple[int, float]] = []

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(1, self.width), nn.BatchNorm1d(self.width), nn.ReLU(), nn.Linear(self.width, 1))

    def item(self, index: int, progress: float) -> tuple[Any, ...]:
        self.drawn.append((index, progress))
        x = np.random.default_rng((5, index)).uniform(-1, 1, 1).astype(np.float32)
        return x, 2 * x + np.float32(progress)

    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        if self.losses == self.kill_at:
            raise Killed
        self.losses += 1
        x, y = batch
        error = ((net(x + 0.1 * torch.randn_like(x)) - y) ** 2).mean()
        return error, {"error": error.item(), "one": 1.0}

    def picture(self, net: nn.Module) -> np.ndarray:
        assert not net.training
        return np.full((4, 6, 3), [255, 0, 0], np.uint8)

    def validate(self, net: nn.Module) -> dict[str, float]:
        assert not net.training
        if self.validations:
            return {"first": self.validations.pop(0), "second": 7.0}
        with torch.inference_mode():
            x = torch.linspace(-1, 1, 9)[:, None]
            return {"first": float(((net(x) - 2 * x) ** 2).mean()), "second": 7.0}


def config(**changes: Any) -> Config:
    settings = {
        "steps": 12,
        "batch": 6,
        "learning_rate": 0.05,
        "warm_up": 3,
        "validate_every": 5,
        "checkpoint_every": 3,
        "workers": 0,
    }
    return Config(schedule=Schedule(**(settings | changes)))


class Clockwork(Fit):
    """Fit with its own clock: a step takes half a second; the first ones, set-up and validation far longer."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.time_s = 0.0

    def monotonic(self) -> float:
        return self.time_s

    def build(self) -> nn.Module:
        self.time_s += 100
        return super().build()

    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        self.time_s += 0.5 if self.losses >= 4 else 30
        return super().loss(net, batch)

    def validate(self, net: nn.Module) -> dict[str, float]:
        self.time_s += 1000
        return super().validate(net)
