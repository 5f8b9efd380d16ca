"""The face score of a network for landmarks, learnt anew from many more crops than a training has time for.

    python -m facetrack.training.face_score CONFIG.toml RUN --data DIR [--set A.B=C]

The rest of the network stays as `start` of the configuration says, so what its score sees of each crop is computed once
and learnt from again and again: the crops of `schedule.steps` batches, `negative_share` of them without a face. Writes
RUN/best.pt, to be published like that of a training.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.nets.blocks import FaceScore
from ..tracker.errors import ConfigError
from .alignment.objective import FACE, QUALITY, Alignment
from .command_line import add_overrides, errors_in_one_line
from .config import Config, load
from .objectives import open_objective
from .start import begin
from .train import batches

log = logging.getLogger(__name__)

PRIOR = 0.75  # share of faces among the crops that `presence` is a probability for, however many there were here
HELD_OUT = 10  # one crop in so many is kept out, to say how good the score is
EPOCHS, BATCH, RATE, DECAY = 40, 512, 3e-3, 1e-3


@dataclass(frozen=True, slots=True)
class Looks:
    """What the score of a network sees of N crops, and what it should say.

    Attributes:
        features: (N, C) means of the coarsest maps.
        is_face: (N,) 1.0 where a crop shows a face.
        quality: (N,) 1.0 where it does and the network's landmarks of it are right.
    """

    features: Tensor
    is_face: Tensor
    quality: Tensor

    def of(self, chosen: Tensor) -> Looks:
        """Those of some crops."""
        return Looks(self.features[chosen], self.is_face[chosen], self.quality[chosen])


def score_of(net: nn.Module) -> FaceScore:
    """The part of a network that scores faces.

    Raises:
        ConfigError: it has none.
    """
    for module in net.modules():
        if isinstance(module, FaceScore):
            return module
    raise ConfigError("face_score: the network scores no faces; wanted network.options.face_score = true")


@torch.inference_mode()
def look_at(net: nn.Module, objective: Alignment, crops: Iterable[list[Tensor]]) -> Looks:
    """Show batches of an objective's items to a network in evaluation mode."""
    seen: list[Tensor] = []
    hook = score_of(net).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((2, 3))))
    told, right = [], []
    for pictures, xy, is_face, *_ in crops:
        place = torch.from_numpy(objective.decoded(net(pictures)))
        quality = torch.zeros_like(is_face)
        shows = is_face > 0
        if shows.any():
            quality[shows] = objective.quality(place[shows], xy[shows])[0]
        told.append(is_face)
        right.append(quality)
    hook.remove()
    return Looks(torch.cat(seen), torch.cat(told), torch.cat(right))


def fit(score: FaceScore, looks: Looks, seed: int = 0) -> None:
    """Learn a score from nothing, for crops of which `PRIOR` show a face."""
    generator = torch.Generator().manual_seed(seed)
    mean, spread = looks.features.mean(0), looks.features.std(0) + 1e-6
    with torch.no_grad():
        for parameter in score.parameters():
            reach = parameter.shape[-1] ** -0.5
            parameter.uniform_(-reach, reach, generator=generator)
    features = (looks.features - mean) / spread
    steps = EPOCHS * -(-len(features) // BATCH)
    optimiser = torch.optim.AdamW(score.parameters(), RATE, weight_decay=DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(features), (BATCH,), generator=generator)
        logits = score.of_means(features[chosen])
        wanted = torch.stack((looks.is_face[chosen], looks.quality[chosen]), 1)
        face, quality = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(0)
        optimiser.zero_grad()
        (FACE * face + QUALITY * quality).backward()
        optimiser.step()
        rates.step()
    with torch.no_grad():
        score.hidden.weight.div_(spread)
        score.hidden.bias.sub_(score.hidden.weight @ mean)
        share = looks.is_face.mean()
        score.logits.bias[0] += math.log(PRIOR / (1 - PRIOR)) - float(torch.logit(share))


@torch.inference_mode()
def judge(score: FaceScore, looks: Looks) -> dict[str, float]:
    """Percent of what is sure enough to be a new face and to go on as one, of faces found right and of what is none."""
    presence = score.of_means(looks.features)[:, 0].sigmoid()
    found = {}
    for least in (0.99, 0.85):
        found[f"faces at {least}"] = float((presence[looks.quality > 0] >= least).float().mean() * 100)
        found[f"false ones at {least}"] = float((presence[looks.is_face == 0] >= least).float().mean() * 100)
    return {name: round(value, 3) for name, value in found.items()}


def learn_face_score(config: Config, data: Path, run: Path) -> dict[str, dict[str, float]]:
    """Write the network with its new score as best.pt; see the module.

    Returns:
        What the score was worth before and after, on crops that it did not learn from.
    Raises:
        ConfigError: the network scores no faces, or the configuration cannot be trained.
        SourceError: a folder of data is missing or broken.
    """
    objective = open_objective(config, data, run)
    if not isinstance(objective, Alignment):
        raise ConfigError(f"face_score: wanted a configuration of a network for landmarks, got {config.network.name}")
    net = objective.build()
    begin(net, config)
    net.eval()
    score = score_of(net)
    looks = look_at(net, objective, batches(objective, config.schedule, 0, config.schedule.steps))
    held_out = torch.arange(len(looks.features)) % HELD_OUT == 0
    before = copy.deepcopy(score)
    fit(score, looks.of(~held_out), config.schedule.seed)
    worth = {"before": judge(before, looks.of(held_out)), "after": judge(score, looks.of(held_out))}
    run.mkdir(parents=True, exist_ok=True)
    torch.save({"average": net.state_dict(), "step": config.schedule.steps, "val": worth["after"]}, run / "best.pt")
    return worth


def main() -> None:
    """Read the arguments and learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    add_overrides(parser)
    arguments = parser.parse_args()
    with errors_in_one_line("face_score"):
        config = load(arguments.config, arguments.overrides)
        print(json.dumps(learn_face_score(config, arguments.data, arguments.run), indent=2))


if __name__ == "__main__":
    main()
