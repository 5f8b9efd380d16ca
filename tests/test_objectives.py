"""The heat-map networks' objectives: perfect answers cost nothing and decode to the truth, one batch is learnt."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes_alignment import OPTIONS, configuration, perfect, write_corpora  # noqa: E402 - torch may be missing
from fakes_benchmarks import wflw_line, write_image, write_wflw  # noqa: E402
from torch import Tensor  # noqa: E402

from facetrack.engines.codec import decoder  # noqa: E402
from facetrack.engines.nets.hourglass import Supervision  # noqa: E402
from facetrack.engines.nets.span import spatial_softmax  # noqa: E402
from facetrack.tracker import markup  # noqa: E402
from facetrack.tracker.errors import ConfigError  # noqa: E402
from facetrack.training import processes  # noqa: E402
from facetrack.training.alignment.networks import open_alignment  # noqa: E402
from facetrack.training.alignment.objective import Alignment, Labels, mapped  # noqa: E402
from facetrack.training.augment import Geometry  # noqa: E402
from facetrack.training.config import Corpus, Maps, Network  # noqa: E402

IBUG = markup.load("ibug68")
SIDE = 128


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("data"))


def objective_of(
    name: str,
    data: Path,
    *,
    face_score: bool = True,
    start: str = "",
    **maps: object,
) -> Alignment:
    network = Network(name, 68, OPTIONS[name] | {"face_score": face_score})
    settings = {"reach": 2, "coordinate": 1.0} | maps
    return open_alignment(configuration(network=network, start=start, maps=Maps(**settings)), data)  # type: ignore[arg-type]


def faces() -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).uniform(25, 100, (2, 68, 2)).astype(np.float32))


def deployed(name: str, answer: Supervision) -> tuple[np.ndarray, ...]:
    """The same answer as the exported network gives it."""
    maps = spatial_softmax(answer.landmarks[-1]) if name in ("span", "shn") else answer.landmarks[-1]
    field = () if answer.field is None else (answer.field.numpy(),)
    return maps.numpy(), *field, np.zeros((len(maps), 2), np.float32)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_perfect_prediction_has_near_zero_loss_and_decodes_to_the_truth(name: str, data: Path) -> None:
    objective, xy = objective_of(name, data), faces()
    answer = perfect(name, xy)
    place, terms = objective.landmark_terms(answer, Labels(xy))
    assert all(0 <= term < 2e-3 for _, term in terms.values())
    assert all(weight > 0 for weight, _ in terms.values())
    assert (place - xy).norm(dim=-1).max() < 0.15  # the centroid of a Gaussian cut off at two cells
    found, score = decoder(objective.codec, IBUG, name)(deployed(name, answer))
    np.testing.assert_allclose(found, place.numpy(), atol=0.01)
    assert (score > (0.06 if name == "shn" else 0.5)).all()  # a probability: 0.07 on the top of a Gaussian of sigma 1.5


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_worse_answer_costs_more_in_every_term(name: str, data: Path) -> None:
    objective, xy = objective_of(name, data), faces()
    answer = perfect(name, xy)
    _, good = objective.landmark_terms(answer, Labels(xy))
    _, bad = objective.landmark_terms(answer, Labels(xy + torch.tensor([2.0, 1.0])))
    assert all(bad[term][1] > good[term][1] + 1e-4 for term in good)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_network_without_scores_is_trained_on_landmarks_alone(name: str, data: Path) -> None:
    objective = objective_of(name, data, face_score=False)
    batch = batch_of_items(objective, 2, is_face=True)
    _, terms = objective.loss(objective.build().train(), batch)
    assert not {"face", "quality"} & set(terms)


STAGES = {"tab": (1, 2), "propnet": (2, 2), "span": (2, 2), "shn": (2, 0)}  # of landmark maps, of boundary maps


@pytest.mark.parametrize("name", list(STAGES))
def test_every_stage_receives_its_own_gradient(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intermediate supervision: each stage's maps are judged, also where nothing of later stages flows back."""
    monkeypatch.setitem(OPTIONS, name, OPTIONS[name] | {"stacks": 2})
    objective = objective_of(name, data)
    batch = batch_of_items(objective, 2, is_face=True)
    answer = mapped(objective.build().train()(batch[0]), lambda maps: maps.detach().requires_grad_())
    loss, _ = objective.loss(lambda _: answer, batch)  # type: ignore[arg-type]
    loss.backward()
    assert (len(answer.landmarks), len(answer.boundaries)) == STAGES[name]
    for maps in (*answer.landmarks, *answer.boundaries):
        assert maps.grad.abs().amax((0, 2, 3)).min() > 0  # each of its maps


@pytest.mark.parametrize("options", [{"attention": False}, {"field": False}])
def test_span_trains_and_validates_without_attention_or_field(
    options: dict[str, bool],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {key: value for key, value in OPTIONS["span"].items() if key != "field_per_landmark"}
    monkeypatch.setitem(OPTIONS, "span", small | options)
    objective = objective_of("span", data)
    batch = batch_of_items(objective, 2, is_face=True)
    net = objective.build().train()
    loss, terms = objective.loss(net, batch)
    loss.backward()
    assert ("field" in terms) == options.get("field", True)
    assert all(p.grad is not None for p in net.parameters())
    assert objective.validate(net.eval())["nme"] > 0


def test_frozen_boundaries_learn_nothing_while_the_transform_does(data: Path) -> None:
    objective = objective_of("tab", data, start="another.pt", frozen=True)
    net = objective.build().train()
    objective.loss(net, batch_of_items(objective, 2, is_face=True))[0].backward()
    assert not any(p.requires_grad for p in net.net.scbe.parameters())
    assert all(p.grad is not None for p in net.net.balt.head.parameters())


def test_propnet_weights_faces_with_rare_attributes_more(data: Path) -> None:
    """The second of two faces alone is answered wrongly and has one of six attributes: (2 / 1 + 5 * 1) / 6 times."""
    objective, xy = objective_of("propnet", data, face_score=False), faces()
    right, wrong = perfect("propnet", xy), perfect("propnet", xy + 3)
    answer = mapped(right, torch.clone)
    for maps, others in zip(
        (*answer.landmarks, *answer.boundaries), (*wrong.landmarks, *wrong.boundaries), strict=True
    ):
        maps[1] = others[1]
    # the answer to the batch as the loss sorts it, faces first: here the picture without a face comes first
    answer = mapped(answer, lambda maps: torch.cat((maps, maps[:1])))
    crops = torch.zeros(3, SIDE, SIDE, 3, dtype=torch.uint8)
    batch = [crops, torch.cat((torch.full_like(xy[:1], torch.nan), xy)), torch.tensor([0.0, 1.0, 1.0])]
    flags = torch.zeros(3, 6, dtype=torch.bool)
    flags[2, 3] = True
    _, plain = objective.loss(lambda _: answer, batch)  # type: ignore[arg-type]
    _, focal = objective.loss(lambda _: answer, [*batch, flags])  # type: ignore[arg-type]
    assert plain["maps"] > 0
    assert plain["boundaries"] > 0
    for name in ("maps", "boundaries"):
        assert focal[name] == pytest.approx(7 / 6 * plain[name], rel=1e-5)


def test_every_process_joins_the_face_count_even_without_faces(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that did not ask would leave the others waiting."""
    objective = objective_of("propnet", data)
    net, told = objective.build().train(), []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "dist", SimpleNamespace(all_reduce=lambda own: told.append(own.tolist())))
    for is_face in (False, True):
        flags = torch.full((2, 6), is_face)
        objective.loss(net, [*batch_of_items(objective, 2, is_face=is_face), flags])
    assert told == [[0] * 7, [2] * 7]


def test_wflw_faces_carry_their_attributes_and_negatives_carry_none(
    data: Path,
    tmp_path: Path,
) -> None:
    """Pose and illumination, as the line of the one face says."""
    write_image(tmp_path / "wflw/WFLW_images/a.jpg", np.full((200, 200, 3), 90, np.uint8))
    points = np.random.default_rng(0).uniform(60, 140, (98, 2))
    for part, name in (("train", "wflw"), ("test", "wflw-held")):
        write_image(tmp_path / name / "WFLW_images/a.jpg", np.full((200, 200, 3), len(name), np.uint8))
        write_wflw(tmp_path / name, part, wflw_line(points, "101000", "a.jpg"))
    shutil.copytree(data / "grass", tmp_path / "grass")
    settings = configuration(
        network=Network("propnet", 98, OPTIONS["propnet"]),
        corpora=(Corpus("wflw", "wflw-train"),),
        validation="wflw-held",
        validation_layout="wflw",
        negative_share=0.3,
    )
    objective = open_alignment(settings, tmp_path)
    items = [objective.item(index, 0.0) for index in range(20)]
    assert 0 < sum(float(is_face) for _, _, is_face, _ in items) < 20
    for _, _, is_face, flags in items:
        assert flags.tolist() == ([True, False, True, False, False, False] if is_face else [False] * 6)
    batch = list(torch.utils.data.default_collate(items[:4]))
    assert objective.loss(objective.build().train(), batch)[0].isfinite()


def test_network_that_is_no_aligner_raises(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"network\.name: wanted one of gv, tab, propnet, span, shn, bbfcn, bbf"):
        open_alignment(configuration(network=Network("bbfcn-backbone", 5), normaliser="ip"), data)


# Wide enough to make so many different maps, with the weights that the shipped ones were trained with.
LEARNERS = {
    "tab": ({"width": 32, "finest": 64}, {"boundaries": 0.1, "coordinate": 5.0}),
    "span": ({"width": 32, "head": 64}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_network_overfits_one_batch_to_half_a_pixel(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, maps = LEARNERS[name]
    monkeypatch.setitem(OPTIONS, name, OPTIONS[name] | options)
    objective = objective_of(name, data, **maps)
    torch.manual_seed(0)
    net = objective.build().train()
    batch = batch_of_items(objective, 3, is_face=True)
    optimiser = torch.optim.Adam(net.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1500)
    eyes = (batch[1][:, 36] - batch[1][:, 45]).norm(dim=-1).mean().item()
    errors = []
    for _ in range(800):
        loss, terms = objective.loss(net, batch)
        errors.append(terms["nme"] * eyes)
        if errors[-1] < 0.5:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    assert errors[0] > 10
    assert errors[-1] < 0.5


def batch_of_items(objective: Alignment, count: int, *, is_face: bool) -> list[Tensor]:
    """The first items of a late moment of the run that show a face, or none."""
    objective.config = replace(
        objective.config,
        schedule=replace(objective.config.schedule, sizes=((0.0, SIDE),)),
        geometry=Geometry(roll_deg=5, wide_share=0, log_scale=0, shift=0.01),
    )
    items = (objective.item(i, 0.9) for i in range(1000))
    chosen = [item for item, _ in zip((i for i in items if bool(i[2]) == is_face), range(count), strict=False)]
    return list(torch.utils.data.default_collate(chosen))
