"""What scores are worth: fits that find what was put in, and cards that keep what was learned."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from fakes import PaintedSource
from fakes_benchmarks import face_number, picture_of, pts_text
from fakes_nineteen import OF_68, NineteenBackend, nineteen_card
from fakes_pipeline import PaintedBackend, painted_card
from fakes_training import write_faces

from facetrack.calibration import noise
from facetrack.calibration.commands import calibrate
from facetrack.calibration.noise import Calibration, Judged, Noise
from facetrack.calibration.noise_report import as_text, plot, write_calibration
from facetrack.engines.aligner import Aligner
from facetrack.engines.backend import Shapes
from facetrack.engines.card import SHIPPED, Weights, read_card
from facetrack.engines.card_text import card_path, write_card, write_weights
from facetrack.pipeline.open import smoother_settings
from facetrack.tracker import metrics
from facetrack.tracker.errors import BackendError, CardError, ConfigError, SinkError, SourceError
from facetrack.tracker.geometry import CropTransform, bounding_box, box_centre_side
from facetrack.tracker.rts import RtsSmoother
from facetrack.tracker.smooth import Smoother
from facetrack.tracker.types import Float32
from facetrack.training.augment import Geometry, random_crop
from facetrack.training.datasets import Sample
from facetrack.training.evaluation import error_curves

LEARNED = Calibration(
    confidence=(0.8, -0.2),
    noise=Noise(0.0012, 0.0009, 2.0, ((0.3, 0.004), (0.6, 0.002))),
    errors={"5-fold": 0.012},
    before={"5-fold": 0.05},
    reliability=((0.0, 10, 0.04, 0.1), (0.9, 90, 0.97, 0.96)),
)


def drawn(slope: float, offset: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(1, 3, count)
    return logits, (rng.random(count) < 1 / (1 + np.exp(-(slope * logits + offset)))).astype(float)


def test_the_logistic_fit_finds_the_slope_and_offset_that_made_the_data() -> None:
    slope, offset = noise.fit_logistic(*drawn(0.6, -0.9))
    assert (slope, offset) == pytest.approx((0.6, -0.9), abs=0.05)


def test_the_logistic_fit_is_scipys_minimum() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason='needs pip install "facetrack[eval]"')
    logits, good = drawn(0.6, -0.9, 200)
    rights, wrongs = good.sum(), (1 - good).sum()
    target = np.where(good > 0, (rights + 1) / (rights + 2), 1 / (wrongs + 2))

    def loss(beta: np.ndarray) -> float:
        z = beta[0] * logits + beta[1]
        return float((np.logaddexp(0, z) - target * z).sum())

    np.testing.assert_allclose(noise.fit_logistic(logits, good), optimize.minimize(loss, [1.0, 0.0]).x, atol=1e-4)


def test_logistic_fit_of_separable_data_stays_finite() -> None:
    slope, offset = noise.fit_logistic(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert 0 < slope < 100
    assert abs(offset) < 10


def test_logistic_fit_raises_for_a_single_class_or_a_falling_score() -> None:
    with pytest.raises(ConfigError, match="got 2 and 0"):
        noise.fit_logistic(np.array([1.0, 2.0]), np.ones(2))
    with pytest.raises(ConfigError, match="rise with the logit"):
        noise.fit_logistic(np.array([-2.0, -1.0, 1.0, 2.0] * 9), np.array([1.0, 1.0, 0.0, 0.0] * 9))


def test_calibration_error_and_reliability_match_a_hand_computed_table() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.15, 0.15])
    good = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    # four crops said 0.95 and 0.75 were right, two said 0.15 and half were right
    assert noise.calibration_error(confidence, good) == pytest.approx(4 / 6 * 0.20 + 2 / 6 * 0.35)
    assert noise.reliability(confidence, good) == (
        (0.1, 2, pytest.approx(0.15), 0.5),
        (0.9, 4, pytest.approx(0.95), 0.75),
    )


def test_calibrated_confidences_have_near_zero_calibration_error() -> None:
    logits, good = drawn(1.0, 0.0)
    assert noise.calibration_error(noise.chance(logits, (1.0, 0.0)), good) < 0.01
    assert noise.calibration_error(noise.chance(logits, (3.0, 0.0)), good) > 0.05


@pytest.mark.parametrize("value", [-12.0, -0.5, 0.0, 3.0, 12.0])
def test_logit_inverts_chance(value: float) -> None:
    assert noise.logit(float(noise.chance(np.array(value), (1.0, 0.0)))) == pytest.approx(value, abs=0.05)


def test_split_noise_separates_common_from_individual_noise() -> None:
    rng = np.random.default_rng(1)
    face = rng.uniform(0, 1, (68, 2))
    own, common = zip(
        *(
            (rest.mean(), shared)
            for shared, rest in (
                noise.split_noise(face + rng.normal(0, 0.02, (12, 68, 2)) + rng.normal(0, 0.01, (12, 1, 2)))
                for _ in range(200)
            )
        ),
        strict=True,
    )
    assert np.sqrt(np.mean(own)) == pytest.approx(0.02, rel=0.02)
    assert np.sqrt(np.mean(common)) == pytest.approx(0.01, rel=0.1)


def test_shift_between_two_measurements_is_common_noise_only() -> None:
    face = np.random.default_rng(2).uniform(0, 1, (68, 2))
    common, own = noise.split_noise(np.stack((face, face + np.array([0.02, 0.0]))))
    assert common == pytest.approx((0.02**2 / 2 + 0) / 2)  # mean over the axes of the variance of two numbers
    assert own.max() < 1e-20


def test_affine_motion_gives_no_individual_noise() -> None:
    face = np.random.default_rng(2).uniform(0, 1, (68, 2))
    shapes = np.stack([face * (1 + 0.01 * k) + [0.1 * k, 0] for k in range(5)])
    assert noise.split_noise(shapes)[1].max() < 1e-20


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_fit_noise_recovers_a_power_law_of_the_score(power: float) -> None:
    score = np.random.default_rng(3).uniform(0.5, 1, 5000)
    fitted = noise.fit_noise(score, (0.0015 * score**-power) ** 2, 0.001**2)
    assert (fitted.own, fitted.shared, fitted.power) == pytest.approx((0.0015, 0.001, power), rel=0.02)
    for at, sigma in fitted.bins:
        assert sigma == pytest.approx(fitted.sigma(at), rel=0.02)


def test_fit_noise_of_constant_scores_has_zero_power() -> None:
    fitted = noise.fit_noise(np.full(100, 0.5), np.full(100, 0.002**2), 0.0)
    assert (fitted.own, fitted.power) == pytest.approx((0.002, 0.0))
    assert str(fitted.power) == "0.0"  # and not -0.0, which would stand in the card


@pytest.mark.parametrize("power", [-0.5, -2.0])
def test_fit_noise_is_constant_if_noise_grows_with_the_score(power: float) -> None:
    """No line that rises is fitted, and none of its numbers stays: own would be that of score 1, the largest."""
    score = np.random.default_rng(3).uniform(0.5, 1, 5000)
    fitted = noise.fit_noise(score, (0.0015 * score**-power) ** 2, 0.001**2)
    sigmas = [sigma for _, sigma in fitted.bins]
    assert (fitted.own, fitted.power) == (pytest.approx(np.exp(np.mean(np.log(sigmas)))), 0.0)
    assert min(sigmas) < fitted.own < max(sigmas)
    assert str(fitted.power) == "0.0"


def test_calibrated_card_changes_the_confidence_and_plain_aligner_ignores_it() -> None:
    card = painted_card()
    crop = np.full((*card.size, 3), 128, np.uint8)
    still = CropTransform(np.eye(2, 3), card.size)
    calibrated = replace(card, calibration={"confidence": [2.0, -1.0], "other": 1})
    plain, changed, again = (
        aligner.align(crop, [still])[0].confidence
        for aligner in (
            Aligner(card, PaintedBackend()),
            Aligner(calibrated, PaintedBackend()),
            noise.plain_aligner(calibrated, PaintedBackend()),
        )
    )
    assert changed == pytest.approx(float(noise.chance(np.array(noise.logit(plain)), (2.0, -1.0))), abs=1e-6)
    assert again == plain


def test_scores_are_judged_in_crops_of_the_same_scale_as_in_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The face fills 1 / box_scale of the crop in use, and of the spoilt crops in the middle."""
    card = replace(painted_card(), box_scale=1.6)
    source = PaintedSource(count=1)
    truth = source.truth(0)[0]
    picture = cv2.imencode(".png", source.picture(0))[1].tobytes()
    filled = []

    def seen(points: Float32, size: int, geometry: Geometry, rng: np.random.Generator) -> CropTransform:
        transform = random_crop(points, size, geometry, rng)
        filled.append(transform.scale * box_centre_side(bounding_box(points))[1] / size)
        return transform

    monkeypatch.setattr(noise, "random_crop", seen)
    aligner = Aligner(card, PaintedBackend())
    noise.judge(aligner, [Sample(Path("a.png"), truth[None], picture)], 60, np.random.default_rng(0))
    assert np.median(filled) == pytest.approx(1 / 1.6, rel=0.1)


def test_19_point_network_without_outer_eye_corners_is_judged_by_the_points_box(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noise, "disturb", lambda crop, *_: crop)  # painted faces are read from their colours
    faces = [face_number(i) for i in range(noise.FOLDS)]
    pictures = [cv2.imencode(".png", picture_of(face))[1].tobytes() for face in faces]
    samples = [
        Sample(Path("a.png"), face.landmarks(0)[None, OF_68], picture)
        for face, picture in zip(faces, pictures, strict=True)
    ]
    right = 3.0  # crop pixels
    aligner = Aligner(nineteen_card(), NineteenBackend(right=right))
    judged = noise.judge(aligner, samples, 8, np.random.default_rng(0))
    side = aligner.card.size[0] / aligner.card.box_scale  # about that of the points' box, which is almost a square
    assert np.median(judged.nme) == pytest.approx(right / side, rel=0.3)
    assert noise.measure_noise(aligner, samples, 3, np.random.default_rng(0)).own > 0


def test_measure_noise_raises_if_too_few_photographs_are_aligned_well() -> None:
    faces = [face_number(i) for i in range(noise.FOLDS)]
    samples = [
        Sample(Path("a.png"), face.landmarks(0)[None, OF_68], cv2.imencode(".png", picture_of(face))[1].tobytes())
        for face in faces
    ]
    side = nineteen_card().size[0] / nineteen_card().box_scale  # about that of the points' box, crop pixels
    aligner = Aligner(nineteen_card(), NineteenBackend(right=2 * metrics.GOOD_NME * side))
    with pytest.raises(ConfigError, match=f"wanted at least {noise.FOLDS} photographs .* got 0"):
        noise.measure_noise(aligner, samples, 3, np.random.default_rng(0))


def test_calibration_error_is_cross_validated_on_unseen_photographs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In every fold but the first a higher logit is a better crop; in the first, unknown to them, a worse one."""
    logits, good = drawn(1.0, 0.0, 200)
    picture = np.arange(200)
    first = picture % noise.FOLDS == 0
    good[first] = logits[first] < 0
    judged = Judged(picture, logits, np.where(good > 0, 0.0, 1.0))
    unseen = np.empty(200)
    for fold in range(noise.FOLDS):
        out = picture % noise.FOLDS == fold
        unseen[out] = noise.chance(logits[out], noise.fit_logistic(logits[~out], good[~out]))
    monkeypatch.setattr(noise, "judge", lambda *_: judged)
    monkeypatch.setattr(noise, "measure_noise", lambda *_: LEARNED.noise)
    learned = noise.calibrate(Aligner(painted_card(), PaintedBackend()), [], {})
    assert learned.errors == {"5-fold": pytest.approx(noise.calibration_error(unseen, good))}
    assert learned.reliability == noise.reliability(unseen, good)
    assert learned.confidence == noise.fit_logistic(logits, good)


def test_network_without_face_scores_raises_before_anything_is_measured() -> None:
    backend = PaintedBackend(shapes=Shapes((None, 128, 128, 3), ((None, 68, 32, 2),)))
    face = PaintedSource(count=1)
    samples = [Sample(Path("a.png"), np.stack(face.truth(0)[:1]), cv2.imencode(".png", face.picture(0))[1].tobytes())]
    with pytest.raises(CardError, match="does not score faces"):
        noise.calibrate(noise.plain_aligner(painted_card(), backend), samples, {})
    assert backend.calls == 0


def test_smoother_settings_use_the_measured_noise() -> None:
    card = replace(painted_card(), calibration=LEARNED.table())
    assert (smoother_settings(card).noise, smoother_settings(card).shared_noise) == (0.0012, 0.0009)
    assert smoother_settings(card).score_power == 2.0
    assert smoother_settings(painted_card()).noise > 0


@pytest.mark.parametrize("smoother", [Smoother, RtsSmoother])
def test_smoothers_halve_the_noise_even_if_score_power_and_shared_noise_are_zero(
    smoother: type[Smoother] | type[RtsSmoother],
) -> None:
    fitted = noise.fit_noise(np.full(100, 0.5), np.full(100, 0.002**2), 0.0)
    assert (fitted.shared, fitted.power) == (0.0, 0.0)
    card = replace(painted_card(), calibration=replace(LEARNED, noise=fitted).table())
    rng, face = np.random.default_rng(4), np.random.default_rng(5).uniform(200, 350, (68, 2))
    filtered = smoother(smoother_settings(card), 68)
    places = []
    for frame in range(20):
        xy = (face + rng.normal(0, 0.3, face.shape)).astype(np.float32)
        found = filtered.update(frame / 30, xy, np.full(68, 0.5, np.float32), 150.0)
        places.append(found[0] if found else xy)
    found = filtered.take(20)[0] if isinstance(filtered, RtsSmoother) else np.stack(places)
    assert np.abs(found[10:] - face).mean() < 0.15  # half the noise's


def test_a_card_is_written_with_its_weights_and_read_back(tmp_path: Path) -> None:
    weights = tmp_path / "net.onnx"
    weights.write_bytes(b"numbers")
    card = replace(painted_card(), weights={"net": Weights(weights, hashlib.sha256(b"numbers").hexdigest(), "fp32")})
    path = write_calibration(card, LEARNED, tmp_path / "out")
    read = read_card(path)
    assert read.calibration["confidence"] == [0.8, -0.2]
    assert read.calibration["noise"] == [0.0012, 0.0009, 2.0]
    assert read.calibration["confidence_ece"] == {"5-fold": 0.012}
    assert read.weights["net"].read() == b"numbers"
    newer = replace(LEARNED, confidence=(1.1, 0.0))
    assert read_card(write_calibration(read, newer, tmp_path / "out")).calibration["confidence"] == [1.1, 0.0]


def test_existing_card_keeps_its_comments_and_other_tables(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"numbers")
    weights = Weights(tmp_path / "net.onnx", hashlib.sha256(b"numbers").hexdigest(), "fp32")
    card = replace(painted_card(), weights={"net": weights})
    path = write_calibration(replace(card, measured={"a": 2}), LEARNED, tmp_path)
    old = path.read_text(encoding="utf-8").replace("[calibration]", "# by hand\n[calibration]").replace("0.8,", "0.7,")
    path.write_text(old, encoding="utf-8")
    write_calibration(card, LEARNED, tmp_path)
    assert path.read_text(encoding="utf-8") == old.replace("0.7,", "0.8,")


def test_new_card_brings_its_weights_and_never_replaces_those_of_another_card(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    weights, old = tmp_path / "in" / "net.onnx", tmp_path / "out" / "weights" / "net.onnx"
    weights.write_bytes(b"numbers")
    card = replace(painted_card(), weights={"net": Weights(weights, hashlib.sha256(b"numbers").hexdigest(), "fp32")})
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of nobody")
    path = write_calibration(card, LEARNED, tmp_path / "out")
    assert read_card(path).weights["net"].read() == b"numbers"
    weights.write_bytes(b"others")
    changed = Weights(weights, hashlib.sha256(b"others").hexdigest(), "fp32")
    with pytest.raises(SinkError, match=r"net\.onnx: belongs to the card painted-68, but other needs another"):
        write_calibration(replace(card, name="other", weights={"net": changed}), LEARNED, tmp_path / "out")
    assert read_card(path).weights["net"].read() == b"numbers"
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.skipif(not (SHIPPED / "weights" / "gv-mobilenetv3-68.onnx").exists(), reason="no trained weights here")
def test_calibration_raises_for_a_card_of_the_same_name_with_other_weights(tmp_path: Path) -> None:
    card = read_card(SHIPPED / "cards" / "gv-mobilenetv3-68.toml")
    retrained = write_weights(tmp_path / "out", card.name, b"retrained", "fp16")
    write_card(replace(card, weights={"net": retrained}), tmp_path / "out")
    before = card_path(card.name, tmp_path / "out").read_bytes()
    with pytest.raises(
        SinkError, match=r"68\.toml: belongs to other weights than .*choose another --out, or set FACETRACK_HOME"
    ):
        write_calibration(card, LEARNED, tmp_path / "out")
    words = ("noise", card.name, "--faces", str(tmp_path / "nothing"), "--out", str(tmp_path / "out"))
    assert isinstance(CliRunner().invoke(calibrate, words).exception, SinkError)  # before anything is measured
    assert card_path(card.name, tmp_path / "out").read_bytes() == before
    assert (tmp_path / "out" / "weights" / f"{card.name}.onnx").read_bytes() == b"retrained"


def test_photographs_with_the_wrong_point_count_raise_before_anything_is_written(
    tmp_path: Path,
) -> None:
    write_faces(tmp_path / "faces", 2)
    (tmp_path / "faces/1.pts").write_text(pts_text(np.ones((29, 2), np.float32)), encoding="utf-8")
    words = ("noise", "gv", "--faces", str(tmp_path / "faces"), "--out", str(tmp_path / "out"))
    done = CliRunner().invoke(calibrate, words)
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).endswith(
        "1.png: wanted all 68 points of ibug68, the model's markup, got 29; choose photographs annotated with it"
    )
    assert not (tmp_path / "out").exists()


def test_plot_without_matplotlib_raises_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_curves.importlib.util, "find_spec", lambda name: None)  # noqa: ARG005 - as it is called
    words = ("noise", "gv", "--faces", str(tmp_path), "--out", str(tmp_path / "out"), "--plot", str(tmp_path / "a.png"))
    done = CliRunner().invoke(calibrate, words)
    assert isinstance(done.exception, BackendError)
    assert "the curves need matplotlib" in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["plot.xyz", "plot", "nodir/plot.xyz"])
def test_plot_name_without_png_or_svg_suffix_is_a_usage_error(tmp_path: Path, name: str) -> None:
    words = ("noise", "gv", "--faces", str(tmp_path), "--out", str(tmp_path / "out"), "--plot", str(tmp_path / name))
    done = CliRunner().invoke(calibrate, words)
    assert done.exit_code == 2
    assert "wanted a name that ends in .png or .svg, got" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not (SHIPPED / "weights" / "gv-mobilenetv3-68.onnx").exists(), reason="no trained weights here")
def test_plot_in_a_missing_folder_raises_before_photographs_are_read(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason='plots need pip install "facetrack[eval]"')
    words = ("noise", "gv", "--faces", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), "--plot")
    done = CliRunner().invoke(calibrate, (*words, str(tmp_path / "nodir/plot.png")))
    assert isinstance(done.exception, SinkError)
    assert str(done.exception).endswith(f"plot.png: there is no folder {tmp_path / 'nodir'}; create it first")
    made_for_the_card = CliRunner().invoke(calibrate, (*words, str(tmp_path / "out/plot.png")))
    assert isinstance(made_for_the_card.exception, SourceError)  # nothing but the next obstacle
    assert not list(tmp_path.iterdir())


def test_plot_is_written_as_png_and_leaves_no_other_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason='plots need pip install "facetrack[eval]"')
    plot(LEARNED, tmp_path / "plot.PNG")
    assert (tmp_path / "plot.PNG").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.PNG"]


def test_report_names_the_fit_and_its_errors_and_the_plot_is_written_as_svg(tmp_path: Path) -> None:
    text = as_text(LEARNED)
    assert "sigmoid(0.800 logit -0.200)" in text
    assert "5-fold: 0.0120 (before: 0.0500)" in text
    pytest.importorskip("matplotlib", reason='plots need pip install "facetrack[eval]"')
    plot(LEARNED, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
