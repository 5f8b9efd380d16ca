"""The detector's card: each step of its calibration is made with what the steps before it fitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

import torch
from fakes_training import write_faces

from facetrack.engines import nets
from facetrack.engines.backend import Outputs
from facetrack.engines.card import ROLES, ModelCard, Weights, find_card, read_card
from facetrack.engines.detector import logistic
from facetrack.engines.packed import run_levels
from facetrack.tracker.errors import ConfigError
from facetrack.tracker.types import UInt8
from facetrack.training.config import Config, Corpus, Network, Publication, load
from facetrack.training.datasets import Sample
from facetrack.training.detection import publish
from facetrack.training.detection.mining import UNFITTED, draft_card
from facetrack.training.detection.objectives import held_out
from facetrack.training.detection.score import SECOND_LOOK_LOSS, Measured, Report, fit_face_weights, load_held_out


def candidates(features: int, seed: int) -> Measured:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(300, features)).astype(np.float32)
    return Measured(values, values[:, 0] + rng.normal(size=300) > 0)


def test_second_look_is_fitted_with_the_fitted_scan_score_without_mutating_cards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[ModelCard, dict[str, object], bool]] = []
    answers = {False: candidates(8, seed=0), True: candidates(12, seed=1)}

    def measure(detector: ModelCard, *_: object, refined: bool) -> Measured:
        seen.append((detector, dict(detector.calibration), refined))
        return answers[refined]

    monkeypatch.setattr(publish, "load_held_out", lambda *_, **__: ({}, []))
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
def test_corpus_with_held_out_false_is_left_out_of_the_held_out_faces(tmp_path: Path, half: int) -> None:
    for folder in ("people", "machine", "lfpw/testset"):
        write_faces(tmp_path / folder, 40)
    write_faces(tmp_path / "grass", 40)
    settings = Config(Network("bbfcn", 5), corpora=(Corpus("people"), Corpus("machine")), negatives=("grass",))
    everywhere, _ = load_held_out(settings, tmp_path, half)
    assert everywhere.keys() == {"people", "machine", "lfpw/testset"}
    assert all(sample.path.parent == tmp_path / name for name, faces in everywhere.items() for sample in faces)
    measured = replace(settings, corpora=(Corpus("people"), Corpus("machine", held_out=False)))
    fewer, _ = load_held_out(measured, tmp_path, half)
    assert fewer.keys() == {"people", "lfpw/testset"}


def test_kept_out_works_on_own_pictures_alone_and_raises_if_none_were_held_out(tmp_path: Path) -> None:
    """Somebody's own pictures alone: by their names 12, 38 and 39 are kept out."""
    write_faces(tmp_path / "mine", 40)
    write_faces(tmp_path / "grass", 40)
    settings = Config(Network("bbfcn", 5), corpora=(Corpus("mine"),), negatives=("grass",))
    assert all(load_held_out(settings, tmp_path, half)[0].keys() == {"mine"} for half in (0, 1))
    for lacking in ({"negatives": ()}, {"corpora": (Corpus("mine", held_out=False),)}):
        with pytest.raises(
            ConfigError, match=r"that it is not trained on: wanted some with .* in half 1; add pictures"
        ):
            load_held_out(replace(settings, **lacking), tmp_path, 0)


def test_test_set_used_for_training_is_evaluated_only_on_its_held_out_pictures(tmp_path: Path) -> None:
    write_faces(tmp_path / "lfpw" / "testset", 40)
    write_faces(tmp_path / "grass", 40)
    settings = Config(Network("bbfcn", 5), corpora=(Corpus("lfpw/testset"),), negatives=("grass",))
    faces, _ = load_held_out(settings, tmp_path, 0)
    assert all(held_out(sample) for sample in faces["lfpw/testset"])


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("webfaces", "WebFaces"),
        ("lfw5", "LFW"),
        ("taught/unlabelled/aflw2000", "AFLW2000"),
        ("lfpw/testset", "LFPW test"),
        ("studio/testset", "studio/testset"),
        ("mine", "mine"),
    ],
)
def test_figures_use_known_names_for_shipped_folders_and_paths_for_others(file: str, wanted: str) -> None:
    sample = Sample(Path(file) / "1.png", np.zeros((1, 68, 2), np.float32), b"")
    assert publish._by_name({file: [sample]}) == {wanted: [sample]}


def test_the_shipped_cards_figures_are_named_by_its_configurations_folders() -> None:
    config = load(Path("configs/bbfcn-5-branches.toml"))
    folders = [[corpus.path] for corpus in config.corpora if corpus.held_out] + [["lfpw/testset"], config.negatives]
    figures = find_card("bbfcn", "detect").measured
    named = {figure.removesuffix(", 8 bits on a CPU").partition(", ")[2] for figure in figures}
    assert len(named) == 5
    assert named <= {publish._name_of(paths) for paths in folders}


def test_two_folders_of_one_set_have_one_figure() -> None:
    first, second = (Sample(Path(name), np.zeros((1, 68, 2), np.float32), b"") for name in ("1.png", "2.png"))
    folders = {"hard/unlabelled/aflw2000": [first], "taught/unlabelled/aflw2000": [second]}
    assert publish._by_name(folders) == {"AFLW2000": [first, second]}


def test_scan_that_detects_no_face_is_not_published(tmp_path: Path) -> None:
    """Its responses are 0 everywhere, as those of a network that has not learnt anything are low."""
    write_faces(tmp_path / "mine", 3)
    write_faces(tmp_path / "grass", 1)
    settings = Config(
        Network("bbfcn", 5), corpora=(Corpus("mine"),), negatives=("grass",), card=Publication("my-detector")
    )
    scan, refine = (nets.FromBytes(nets.build(name, 5)).eval() for name in ("bbfcn-backbone", "bbfcn"))
    for parameter in scan.parameters():
        parameter.data.zero_()
    with pytest.raises(ConfigError, match=r"my-detector: its scan finds no candidate in \d of .*; train it longer"):
        publish._store(settings, publish.Pair(scan, refine), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [[], [True, True], [False, False]])
def test_fitting_a_score_raises_without_candidates_of_both_classes(
    kind: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Measured(np.zeros((len(kind), 8), np.float32), np.array(kind, bool))
    monkeypatch.setattr(publish, "load_held_out", lambda *_, **__: ({}, []))
    monkeypatch.setattr(publish, "_open", lambda card, threshold: card)  # noqa: ARG005 - as it is called
    monkeypatch.setattr(publish, "measure", lambda *_, **__: found)
    config = Config(Network("bbfcn", 5))
    with pytest.raises(
        ConfigError, match=rf"score of the scan: .*, got {sum(kind)} and {len(kind) - sum(kind)}; train"
    ):
        publish.fit(draft_card(config), config, Path())


class Anything:
    """A backend that would rather have small pictures in one atlas."""

    description, precision, max_atlas, preferred_batch = "anything", None, (2304, 2304), 1

    def run(self, images: UInt8) -> Outputs:
        return (np.zeros((1, 5, *images.shape[1:3]), np.float32),)

    def close(self) -> None:
        pass


def test_recorder_sees_each_level_separately_even_if_the_backend_prefers_an_atlas() -> None:
    recorder = publish.Recorder(Anything())
    sizes = [(40, 60), (20, 32)]
    assert len(list(run_levels(recorder, [np.zeros((*size, 3), np.uint8) for size in sizes]))) == 2
    assert [seen.shape for seen in recorder.seen] == [(1, *size, 3) for size in sizes]


def test_detector_figures_cover_the_main_files_and_the_int8_files(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(publish, "load_held_out", lambda *_, **__: ({"lfpw/testset": faces}, empty))
    monkeypatch.setattr(publish, "_open", open_files)
    monkeypatch.setattr(publish, "evaluate", evaluate)
    config = Config(Network("bbfcn", 5), negatives=("negatives/flowers", "lawn", "negatives/dtd"))
    weights = {
        role: Weights(Path(f"{role}.onnx"), "0", "fp16", Weights(Path(f"{role}-int8.onnx"), "1", "int8"))
        for role in ROLES["detect"]
    }
    figures = publish.detector_figures(replace(draft_card(config), weights=weights), config, Path())
    found, error = "faces found %, LFPW test", "five-point error % of the eye distance, LFPW test"
    alarms, small = "false alarms a picture, flowers, lawn, textures", ", 8 bits on a CPU"
    assert figures == {
        found: 100.0,
        error: pytest.approx(6.0),
        alarms: 0.0,
        found + small: 50.0,
        error + small: pytest.approx(5.0),
        alarms + small: 0.25,
    }


def test_scores_are_fitted_on_the_cards_main_files_and_not_on_the_int8_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(publish, "OnnxBackend", lambda weights: opened.append(weights.path.name) or Anything())
    small = Weights(Path("small.onnx"), "1", "int8")
    weights = {role: Weights(Path(f"{role}.onnx"), "0", "fp16", small) for role in ROLES["detect"]}
    publish._open(replace(draft_card(Config(Network("bbfcn", 5))), weights=weights), threshold=0.0)
    assert opened == ["scan.onnx", "refine.onnx"]


def test_shipped_card_has_the_published_peak_which_exceeds_that_of_the_draft() -> None:
    fitted_with = draft_card(Config(Network("bbfcn", 5))).codec["peak"]
    assert find_card("bbfcn", "detect").codec["peak"] == publish.PEAK > fitted_with


@pytest.mark.parametrize("step", ["fit", "detector_figures"])
def test_interrupted_publication_leaves_the_published_detector_unchanged(
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
    monkeypatch.setattr(publish, "load_held_out", lambda *_, **__: ({}, []))
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
