"""What the parts of the networks are worth: the same short training with and without each of them.

    python benchmarks/trained_ablations.py --data DATA --out FOLDER [--only tab bbfcn] [--seeds 0] [--fp32]

trains compact networks on crops of 64 pixels (128 for SPAN, which halves them seven times), for 600 steps from scratch,
on the annotated photographs of 300-W's training sets alone. That is less than they need, but enough to compare. SPAN
sees every face twice, calm and disturbed, and in the second of its runs both answers must agree. BB-FCN's branches have
200 more steps on the finished backbone, which sees 32 of the 64 pixels, as the regression network does. The tests are
DATA/lfpw/testset and DATA/lfpw-turned (made by `training.turned`). Interrupted runs resume. The table gives the
inter-ocular NME in percent beside what the papers report of their own networks on their own test sets. It is written to
FOLDER/table.md after each run, and printed at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from short_trainings import Bench, Figures, asking

from facetrack.training.config import Config, Corpus, load

CONFIGS = Path(__file__).parents[1] / "training" / "configs"
LABELLED = ("helen/trainset", "lfpw/trainset", "afw")
TESTS = {"LFPW test": "lfpw/testset", "turned by 25-70 degrees": "lfpw-turned"}
FILES = {"gv": "gv-mobilenetv3-68", "bbfcn": "bbfcn-68"}
FILES |= {name: f"{name}-compact-68" for name in ("tab", "propnet", "span")}
SIDE, BATCH, STEPS = 64, 32, 600
SPAN_SIDE = 128  # its hourglasses halve seven times


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table.

    Attributes:
        network: of the row.
        name: description of the variant; part of its folder's name.
        settings: overrides of the configuration, as `facetrack train --set` takes them; {out} and {seed} are the run's.
        published: the paper's figure for its own network on its own data.
        side: of the crops, pixels.
        steps: of the run.
    """

    network: str
    name: str
    settings: tuple[str, ...]
    published: str
    side: int = SIDE
    steps: int = STEPS


SECOND_RUN = ("maps.frozen=true", 'start_parts=[["net.backbone.", "{out}/bbfcn, backbone alone, {seed}/best.pt"]]')
VARIANTS = (
    Variant("tab", "no fusion of boundary maps", ("network.options.fusion=0",), "4.87"),
    Variant("tab", "fusion 1x", ("network.options.fusion=1",), "4.74"),
    Variant("tab", "fusion 2x", ("network.options.fusion=2",), "4.70"),
    Variant("tab", "fusion 3x", ("network.options.fusion=3",), "4.73"),
    Variant("gv", "bells 1 high", ("vectors.peak=1.0", "vectors.mse=90.0"), "3.32"),
    Variant("gv", "bells 2 high", ("vectors.peak=2.0", "vectors.mse=22.5"), "3.23"),
    Variant("gv", "bells 3 high, bands of 3 and 5 cells", (), "3.21 (height), 3.14 (bands)"),
    Variant("gv", "bells 4 high", ("vectors.peak=4.0", "vectors.mse=5.625"), "3.14"),
    Variant("gv", "bands of 1 cell", ("network.options.bandwidths=[1, 1]",), "3.94"),
    Variant("gv", "bands of 3 cells", ("network.options.bandwidths=[3, 3]",), "3.31"),
    Variant("gv", "bands of 5 cells", ("network.options.bandwidths=[5, 5]",), "3.21"),
    Variant("propnet", "without propagation", ("network.options.propagation=false",), "4.81"),
    Variant("propnet", "with propagation", (), "4.48"),
    Variant("span", "pairs, labels alone", ("consistency.weight=1e-9", "consistency.share=0.0"), "", SPAN_SIDE),
    Variant("span", "pairs, self-consistency", ("consistency.weight=2.0", "consistency.share=0.0"), "", SPAN_SIDE),
    Variant("bbfcn", "regression network", ("network.name=bbfcn-regression",), "", SIDE // 2),
    Variant("bbfcn", "backbone alone", ("network.options.branches=false",), "8.31 (AFLW, 5 points)"),
    Variant("bbfcn", "backbone and branches", SECOND_RUN, "6.28 (AFLW, 5 points), 4.56 (300-W)", steps=200),
)


def configuration(variant: Variant, seed: int, out: Path, *, bf16: bool) -> Config:
    """The settings of one run, whose folder is in `out`."""
    settings = [setting.replace("{out}", str(out)).replace("{seed}", str(seed)) for setting in variant.settings]
    config = load(CONFIGS / f"{FILES[variant.network]}.toml", settings)
    schedule = replace(
        config.schedule,
        steps=variant.steps,
        batch=BATCH // 2 if config.consistency.weight else BATCH,
        sizes=((0.0, variant.side),),
        learning_rate=2e-3,
        warm_up=50,
        ema=0.995,
        validate_every=10_000,
        bf16=bf16,
        seed=seed,
    )
    return replace(config, corpora=tuple(Corpus(path) for path in LABELLED), schedule=schedule)


def table(figures: dict[tuple[Variant, int], Figures]) -> str:
    """A row for each variant: means over its seeds."""
    lines = [f"| network | | {' | '.join(TESTS)} | seeds | paper |", "|---" * (len(TESTS) + 4) + "|"]
    for variant in dict.fromkeys(variant for variant, _ in figures):
        seeds = [found for (of, _), found in figures.items() if of == variant]
        means = " | ".join(f"{np.mean([found[test] for found in seeds]):.2f}" for test in TESTS)
        lines.append(f"| {variant.network} | {variant.name} | {means} | {len(seeds)} | {variant.published} |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, train what is missing and print the table."""
    parser = asking(__doc__, seeds=[0])
    parser.add_argument("--only", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--fp32", action="store_true", help="for CPUs that do not multiply bfloat16")
    arguments = parser.parse_args()
    cells = product(arguments.seeds, (variant for variant in VARIANTS if variant.network in arguments.only))
    runs = (
        (
            (variant, seed),
            f"{variant.network}, {variant.name}, {seed}",
            configuration(variant, seed, arguments.out, bf16=not arguments.fp32),
        )
        for seed, variant in cells
    )
    Bench(arguments.data, arguments.out, TESTS).fill(runs, table)


if __name__ == "__main__":
    main()
