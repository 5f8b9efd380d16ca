"""A TensorRT plan at work: one stream, page-locked buffers, a CUDA graph for each usual batch size."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tracker.errors import BackendError
from .backend import GPU_TOGETHER
from .cuda_driver import Buffer, Cuda
from .parts import run_in_batches, run_in_tiles
from .tensorrt_build import make_logger, profile_index

if TYPE_CHECKING:
    from ..tracker.types import UInt8
    from .backend import Outputs

Shape = tuple[int, ...]


@dataclass(slots=True)
class _Lane:
    """A way through the engine for one shape of input.

    Attributes:
        context: with its profile, shapes and addresses set.
        shapes: of the outputs.
        graph: recorded; 0 until there is one. A graph is bound to its context, which then keeps its shape for good.
    """

    context: Any
    shapes: tuple[Shape, ...]
    graph: int = 0


class TensorRTBackend:
    """`Backend` on a plan. Any thread may run it, one at a time: each run pushes the context and pops it again.

    Batches above the plan's largest run in parts; pictures above its largest, of a network that scans, run in tiles.
    """

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes, precision: str, *, graphs: bool = True) -> None:
        """Load a plan; its memory is reserved for the largest batch at once.

        Args:
            trt: TensorRT's bindings.
            cuda: the GPU, which this closes in the end.
            plan: by `build_plan`, on the same machine.
            precision: of its graph.
            graphs: False runs kernel by kernel, for measuring what graphs give.
        Raises:
            BackendError: TensorRT refuses the plan, or the GPU's memory is full.
        """
        self._cuda, self._graphs, self.precision = cuda, graphs, precision
        self._runtime: Any = None
        self._engine: Any = None
        self._stream = 0  # none yet
        self._general: dict[int, Any] = {}
        self._lanes: dict[Shape, _Lane] = {}
        self._buffers: dict[str, Buffer] = {}
        self.description = f"TensorRT {trt.__version__} {precision}, {cuda.name}"
        try:
            with cuda.current():
                self._load(trt, plan)
        except BaseException as error:
            clear_frames(error.__traceback__)  # engine and contexts in them would outlive the GPU's memory
            self._free()
            raise

    def _load(self, trt: Any, plan: bytes) -> None:
        self._runtime = trt.Runtime(make_logger(trt))
        engine = self._engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"TensorRT {trt.__version__} refuses this plan; delete it and it is built again")
        self._input, self._outputs = _tensor_names(trt, engine)
        profiles = range(engine.num_optimization_profiles)
        shapes: list[Shape] = [tuple(engine.get_tensor_profile_shape(self._input, i)[2]) for i in profiles]
        self._batches, self._largest = tuple(shape[0] for shape in shapes), shapes[-1]
        self._any_size = -1 in tuple(engine.get_tensor_shape(self._input))[1:]
        self.canvas = (self._largest[1], self._largest[2]) if self._any_size else None
        self.together = min(self._largest[0], GPU_TOGETHER)
        self._stream = self._cuda.stream()
        self._reserve()

    def run(self, images: UInt8) -> Outputs:
        """See `Backend`."""
        return run_in_batches(self._run_batch, images, self._largest[0])

    def _run_batch(self, images: UInt8) -> Outputs:
        if self._any_size:
            return run_in_tiles(self._run_whole, images, (self._largest[1], self._largest[2]))
        return self._run_whole(images)

    def _run_whole(self, images: UInt8) -> Outputs:
        with self._cuda.current():
            lane = self._lane(images.shape)
            source = self._buffers[self._input]
            source.host[: images.nbytes].reshape(images.shape)[...] = images
            if lane.graph:
                self._cuda.replay(lane.graph, self._stream)
            else:
                self._enqueue(lane, images.nbytes)
            self._cuda.wait(self._stream)
            if self._graphs and not lane.graph and images.shape in self._lanes:
                # the first run has set up whatever the context defers, which must not end up in the graph
                lane.graph = self._cuda.record(partial(self._enqueue, lane, images.nbytes), self._stream)
        return tuple(self._answer(name, shape) for name, shape in zip(self._outputs, lane.shapes, strict=True))

    def _answer(self, name: str, shape: Shape) -> Any:
        size = 4 * int(np.prod(shape))
        return self._buffers[name].host[:size].view(np.float32).reshape(shape)

    def _enqueue(self, lane: _Lane, size: int) -> None:
        """Copy in, compute, copy out: all in order on the stream, none waited for."""
        self._cuda.upload(self._buffers[self._input], size, self._stream)
        if not lane.context.execute_async_v3(self._stream):
            raise BackendError("TensorRT cannot run this plan; its reasons are in the log (-v)")
        for name, shape in zip(self._outputs, lane.shapes, strict=True):
            self._cuda.download(self._buffers[name], 4 * int(np.prod(shape)), self._stream)

    def _lane(self, shape: Shape) -> _Lane:
        """The lane of a shape: kept for pictures of a fixed size in usual batches, made anew for all others."""
        if shape in self._lanes:
            return self._lanes[shape]
        profile = profile_index(self._batches, shape[0])
        if shape[0] in self._batches and not self._any_size:
            lane = self._lanes[shape] = self._prepared(self._context(profile), shape)
            return lane
        if profile not in self._general:
            self._general[profile] = self._context(profile)
        return self._prepared(self._general[profile], shape)

    def _context(self, profile: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise BackendError("the GPU's memory is full: TensorRT cannot reserve what this plan needs")
        if not context.set_optimization_profile_async(profile, self._stream):
            raise BackendError(f"TensorRT cannot take profile {profile} of this plan; its reasons are in the log (-v)")
        return context

    def _prepared(self, context: Any, shape: Shape) -> _Lane:
        """A lane whose context has its shape and every address."""
        self._set_shape(context, shape)
        for name in (self._input, *self._outputs):
            if not context.set_tensor_address(name, self._buffers[name].device):
                raise BackendError(f"TensorRT refuses the memory for {name}; its reasons are in the log (-v)")
        return _Lane(context, tuple(tuple(context.get_tensor_shape(name)) for name in self._outputs))

    def _set_shape(self, context: Any, shape: Shape) -> None:
        if not context.set_input_shape(self._input, shape):
            raise BackendError(f"pictures {shape}: not within what this plan was built for, at most {self._largest}")

    def _reserve(self) -> None:
        """Take memory for the largest input and what comes out of it."""
        context = self._context(len(self._batches) - 1)
        self._set_shape(context, self._largest)
        sizes = {self._input: int(np.prod(self._largest))}
        sizes |= {name: 4 * int(np.prod(tuple(context.get_tensor_shape(name)))) for name in self._outputs}
        for name, size in sizes.items():
            self._buffers[name] = self._cuda.buffer(size)

    def compute_s(self, images: UInt8, repeats: int) -> float:
        """Seconds of one run on the GPU alone, copies left out: the mean of `repeats`, one behind the other."""
        self.run(images)
        with self._cuda.current():
            context = self._lane(images.shape).context
            began = time.perf_counter()
            for _ in range(repeats):
                if not context.execute_async_v3(self._stream):
                    raise BackendError("TensorRT cannot run this plan; its reasons are in the log (-v)")
            self._cuda.wait(self._stream)
            return (time.perf_counter() - began) / repeats

    def close(self) -> None:
        """See `Backend`. Contexts go before the engine, the engine before the runtime, all before the GPU's memory."""
        if self._engine is not None:
            self._free()

    def _free(self) -> None:
        with self._cuda.current():
            if self._stream:
                self._cuda.wait(self._stream)
            graphs = [lane.graph for lane in self._lanes.values() if lane.graph]
            self._lanes.clear()
            self._general.clear()
            self._engine = None
            self._runtime = None
            if self._stream:
                self._cuda.free(buffers=list(self._buffers.values()), graphs=graphs, stream=self._stream)
            self._buffers = {}
        self._cuda.close()


def _tensor_names(trt: Any, engine: Any) -> tuple[str, tuple[str, ...]]:
    """The input's name and the outputs', in the graph's order.

    Raises:
        BackendError: the plan is not one of ours.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = tuple(name for name in names if name not in inputs)
    if len(inputs) != 1 or engine.get_tensor_dtype(inputs[0]) != trt.DataType.UINT8:
        raise BackendError(f"this plan is not one of ours: wanted one input of bytes, got {', '.join(inputs)}")
    if any(engine.get_tensor_dtype(name) != trt.DataType.FLOAT for name in outputs):
        raise BackendError(f"this plan is not one of ours: wanted outputs of 32-bit numbers, got {', '.join(outputs)}")
    return inputs[0], outputs
