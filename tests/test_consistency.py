"""Pairs of crops, what moves one into the other, and what agreement costs each kind of network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes import read_landmarks  # noqa: E402 - torch may be missing
from fakes_alignment import OPTIONS, configuration, perfect, write_corpora  # noqa: E402
from torch import Tensor  # noqa: E402

from facetrack.engines.nets.hourglass import Supervision  # noqa: E402
from facetrack.tracker import markup  # noqa: E402
from facetrack.tracker.codecs import field_lines  # noqa: E402
from facetrack.tracker.errors import ConfigError  # noqa: E402
from facetrack.tracker.pose import eye_aspect_ratio  # noqa: E402
from facetrack.tracker.types import Float64, UInt8  # noqa: E402
from facetrack.training.alignment import span_loss  # noqa: E402
from facetrack.training.alignment.boundaries import boundary_mirror, curve_maps  # noqa: E402
from facetrack.training.alignment.maps import gaussian_maps, warp_maps  # noqa: E402
from facetrack.training.alignment.networks import open_alignment  # noqa: E402
from facetrack.training.alignment.objective import Labels, part  # noqa: E402
from facetrack.training.alignment.targets import gaussian_vectors  # noqa: E402
from facetrack.training.augment import Geometry  # noqa: E402
from facetrack.training.config import Config, Consistency, Corpus, Expressions, Network, Schedule  # noqa: E402
from facetrack.training.objectives import open_objective  # noqa: E402
from facetrack.training.span import LABELLED, NOTHING, UNLABELLED, SelfConsistency  # noqa: E402
from facetrack.training.train import Run  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

IBUG = markup.load("ibug68")
RULES = Consistency(weight=4.0, unlabelled=(Corpus("weak"),))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("data"))


def config_of(name: str = "gv", **changes: object) -> Config:
    network = Network(name, 68, OPTIONS[name] | {"face_score": True}) if name in OPTIONS else configuration().network
    return configuration(network=network, **({"consistency": RULES} | changes))


@pytest.fixture(scope="module")
def pairs(data: Path) -> SelfConsistency:
    return SelfConsistency(config_of(), data)


def test_transform_maps_the_clean_crops_points_onto_the_disturbed_crops(pairs: SelfConsistency) -> None:
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


def test_clean_crop_pixels_match_its_points(pairs: SelfConsistency) -> None:
    checked = 0
    for index in range(12):
        crop, _, calm, _, _, kind = pairs.item(index, 0.9)
        if kind != NOTHING:
            found = read_landmarks(crop)
            assert found is not None
            assert np.linalg.norm(found - calm, axis=-1).mean() < 1.0
            checked += 1
    assert checked > 5


def test_items_are_labelled_unlabelled_or_negative_in_the_expected_shares(pairs: SelfConsistency) -> None:
    kinds = [int(pairs.item(index, 0.1)[5]) for index in range(150)]
    assert 8 < kinds.count(NOTHING) < 36  # 14 %
    assert 40 < kinds.count(UNLABELLED) < 90
    assert 40 < kinds.count(LABELLED) < 90


def test_label_share_makes_the_remaining_faces_unlabelled_reproducibly(data: Path) -> None:
    objective = SelfConsistency(config_of(consistency=Consistency(labels=0.5)), data)
    assert [len(corpus) for corpus in objective.inner.corpora] == [2, 2]
    assert len(objective.unlabelled) == 3
    again = SelfConsistency(config_of(consistency=Consistency(labels=0.5)), data)
    assert [s.path for s in again.unlabelled] == [s.path for s in objective.unlabelled]


def test_closed_eyes_are_drawn_only_from_labelled_faces(data: Path) -> None:
    rules = Consistency(labels=0.5, share=0.0)
    objective = SelfConsistency(config_of(consistency=rules, expressions=Expressions(closed=0.9)), data)
    for faces in (*objective.inner.corpora, objective.unlabelled):
        for sample in faces:
            sample.points[0, [37, 38, 43, 44]] = sample.points[0, [41, 40, 47, 46]]  # every eye is closed
    objective.inner.set_corpora(objective.inner.corpora)
    labelled = {sample.path for corpus in objective.inner.corpora for sample in corpus}
    assert {sample.path for closed in objective.inner.closed for sample in closed} == labelled
    drawn = {objective.inner.draw(0.0, np.random.default_rng(i)).path for i in range(60)}
    assert drawn == labelled


def test_expressions_are_drawn_in_both_crops_of_labelled_faces_only(data: Path) -> None:
    rules = Expressions(blinks=1.0)
    settings = config_of(expressions=rules, geometry=Geometry(stretch=0.0), negative_share=0.0)
    objective = SelfConsistency(settings, data)
    usual = min(eye_aspect_ratio(objective.unlabelled[0].points[0]))
    narrowed: dict[int, list[float]] = {LABELLED: [], UNLABELLED: []}
    for index in range(24):
        _, _, calm, wild, way, kind = objective.item(index, 0.9)
        eyes = [min(eye_aspect_ratio(xy)) / usual for xy in (calm, wild)]
        assert eyes[0] == pytest.approx(eyes[1], abs=1e-3)
        narrowed[int(kind)].append(eyes[0])
        moved = calm @ way[:, :2].T + way[:, 2]
        mirrored = np.linalg.det(way[:, :2]) < 0
        np.testing.assert_allclose(moved[IBUG.mirror] if mirrored else moved, wild, atol=2e-2)
    assert narrowed[UNLABELLED] == pytest.approx([1.0] * len(narrowed[UNLABELLED]), abs=1e-3)
    assert max(narrowed[LABELLED]) < 0.9


def test_only_labelled_pairs_use_the_pixels_with_the_drawn_expression(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pen that wipes the face out of the picture: nobody can see it any more in a calm crop."""
    objective = SelfConsistency(config_of(negative_share=0.0), data)
    monkeypatch.setattr(objective.inner, "expressive", lambda sample, _: (0 * sample.bgr(), sample.points[0]))
    items = [objective.item(index, 0.9) for index in range(12)]
    assert {(int(kind), read_landmarks(crop) is None) for crop, _, _, _, _, kind in items} == {
        (LABELLED, True),
        (UNLABELLED, False),
    }


def test_missing_unlabelled_pictures_raise_unless_their_share_is_zero(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"consistency\.share: wanted pictures without labels"):
        SelfConsistency(config_of(consistency=Consistency(weight=1.0)), data)
    SelfConsistency(config_of(consistency=Consistency(weight=1.0, share=0.0)), data)


def test_the_configuration_decides_whether_pairs_are_trained(data: Path, tmp_path: Path) -> None:
    assert isinstance(open_objective(config_of(), data, tmp_path), SelfConsistency)
    plain = open_objective(config_of(consistency=Consistency()), data, tmp_path)
    assert not isinstance(plain, SelfConsistency)


@pytest.mark.parametrize("name", ["gv", *OPTIONS])
def test_a_batch_of_pairs_trains_every_part_of_the_network(name: str, data: Path) -> None:
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


def test_clean_crop_scales_with_the_configured_box_and_is_undistorted(data: Path) -> None:
    """And as undistorted: its spread beyond that is small and its own."""
    sides = {}
    for scale in (1.0, 2.0):
        geometry = Geometry(box_scale=scale, stretch=0.0, shift=0.0)
        objective = SelfConsistency(config_of(geometry=geometry, negative_share=0.0), data)
        bgr, points = objective.unlabelled[0].bgr(), objective.unlabelled[0].points[0]
        calm = [objective._two_crops(bgr, points, 96, np.random.default_rng(i))[0] for i in range(30)]
        sides[scale] = np.mean([96 / np.hypot(*seen.matrix[:, 0]) for seen in calm])
        for seen in calm:
            assert np.hypot(*seen.matrix[:, 0]) == pytest.approx(np.hypot(*seen.matrix[:, 1]))
    assert sides[2.0] == pytest.approx(2 * sides[1.0], rel=1e-6)


def test_texture_setting_selects_the_pixel_augmentation(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("disguise", "disguise_as_published"):
        monkeypatch.setattr(f"facetrack.training.span.{name}", lambda bgr, *_, n=name: called.append(n) or bgr)
    for texture in ("varied", "paper"):
        rules = replace(RULES, texture=texture)
        SelfConsistency(config_of(consistency=rules, negative_share=0.0), data).item(0, 0.5)
    assert called == ["disguise", "disguise_as_published"]


def test_other_faces_serve_as_occluders_but_never_as_background(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the seed says which ones."""
    seen: list[list[UInt8]] = []
    monkeypatch.setattr("facetrack.training.span.disguise", lambda bgr, patches, _: seen.append(patches) or bgr)
    monkeypatch.setattr("facetrack.training.span.COVERING", 3)
    for seed in (0, 0, 1):
        settings = config_of(negative_share=0.0, schedule=Schedule(seed=seed))
        objective = SelfConsistency(settings, data)
        objective.item(0, 0.5)
        assert [read_landmarks(patch) for patch in objective.inner.patches] == [None]
    for patches in seen:
        assert [read_landmarks(patch) is not None for patch in patches] == [False, True, True, True]
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])


def test_paper_texture_adds_no_other_faces_as_occluders(data: Path) -> None:
    objective = SelfConsistency(config_of(consistency=replace(RULES, texture="paper")), data)
    assert objective.occluders == objective.inner.patches


def js(p: Float64, q: Float64) -> float:
    """Eq. 15 of two maps, each over its sum, as written."""
    p, q = (np.maximum(m / m.sum(), 1e-300) for m in (p, q))
    m = (p + q) / 2
    return float(0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum())


def mean_js(p: Tensor, q: Tensor) -> float:
    """Mean of Eq. 15 over the channels of two (K, h, w)."""
    return float(np.mean([js(a, b) for a, b in zip(p.double().numpy(), q.double().numpy(), strict=True)]))


def chance(logits: Tensor) -> Tensor:
    return logits.flatten(1).softmax(1).view_as(logits)


def eq_19_of_one_crop(answer: Supervision, xy: Tensor) -> float:
    """The braces of Eq. 19 for one face (1, ...) and one k, with lambda_1, eta, lambda_2, gamma = 1, 4, 16, 40."""
    total = 0.0
    for t, (heat, lines) in enumerate(zip(answer.landmarks, answer.boundaries, strict=True)):
        last = t == len(answer.landmarks) - 1
        stride, sigma, weight = (2, 1.5, 1) if last else (4, 1.0, 4)
        size = (heat.shape[2], heat.shape[3])
        total += weight * mean_js(chance(heat[0]), gaussian_maps(xy, size, stride, sigma)[0])
        total += weight * mean_js(chance(lines[0]), curve_maps(xy, IBUG, size, stride, sigma, 2.0)[0])
    lines_of = field_lines(IBUG, 68)
    members = torch.arange(68)[:, None]
    place, top = span_loss.field_centroid(chance(answer.landmarks[-1][0])[None], answer.field, members)
    total += 16 * span_loss.field_term(answer.field, xy, lines_of).item()
    return total + 40 * span_loss.coordinate_error(place, top, xy, 64).item()


def eta_term_of_one_pair(alpha: Supervision, beta: Supervision, matrix: Tensor) -> float:
    """The last line of Eq. 19, and Eq. 20's, for one face; eta = 4."""
    total = 0.0
    mirrors = (IBUG.mirror, boundary_mirror(IBUG))
    for first, second, mirror in zip(
        (alpha.landmarks[0], alpha.boundaries[0]), (beta.landmarks[0], beta.boundaries[0]), mirrors, strict=True
    ):
        moved = warp_maps(chance(first[0])[None], matrix, 4, torch.tensor(mirror.copy()))
        total += mean_js(moved[0], chance(second[0]))
    return 4 * total


@pytest.mark.parametrize(("labelled", "others", "share"), [(2, 0, 0.0), (2, 2, 0.5), (1, 3, 0.75)])
def test_spans_loss_is_the_sum_of_equations_19_and_20(labelled: int, others: int, share: float, data: Path) -> None:
    """Of N faces with labels and M without, over 2 N: what the terms with labels are means over."""
    rules = replace(RULES, weight=4.0, share=share)
    objective = SelfConsistency(config_of("span", consistency=rules), data)
    rng = torch.Generator().manual_seed(0)
    faces, crops = labelled + others, 2 * (labelled + others)
    xy = torch.rand(2, faces, 68, 2, generator=rng) * 70 + 29
    matrices = torch.cat([similarity(0.1 * i, 0.95, flip=bool(i % 2)) for i in range(faces)])

    def maps(channels: int, side: int) -> Tensor:
        return torch.randn(crops, channels, side, side, generator=rng)

    answer = Supervision(
        (maps(68, 32), maps(68, 64)), (maps(15, 32), maps(15, 64)), maps(68 * 2, 64).unflatten(1, (68, 2))
    )
    kind = torch.tensor([LABELLED] * labelled + [UNLABELLED] * others)
    blank = torch.zeros(faces, 128, 128, 3, dtype=torch.uint8)
    loss, _ = objective.loss(lambda _: answer, [blank, blank, *xy, matrices, kind])  # type: ignore[arg-type]

    def pair(n: int) -> tuple[Supervision, Supervision]:
        """The answers to face n, which `loss` has in this order: alpha and beta with labels, then without."""
        start, count = (n, labelled) if n < labelled else (labelled + n, others)
        return part(answer, start, start + 1), part(answer, start + count, start + count + 1)

    by_hand = sum(eta_term_of_one_pair(*pair(n), matrices[n : n + 1]) for n in range(faces))
    by_hand += sum(eq_19_of_one_crop(pair(n)[k], xy[k, n : n + 1]) for n in range(labelled) for k in (0, 1))
    assert loss.item() == pytest.approx(by_hand / (2 * labelled), rel=1e-4)


def test_batch_without_labelled_faces_keeps_the_consistency_weight(data: Path) -> None:
    settings = config_of("span", schedule=Schedule(sizes=((0.0, 128),)))
    objective = SelfConsistency(settings, data)
    items = (objective.item(index, 0.0) for index in range(100))
    batch = list(torch.utils.data.default_collate([item for item in items if item[5] == UNLABELLED][:2]))
    torch.manual_seed(0)
    net = objective.build().train()
    loss, terms = objective.loss(net, batch)
    rest = sum(weight * terms[name] for name, weight in (("face", 0.3), ("quality", 0.15)))
    assert loss.item() == pytest.approx(4.0 * terms["consistency"] + rest, rel=1e-5)


def similarity(angle: float, scale: float, *, flip: bool) -> Tensor:
    """About the middle of a 128-pixel crop, (1, 2, 3)."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if flip else 1.0, 1.0])
    shift = 63.5 - matrix @ [63.5, 63.5]
    return torch.tensor(np.column_stack((matrix, shift))[None], dtype=torch.float32)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", ["gv", *OPTIONS])
def test_predictions_that_move_with_the_face_diverge_far_less_than_others(name: str, flip: bool, data: Path) -> None:
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


class Knowing(torch.nn.Module):
    """A teacher of GV that sees where the calm crops' landmarks are, for it was told."""

    def __init__(self, xy: Tensor) -> None:
        super().__init__()
        self.xy = xy

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        vectors = gaussian_vectors(self.xy.numpy(), crops.shape[1] // 4, 4, 1.2, 3.0)
        return torch.from_numpy(vectors), torch.zeros(len(crops), 2)


def taught(data: Path, **rules: object) -> tuple[SelfConsistency, list[Tensor]]:
    """The objective with a teacher who knows, and a batch of faces, four with labels and then four without."""
    settings = config_of(consistency=replace(RULES, teacher="average", weight=1.0, **rules))
    objective = SelfConsistency(replace(settings, schedule=replace(settings.schedule, sizes=((0.0, 128),))), data)
    items = [objective.item(index, 0.0) for index in range(100)]
    chosen = [[item for item in items if item[5] == kind][:4] for kind in (LABELLED, UNLABELLED)]
    batch = list(torch.utils.data.default_collate(chosen[0] + chosen[1]))
    objective.teacher = Knowing(batch[2][4:])
    return objective, batch


def test_teacher_landmarks_of_the_clean_crop_become_labels_of_the_disturbed_one(data: Path) -> None:
    objective, batch = taught(data)
    found = objective._teachers_points(batch[0][4:], batch[4][4:])
    assert {bool(torch.linalg.det(matrix[:, :2]) < 0) for matrix in batch[4][4:]} == {True, False}
    torch.testing.assert_close(found, batch[3][4:], atol=0.3, rtol=0)  # decoding's own error, enlarged


def test_with_a_perfect_teacher_unlabelled_crops_count_like_labelled_ones(data: Path) -> None:
    objective, batch = taught(data, share=0.5)
    torch.manual_seed(0)
    net = objective.build().eval()  # in training mode crops would depend on each other
    net.net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.Dropout):
            module.eval()
    _, told = objective.loss(net, batch)
    crops, xy = torch.cat((batch[0][:4], batch[1])), torch.cat((batch[2][:4], batch[3]))
    _, wanted = objective.inner.landmark_terms(net(crops), Labels(xy))
    own = [name for name in wanted if f"taught {name}" in told]
    assert own
    for name in own:  # twelve crops' errors over the eight of labelled faces
        assert told[name] + told[f"taught {name}"] * 4 / 8 == pytest.approx(wanted[name][1].item() * 12 / 8, rel=2e-2)


def test_teacher_is_the_runs_average_and_receives_no_gradient(data: Path, tmp_path: Path) -> None:
    settings = config_of(consistency=replace(RULES, teacher="average"))
    schedule = Schedule(steps=2, batch=6, sizes=((0.0, 64),), workers=0, validate_every=2, checkpoint_every=2)
    objective = SelfConsistency(replace(settings, schedule=schedule), data)
    run = Run(objective.config, objective, tmp_path)
    assert objective.teacher is run.average
    run.train()
    assert all(parameter.grad is None for parameter in run.average.parameters())


def test_unknown_teacher_raises() -> None:
    with pytest.raises(ConfigError, match=r"consistency\.teacher: wanted 'itself' or 'average', got 'me'"):
        Consistency(teacher="me")


def test_average_teacher_with_a_zero_unlabelled_share_raises() -> None:
    with pytest.raises(
        ConfigError, match=r"consistency\.share: wanted above 0 with consistency\.teacher 'average'.*got 0"
    ):
        Consistency(teacher="average", weight=1.0, share=0.0)
