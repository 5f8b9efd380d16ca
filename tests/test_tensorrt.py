"""TensorRT's builder and engine, on a GPU that is not there."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes_gpu import H200, FakeCuda, Wishes, fake_toolkit
from fakes_onnx import scan_net, small_net, weights_of
from fakes_pipeline import painted_card

from facetrack.engines import graph
from facetrack.engines.convert import export_plans, open_in
from facetrack.engines.cuda_driver import Buffer
from facetrack.engines.cuda_probe import Gpu
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.engines.parity import Proof
from facetrack.engines.plan_cache import PlanCache
from facetrack.engines.tensorrt_backend import TensorRTBackend
from facetrack.engines.tensorrt_build import PlanRequest, build_plan, make_logger
from facetrack.engines.tensorrt_open import default_request, fitted, open_tensorrt, plan_key
from facetrack.tracker.errors import BackendError
from facetrack.tracker.types import UInt8

REQUEST = PlanRequest("fp32", (1, 4, 8), ((8, 8), (16, 16), (32, 48)))


def pictures(count: int, height: int = 16, width: int = 16) -> UInt8:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)


def proof() -> Proof:
    """The "landmarks" of `small_net` are its means, in hundreds of pixels."""
    return Proof(pictures(5), lambda outputs: outputs[1].reshape(len(outputs[1]), -1, 2) * 100)


def opened(
    tmp_path: Path, wishes: Wishes | None = None, request: PlanRequest = REQUEST, net: bytes | None = None
) -> tuple[TensorRTBackend, Any]:
    toolkit, holds = fake_toolkit(wishes)
    weights = weights_of(net or small_net(), tmp_path)
    backend = open_tensorrt(weights, proof(), request, toolkit, PlanCache(tmp_path / "plans"))
    return backend, holds[-1]


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_engine_matches_onnx_runtime_in_recorded_and_replayed_runs(tmp_path: Path, batch: int) -> None:
    backend, _ = opened(tmp_path, net=small_net(size=(16, 16)))
    reference = OnnxBackend(small_net())
    for turn in range(3):  # the first run of a usual batch is recorded, the later ones are replayed
        images = pictures(batch) ^ np.uint8(turn)
        for got, wanted in zip(backend.run(images), reference.run(images), strict=True):
            np.testing.assert_array_equal(got, wanted)
    backend.close()


@pytest.mark.parametrize("names", [("values",), ("values", "sums"), ("values", "means", "sums")])
def test_a_plan_whose_outputs_are_not_those_of_the_graph_is_refused(names: tuple[str, ...]) -> None:
    toolkit, _ = fake_toolkit()
    plan, _ = build_plan(toolkit.trt, make_logger(toolkit.trt), small_net(), REQUEST)
    with pytest.raises(BackendError, match=r"belongs to another graph: wanted the outputs values.*, got means, values"):
        TensorRTBackend(toolkit.trt, toolkit.open_cuda(), plan, names, "fp32")


@pytest.mark.parametrize("size", [(16, 16), None])
def test_plan_reports_its_input_and_output_shapes(tmp_path: Path, size: tuple[int, int] | None) -> None:
    backend, _ = opened(tmp_path, net=small_net(size))
    assert backend.shapes.input == (None, *(size or (None, None)), 3)
    assert [shape[1] for shape in backend.shapes.outputs] == [3, 6]
    backend.close()


def test_only_usual_batches_of_fixed_size_are_captured_as_cuda_graphs(tmp_path: Path) -> None:
    backend, cuda = opened(tmp_path, net=small_net(size=(16, 16)))
    for batch in (4, 4, 3, 3, 8, 4):
        backend.run(pictures(batch))
    calls = [call for call in cuda.calls if call in ("capture", "launch")]
    assert calls == ["capture", "launch", "capture", "launch"]
    backend.close()


def test_pictures_of_any_size_run_without_graphs(tmp_path: Path) -> None:
    backend, cuda = opened(tmp_path)
    for size in ((16, 16), (32, 48), (8, 20)):
        values, _ = backend.run(pictures(1, *size))
        assert values.shape[2:] == size
    assert "capture" not in cuda.calls
    backend.close()


@pytest.mark.parametrize("size", [None, (16, 16)])
def test_a_batch_above_the_largest_runs_in_parts(tmp_path: Path, size: tuple[int, int] | None) -> None:
    backend, _ = opened(tmp_path, net=small_net(size=size))
    images = pictures(19)
    for got, wanted in zip(backend.run(images), OnnxBackend(small_net()).run(images), strict=True):
        np.testing.assert_array_equal(got, wanted)
    backend.close()


def test_a_picture_above_the_largest_runs_in_tiles(tmp_path: Path) -> None:
    toolkit, _ = fake_toolkit()
    weights, request = weights_of(scan_net(), tmp_path), PlanRequest("fp32", (1,), ((12, 12), (96, 96), (96, 104)))
    judge = Proof(pictures(1), lambda outputs: outputs[0][:, :, :, :2].reshape(1, -1, 2))
    backend = open_tensorrt(weights, judge, request, toolkit, PlanCache(tmp_path / "plans"))
    for size in ((96, 104), (100, 400), (212, 96), (300, 296)):
        (wanted,) = OnnxBackend(scan_net()).run(pictures(1, *size))
        (got,) = backend.run(pictures(1, *size))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=0.01)  # of sums of up to 10,000
    backend.close()


def test_unsupported_picture_sizes_are_refused(tmp_path: Path) -> None:
    backend, _ = opened(tmp_path)
    with pytest.raises(
        BackendError, match="outputs of this network's tiles cannot be joined"
    ):  # its second one is no map
        backend.run(pictures(1, 64, 16))
    with pytest.raises(BackendError, match="not within what this plan was built for"):
        backend.run(pictures(1, 4, 16))
    backend.close()


@pytest.mark.parametrize("version", ["8.6.0", "10.16.1", "11.4.0"])
def test_shapes_that_share_a_profile_run_in_every_tensorrt_release(tmp_path: Path, version: str) -> None:
    """TensorRT 8.6 keeps a profile for one context, if it is not told otherwise when the plan is built."""
    net = small_net(size=(16, 16))
    backend, _ = opened(tmp_path, Wishes(version), net=net)
    for batch in (4, 3, 4, 2, 8, 5, 1):  # 4 has a context of its own, 3 and 2 share another of the same profile
        for got, wanted in zip(backend.run(pictures(batch)), OnnxBackend(net).run(pictures(batch)), strict=True):
            np.testing.assert_array_equal(got, wanted)
    backend.close()


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("set_optimization_profile_async", "cannot take profile 2 of this plan"),
        ("set_input_shape", "not within what this plan was built for"),
        ("set_tensor_address", "refuses the memory for bgr"),
    ],
)
def test_refusal_by_an_execution_context_raises_with_its_reason(tmp_path: Path, method: str, told: str) -> None:
    with pytest.raises(BackendError, match=told):
        opened(tmp_path, Wishes(refuse=method))


@pytest.mark.parametrize("kind", ["Builder", "OnnxParser", "Runtime"])
def test_failed_tensorrt_object_raises_backend_error_with_the_logged_reason(tmp_path: Path, kind: str) -> None:
    """Its bindings raise a TypeError of pybind11's, and the reason is a number in the log."""
    told = r"TensorRT 10\.16\.1 .* error: 35.*the driver is older than the CUDA .*install a newer driver"
    with pytest.raises(BackendError, match=told):
        opened(tmp_path, Wishes(refuse=kind))


def test_auto_refuses_a_ready_plan_that_tensorrt_cannot_run_here(tmp_path: Path) -> None:
    wishes = Wishes()
    toolkit, holds = fake_toolkit(wishes)
    cache, weights = PlanCache(tmp_path / "plans"), weights_of(small_net(size=(16, 16)), tmp_path)
    open_tensorrt(weights, proof(), default_request(weights), toolkit, cache).close()
    wishes.refuse = "Runtime"
    with pytest.raises(BackendError, match="the driver is older"):
        open_tensorrt(weights, None, None, toolkit, cache)
    assert all(cuda.closed for cuda in holds)


@pytest.mark.parametrize("method", ["Runtime", "set_optimization_profile_async", "set_input_shape", "buffer", ""])
def test_plan_that_cannot_be_loaded_releases_the_gpu(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit, holds = fake_toolkit(Wishes(refuse=method))
    prepared = graph.for_tensorrt(small_net(), "fp32")
    plan, _ = build_plan(toolkit.trt, make_logger(toolkit.trt), prepared, REQUEST, b"")
    plan = plan if method else b"no plan"
    cuda, sizes = toolkit.open_cuda(), []

    def full(size: int) -> Buffer:
        sizes.append(size)
        if len(sizes) == 2:
            raise BackendError("no room")
        return FakeCuda.buffer(cuda, size)

    if method == "buffer":
        monkeypatch.setattr(cuda, "buffer", full)
    with pytest.raises(BackendError):
        TensorRTBackend(toolkit.trt, cuda, plan, graph.output_names(prepared), "fp32")
    assert cuda.closed
    assert not cuda.memory.blocks
    assert holds == [cuda]


def test_closing_frees_all_and_is_harmless_twice(tmp_path: Path) -> None:
    backend, cuda = opened(tmp_path)
    backend.run(pictures(4))
    backend.close()
    backend.close()
    assert cuda.closed
    assert not cuda.memory.blocks
    with pytest.raises(BackendError, match="was closed"):
        backend.run(pictures(4))


def test_any_thread_may_run_and_leaves_no_context_behind(tmp_path: Path) -> None:
    backend, cuda = opened(tmp_path)
    shapes: list[Any] = []
    thread = threading.Thread(target=lambda: shapes.append(backend.run(pictures(2))[1].shape))
    thread.start()
    thread.join()
    assert shapes == [(2, 6)]
    assert cuda.depth == 0
    backend.close()


def test_engines_in_one_process_are_independent(tmp_path: Path) -> None:
    toolkit, _ = fake_toolkit()
    cache, weights = PlanCache(tmp_path / "plans"), weights_of(small_net(), tmp_path)
    first, second = (open_tensorrt(weights, proof(), REQUEST, toolkit, cache) for _ in range(2))
    kept = first.run(pictures(3))[0]
    wanted = kept.copy()
    second.run(pictures(4)[:3])
    np.testing.assert_array_equal(kept, wanted)
    first.close()
    np.testing.assert_array_equal(second.run(pictures(3))[0], wanted)
    second.close()


@pytest.mark.parametrize(
    ("version", "precision", "network_flags", "flags"),
    [
        ("8.6.0", "fp32", 1, ["no TF32"]),
        ("8.6.0", "fp16", 1, ["FP16"]),
        ("10.16.1", "fp16", 3, []),
        ("11.4.0", "fp32", 2, ["no TF32"]),
        ("11.4.0", "fp16", 2, []),
    ],
)
def test_each_tensorrt_release_gets_its_own_flags(
    version: str, precision: str, network_flags: int, flags: list[str]
) -> None:
    wishes = Wishes(version)
    toolkit, _ = fake_toolkit(wishes)
    prepared = graph.for_tensorrt(small_net(), precision)
    request = PlanRequest(precision, (1, 8))
    build_plan(toolkit.trt, make_logger(toolkit.trt), prepared, request)
    assert wishes.network_flags == network_flags
    assert wishes.flags == flags


def test_profiles_cover_every_batch_once_and_favour_the_usual_ones() -> None:
    wishes = Wishes()
    toolkit, _ = fake_toolkit(wishes)
    build_plan(toolkit.trt, make_logger(toolkit.trt), small_net(), REQUEST)
    assert wishes.profiles == [
        [(1, 8, 8, 3), (1, 16, 16, 3), (1, 32, 48, 3)],
        [(2, 8, 8, 3), (4, 16, 16, 3), (4, 32, 48, 3)],
        [(5, 8, 8, 3), (8, 16, 16, 3), (8, 32, 48, 3)],
    ]


def test_a_graph_that_tensorrt_cannot_read_is_reported_with_its_reasons(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot read the graph: no TopK; no Pad"):
        opened(tmp_path, Wishes(unreadable=("no TopK", "no Pad")))


def test_a_network_that_cannot_be_built_is_an_error_and_leaves_no_plan(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot build this network"):
        opened(tmp_path, Wishes(unbuildable=True))
    assert not list((tmp_path / "plans").glob("*.plan"))


@pytest.mark.parametrize("wrong", [1, 4, 8])
def test_a_plan_that_is_wrong_in_one_profile_is_refused_and_not_kept(tmp_path: Path, wrong: int) -> None:
    def distort(outputs: Any, batch: int) -> Any:
        return [outputs[0], outputs[1] + (0.01 if batch == wrong else 0.0)]

    with pytest.raises(BackendError, match=rf"refused: at batch {wrong} its landmarks are 1\.41 px"):
        opened(tmp_path, Wishes(distort=distort))
    assert not list((tmp_path / "plans").glob("*.plan"))


def test_a_plan_is_judged_by_the_graph_that_is_replayed(tmp_path: Path) -> None:
    """The first run of a batch is recorded, and gives what the kernels gave when they were launched one by one."""
    holds: list[FakeCuda] = []

    def wrong_when_replayed(outputs: Any, batch: int) -> Any:
        replayed = batch > 1 and holds[-1].calls[-2:] == ["launch", "upload"]
        return [outputs[0], outputs[1] + (0.01 if replayed else 0.0)]

    toolkit, holds = fake_toolkit(Wishes(distort=wrong_when_replayed))
    weights, cache = weights_of(small_net(size=(16, 16)), tmp_path), PlanCache(tmp_path / "plans")
    request = PlanRequest("fp32", (1, len(proof().pictures)))
    with pytest.raises(BackendError, match="refused: at batch 5 its landmarks are"):
        open_tensorrt(weights, proof(), request, toolkit, cache)


def test_nan_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="refused: at batch 1 its landmarks are inf px"):
        opened(tmp_path, Wishes(distort=lambda outputs, _: [outputs[0], outputs[1] * np.float32(np.nan)]))


def test_a_proved_plan_is_opened_again_without_building_and_names_its_parity(tmp_path: Path) -> None:
    wishes = Wishes()
    for _ in range(2):
        opened(tmp_path, wishes)[0].close()
    assert wishes.builds == 1
    report = json.loads(next((tmp_path / "plans").glob("*.json")).read_text(encoding="utf-8"))
    assert [parity["batch"] for parity in report["parity"]] == [1, 4, 8]
    assert report["key"]["gpu"] == "NVIDIA H200"


def test_kernel_times_of_one_build_serve_the_next(tmp_path: Path) -> None:
    wishes = Wishes()
    for batches in ((1, 8), (1, 4)):
        opened(tmp_path, wishes, PlanRequest("fp32", batches, REQUEST.sizes))[0].close()
    assert wishes.timings == [b"", b"t"]


@pytest.mark.parametrize(
    "wishes", [Wishes(damaged_timings=b"t"), Wishes(foreign_timings=b"t")], ids=["no", "another's"]
)
def test_kernel_timings_that_cannot_be_used_are_measured_anew(tmp_path: Path, wishes: Wishes) -> None:
    for batches in ((1, 8), (1, 4)):
        opened(tmp_path, wishes, PlanRequest("fp32", batches, REQUEST.sizes))[0].close()
    assert wishes.timings == [b"", b"t", b""]
    (kept,) = (tmp_path / "plans").glob("timings-*.cache")
    assert kept.read_bytes() == b"t"  # as after the first build


@pytest.mark.parametrize(
    ("gpu", "version", "told"),
    [
        (Gpu("NVIDIA H100", "9.0", 80.0, "580.159.03", "13.0"), "10.16.1", "gpu NVIDIA H200, here NVIDIA H100"),
        (Gpu("NVIDIA H200", "9.0", 143.8, "590.1", "13.1"), "10.16.1", "driver 580.159.03, here 590.1"),
        (H200, "11.4.0", "tensorrt 10.16.1, here 11.4.0"),
    ],
)
def test_another_machine_builds_anew_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gpu: Gpu, version: str, told: str
) -> None:
    opened(tmp_path)[0].close()
    wishes = Wishes(version)
    toolkit, _ = fake_toolkit(wishes, gpu)
    weights = weights_of(small_net(), tmp_path)
    with caplog.at_level(logging.WARNING, "facetrack"):
        open_tensorrt(weights, proof(), REQUEST, toolkit, PlanCache(tmp_path / "plans")).close()
    assert wishes.builds == 1
    assert told in caplog.text


def test_auto_takes_a_ready_plan_and_never_builds_one(tmp_path: Path) -> None:
    toolkit, _ = fake_toolkit()
    cache, weights = PlanCache(tmp_path / "plans"), weights_of(small_net(size=(16, 16)), tmp_path)
    with pytest.raises(BackendError, match="no TensorRT plan: there is none yet"):
        open_tensorrt(weights, None, None, toolkit, cache)
    open_tensorrt(weights, proof(), default_request(weights), toolkit, cache).close()
    ready = open_tensorrt(weights, None, None, toolkit, cache)
    assert ready.description == "TensorRT 10.16.1 fp16, fake CUDA"
    ready.close()


@pytest.mark.parametrize("proved_by", [proof, lambda: None])
def test_exported_plan_of_another_precision_and_batches_is_found(tmp_path: Path, proved_by: Any) -> None:
    wishes = Wishes()
    toolkit, _ = fake_toolkit(wishes)
    cache, weights = PlanCache(tmp_path / "plans"), weights_of(small_net(size=(16, 16)), tmp_path)
    request = PlanRequest("fp32", (1, 2))
    open_tensorrt(weights, proof(), request, toolkit, cache).close()
    cache.mark_exported("small", plan_key(toolkit, weights, request))
    for backend in (
        open_tensorrt(weights, None, None, toolkit, cache),
        open_tensorrt(weights, proved_by(), None, toolkit, cache),
    ):
        assert backend.description == "TensorRT 10.16.1 fp32, fake CUDA"
        assert backend.run(pictures(5))[1].shape == (5, 6)
        backend.close()
    assert wishes.builds == 1


def test_last_exported_plan_is_the_one_that_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACETRACK_PLANS", str(tmp_path / "plans"))
    wishes = Wishes()
    toolkit, _ = fake_toolkit(wishes)
    weights = weights_of(small_net(size=(16, 16)), tmp_path)
    card = replace(painted_card(), weights={"net": weights})
    for precision in ("fp32", "fp16", "fp32"):  # the last one is there already
        export_plans(card, PlanRequest(precision, (1, 2)), {"net": proof()}, tmp_path / "out", toolkit)
        ready = open_tensorrt(weights, None, None, toolkit)
        assert f" {precision}," in ready.description
        ready.close()
    assert wishes.builds == 2


def test_a_plan_that_is_built_to_be_measured_is_not_the_one_that_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACETRACK_PLANS", str(tmp_path / "plans"))
    toolkit, _ = fake_toolkit()
    monkeypatch.setattr("facetrack.engines.tensorrt_open.find_toolkit", lambda: toolkit)
    weights = weights_of(small_net(size=(16, 16)), tmp_path)
    card = replace(painted_card(), weights={"net": weights})
    measured = PlanRequest("fp32", (1,))
    for _ in range(2):
        open_in(measured, weights, "tensorrt", 1, proof())[0].close()
        with pytest.raises(BackendError, match="no TensorRT plan"):
            open_tensorrt(weights, None, None, toolkit)
    for exported in (PlanRequest("fp16", (1, 2)), measured):
        export_plans(card, exported, {"net": proof()}, tmp_path / "out", toolkit)
        open_in(PlanRequest("fp16", (1,)), weights, "tensorrt", 1, proof())[0].close()
        ready = open_tensorrt(weights, None, None, toolkit)
        assert (ready.precision, ready.preferred_batch) == (exported.precision, exported.batches[-1])
        ready.close()


def test_crop_networks_get_several_batches_and_variable_size_networks_a_batch_of_1(tmp_path: Path) -> None:
    crops, scan = weights_of(small_net(size=(16, 16)), tmp_path), weights_of(scan_net(), tmp_path, "scan")
    assert default_request(crops).batches == (1, 4, 8)
    assert default_request(scan).batches == (1,)
    assert fitted(PlanRequest("fp32", (2, 3)), crops) == PlanRequest("fp32", (2, 3))
    assert fitted(PlanRequest("fp32", (2, 3)), scan) == PlanRequest("fp32", (1,))


def test_building_without_a_proof_is_refused(tmp_path: Path) -> None:
    toolkit, holds = fake_toolkit()
    with pytest.raises(BackendError, match="facetrack export MODEL --to tensorrt"):
        open_tensorrt(weights_of(small_net(), tmp_path), None, REQUEST, toolkit, PlanCache(tmp_path / "plans"))
    assert not holds  # the GPU was not even opened
    assert not (tmp_path / "plans").exists()


@pytest.mark.parametrize(
    ("precision", "batches", "told"),
    [("fp64", (1,), "wanted fp32, fp16 or int8"), ("fp16", (), "ascending"), ("fp16", (4, 1), "ascending")],
)
def test_invalid_plan_request_raises(precision: str, batches: tuple[int, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PlanRequest(precision, batches)
