"""Mine hard negatives: crops of what a half-trained backbone takes for faces in pictures without faces.

    python -m facetrack.training.detection.mining CONFIG.toml RUN_FOLDER --data DIR [--set A.B=C]

scans the configuration's pictures without faces and writes RUN_FOLDER/hardN.npz, from which the run learns as soon as
it is resumed. Look at the crops: list pictures with people among the negatives in `people` of the configuration.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...engines import nets
from ...engines.card import ModelCard
from ...engines.detector import Detector, DetectorSettings
from ...engines.torch_backend import TorchBackend
from ...tracker.geometry import CropTransform
from ...tracker.types import UInt8
from ..command_line import add_overrides, errors_in_one_line
from ..config import Config, load
from ..finished import check_own_settings, load_average
from ..negatives import faceless
from .objectives import held_out

CROP = 128  # side of a mined crop, pixels
SHOWN = 3.0  # sides of the supposed face that a crop shows
LOUD = 1.6  # lowest sum of the five responses; a real face has 4 to 5
MOST = 6  # crops of one picture
# Calibration of the score before anything was fitted: the sum of the responses, less the misfit.
UNFITTED = {"scan": [1.0] * 5 + [-0.6, 0.0, 0.0, -3.0], "refine": [0.0] * 13, "second_look": 0.0}


def draft_card(config: Config) -> ModelCard:
    """A card for a network that is still being trained: how it is used, but no weights and nothing fitted."""
    return ModelCard(
        name=config.card.name,
        network="bbfcn",
        task="detect",
        markup="five5",
        size=(64, 64),
        box_scale=64 / 44,
        codec={"kind": "discs", "face_px": 15.0, "peak": 0.3},
        weights={},
        parameters=0,
        gmac=0.0,
        data=config.card.data,
        licence=config.card.licence,
        measured={},
        calibration=UNFITTED,
    )


def mine(detector: Detector, pictures: Iterable[UInt8]) -> list[UInt8]:
    """Crops (128, 128, 3); the middle third of each shows what the scan took for a face."""
    crops = []
    for bgr in pictures:
        found, _ = detector.scan(bgr)
        loudness = np.minimum(found.responses, 1.0).sum(1) * (1 - 2 * found.residual)
        for i in np.flatnonzero(loudness > LOUD)[:MOST]:
            x, y = (float(v) for v in found.centre[i])
            crops.append(CropTransform.around((x, y), SHOWN * float(found.side[i]), CROP).crop(bgr))
    return crops


def mine_for_run(config: Config, run: Path, data: Path) -> Path:
    """Mine with a run's newest average and write the next hardN.npz (array "crops") into its folder.

    Raises:
        ConfigError: the checkpoint is missing, or belongs to another network.
        SourceError: a folder of data is missing or broken.
    """
    check_own_settings(config, run)
    net = nets.FromBytes(nets.build(config.network.name, config.network.landmarks))
    load_average(net, run / "checkpoint.pt")
    backend = TorchBackend(net.eval())
    detector = Detector(draft_card(config), backend, backend, DetectorSettings(min_face=22))
    crops = mine(detector, (s.bgr() for s in faceless(config, data) if not held_out(s)))
    path = run / f"hard{1 + len(list(run.glob('hard*.npz')))}.npz"
    np.savez_compressed(path, crops=np.array(crops, np.uint8).reshape(-1, CROP, CROP, 3))
    return path


def main() -> None:
    """Read the arguments and mine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    add_overrides(parser)
    arguments = parser.parse_args()
    with errors_in_one_line("mining"):
        print(mine_for_run(load(arguments.config, arguments.overrides), arguments.run, arguments.data))


if __name__ == "__main__":
    main()
