"""A running TensorRT plan: one stream, page-locked buffers, a CUDA graph for each usual batch size."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tracker.errors import BackendError
from .backend import CLOSED, GPU_BATCH, Shapes
from .cuda_driver import Buffer, Cuda
from .parts import run_in_batches, run_in_tiles
from .tensorrt_build import clear_tracebacks, make_logger, profile_index, translate_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..tracker.types import UInt8
    from .backend import Outputs

Shape = tuple[int, ...]
_CANNOT_RUN = "TensorRT cannot run this plan; the log has its reasons (-v)"


@dataclass(slots=True)
class _BoundContext:
    """An execution context whose profile, input shape and addresses are set.

    Attributes:
        context: TensorRT's.
        shapes: of the outputs.
        graph: handle of the captured CUDA graph; 0 until there is one. From then on the context must keep its shape.
    """

    context: Any
    shapes: tuple[Shape, ...]
    graph: int = 0


class TensorRTBackend:
    """`Backend` on a plan. Any thread may run it, one at a time: each run pushes the CUDA context and pops it again.

    Batches that are too large for the plan are split; pictures that are too large run in tiles if the network takes any
    size.
    """

    def __init__(
        self, trt: Any, cuda: Cuda, plan: bytes, outputs: Sequence[str], precision: str, *, graphs: bool = True
    ) -> None:
        """Load a plan and reserve memory for its largest batch.

        Args:
            trt: TensorRT's bindings.
            cuda: the GPU; the backend closes it in the end.
            plan: built by `build_plan` on the same machine.
            outputs: names of the graph's outputs, in its order (`graph.output_names`).
            precision: of its graph.
            graphs: False launches kernel by kernel, to measure what CUDA graphs save.
        Raises:
            BackendError: TensorRT refuses the plan, the plan is for another graph, or the GPU's memory is full.
        """
        self._cuda, self._graphs, self.precision = cuda, graphs, precision
        self._outputs = tuple(outputs)
        self._runtime: Any = None
        self._engine: Any = None
        self._stream = 0  # none yet
        self._unbound: dict[int, Any] = {}
        self._bound: dict[Shape, _BoundContext] = {}
        self._buffers: dict[str, Buffer] = {}
        self.description = f"TensorRT {trt.__version__} {precision}, {cuda.name}"
        try:
            with cuda.current():
                self._load(trt, plan)
        except BaseException as error:
            clear_tracebacks(error)
            self._free()
            raise

    def _load(self, trt: Any, plan: bytes) -> None:
        logger = make_logger(trt)
        with translate_errors(trt, logger):
            self._runtime = trt.Runtime(logger)
        engine = self._engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"TensorRT {trt.__version__} refuses this plan; delete it, then it is built again")
        self._input = _input_name(trt, engine, self._outputs)
        profiles = range(engine.num_optimization_profiles)
        shapes: list[Shape] = [tuple(engine.get_tensor_profile_shape(self._input, i)[2]) for i in profiles]
        self._batches, self._largest = tuple(shape[0] for shape in shapes), shapes[-1]
        self._any_size = -1 in tuple(engine.get_tensor_shape(self._input))[1:]
        self.max_atlas = (self._largest[1], self._largest[2]) if self._any_size else None
        self.preferred_batch = min(self._largest[0], GPU_BATCH)
        self._stream = self._cuda.stream()
        self._reserve()

    def run(self, images: UInt8) -> Outputs:
        """See `Backend`."""
        if self._engine is None:
            raise BackendError(CLOSED)
        try:
            return run_in_batches(self._run_batch, images, self._largest[0])
        except BaseException as error:
            clear_tracebacks(error)  # whoever catches it may close the backend and still hold the error
            raise

    def _run_batch(self, images: UInt8) -> Outputs:
        if self._any_size:
            return run_in_tiles(self._run_whole, images, (self._largest[1], self._largest[2]))
        return self._run_whole(images)

    def _run_whole(self, images: UInt8) -> Outputs:
        with self._cuda.current():
            bound = self._context_for(images.shape)
            source = self._buffers[self._input]
            source.host[: images.nbytes].reshape(images.shape)[...] = images
            if bound.graph:
                self._cuda.launch(bound.graph, self._stream)
            else:
                self._enqueue(bound, images.nbytes)
            self._cuda.synchronize(self._stream)
            if self._graphs and not bound.graph and images.shape in self._bound:
                # the first run has done the setup that the context defers, which must not end up in the graph
                bound.graph = self._cuda.capture(partial(self._enqueue, bound, images.nbytes), self._stream)
        return tuple(self._output(name, shape) for name, shape in zip(self._outputs, bound.shapes, strict=True))

    def _output(self, name: str, shape: Shape) -> Any:
        size = 4 * int(np.prod(shape))
        return self._buffers[name].host[:size].view(np.float32).reshape(shape)

    def _enqueue(self, bound: _BoundContext, size: int) -> None:
        """Copy in, compute, copy out: all in order on the stream, without waiting."""
        self._cuda.upload(self._buffers[self._input], size, self._stream)
        if not bound.context.execute_async_v3(self._stream):
            raise BackendError(_CANNOT_RUN)
        for name, shape in zip(self._outputs, bound.shapes, strict=True):
            self._cuda.download(self._buffers[name], 4 * int(np.prod(shape)), self._stream)

    def _context_for(self, shape: Shape) -> _BoundContext:
        """A separate context for each of the plan's batch sizes; for other shapes one per profile, bound each time."""
        if shape in self._bound:
            return self._bound[shape]
        profile = profile_index(self._batches, shape[0])
        if shape[0] in self._batches and not self._any_size:
            bound = self._bound[shape] = self._bind(self._create_context(profile), shape)
            return bound
        if profile not in self._unbound:
            self._unbound[profile] = self._create_context(profile)
        return self._bind(self._unbound[profile], shape)

    def _create_context(self, profile: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise BackendError("the GPU's memory is full: TensorRT cannot reserve what this plan needs")
        try:
            context.set_optimization_profile_async(profile, self._stream)
        except RuntimeError as error:
            reasons = "the log has its reasons (-v)"
            raise BackendError(f"TensorRT cannot take profile {profile} of this plan; {reasons}") from error
        return context

    def _bind(self, context: Any, shape: Shape) -> _BoundContext:
        """Set a context's input shape and all addresses."""
        self._set_shape(context, shape)
        for name in (self._input, *self._outputs):
            if not context.set_tensor_address(name, self._buffers[name].device):
                raise BackendError(f"TensorRT refuses the memory for {name}; the log has its reasons (-v)")
        return _BoundContext(context, tuple(tuple(context.get_tensor_shape(name)) for name in self._outputs))

    def _set_shape(self, context: Any, shape: Shape) -> None:
        if not context.set_input_shape(self._input, shape):
            raise BackendError(f"pictures {shape}: not within what this plan was built for, at most {self._largest}")

    def _reserve(self) -> None:
        """Allocate buffers for the largest input and its outputs."""
        context = self._create_context(len(self._batches) - 1)
        self._set_shape(context, self._largest)
        outputs = {name: tuple(map(int, context.get_tensor_shape(name))) for name in self._outputs}
        lengths = (int(length) for length in self._engine.get_tensor_shape(self._input))
        self.shapes = Shapes(tuple(n if n >= 0 else None for n in lengths), tuple(outputs.values()))
        sizes = {self._input: int(np.prod(self._largest))}
        sizes |= {name: 4 * int(np.prod(shape)) for name, shape in outputs.items()}
        for name, size in sizes.items():
            self._buffers[name] = self._cuda.buffer(size)

    def compute_s(self, images: UInt8, repeats: int) -> float:
        """Mean seconds of a run on the GPU without its copies, over `repeats` runs that are enqueued at once."""
        self.run(images)
        with self._cuda.current():
            context = self._context_for(images.shape).context
            began = time.perf_counter()
            for _ in range(repeats):
                if not context.execute_async_v3(self._stream):
                    raise BackendError(_CANNOT_RUN)
            self._cuda.synchronize(self._stream)
            return (time.perf_counter() - began) / repeats

    def close(self) -> None:
        """See `Backend`. Frees contexts, engine, runtime and memory in this order."""
        if self._engine is not None:
            self._free()

    def _free(self) -> None:
        with self._cuda.current():
            if self._stream:
                self._cuda.synchronize(self._stream)
            graphs = [bound.graph for bound in self._bound.values() if bound.graph]
            self._bound.clear()
            self._unbound.clear()
            self._engine = None
            self._runtime = None
            if self._stream:
                self._cuda.free(buffers=list(self._buffers.values()), graphs=graphs, stream=self._stream)
            self._buffers = {}
        self._cuda.close()


def _input_name(trt: Any, engine: Any, wanted: tuple[str, ...]) -> str:
    """Check that the plan has the wanted outputs and return the input's name.

    Outputs are identified by their names alone: the order in which an engine lists them need not be the graph's
    (TensorRT issue 1042).

    Raises:
        BackendError: the plan was not built by facetrack, or is for another graph.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = tuple(name for name in names if name not in inputs)
    if len(inputs) != 1 or engine.get_tensor_dtype(inputs[0]) != trt.DataType.UINT8:
        raise BackendError(f"this plan was not built by facetrack: wanted one input of bytes, got {', '.join(inputs)}")
    if any(engine.get_tensor_dtype(name) != trt.DataType.FLOAT for name in outputs):
        raise BackendError(f"this plan is not one of ours: wanted outputs of 32-bit numbers, got {', '.join(outputs)}")
    if {*outputs} != {*wanted}:
        raise BackendError(
            f"this plan belongs to another graph: wanted the outputs {', '.join(wanted)}, got "
            f"{', '.join(sorted(outputs))}; delete it, then it is built again"
        )
    return str(inputs[0])
