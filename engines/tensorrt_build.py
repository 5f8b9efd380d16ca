"""Build a TensorRT plan from an ONNX graph, with the calls that TensorRT 8.6, 10 and 11 have in common.

The graph sets the precision (16-bit casts, Q/DQ pairs): TensorRT 11 has no flags for it any more, and strongly typed
networks of 10 and 11 follow the graph. 8.6 is only allowed to use the types that the graph has.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import clear_frames
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..tracker.errors import BackendError
from .cuda_probe import explained
from .files import replace_file
from .packed import LARGEST_ATLAS

if TYPE_CHECKING:
    from pathlib import Path

    from .cuda_driver import Cuda

log = logging.getLogger(__name__)

INSTALL = 'pip install "facetrack[gpu]" (the libraries come from https://pypi.nvidia.com)'
WORKSPACE = 2 << 30  # bytes that one layer may use while the plan is built and run
TACTICS = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")  # others need cuBLAS and cuDNN, which may be missing
# (h, w) for networks that take any size. A picture of one pixel is 12 pixels wide with its margins; 396x296 is the
# atlas of a 640x480 frame.
SMALLEST, USUAL, LARGEST = (12, 12), (396, 296), LARGEST_ATLAS


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The precision and the input shapes that a plan is built for.

    Attributes:
        precision: "fp32", "fp16" or "int8", that of the graph.
        batches: ascending. Batch n runs with the kernels chosen for the smallest of these that is not below n; at
            exactly these sizes it is one CUDA graph. Batches above the largest are split.
        sizes: smallest, usual and largest (h, w), for graphs that take pictures of any size.
    Raises:
        ValueError: the precision is unknown, or the batches are not ascending numbers from 1 on.
    """

    precision: str
    batches: tuple[int, ...] = (1, 4, 8)
    sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] = (SMALLEST, USUAL, LARGEST)

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "fp16", "int8"):
            raise ValueError(f"precision: wanted fp32, fp16 or int8, got {self.precision!r}")
        if not self.batches or list(self.batches) != sorted(set(self.batches)) or self.batches[0] < 1:
            raise ValueError(f"batches: wanted ascending numbers from 1 on, got {self.batches}")

    @property
    def proved(self) -> tuple[int, ...]:
        """Batch sizes, ascending, at which a plan must give the right results: each profile has its own kernels."""
        return tuple(sorted({1, *self.batches}))


def import_tensorrt() -> ModuleType:
    """Import TensorRT's bindings.

    Raises:
        BackendError: not installed, or its libraries do not load.
    """
    try:
        import tensorrt
    except (ImportError, OSError, RuntimeError) as error:  # a stub package raises RuntimeError
        raise BackendError(f"TensorRT cannot be imported: {error}; run: {INSTALL}") from error
    return tensorrt  # type: ignore[no-any-return]


def make_logger(trt: Any) -> Any:
    """A logger that passes TensorRT's errors on as warnings and everything else as debug messages.

    Its `complaint` is the last error or warning, "" before the first.
    """

    class _Logger(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.complaint = ""

        def log(self, severity: Any, text: str) -> None:
            is_error = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            log.log(logging.WARNING if is_error else logging.DEBUG, "TensorRT: %s", text)
            if is_error or severity == trt.ILogger.WARNING:
                self.complaint = text

    return _Logger()


@contextmanager
def translate_errors(trt: Any, logger: Any) -> Iterator[None]:
    """Wrap the creation of TensorRT's objects, whose bindings raise pybind11's errors and only log the reason.

    Raises:
        BackendError: an object was not created; the message has TensorRT's last complaint.
    """
    try:
        yield
    except (TypeError, RuntimeError) as error:
        reason = explained(logger.complaint) or str(error)
        raise BackendError(f"TensorRT {trt.__version__} cannot work here: {reason}; see `facetrack doctor`") from error


def build_plan(
    trt: Any, logger: Any, graph: bytes, request: PlanRequest, timing_cache: bytes = b""
) -> tuple[bytes, bytes]:
    """Build a plan, in seconds to minutes. The CUDA context must be current.

    Args:
        trt: TensorRT's bindings.
        logger: from `make_logger`.
        graph: ONNX of one input (B, h, w, 3) uint8, prepared by `graph.for_tensorrt`.
        request: precision, batches and sizes of the plan.
        timing_cache: kernel timings that an earlier build on this GPU measured, which shorten this one.
    Returns:
        The plan and the new timing cache.
    Raises:
        BackendError: TensorRT cannot work here, parse the graph or build from it.
    """
    with translate_errors(trt, logger):
        builder = trt.Builder(logger)
        network = builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise BackendError(f"TensorRT {trt.__version__} cannot read the graph: {reasons}")
    config = builder.create_builder_config()
    _configure(trt, config, request.precision)
    _share_profiles(trt, config)
    _set_timing_cache(config, timing_cache)
    for profile in _profiles(builder, network.get_input(0), request):
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"TensorRT {trt.__version__} cannot build this network; the log has its reasons (-v)")
    if config.get_timing_cache() is None:  # it refused even an empty one
        return bytes(plan), b""
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def build_with_timings(trt: Any, cuda: Cuda, graph: bytes, request: PlanRequest, timings: Path) -> bytes:
    """Build a plan with the kernel timings of earlier builds, and add its own to them.

    Args:
        trt: TensorRT's bindings.
        cuda: the GPU; it is closed afterwards.
        graph, request: see `build_plan`.
        timings: file of the timing cache, which need not exist.
    Raises:
        BackendError: TensorRT cannot build it, or the file cannot be written.
    """
    try:
        with cuda.current():
            known = timings.read_bytes() if timings.exists() else b""
            plan, known = build_plan(trt, make_logger(trt), graph, request, known)
    except BaseException as error:
        clear_tracebacks(error)
        raise
    finally:
        cuda.close()
    replace_file(timings, known)
    return plan


def clear_tracebacks(error: BaseException) -> None:
    """Clear an error's frames, which hold TensorRT's objects: these must be freed before the CUDA context."""
    each: BaseException | None = error
    while each is not None:
        clear_frames(each.__traceback__)
        each = each.__cause__


def _set_timing_cache(config: Any, content: bytes) -> None:
    """Start from a timing cache, or from an empty one if it is damaged or from another GPU or release."""
    for known in (content, b""):
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, False):
            return
        log.debug("TensorRT refuses a timing cache of %d bytes", len(known))


def _network_flags(trt: Any) -> int:
    """Explicit batch for 8.6; the graph's own types from 10 on."""
    names = trt.NetworkDefinitionCreationFlag
    known = (getattr(names, name, None) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"))
    return sum(1 << int(flag) for flag in known if flag is not None)


def _configure(trt: Any, config: Any, precision: str) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.set_tactic_sources(sum(1 << int(getattr(trt.TacticSource, name)) for name in TACTICS))
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits of mantissa are not fp32
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        return
    for allowed in {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}[precision]:
        config.set_flag(getattr(trt.BuilderFlag, allowed))


def _share_profiles(trt: Any, config: Any) -> None:
    """Let several contexts use one profile at the same time: a preview feature of 8.6, the default later."""
    sharing = getattr(trt.PreviewFeature, "PROFILE_SHARING_0806", None)
    if sharing is not None:
        config.set_preview_feature(sharing, True)


def _profiles(builder: Any, picture: Any, request: PlanRequest) -> list[Any]:
    """One optimisation profile per batch size, for the batches above the previous one; they cover 1 to the largest."""
    shape, profiles = tuple(picture.shape), []
    for least, most in zip((1, *(b + 1 for b in request.batches)), request.batches, strict=False):
        profile = builder.create_optimization_profile()
        batches = (least, most, most)
        ranges = [
            tuple(wanted if axis < 0 else axis for axis, wanted in zip(shape, (batch, *size, 3), strict=True))
            for batch, size in zip(batches, request.sizes, strict=True)
        ]
        profile.set_shape(picture.name, *ranges)
        profiles.append(profile)
    return profiles


def profile_index(batches: Sequence[int], batch: int) -> int:
    """Index of the first profile that covers a batch, which is at most the largest of `batches`."""
    return next(index for index, most in enumerate(batches) if batch <= most)
