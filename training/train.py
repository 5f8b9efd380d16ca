"""The training loop: for every objective, resumable to the same curve, with one process or several through torchrun.

Items are drawn by their number and every step has its own random seed, so a run that was killed resumes as if it had
not been. With several processes each takes its share of every batch; gradients are averaged over the processes, batch
statistics are those of each share, and only the first process validates and writes.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.tensorboard import SummaryWriter  # here: if it is missing, that is reported before hours of training

from ..engines import nets
from ..tracker.errors import ConfigError, FacetrackError, SinkError
from ..tracker.types import UInt8
from .config import Config, Schedule
from .processes import (
    check_equal_shares,
    check_same_step,
    device,
    is_time_up,
    lock_folder,
    rank_and_world,
    set_up_device,
)
from .settings import refuse_other_settings, settings_of
from .sides import check_crop_sides
from .span import SelfConsistency
from .start import LOAD_ERRORS, begin
from .step_log import StepMeans, keep_lines

log = logging.getLogger(__name__)

LOG = "log.jsonl"
MOMENTUM = 0.9  # of SGD; BB-FCN, section III-E
EARLY = 20  # steps after which a long run validates for the first time, to check that it can
TOLD_EVERY_S = 30.0  # between two progress lines


class Objective(Protocol):
    """What is trained: a network, numbered training items, a loss and a validation."""

    def build(self) -> nn.Module:
        """The untrained network."""
        ...

    def item(self, index: int, progress: float) -> tuple[Any, ...]:
        """Training item number `index` after this share of the run; the same in whichever process it is drawn."""
        ...

    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch of items, and its terms for the log."""
        ...

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Figures by name; the first one decides which network is the best, and lower is better."""
        ...

    def picture(self, net: nn.Module) -> UInt8 | None:
        """Some validation pictures with the network's results drawn in, (H, W, 3) BGR; None: nothing to look at."""
        ...


class Items(Dataset[tuple[Any, ...] | FacetrackError]):
    """An objective's items by number, so that a resumed run draws what the uninterrupted one would have drawn.

    A `FacetrackError` is returned as an item: raised in a worker it would arrive with the worker's traceback as its
    message.
    """

    def __init__(self, objective: Objective, schedule: Schedule) -> None:
        self.objective, self.schedule = objective, schedule

    def __getitem__(self, index: int) -> tuple[Any, ...] | FacetrackError:
        step = index // self.schedule.batch
        try:
            return self.objective.item(index, step / self.schedule.steps)
        except FacetrackError as error:
            return error


def batches(objective: Objective, schedule: Schedule, start: int, end: int) -> Iterator[list[Tensor]]:
    """This process's share of every batch from step `start` to step `end`, exclusive.

    Raises:
        FacetrackError: an item cannot be made, here or in a worker.
    """
    rank, world = rank_and_world()
    indices = (list(range(s * schedule.batch + rank, (s + 1) * schedule.batch, world)) for s in range(start, end))
    loader = DataLoader(
        Items(objective, schedule),
        batch_sampler=indices,
        num_workers=schedule.workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_batch,
    )
    for batch in loader:
        if isinstance(batch, FacetrackError):
            raise batch
        yield batch


def _batch(items: list[tuple[Any, ...] | FacetrackError]) -> Any:
    """The items as the tensors of a batch, or the first error among them."""
    return next((item for item in items if isinstance(item, FacetrackError)), None) or default_collate(items)


def learning_rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then half a cosine down to zero, or the schedule's drops if it has some."""
    if step < schedule.warm_up:
        return schedule.learning_rate * (step + 1) / schedule.warm_up
    if schedule.drops:
        return schedule.learning_rate / math.prod(by for share, by in schedule.drops if step >= share * schedule.steps)
    done = (step - schedule.warm_up) / max(1, schedule.steps - schedule.warm_up)
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Run:
    """State of one training run and its folder.

    The folder holds checkpoint.pt, from which the run resumes; best.pt, whose "average" is the best network so far, or
    the newest (`schedule.keep`); log.jsonl, a line per validation; and the curves for TensorBoard.
    """

    def __init__(self, config: Config, objective: Objective, folder: Path) -> None:
        """Start a run, or resume it from the folder's checkpoint.

        Raises:
            ConfigError: the checkpoint is broken, belongs to another network or has other settings; a file named by
                `start` or `start_parts` is missing or does not fit; the network takes no crops of a side in
                `schedule.sizes`; `schedule.only` matches no parameter; or the batch cannot be divided equally among
                the processes.
        """
        self.config, self.objective, self.folder = config, objective, folder
        schedule = config.schedule
        check_equal_shares(schedule)
        torch.manual_seed(schedule.seed)
        self.device = device()
        self.net = objective.build().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        begin(self.net, config)
        if isinstance(self.net, nets.FromBytes):
            check_crop_sides(self.net, schedule)
        _freeze_all_but(self.net, schedule.only)
        self.average = copy.deepcopy(self.net).eval()
        if isinstance(objective, SelfConsistency):
            objective.teacher = self.average
        trained = [p for p in self.net.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim > 1]
        plain = [p for p in trained if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": schedule.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimiser = _optimiser(groups, schedule)
        self.step = 0
        self.best = math.inf
        self._means = StepMeans()
        self._validation_pending = False  # the validation of this step is still to be done
        self._purge: int | None = None  # from this step on TensorBoard's events are outdated
        self._known: tuple[int, int] | None = None
        self._load_checkpoint()

    def _load_checkpoint(self) -> None:
        """Load the folder's checkpoint, unless it is the one that this run read or wrote last."""
        path = self.folder / "checkpoint.pt"
        written = _written(path)
        if written in (None, self._known):
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            net, average, optimiser, settings = (state[name] for name in ("net", "average", "optimiser", "settings"))
            step, best, owed, means = state["step"], state["best"], state["owed"], StepMeans(**state["tally"])
        except LOAD_ERRORS as error:
            raise ConfigError(
                f"{path}: wanted a checkpoint of `facetrack train`, got: {error}; remove it, or choose another folder"
            ) from error
        refuse_other_settings(path, settings, settings_of(self.config))
        try:
            self.net.load_state_dict(net)
            self.average.load_state_dict(average)
            self.optimiser.load_state_dict(optimiser)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{path}: belongs to another network than the configuration's; choose another folder: {error}"
            ) from error
        self.step, self.best, self._validation_pending, self._means, self._known = step, best, owed, means, written
        self._purge = self.step if self._validation_pending else self.step + 1
        log.info("resumed at step %d, best %.4f", self.step, self.best)

    def save(self) -> None:
        """Write the checkpoint to a temporary file and swap, so that a kill leaves a complete file.

        Raises:
            SinkError: it cannot be written.
        """
        state = {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "best": self.best,
            "tally": self._means.state(),
            "owed": self._validation_pending,
            "settings": settings_of(self.config),
        }
        path = self.folder / "checkpoint.pt"
        _save(state, path)
        self._known = _written(path)

    def train(self, until: int | None = None, seconds: float = math.inf) -> None:
        """Run to the last step; validate, keep the best average, write checkpoints.

        Resumes from whatever another run has written into the folder since this object was made.

        Args:
            until: stop at this step instead of the last one.
            seconds: stop after this time, with a checkpoint; of several processes the first one's clock counts.
        Raises:
            ConfigError: another process trains in this folder; the processes see different folders; or the run
                diverges.
            SinkError: a checkpoint cannot be written, for example on a full disk; the one before it stays.
            SourceError: a picture turns out to be broken.
        """
        with lock_folder(self.folder):
            if rank_and_world()[1] > 1:
                dist.barrier()  # the first process holds the lock: from here on nobody else writes
            self._load_checkpoint()
            check_same_step(self.folder, self.step)
            if rank_and_world()[0] == 0:
                keep_lines(self.folder / LOG, self.step if self._validation_pending else self.step + 1)
                if self._validation_pending:
                    self._report()
            self._train(until, seconds)

    def pace(self, steps: int, skip: int) -> float:
        """Run `steps` more steps and return the steps per second, not counting the first `skip`.

        One-time costs are left out: starting processes, the GPU's search for its fastest algorithms, validation, and
        the checkpoint, which is left to `save`.

        Raises:
            ConfigError: another process trains in this folder.
        """
        with lock_folder(self.folder):
            self._load_checkpoint()
            ends = []
            for batch in batches(self.objective, self.config.schedule, self.step, self.step + steps):
                self._step(self.net, batch)
                ends.append(time.monotonic())
        return (steps - skip) / (ends[-1] - ends[skip - 1])

    def _train(self, until: int | None, seconds: float) -> None:
        schedule, (rank, world) = self.config.schedule, rank_and_world()
        # PropNet's last attention contributes to no loss
        wrapped = DistributedDataParallel(self.net, find_unused_parameters=True) if world > 1 else self.net
        end = schedule.steps if until is None else min(until, schedule.steps)
        told = time.monotonic()
        stop = told + seconds
        self._means.start_clock()
        for batch in batches(self.objective, schedule, self.step, end):
            self._means.add(self._step(wrapped, batch))
            over = is_time_up(stop)
            if rank == 0:
                if self._is_early() or self.step == end or self.step % schedule.validate_every == 0:
                    self._validation_pending = True
                    self.save()  # validation takes long and may fail
                    self._report()
                    told = time.monotonic()
                elif over or self.step % schedule.checkpoint_every == 0:
                    self.save()
                if time.monotonic() - told >= TOLD_EVERY_S:
                    told = time.monotonic()
                    self._log_progress()
            if over:
                return

    def _step(self, wrapped: nn.Module, batch: list[Tensor]) -> dict[str, float]:
        """Do one step of the optimiser and return the terms of the loss."""
        schedule, (rank, world) = self.config.schedule, rank_and_world()
        torch.manual_seed((schedule.seed * schedule.steps + self.step) * world + rank)
        wrapped.train()
        for module in self.net.modules() if schedule.only else ():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, schedule)
        batch = [values.to(self.device, non_blocking=True) for values in batch]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=schedule.bf16):
            loss, terms = self.objective.loss(wrapped, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if not nn.utils.clip_grad_norm_(self.net.parameters(), schedule.clip).isfinite():
            raise ConfigError(
                f"step {self.step}: the gradient is not finite, the run diverges; start again in another folder with "
                f"a lower schedule.learning_rate ({schedule.learning_rate:g}) or a longer schedule.warm_up "
                f"({schedule.warm_up})"
            )
        self.optimiser.step()
        self.step += 1
        self._update_average()
        return terms

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the exponential average towards the weights, faster at the beginning of a run."""
        keep = min(self.config.schedule.ema, (1 + self.step) / (10 + self.step))
        for old, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
            old.lerp_(new, 1 - keep)
        for old, new in zip(self.average.buffers(), self.net.buffers(), strict=True):
            old.copy_(new)

    def _is_early(self) -> bool:
        """Whether the validation after this step only checks that validation works, and keeps no average."""
        schedule = self.config.schedule
        return self.step == EARLY < min(schedule.validate_every, schedule.steps)

    def _rate_and_left(self) -> tuple[float, float]:
        """Pictures per second since the last validation, and the minutes left at this rate."""
        schedule, rate = self.config.schedule, self._means.rate()
        return rate * schedule.batch, (schedule.steps - self.step) / rate / 60

    def _log_progress(self) -> None:
        """Log the run's progress."""
        steps, (rate, left) = self.config.schedule.steps, self._rate_and_left()
        log.info("step %d of %d, %.1f pictures a second, %.1f minutes left", self.step, steps, rate, left)

    def _report(self) -> None:
        """Validate, log the means since the last validation, keep the best average, and save a checkpoint."""
        schedule, terms = self.config.schedule, self._means.means()
        rate, left = self._rate_and_left()  # before the validation takes time
        measured = self.objective.validate(self.average)
        first = next(iter(measured.values()))
        line = {
            "step": self.step,
            "rate": round(rate, 1),
            "left_min": round(left, 1),
            **_rounded(terms),
            "val": _rounded(measured),
        }
        self._show(terms, measured)
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", json.dumps(line))
        # of equal ones the newest: if only the face score learns (schedule.only) all are equal
        if not self._is_early() and (first <= self.best or schedule.keep == "last"):
            _save(
                {"average": self.average.state_dict(), "step": self.step, "val": measured},
                self.folder / "best.pt",
            )
            self.best = math.inf if math.isnan(first) else first  # of what best.pt holds; anything is better than NaN
        self._means, self._validation_pending = StepMeans(), False
        self._means.start_clock()
        self.save()

    def _show(self, terms: dict[str, float], measured: dict[str, float]) -> None:
        """Write curves and a picture of what the network finds, for TensorBoard."""
        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._purge) as writer:
            for group, values in (("loss", terms), ("validation", measured)):
                for name, value in values.items():
                    writer.add_scalar(f"{group}/{name}", value, self.step)
            picture = self.objective.picture(self.average)
            if picture is not None:
                rgb = picture[..., ::-1].copy()
                writer.add_image("validation", rgb, self.step, dataformats="HWC")
        self._purge = None


def _optimiser(groups: list[dict[str, Any]], schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW or SGD over groups of parameters with their weight decays."""
    if schedule.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=MOMENTUM)
    return torch.optim.AdamW(groups, lr=schedule.learning_rate)


def _freeze_all_but(net: nn.Module, only: str) -> None:
    """Freeze all parameters except those whose names begin with `only`.

    Raises:
        ConfigError: no parameter is left to train.
    """
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(only))
    if not any(p.requires_grad for p in net.parameters()):
        names = sorted({".".join(name.split(".")[:2]) for name, _ in net.named_parameters()})
        raise ConfigError(f"schedule.only: no parameter begins with {only!r}; there are {', '.join(names)}")


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 5) for key, value in values.items()}


def _written(path: Path) -> tuple[int, int] | None:
    """Identity of a checkpoint file, which differs for each one written; None if there is no file."""
    if not path.is_file():
        return None
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def _save(state: dict[str, Any], path: Path) -> None:
    """Write a file completely or not at all.

    Raises:
        SinkError: it cannot be written; on a full disk torch raises a RuntimeError.
    """
    part = path.with_suffix(".part")
    try:
        torch.save(state, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise SinkError(f"{part}: cannot be written: {reason}; make room, or choose another folder") from error


def train(config: Config, objective: Objective, folder: Path) -> None:
    """Train to the end, resuming from the folder's checkpoint if there is one; under torchrun with all processes.

    Raises:
        ConfigError: the folder's checkpoint belongs to another network or has other settings, or the batch cannot be
            divided equally among the processes.
    """
    _, world = rank_and_world()
    set_up_device()
    if world > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        Run(config, objective, folder).train()
    finally:
        if world > 1:
            dist.destroy_process_group()
