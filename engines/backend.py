"""The interface between networks and runtimes: pictures in, raw arrays out.

Each runtime has a module of its own beside this one, which is imported only when that runtime is requested.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..tracker.errors import BackendError
from .choices import KINDS

if TYPE_CHECKING:
    from ..tracker.types import UInt8
    from .card import Weights
    from .parity import Proof

log = logging.getLogger(__name__)

Outputs = tuple[NDArray[np.float32], ...]
INT8_DOT_FEATURES = ("avx512vnni", "avxvnni", "dotprod")  # LLVM's names of the instructions
GPU_BATCH = 8  # crops that a GPU runs in little more time than one
CLOSED = "this network was closed: use engines inside their `with` block, or open them again"


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of a network's input and outputs according to its graph; None for an axis that may vary.

    Attributes:
        input: (B, h, w, 3).
        outputs: the shape of each output, in order.
    """

    input: tuple[int | None, ...]
    outputs: tuple[tuple[int | None, ...], ...]


class Backend(Protocol):
    """One loaded network on one device. Use it from one thread at a time; whoever opens a backend closes it."""

    @property
    def description(self) -> str:
        """Runtime, version and device, in words."""
        ...

    @property
    def precision(self) -> str | None:
        """The precision in which it computes, "fp32", "fp16" or "int8"; None: that of its file's graph."""
        ...

    @property
    def shapes(self) -> Shapes | None:
        """The shapes in its graph; None if it has no graph that says."""
        ...

    @property
    def max_atlas(self) -> tuple[int, int] | None:
        """Largest (h, w) of an atlas that it runs faster than the levels in it one after the other.

        Backends on a GPU have one. None: every level is run by itself. See packed.py.
        """
        ...

    @property
    def preferred_batch(self) -> int:
        """How many pictures are worth collecting for a run: 1 on a CPU; on a GPU a few take little longer than one."""
        ...

    def run(self, images: UInt8) -> Outputs:
        """Return the network's outputs for (B, h, w, 3) uint8 BGR pictures; they are valid until the next run.

        Raises:
            BackendError: the backend was closed.
        """
        ...

    def close(self) -> None:
        """Free the device; the backend cannot run afterwards."""
        ...


def open_backend(weights: Weights, kind: str = "auto", threads: int = 1, proof: Proof | None = None) -> Backend:
    """Load weights into a runtime.

    Args:
        weights: the file and its hash, from a card; `weights_for` chooses between it and its version for CPUs.
        kind: one of `KINDS`: a runtime, and the device or provider that it uses. "auto" takes TensorRT if the plan
            cache has a plan of this network for this machine, else ONNX Runtime on the CPU; it never builds a plan.
        threads: how many one run may use on the CPU.
        proof: pictures and decoding by which a newly built TensorRT plan is judged; without them none is built.
    Raises:
        BackendError: the runtime is unknown, is not available (the message says what is missing and how to install it),
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


def weights_for(kind: str, weights: Weights) -> Weights:
    """The file that a backend of this kind runs.

    Args:
        kind: see `open_backend`.
        weights: from a card. On a CPU that is faster in 8 bits, ONNX Runtime runs its 8-bit file, if there is one.
    """
    if kind != "onnx" or weights.cpu is None:
        return weights
    return weights.cpu if has_int8_dot_product() else weights


@cache
def has_int8_dot_product() -> bool:
    """Whether this CPU has an 8-bit dot product: VNNI on x86, SDOT on ARM.

    Without one, networks are slower in 8 bits than in 32 (the detector's scan by a fifth on a first-generation EPYC),
    and sums of products overflow 16 bits.
    """
    from llvmlite import binding  # Numba's, which every run loads anyway

    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot tell on this system
        features = {}
    # on macOS LLVM reports no ARM features; all of Apple's processors for Macs have SDOT
    return any(features.get(name, False) for name in INT8_DOT_FEATURES) or binding.get_host_cpu_name().startswith(
        "apple-m"
    )


def _open_best(weights: Weights, threads: int) -> Backend:
    backend, reason = _cached_plan(weights)
    if backend is None:
        from .onnx_backend import OnnxBackend

        weights = weights_for("onnx", weights)
        backend = OnnxBackend(weights, threads)
    log.info("%s: backend auto uses %s%s", weights.path.name, backend.description, reason and f" ({reason})")
    return backend


def _cached_plan(weights: Weights) -> tuple[Backend | None, str]:
    """A backend on a plan from the cache, or None and the reason in words."""
    if find_spec("tensorrt") is None:
        return None, "the package tensorrt is not installed"
    from .tensorrt_open import open_tensorrt

    try:
        return open_tensorrt(weights, None), ""
    except BackendError as error:
        return None, str(error)
