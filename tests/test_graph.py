"""Graphs are rewritten for TensorRT, and ONNX Runtime computes the same with them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes_onnx import onnx, small_net

from facetrack.engines import graph
from facetrack.engines.card import find_card
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.engines.parity import LIMITS_PX, measure
from facetrack.engines.quantise import QuantSettings, quantise_onnx
from facetrack.pipeline.crops import portrait_proof
from facetrack.tracker.errors import BackendError
from facetrack.tracker.types import UInt8

SHIPPED = Path(__file__).parent.parent / "engines" / "weights"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), np.uint8)


def kinds(content: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(content).graph.node]


def differences(content: bytes, other: bytes) -> list[float]:
    pairs = zip(OnnxBackend(content).run(IMAGES), OnnxBackend(other).run(IMAGES), strict=True)
    return [float(np.abs(a - b).max()) for a, b in pairs]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("opset", [17, 18])
def test_fp32_graph_for_tensorrt_is_in_opset_17_with_identical_outputs(opset: int, half: bool) -> None:
    source = small_net(opset=opset, half=half)
    prepared = graph.for_tensorrt(source, "fp32")
    assert differences(source, prepared) == [0.0, 0.0]
    assert onnx.load_from_string(prepared).opset_import[0].version == 17
    assert kinds(prepared)[:2] == ["Cast", "Transpose"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_outputs_keep_their_names_and_their_order(precision: str) -> None:
    assert graph.output_names(small_net()) == ("values", "means")
    assert graph.output_names(graph.for_tensorrt(small_net(), precision)) == ("values", "means")


def test_weights_stored_in_fp16_become_fp32_initialisers() -> None:
    prepared = graph.for_tensorrt(small_net(half=True), "fp32")
    assert kinds(prepared).count("Cast") == 1
    stored = {weight.name: weight for weight in onnx.load_from_string(prepared).graph.initializer}
    assert stored["kernel"].data_type == onnx.TensorProto.FLOAT
    assert "kernel.half" not in stored


def test_only_large_weights_and_no_biases_are_stored_in_fp16() -> None:
    from onnx import numpy_helper

    model = onnx.load_from_string(small_net())
    rng, enough = np.random.default_rng(0), graph.MIN_FP16_VALUES
    shapes = {"large": (enough // 4, 4), "a bias": (2 * enough,), "small": (enough // 4 - 1, 4)}
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    stored = onnx.load_from_string(graph.store_fp16(model.SerializeToString())).graph.initializer
    kinds_of = {weight.name: weight.data_type for weight in stored}
    assert kinds_of.pop("large.half") == onnx.TensorProto.FLOAT16
    assert {name for name, kind in kinds_of.items() if kind == onnx.TensorProto.FLOAT16} == set()
    assert {"a bias", "small"} <= kinds_of.keys()


def test_resize_scales_stay_in_fp32_even_in_a_constant_node() -> None:
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(small_net())
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32))
    model.graph.node.append(helper.make_node("Constant", [], ["twice"], value=scales))
    model.graph.node.append(helper.make_node("Resize", ["values", "", "twice"], ["larger"], mode="nearest"))
    model.graph.output.append(helper.make_tensor_value_info("larger", onnx.TensorProto.FLOAT, ["batch", 3, "H", "W"]))
    prepared = graph.for_tensorrt(model.SerializeToString(), "fp16")
    (constant,) = (node for node in onnx.load_from_string(prepared).graph.node if node.op_type == "Constant")
    assert constant.attribute[0].t.data_type == onnx.TensorProto.FLOAT
    values, _, larger = OnnxBackend(prepared).run(IMAGES)
    np.testing.assert_array_equal(larger, values.repeat(2, 2).repeat(2, 3))


def test_fp16_graph_has_only_fp16_weights_but_fp32_outputs() -> None:
    prepared = graph.for_tensorrt(small_net(), "fp16")
    model = onnx.load_from_string(prepared)
    assert not [w.name for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT]
    assert all(output.dtype == np.float32 for output in OnnxBackend(prepared).run(IMAGES))
    assert 0 < max(differences(small_net(), prepared)) < 4e-3


def test_fp16_graph_converts_back_to_fp32_with_rounded_weights() -> None:
    half = graph.for_tensorrt(small_net(), "fp16")
    for full in (graph.as_fp32(half), graph.for_tensorrt(half, "fp32")):
        weights = onnx.load_from_string(full).graph.initializer
        assert not [weight.name for weight in weights if weight.data_type == onnx.TensorProto.FLOAT16]
        assert graph.precision_of(full) == "fp32"
        assert 0 < max(differences(small_net(), full)) < 1e-3  # the kernel and the bias are rounded
    assert graph.precision_of(graph.for_tensorrt(half, "fp16")) == "fp16"


@pytest.mark.parametrize("look", [graph.precision_of, graph.store_fp16, graph.as_fp32, graph.takes_any_size])
def test_missing_onnx_package_error_names_the_install_command(
    look: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = small_net()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match="needs the package onnx; run: pip install onnx"):
        look(content)


def test_fp16_conversion_does_not_overflow_to_infinity() -> None:
    assert np.isfinite(graph._as_fp16(np.array([1e9, -1e9, 1.0], np.float32))).all()


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, bytes]:
    """The small network in 8 bits, with and without symmetric ranges."""
    folder = tmp_path_factory.mktemp("int8")
    (folder / "full.onnx").write_bytes(small_net())
    made = {}
    for symmetric in (False, True):
        path = folder / f"{symmetric}.onnx"
        quantise_onnx(folder / "full.onnx", path, [IMAGES], QuantSettings(symmetric=symmetric))
        made[symmetric] = path.read_bytes()
    return made


def test_symmetric_int8_graphs_are_recognised(quantised: dict[bool, bytes]) -> None:
    assert graph.is_symmetric_int8(quantised[True])
    assert not graph.is_symmetric_int8(quantised[False])
    assert not graph.is_symmetric_int8(small_net())


def test_int8_weights_are_scaled_per_channel_and_have_7_bits_for_cpus_without_vnni(
    quantised: dict[bool, bytes],
) -> None:
    """These add up two products of bytes in 16 bits: with weights of 8 the sums would be cut off."""
    from onnx import numpy_helper

    for symmetric, most in ((True, 127), (False, 64)):
        model = onnx.load_from_string(quantised[symmetric])
        stored = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
        (name,) = (name for name, values in stored.items() if values.shape == (6, 3, 1, 1))
        (scale,) = (stored[node.input[1]] for node in model.graph.node if node.input[0] == name)
        assert scale.shape == (6,)
        assert np.abs(stored[name].astype(int)).max((1, 2, 3)).tolist() == pytest.approx([most] * 6, abs=1)


def test_quantisation_restores_the_root_log_level(tmp_path: Path) -> None:
    """ONNX Runtime's advice is kept from it meanwhile."""
    (tmp_path / "full.onnx").write_bytes(small_net())
    root = logging.getLogger()
    before = root.level
    quantise_onnx(tmp_path / "full.onnx", tmp_path / "small.onnx", [IMAGES])
    assert root.level == before


@pytest.mark.parametrize("symmetric", [False, True])
def test_relu_survives_quantisation_and_dequantisation(symmetric: bool, tmp_path: Path) -> None:
    """Unsigned bytes begin at 0, as rectifiers do: what takes them away must not take those away, too."""
    model = onnx.load_from_string(small_net())
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.output[0] = "signed"
    index = list(model.graph.node).index(conv) + 1
    model.graph.node.insert(index, onnx.helper.make_node("Relu", ["signed"], ["mixed"], name="cut"))
    (tmp_path / "full.onnx").write_bytes(model.SerializeToString())
    settings = QuantSettings(symmetric=symmetric)
    quantise_onnx(tmp_path / "full.onnx", tmp_path / "small.onnx", [IMAGES], settings)
    small = (tmp_path / "small.onnx").read_bytes()
    nodes = onnx.load_from_string(small).graph.node
    behind = {name: node.op_type for node in nodes for name in node.input}
    assert symmetric or behind["signed"] == "Relu"  # the convolution's own bytes would lose what is cut off
    wanted = OnnxBackend(model.SerializeToString()).run(IMAGES)[1]
    assert np.abs(wanted - OnnxBackend(small_net()).run(IMAGES)[1]).max() > 0.5
    np.testing.assert_allclose(OnnxBackend(graph.as_fp32(small)).run(IMAGES)[1], wanted, atol=0.01)
    np.testing.assert_allclose(OnnxBackend(small).run(IMAGES)[1], wanted, atol=0.05)


@pytest.mark.parametrize("zero", [np.zeros((), np.uint8), np.ones((), np.int8), None])
def test_quantisers_without_a_signed_zero_point_of_0_are_not_symmetric(
    quantised: dict[bool, bytes], zero: np.ndarray[Any, Any] | None
) -> None:
    """Without a zero point, QuantizeLinear makes unsigned bytes."""
    from onnx import numpy_helper

    model = onnx.load_from_string(quantised[True])
    pair = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    for node in model.graph.node:
        if pair.output[0] in node.output or pair.output[0] in node.input:
            del node.input[2:]
            if zero is not None:
                node.input.append("other zero")
    if zero is not None:
        model.graph.initializer.append(numpy_helper.from_array(zero, "other zero"))
    assert not graph.is_symmetric_int8(model.SerializeToString())


def test_int8_graph_for_tensorrt_keeps_its_quantisers_and_outputs(quantised: dict[bool, bytes]) -> None:
    prepared = graph.for_tensorrt(quantised[True], "int8")
    assert "QuantizeLinear" in kinds(prepared)
    assert max(differences(quantised[True], prepared)) < 1e-5


def test_int8_from_an_unsuitable_graph_names_the_calibration_command(quantised: dict[bool, bytes]) -> None:
    for content in (small_net(), quantised[False]):
        with pytest.raises(BackendError, match="facetrack calibrate int8"):
            graph.for_tensorrt(content, "int8")


@pytest.mark.parametrize("symmetric", [False, True])
def test_fp32_graph_is_recovered_from_an_int8_file(quantised: dict[bool, bytes], symmetric: bool) -> None:
    full = graph.as_fp32(quantised[symmetric])
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds(full))
    step = 1.5 / 127  # of the weights
    assert max(differences(small_net(), full)) < step


def test_node_that_opset_17_cannot_express_is_refused() -> None:
    from onnx import helper

    model = onnx.load_from_string(small_net())
    model.graph.node.append(helper.make_node("Split", ["means"], ["one", "two"], name="half", num_outputs=2, axis=1))
    with pytest.raises(BackendError, match="Split by a number of parts"):
        graph.for_tensorrt(model.SerializeToString(), "fp32")


@pytest.mark.parametrize(("taken", "told"), [("moved", "computes with bytes after move"), ("bgr", "in odd")])
def test_graph_that_computes_on_uint8_is_refused(taken: str, told: str) -> None:
    from onnx import helper

    model = onnx.load_from_string(small_net())
    model.graph.node.append(helper.make_node("Relu", [taken], ["bytes"], name="odd"))
    with pytest.raises(BackendError, match=told):
        graph.for_tensorrt(model.SerializeToString(), "fp32")


def takers_of_the_input(content: bytes) -> set[str]:
    """Kinds of the nodes that take the picture as it is."""
    model = onnx.load_from_string(content)
    return {node.op_type for node in model.graph.node if model.graph.input[0].name in node.input}


def measuring_net() -> bytes:
    """The small network, which also gives the shape of its input."""
    from onnx import TensorProto, helper

    model = onnx.load_from_string(small_net())
    model.graph.node.insert(0, helper.make_node("Shape", ["bgr"], ["lengths"], name="measure"))
    model.graph.node.append(helper.make_node("Cast", ["lengths"], ["shape"], to=TensorProto.FLOAT))
    model.graph.output.append(helper.make_tensor_value_info("shape", TensorProto.FLOAT, [4]))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_input_shape_is_read_after_the_cast(precision: str) -> None:
    prepared = graph.for_tensorrt(measuring_net(), precision)
    assert takers_of_the_input(prepared) == {"Cast"}
    assert OnnxBackend(prepared).run(IMAGES)[2].tolist() == [*IMAGES.shape]


@pytest.mark.skipif(not any(SHIPPED.glob("*.onnx")), reason="the trained weights are not here")
@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.onnx")), ids=lambda path: path.stem)
def test_shipped_networks_prepared_for_tensorrt_only_cast_their_input(path: Path) -> None:
    content = path.read_bytes()
    for precision in ("fp32", "fp16"):
        assert takers_of_the_input(graph.for_tensorrt(content, precision)) == {"Cast"}


@pytest.mark.skipif(not any(SHIPPED.glob("*.onnx")), reason="the trained weights are not here")
def test_network_that_reads_its_input_shape_keeps_its_landmarks() -> None:
    card = find_card("propnet", "align")
    content, proof = card.weights["net"].read(), portrait_proof(card, "net")
    assert "Shape" in takers_of_the_input(content)
    for precision, limit_px in (("fp32", 0.0), ("fp16", LIMITS_PX["fp16"])):
        prepared = OnnxBackend(graph.for_tensorrt(content, precision))
        for parity in measure(OnnxBackend(graph.as_fp32(content)), prepared, proof, (1, 3)):
            assert parity.mean_px <= limit_px, parity


def of_zeros(count: int) -> UInt8:
    return np.zeros((count, 8, 12, 3), np.uint8)


def test_any_batch_still_runs(quantised: dict[bool, bytes]) -> None:
    for precision, content in (("fp32", small_net()), ("fp16", small_net()), ("int8", quantised[True])):
        backend = OnnxBackend(graph.for_tensorrt(content, precision))
        assert [len(backend.run(of_zeros(count))[0]) for count in (1, 5)] == [1, 5]
