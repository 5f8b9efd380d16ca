"""The seam between networks and runtimes: pictures in, raw arrays out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..tracker.errors import BackendError
from ..tracker.types import UInt8

if TYPE_CHECKING:
    from .card import Weights

Outputs = tuple[NDArray[np.float32], ...]
Kind = Literal["auto", "onnx"]


class Backend(Protocol):
    """One loaded network on one device.

    `run` takes (B, h, w, 3) uint8 BGR and gives the network's outputs, valid until the next run. One thread at a
    time; whoever opens a backend closes it.
    """

    @property
    def description(self) -> str: ...

    def run(self, images: UInt8) -> Outputs: ...

    def close(self) -> None: ...


class OnnxBackend:
    """ONNX Runtime on the CPU.

    One thread without spinning is the default: small networks lose more to waking and waiting threads than they
    gain, and the pipeline keeps the other cores busy.
    """

    def __init__(self, weights: Weights, threads: int = 1) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = weights.read()
        try:
            self._session: Any = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no public base class
            raise BackendError(f"{weights.path}: ONNX Runtime cannot load this network: {error}") from error
        self._input = self._session.get_inputs()[0].name
        self.description = f"ONNX Runtime {ort.__version__}, CPU, {threads} thread{'s' if threads > 1 else ''}"

    def run(self, images: UInt8) -> Outputs:
        return tuple(self._session.run(None, {self._input: images}))

    def close(self) -> None:
        self._session = None


def open_backend(weights: Weights, kind: str = "auto", threads: int = 1) -> Backend:
    """Load weights into a runtime.

    Raises:
        BackendError: the runtime is not one of ours, or cannot load the network.
        CardError: the weights are missing or altered.
    """
    if kind not in ("auto", "onnx"):
        raise BackendError(f"unknown backend: wanted auto or onnx, got {kind!r}")
    return OnnxBackend(weights, threads)
