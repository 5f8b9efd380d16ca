"""The GPU's errand at toy size on the CPU: cut into calls, it ends with published weights in pieces."""

from __future__ import annotations

import io
import json
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from fakes_fit import Clockwork, config
from fakes_training import write_faces

from facetrack.engines.card import read_card
from facetrack.training import full_size
from facetrack.training import train as loop
from facetrack.training.alignment import publish as alignment_publish
from facetrack.training.full_size import Campaign, run, ship
from facetrack.training.relabel import Relabelled

pytestmark = pytest.mark.usefixtures("one_thread")
OVERRIDES = (
    "corpora=[{path='faces'}, {path='yt68', weight=0.3}]",
    "negatives=['grass']",
    "validation='held'",
    "schedule.batch=2",
    "schedule.workers=0",
    "schedule.bf16=false",
    "schedule.sizes=[[0.0, 64]]",
    "consistency.weight=0.1",
    "consistency.labels=0.5",
)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    for first, name in ((0, "faces"), (2, "yt68"), (4, "held")):
        write_faces(tmp_path / name, 2, first=first)
    (tmp_path / "grass").mkdir()
    green = np.random.default_rng(0).integers(0, 120, (90, 90, 3), np.uint8)
    (tmp_path / "grass" / "0.png").write_bytes(cv2.imencode(".png", green)[1].tobytes())
    with tarfile.open(folder / "all.tar", "w") as archive:
        for name in ("faces", "yt68", "held", "grass"):
            archive.add(tmp_path / name, name)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about torch
def test_campaign_of_many_short_calls_ships_all_networks_in_pieces(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_size, "PROBE_STEPS", 6)
    monkeypatch.setattr(full_size, "PIECE", 2**20)
    monkeypatch.setattr(alignment_publish, "WIDEST_PARITY", 5.0)  # px: after a dozen steps maps are flat, maxima chance
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path / "nowhere"))
    received: dict[str, bytes] = {}
    for call in range(30):
        out = tmp_path / f"out{call}"
        # the clock is told that every other call ends at once: it does nothing but ship
        ends = -1.0 if call % 2 == 0 else float("inf")
        campaign = Campaign(tars, tmp_path / "work", out, 0.0, ends, OVERRIDES)
        finished = run(campaign, ("tab-compact-68",))
        ship(campaign)
        pieces = {path.name: path.read_bytes() for path in out.glob("*.0*")}
        assert not pieces.keys() & received.keys()
        assert len(pieces) <= full_size.PIECES
        received |= pieces
        if finished and not pieces:
            break
    assert finished
    assert set(json.loads((out / "progress.json").read_text())) >= {"tab-compact-68", full_size.STUDENT}
    for name in ("tab-compact-68", full_size.STUDENT):
        last = (tmp_path / "work" / name / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        assert "consistency" in json.loads(last)
        joined = io.BytesIO()
        for piece in sorted(n for n in received if n.startswith(f"{name}.onnx.")):
            joined.write(received[piece])
        published = tmp_path / "work" / "published"
        assert joined.getvalue() == (published / "weights" / f"{name}.onnx").read_bytes()
        assert "NME io %, held" in read_card(published / "cards" / f"{name}.toml").measured


def test_steps_fill_the_training_minutes_excluding_setup_and_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps a second for a quarter of a minute, on a device that was set up first."""
    objective, ready = Clockwork(), []
    monkeypatch.setattr(full_size, "PROBE_STEPS", 12)
    monkeypatch.setattr(loop, "time", objective)
    monkeypatch.setattr(full_size, "open_objective", lambda *_: objective)
    monkeypatch.setattr(full_size, "set_up_device", lambda: ready.append(objective.losses))
    campaign = Campaign(tmp_path, tmp_path, tmp_path, train_minutes=0.25, ends=float("inf"))
    assert not full_size.train(replace(campaign, ends=time.monotonic() + 1), "line", config())  # not even looked at
    assert ready.pop() == 0
    assert full_size.train(campaign, "line", config())
    assert ready == [0]
    assert (tmp_path / "line" / "steps").read_text() == "30"


def test_publishing_is_deferred_if_too_little_time_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[str] = []
    monkeypatch.setattr(full_size, "train", lambda *_: True)
    monkeypatch.setattr(full_size, "teach", lambda _: True)
    monkeypatch.setattr(full_size, "publish", lambda config, *_: published.append(config.card.name))
    write_faces(tmp_path / "data" / "yt68", 1)
    for left_s, names in ((full_size.PUBLISH_S - 1, []), (full_size.PUBLISH_S + 60, ["tab-68", full_size.STUDENT])):
        campaign = Campaign(tmp_path, tmp_path, tmp_path, 1.0, time.monotonic() + left_s)
        assert run(campaign, ("tab-68",)) is bool(names)
        assert published == names


def test_student_is_not_trained_while_its_pictures_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that had begun without would be refused as soon as they were there: its settings would have changed."""
    begun: list[str] = []
    monkeypatch.setattr(full_size, "train", lambda _, name, __: begun.append(name) or True)
    monkeypatch.setattr(full_size, "publish", lambda *_: None)
    monkeypatch.setattr(full_size, "best_teacher", lambda _: "tab-68")
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    campaign = Campaign(tmp_path, tmp_path, tmp_path, 1.0, float("inf"))
    assert run(campaign, ("tab-68",))
    assert begun == ["tab-68"]


@pytest.mark.parametrize(
    ("corpora", "folders", "share"),
    [
        ("[{path='afw', weight=0.5}, {path='yt68', weight=0.2}]", ("yt68", "unlabelled"), 0.1),
        ("[{path='afw', weight=0.5}, {path='yt68', weight=0.2}]", ("unlabelled",), 0.2),
        ("[{path='afw', weight=0.7}]", ("unlabelled",), 0.3),  # no such corpus gives its share up
        ("[{path='afw', weight=0.7}]", (), None),
    ],
)
def test_student_corpora_include_the_pseudo_labels_with_the_right_weights(
    corpora: str, folders: tuple[str, ...], share: float | None, tmp_path: Path
) -> None:
    for folder in folders:
        write_faces(tmp_path / "data" / "pseudo" / folder, 1)
    campaign = Campaign(tmp_path, tmp_path, tmp_path, 1.0, 0.0, (f"corpora={corpora}",))
    student = full_size.student_config(campaign)
    taught = {corpus.path: corpus.weight for corpus in student.corpora if corpus.path != "afw"}
    assert taught == {f"pseudo/{folder}": pytest.approx(share) for folder in folders}
    assert student.schedule.workers == full_size.WORKERS
    assert full_size.student_config(replace(campaign, overrides=("schedule.workers=0",))).schedule.workers == 0


def test_relabelling_is_skipped_without_time_and_not_marked_finished_when_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Relabelled:
        raise AssertionError("no time for it")

    def cut_short(*_: object, ends: float, **__: object) -> Relabelled:
        assert ends == campaign.ends
        return Relabelled(seen=3, written=2, finished=False)

    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    monkeypatch.setattr(full_size, "best_teacher", lambda _: "tab-68")
    (tmp_path / "data" / "yt68").mkdir(parents=True)
    for ends, answer in ((-1.0, refuse), (float("inf"), cut_short), (float("inf"), cut_short)):
        monkeypatch.setattr(full_size, "relabel", answer)
        campaign = Campaign(tmp_path, tmp_path, tmp_path, 1.0, ends)
        assert not run(campaign, ())
    assert not (tmp_path / "data" / "pseudo" / ".yt68").exists()


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [
        ([5] * 9, [7, 2]),  # few bytes in many files
        ([35, 28, 5], [4, 2]),  # 15 + 15 + 5, 15 + 13, 5: the fifth piece would make it 63
        ([], [0]),
    ],
)
def test_ship_bounds_the_files_and_bytes_of_each_call_and_loses_nothing(
    sizes: list[int], calls: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_size, "PIECE", 15)
    monkeypatch.setattr(full_size, "TOGETHER", 60)
    weights = tmp_path / "work" / "published" / "weights"
    weights.mkdir(parents=True)
    for number, size in enumerate(sizes):
        end = "torch.npz" if number % 2 else "onnx"
        (weights / f"{number}.{end}").write_bytes(bytes([number]) * size)
    received: dict[str, bytes] = {}
    for call, count in enumerate([*calls, 0]):
        out = tmp_path / f"out{call}"
        ship(Campaign(tmp_path, tmp_path / "work", out, 0.0, 0.0))
        pieces = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "progress.json"}
        assert len(pieces) == count
        assert sum(map(len, pieces.values())) <= 60
        received |= pieces
    for path in weights.iterdir():
        assert b"".join(received[name] for name in sorted(received) if name.startswith(path.name)) == path.read_bytes()


def test_ship_writes_only_the_progress_when_nothing_was_made(tmp_path: Path) -> None:
    ship(Campaign(tmp_path, tmp_path / "work", tmp_path / "out", 0.0, 0.0))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["progress.json"]
