"""The least cost of a run of an ONNX graph, for a roofline: multiplications and memory traffic; needs onnx.

Source: Williams et al., "Roofline: an insightful visual performance model", CACM 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..tracker.errors import BackendError
from .graph import as_fp32
from .onnx_backend import import_onnxruntime

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one run of a batch.

    Attributes:
        gmac: 10^9 multiplications of convolutions and linear layers.
        megabytes: 10^6 bytes of input, outputs and weights, each moved once; intermediate tensors are not counted.
    """

    gmac: float
    megabytes: float


@dataclass(frozen=True, slots=True)
class Peaks:
    """Peak rates of a device.

    Attributes:
        gmac_per_s: 10^9 multiply-adds per second, in a large fp32 matrix product.
        gb_per_s: 10^9 bytes read and written per second, in a large copy.
        how: how these were measured.
    """

    gmac_per_s: float
    gb_per_s: float
    how: str

    def least_ms(self, cost: Cost) -> float:
        """The roofline, milliseconds: the larger of the times for the arithmetic and for the memory traffic."""
        return max(cost.gmac / self.gmac_per_s * 1e3, cost.megabytes / self.gb_per_s)


def cost_of(content: bytes, shape: tuple[int, ...], precision: str) -> Cost:
    """Count the cost of a graph.

    Args:
        content: one of facetrack's ONNX files.
        shape: (B, h, w, 3) of the input.
        precision: of the weights in memory: "fp32", "fp16" or "int8".
    Raises:
        BackendError: onnx is not installed, or the shape of a product is not known.
    """
    model = _with_input(as_fp32(content), shape)  # raises if onnx is missing
    weights = sum(prod(weight.dims) for weight in model.graph.initializer) * WEIGHT_BYTES[precision]
    graph = _with_shapes(model).graph
    known = _Shapes(
        _named_shape(value) for value in (*graph.value_info, *graph.output, *graph.input) if _has_static_shape(value)
    )
    known |= {weight.name: tuple(weight.dims) for weight in graph.initializer}
    moved = prod(shape) + 4 * sum(prod(known[output.name]) for output in graph.output)
    macs = sum(_macs(node, known) for node in graph.node if node.op_type in PRODUCTS)
    return Cost(macs / 1e9, (moved + weights) / 1e6)


class _Shapes(dict[str, tuple[int, ...]]):
    """The shapes of a graph's values by their names."""

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise BackendError(f"{name}: neither ONNX Runtime nor onnx can infer its shape; export the network again")


def _with_input(content: bytes, shape: tuple[int, ...]) -> Any:
    """The model for an input of this shape, without the stored shapes that depend on it."""
    import onnx

    model = onnx.load_from_string(content)
    for axis, length in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        axis.dim_value = length
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


def _with_shapes(model: Any) -> Any:
    """The model with the shapes of all values, including those whose sizes the graph calculates.

    onnx does not follow a division of sizes, so ONNX Runtime first replaces such sizes by constants.
    """
    import onnx

    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "constants.onnx"))
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _has_static_shape(value: Any) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(axis.HasField("dim_value") for axis in tensor.shape.dim)


def _named_shape(value: Any) -> tuple[str, tuple[int, ...]]:
    return value.name, tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _macs(node: Any, known: _Shapes) -> int:
    """Multiplications of a convolution (by its outputs, or by its inputs if transposed), or of a matrix product."""
    weight = known[node.input[1]]
    if node.op_type == "Conv":
        return prod(known[node.output[0]]) * prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return prod(known[node.input[0]]) * prod(weight[1:])
    return prod(known[node.output[0]]) * known[node.input[0]][-1]
