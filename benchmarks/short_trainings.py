"""Shared by the benchmarks with short trainings: train each run to its end, measure it once, add it to the table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from facetrack.engines.nets import FromBytes
from facetrack.training.config import Config, Corpus
from facetrack.training.objectives import open_objective
from facetrack.training.train import Run

Figures = dict[str, float]  # test set -> NME io %
Cell = TypeVar("Cell")


def asking(description: str | None, seeds: list[int]) -> argparse.ArgumentParser:
    """The options that all these benchmarks share: data, a folder for the runs, and seeds, by default these."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    return parser


@dataclass(frozen=True, slots=True)
class Bench:
    """Folders and test sets.

    Attributes:
        data: root of the data sets.
        out: gets a folder for every run, and table.md.
        tests: name of a test set -> its folder below `data`.
    """

    data: Path
    out: Path
    tests: Mapping[str, str]

    def fill(self, runs: Iterable[tuple[Cell, str, Config]], table: Callable[[dict[Cell, Figures]], str]) -> None:
        """Do the missing ones of the runs (cell, name of the folder, settings); rewrite the table after each run."""
        figures: dict[Cell, Figures] = {}
        for cell, name, config in runs:
            figures[cell] = self.measured(name, config)
            print(name, figures[cell], flush=True)
            (self.out / "table.md").write_text(table(figures) + "\n", encoding="utf-8")
        print(table(figures))

    def measured(self, name: str, config: Config) -> Figures:
        """Train one run to its end and measure it on every test set; if that was done before, read the figures."""
        folder = self.out / name
        file = folder / "measured.json"
        if not file.exists():
            Run(config, open_objective(config, self.data, folder), folder).train()
            state = torch.load(folder / "best.pt", map_location="cpu", weights_only=True)["average"]
            found = {test: self._nme(config, place, state) for test, place in self.tests.items()}
            file.write_text(json.dumps(found), encoding="utf-8")
        figures: Figures = json.loads(file.read_text(encoding="utf-8"))
        return figures

    def _nme(self, config: Config, test: str, state: dict[str, torch.Tensor]) -> float:
        tested = replace(config, corpora=(Corpus(test),), validation=test)
        objective = open_objective(tested, self.data, self.data)
        net = objective.build()
        assert isinstance(net, FromBytes)
        net.load_state_dict(state)
        return objective.validate(net.eval())["nme"]
