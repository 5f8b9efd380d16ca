"""Networks measured alone, and the least that they could cost."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from fakes_gpu import fake_toolkit
from fakes_onnx import small_net

from facetrack import __version__
from facetrack.engines import graph, tensorrt_open
from facetrack.engines.backend import weights_for
from facetrack.engines.card import find_card
from facetrack.engines.convert import export_plans, write_card, write_weights
from facetrack.engines.graph_cost import Cost, Peaks, cost_of
from facetrack.engines.quantise import QuantSettings, quantise_onnx
from facetrack.engines.tensorrt_build import PlanRequest
from facetrack.pipeline import model_bench
from facetrack.pipeline.crops import portrait_proof
from facetrack.pipeline.machine import source_commit
from facetrack.pipeline.model_bench import bench_networks, cpu_peaks
from facetrack.pipeline.open import Choices
from facetrack.pipeline.tables import networks_as_table
from facetrack.tracker.errors import BackendError

SHIPPED = Path(__file__).parent.parent / "engines" / "weights" / "gv-mobilenetv3-68.onnx"
shipped = pytest.mark.skipif(not SHIPPED.exists(), reason="the trained weights are not here")


def test_multiplications_and_bytes_of_a_small_network_are_counted() -> None:
    batch, h, w = 2, 8, 12
    cost = cost_of(small_net(), (batch, h, w, 3), "fp32")
    assert cost.gmac == pytest.approx(batch * h * w * 6 * 3 / 1e9)
    moved = batch * h * w * 3 + 4 * (batch * 3 * h * w + batch * 6)
    weights = 6 * 3 + 6 + 2 + 2  # kernel, bias, mean and deviation, axes
    assert cost.megabytes == pytest.approx((moved + 4 * weights) / 1e6)


def test_fp16_weights_cost_fewer_bytes_and_the_same_operations() -> None:
    full, half = (cost_of(small_net(), (1, 8, 8, 3), precision) for precision in ("fp32", "fp16"))
    assert full.megabytes - half.megabytes == pytest.approx(2 * 28 / 1e6)
    assert full.gmac == half.gmac


def test_matrix_product_cost_includes_its_inner_dimension() -> None:
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["bgr"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "weight"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("bgr", TensorProto.UINT8, ["batch", 2, 5, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 2, 5, 7])],
        [numpy_helper.from_array(np.ones((3, 7), np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert cost_of(model.SerializeToString(), (4, 2, 5, 3), "fp32").gmac == pytest.approx(4 * 2 * 5 * 7 * 3 / 1e9)


def test_cost_of_a_product_with_a_data_dependent_shape_raises() -> None:
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("NonZero", ["bgr"], ["places"]),
        helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["weight", "floats"], ["product"]),
    ]
    graph = helper.make_graph(
        nodes,
        "places",
        [helper.make_tensor_value_info("bgr", TensorProto.UINT8, ["batch", 2, 5, 3])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, [7, "found"])],
        [numpy_helper.from_array(np.ones((7, 4), np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(BackendError, match=r"^product: neither ONNX Runtime nor onnx can infer its shape"):
        cost_of(model.SerializeToString(), (1, 2, 5, 3), "fp32")


@shipped
def test_default_network_cost_matches_its_card() -> None:
    card = find_card("gv", "align")
    assert cost_of(card.weights["net"].read(), (1, *card.size, 3), "fp32").gmac == pytest.approx(card.gmac, abs=0.002)


@shipped
def test_cost_of_the_shipped_scan_with_computed_shapes_is_known() -> None:
    scan = find_card("bbfcn", "detect").weights["scan"].read()
    assert cost_of(scan, (1, 1000, 1000, 3), "fp32").gmac == pytest.approx(45.8, abs=0.05)


@pytest.mark.parametrize(
    ("cost", "least_ms"), [(Cost(1.0, 0.001), 20.0), (Cost(0.001, 100.0), 10.0), (Cost(0.5, 100.0), 10.0)]
)
def test_roofline_is_the_longer_of_compute_and_memory_time(cost: Cost, least_ms: float) -> None:
    assert Peaks(50.0, 10.0, "made up").least_ms(cost) == pytest.approx(least_ms)


def test_peaks_are_measured_and_say_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_bench, "MATRIX", 64)
    monkeypatch.setattr(model_bench, "COPY_MB", 1)
    one, two = cpu_peaks(1), cpu_peaks(2)
    assert min(one.gmac_per_s, one.gb_per_s) > 0
    assert "on one thread times 2" in two.how


def test_the_columns_are_aligned_however_long_a_backends_name_is() -> None:
    figures = {"precision": "fp32", "ms": {"p50": 1.5}, "ms_per_picture": 1.5, "gmac_per_s": 9.0, "of_roofline": 0.5}
    backends = ("ONNX Runtime 1.32.0, CPU", "ONNX Runtime 1.32.0, TensorrtExecutionProvider")
    runs = [{"card": "gv", "role": "net", "backend": name, "batch": 1, **figures} for name in backends]
    report = {"facetrack": "0", "commit": "c", "machine": {"processor": "p", "cores": 2}, "not_measured": {}}
    peaks = {"gmac_per_s": 50.0, "gb_per_s": 10.0, "how": "made up"}
    head, *lines = networks_as_table(report | {"peaks": peaks, "networks": runs}).splitlines()[2:]
    assert [line.index("fp32") for line in lines] == [head.index("PRECISION")] * 2
    assert {len(line) for line in lines} == {len(head)}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The default network as a model of the user's own, whose torch weights nobody has kept."""
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    card = find_card("gv", "align")
    stored = write_weights(tmp_path, "bare", card.weights["net"].read(), "fp16")
    return write_card(replace(card, name="bare", weights={"net": stored}), tmp_path).name


@shipped
def test_every_network_is_measured_at_every_batch_and_missing_backends_are_reported(
    monkeypatch: pytest.MonkeyPatch, bare: str
) -> None:
    monkeypatch.setattr(model_bench, "MOST_REPEATS", 1)
    monkeypatch.setattr(model_bench, "SCAN_SIZE", (32, 32))
    report = bench_networks(Choices(model=bare), (1, 2), lambda _: Peaks(50.0, 10.0, "made up"))
    json.dumps(report)
    measured = [(run["role"], run["batch"]) for run in report["networks"] if "ONNX" in run["backend"]]
    assert measured == [(role, batch) for role in ("net", "scan", "refine") for batch in (1, 2)]
    assert all(run["of_roofline"] > 0 for run in report["networks"] if run["precision"] != "int8")
    ran = weights_for("onnx", find_card("bbfcn", "detect").weights["scan"])
    on_cpu = {run["precision"] for run in report["networks"] if run["role"] == "scan" and "ONNX" in run["backend"]}
    assert on_cpu == {"int8" if ran.precision == "int8" else "fp32"}  # of the file that ran, not of the card's first
    assert "no torch weights" in report["not_measured"]["torch"]
    assert "not measured: torch:" in networks_as_table(report)
    assert report["commit"] == source_commit()
    assert f"({source_commit()})" in networks_as_table(report)


@shipped
def test_a_plan_is_measured_in_its_own_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACETRACK_PLANS", str(tmp_path))
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    monkeypatch.setattr(model_bench, "MOST_REPEATS", 1)
    toolkit, _ = fake_toolkit()
    monkeypatch.setattr(tensorrt_open, "find_toolkit", lambda: toolkit)
    whole = find_card("bbfcn", "detect")
    refine_alone = replace(whole, weights={"refine": whole.weights["refine"]})  # a fake GPU is too slow for the scan
    cards = {"align": find_card("gv", "align"), "detect": refine_alone}
    monkeypatch.setattr(model_bench, "find_card", lambda _, task: cards[task])
    exported = {"align": "fp16", "detect": "fp32"}
    for task, precision in exported.items():
        proofs = {role: portrait_proof(cards[task], role) for role in cards[task].weights}
        export_plans(cards[task], PlanRequest(precision, (1,)), proofs, tmp_path / "out", toolkit)
    report = bench_networks(Choices(backend="tensorrt"), (2,), lambda _: Peaks(50.0, 10.0, "made up"))
    net, second_look = report["networks"]
    assert [net["precision"], second_look["precision"]] == [*exported.values()]
    cost = cost_of(find_card("gv", "align").weights["net"].read(), tuple(net["input"]), "fp16")
    assert net["megabytes"] == round(cost.megabytes, 2)
    assert " fp16 " in networks_as_table(report)


def test_the_precision_of_a_graph_is_that_of_its_products_not_of_its_storage(tmp_path: Path) -> None:
    assert graph.precision_of(small_net()) == "fp32"
    assert graph.precision_of(small_net(half=True)) == "fp32"  # stored in 16 bits, unpacked before they are used
    assert graph.precision_of(graph.for_tensorrt(small_net(half=True), "fp16")) == "fp16"
    source, target = tmp_path / "full.onnx", tmp_path / "int8.onnx"
    source.write_bytes(small_net())
    quantise_onnx(source, target, [np.zeros((1, 8, 8, 3), np.uint8)], QuantSettings(symmetric=True))
    assert graph.precision_of(target.read_bytes()) == "int8"


def test_source_commit_is_the_commit_of_a_checkout_or_the_version_of_a_release(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    if which("git") is None:
        pytest.skip("no git here")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    subprocess.run([*git, "tag", "v1"], check=True)
    wanted = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert len(source_commit(tmp_path)) >= 7
    assert wanted.startswith(source_commit(tmp_path))
    installed = tmp_path / "site-packages" / "facetrack"  # in somebody's repository, and no part of it
    installed.mkdir(parents=True)
    assert source_commit(installed) == __version__


@shipped
def test_requested_backend_without_weights_raises(bare: str) -> None:
    with pytest.raises(BackendError, match="no torch weights"):
        bench_networks(Choices(model=bare, backend="torch"), (1,), lambda _: Peaks(50.0, 10.0, "made up"))


@shipped
def test_networks_are_measured_in_the_requested_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_bench, "MOST_REPEATS", 1)
    monkeypatch.setattr(model_bench, "SCAN_SIZE", (32, 32))
    choices, peaks = Choices(backend="onnx"), Peaks(50.0, 10.0, "made up")
    report = bench_networks(choices, (2,), lambda _: peaks, ("fp32", "fp16", "int8"))
    measured = [(run["role"], run["precision"]) for run in report["networks"]]
    assert measured == [(role, p) for role in ("net", "scan", "refine") for p in ("fp32", "fp16", "int8")]
    sizes = {run["precision"]: run["megabytes"] for run in report["networks"] if run["role"] == "net"}
    assert sizes["int8"] < sizes["fp32"]
    assert sizes["fp16"] < sizes["fp32"]
    assert report["not_measured"] == {}


@shipped
def test_int8_runs_have_no_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_bench, "MOST_REPEATS", 1)
    monkeypatch.setattr(model_bench, "SCAN_SIZE", (32, 32))
    peaks = Peaks(1e-3, 1e-3, "so slow that every network would surpass it")
    report = bench_networks(Choices(backend="onnx"), (1,), lambda _: peaks, ("fp32", "int8"))
    assert len(report["networks"]) == 6
    for run, line in zip(report["networks"], networks_as_table(report).splitlines()[3:], strict=True):
        shares = run["roofline_ms"], run["of_roofline"]
        assert (shares == (None, None)) == (run["precision"] == "int8") == (not line.endswith("%"))


@shipped
def test_unavailable_precision_is_reported_or_raises_if_it_is_the_only_one(bare: str) -> None:
    measured = bench_networks(
        Choices(model=bare, backend="onnx"), (1,), lambda _: Peaks(50.0, 10.0, "made up"), ("fp32", "int8")
    )
    assert "facetrack calibrate int8" in measured["not_measured"]["onnx in int8"]
    with pytest.raises(BackendError, match="computes only in fp32"):
        bench_networks(Choices(backend="torch"), (1,), lambda _: Peaks(50.0, 10.0, "made up"), ("fp16",))
