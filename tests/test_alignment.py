"""GV's objective on a corpus that was painted: items, loss, validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes import read_landmarks  # noqa: E402 - torch may be missing
from fakes_alignment import SIDE, configuration, write_corpora  # noqa: E402
from fakes_training import write_faces  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from facetrack.tracker import markup, metrics  # noqa: E402
from facetrack.tracker.errors import ConfigError, SourceError  # noqa: E402
from facetrack.tracker.types import Float32, UInt8  # noqa: E402
from facetrack.training.alignment import objective as objectives  # noqa: E402
from facetrack.training.alignment.networks import VectorAlignment, open_alignment  # noqa: E402
from facetrack.training.alignment.targets import gaussian_vectors, quasi_gaussian_vectors  # noqa: E402
from facetrack.training.augment import Geometry, mirror  # noqa: E402
from facetrack.training.config import Corpus, Network, Schedule, Vectors  # noqa: E402

CELLS = SIDE // 4
IBUG = markup.load("ibug68")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def objective(data: Path) -> VectorAlignment:
    return VectorAlignment(configuration(), data)


def test_items_are_identical_across_draws_and_instances(objective: VectorAlignment, data: Path) -> None:
    other = VectorAlignment(configuration(), data)
    for index in range(12):
        first, second, again = (o.item(index, 0.3) for o in (objective, other, objective))
        for a, b, c in zip(first, second, again, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)


def test_another_seed_draws_other_items(objective: VectorAlignment, data: Path) -> None:
    other = VectorAlignment(configuration(schedule=Schedule(steps=100, sizes=((0.0, 64),), seed=1)), data)
    assert any((objective.item(i, 0.0)[0] != other.item(i, 0.0)[0]).any() for i in range(4))


def test_items_have_the_scheduled_size_and_one_in_seven_shows_no_face(objective: VectorAlignment) -> None:
    items = [objective.item(index, 0.0) for index in range(150)]
    assert {crop.shape for crop, _, _ in items} == {(64, 64, 3)}
    assert objective.item(0, 0.5)[0].shape == (SIDE, SIDE, 3)
    faces = np.array([is_face for _, _, is_face in items])
    assert 1 - faces.mean() == pytest.approx(0.14, abs=0.08)
    for _, xy, is_face in items:
        assert xy.shape == (68, 2)
        assert np.isfinite(xy).all() == bool(is_face)


def test_item_points_match_the_painted_pixels_mirrored_or_not(data: Path) -> None:
    """With a mirror or without; only those crops are read whose paint no disturbance touched."""
    calm = configuration(geometry=Geometry(shift=0.02), schedule=Schedule(sizes=((0.0, SIDE),)))
    objective = VectorAlignment(calm, data)
    compared, mirrored = 0, 0
    for index in range(120):
        crop, xy, is_face = objective.item(index, 0.0)
        if not is_face:
            continue
        flipped, flipped_xy = mirror(crop, xy, IBUG)
        for picture, points in ((crop, xy), (flipped, flipped_xy)):
            seen = read_landmarks(picture)
            if seen is not None and np.abs(seen - points).max() < 2.0:
                compared += 1
                mirrored += picture is flipped
                assert np.abs(seen - points).mean() < 1.0
    assert compared >= 12
    assert 0 < mirrored < compared  # some items are mirrored, some are not


def test_the_mixture_moves_from_the_early_to_the_late_weights(objective: VectorAlignment) -> None:
    def share_of_train(progress: float) -> float:
        rng = np.random.default_rng(0)
        drawn = [objective.draw(progress, rng).path.parent.name for _ in range(400)]
        return drawn.count("train") / len(drawn)

    assert share_of_train(0.0) == pytest.approx(0.8, abs=0.06)
    assert share_of_train(0.5) == pytest.approx(0.4 / 0.6, abs=0.06)
    assert share_of_train(1.0) == 0.0


def test_mirroring_twice_gives_the_picture_and_the_points_back() -> None:
    rng = np.random.default_rng(0)
    crop, xy = rng.integers(0, 255, (20, 30, 3), np.uint8), rng.uniform(0, 20, (68, 2)).astype(np.float32)
    once = mirror(crop, xy, IBUG)
    twice = mirror(*once, IBUG)
    np.testing.assert_array_equal(twice[0], crop)
    np.testing.assert_allclose(twice[1], xy, atol=1e-5)
    assert once[1][36, 0] == pytest.approx(29 - xy[45, 0])  # outer corners of the eyes change places


class Told(nn.Module):
    """A network that answers with what it was told, and remembers the crops."""

    def __init__(self, xy: Float32, logits: Float32, cells: int = CELLS) -> None:
        super().__init__()
        vectors = gaussian_vectors(xy.astype(np.float32), cells, 4, 1.2, 3.0)
        self.vectors = nn.Parameter(torch.from_numpy(np.nan_to_num(vectors)))
        self.logits = nn.Parameter(torch.from_numpy(logits.astype(np.float32)))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        assert len(crops) == len(self.vectors)
        return self.vectors, self.logits


def batch_of(xy: Float32, is_face: list[float]) -> list[Tensor]:
    crops = torch.zeros(len(xy), SIDE, SIDE, 3, dtype=torch.uint8)
    return [crops, torch.from_numpy(xy.astype(np.float32)), torch.tensor(is_face, dtype=torch.float32)]


def two_faces_and_nothing() -> Float32:
    xy = np.random.default_rng(2).uniform(15, 80, (3, 68, 2))
    xy[2] = np.nan
    return xy.astype(np.float32)


def test_perfect_prediction_has_near_zero_loss(objective: VectorAlignment) -> None:
    xy = two_faces_and_nothing()
    loss, terms = objective.loss(Told(xy, np.array([[9, 9], [9, 9], [-9, -9]])), batch_of(xy, [1, 1, 0]))
    assert loss.item() < 0.01
    assert set(terms) == {"mse", "coordinate", "nme", "face", "quality"}
    assert terms["mse"] == pytest.approx(0, abs=1e-9)
    assert terms["nme"] < 0.01


def test_the_total_is_the_weighted_sum_of_the_terms(data: Path) -> None:
    weights = Vectors(mse=7.0, coordinate=2.0)
    objective = VectorAlignment(configuration(vectors=weights), data)
    xy = two_faces_and_nothing()
    loss, terms = objective.loss(Told(xy + 3, np.zeros((3, 2))), batch_of(xy, [1, 1, 0]))
    wanted = 7 * terms["mse"] + 2 * terms["coordinate"] + 0.3 * terms["face"] + 0.15 * terms["quality"]
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert terms["face"] == pytest.approx(np.log(2), rel=1e-5)


def test_quasi_gaussian_labels_are_the_mse_target_when_configured(data: Path) -> None:
    """Eq. 2: a Gaussian of height 1 whose middle cell is 1 + theta; the whole Gaussian is another answer then."""
    objective = VectorAlignment(configuration(vectors=Vectors("quasi", sigma=2.0, peak=4.0)), data)
    xy = two_faces_and_nothing()
    net = Told(xy, np.zeros((3, 2)))
    assert objective.loss(net, batch_of(xy, [1, 1, 0]))[1]["mse"] > 0.1
    papers = quasi_gaussian_vectors(xy, CELLS, 4, sigma=2.0, theta=3.0)
    net.vectors = nn.Parameter(torch.from_numpy(papers))
    assert objective.loss(net, batch_of(xy, [1, 1, 0]))[1]["mse"] == 0
    assert papers[:2].max() == 4


def test_an_items_pixels_are_left_alone_where_no_disturbance_is_configured(data: Path) -> None:
    """The crop is then what the file shows: paint in its pure colours, unless the crop's edge cuts it."""
    calm = configuration(disturbances=(), negative_share=0.0, geometry=Geometry(shift=0.02, wide_share=0.0, flip=0.0))
    objective = VectorAlignment(calm, data)
    for index in range(20):
        crop, xy, _ = objective.item(index, 0.9)
        seen = read_landmarks(crop)
        assert seen is not None
        assert np.abs(seen - xy).mean() < 1.0


def test_the_error_term_is_the_inter_ocular_nme(objective: VectorAlignment) -> None:
    xy = two_faces_and_nothing()
    _, terms = objective.loss(Told(xy + np.float32([2.0, 0.0]), np.zeros((3, 2))), batch_of(xy, [1, 1, 0]))
    eyes = np.linalg.norm(xy[:2, 36] - xy[:2, 45], axis=-1)
    assert terms["nme"] == pytest.approx((2.0 / eyes).mean(), rel=0.03)


def test_quality_target_is_whether_the_predicted_landmarks_are_accurate(objective: VectorAlignment) -> None:
    xy = two_faces_and_nothing()
    eyes = np.linalg.norm(xy[1, 36] - xy[1, 45])
    answer = xy.copy()
    answer[1] += 2 * metrics.GOOD_NME * eyes / np.sqrt(2)
    sure = np.array([[0, 9], [0, -9], [0, -9]])
    _, terms = objective.loss(Told(answer, sure), batch_of(xy, [1, 1, 0]))
    assert terms["quality"] < 0.01


def test_batch_without_faces_trains_only_the_scores_and_stays_finite(objective: VectorAlignment) -> None:
    xy = np.full((2, 68, 2), np.nan, np.float32)
    net = Told(xy, np.zeros((2, 2)))
    loss, terms = objective.loss(net, batch_of(xy, [0, 0]))
    loss.backward()
    assert np.isfinite([loss.item(), *terms.values()]).all()
    assert net.vectors.grad is not None
    assert not net.vectors.grad.any()
    assert net.logits.grad is not None
    assert net.logits.grad.all()


def test_coordinate_term_ignores_a_point_outside_the_crop_and_mse_counts_it(objective: VectorAlignment) -> None:
    xy = two_faces_and_nothing()[:1]
    xy[0, 0] = (-6.0, 40.0)
    net = Told(xy, np.zeros((1, 2)))
    with torch.no_grad():
        net.vectors[0, 0, :3, 0] += 0.1
    _, terms = objective.loss(net, batch_of(xy, [1]))
    assert terms["coordinate"] < 1e-3  # not pulled to where no centroid can be
    assert terms["mse"] > 0


class Reader(nn.Module):
    """A network that reads the painted landmarks from the crop, off by a few pixels where it is asked to be."""

    def __init__(self, offset_px: float = 0.0) -> None:
        super().__init__()
        self.offset_px = nn.Parameter(torch.tensor(offset_px))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        found = [_read(crop) for crop in crops.numpy()]
        xy = np.stack(found) + np.float32([self.offset_px.item(), 0])
        return torch.from_numpy(gaussian_vectors(xy, CELLS, 4, 1.2, 3.0)), torch.zeros(len(crops), 2)


def _read(crop: UInt8) -> Float32:
    points = read_landmarks(crop)
    assert points is not None
    return points


def test_validation_reports_nme_in_percent_upright_and_rolled_by_30_degrees(objective: VectorAlignment) -> None:
    report = objective.validate(Reader())
    assert list(report) == ["nme", "nme_roll30"]
    assert max(report.values()) < 0.6
    off = objective.validate(Reader(offset_px=4.0))
    # 4 of 96 crop pixels; a crop is 1.25 boxes, the outer eye corners of the mean face are 0.64 of its box apart
    assert off["nme"] == pytest.approx(100 * 4 / 96 * 1.25 / 0.64, rel=0.15)
    assert off["nme_roll30"] == pytest.approx(off["nme"], rel=0.15)


def test_preview_draws_the_found_points_and_pads_the_row_with_blanks(objective: VectorAlignment) -> None:
    picture = objective.picture(Reader())
    assert picture.shape == (SIDE, 6 * SIDE, 3)
    green = (picture == (0, 255, 0)).all(-1)
    assert [bool(green[:, i * SIDE : (i + 1) * SIDE].any()) for i in range(6)] == [True] * 3 + [False] * 3


def test_network_builds_with_valid_options_and_raises_for_others(data: Path) -> None:
    net = VectorAlignment(configuration(), data).build()
    with torch.inference_mode():
        vectors, logits = net.eval()(torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8))
    assert vectors.shape == (1, 68, CELLS, 2)
    assert logits.shape == (1, 2)
    for options in ({"widht": 3}, {"width": -1}):
        wrong = configuration(network=Network("gv", 68, options))
        with pytest.raises(ConfigError, match=rf"network gv with {options}"):
            VectorAlignment(wrong, data).build()


def test_validation_picture_in_a_training_corpus_raises_even_when_renamed(data: Path, tmp_path: Path) -> None:
    for folder in ("grass", "held", "train"):
        (tmp_path / folder).symlink_to(data / folder)
    (tmp_path / "more").mkdir()
    for suffix in (".png", ".pts"):
        (tmp_path / "more" / f"renamed{suffix}").write_bytes((data / "held" / f"8{suffix}").read_bytes())
    with pytest.raises(ConfigError, match=r"renamed\.png is .*8\.png of the validation; take"):
        VectorAlignment(configuration(corpora=(Corpus("train"), Corpus("more"))), tmp_path)
    assert VectorAlignment(
        configuration(corpora=(Corpus("held"),)), tmp_path
    ).validation  # one folder for both is meant


@pytest.mark.parametrize(("disturbances", "written"), [(("blur",), True), ((), False)])
def test_text_is_drawn_on_negatives_only_if_disturbances_are_configured(
    disturbances: tuple[str, ...], *, written: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inked: list[UInt8] = []
    monkeypatch.setattr(objectives, "written_on", lambda bgr, _: inked.append(bgr) or bgr)
    objective = VectorAlignment(configuration(disturbances=disturbances), data)
    for seed in range(60):
        objective.negative(64, 0.0, np.random.default_rng(seed))
    assert bool(inked) == written


@pytest.mark.parametrize("missing", ["corpora", "negatives", "validation"])
def test_missing_corpora_negatives_or_validation_raises(data: Path, missing: str) -> None:
    with pytest.raises(ConfigError, match="wanted at least one of corpora"):
        VectorAlignment(configuration(**{missing: ()}), data)


def test_without_negatives_every_item_shows_a_face(data: Path) -> None:
    objective = VectorAlignment(configuration(negatives=(), negative_share=0.0), data)
    assert all(objective.item(i, 0.5)[2] == 1 for i in range(12))


@pytest.mark.parametrize("name", ["tab", "propnet", "span"])
def test_boundary_network_raises_for_a_markup_without_boundaries(name: str, tmp_path: Path) -> None:
    """Before any picture is read: there are none."""
    with pytest.raises(ConfigError, match=rf"network: {name} needs a markup with 15 boundary lines, five5 has 0"):
        open_alignment(configuration(network=Network(name, 5)), tmp_path)
    with pytest.raises(SourceError):
        open_alignment(configuration(network=Network(name, 19)), tmp_path)


def test_corpus_with_wrong_points_raises_naming_the_file_and_an_empty_corpus_raises(data: Path, tmp_path: Path) -> None:
    write_faces(tmp_path / "five", 1)
    (tmp_path / "five" / "0.pts").write_text("n_points: 1\n{\n1 2\n}\n")
    for folder in ("grass", "held"):
        (tmp_path / folder).symlink_to(data / folder)
    with pytest.raises(ConfigError, match=r"0\.pts: wanted all 68 points of ibug68"):
        VectorAlignment(configuration(corpora=(Corpus("five"),)), tmp_path)
    with pytest.raises(SourceError, match="no pictures found"):
        VectorAlignment(configuration(corpora=(Corpus("none"),)), tmp_path)
