"""What a run has left, for those who use its network: published, or mined with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..tracker.errors import ConfigError
from .config import Config
from .settings import refuse_other_settings, settings_of
from .start import BROKEN, refuse_others

ADVICE = "repeat the run's --set, or name the configuration that it was begun with"
NETWORK = ("network.name", "network.landmarks", "network.options")
# how an answer is decoded, and that the second of two runs was made; not the weights of the losses
DECODING = ("vectors.label", "vectors.sigma", "vectors.peak", "vectors.tau", "maps.sigma", "maps.reach", "maps.frozen")


def load_average(net: nn.Module, path: Path) -> None:
    """Give a network on the CPU the averaged weights in a best.pt or checkpoint.pt, wherever the run computed.

    Raises:
        ConfigError: the file is missing, none of a run, or of another network.
    """
    average = _read(path, "average")
    try:
        refuse_others(net.state_dict(), average)
    except ValueError as error:
        raise ConfigError(f"{path}: of another network than the configuration's: {error}; {ADVICE}") from error
    net.load_state_dict(average)


def demand_own_settings(config: Config, run: Path) -> None:
    """See that a run was of this network and would get this card, as far as its folder says: by its checkpoint.pt.

    How long, how fast, on what and by which losses it was trained is not compared, nor what `card` says.

    Raises:
        ConfigError: it was another; names what differs.
    """
    path = run / "checkpoint.pt"
    if not path.is_file():
        return
    old, new = (_of_card(settings, config) for settings in (_read(path, "settings"), settings_of(config)))
    refuse_other_settings(path, old, new, ADVICE)


def _read(path: Path, part: str) -> dict[str, Any]:
    """A part of what a run has written into a file.

    Raises:
        ConfigError: it is missing, or none of a run.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True)[part])
    except BROKEN as error:
        raise ConfigError(f"{path}: wanted a file of a run of `facetrack train`, got: {error}") from error


def _of_card(settings: dict[str, Any], config: Config) -> dict[str, Any]:
    """Those settings of a run on which the card that `config` asks for depends; of a detector the network alone."""
    crops = () if config.card.box_scale else ("geometry.box_scale",)
    names = NETWORK if config.detects else (*NETWORK, *DECODING, *crops)
    wanted = {name: settings[name] for name in names if name in settings}
    if "schedule.sizes" in settings and not config.detects:
        wanted["the last of schedule.sizes"] = settings["schedule.sizes"][-1][1]
    return wanted
