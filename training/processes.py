"""One training process among several, as torchrun starts them: its device, its share, what all must agree on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor

from ..tracker.errors import ConfigError
from .config import Schedule


def rank_and_world() -> tuple[int, int]:
    """This process's number and the number of processes, as torchrun sets them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def device() -> torch.device:
    """The device that this process trains on: its own GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def set_up_device() -> None:
    """On a GPU allow TF32 and the search for fast algorithms; on CPUs give each of several processes one thread."""
    if device().type == "cuda":
        torch.cuda.set_device(device())
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    elif rank_and_world()[1] > 1:
        torch.set_num_threads(1)


def check_equal_shares(schedule: Schedule) -> None:
    """Check that all processes get equally many pictures: gradients are averaged over processes, not over pictures.

    Raises:
        ConfigError: the batch cannot be divided equally.
    """
    _, world = rank_and_world()
    if schedule.batch % world:
        raise ConfigError(
            f"schedule.batch: wanted a multiple of the number of processes, got {schedule.batch} for {world}; "
            f"set schedule.batch={math.ceil(schedule.batch / world) * world}, or change the number of processes"
        )


def check_same_step(folder: Path, step: int) -> None:
    """Check that all processes resume from the same checkpoint, which the first process alone writes.

    Raises:
        ConfigError: they do not, because each host has a folder of its own.
    """
    _, world = rank_and_world()
    if world == 1:
        return
    own = torch.tensor(step, device=device())
    steps = [torch.zeros_like(own) for _ in range(world)]
    dist.all_gather(steps, own)
    if any(other != own for other in steps):
        told = ", ".join(str(int(other)) for other in steps)
        raise ConfigError(
            f"{folder}: wanted the checkpoint of one step in all processes, got those of steps {told}; "
            "--out must be one folder that all hosts share"
        )


def is_time_up(stop: float) -> bool:
    """Whether time is up by the first process's clock: a process that stopped alone would leave the others waiting."""
    over = time.monotonic() > stop
    if rank_and_world()[1] == 1 or math.isinf(stop):
        return over
    over_everywhere = torch.tensor(over, dtype=torch.uint8, device=device())
    dist.broadcast(over_everywhere, 0)
    return bool(over_everywhere)


def sum_over_processes(own: Tensor) -> Tensor:
    """The sum of a tensor over all processes; blocks until every process has called it."""
    if rank_and_world()[1] == 1:
        return own
    together = own.clone()
    dist.all_reduce(together)
    return together


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run's folder, because two runs would overwrite each other's checkpoints.

    Of several processes the first one holds the lock for all. The system releases it whenever the process ends.
    """
    rank, _ = rank_and_world()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        if rank == 0:
            lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{folder}: another process is training here; stop it or choose another folder") from None
    try:
        yield
    finally:
        lock.release()
