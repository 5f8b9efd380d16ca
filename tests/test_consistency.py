"""Pairs of crops, what moves one into the other, and what agreement costs each kind of network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes import read_landmarks  # noqa: E402 - torch may be missing
from test_alignment import configuration, data  # noqa: E402, F401 - a fixture
from test_objectives import OPTIONS, perfect  # noqa: E402
from torch import Tensor  # noqa: E402

from facetrack.engines.nets.hourglass import Supervision  # noqa: E402
from facetrack.tracker import markup  # noqa: E402
from facetrack.tracker.errors import ConfigError  # noqa: E402
from facetrack.training.alignment.consistency import LABELLED, NOTHING, UNLABELLED, SelfConsistency  # noqa: E402
from facetrack.training.alignment.networks import open_alignment  # noqa: E402
from facetrack.training.alignment.targets import gaussian_vectors  # noqa: E402
from facetrack.training.config import Config, Consistency, Corpus, Network  # noqa: E402
from facetrack.training.train import open_objective  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

IBUG = markup.load("ibug68")
RULES = Consistency(weight=2.0, unlabelled=(Corpus("weak"),))


def config_of(name: str = "gv", **changes: object) -> Config:
    network = Network(name, 68, OPTIONS[name] | {"face_score": True}) if name in OPTIONS else configuration().network
    return configuration(network=network, **({"consistency": RULES} | changes))


@pytest.fixture(scope="module")
def pairs(data: Path) -> SelfConsistency:  # noqa: F811
    return SelfConsistency(config_of(), data)


def test_the_way_moves_the_calm_crops_points_to_the_disturbed_ones(pairs: SelfConsistency) -> None:
    turned = set()
    for index in range(40):
        _, _, calm, wild, way, kind = pairs.item(index, 0.9)
        if kind == NOTHING:
            continue
        moved = calm @ way[:, :2].T + way[:, 2]
        mirrored = bool(np.linalg.det(way[:, :2]) < 0)
        np.testing.assert_allclose(moved[IBUG.mirror] if mirrored else moved, wild, atol=2e-2)
        turned.add(mirrored)
    assert turned == {True, False}


def test_the_calm_crops_pixels_are_where_its_points_are(pairs: SelfConsistency) -> None:
    checked = 0
    for index in range(12):
        crop, _, calm, _, _, kind = pairs.item(index, 0.9)
        if kind != NOTHING:
            found = read_landmarks(crop)
            assert found is not None
            assert np.linalg.norm(found - calm, axis=-1).mean() < 1.0
            checked += 1
    assert checked > 5


def test_items_are_of_the_three_kinds_in_their_shares(pairs: SelfConsistency) -> None:
    kinds = [int(pairs.item(index, 0.1)[5]) for index in range(150)]
    assert 8 < kinds.count(NOTHING) < 36  # 14 %
    assert 40 < kinds.count(UNLABELLED) < 90
    assert 40 < kinds.count(LABELLED) < 90


def test_a_share_of_the_labels_leaves_the_others_as_unlabelled(data: Path) -> None:  # noqa: F811
    objective = SelfConsistency(config_of(consistency=Consistency(labels=0.5)), data)
    assert [len(corpus) for corpus in objective.inner.corpora] == [2, 2]
    assert len(objective.unlabelled) == 3
    again = SelfConsistency(config_of(consistency=Consistency(labels=0.5)), data)
    assert [s.path for s in again.unlabelled] == [s.path for s in objective.unlabelled]


def test_nothing_without_labels_is_refused_unless_none_is_asked_for(data: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=r"consistency\.share: wanted pictures without labels"):
        SelfConsistency(config_of(consistency=Consistency(weight=1.0)), data)
    SelfConsistency(config_of(consistency=Consistency(weight=1.0, share=0.0)), data)


def test_the_configuration_decides_whether_pairs_are_trained(data: Path, tmp_path: Path) -> None:  # noqa: F811
    assert isinstance(open_objective(config_of(), data, tmp_path), SelfConsistency)
    plain = open_objective(config_of(consistency=Consistency()), data, tmp_path)
    assert not isinstance(plain, SelfConsistency)


@pytest.mark.parametrize("name", ["gv", *OPTIONS])
def test_a_batch_of_pairs_trains_every_part_of_the_network(name: str, data: Path) -> None:  # noqa: F811
    settings = config_of(name)
    settings = replace(settings, schedule=replace(settings.schedule, sizes=((0.0, 128),)))
    objective = SelfConsistency(settings, data)
    batch = list(torch.utils.data.default_collate([objective.item(index, 0.5) for index in range(8)]))
    net = objective.build().train()
    loss, terms = objective.loss(net, batch)
    loss.backward()
    assert terms["consistency"] > 0
    assert {"face", "quality", "nme"} <= set(terms)
    untrained = [key for key, p in net.named_parameters() if p.grad is None]
    # PropNet's last propagation is there for its boundaries: nobody attends to what it would point out
    assert all(name == "propnet" and key.startswith("net.propagations.1.") for key in untrained)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def similarity(angle: float, scale: float, *, flip: bool) -> Tensor:
    """About the middle of a 128-pixel crop, (1, 2, 3)."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if flip else 1.0, 1.0])
    shift = 63.5 - matrix @ [63.5, 63.5]
    return torch.tensor(np.column_stack((matrix, shift))[None], dtype=torch.float32)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", ["gv", *OPTIONS])
def test_answers_that_moved_with_the_face_agree_and_others_do_not(name: str, flip: bool, data: Path) -> None:  # noqa: F811
    objective = open_alignment(config_of(name), data)
    xy = torch.from_numpy(np.random.default_rng(3).uniform(45, 83, (1, 68, 2)).astype(np.float32))
    matrix = similarity(0.4, 0.9, flip=flip)
    moved = torch.einsum("fij,fnj->fni", matrix[:, :, :2], xy) + matrix[:, None, :, 2]
    moved = moved[:, IBUG.mirror.tolist()] if flip else moved
    there, same = (answer_of(name, points) for points in (xy, moved))
    right = objective.divergence(there, same, matrix).item()
    wrong = objective.divergence(there, answer_of(name, moved + 9), matrix).item()
    assert right < 0.25 * wrong
    assert wrong > 0.2


def answer_of(name: str, xy: Tensor) -> Supervision | tuple[Tensor, ...]:
    if name == "gv":
        return (torch.from_numpy(gaussian_vectors(xy.numpy(), 32, 4, 1.2, 3.0)),)
    return perfect(name, xy)
