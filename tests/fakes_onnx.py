"""Small ONNX networks with known outputs, and their weight files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facetrack.engines.card import Weights

onnx = pytest.importorskip("onnx", reason="needs the train extra")


def weights_of(content: bytes, folder: Path, name: str = "small", precision: str = "fp32") -> Weights:
    """Store a graph as a card's weights."""
    path = folder / f"{name}.onnx"
    path.write_bytes(content)
    return Weights(path, hashlib.sha256(content).hexdigest(), precision)


def small_net(size: tuple[int, int] | None = None, opset: int = 18, *, half: bool = False) -> bytes:
    """Pictures -> planes (B, 3, h, w) in [-1, 1] and, through a convolution of ones, means (B, 6).

    Like the exporter's graphs it transposes the bytes before casting them.

    Args:
        size: (h, w), if it is fixed.
        opset: 17 or 18, which differ in how a reduction gets its axes.
        half: store the convolution's weights in 16 bits, followed by a cast.
    """
    from onnx import TensorProto, helper, numpy_helper

    h, w = size or ("height", "width")
    kernel = np.eye(6, 3, dtype=np.float32).reshape(6, 3, 1, 1) + np.float32(0.5)
    stored = {"middle": np.float32(127.5), "range": np.float32(128), "bias": np.linspace(-1, 1, 6, dtype=np.float32)}
    stored["kernel.half" if half else "kernel"] = kernel.astype(np.float16) if half else kernel
    mean = helper.make_node("ReduceMean", ["mixed", "axes"], ["means"], keepdims=0)
    if opset >= 18:
        stored["axes"] = np.array([2, 3], np.int64)
    else:
        mean = helper.make_node("ReduceMean", ["mixed"], ["means"], axes=[2, 3], keepdims=0)
    nodes = [helper.make_node("Cast", ["kernel.half"], ["kernel"], to=TensorProto.FLOAT)] if half else []
    nodes += [
        helper.make_node("Transpose", ["bgr"], ["moved"], perm=[0, 3, 1, 2], name="move"),
        helper.make_node("Cast", ["moved"], ["floats"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Sub", ["floats", "middle"], ["centred"]),
        helper.make_node("Div", ["centred", "range"], ["values"]),
        helper.make_node("Conv", ["values", "kernel", "bias"], ["mixed"], name="conv"),
        mean,
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("bgr", TensorProto.UINT8, ["batch", h, w, 3])],
        [
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", 3, h, w]),
            helper.make_tensor_value_info("means", TensorProto.FLOAT, ["batch", 6]),
        ],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in stored.items()],
    )
    model: Any = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def scan_net() -> bytes:
    """Pictures of any size -> maps (B, 2, h, w): weighted sums of 5x5 pixels, with zeros beyond the picture."""
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.linspace(-1, 1, 2 * 3 * 25, dtype=np.float32).reshape(2, 3, 5, 5)
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["bgr"], ["moved"], perm=[0, 3, 1, 2], name="move"),
            helper.make_node("Cast", ["moved"], ["floats"], to=TensorProto.FLOAT, name="cast"),
            helper.make_node("Conv", ["floats", "kernel"], ["maps"], name="conv", pads=[2, 2, 2, 2]),
        ],
        "scan",
        [helper.make_tensor_value_info("bgr", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", 2, "height", "width"])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model: Any = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content
