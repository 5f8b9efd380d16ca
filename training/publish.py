"""From a finished run to a card and weights that the program can use.

    python -m facetrack.training.publish CONFIG.toml RUN_FOLDER --data DIR --out DIR

writes DIR/cards/NAME.toml and, into DIR/weights, the best average of the run: of an alignment network NAME.onnx and
NAME.torch.npz, of BB-FCN the same of NAME-scan and NAME-refine. For BB-FCN the run is that of the branches, with the
best of the backbone's as backbone.pt beside its own best.pt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .alignment.publish import publish_aligner
from .command_line import errors_in_one_line
from .config import Config, load
from .detection.publish import publish_detector


def publish(config: Config, run: Path, data: Path, out: Path) -> Path:
    """Publish a run of any network.

    Args:
        config: of the run.
        run: its folder.
        data: root of the data sets, for the pictures that the card's figures are measured on.
        out: `cards` and `weights` are made in it.
    Returns:
        The card's path.
    Raises:
        BackendError: an exported network does not compute what torch does.
        ConfigError: this network is not published, as BB-FCN's backbone alone.
    """
    if config.network.name == "bbfcn":
        return publish_detector(config, run, data, out)
    return publish_aligner(config, run, data, out)


def main() -> None:
    """Read the arguments and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with errors_in_one_line("publish"):
        print(publish(load(given.config), given.run, given.data, given.out))


if __name__ == "__main__":
    main()
