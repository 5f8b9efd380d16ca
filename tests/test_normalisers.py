"""What errors are divided by in training: every markup can be trained and validated in what its papers measure in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes_benchmarks import write_image  # noqa: E402 - torch may be missing

from facetrack.tracker import markup, metrics  # noqa: E402
from facetrack.tracker.errors import ConfigError  # noqa: E402
from facetrack.training.alignment.networks import ALIGNMENTS, open_alignment  # noqa: E402
from facetrack.training.alignment.objective import Alignment  # noqa: E402
from facetrack.training.config import Config, Corpus, Network, Schedule  # noqa: E402
from facetrack.training.datasets.point_files import write_pts  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, dict[str, object]] = {
    "gv": {"encoder": "mobilenetv3-small", "width": 8},
    "tab": {"stacks": 1, "width": 16},
    "propnet": {"stacks": 1, "width": 16},
    "span": {"stacks": 2, "width": 16},
    "shn": {"stacks": 2, "width": 16},
    "bbfcn": {},
    "bbfcn-regression": {},
}
LINED = [name for name in markup.names() if markup.load(name).boundaries]


def write_corpus(folder: Path, points: int, seed: int) -> None:
    """One picture of noise and as many points as asked for."""
    rng = np.random.default_rng((3, seed))
    write_image(folder / "a.png", rng.integers(0, 256, (200, 200, 3), np.uint8))
    write_pts(folder / "a.pts", rng.uniform(60, 140, (points, 2)).astype(np.float32))


def objective_of(folder: Path, name: str, points: int, normaliser: str) -> Alignment:
    for seed, part in enumerate(("train", "held")):
        write_corpus(folder / part, points, seed)
    config = Config(
        network=Network(name, points, SMALL[name] | {"face_score": True}),
        corpora=(Corpus("train"),),
        negative_share=0.0,
        validation="held",
        normaliser=normaliser,
        schedule=Schedule(sizes=((0.0, 128),)),
    )
    return open_alignment(config, folder)


def normaliser_of(marks: markup.Markup) -> str:
    return next(iter(marks.normalisers))


@pytest.mark.parametrize(
    ("name", "marks"), [("gv", "five5"), *((name, marks) for name in ALIGNMENTS for marks in LINED)]
)
def test_every_markup_can_be_trained_and_validated(name: str, marks: str, tmp_path: Path) -> None:
    loaded = markup.load(marks)
    objective = objective_of(tmp_path, name, loaded.points, normaliser_of(loaded))
    net = objective.build()
    batch = list(torch.utils.data.default_collate([objective.item(index, 0.0) for index in range(2)]))
    loss, terms = objective.loss(net.train(), batch)
    assert loss.isfinite()
    assert terms["nme"] > 0
    assert all(np.isfinite(value) for value in objective.validate(net.eval()).values())


@pytest.mark.parametrize("kind", metrics.Normaliser.__args__)  # type: ignore[attr-defined]
def test_training_and_validation_divide_by_the_configured_length(kind: metrics.Normaliser, tmp_path: Path) -> None:
    objective = objective_of(tmp_path, "gv", 68, kind)
    (sample,) = objective.validation
    wanted = metrics.nme(sample.points + 3, sample.points, objective.markup, kind)[0]
    assert objective._nme(sample.points[0] + 3, sample) == pytest.approx(wanted)
    xy = torch.from_numpy(sample.points)
    assert objective._quality(xy + 3, xy)[1].item() == pytest.approx(wanted, rel=1e-5)


def test_validation_takes_the_data_sets_own_boxes(tmp_path: Path) -> None:
    """AFLW's: an error of 3 pixels on each axis in a box of 90 x 40 pixels."""
    objective = objective_of(tmp_path, "gv", 19, "face")
    sample = replace(objective.validation[0], boxes=np.array([[50, 60, 140, 100]], np.float32))
    assert objective._nme(sample.points[0] + 3, sample) == pytest.approx(np.sqrt(18) / 60, rel=1e-5)


def test_unavailable_normaliser_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"normaliser, for .*a\.pts: NME of aflw19: wanted one of the normalisers ip, box"
    ):
        objective_of(tmp_path, "gv", 19, "io")
    with pytest.raises(ConfigError, match="normaliser: wanted one of io, ip, box, diag, edge, face, got 'nose'"):
        Config(normaliser="nose")
