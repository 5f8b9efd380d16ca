"""The script that builds, proves and measures every engine, on a GPU that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_engines as engines
import gpu_worker as worker
import numpy as np
import pytest
from fakes_gpu import H200, Wishes, fake_toolkit
from fakes_onnx import scan_net, small_net

from facetrack.engines.card import all_cards, find_card
from facetrack.engines.convert import write_card
from facetrack.engines.graph_cost import Peaks
from facetrack.engines.packed import pack_levels
from facetrack.engines.parity import Proof
from facetrack.engines.tensorrt_build import USUAL
from facetrack.tracker.errors import BackendError


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little measuring as possible."""
    monkeypatch.setattr(worker, "REPEATS", 1)
    monkeypatch.setattr(worker, "LAUNCHES", 1)
    monkeypatch.setattr(engines, "BATCHES", (1, 3))


def network(*, trained: bool = True) -> Any:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    proof = Proof(pictures, lambda outputs: outputs[1].reshape(len(outputs[1]), -1, 2) * 100) if trained else None
    return engines.Network("small", lambda: small_net(size=(16, 16)), "", pictures, proof, (16, 16), engines.BATCHES)


def scanning() -> Any:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    return engines.Network("scan", scan_net, "", pictures, None, (24, 32), (1,), ((24, 32), (12, 16)))


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


def test_engine_wrong_at_one_batch_size_is_reported_and_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BATCHES", (1, 3, 5))
    wrong = Wishes(distort=lambda outputs, batch: [outputs[0], outputs[1] + (0.1 if batch == 3 else 0)])
    verdict = done(tmp_path, "fp32", wrong)
    assert not verdict["accepted"]
    assert [entry["batch"] for entry in verdict["parity"]] == [1, 3, 5]
    assert [entry["mean_px"] < 0.01 for entry in verdict["parity"]] == [True, False, True]


def test_parity_check_detects_an_engine_that_is_wrong_only_on_graph_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BATCHES", (1, 5))  # as many as there are pictures
    runs: list[int] = []

    def wrong_from_the_third_on(outputs: Any, batch: int) -> Any:  # a batch is run and recorded, then replayed
        runs.append(batch)
        return [outputs[0], outputs[1] + (0.1 if batch == 5 and runs.count(5) > 2 else 0)]

    verdict = done(tmp_path, "fp32", Wishes(distort=wrong_from_the_third_on))
    assert not verdict["accepted"]
    assert [entry["mean_px"] < 0.01 for entry in verdict["parity"]] == [True, False]


def test_failed_build_frees_everything_before_the_context_is_released(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot read the graph: no TopK"):
        done(tmp_path, "fp32", Wishes(unreadable=("no TopK",)))


def test_untrained_network_is_accepted_by_raw_outputs_without_pixel_errors(tmp_path: Path) -> None:
    verdict = done(tmp_path, "fp16", trained=False)
    assert verdict["accepted"]
    assert "mean_px" not in verdict["parity"][0]


def test_a_pyramid_is_timed_level_by_level_and_in_one_atlas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LARGEST", engines.USUAL)
    verdict = done(tmp_path, "fp32", net=scanning())
    assert verdict["accepted"]
    assert verdict["scan"]["levels"] == [[24, 32], [12, 16]]
    assert verdict["scan"]["atlas"] == [24, 84]
    assert min(verdict["scan"]["packed_ms"], verdict["scan"]["separate_ms"]) > 0
    engines.write_report([verdict, done(tmp_path, "fp32")], {}, tmp_path, tmp_path / "page.md")
    (line,) = (line for line in (tmp_path / "page.md").read_text().splitlines() if "one atlas" in line)
    assert line.startswith("- scan fp32, 2 levels from 32x24 on: ")
    assert line.endswith(" ms in one atlas of 84x24")


def test_timed_pyramid_is_the_one_that_plans_are_built_for(tmp_path: Path) -> None:
    assert pack_levels(engines.LEVELS).size == USUAL
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


def stand_in(folder: Path, does: str) -> str:
    """A Python that finds a GPU and, for a job, does this."""
    if os.name == "nt":
        pytest.skip("the stand-in is a shell script")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = --check ] && exit 0\n{does}\n')
    python.chmod(0o755)
    return str(python)


DIES = "echo no driver >&2; exit 139"
HANGS = "exec sleep 600"


def call(folder: Path, python: str, seconds: float = 60.0) -> Any:
    return engines.Call(folder, python, time.monotonic() + seconds)


def test_crashed_worker_is_reported_with_exit_code_and_stderr(tmp_path: Path) -> None:
    engines.prepare(network(), "fp32", tmp_path)
    engines.do_job(network(), "fp32", call(tmp_path, stand_in(tmp_path, DIES)))
    assert engines.outcome(network(), "fp32", tmp_path)["error"] == "exit 139: no driver"


def prepared_by(monkeypatch: pytest.MonkeyPatch, sources: str) -> Any:
    """A command that prepares a job in this process, with the code that it had then."""
    monkeypatch.setattr(engines, "_sources", lambda: sources)
    steps: list[str] = []

    class Here(engines.Call):  # type: ignore[misc, name-defined]
        def run(self, *words: str) -> None:
            steps.append("prepared" if "--prepare" in words else "built")
            if "--prepare" not in words:
                raise BackendError("TensorRT cannot read the graph")
            engines.prepare(network(), words[-1], self.folder)

    return Here, steps


def test_failed_job_is_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, steps = prepared_by(monkeypatch, "first")
    for _ in range(2):
        engines.do_job(network(), "fp16", here(tmp_path, "python", time.monotonic() + 60))
        assert "cannot read the graph" in engines.outcome(network(), "fp16", tmp_path)["error"]
        assert not (tmp_path / "small-fp16.onnx").exists()
        assert (tmp_path / "small.onnx").exists()
    assert steps == ["prepared", "built"] * 2


@pytest.mark.parametrize("changed", ["sources", "weights"])
def test_job_prepared_from_other_sources_or_weights_is_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    before = network() if changed == "sources" else replace(network(), weights="others")
    prepared_by(monkeypatch, "first")
    for precision in ("fp16", "fp32"):
        engines.prepare(before, precision, tmp_path)
    (tmp_path / "small-fp16.result.json").write_text("{}")
    (tmp_path / "small-fp32.verdict.json").write_text('{"kept": true}')
    for path in (path for path in tmp_path.iterdir() if path.suffix in (".onnx", ".npz")):
        path.write_bytes(b"of before")
    here, steps = prepared_by(monkeypatch, "second" if changed == "sources" else "first")
    engines.do_job(network(), "fp16", here(tmp_path, "python", time.monotonic() + 60))
    assert steps == ["prepared", "built"]
    assert (tmp_path / "small.onnx").read_bytes() == small_net(size=(16, 16))
    assert (tmp_path / "small.reference.npz").read_bytes() != b"of before"
    assert not (tmp_path / "small-fp32.json").exists()
    assert engines.outcome(network(), "fp32", tmp_path) == {"kept": True}


def test_source_hash_changes_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engines").mkdir()
    monkeypatch.setattr(engines, "PACKAGE", tmp_path)
    hashes = []
    for code in ("one", "another", "one"):
        (tmp_path / "engines" / "backend.py").write_text(code, encoding="utf-8")
        engines._sources.cache_clear()
        hashes.append(engines._sources())
    engines._sources.cache_clear()
    assert hashes[0] == hashes[2] != hashes[1]


def test_network_is_identified_by_the_hash_of_its_weights() -> None:
    assert {net.name: net.weights for net in engines.networks()}["gv-mobilenetv3-68"] == (
        find_card("gv", "align").weights["net"].sha256
    )


def test_hanging_job_fails_but_one_cut_short_by_the_end_of_the_call_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines.prepare(network(), "fp32", tmp_path)
    python = stand_in(tmp_path, HANGS)
    engines.do_job(network(), "fp32", call(tmp_path, python, 0.2))
    assert engines.outcome(network(), "fp32", tmp_path)["error"] == engines.NOT_RUN
    assert not engines._has_failed(network(), "fp32", tmp_path)
    monkeypatch.setattr(engines, "JOB_LIMIT_S", 0.2)
    engines.do_job(network(), "fp32", call(tmp_path, python))
    assert engines.outcome(network(), "fp32", tmp_path)["error"] == "not done within 0 s"


def test_interrupted_preparation_resumes_with_the_files_already_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    net = replace(network(), read=lambda: read.append("") or small_net(size=(16, 16)))
    python = stand_in(tmp_path, DIES)
    with monkeypatch.context() as patch:
        patch.setattr(engines, "preparing", lambda *_: (python.replace("python", "slow"),))
        Path(python).with_name("slow").write_text(f"#!/bin/sh\n{HANGS}\n")
        Path(python).with_name("slow").chmod(0o755)
        engines.do_job(net, "int8", call(tmp_path, python, 0.2))
        assert engines.outcome(net, "int8", tmp_path)["error"] == engines.NOT_RUN

        def cut_short(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(engines, "quantise_onnx", cut_short)
        with pytest.raises(KeyboardInterrupt):
            engines.prepare(net, "int8", tmp_path)
    assert not (tmp_path / "small-int8.json").exists()
    engines.prepare(net, "int8", tmp_path)
    assert len(read) == 1
    assert (tmp_path / "small-int8.json").exists()


def test_a_job_that_is_done_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done(tmp_path, "fp32")
    engines.do_job(network(), "fp32", call(tmp_path, "nobody"))
    monkeypatch.setattr(engines, "judge", lambda *_: pytest.fail("judged again"))
    engines.do_job(network(), "fp32", call(tmp_path, "nobody"))
    assert engines.outcome(network(), "fp32", tmp_path)["accepted"]


def test_outputs_lacking_the_expected_arrays_are_reported_as_an_error_of_the_job(tmp_path: Path) -> None:
    done(tmp_path, "fp32")
    np.savez(tmp_path / "small-fp32.outputs.npz", nothing=np.zeros(1))
    engines.do_job(network(), "fp32", call(tmp_path, "nobody"))
    assert "batch1.0" in engines.outcome(network(), "fp32", tmp_path)["error"]


def test_main_exits_before_preparing_anything_if_no_engine_can_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "networks", lambda: iter([network()]))
    refusing = tmp_path / "refusing"
    refusing.write_text("#!/bin/sh\necho no NVIDIA driver >&2\nexit 1\n")
    refusing.chmod(0o755)
    with pytest.raises(SystemExit, match="cannot build engines: exit 1: no NVIDIA driver"):
        engines.main(["--out", str(tmp_path / "out"), "--python", str(refusing)])
    assert not (tmp_path / "out").exists()


def test_main_prepares_the_network_and_reports_the_crashed_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(engines, "PRECISIONS", ("fp16",))
    python = stand_in(tmp_path, DIES)
    out, work = tmp_path / "out", tmp_path / "work"
    engines.main(["--out", str(out), "--work", str(work), "--only", "bbfcn-5-refine", "--python", python])
    assert report_of(out) == {"bbfcn-5-refine fp16": "exit 139: no driver"}
    assert {*(path.name for path in out.iterdir())} == {"gpu_engines.json", "gpu.md"}
    assert (work / "bbfcn-5-refine.onnx").exists()


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
def test_full_size_card_replaces_its_untrained_network(
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


def test_jobs_not_run_for_lack_of_time_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "networks", lambda: iter([network()]))
    engines.main(["--out", str(tmp_path / "fresh"), "--minutes", "0"])
    page = (tmp_path / "fresh" / "gpu.md").read_text(encoding="utf-8")
    for precision in ("fp16", "fp32", "int8"):
        assert report_of(tmp_path / "fresh")[f"small {precision}"] == "not run: no time was left"
        assert f"- small {precision}: not run: no time was left" in page


def test_failed_jobs_are_retried_after_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "networks", lambda: iter([network()]))
    monkeypatch.setattr(engines, "known_peaks", lambda _: {})
    work = tmp_path / "out" / "work"
    for precision in engines.PRECISIONS:
        engines.prepare(network(), precision, work)
    (work / "small-fp16.error.txt").write_text("not done within 420 s")
    engines.main(["--out", str(tmp_path / "out"), "--python", stand_in(tmp_path, DIES)])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["fp32", "int8", "fp16"]
    assert {*report_of(tmp_path / "out").values()} == {"exit 139: no driver"}


def test_worker_imports_on_an_older_python_with_numpy_alone() -> None:
    """TensorRT 8.6 has bindings up to Python 3.10, which has no StrEnum and no tomllib."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('tomllib', 'onnx', 'onnxruntime', 'cv2', 'numba', 'click', "
        "'filelock', 'platformdirs')))\n"
        "import numpy, enum; del enum.StrEnum\n"
        f"sys.path.insert(0, {str(Path(worker.__file__).parent)!r}); import gpu_worker"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_modules_that_read_no_video_import_without_pyav() -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    code = (
        "import sys; sys.modules['av'] = None\n"
        "import facetrack.training.full_size, facetrack.pipeline.crops, facetrack.pipeline.model_bench"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
