"""Open the objective that a configuration names, and run it: `facetrack train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..engines import nets
from ..tracker.errors import ConfigError
from ..tracker.types import UInt8
from .alignment.networks import ALIGNMENTS, open_alignment
from .config import DETECTORS, Config, load
from .detection.objectives import BackboneDetection, BranchRefinement
from .finished import load_average
from .processes import check_equal_shares, lock_folder
from .span import SelfConsistency
from .start import check_start_files
from .train import Objective, train


def run_config(config_path: Path, data: Path, out: Path, overrides: Sequence[str] = ()) -> None:
    """Train what a configuration file describes: `facetrack train`.

    Args:
        config_path: TOML file.
        data: root folder of the file's corpora, negatives and validation.
        out: folder of the run; a checkpoint in it is resumed.
        overrides: `key.key=value` settings that override the file's.
    Raises:
        ConfigError: a setting is unknown, cannot work or differs from the checkpoint's; a file that the network starts
            from is missing; or another process trains in `out` (checked before the data is read).
        SourceError: a folder of data is missing or broken.
    """
    config = load(config_path, overrides)
    check_equal_shares(config.schedule)  # before the data is read
    check_start_files(config)
    with lock_folder(out):
        objective = open_objective(config, data, out)
    train(config, objective, out)


def open_objective(config: Config, data: Path, out: Path) -> Objective:
    """The objective of the configured network.

    BB-FCN as a detector is trained in two runs. The first, of "bbfcn-backbone", also learns from false alarms if some
    have been mined into `out`/hard*.npz (an array "crops", (n, s, s, 3) uint8). The second, of "bbfcn", trains the
    branches on top of the first run's best.pt, which it expects as `out`/backbone.pt.

    Raises:
        ConfigError: no objective trains this network, or the backbone is missing, broken or another network.
    """
    name = config.network.name
    if name in ALIGNMENTS and not config.detects:
        consistent = config.consistency.weight > 0 or config.consistency.labels < 1
        return SelfConsistency(config, data) if consistent else open_alignment(config, data)
    if name not in DETECTORS:
        trained = ", ".join(dict.fromkeys((*ALIGNMENTS, *DETECTORS)))
        raise ConfigError(f"network.name: there is no training for {name!r}; wanted one of {trained}")
    if name == "bbfcn-backbone":
        return BackboneDetection(config, data, _false_alarms(out))
    backbone = out / "backbone.pt"
    if not backbone.is_file():
        raise ConfigError(f"{backbone}: not found; wanted the best.pt of a finished run of bbfcn-backbone")
    scan = nets.FromBytes(nets.build("bbfcn-backbone", config.network.landmarks))
    load_average(scan, backbone)
    return BranchRefinement(config, data, _false_alarms(out), scan.state_dict())


def _false_alarms(folder: Path) -> list[UInt8]:
    return [crop for path in sorted(folder.glob("hard*.npz")) for crop in np.load(path)["crops"]]
