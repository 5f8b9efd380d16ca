"""The seam between networks and runtimes: pictures in, raw arrays out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..tracker.errors import BackendError
from ..tracker.types import UInt8

if TYPE_CHECKING:
    from .card import Weights

Outputs = tuple[NDArray[np.float32], ...]
KINDS = ("auto", "onnx")


class Backend(Protocol):
    """One loaded network on one device.

    One thread at a time; whoever opens a backend closes it.
    """

    @property
    def description(self) -> str:
        """Runtime, version and device, in words."""
        ...

    def run(self, images: UInt8) -> Outputs:
        """Give the outputs for (B, h, w, 3) uint8 BGR pictures; the arrays are valid until the next run."""
        ...

    def close(self) -> None:
        """Free the device; the backend cannot run any more."""
        ...


class OnnxBackend:
    """ONNX Runtime on the CPU.

    One thread without spinning is the default: small networks lose more to waking and waiting threads than they
    gain, and the pipeline keeps the other cores busy.
    """

    def __init__(self, weights: Weights, threads: int = 1) -> None:
        """Load a network.

        Raises:
            BackendError: ONNX Runtime cannot load it.
            CardError: the weights are missing or altered.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = weights.read()
        try:
            self._session: Any = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base class
            raise BackendError(f"{weights.path}: ONNX Runtime cannot load this network: {error}") from error
        self._input = self._session.get_inputs()[0].name
        self.description = f"ONNX Runtime {ort.__version__}, CPU, {threads} thread{'s' if threads > 1 else ''}"

    def run(self, images: UInt8) -> Outputs:
        """See `Backend`."""
        return tuple(self._session.run(None, {self._input: images}))

    def close(self) -> None:
        """See `Backend`."""
        self._session = None


def open_backend(weights: Weights, kind: str = "auto", threads: int = 1) -> Backend:
    """Load weights into a runtime.

    Args:
        weights: the file and its hash, from a card.
        kind: one of `KINDS`; "auto" takes what runs everywhere.
        threads: that one run may use.
    Raises:
        BackendError: the runtime is not one of ours, or cannot load the network.
        CardError: the weights are missing or altered.
    """
    if kind not in KINDS:
        raise BackendError(f"unknown backend: wanted one of {', '.join(KINDS)}, got {kind!r}")
    return OnnxBackend(weights, threads)
