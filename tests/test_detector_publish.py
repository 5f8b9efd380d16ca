"""The detector's card: each step of its calibration is made with what the steps before it fitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

import torch
from fakes_training import write_faces

from facetrack.engines.backend import Outputs
from facetrack.engines.card import ROLES, ModelCard, Weights, find_card, read_card
from facetrack.engines.detector import logistic
from facetrack.engines.packed import run_levels
from facetrack.tracker.types import UInt8
from facetrack.training.config import Config, Corpus, Network, Publication
from facetrack.training.datasets import Sample
from facetrack.training.detection import publish
from facetrack.training.detection.mining import UNFITTED, draft_card
from facetrack.training.detection.score import SECOND_LOOK_LOSS, Measured, Report, fit_face_weights, kept_out


def candidates(features: int, seed: int) -> Measured:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(300, features)).astype(np.float32)
    return Measured(values, values[:, 0] + rng.normal(size=300) > 0)


def test_the_second_look_is_fitted_with_the_scans_fitted_score_and_no_card_is_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[ModelCard, dict[str, object], bool]] = []
    answers = {False: candidates(8, seed=0), True: candidates(12, seed=1)}

    def measure(detector: ModelCard, *_: object, refined: bool) -> Measured:
        seen.append((detector, dict(detector.calibration), refined))
        return answers[refined]

    monkeypatch.setattr(publish, "kept_out", lambda *_, **__: ([], []))
    monkeypatch.setattr(publish, "_open", lambda card, threshold: card)  # noqa: ARG005 - as it is called
    monkeypatch.setattr(publish, "measure", measure)
    config = Config(Network("bbfcn", 5))
    fitted = publish.fit(draft_card(config), config, Path())
    scan = fit_face_weights(answers[False])
    chance = logistic(answers[False].features[answers[False].is_face], scan)
    half = {"scan": scan, "second_look": pytest.approx(np.quantile(chance, SECOND_LOOK_LOSS))}
    assert [(calibration, refined) for _, calibration, refined in seen] == [
        (UNFITTED, False),
        (UNFITTED | half, True),
    ]
    assert all(card.calibration == calibration for card, calibration, _ in seen)
    assert fitted == UNFITTED | half | {"refine": fit_face_weights(answers[True])}


@pytest.mark.parametrize("half", [0, 1])
def test_a_corpus_that_measures_nothing_is_left_out_of_what_was_kept_out(tmp_path: Path, half: int) -> None:
    for folder in ("people", "machine", "lfpw/testset"):
        write_faces(tmp_path / folder, 40)
    write_faces(tmp_path / "grass", 1)
    settings = Config(Network("bbfcn", 5), corpora=(Corpus("people"), Corpus("machine")), negatives=("grass",))
    everywhere, _ = kept_out(settings, tmp_path, half)
    folders = {sample.path.parent.name for sample in everywhere}
    assert folders == {"people", "machine", "testset"}
    measured = replace(settings, corpora=(Corpus("people"), Corpus("machine", held_out=False)))
    fewer, _ = kept_out(measured, tmp_path, half)
    assert {sample.path.parent.name for sample in fewer} == {"people", "testset"}


class Anything:
    """A backend that would rather have small pictures in one atlas."""

    description, precision, max_atlas, preferred_batch = "anything", None, (2304, 2304), 1

    def run(self, images: UInt8) -> Outputs:
        return (np.zeros((1, 5, *images.shape[1:3]), np.float32),)

    def close(self) -> None:
        pass


def test_a_recorder_sees_each_level_by_itself_even_for_a_backend_that_would_have_all_in_one_atlas() -> None:
    recorder = publish.Recorder(Anything())
    sizes = [(40, 60), (20, 32)]
    assert len(list(run_levels(recorder, [np.zeros((*size, 3), np.uint8) for size in sizes]))) == 2
    assert [seen.shape for seen in recorder.seen] == [(1, *size, 3) for size in sizes]


def test_a_detectors_card_carries_figures_of_both_pairs_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 8 bits one of the two faces is missed, and there is a false alarm."""

    def evaluate(files: set[str], faces: list[Sample], empty: list[Sample]) -> Report:
        small = files == {"scan-int8.onnx", "refine-int8.onnx"}
        assert small or files == {"scan.onnx", "refine.onnx"}
        best = np.array([0.9, 0.0 if small else 0.9][: 2 * len(faces)], np.float32)
        errors = np.array([[0.05] * 5, [np.nan if small else 0.07] * 5][: 2 * len(faces)], np.float32)
        return Report(best, errors, np.array([0.9] * (small and bool(empty)), np.float32), len(empty))

    def open_files(card: ModelCard, threshold: float) -> set[str]:
        assert threshold < 0.1
        return {weights.path.name for weights in card.weights.values()}

    faces = [Sample(Path("lfpw/testset/1.png"), np.zeros((1, 68, 2), np.float32), b"")]
    empty = [Sample(Path(f"grass/{i}.png"), np.zeros((0, 68, 2), np.float32), b"") for i in range(4)]
    monkeypatch.setattr(publish, "kept_out", lambda *_, **__: (faces, empty))
    monkeypatch.setattr(publish, "_open", open_files)
    monkeypatch.setattr(publish, "evaluate", evaluate)
    config = Config(Network("bbfcn", 5))
    weights = {
        role: Weights(Path(f"{role}.onnx"), "0", "fp16", Weights(Path(f"{role}-int8.onnx"), "1", "int8"))
        for role in ROLES["detect"]
    }
    figures = publish.detector_figures(replace(draft_card(config), weights=weights), config, Path())
    found, error = "faces found %, LFPW test", "five-point error % of the eye distance, LFPW test"
    alarms, small = "false alarms a picture, flowers, cats and dogs, textures", ", 8 bits on a CPU"
    assert figures == {
        found: 100.0,
        error: pytest.approx(6.0),
        alarms: 0.0,
        found + small: 50.0,
        error + small: pytest.approx(5.0),
        alarms + small: 0.25,
    }


def test_scores_are_fitted_on_the_cards_own_files_whatever_this_machine_would_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(publish, "OnnxBackend", lambda weights: opened.append(weights.path.name) or Anything())
    small = Weights(Path("small.onnx"), "1", "int8")
    weights = {role: Weights(Path(f"{role}.onnx"), "0", "fp16", small) for role in ROLES["detect"]}
    publish._open(replace(draft_card(Config(Network("bbfcn", 5))), weights=weights), threshold=0.0)
    assert opened == ["scan.onnx", "refine.onnx"]


def test_the_shipped_card_is_used_with_the_published_peak_and_fitted_with_more() -> None:
    fitted_with = draft_card(Config(Network("bbfcn", 5))).codec["peak"]
    assert find_card("bbfcn", "detect").codec["peak"] == publish.PEAK > fitted_with


@pytest.mark.parametrize("step", ["fit", "detector_figures"])
def test_a_detector_that_does_not_get_finished_leaves_the_published_one_as_it_was(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while scores are fitted, and while the result is measured; then a call that is left in peace."""
    files = {f"bbfcn-5-{role}.{end}": role.encode() for role in ROLES["detect"] for end in ("onnx", "torch.npz")}

    def store(config: Config, pair: publish.Pair, data: Path, folder: Path) -> dict[str, Weights]:
        del pair, data
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return {role: Weights(folder / f"{config.card.name}-{role}.onnx", "0", "fp16") for role in ROLES["detect"]}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    net = torch.nn.Linear(1, 1)
    monkeypatch.setattr(publish.Pair, "of_run", lambda *_: publish.Pair(net, net))
    monkeypatch.setattr(publish, "_store", store)
    monkeypatch.setattr(publish, "fit", lambda card, *_: card.calibration)
    monkeypatch.setattr(publish, "detector_figures", lambda *_: {"faces found %": 9.0})
    old, out = tmp_path / "out" / "weights" / "bbfcn-5-scan.onnx", tmp_path / "out"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"shipped")
    config = Config(Network("bbfcn", 5), card=Publication("bbfcn-5"))
    with monkeypatch.context() as during:
        during.setattr(publish, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            publish.publish_detector(config, tmp_path, tmp_path, out)
    assert [path for path in out.rglob("*") if path.is_file()] == [old]
    assert old.read_bytes() == b"shipped"
    card = read_card(publish.publish_detector(config, tmp_path, tmp_path, out))
    assert {path.name: path.read_bytes() for path in (out / "weights").iterdir()} == files
    assert {weights.path for weights in card.weights.values()} < {*(out / "weights").iterdir()}
