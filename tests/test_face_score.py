"""A face score learnt anew: it tells faces from the rest, keeps to its prior, and the rest of the network stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes_alignment import configuration, write_corpora  # noqa: E402 - torch may be missing
from torch import Tensor  # noqa: E402

from facetrack.engines.nets.blocks import FaceScore  # noqa: E402
from facetrack.tracker.errors import ConfigError  # noqa: E402
from facetrack.training.config import Config, Network, Schedule  # noqa: E402
from facetrack.training.face_score import PRIOR, Looks, fit, judge, learn_face_score, look_at, score_of  # noqa: E402
from facetrack.training.objectives import open_objective  # noqa: E402
from facetrack.training.train import batches  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def looks(faces: int, others: int, apart: float, seed: int = 0) -> Looks:
    """Normal features of faces and of what is none, whose means are `apart`; each second face is found right."""
    rng = np.random.default_rng(seed)
    features = rng.normal(5.0, 3.0, (faces + others, 8))
    features[:faces, 0] += apart * 3.0
    told = np.arange(faces + others) < faces
    right = told & (np.arange(faces + others) % 2 == 0)
    return Looks(*(torch.from_numpy(values.astype(np.float32)) for values in (features, told, right)))


def presence(score: FaceScore, seen: Looks) -> Tensor:
    with torch.inference_mode():
        return score.of_means(seen.features)[:, 0].sigmoid()


def test_what_lies_apart_is_told_apart() -> None:
    score = FaceScore(8)
    fit(score, looks(3000, 3000, 8.0))
    worth = judge(score, looks(1000, 1000, 8.0, seed=1))
    assert worth["faces at 0.99"] > 90.0
    assert worth["false ones at 0.85"] < 1.0


@pytest.mark.parametrize(("faces", "others"), [(4000, 4000), (1600, 6400)])
def test_presence_is_a_probability_where_the_prior_holds_however_many_faces_it_learnt_from(
    faces: int, others: int
) -> None:
    """Bayes: over a set with `PRIOR` faces, the mean of probabilities is their share."""
    score = FaceScore(8)
    fit(score, looks(faces, others, 2.0))
    seen = presence(score, looks(int(8000 * PRIOR), int(8000 * (1 - PRIOR)), 2.0, seed=1))
    assert float(seen.mean()) == pytest.approx(PRIOR, abs=0.03)


def test_the_score_of_a_map_is_that_of_its_mean() -> None:
    score, maps = FaceScore(8), torch.randn(5, 8, 3, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(score(maps), score.of_means(maps.mean((2, 3))))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("data"))


def small(**changes: object) -> Config:
    schedule = Schedule(steps=3, batch=8, sizes=((0.0, 64),), workers=0)
    return configuration(schedule=schedule, negative_share=0.5, **changes)


def test_what_the_score_sees_and_should_say_is_kept_of_every_crop(data: Path) -> None:
    config = small()
    objective = open_objective(config, data, data)
    net = objective.build().eval()
    crops = list(batches(objective, config.schedule, 0, 3))
    seen = look_at(net, objective, crops)
    assert torch.equal(seen.is_face, torch.cat([batch[2] for batch in crops]))
    assert 0 < seen.is_face.sum() < len(seen.is_face) == 24
    assert not (seen.quality > seen.is_face).any()
    with torch.inference_mode():
        logits = torch.cat([net(batch[0])[-1] for batch in crops])
        torch.testing.assert_close(score_of(net).of_means(seen.features), logits)


def test_the_rest_of_the_network_stays_as_it_began(data: Path, tmp_path: Path) -> None:
    net = open_objective(small(), data, data).build()
    start = tmp_path / "start.pt"
    torch.save({"average": net.state_dict()}, start)
    learn_face_score(small(start=str(start)), data, tmp_path / "run")
    learnt = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["average"]
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, learnt[name])}
    assert changed == {f"net.score.{name}" for name in FaceScore(8).state_dict()}


def test_a_network_without_a_score_is_refused(data: Path, tmp_path: Path) -> None:
    network = Network("gv", 68, {"encoder": "mobilenetv3-small"})
    with pytest.raises(ConfigError, match="scores no faces"):
        learn_face_score(small(network=network), data, tmp_path)
