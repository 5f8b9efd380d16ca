"""8-bit copies of exported networks, as Q/DQ pairs in the ONNX graph; needs onnx."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..tracker.types import UInt8

METHODS = ("minmax", "entropy")


@dataclass(frozen=True, slots=True)
class QuantSettings:
    """How to quantise.

    Attributes:
        method: "minmax" takes the activations' whole range, "entropy" cuts it where the least information is lost.
        symmetric: signed activations with the zero point 0, which TensorRT wants and ONNX Runtime takes too; else
            unsigned ones, which give the outputs of a rectifier twice the resolution.
        keep: names of convolutions that stay fp32, beside the grouped ones.
    """

    method: str = "minmax"
    symmetric: bool = False
    keep: tuple[str, ...] = ()


def convolutions(source: Path) -> tuple[list[str], list[str]]:
    """Names of a graph's dense convolutions and of its grouped ones, in the graph's order."""
    import onnx

    nodes = [node for node in onnx.load(source).graph.node if node.op_type == "Conv"]
    grouped = [node.name for node in nodes if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    return [node.name for node in nodes if node.name not in grouped], grouped


def quantise_onnx(source: Path, target: Path, batches: Iterable[UInt8], settings: QuantSettings | None = None) -> None:
    """Write a copy of an exported network whose dense convolutions compute in 8 bits.

    Static ranges, signed weights per channel. Grouped convolutions stay fp32: ONNX Runtime computes them slower in
    8 bits than in 32.

    Args:
        source: an fp32 file by `export_onnx`.
        target: the file to write.
        batches: real pictures (B, h, w, 3) whose activations set the ranges; the entropy method wants all of one size.
        settings: default: unsigned activations by their whole range.
    Raises:
        ValueError: the method is unknown.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    settings = settings or QuantSettings()
    if settings.method not in METHODS:
        raise ValueError(f"method: wanted one of {', '.join(METHODS)}, got {settings.method!r}")
    _, grouped = convolutions(source)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # onnxruntime advises its own preprocessing on the root logger, at every call
    try:
        quantize_static(
            source,
            target,
            _Batches(source, batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MaxPool"],
            nodes_to_exclude=[*grouped, *settings.keep],
            per_channel=True,
            activation_type=QuantType.QInt8 if settings.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax if settings.method == "minmax" else CalibrationMethod.Entropy,
            extra_options={"ActivationSymmetric": True, "QuantizeBias": False} if settings.symmetric else {},
        )
    finally:
        root.setLevel(level)


class _Batches:
    """What onnxruntime's calibrators read: one dictionary of inputs at a time, None at the end."""

    def __init__(self, source: Path, batches: Iterable[UInt8]) -> None:
        import onnx

        name = onnx.load(source).graph.input[0].name
        self._feeds = ({name: images} for images in batches)

    def get_next(self) -> dict[str, UInt8] | None:
        return next(self._feeds, None)
