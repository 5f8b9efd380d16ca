"""Passes over ONNX graphs that make their precision explicit and readable for TensorRT from 8.6 on; they need onnx.

Functions of a `model` change it in place; functions of `content` take a file's bytes.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np

from ..tracker.errors import BackendError
from .graph_opset import lower_opset

INSTALL = "pip install onnx"
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
MIN_FP16_VALUES = 256  # of a weight to be stored in 16 bits; smaller ones save nothing


def for_tensorrt(content: bytes, precision: str) -> bytes:
    """The graph that a TensorRT plan is built from.

    Args:
        content: one of facetrack's ONNX files.
        precision: "fp32", "fp16", or "int8" for a file with symmetric Q/DQ pairs.
    Raises:
        BackendError: int8 is requested for a file without such pairs, or an operator has no equivalent in opset 17.
    """
    model = _load(content)
    if precision == "int8" and not _symmetric(model):
        raise BackendError("int8: this network has no symmetric Q/DQ pairs; make it with `facetrack calibrate int8`")
    to_fp32(model)
    if precision != "int8":
        remove_quantisers(model)
    cast_first(model)
    lower_opset(model)
    _remove_unused_weights(model)
    if precision == "fp16":
        to_fp16(model)
    _check(model)
    return bytes(model.SerializeToString())


def in_precision(full: bytes, precision: str) -> bytes:
    """The graph that computes in another precision, on any runtime.

    Args:
        full: an ONNX file from `as_fp32`.
        precision: "fp32" or "fp16".
    """
    return full if precision == "fp32" else for_tensorrt(full, precision)


def as_fp32(content: bytes) -> bytes:
    """The same network in 32 bits, with its rounded weights, without Q/DQ pairs: the reference for parity.

    Args:
        content: an ONNX file of any precision.
    """
    model = _load(content)
    to_fp32(model)
    remove_quantisers(model)
    _check(model)
    return bytes(model.SerializeToString())


def is_symmetric_int8(content: bytes) -> bool:
    """Whether a file has Q/DQ pairs, all of them of signed bytes with zero point 0, as TensorRT requires."""
    return _symmetric(_load(content))


def precision_of(content: bytes) -> str:
    """The lowest precision that a file's graph computes in: "int8", "fp16" or "fp32".

    Weights that are stored in 16 bits and cast before they are used count as fp32.
    """
    model = _load(content)  # first, for its error if onnx is missing

    from onnx import TensorProto

    inline_fp16(model)
    if any(node.op_type in QUANTISERS for node in model.graph.node):
        return "int8"
    halves = {weight.name for weight in model.graph.initializer if weight.data_type == TensorProto.FLOAT16}
    return "fp16" if any(halves.intersection(node.input) for node in model.graph.node) else "fp32"


def takes_any_size(content: bytes) -> bool:
    """Whether h or w of a file's input (B, h, w, 3) is dynamic, as for networks that scan whole pictures."""
    axes = _load(content).graph.input[0].type.tensor_type.shape.dim
    return not all(axis.HasField("dim_value") for axis in axes[1:])


def output_names(content: bytes) -> tuple[str, ...]:
    """Names of a file's outputs in their order, which `for_tensorrt` keeps but a TensorRT plan may change."""
    return tuple(output.name for output in _load(content).graph.output)


def store_fp16(content: bytes) -> bytes:
    """The same network with its 32-bit weights stored in 16 bits, at half the size.

    Each is followed by a cast to 32 bits, which runtimes fold when they load the file; the arithmetic stays fp32.
    Biases, scales and small constants are not changed.
    """
    model = _load(content)  # first, for its error if onnx is missing

    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < MIN_FP16_VALUES:
            continue
        stored = f"{weight.name}.half"
        graph.initializer.remove(weight)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), stored))
        graph.node.insert(0, helper.make_node("Cast", [stored], [weight.name], to=TensorProto.FLOAT))
    del graph.value_info[:]
    _check(model)
    return bytes(model.SerializeToString())


def inline_fp16(model: Any) -> None:
    """Replace 16-bit weights and their casts by 32-bit weights, because TensorRT does not accept casts of weights."""
    from onnx import TensorProto, numpy_helper

    stored = {weight.name: weight for weight in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Cast" and node.input[0] in stored and _attribute(node, "to") == TensorProto.FLOAT:
            values = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            model.graph.node.remove(node)
    _remove_unused_weights(model)


def to_fp32(model: Any) -> None:
    """Compute everything in 32 bits, also what `to_fp16` has converted to 16; weights stay rounded."""
    from onnx import TensorProto

    inline_fp16(model)
    _uncast_outputs(model.graph)
    _retype(model.graph, TensorProto.FLOAT16, TensorProto.FLOAT)
    for value in model.graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def remove_quantisers(model: Any) -> None:
    """Replace Q/DQ pairs by what they quantise: weights stay rounded, activations are passed through."""
    from onnx import helper, numpy_helper

    stored = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    outputs = {output.name for output in model.graph.output}
    renamed: dict[str, str] = {}
    for node in [node for node in model.graph.node if node.op_type in QUANTISERS]:
        index = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        if node.op_type == "QuantizeLinear":
            continue
        name = node.output[0]
        if node.input[0] in stored:
            model.graph.initializer.append(numpy_helper.from_array(_dequantised(node, stored), name))
        elif name in outputs:
            model.graph.node.insert(index, helper.make_node("Identity", [sources[node.input[0]]], [name]))
        else:
            renamed[name] = sources[node.input[0]]
    _rename_inputs(model, renamed)
    _remove_unused_weights(model)


def _rename_inputs(model: Any, renamed: dict[str, str]) -> None:
    """Replace the names of removed tensors in the inputs of all nodes."""
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            while name in renamed:
                name = renamed[name]
            node.input[i] = name


def _dequantised(node: Any, stored: dict[str, Any]) -> Any:
    """The float32 weights that a DequantizeLinear computes from stored ones."""
    values, scale = (stored[name] for name in node.input[:2])
    zero = stored[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros_like(scale, np.int32)
    if scale.ndim:
        shape = [1] * values.ndim
        shape[_attribute(node, "axis", 1)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return ((values.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32)


def cast_first(model: Any) -> None:
    """Cast the uint8 input before all else: TensorRT takes uint8 inputs, but only casts may read them (issue 3985).

    Raises:
        BackendError: the graph computes with bytes, before they are cast or without a cast.
    """
    graph = model.graph
    picture = graph.input[0].name
    for transpose in [node for node in graph.node if picture in node.input and node.op_type == "Transpose"]:
        casts = [node for node in graph.node if transpose.output[0] in node.input]
        if any(node.op_type != "Cast" for node in casts):
            raise BackendError(f"the graph computes with bytes after {transpose.name}; export it again")
        for cast in casts:
            between, result = transpose.output[0], cast.output[0]
            cast.input[0], cast.output[0] = picture, f"{result}.cast"
            transpose.input[0], transpose.output[0] = cast.output[0], result
            graph.node.remove(transpose)
            graph.node.insert(list(graph.node).index(cast) + 1, transpose)
            _forget_types(graph, (between, result))
    _measure_the_cast(graph, picture)


def _measure_the_cast(graph: Any, picture: str) -> None:
    """Let nodes that read the picture's shape read that of its cast instead."""
    takers = [node for node in graph.node if picture in node.input]
    casts, others = ([n for n in takers if (n.op_type == "Cast") is is_cast] for is_cast in (True, False))
    for node in others:
        if node.op_type != "Shape" or not casts:
            raise BackendError(f"the graph computes with bytes in {node.name}; export it again")
        node.input[0] = casts[0].output[0]
    if others:
        graph.node.remove(casts[0])
        graph.node.insert(0, casts[0])


def _forget_types(graph: Any, names: tuple[str, ...]) -> None:
    for value in [value for value in graph.value_info if value.name in names]:
        graph.value_info.remove(value)


def to_fp16(model: Any) -> None:
    """Compute in 16 bits, between the cast of the uint8 input and casts of the outputs to 32 bits.

    A pass of our own: onnxruntime's converter leaves casts in front of the constant scales of Resize, which TensorRT
    does not accept.

    Raises:
        BackendError: a scale of Resize, which must stay in 32 bits, is used elsewhere too.
    """
    from onnx import TensorProto

    _retype(model.graph, TensorProto.FLOAT, TensorProto.FLOAT16, _resize_scales(model.graph))
    del model.graph.value_info[:]
    _cast_outputs(model.graph)


def _resize_scales(graph: Any) -> set[str]:
    """Names of the tensors with the scales of Resize."""
    scales = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}
    shared = scales & {n for node in graph.node for n in node.input[: 1 if node.op_type == "Resize" else None]}
    if shared:
        raise BackendError(
            f"{', '.join(sorted(shared))}: a scale of Resize that is also used elsewhere; export it again"
        )
    return scales


def _retype(graph: Any, old: int, new: int, but: Set[str] = frozenset()) -> None:
    """Convert weights, constants and casts from one ONNX type to another, except the tensors with these names."""
    for weight in graph.initializer:
        if weight.data_type == old and weight.name not in but:
            _convert(weight, new)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == old:
                attribute.i = new
            elif attribute.name == "value" and attribute.t.data_type == old and node.output[0] not in but:
                _convert(attribute.t, new)


def _convert(tensor: Any, kind: int) -> None:
    """Convert a tensor of floats to another ONNX type, 16 or 32 bits."""
    from onnx import TensorProto, numpy_helper

    values = numpy_helper.to_array(tensor)
    values = _as_fp16(values) if kind == TensorProto.FLOAT16 else values.astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _as_fp16(values: Any) -> Any:
    """Round values to 16 bits; those beyond the range are clipped to it."""
    most = np.finfo(np.float16).max
    return np.clip(values, -most, most).astype(np.float16)


def _cast_outputs(graph: Any) -> None:
    """Cast the outputs of a graph to 32 bits and keep their names."""
    from onnx import TensorProto, helper

    for output in graph.output:
        inner = f"{output.name}.half"
        _rename_tensor(graph, output.name, inner)
        graph.node.append(helper.make_node("Cast", [inner], [output.name], to=TensorProto.FLOAT))


def _uncast_outputs(graph: Any) -> None:
    """Remove the casts that `_cast_outputs` made."""
    for output in graph.output:
        inner = f"{output.name}.half"
        for cast in [n for n in graph.node if (n.op_type, *n.input, *n.output) == ("Cast", inner, output.name)]:
            graph.node.remove(cast)
            _rename_tensor(graph, inner, output.name)


def _rename_tensor(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _load(content: bytes) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise BackendError(f"editing networks needs the package onnx; run: {INSTALL}") from error
    return onnx.load_from_string(content)


def _check(model: Any) -> None:
    import onnx

    onnx.checker.check_model(model, full_check=True)


def _symmetric(model: Any) -> bool:
    stored = {weight.name: weight for weight in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in QUANTISERS]
    return bool(pairs) and all(_takes_signed_bytes(node, stored) for node in pairs)


def _takes_signed_bytes(node: Any, stored: dict[str, Any]) -> bool:
    """Whether a quantiser's bytes are signed and its zero point is 0. Without one, Q makes unsigned, DQ takes any."""
    from onnx import TensorProto, numpy_helper

    if len(node.input) > 2 and node.input[2]:
        zero = stored.get(node.input[2])
        return zero is not None and zero.data_type == TensorProto.INT8 and not numpy_helper.to_array(zero).any()
    values = stored.get(node.input[0])
    return node.op_type == "DequantizeLinear" and (values is None or values.data_type == TensorProto.INT8)


def _attribute(node: Any, name: str, default: Any = None) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def remove_dead_nodes(model: Any) -> None:
    """Remove nodes and weights that no output of the graph depends on."""
    wanted = {output.name for output in model.graph.output}
    for node in reversed(list(model.graph.node)):
        if wanted.isdisjoint(node.output):
            model.graph.node.remove(node)
        else:
            wanted.update(node.input)
    _remove_unused_weights(model)


def _remove_unused_weights(model: Any) -> None:
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    for weight in [w for w in model.graph.initializer if w.name not in used]:
        model.graph.initializer.remove(weight)
