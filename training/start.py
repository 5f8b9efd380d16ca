"""The weights that a run starts from: a whole network, or parts of it from several files.

Files are unpickled with `torch.load(weights_only=True)` alone, which accepts nothing but weights.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from ..engines.card import find_card
from ..engines.nets.imagenet import fold_normalisation, layers_of
from ..engines.torch_backend import read_state, torch_file
from ..tracker.errors import CardError, ConfigError
from .config import Config

COUNTER = "num_batches_tracked"  # of batch normalisation; old state dicts lack it, and nothing here reads it
# what torch.load raises on all kinds of damaged files, and what reading from its result raises
LOAD_ERRORS = (
    *(OSError, EOFError, LookupError, TypeError, ValueError, RuntimeError, AssertionError),
    *(BadZipFile, UnpicklingError, struct.error),
)
State = dict[str, Tensor]


def start_file(start: str) -> Path:
    """The weight file that a configuration's `start` or `start_parts` names, by its path or by a model's name.

    Raises:
        ConfigError: it is neither.
    """
    path = Path(start)
    if path.suffix in (".pt", ".pth", ".npz"):
        return path
    try:
        card = find_card(start, "align")
    except CardError as error:
        raise ConfigError(f"start: wanted a best.pt, a .torch.npz or a model's name: {error}") from error
    return torch_file(card.weights["net"].path)


def check_start_files(config: Config) -> None:
    """Check that the files which a run starts from exist, before anything else is done.

    Raises:
        ConfigError: one does not.
    """
    files = [("start", "the whole network", config.start)] if config.start else []
    files += [("start_parts", part, file) for part, file in config.start_parts]
    for setting, what, file in files:
        path = start_file(file)
        if not path.is_file():
            raise ConfigError(
                f"{setting}: {path}: not found; {what} starts from it; docs/training.md says where it comes from"
            )


def begin(net: nn.Module, config: Config) -> None:
    """Load the weights of the configuration's `start` and then of `start_parts` into an untrained network.

    Raises:
        ConfigError: a file is missing or does not fit.
    """
    check_start_files(config)
    if config.start:
        _load_whole(net, start_file(config.start))
    for part, file in config.start_parts:
        _load_part(net, part.rstrip(".") + ".", start_file(file))


def _load_whole(net: nn.Module, path: Path) -> None:
    """Load the averaged weights of a run, from its best.pt or from a published NAME.torch.npz."""
    try:
        state, ours = _read(path)
        if not ours:
            raise KeyError("average")
        net.load_state_dict(state)
    except LOAD_ERRORS as error:
        raise ConfigError(f"start: {path} is not a best.pt or .torch.npz of this network: {error}") from error


def _load_part(net: nn.Module, part: str, path: Path) -> None:
    """Load all weights whose names begin with `part`: by name from a file of ours, else from torchvision's layers."""
    own = {name.removeprefix(part): value for name, value in net.state_dict().items() if name.startswith(part)}
    if not own:
        parts = sorted({".".join(name.split(".")[:2]) + "." for name in net.state_dict()})
        raise ConfigError(f"start_parts: nothing in the network begins with {part!r}; there are {', '.join(parts)}")
    try:
        state, ours = _read(path)
        found = _same_names(state, part) if ours else _published(state, own)
        refuse_others(own, found)
        found = found if ours else fold_normalisation(found)
    except LOAD_ERRORS as error:
        raise ConfigError(f"start_parts: {path} has no {part} of this network: {error}") from error
    net.load_state_dict({part + name: value for name, value in found.items()}, strict=False)


def _read(path: Path) -> tuple[State, bool]:
    """The weights in a file, and whether they belong to a network of ours; from a run's file the averaged ones."""
    if path.suffix == ".npz":
        return {name: torch.from_numpy(values) for name, values in read_state(path)[0].items()}, True
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    return (loaded["average"], True) if "average" in loaded else (loaded, False)


def _same_names(state: Mapping[str, Tensor], part: str) -> State:
    return {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}


def _published(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> State:
    """Torchvision's layers under the names that the part uses; layers that it does not have are left out."""
    return {name: value for name, value in own.items() if name.endswith(COUNTER)} | layers_of(state, own)


def refuse_others(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Check that both have the same names and shapes.

    Raises:
        ValueError: they differ; says in which.
    """
    told = {
        "lacks": [name for name in own if name not in found],
        "does not know": [name for name in found if name not in own],
        "needs other sizes of": [n for n in own if n in found and own[n].shape != found[n].shape],
    }
    texts = [f"it {what} {_few(names)}" for what, names in told.items() if names]
    if texts:
        raise ValueError("; ".join(texts))


def _few(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
