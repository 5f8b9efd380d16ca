"""Convert ONNX graphs to an operator set that TensorRT 8.6 reads; needs onnx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..tracker.errors import BackendError

OPSET = 17  # the newest that the parser of TensorRT 8.6 knows
# Reductions took their axes as an attribute before opset 18 (ReduceSum before 13).
REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare")


def lower_opset(model: Any) -> None:
    """Convert opset 18, the exporter's lowest, to 17, the highest that TensorRT 8.6 parses.

    Constants that became attributes stay in the graph, unused.

    Raises:
        BackendError: the opset is above 18, or an operator has no equivalent in 17.
    """
    standard = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if standard.version <= OPSET:
        return
    if standard.version > 18:
        raise BackendError(f"the graph has opset {standard.version}, wanted at most 18; export it again")
    for node in model.graph.node:
        if lower := _LOWERED.get(node.op_type):
            lower(model, node)
    standard.version = OPSET
    model.ir_version = min(model.ir_version, 8)


def _axes_as_attribute(model: Any, node: Any) -> None:
    from onnx import helper

    if len(node.input) > 1 and node.input[1]:
        node.attribute.append(helper.make_attribute("axes", _constant(model, node.input[1]).tolist()))
    del node.input[1:]
    for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes"]:
        node.attribute.remove(attribute)


def _sizes_instead_of_count(model: Any, node: Any) -> None:
    del model
    if any(attribute.name == "num_outputs" for attribute in node.attribute):
        raise BackendError(f"{node.name}: Split by a number of parts is not in opset {OPSET}; export it with sizes")


def _without(*names: str) -> Callable[[Any, Any], None]:
    """A conversion that removes attributes which opset 18 added and which have no effect here."""

    def lower(model: Any, node: Any) -> None:
        del model
        for attribute in [a for a in node.attribute if a.name in names]:
            if attribute.i or attribute.ints or attribute.s not in (b"", b"stretch", b"none"):
                raise BackendError(f"{node.name}: {node.op_type} with {attribute.name} is not in opset {OPSET}")
            node.attribute.remove(attribute)

    return lower


def _pad(model: Any, node: Any) -> None:
    del model
    if len(node.input) > 3:
        raise BackendError(f"{node.name}: Pad of some axes is not in opset {OPSET}")


def _constant(model: Any, name: str) -> Any:
    """The values of a constant: of an initializer or a Constant node.

    Raises:
        BackendError: there is none with this name.
    """
    from onnx import helper, numpy_helper

    for weight in model.graph.initializer:
        if weight.name == name:
            return numpy_helper.to_array(weight)
    for node in model.graph.node:
        if node.op_type == "Constant" and name in node.output:
            return numpy_helper.to_array(helper.get_node_attr_value(node, "value"))
    raise BackendError(f"{name}: wanted a constant")


_LOWERED: dict[str, Callable[[Any, Any], None]] = {
    **dict.fromkeys(REDUCTIONS, _axes_as_attribute),
    "Split": _sizes_instead_of_count,
    "Resize": _without("antialias", "axes", "keep_aspect_ratio_policy"),
    "ScatterElements": _without("reduction"),
    "ScatterND": _without("reduction"),
    "Pad": _pad,
}
