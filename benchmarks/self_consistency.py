"""What self-consistency is worth when there are few labels: the same training with and without it.

    python benchmarks/self_consistency.py --data DATA --out FOLDER [--seeds 0 1 2] [--labels 0.1 0.25 1.0]

For every share of the labels and every seed a compact TAB on small crops is trained from scratch on the labelled
photographs alone. It is then trained further twice, for the same number of steps: once on the same photographs, and
once with as many more pictures in every step whose labels are not used. These are the photographs whose labels are held
out, further faces (DATA/pseudo/unlabelled, made from DATA/unlabelled by `training.relabel`), and turned ones
(DATA/turned; the test uses DATA/lfpw-turned; both are made by `training.turned`). Their labels are the landmarks that
the network's average finds in calmer crops (`consistency.teacher`). Annotations are mirrored as they are
(`geometry.asymmetry` 0). Interrupted runs resume. The table is written to FOLDER/table.md after each run, and printed
at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from short_trainings import Bench, Figures, asking

from facetrack.training.config import Config, Consistency, Corpus, Expressions, load

CONFIG = Path(__file__).parents[1] / "training" / "configs" / "tab-compact-68.toml"
LABELLED = ("helen/trainset", "lfpw/trainset", "afw")
UNLABELLED = ("pseudo/unlabelled/helen256", "pseudo/unlabelled/aflw2000", "pseudo/unlabelled/utkface", "turned")
TESTS = {"LFPW test": "lfpw/testset", "LFPW test, turned by 25-70 degrees": "lfpw-turned"}
SIDE, PAIRS = 64, 24
NETWORK = {"stacks": 1, "width": 32, "finest": 32, "face_score": True}
STEPS = {"base": 2000, "without": 1000, "with": 1000}
RATE = {"base": 2.5e-3, "without": 1.5e-3, "with": 1.5e-3}
WEIGHT = 1.0  # of one of the average's labels relative to an annotator's


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the table."""

    labels: float
    seed: int
    arm: str

    @property
    def folder(self) -> str:
        return f"{self.labels:g}-{self.seed}-{self.arm}"


def configuration(cell: Cell, out: Path) -> Config:
    """The settings of one run."""
    config, arm = load(CONFIG), cell.arm
    schedule = replace(
        config.schedule,
        steps=STEPS[arm],
        batch=PAIRS * (2 if arm == "with" else 1),
        sizes=((0.0, SIDE),),
        learning_rate=RATE[arm],
        bf16=False,
        warm_up=50,
        ema=0.995,
        validate_every=10_000,
        seed=cell.seed,
    )
    consistency = Consistency(labels=cell.labels, share=0.0)
    if arm == "with":
        others = tuple(Corpus(path) for path in UNLABELLED)
        consistency = replace(consistency, share=0.5, unlabelled=others, weight=WEIGHT, teacher="average")
    start = "" if arm == "base" else str(out / replace(cell, arm="base").folder / "best.pt")
    corpora = tuple(Corpus(path) for path in LABELLED)
    config = replace(config, geometry=replace(config.geometry, asymmetry=0.0), expressions=Expressions())
    config = replace(config, network=replace(config.network, options=NETWORK))
    return replace(config, corpora=corpora, schedule=schedule, consistency=consistency, start=start)


def table(figures: dict[Cell, Figures]) -> str:
    """Means and standard deviations over the seeds, and the gain."""
    lines = ["| labels | test | seeds | without | with | gain |", "|---|---|---|---|---|---|"]
    for labels, test in product(sorted({cell.labels for cell in figures}), TESTS):
        seeds = [
            seed
            for seed in sorted({cell.seed for cell in figures})
            if all(Cell(labels, seed, arm) in figures for arm in ("without", "with"))
        ]
        if not seeds:
            continue
        arms = [[figures[Cell(labels, seed, arm)][test] for seed in seeds] for arm in ("without", "with")]
        before, after = (f"{np.mean(values):.2f} ± {np.std(values):.2f}" for values in arms)
        gain = 100 * (1 - np.mean(arms[1]) / np.mean(arms[0]))
        lines.append(f"| {100 * labels:g} % | {test} | {len(seeds)} | {before} | {after} | {gain:+.1f} % |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, train what is missing and print the table."""
    parser = asking(__doc__, seeds=[0, 1, 2])
    parser.add_argument("--labels", type=float, nargs="+", default=[0.1, 0.25, 1.0])
    arguments = parser.parse_args()
    cells = (Cell(labels, seed, arm) for seed, labels, arm in product(arguments.seeds, arguments.labels, STEPS))
    runs = ((cell, cell.folder, configuration(cell, arguments.out)) for cell in cells)
    Bench(arguments.data, arguments.out, TESTS).fill(runs, table)


if __name__ == "__main__":
    main()
