"""Read the files of a run, to publish its network or to mine false alarms with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..tracker.errors import ConfigError
from .config import Config
from .settings import refuse_other_settings, settings_of
from .start import LOAD_ERRORS, refuse_others

ADVICE = "repeat the run's --set, or name the configuration that it was started with"
NETWORK = ("network.name", "network.landmarks", "network.options")
# how the output is decoded, and whether the second of two runs was done; not the loss weights
DECODING = ("vectors.label", "vectors.sigma", "vectors.peak", "vectors.tau", "maps.sigma", "maps.reach", "maps.frozen")


def load_average(net: nn.Module, path: Path) -> None:
    """Load the averaged weights of a best.pt or checkpoint.pt into a network on the CPU, whatever device trained them.

    Raises:
        ConfigError: the file is missing, was not written by a run, or belongs to another network.
    """
    average = _read(path, "average")
    try:
        refuse_others(net.state_dict(), average)
    except ValueError as error:
        raise ConfigError(f"{path}: belongs to another network than the configuration's: {error}; {ADVICE}") from error
    net.load_state_dict(average)


def check_own_settings(config: Config, run: Path) -> None:
    """Check by a run's checkpoint.pt, if there is one, that it trained this network and would get this card.

    Schedule, training data, loss weights and the texts in `card` are not compared.

    Raises:
        ConfigError: the run had other settings; names those that differ.
    """
    path = run / "checkpoint.pt"
    if not path.is_file():
        return
    old, new = (_of_card(settings, config) for settings in (_read(path, "settings"), settings_of(config)))
    refuse_other_settings(path, old, new, ADVICE)


def _read(path: Path, part: str) -> dict[str, Any]:
    """One part of a file that a run has written.

    Raises:
        ConfigError: the file is missing, or was not written by a run.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True)[part])
    except LOAD_ERRORS as error:
        raise ConfigError(f"{path}: wanted a file of a run of `facetrack train`, got: {error}") from error


def _of_card(settings: dict[str, Any], config: Config) -> dict[str, Any]:
    """The settings of a run that the card for `config` depends on; for a detector those of the network alone."""
    crops = () if config.card.box_scale else ("geometry.box_scale",)
    names = NETWORK if config.detects else (*NETWORK, *DECODING, *crops)
    wanted = {name: settings[name] for name in names if name in settings}
    if "schedule.sizes" in settings and not config.detects:
        wanted["the last of schedule.sizes"] = settings["schedule.sizes"][-1][1]
    return wanted
