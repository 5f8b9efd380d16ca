"""The one training loop: any objective, resumable to the same curve, one process or several through torchrun."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from .config import Config, Schedule

log = logging.getLogger(__name__)


class Objective(Protocol):
    """What is trained: a network, numbered training items, a loss and a validation."""

    def build(self) -> nn.Module: ...
    def item(self, index: int, progress: float) -> tuple[Any, ...]: ...
    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]: ...
    def validate(self, net: nn.Module) -> dict[str, float]: ...


class Items(Dataset[tuple[Any, ...]]):
    """An objective's items by number, so that a resumed run draws what the uninterrupted one would have."""

    def __init__(self, objective: Objective, schedule: Schedule) -> None:
        self.objective, self.schedule = objective, schedule

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        step = index // self.schedule.batch
        return self.objective.item(index, step / self.schedule.steps)


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def batches(objective: Objective, schedule: Schedule, start: int, end: int) -> Iterator[list[Tensor]]:
    """This process's share of every batch from step `start` up to `end`."""
    rank, world = rank_and_world()
    indices = [
        list(range(step * schedule.batch + rank, (step + 1) * schedule.batch, world))
        for step in range(start, end)
    ]
    loader = DataLoader(Items(objective, schedule), batch_sampler=indices, num_workers=schedule.workers)
    yield from loader


def learning_rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < schedule.warm_up:
        return schedule.learning_rate * (step + 1) / schedule.warm_up
    done = (step - schedule.warm_up) / max(1, schedule.steps - schedule.warm_up)
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Run:
    """State of one training run and its folder: checkpoint.pt, best.pt, log.jsonl."""

    def __init__(self, config: Config, objective: Objective, folder: Path) -> None:
        self.config, self.objective, self.folder = config, objective, folder
        schedule = config.schedule
        torch.manual_seed(schedule.seed)
        self.net = objective.build().to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.net).eval()
        decayed = [p for p in self.net.parameters() if p.ndim > 1]
        plain = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": schedule.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=schedule.learning_rate)
        self.step = 0
        self.best = math.inf
        if (folder / "checkpoint.pt").is_file():
            self._restore(torch.load(folder / "checkpoint.pt", weights_only=True))

    def _restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best = state["step"], state["best"]
        log.info("resumed at step %d, best %.4f", self.step, self.best)

    def save(self) -> None:
        """Write the checkpoint beside the old one and swap, so that a kill leaves a whole file."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "best": self.best,
        }
        _save(state, self.folder / "checkpoint.pt")

    def train(self, until: int | None = None) -> None:
        """Run to the last step or to step `until`; validate, keep the best average, log one JSON line each time."""
        schedule, (rank, world) = self.config.schedule, rank_and_world()
        wrapped = DistributedDataParallel(self.net) if world > 1 else self.net
        self.folder.mkdir(parents=True, exist_ok=True)
        sums: dict[str, float] = {}
        began, began_step = time.monotonic(), self.step
        for batch in batches(self.objective, schedule, self.step, schedule.steps if until is None else until):
            self.net.train()
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(self.step, schedule)
            loss, terms = self.objective.loss(wrapped, batch)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), schedule.clip)
            self.optimiser.step()
            self.step += 1
            self._follow()
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + value
            if rank == 0:
                if self.step % schedule.validate_every == 0 or self.step == schedule.steps:
                    rate = (self.step - began_step) * schedule.batch / (time.monotonic() - began)
                    self._report({k: v / schedule.validate_every for k, v in sums.items()}, rate)
                    sums.clear()
                if self.step % schedule.checkpoint_every == 0 or self.step == schedule.steps:
                    self.save()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the exponential average towards the weights; a young run follows faster."""
        keep = min(self.config.schedule.ema, (1 + self.step) / (10 + self.step))
        for old, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
            old.lerp_(new, 1 - keep)
        for old, new in zip(self.average.buffers(), self.net.buffers(), strict=True):
            old.copy_(new)

    def _report(self, terms: dict[str, float], rate: float) -> None:
        measured = self.objective.validate(self.average)
        first = next(iter(measured.values()))
        line = {"step": self.step, "rate": round(rate, 1), **_rounded(terms), "val": _rounded(measured)}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", json.dumps(line))
        if first < self.best:
            self.best = first
            _save(
                {"average": self.average.state_dict(), "step": self.step, "val": measured},
                self.folder / "best.pt",
            )


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 5) for key, value in values.items()}


def _save(state: dict[str, Any], path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def train(config: Config, objective: Objective, folder: Path) -> None:
    """Train to the end, resuming from the folder's checkpoint if there is one."""
    _, world = rank_and_world()
    torch.set_num_threads(1 if world > 1 else torch.get_num_threads())
    if world > 1:
        dist.init_process_group("gloo")
    try:
        Run(config, objective, folder).train()
    finally:
        if world > 1:
            dist.destroy_process_group()
