"""BB-FCN as an aligner, and its rival: perfect answers cost nothing and decode to the truth, silence is learnt."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes_alignment import configuration, write_corpora  # noqa: E402 - torch may be missing
from torch import Tensor  # noqa: E402

from facetrack.engines.aligner import Aligner  # noqa: E402
from facetrack.engines.backend import open_backend  # noqa: E402
from facetrack.engines.card import read_card  # noqa: E402
from facetrack.engines.codec import COARSE, DISC, FINE, decoder, disc_pixels, disc_radius  # noqa: E402
from facetrack.engines.nets.bbfcn import WINDOW, window_corners  # noqa: E402
from facetrack.pipeline.batch import open_and_track_all  # noqa: E402
from facetrack.pipeline.doctor import _models  # noqa: E402
from facetrack.pipeline.open import Choices, open_engines  # noqa: E402
from facetrack.pipeline.progress import NoProgress  # noqa: E402
from facetrack.pipeline.tasks import Outputs  # noqa: E402
from facetrack.tracker import markup  # noqa: E402
from facetrack.tracker.codecs import decode_cells, decode_discs  # noqa: E402
from facetrack.tracker.errors import BackendError, CardError, ConfigError  # noqa: E402
from facetrack.tracker.metrics import nme  # noqa: E402
from facetrack.tracker.types import Float32  # noqa: E402
from facetrack.training.alignment import publish as alignment_publish  # noqa: E402
from facetrack.training.alignment.maps import gaussian_maps  # noqa: E402
from facetrack.training.alignment.networks import open_alignment  # noqa: E402
from facetrack.training.alignment.objective import Alignment, Labels, mapped  # noqa: E402
from facetrack.training.config import Consistency, Corpus, Maps, Network, Publication, Schedule  # noqa: E402
from facetrack.training.detection.discs import WITHOUT_LANDMARK, disc_maps  # noqa: E402
from facetrack.training.evaluation.locate import GivenBoxLocator  # noqa: E402
from facetrack.training.objectives import open_objective  # noqa: E402
from facetrack.training.publish import publish  # noqa: E402
from facetrack.training.train import Run  # noqa: E402

IBUG = markup.load("ibug68")
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {  # name, options, side of the crops
    "branches": ("bbfcn", {}, 64),
    "backbone": ("bbfcn", {"branches": False}, 64),
    "regression": ("bbfcn-regression", {}, 32),
}
# A disc's pixels lie round the landmark as a whole number of cells allows: their mean is off by half a cell at most.
SLOPE = 1e-3
OUT_FILES = ("weights/tried.onnx", "weights/tried.torch.npz", "cards/tried.toml")
QUANTUM_PX = {"branches": 0.5, "backbone": 1.0, "regression": 1e-4}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("data"))


def objective_of(kind: str, data: Path, *, side: int | None = None, **changes: Any) -> Alignment:
    name, options, usual = NETWORKS[kind]
    network = Network(name, 68, options | {"face_score": True})
    schedule = Schedule(steps=100, sizes=((0.0, side or usual),))
    return open_alignment(configuration(**({"network": network, "schedule": schedule} | changes)), data)


def faces(side: int) -> Tensor:
    """Two faces' points, with room for the disc round each."""
    return torch.from_numpy(np.random.default_rng(3).uniform(9, side - 10, (2, 68, 2)).astype(np.float32))


def discs(cells: Float32, size: int, radius: int) -> Tensor:
    """The labels, with a slope that says which pixels come next where a disc between cells has fewer than usual."""
    maps = torch.from_numpy(np.stack([disc_maps(face[None], size, radius) for face in cells]))
    return maps + SLOPE * gaussian_maps(torch.from_numpy(cells), (size, size), 1, 3.0)


def perfect(kind: str, xy: Tensor, side: int) -> tuple[Tensor, ...]:
    """What a network answers that knows the labels."""
    logits = torch.zeros(len(xy), 2)
    if kind == "regression":
        cells, exact = torch.zeros(len(xy), 68, 3, side // 4, side // 4), (xy + 0.5) / 4
        for face, point in np.ndindex(len(xy), 68):
            x, y = (int(v) for v in exact[face, point])
            cells[face, point, 0, y, x] = 1
            cells[face, point, 1:, y, x] = exact[face, point] - torch.tensor([x + 0.5, y + 0.5])
        return cells.flatten(1, 2), logits
    half = side // 2
    coarse = discs((xy.numpy() + 0.5) / 2 - 0.5, half, disc_radius(COARSE, half))
    if kind == "backbone":
        return coarse, logits
    corner = window_corners(coarse).float()
    return coarse, discs((xy - corner).numpy(), WINDOW, disc_radius(FINE, side)), corner, logits


@pytest.mark.parametrize(("radius", "pixels"), [(2, 13), (3, 29), (4, 49)])  # Gauss's circle problem
def test_discs_have_as_many_pixels_as_in_the_paper(radius: int, pixels: int) -> None:
    width = {2: 32, 3: 64}.get(radius)
    if width:
        assert (disc_radius(COARSE, width), disc_pixels(COARSE, width)) == (radius, pixels)
    side = {2: 64, 4: 128}.get(radius)
    if side:
        assert (disc_radius(FINE, side), disc_pixels(FINE, side)) == (radius, pixels)
    assert disc_maps(np.array([[[12.0, 12.0]]], np.float32), 25, radius).sum() == pixels
    assert DISC == 13


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_a_perfect_answer_costs_nothing_and_decodes_to_the_truth(kind: str, data: Path) -> None:
    side = NETWORKS[kind][2]
    objective, xy = objective_of(kind, data), faces(side)
    answer = perfect(kind, xy, side)
    place, terms = objective.landmark_terms(answer, Labels(xy))
    assert all(weight > 0 for weight, _ in terms.values())
    assert all(float(term) < 68 * 2 * DISC * SLOPE**2 for _, term in terms.values())
    found, score = decoder(objective.codec, IBUG, kind)(tuple(output.numpy() for output in answer))
    assert np.abs(found - xy.numpy()).max() <= QUANTUM_PX[kind]
    assert score.min() > 0.65  # a disc between cells has 9 to 14 pixels
    np.testing.assert_allclose(place.numpy(), found, atol=1e-4)
    _, worse = objective.landmark_terms(answer, Labels(xy + torch.tensor([3.0, 1.0])))
    assert all(worse[term][1] > 0.1 for term in terms)


def test_disc_around_a_whole_pixel_decodes_exactly() -> None:
    xy = np.random.default_rng(0).integers(4, 28, (1, 50, 2)).astype(np.float32)
    found, score = decode_discs(disc_maps(xy, 32, 2)[None].astype(np.float32), 1.0, DISC)
    np.testing.assert_allclose(found, xy, atol=1e-5)
    assert (score == 1).all()


def test_codec_of_a_dense_network_has_the_disc_pixels_of_its_crop_size(data: Path) -> None:
    assert objective_of("branches", data, side=128).codec == {"kind": "discs-in-windows", "pixels": 49}
    alone = objective_of("backbone", data, side=128).codec
    assert alone == {"kind": "discs-in-maps", "stride": 2, "pixels": 29}


def test_disc_and_cell_decoders_match_numpy() -> None:
    rng = np.random.default_rng(1)
    maps = rng.normal(0.4, 0.5, (3, 4, 12, 10)).astype(np.float32)
    order = np.argsort(-maps.reshape(3, 4, -1), 2)[..., :DISC]
    highest = np.stack((order % 10, order // 10), -1).mean(2)
    xy, score = decode_discs(maps, 2.0, DISC)
    np.testing.assert_allclose(xy, 2 * highest + 0.5, atol=1e-5)
    mean = np.take_along_axis(maps.reshape(3, 4, -1), order, 2).mean(2)
    np.testing.assert_allclose(score, mean.clip(0, 1), atol=1e-6)

    cells = rng.normal(0, 0.4, (3, 12, 12, 10)).astype(np.float32)
    cells[0, 3, 5, 5] = np.nan
    groups = cells.reshape(3, 4, 3, -1)
    top = np.nan_to_num(groups[:, :, 0], nan=-np.inf).argmax(2)[:, :, None, None]
    chance, *way = np.take_along_axis(groups, top, 3)[..., 0].transpose(2, 0, 1)
    place = np.stack((top[..., 0, 0] % 10, top[..., 0, 0] // 10), -1)
    xy, score = decode_cells(cells, 4.0)
    np.testing.assert_allclose(xy, 4 * (place + np.stack(way, -1) + 0.5) - 0.5, atol=1e-4)
    np.testing.assert_allclose(score, chance.clip(0, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_output_decodes_to_finite_values(value: float) -> None:
    for found in (decode_discs(np.full((1, 3, 8, 8), value, np.float32), 2.0, DISC),
                  decode_cells(np.full((1, 9, 8, 8), value, np.float32), 4.0)):  # fmt: skip
        assert all(np.isfinite(values).all() for values in found)


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_pixels_that_are_not_selected_have_no_gradient(kind: str, data: Path) -> None:
    side = NETWORKS[kind][2]
    objective, xy = objective_of(kind, data), faces(side)
    answer = perfect(kind, xy, side)
    maps = objective.responses(answer)  # type: ignore[attr-defined]
    pixels = [(m >= 1).sum((2, 3)) for m in maps]
    answer = mapped(answer, lambda values: (values + torch.randn_like(values)).requires_grad_())
    if kind == "branches":
        answer = (*answer[:2], perfect(kind, xy, side)[2], answer[3])
    _, terms = objective.landmark_terms(answer, Labels(xy))
    torch.stack([term for _, term in terms.values()]).sum().backward()
    touched = [m.grad != 0 for m in answer[: len(maps)]]
    if kind == "regression":
        touched = [touched[0][:, ::3]]
        assert ((answer[0].grad != 0).sum((2, 3)).view(2, 68, 3)[:, :, 1:] == 1).all()  # offsets of one cell each
    for count, of in zip(pixels, touched, strict=True):
        assert torch.equal(of.sum((2, 3)), 2 * count)


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_responses_to_negatives_are_penalised(kind: str, data: Path) -> None:
    side = NETWORKS[kind][2]
    objective = objective_of(kind, data)
    quiet = perfect(kind, faces(side), side)
    loud = mapped(quiet, lambda values: values.clone())
    for maps in objective.responses(loud):  # type: ignore[attr-defined]
        maps[1] = 1.0
    is_face = torch.tensor([1.0, 0.0])
    terms = objective.terms(loud, Labels(faces(side)[:1]), is_face)
    weight, silence = terms["silence"]
    assert weight == 1.0  # one for one
    assert silence.item() == pytest.approx(68 * WITHOUT_LANDMARK * (2 if kind == "branches" else 1))
    assert "silence" not in objective.terms(quiet, Labels(faces(side)), torch.ones(2))


def test_hard_negatives_are_selected_after_their_share_of_the_run(data: Path) -> None:
    objective = objective_of("backbone", data)
    early, late = (objective.item(0, progress) for progress in (0.0, 0.9))
    assert (bool(early[-1]), bool(late[-1])) == (False, True)
    net = objective.build().train()
    for item in (late, early):
        batch = list(torch.utils.data.default_collate([item, item]))
        losses = {objective.loss(net, batch)[0].item() for _ in range(3)}
        assert (len(losses) == 1) == bool(item[-1])  # the others are drawn anew each time


def test_nothing_flows_from_the_branches_into_the_backbone(data: Path) -> None:
    objective = objective_of("branches", data)
    net = objective.build().train()
    _, terms = objective.landmark_terms(net(torch.zeros(2, 64, 64, 3, dtype=torch.uint8)), Labels(faces(64)))
    terms["fine"][1].backward()
    learning = {name.split(".")[1] for name, p in net.named_parameters() if p.grad is not None}
    assert learning == {"branches"}


def test_the_second_run_keeps_the_backbone_of_the_first(data: Path, tmp_path: Path) -> None:
    schedule = Schedule(steps=2, batch=4, workers=0, sizes=((0.0, 64),), validate_every=2, optimiser="sgd")
    first = objective_of("backbone", data, schedule=schedule)
    Run(first.config, first, tmp_path / "first").train()
    start = str(tmp_path / "first" / "best.pt")
    second = objective_of(
        "branches", data, schedule=schedule, maps=Maps(frozen=True), start_parts=(("net.backbone.", start),)
    )
    run = Run(second.config, second, tmp_path / "second")
    before = {name: value.clone() for name, value in run.net.state_dict().items()}
    run.train()
    told = torch.load(start, weights_only=True)["average"]
    assert 0 < sum(name.startswith("net.backbone.") for name in before) < len(before)
    for name, value in run.net.state_dict().items():
        if name.startswith("net.backbone."):
            assert torch.equal(value, told[name])
        else:
            assert not torch.equal(value, before[name]), name


def test_sgd_follows_its_momentum_and_does_not_decay_biases(data: Path, tmp_path: Path) -> None:
    """v = 0.9 v + g + 5e-4 w; w = w - rate * v; biases do not decay."""
    schedule = Schedule(optimiser="sgd", learning_rate=0.1, weight_decay=5e-4, warm_up=0, sizes=((0.0, 64),))
    objective = objective_of("backbone", data, schedule=schedule)
    run = Run(objective.config, objective, tmp_path)
    parameters = [p for group in run.optimiser.param_groups for p in group["params"]]
    assert len(parameters) == len(list(run.net.parameters()))
    for parameter in parameters:
        decay = 5e-4 if parameter.ndim > 1 else 0.0
        wanted, speed = parameter.detach().clone(), torch.zeros_like(parameter)
        for _ in range(2):
            speed = 0.9 * speed + 2.0 + decay * wanted
            wanted = wanted - 0.1 * speed
            run.optimiser.zero_grad()
            parameter.grad = torch.full_like(parameter, 2.0)
            run.optimiser.step()
        torch.testing.assert_close(parameter.detach(), wanted)


def test_another_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.optimiser: wanted 'adamw' or 'sgd', got 'lion'"):
        Schedule(optimiser="lion")


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_init_std_sets_the_spread_of_the_initial_weights(kind: str, data: Path) -> None:
    name, options, _ = NETWORKS[kind]
    net = objective_of(kind, data, network=Network(name, 68, options | {"init_std": 0.01})).build()
    for parameter in net.parameters():
        if parameter.ndim == 1:
            assert not parameter.any()
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.15)


def test_untrained_coarse_maps_have_a_spread_of_order_one(data: Path) -> None:
    """He's weights; with torch's own a map's answers differ by a hundredth, and nothing is learnt for long."""
    torch.manual_seed(0)
    coarse, *_ = objective_of("backbone", data).build()(torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8))
    assert 0.1 < coarse.std((2, 3)).mean().item() < 10


def test_five_points_are_learnt_from_corpora_of_more(data: Path) -> None:
    network = Network("bbfcn", 5, {"face_score": True})
    objective = objective_of("branches", data, network=network, normaliser="ip")
    (truth,) = {len(sample.points[0]) for sample in objective.validation}
    assert truth == 5
    source = objective_of("branches", data).validation[0].points[0]
    np.testing.assert_array_equal(objective.validation[0].points[0], IBUG.subset("five5", source))
    with pytest.raises(ConfigError, match="wanted all 29 points of cofw29"):
        objective_of("branches", data, network=Network("bbfcn", 29), normaliser="ip")


def test_five_points_lie_in_the_middle_of_their_training_crops(data: Path) -> None:
    network = Network("bbfcn", 5, {"face_score": True})
    objective = objective_of("branches", data, network=network, normaliser="ip", negative_share=0.0)
    for number in range(50):
        _, xy, *_ = objective.item(number, 0.0)
        assert (np.abs(xy - 31.5) < 32).all()
        assert np.ptp(xy, axis=0).max() < 42  # of 64 pixels: round the five alone they would span more


@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about torch
def test_published_error_of_five_points_matches_that_of_an_evaluation(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The card's is of the five points alone, the evaluation's of pictures with 68: in the same crops."""
    monkeypatch.setattr(alignment_publish, "WIDEST_PARITY", 1.0)  # the maps of an untrained network are flat
    network, card = Network("bbfcn-regression", 5), Publication("tried")
    objective = objective_of("regression", data, network=network, normaliser="ip", card=card)
    (tmp_path / "run").mkdir()
    torch.save({"average": objective.build().state_dict()}, tmp_path / "run" / "best.pt")
    read = read_card(publish(objective.config, tmp_path / "run", data, tmp_path / "out"))
    with closing(open_backend(read.weights["net"], "onnx")) as backend:
        locate, errors = GivenBoxLocator(Aligner(read, backend), IBUG), []
        for sample in objective_of("regression", data).validation:
            found = locate(sample.bgr(), sample.points[0])
            errors += list(nme(found.xy[None], IBUG.subset("five5", sample.points), markup.load("five5"), "ip"))
    assert read.measured["NME ip %, held"] == pytest.approx(100 * np.mean(errors), abs=0.01)


def test_pairs_give_a_finite_loss_with_a_consistency_term(data: Path) -> None:
    for kind in NETWORKS:
        objective = objective_of(kind, data, consistency=Consistency(weight=1.0, share=0.0), negative_share=0.3)
        pairs = open_objective(objective.config, data, data)
        items = [pairs.item(i, 0.0) for i in range(6)]
        loss, terms = pairs.loss(pairs.build().train(), list(torch.utils.data.default_collate(items)))
        assert loss.isfinite()
        assert terms["consistency"] > 0


@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about torch
@pytest.mark.parametrize("kind", ["branches", "regression"])
def test_published_network_gives_the_same_landmarks_with_onnx_and_torch(
    kind: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alignment_publish, "WIDEST_PARITY", 1.0)  # the maps of an untrained network are flat
    schedule = Schedule(steps=1, batch=2, workers=0, sizes=((0.0, NETWORKS[kind][2]),), validate_every=1)
    card = Publication("tried", ("paint",), "none")
    objective = objective_of(kind, data, schedule=schedule, corpora=(Corpus("train"),), card=card)
    Run(objective.config, objective, tmp_path / "run").train()
    read = read_card(publish(objective.config, tmp_path / "run", data, tmp_path / "out"))
    assert (read.task, read.network, read.markup) == ("align", objective.config.network.name, "ibug68")
    sample = objective.validation[0]
    found = []
    for name in ("onnx", "torch"):
        with closing(open_backend(read.weights["net"], name)) as backend:
            aligner = Aligner(read, backend)
            found += aligner.align(sample.bgr(), [aligner.crop_of_points(sample.points[0])])
    for one in found:
        assert one.xy.shape == (68, 2)
        assert 0 < one.confidence < 1
    # 16-bit weights: a pixel may come in among the highest for another
    assert np.abs(found[0].xy - found[1].xy).mean() < 1.0


@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about torch
def test_network_without_face_score_is_published_and_measured_but_cannot_track(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of the papers' networks are such."""
    monkeypatch.setattr(alignment_publish, "WIDEST_PARITY", 1.0)  # the maps of an untrained network are flat
    network = Network("bbfcn-regression", 68)
    objective = objective_of("regression", data, network=network, card=Publication("tried"))
    (tmp_path / "run").mkdir()
    torch.save({"average": objective.build().state_dict()}, tmp_path / "run" / "best.pt")
    read = read_card(publish(objective.config, tmp_path / "run", data, tmp_path / "out"))
    assert read.measured
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path / "out"))
    told = {check.subject: check for check in _models()}["tried"]
    assert (told.status, "cannot track" in told.detail, "network.options.face_score" in told.remedy) == (
        "absent",
        True,
        True,
    )
    for backend in ("onnx", "torch"):
        with open_engines(Choices(model="tried", backend=backend)) as engines:
            sample = objective.validation[0]
            found = GivenBoxLocator(engines.aligner, IBUG)(sample.bgr(), sample.points[0])
            assert 0 <= found.confidence <= 1
            for begin in (engines.pipeline, engines.pipeline_for_pictures):
                with pytest.raises(CardError, match=r"tried: cannot track: .* network\.options\.face_score"):
                    begin(engines.choices)
    with pytest.raises(CardError, match="tried: cannot track"):
        open_and_track_all([], Outputs(tmp_path / "tables"), open_engines, Choices(model="tried"), NoProgress())


@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about torch
def test_a_network_that_is_refused_leaves_the_published_one_as_it_was(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alignment_publish, "WIDEST_PARITY", -1.0)
    objective = objective_of("regression", data, card=Publication("tried"))
    (tmp_path / "run").mkdir()
    torch.save({"average": objective.build().state_dict()}, tmp_path / "run" / "best.pt")
    old = {tmp_path / "out" / name: name.encode() for name in OUT_FILES}
    for path, content in old.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(BackendError, match="stored weights move landmarks"):
        publish(objective.config, tmp_path / "run", data, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*/*")} == old


def test_bbfcn_without_a_validation_corpus_is_a_detector(data: Path) -> None:
    config = objective_of("branches", data).config
    assert not config.detects
    assert replace(config, validation="").detects
    assert not replace(config, network=Network("gv", 68), validation="").detects
