"""ONNX Runtime: on the CPU by default, on an NVIDIA GPU through its CUDA or TensorRT provider."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ..tracker.errors import BackendError
from .backend import CLOSED, GPU_BATCH, Outputs, Shapes
from .packed import LARGEST_ATLAS

if TYPE_CHECKING:
    from ..tracker.types import UInt8
    from .card import Weights

log = logging.getLogger(__name__)

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# fp32 with 23 bits of mantissa; by default the CUDA provider uses TF32's 10. TensorRT's provider has no such option.
PROVIDER_OPTIONS = {"cuda": {"use_tf32": "0"}}
GPU_PACKAGE = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
CPP_RUNTIME = "install the Microsoft Visual C++ Redistributable (x64): https://aka.ms/vs/17/release/vc_redist.x64.exe"


def import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry off, also on Windows, where it ignores `ORT_DISABLE_TELEMETRY`.

    Raises:
        BackendError: not installed, or its libraries do not load.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f"ONNX Runtime cannot be imported: {error}; to fix it: {import_remedy(error)}") from error
    ort.disable_telemetry_events()
    return ort


def import_remedy(error: ImportError) -> str:
    """What to do if ONNX Runtime cannot be imported."""
    if isinstance(error, ModuleNotFoundError):
        return "pip install onnxruntime"
    return CPP_RUNTIME if sys.platform == "win32" else "pip install --force-reinstall onnxruntime"


class OnnxBackend:
    """`Backend` on ONNX Runtime.

    The default is one thread without spinning: small networks lose more to waking and waiting threads than they
    gain, and the pipeline keeps the other cores busy.
    """

    precision = None

    def __init__(self, network: Weights | bytes, threads: int = 1, provider: str = "cpu") -> None:
        """Load a network.

        Args:
            network: an ONNX file, as weights of a card or as bytes.
            threads: how many one run may use on the CPU.
            provider: one of `PROVIDERS`.
        Raises:
            BackendError: ONNX Runtime cannot be imported, cannot load it, or lacks the provider.
            CardError: the weights are missing or altered.
        """
        ort = import_onnxruntime()
        source, name = (network, "ONNX") if isinstance(network, bytes) else (_checked_path(network), str(network.path))
        wanted = PROVIDERS[provider]
        if provider != "cpu":
            _load_libraries(ort)
        if wanted not in ort.get_available_providers():
            raise BackendError(
                f"ONNX Runtime {ort.__version__}: wanted {wanted}, got {', '.join(ort.get_available_providers())}; "
                f"run: {GPU_PACKAGE}"
            )
        try:
            providers = [(wanted, PROVIDER_OPTIONS.get(provider, {}))]
            self._session: Any = ort.InferenceSession(source, _options(ort, threads), providers=providers)
        except Exception as error:
            raise BackendError(f"{name}: ONNX Runtime cannot load this network: {error}") from error
        _backends.add(self)
        _refuse_another_provider(ort, self._session, wanted)
        self._input = self._session.get_inputs()[0].name
        inputs, *outputs = (_lengths(node) for node in (self._session.get_inputs()[0], *self._session.get_outputs()))
        self.shapes = Shapes(inputs, tuple(outputs))
        self.max_atlas = None if provider == "cpu" else LARGEST_ATLAS
        self.preferred_batch = 1 if provider == "cpu" else GPU_BATCH
        place = f"CPU, {threads} thread{'s' if threads > 1 else ''}" if provider == "cpu" else wanted
        self.description = f"ONNX Runtime {ort.__version__}, {place}"

    def run(self, images: UInt8) -> Outputs:
        """See `Backend`."""
        if self._session is None:
            raise BackendError(CLOSED)
        return tuple(self._session.run(None, {self._input: images}))

    def close(self) -> None:
        """See `Backend`."""
        self._session = None


_backends: WeakSet[OnnxBackend] = WeakSet()


def _keep_sessions() -> None:
    """Keep sessions alive in a forked process: their end would wait for threads that only the parent has."""
    for backend in _backends:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(backend._session))


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_keep_sessions)


def _lengths(node: Any) -> tuple[int | None, ...]:
    """Lengths of the axes of an input or output; None for those that may vary, which have a name or nothing instead."""
    return tuple(length if isinstance(length, int) else None for length in node.shape)


def _checked_path(weights: Weights) -> str:
    """Check the hash of weights and return their path; a session that is given bytes keeps them in memory."""
    weights.read()
    return str(weights.path)


def _options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False  # it would keep a second set of buffers for each picture size, 15 MB in all
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    _share_memory(ort)
    return options


@cache
def _share_memory(ort: Any) -> None:
    """Let all networks of the process share one memory arena that grows by what is requested.

    By default each has its own arena and doubles it: 16 MB more for the three networks of a video, and none is faster.
    """
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    as_asked = ort.OrtArenaCfg(
        {"max_mem": 0, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    )
    ort.create_and_register_allocator(place, as_asked)


@cache
def _load_libraries(ort: Any) -> None:
    """Load CUDA and cuDNN from pip's packages, where the system's loader does not look (onnxruntime's issue 23643).

    ONNX Runtime prints what cannot be loaded from there; it may still be found elsewhere.
    """
    preload = getattr(ort, "preload_dlls", None)  # from 1.21 on
    if preload is not None:
        with redirect_stdout(StringIO()) as printed:
            preload()
        log.debug("ONNX Runtime loads its libraries: %s", printed.getvalue().strip() or "all are there")


def _refuse_another_provider(ort: Any, session: Any, wanted: str) -> None:
    """Raise an error if ONNX Runtime has replaced a provider whose libraries are missing, which it only logs."""
    found = session.get_providers()
    if found[0] != wanted:
        raise BackendError(
            f"ONNX Runtime {ort.__version__}: wanted {wanted}, got {found[0]}: CUDA, cuDNN or TensorRT of the version "
            'that it was built for is missing; run: pip install "onnxruntime-gpu[cuda,cudnn]"'
        )
