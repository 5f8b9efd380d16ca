"""The script that builds, proves and measures every engine, on a GPU that is not there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fakes_gpu import H200, Wishes, fake_toolkit
from fakes_onnx import scan_net, small_net

from facetrack.engines.card import all_cards, find_card
from facetrack.engines.convert import write_card
from facetrack.engines.graph_cost import Peaks
from facetrack.engines.packed import lay_out
from facetrack.engines.parity import Proof
from facetrack.engines.tensorrt_build import USUAL

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


engines, worker = script("gpu_engines"), script("gpu_worker")


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little measuring as possible."""
    monkeypatch.setattr(worker, "REPEATS", 1)
    monkeypatch.setattr(worker, "LAUNCHES", 1)
    monkeypatch.setattr(engines, "BATCHES", (1, 3))


def network(*, trained: bool = True) -> Any:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    proof = Proof(pictures, lambda outputs: outputs[1].reshape(len(outputs[1]), -1, 2) * 100) if trained else None
    return engines.Network("small", lambda: small_net(size=(16, 16)), pictures, proof, (16, 16), engines.BATCHES)


def scanning() -> Any:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    return engines.Network("scan", scan_net, pictures, None, (24, 32), (1,), ((24, 32), (12, 16)))


def done(
    folder: Path, precision: str, wishes: Wishes | None = None, *, trained: bool = True, net: Any = None
) -> dict[str, Any]:
    """Prepare a job, do it on the fake GPU and judge it."""
    net = net or network(trained=trained)
    job = engines.prepare(net, precision, folder)
    toolkit, _ = fake_toolkit(wishes)
    result = worker.measure(json.loads(job.read_text(encoding="utf-8")), toolkit.trt, toolkit.open_cuda)
    result |= {"tensorrt": "10.16.1", "gpu": {"name": H200.name, "driver": H200.driver, "cuda": H200.cuda}}
    job.with_suffix(".result.json").write_text(json.dumps(result), encoding="utf-8")
    verdict: dict[str, Any] = engines.judge(net, precision, folder)
    return verdict


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_is_built_proved_and_timed(tmp_path: Path, precision: str) -> None:
    verdict = done(tmp_path, precision)
    assert verdict["accepted"]
    assert [entry["batch"] for entry in verdict["parity"]] == [1, 3]
    assert [run["shape"][0] for run in verdict["runs"]] == [1, 3]
    assert all(run["run_ms"] > 0 and run["compute_ms"] > 0 for run in verdict["runs"])


def test_an_engine_that_is_wrong_when_batched_is_reported_and_not_accepted(tmp_path: Path) -> None:
    wrong = Wishes(distort=lambda outputs, batch: [outputs[0], outputs[1] + (0.1 if batch == 3 else 0)])
    verdict = done(tmp_path, "fp32", wrong)
    assert not verdict["accepted"]
    assert verdict["parity"][0]["mean_px"] < 0.01 < verdict["parity"][1]["mean_px"]


def test_networks_with_random_weights_are_judged_by_their_numbers(tmp_path: Path) -> None:
    verdict = done(tmp_path, "fp16", trained=False)
    assert verdict["accepted"]
    assert "mean_px" not in verdict["parity"][0]


def test_a_pyramid_is_timed_level_by_level_and_on_one_canvas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LARGEST", engines.USUAL)
    verdict = done(tmp_path, "fp32", net=scanning())
    assert verdict["accepted"]
    assert verdict["scan"]["levels"] == [[24, 32], [12, 16]]
    assert verdict["scan"]["canvas"] == [24, 84]
    assert min(verdict["scan"]["packed_ms"], verdict["scan"]["separate_ms"]) > 0
    engines.write_report([verdict, done(tmp_path, "fp32")], {}, tmp_path, tmp_path / "page.md")
    (line,) = (line for line in (tmp_path / "page.md").read_text().splitlines() if "one canvas" in line)
    assert line.startswith("- scan fp32, 2 levels from 32x24 on: ")
    assert line.endswith(" ms on one canvas of 84x24")


def test_the_pyramid_that_is_timed_is_the_one_that_plans_are_made_for(tmp_path: Path) -> None:
    assert lay_out(engines.LEVELS).size == USUAL
    job = json.loads(engines.prepare(scanning(), "fp32", tmp_path).read_text(encoding="utf-8"))
    assert tuple(job["sizes"][1]) == USUAL
    assert {net.name: net.levels for net in engines.networks() if net.levels} == {"bbfcn-5-scan": engines.LEVELS}


def test_the_report_has_the_roofline_and_the_page_a_row_for_each_batch(tmp_path: Path) -> None:
    verdicts = [done(tmp_path, precision) for precision in ("fp16", "fp32")]
    failed = {"network": "other", "trained": True, "precision": "fp16", "error": "Traceback\nout of memory"}
    peaks = {"fp16": Peaks(400_000.0, 4000.0, "made up")}
    engines.write_report([*verdicts, failed], peaks, tmp_path, tmp_path / "page.md")
    report = json.loads((tmp_path / "gpu_engines.json").read_text(encoding="utf-8"))
    assert report["engines"][0]["runs"][0]["roofline_ms"] > 0
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.count("| small |") == 4
    assert "- other fp16: out of memory" in page
    assert "NVIDIA H200, driver 580.159.03, TensorRT 10.16.1" in page


def test_a_worker_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    job = engines.prepare(network(), "fp32", tmp_path)
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho no driver >&2\nexit 139\n")
    dying.chmod(0o755)
    if os.name == "nt":
        pytest.skip("the stand-in is a shell script")
    engines.run_job(job, str(dying), 20)
    assert engines.judge(network(), "fp32", tmp_path)["error"] == "exit 139: no driver"


UNTRAINED = ["tab-full", "propnet-full", "gv-resnet50", "span-full"]


def test_every_card_and_every_full_size_network_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    trained = [
        name
        for card in all_cards()
        for name in ([card.name] if card.task == "align" else [f"{card.name}-scan", f"{card.name}-refine"])
    ]
    assert {"gv-mobilenetv3-68", "tab-compact-68", "propnet-compact-68", "span-compact-68"} <= {*trained}
    assert [net.name for net in engines.networks()] == trained + UNTRAINED


@pytest.mark.parametrize(("size", "left"), [((256, 256), UNTRAINED[1:]), ((128, 128), UNTRAINED)])
def test_a_full_size_card_takes_the_place_of_random_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: tuple[int, int], left: list[str]
) -> None:
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    write_card(replace(find_card("tab", "align"), name="tab-of-mine", size=size), tmp_path)
    names = [net.name for net in engines.networks()]
    assert names[0] == "tab-of-mine"
    assert [name for name in names if name in UNTRAINED] == left


def test_pictures_are_scanned_one_at_a_time_and_crops_in_batches(tmp_path: Path) -> None:
    batches = {net.name: net.batches for net in engines.networks()}
    assert batches.pop("bbfcn-5-scan") == (1,)
    assert {*batches.values()} == {engines.BATCHES}
    job = json.loads(engines.prepare(network(), "fp32", tmp_path).read_text(encoding="utf-8"))
    assert job["batches"] == [1, 3]


def report_of(folder: Path) -> dict[str, str]:
    """What the report says about each job."""
    report = json.loads((folder / "gpu_engines.json").read_text(encoding="utf-8"))
    return {f"{engine['network']} {engine['precision']}": engine["error"] for engine in report["engines"]}


def test_what_was_not_run_for_lack_of_time_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "networks", lambda: iter([network()]))
    engines.main(["--out", str(tmp_path / "fresh"), "--minutes", "0"])
    page = (tmp_path / "fresh" / "gpu.md").read_text(encoding="utf-8")
    for precision in ("fp16", "fp32", "int8"):
        assert report_of(tmp_path / "fresh")[f"small {precision}"] == "not run: no time was left"
        assert f"- small {precision}: not run: no time was left" in page


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_jobs_that_failed_are_named_and_tried_again_after_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "networks", lambda: iter([network()]))
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho no driver >&2\nexit 139\n")
    dying.chmod(0o755)
    work = tmp_path / "out" / "work"
    work.mkdir(parents=True)
    (work / "small-fp16.error.txt").write_text("not done within 20 s")
    engines.main(["--out", str(tmp_path / "out"), "--python", str(dying)])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["fp32", "int8", "fp16"]
    assert {*report_of(tmp_path / "out").values()} == {"exit 139: no driver"}


def test_the_worker_needs_nothing_that_an_older_python_with_numpy_lacks() -> None:
    """TensorRT 8.6 has bindings up to Python 3.10, which has no StrEnum and no tomllib."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('tomllib', 'onnx', 'onnxruntime', 'cv2', 'numba', 'click', "
        "'filelock', 'platformdirs')))\n"
        "import numpy, enum; del enum.StrEnum\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu_worker"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
