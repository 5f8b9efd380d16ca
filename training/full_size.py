"""Train the full-size networks on a borrowed GPU in one resumable command: from tar files to weights and figures.

    python -m facetrack.training.full_size --tars DIR --work DIR --out DIR --minutes 9 [NAME ...]

unpacks the data, trains the networks one after the other, publishes each finished one as ONNX with its card, labels
the unlabelled faces with the best of them and trains the CPU's default on those labels, too (distillation). It stops
when its minutes are over and resumes when it is called again with the same --work. Work that takes long and cannot be
interrupted, such as publishing, is not begun in a call's last minutes. Results are left in --out in pieces small enough
to transfer; `cat NAME.onnx.* > NAME.onnx` joins them. docs/engines.md has the commands for half an hour in three calls,
with less data than the configurations name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..engines.card import read_card
from ..pipeline.open import Choices
from .command_line import add_overrides, errors_in_one_line
from .config import Config, Corpus, load
from .objectives import open_objective
from .processes import set_up_device
from .publish import publish
from .relabel import relabel
from .train import Run

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent / "configs"
TEACHERS = ("tab-68", "propnet-68", "gv-resnet50-68", "span-68")  # in this order
STUDENT = "gv-mobilenetv3-68"
PSEUDO = ("yt68", "unlabelled")  # data folders that the best network labels, into `pseudo`
PSEUDO_SHARE = 0.3  # of their faces in the student's mixture, if its configuration names no such corpus
PROBE_STEPS = 150  # to measure a network's speed; the first third uses up what the workers have drawn ahead
VALIDATIONS = 6  # in a network's training; each takes seconds in which the GPU waits
PUBLISH_S = 150.0  # exporting and measuring a full-size network: half a minute and 580 runs, estimated for 16 cores
PROBE_S = 60.0  # with less time left a network's speed is not measured, because that cannot be interrupted
WORKERS = 14  # processes that draw items, on 16 cores; as in the teachers' configurations
PIECE = 15 * 2**20  # bytes
PIECES, TOGETHER = 7, 60 * 2**20  # most pieces per call, and most bytes of them together


@dataclass(frozen=True, slots=True)
class Campaign:
    """Folders and time limits.

    Attributes:
        tars: folder of the data sets' tar files.
        work: folder of everything that must be kept from one call to the next.
        out: folder of the results, which the caller empties.
        train_minutes: how long one network is trained, over all calls.
        ends: `time.monotonic` when this call must be over.
        overrides: settings that override those of every configuration.
    """

    tars: Path
    work: Path
    out: Path
    train_minutes: float
    ends: float
    overrides: tuple[str, ...] = ()

    @property
    def data(self) -> Path:
        """The unpacked data sets."""
        return self.work / "data"

    @property
    def left_s(self) -> float:
        """Seconds until this call must be over."""
        return self.ends - time.monotonic()


def unpack(campaign: Campaign) -> None:
    """Unpack every tar file once."""
    for tar in sorted(campaign.tars.glob("*.tar")):
        done = campaign.data / f".{tar.stem}"
        if not done.exists():
            with tarfile.open(tar) as archive:
                archive.extractall(campaign.data, filter="data")
            done.touch()


def train(campaign: Campaign, name: str, config: Config) -> bool:
    """Train one network for its share of the time; True when it is finished.

    A few steps measure its speed first. The number of steps that follows from it is kept for later calls.
    """
    folder = campaign.work / name
    objective = open_objective(config, campaign.data, folder)
    known = folder / "steps"
    set_up_device()
    if not known.is_file():
        if campaign.left_s < PROBE_S:
            return False
        rate = Run(config, objective, folder).pace(PROBE_STEPS, skip=PROBE_STEPS // 3)
        steps = max(2 * PROBE_STEPS, math.floor(rate * campaign.train_minutes * 60))
        known.write_text(str(steps), encoding="ascii")
        log.info("%s: %.1f steps a second, %d steps", name, rate, steps)
    steps = int(known.read_text(encoding="ascii"))
    every = max(steps // VALIDATIONS, 1)
    schedule = replace(config.schedule, steps=steps, validate_every=every)
    run = Run(replace(config, schedule=schedule), objective, folder)
    run.train(seconds=campaign.left_s)
    return run.step == steps


def pseudo_labelled(campaign: Campaign) -> list[str]:
    """Folders below the data, relative to it, that hold labels by the best network."""
    folders = [f"pseudo/{folder}" for folder in PSEUDO]
    return [folder for folder in folders if any((campaign.data / folder).rglob("*.pts"))]


def student_config(campaign: Campaign) -> Config:
    """The default network's configuration, with pseudo-labelled faces instead of the machine-made labels."""
    config = load(CONFIGS / f"{STUDENT}.toml", (f"schedule.workers={WORKERS}", *campaign.overrides))
    corpora = tuple(corpus for corpus in config.corpora if corpus.path not in PSEUDO)
    replaced = sum(corpus.weight for corpus in config.corpora if corpus.path in PSEUDO)
    share = replaced or PSEUDO_SHARE * sum(corpus.weight for corpus in corpora) / (1 - PSEUDO_SHARE)
    folders = pseudo_labelled(campaign)
    taught = tuple(Corpus(folder, weight=share / len(folders)) for folder in folders)
    return replace(config, corpora=corpora + taught)


def best_teacher(campaign: Campaign) -> str:
    """The published network with the lowest error in ground-truth boxes."""
    cards = [read_card(path) for path in sorted((campaign.work / "published" / "cards").glob("*.toml"))]
    return min(cards, key=lambda card: next(iter(card.measured.values()))).name


def teach(campaign: Campaign) -> bool:
    """Write the pseudo-labels of the best network, each once; True when all pictures are done."""
    os.environ["FACETRACK_HOME"] = str(campaign.work / "published")
    teacher = best_teacher(campaign)
    choices = Choices(model=teacher, backend="torch:cuda" if torch.cuda.is_available() else "auto")
    for folder in PSEUDO:
        target = campaign.data / "pseudo" / folder
        done = target.with_name(f".{folder}")
        if (campaign.data / folder).is_dir() and not done.exists():
            asymmetry = load(CONFIGS / f"{teacher}.toml", campaign.overrides).geometry.asymmetry
            found = relabel(campaign.data / folder, target, choices, asymmetry=asymmetry, ends=campaign.ends)
            if not found.finished:
                return False
            log.info("%s labels %d of %d pictures of %s", teacher, found.written, found.seen, folder)
            done.touch()
    return True


def ship(campaign: Campaign) -> None:
    """Write the next pieces of finished files into `out`, each once, and the progress of the rest."""
    campaign.out.mkdir(parents=True, exist_ok=True)
    (campaign.work / "shipped").mkdir(parents=True, exist_ok=True)
    count = size = 0
    for name, mark, content in _pieces(campaign):
        count, size = count + 1, size + len(content)
        if count > PIECES or size > TOGETHER:
            break
        (campaign.out / name).write_bytes(content)
        mark.touch()
    logs = {path.parent.name: path.read_text("utf-8").splitlines()[-1:] for path in campaign.work.glob("*/log.jsonl")}
    (campaign.out / "progress.json").write_text(json.dumps(logs, indent=1), encoding="utf-8")


def _pieces(campaign: Campaign) -> Iterator[tuple[str, Path, bytes]]:
    """Name, mark and content of every piece that is still to be written; `ship` creates the mark when it is."""
    for path in sorted((campaign.work / "published").glob("*/*")):
        content = path.read_bytes()
        sha = hashlib.sha256(content).hexdigest()[:16]
        for number, start in enumerate(range(0, len(content), PIECE)):
            mark = campaign.work / "shipped" / f"{path.name}.{sha}.{number}"
            if not mark.exists():
                yield f"{path.name}.{number:02d}", mark, content[start : start + PIECE]


def run(campaign: Campaign, names: tuple[str, ...]) -> bool:
    """Do what is left to do; True when nothing more can be done with the available data."""
    unpack(campaign)
    for name in (*names, STUDENT):
        card = campaign.work / "published" / "cards" / f"{name}.toml"
        if card.is_file():
            continue
        if campaign.left_s <= 0 or (name == STUDENT and not teach(campaign)):
            return False
        if name == STUDENT and not any((campaign.data / folder).is_dir() for folder in PSEUDO):
            log.info("%s waits for pictures to label: %s", name, " or ".join(PSEUDO))
            return True
        config = student_config(campaign) if name == STUDENT else load(CONFIGS / f"{name}.toml", campaign.overrides)
        if not train(campaign, name, config) or campaign.left_s < PUBLISH_S:
            return False
        publish(config, campaign.work / name, campaign.data, campaign.work / "published")
    return True


def main() -> None:
    """Read the arguments and do the work of one call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", default=TEACHERS, metavar="NAME", help=f"networks to train, of {', '.join(TEACHERS)}"
    )
    for name in ("tars", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="minutes that this call may take")
    parser.add_argument("--train-minutes", type=float, default=7.0, help="minutes of training for each network")
    add_overrides(parser)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    ends = time.monotonic() + 60 * given.minutes
    campaign = Campaign(given.tars, given.work, given.out, given.train_minutes, ends, tuple(given.overrides))
    try:
        with errors_in_one_line("full_size"):
            print("finished" if run(campaign, tuple(given.names)) else "call again")
    finally:
        ship(campaign)


if __name__ == "__main__":
    main()
