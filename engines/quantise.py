"""8-bit copies of exported networks, as Q/DQ pairs in the ONNX graph; needs onnx."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ..tracker.types import UInt8
from .onnx_backend import import_onnxruntime

METHODS = ("minmax", "entropy")


@dataclass(frozen=True, slots=True)
class QuantSettings:
    """How to quantise.

    Attributes:
        method: "minmax" takes the activations' whole range, "entropy" cuts it where the least information is lost.
        symmetric: signed activations with the zero point 0, which TensorRT requires and ONNX Runtime accepts, too; else
            unsigned ones, which give the outputs of a ReLU twice the resolution, and weights of 7 bits, whose products
            CPUs without VNNI can add up in 16 bits.
        least_weights: convolutions with fewer stay fp32: on a CPU they lose more to format conversions than they gain.
    """

    method: str = "minmax"
    symmetric: bool = False
    least_weights: int = 0


def convolutions(source: Path, least_weights: int = 0) -> tuple[list[str], list[str]]:
    """Names of a graph's convolutions, in its order: the dense ones with at least this many weights, and the others."""
    import onnx

    graph = onnx.load(source).graph
    sizes = {weight.name: math.prod(weight.dims) for weight in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    others = [node.name for node in nodes if _is_grouped(node) or sizes[node.input[1]] < least_weights]
    return [node.name for node in nodes if node.name not in others], others


def _is_grouped(node: Any) -> bool:
    return any(a.name == "group" and a.i > 1 for a in node.attribute)


def quantise_onnx(source: Path, target: Path, batches: Iterable[UInt8], settings: QuantSettings | None = None) -> None:
    """Write a copy of an exported network whose dense convolutions compute in 8 bits.

    Static ranges, signed weights per channel. Grouped convolutions stay fp32: ONNX Runtime computes them slower in
    8 bits than in 32.

    Args:
        source: an fp32 file from `export_onnx`.
        target: the file to write.
        batches: real pictures (B, h, w, 3) whose activations set the ranges; "entropy" needs batches of equal size.
        settings: default: unsigned activations with their whole range.
    Raises:
        ValueError: the method is unknown.
    """
    import_onnxruntime()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    settings = settings or QuantSettings()
    if settings.method not in METHODS:
        raise ValueError(f"method: wanted one of {', '.join(METHODS)}, got {settings.method!r}")
    _, others = convolutions(source, settings.least_weights)
    with _quiet():
        quantize_static(
            source,
            target,
            _Batches(source, batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MaxPool"] if settings.symmetric else ["Conv", "MaxPool", "Relu"],
            nodes_to_exclude=others,
            per_channel=True,
            reduce_range=not settings.symmetric,
            activation_type=QuantType.QInt8 if settings.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax if settings.method == "minmax" else CalibrationMethod.Entropy,
            extra_options={"ActivationSymmetric": True, "QuantizeBias": False} if settings.symmetric else {},
        )
    _restore_rectifiers(source, target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence onnxruntime: it prints a calibration's progress, and logs advice on preprocessing at every call."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        root.setLevel(level)


def _restore_rectifiers(source: Path, target: Path) -> None:
    """Put back the ReLUs that onnxruntime's quantiser leaves out because unsigned bytes begin at 0 anyway.

    They cost nothing at run time, and they are needed when the quantisation of a layer, or of all, is removed.
    """
    import onnx

    model = onnx.load(target)
    makers = {output: node for node in model.graph.node for output in node.output}
    for relu in [node for node in onnx.load(source).graph.node if node.op_type == "Relu"]:
        maker = makers[relu.output[0]]
        if maker.op_type != "Relu":
            maker.output[0] = relu.input[0]
            model.graph.node.insert(list(model.graph.node).index(maker) + 1, relu)
    onnx.save(model, target)


class _Batches:
    """What onnxruntime's calibrators read: one dictionary of inputs at a time, None at the end."""

    def __init__(self, source: Path, batches: Iterable[UInt8]) -> None:
        import onnx

        name = onnx.load(source).graph.input[0].name
        self._feeds = ({name: images} for images in batches)

    def get_next(self) -> dict[str, UInt8] | None:
        return next(self._feeds, None)
