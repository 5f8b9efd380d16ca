"""The tables of short trainings: what was measured once is not trained again."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes_training import write_faces  # noqa: E402 - torch may be missing
from short_trainings import Bench  # noqa: E402

from facetrack.training.config import Config, Corpus, Network, Schedule  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def config(seed: int) -> Config:
    return Config(
        network=Network("gv", 68, {"encoder": "mobilenetv3-small", "width": 8}),
        corpora=(Corpus("faces"),),
        negative_share=0.0,
        validation="held",
        schedule=Schedule(steps=1, batch=2, workers=0, sizes=((0.0, 64),), seed=seed),
    )


def test_every_run_is_measured_once_on_every_test_set_and_the_table_grows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_faces(tmp_path / "data" / "faces", 2)
    write_faces(tmp_path / "data" / "held", 1, first=2)
    write_faces(tmp_path / "data" / "turned", 2, first=3)
    out = tmp_path / "out"
    bench = Bench(tmp_path / "data", out, {"plain": "held", "turned": "turned"})
    tables = []

    def table(figures: dict[int, dict[str, float]]) -> str:
        tables.append({seed: dict(found) for seed, found in figures.items()})
        return f"{len(figures)} rows"

    bench.fill(((seed, f"run {seed}", config(seed)) for seed in (0, 1)), table)
    assert [list(figures) for figures in tables] == [[0], [0, 1], [0, 1]]
    assert tables[-1][0].keys() == {"plain", "turned"}
    assert (out / "table.md").read_text() == "2 rows\n"
    assert capsys.readouterr().out.splitlines()[-1] == "2 rows"
    (out / "run 0" / "measured.json").write_text(json.dumps({"plain": 1.0, "turned": 2.0}))
    (out / "run 0" / "best.pt").unlink()
    assert bench.measured("run 0", config(0)) == {"plain": 1.0, "turned": 2.0}


@pytest.mark.parametrize("name", ["trained_ablations", "self_consistency"])
def test_both_benchmark_scripts_use_the_shared_bench(name: str) -> None:
    module = importlib.import_module(name)
    assert module.Bench is Bench
