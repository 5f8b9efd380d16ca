"""Make a card and weights that facetrack can use from a finished run.

    python -m facetrack.training.publish CONFIG.toml RUN_FOLDER --data DIR --out DIR [--set A.B=C]

writes DIR/cards/NAME.toml and, into DIR/weights, the best average of the run: NAME.onnx and NAME.torch.npz for an
alignment network, the same two files for each of NAME-scan and NAME-refine for BB-FCN. For BB-FCN, RUN_FOLDER is the
run of the branches, with the best.pt of the backbone's run as backbone.pt beside its own best.pt. `--set` changes a
setting of the file, as for `facetrack train`; repeat here what the run was started with.

    python -m facetrack.training.publish CONFIG.toml --data DIR --out DIR

without a run measures an existing card again, including the 8-bit files that `facetrack calibrate int8 --for-cpu` has
added to it since. Nothing but its figures changes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..engines.card import read_card
from ..engines.card_text import card_path
from .alignment.publish import aligner_figures, publish_aligner
from .command_line import add_overrides, errors_in_one_line
from .config import Config, load
from .detection.publish import detector_figures, publish_detector
from .evaluation.card_figures import write_figures


def publish(config: Config, run: Path, data: Path, out: Path) -> Path:
    """Publish a run of any network.

    Args:
        config: of the run.
        run: its folder.
        data: root of the data sets, for the pictures that the card's figures are measured on.
        out: gets the folders `cards` and `weights`.
    Returns:
        The card's path.
    Raises:
        BackendError: an exported network does not compute what torch does.
        ConfigError: this network cannot be published (BB-FCN's backbone alone), or the run belongs to another network
            or card.
    """
    if config.detects:
        return publish_detector(config, run, data, out)
    return publish_aligner(config, run, data, out)


def measure_again(config: Config, data: Path, out: Path) -> Path:
    """Measure the files of a published card again, and replace its figures.

    Args:
        config: of the card's run.
        data: root of the data sets.
        out: folder of `cards` and `weights`.
    Returns:
        The card's path.
    Raises:
        CardError: the card or its weights are missing.
        SourceError: the pictures are missing or broken.
    """
    card = read_card(card_path(config.card.name, out))
    figures = detector_figures if card.task == "detect" else aligner_figures
    return write_figures(card, figures(card, config, data), out)


def main() -> None:
    """Read the arguments and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path, nargs="?", help="without it the card in OUT is measured again")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    add_overrides(parser)
    given = parser.parse_args()
    with errors_in_one_line("publish"):
        config = load(given.config, given.overrides)
        if given.run is None:
            print(measure_again(config, given.data, given.out))
        else:
            print(publish(config, given.run, given.data, given.out))


if __name__ == "__main__":
    main()
