"""Export networks from torch to ONNX and check that ONNX Runtime computes the same; needs the `train` extra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..tracker.errors import BackendError
from ..tracker.types import UInt8
from .onnx_backend import import_onnxruntime

OPSET = 18
INPUT = "bgr"


class _Exported(nn.Module):
    """A network whose outputs are always a tuple, so that the graph's outputs have the given order."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, bgr: Tensor) -> tuple[Tensor, ...]:
        outputs = self.net(bgr)
        return outputs if isinstance(outputs, tuple) else (outputs,)


def export_onnx(
    net: nn.Module,
    path: Path,
    example: UInt8,
    outputs: tuple[str, ...],
    dynamic: Mapping[int, str] | None = None,
    *,
    multiple: Mapping[int, int] | None = None,
) -> None:
    """Write a network as ONNX: (B, h, w, 3) uint8 BGR in, float32 out, preprocessing included.

    Args:
        net: a network behind `nets.FromBytes`.
        path: the file to write.
        example: pictures (B >= 2, h, w, 3) to trace with.
        outputs: names of the outputs, in order.
        dynamic: axis of the input -> its name, for axes that may vary; default: only the batch.
        multiple: axis -> a number of which its length is always a multiple.
    """
    multiple = multiple or {}
    shape = {
        axis: multiple.get(axis, 1) * torch.export.Dim(name if axis not in multiple else f"{name}_units", min=1)
        for axis, name in (dynamic or {0: "batch"}).items()
    }
    program = torch.onnx.export(
        _Exported(net).eval(),
        (torch.from_numpy(example),),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=list(outputs),
        dynamic_shapes=(shape,),
        verbose=False,
    )
    assert program is not None
    program.optimize()
    program.save(str(path), external_data=False)


def check_parity(net: nn.Module, path: Path, images: UInt8, tolerance: float) -> None:
    """Check that torch and ONNX Runtime agree.

    Raises:
        BackendError: an output differs by more than `tolerance`, or in its shape.
    """
    session = import_onnxruntime().InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    got = session.run(None, {INPUT: images})
    with torch.inference_mode():
        wanted = _Exported(net).eval()(torch.from_numpy(images))
    if [g.shape for g in got] != [tuple(w.shape) for w in wanted]:
        raise BackendError(
            f"{path}: ONNX Runtime gives {[g.shape for g in got]}, torch {[tuple(w.shape) for w in wanted]}"
        )
    worst = max(float(np.abs(g - w.numpy()).max()) for g, w in zip(got, wanted, strict=True))
    if not worst <= tolerance:
        raise BackendError(f"{path}: ONNX Runtime and torch differ by {worst:.2g}, more than {tolerance:.2g}")
