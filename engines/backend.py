"""The seam between networks and runtimes: pictures in, raw arrays out.

Each runtime is a module of its own beside this one and is imported when it is asked for.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..tracker.errors import BackendError

if TYPE_CHECKING:
    from ..tracker.types import UInt8
    from .card import Weights
    from .parity import Proof

log = logging.getLogger(__name__)

Outputs = tuple[NDArray[np.float32], ...]
BYTE_PRODUCTS = ("avx512vnni", "avxvnni", "dotprod")  # LLVM's names
GPU_TOGETHER = 8
KINDS = ("auto", "onnx", "onnx:cuda", "onnx:tensorrt", "tensorrt", "torch", "torch:cuda")


class Backend(Protocol):
    """One loaded network on one device. One thread at a time; whoever opens a backend closes it."""

    @property
    def description(self) -> str:
        """Runtime, version and device, in words."""
        ...

    @property
    def precision(self) -> str | None:
        """What the backend itself computes in, "fp32", "fp16" or "int8"; None: in what its file's graph does."""
        ...

    @property
    def canvas(self) -> tuple[int, int] | None:
        """Largest (h, w) on which it would rather have small pictures side by side than one run for each.

        None: every picture is run by itself. Those on a GPU have one; see packed.py.
        """
        ...

    @property
    def together(self) -> int:
        """How many pictures it would rather run at once than one after the other.

        1 on a CPU, whose time goes by pictures; on a GPU a few take little longer than one.
        """
        ...

    def run(self, images: UInt8) -> Outputs:
        """Give the outputs for (B, h, w, 3) uint8 BGR pictures; the arrays are valid until the next run."""
        ...

    def close(self) -> None:
        """Free the device; the backend cannot run any more."""
        ...


def open_backend(weights: Weights, kind: str = "auto", threads: int = 1, proof: Proof | None = None) -> Backend:
    """Load weights into a runtime.

    Args:
        weights: the file and its hash, from a card; which of its forms is taken, `weights_for` says.
        kind: one of `KINDS`, a runtime and the device or provider that it shall use. "auto" takes TensorRT where a
            plan of this network has been built and proved on this very machine, else ONNX Runtime on the CPU; it
            never spends minutes on building.
        threads: that one run may use; CPU alone.
        proof: pictures and decoding that a newly built TensorRT plan is judged by; without them none is built.
    Raises:
        BackendError: the runtime is not one of ours, cannot be had (what is missing and the line that installs it),
            or cannot load the network.
        CardError: the weights are missing or altered.
    """
    if kind not in KINDS:
        raise BackendError(f"unknown backend: wanted one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "auto":
        return _open_best(weights, threads)
    runtime, _, device = kind.partition(":")
    if runtime == "tensorrt":
        from .tensorrt_open import open_tensorrt

        return open_tensorrt(weights, proof)
    if runtime == "torch":
        from .torch_backend import open_torch

        return open_torch(weights, device or "cpu", threads)
    from .onnx_backend import OnnxBackend

    return OnnxBackend(weights_for(kind, weights), threads, provider=device or "cpu")


def weights_for(kind: str, weights: Weights, *, byte_products: bool | None = None) -> Weights:
    """The file that a backend of this kind runs.

    Args:
        kind: see `open_backend`.
        weights: from a card. ONNX Runtime takes its file for CPUs where the CPU computes faster in 8 bits.
        byte_products: whether it does; None looks at the CPU of this machine.
    """
    if kind != "onnx" or weights.cpu is None:
        return weights
    if byte_products is None:
        byte_products = has_byte_products()
    return weights.cpu if byte_products else weights


@cache
def has_byte_products() -> bool:
    """Whether this CPU adds up products of bytes in one instruction: VNNI on x86, the dot product on ARM.

    Without it networks in 8 bits are slower than in 32 (a scan for faces by a fifth, on a first EPYC), and sums of
    products overflow 16 bits.
    """
    from llvmlite import binding  # Numba's, which every run loads anyway

    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot tell on this system
        return False
    return any(features.get(name, False) for name in BYTE_PRODUCTS)


def _open_best(weights: Weights, threads: int) -> Backend:
    backend, reason = _ready_plan(weights)
    if backend is None:
        from .onnx_backend import OnnxBackend

        weights = weights_for("onnx", weights)
        backend = OnnxBackend(weights, threads)
    log.info("%s: backend auto takes %s%s", weights.path.name, backend.description, reason and f" ({reason})")
    return backend


def _ready_plan(weights: Weights) -> tuple[Backend | None, str]:
    """A backend on a plan that is there already, else why there is none."""
    if find_spec("tensorrt") is None:
        return None, "the package tensorrt is not installed"
    from .tensorrt_open import open_ready

    try:
        return open_ready(weights), ""
    except BackendError as error:
        return None, str(error)
