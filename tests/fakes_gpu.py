"""A fake GPU and a fake TensorRT: memory is arrays, and an engine computes with ONNX Runtime.

They check that callers keep to the order that the real ones require: no call without a current context, addresses and
shapes before a run, all of TensorRT's objects and all memory freed before the context is released. An optimisation
profile of release 8 belongs to one execution context at a time, unless the plan was built with the preview feature that
shares profiles. An engine lists its outputs in an order of its own. Failures raise what the bindings raise, or return
False or None where the bindings do.
"""
# ruff: noqa: ARG001, ARG002, ARG005 - the arguments are those of the real ones

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import numpy as np
import onnxruntime as ort

from facetrack.engines.cuda_driver import Buffer
from facetrack.engines.cuda_probe import Gpu
from facetrack.engines.tensorrt_open import Toolkit
from facetrack.tracker.types import UInt8

H200 = Gpu("NVIDIA H200", "9.0", 143.8, "580.159.03", "13.0")


class Memory:
    """Everything on the fake GPU: blocks by address, the number of holds on its context, TensorRT's live objects."""

    def __init__(self) -> None:
        self.blocks: dict[int, UInt8] = {}
        self.holds = 0
        self.objects: WeakSet[Any] = WeakSet()
        self._next = 1 << 40

    def reserve(self, size: int) -> int:
        address, self._next = self._next, self._next + size + 256
        self.blocks[address] = np.full(size, 0xEE, np.uint8)
        return address


class FakeCuda:
    """`cuda_driver.Cuda` with arrays as memory."""

    name = "fake CUDA"

    def __init__(self, memory: Memory) -> None:
        self.memory, self.depth, self.closed = memory, 0, False
        memory.holds += 1
        self.calls: list[str] = []
        self.streams: set[int] = set()
        self.graphs: dict[int, Callable[[], None]] = {}
        self._capturing = False

    @contextmanager
    def current(self) -> Iterator[None]:
        assert not self.closed
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def _note(self, call: str) -> None:
        assert self.depth, f"{call} without a current context"
        self.calls.append(call)

    def stream(self) -> int:
        self._note("stream")
        self.streams.add(7)
        return 7

    def buffer(self, size: int) -> Buffer:
        self._note("buffer")
        return Buffer(np.zeros(size, np.uint8), self.memory.reserve(size))

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        self._note("upload")
        assert stream in self.streams
        if not self._capturing:
            self.memory.blocks[buffer.device][:size] = buffer.host[:size]

    def download(self, buffer: Buffer, size: int, stream: int) -> None:
        self._note("download")
        assert stream in self.streams
        if not self._capturing:
            buffer.host[:size] = self.memory.blocks[buffer.device][:size]

    def synchronize(self, stream: int) -> None:
        self._note("synchronize")

    def capture(self, work: Callable[[], None], stream: int) -> int:
        self._note("capture")
        self._capturing = True
        work()
        self._capturing = False
        handle = 100 + len(self.graphs)
        self.graphs[handle] = work
        return handle

    def launch(self, graph: int, stream: int) -> None:
        self._note("launch")
        self.graphs[graph]()

    def free(self, *, buffers: list[Buffer], graphs: list[int], stream: int) -> None:
        self._note("free")
        for buffer in buffers:
            del self.memory.blocks[buffer.device]
        for graph in graphs:
            del self.graphs[graph]
        self.streams.remove(stream)

    def close(self) -> None:
        assert not self.depth, "the context is released while it is current"
        assert not self.streams, "a stream is left"
        assert not self.graphs, "a graph is left"
        self.memory.holds -= 1
        left = [] if self.memory.holds else sorted(type(each).__name__ for each in self.memory.objects)
        assert not left, f"the context is released before {left}"
        self.closed = True


@dataclass
class Wishes:
    """What the fake TensorRT shall do wrong, and a record of its use.

    Attributes:
        version: of TensorRT; from 10 on networks are strongly typed, from 11 on there are no precision flags.
        distort: changes the outputs of a run, given the batch size.
        unreadable: reasons for which the parser refuses the graph.
        unbuildable: the builder returns no plan.
        refuse: name of a context's method that fails, or of a class that cannot be constructed.
        flags: names of builder flags that were set.
        profiles: the shapes of each profile. builds: number of plans built. timings: timing cache given to each build.
        damaged_timings, foreign_timings: timings that cannot be read as a cache, and timings of another GPU.
    """

    version: str = "10.16.1"
    distort: Callable[[Any, int], Any] = lambda outputs, batch: outputs
    unreadable: Sequence[str] = ()
    unbuildable: bool = False
    refuse: str = ""
    flags: list[str] = field(default_factory=list)
    network_flags: int = 0
    profiles: list[list[tuple[int, ...]]] = field(default_factory=list)
    timings: list[bytes] = field(default_factory=list)
    builds: int = 0
    damaged_timings: bytes | None = None
    foreign_timings: bytes | None = None


def fake_toolkit(wishes: Wishes | None = None, gpu: Gpu = H200) -> tuple[Toolkit, list[FakeCuda]]:
    """A toolkit, and the list to which all holds on its GPU will be added."""
    memory, holds = Memory(), []

    def open_cuda() -> FakeCuda:
        holds.append(FakeCuda(memory))
        return holds[-1]

    return Toolkit(fake_tensorrt(wishes or Wishes(), memory), gpu, open_cuda), holds


class PyCudaError(Exception):
    """`pycuda.driver.Error`, base class of the others; none is derived from one of Python's own errors."""


class PyCudaMemoryError(PyCudaError):
    """`pycuda.driver.MemoryError`."""


class PyCudaLogicError(PyCudaError):
    """`pycuda.driver.LogicError`."""


def fake_pycuda(failing: str = "", error: PyCudaError | None = None) -> Any:
    """A module like `pycuda` that computes nothing; the call named `failing` raises an error."""

    def call(name: str, answer: Any = None) -> Callable[..., Any]:
        def does(*arguments: Any) -> Any:
            if name == failing:
                raise error or PyCudaLogicError(f"{name} failed: invalid argument")
            return answer

        return does

    context = SimpleNamespace(push=call("push"), detach=call("detach"))
    stream = SimpleNamespace(handle=7, synchronize=call("synchronize"))
    driver = SimpleNamespace(
        Error=PyCudaError,
        MemoryError=PyCudaMemoryError,
        LogicError=PyCudaLogicError,
        init=call("init"),
        Device=call("Device", SimpleNamespace(retain_primary_context=call("retain_primary_context", context))),
        Context=SimpleNamespace(pop=call("pop")),
        Stream=call("Stream", stream),
        mem_alloc=call("mem_alloc", 1 << 40),
        pagelocked_empty=lambda size, dtype: np.zeros(size, dtype),
        memcpy_htod_async=call("memcpy_htod_async"),
        memcpy_dtoh_async=call("memcpy_dtoh_async"),
    )
    return SimpleNamespace(VERSION_TEXT="2026.1", driver=driver)


def fake_cuda_bindings(failing: str = "", status: int = 0) -> Any:
    """A package like `cuda.bindings`: calls return a status and perhaps a value; the one named `failing` fails."""
    page = np.zeros(16, np.uint8)
    answers = {"cuStreamCreate": 7, "cuMemAlloc": 1 << 40, "cuMemHostAlloc": page.ctypes.data}
    silent = ("cuInit", "cuCtxPushCurrent", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamSynchronize")

    def call(name: str) -> Callable[..., tuple[Any, ...]]:
        def does(*arguments: Any) -> tuple[Any, ...]:
            if name == failing:
                return (status,) if name in silent else (status, None)
            return (0,) if name in silent else (0, answers.get(name, page))

        return does

    return SimpleNamespace(driver=_Calls(call))


class _Calls:
    """A module in which every name is a function."""

    def __init__(self, call: Callable[[str], Any]) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return self._call(name)


class OnnxRuntimeOnGpu:
    """The module `onnxruntime` with one more provider, which computes on the CPU.

    Its libraries are installed by pip and are not found until they are loaded: before that a session silently uses the
    CPU. An `older` release has no function to load them, but finds them.
    """

    def __init__(self, provider: str, *, older: bool = False) -> None:
        self.provider, self.older, self.loaded = provider, older, older
        self.options: dict[str, str] = {}  # options of the last session's provider
        self.telemetry = True

    def __getattr__(self, name: str) -> Any:
        if name == "preload_dlls":
            if self.older:
                raise AttributeError(name)
            return self._preload
        return getattr(ort, name)

    def _preload(self) -> None:
        print("Failed to load libcufft.so.12: no such file")  # like the real one
        self.loaded = True

    def disable_telemetry_events(self) -> None:
        self.telemetry = False

    def get_available_providers(self) -> list[str]:
        return [self.provider, *ort.get_available_providers()]

    def InferenceSession(  # noqa: N802 - its name
        self, network: Any, options: Any, providers: list[tuple[str, dict[str, str]]]
    ) -> Any:
        names = [name for name, _ in providers]
        self.options = providers[0][1]
        session = ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        shapes = {"get_inputs": session.get_inputs, "get_outputs": session.get_outputs}
        found = [*(names if self.loaded else ()), "CPUExecutionProvider"]
        return SimpleNamespace(run=session.run, get_providers=lambda: found, **shapes)


def fake_tensorrt(wishes: Wishes, memory: Memory) -> Any:
    """A module like `tensorrt`."""
    major = int(wishes.version.split(".")[0])
    network_flags = {
        8: {"EXPLICIT_BATCH": 0},
        10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        11: {"STRONGLY_TYPED": 1},
    }
    previews = {8: ["FASTER_DYNAMIC_SHAPES_0805", "PROFILE_SHARING_0806"], 10: ["PROFILE_SHARING_0806"]}
    builder_flags = ["TF32"] if major > 10 else ["FP16", "INT8", "TF32"]
    trt = SimpleNamespace(
        __version__=wishes.version,
        ILogger=_Logger,
        NetworkDefinitionCreationFlag=IntEnum("NetworkDefinitionCreationFlag", network_flags[major]),
        BuilderFlag=IntEnum("BuilderFlag", {name: i for i, name in enumerate(builder_flags)}),
        MemoryPoolType=IntEnum("MemoryPoolType", {"WORKSPACE": 0}),
        TacticSource=IntEnum("TacticSource", {"EDGE_MASK_CONVOLUTIONS": 3, "JIT_CONVOLUTIONS": 4}),
        TensorIOMode=IntEnum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2}),
        DataType=IntEnum("DataType", {"FLOAT": 0, "HALF": 1, "INT8": 2, "UINT8": 5}),
        PreviewFeature=IntEnum("PreviewFeature", previews.get(major, ["ALIASED_PLUGIN_IO_10_03"])),
    )

    def made(kind: str, logger: Any, make: Callable[[], Any]) -> Any:
        if wishes.refuse == kind:
            logger.log(
                _Logger.WARNING, "CUDA initialization failure with error: 35. Please check your CUDA installation"
            )
            raise TypeError("pybind11::init(): factory function returned nullptr")
        each = make()
        memory.objects.add(each)
        return each

    trt.Builder = lambda logger: made("Builder", logger, lambda: _Builder(wishes))
    trt.OnnxParser = lambda network, logger: made("OnnxParser", logger, lambda: _Parser(network, wishes))
    trt.Runtime = lambda logger: made("Runtime", logger, lambda: _Runtime(trt, wishes, memory))
    return trt


class _Logger:
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2


class _Builder:
    def __init__(self, wishes: Wishes) -> None:
        self.wishes = wishes

    def create_network(self, flags: int) -> Any:
        self.wishes.network_flags = flags
        return SimpleNamespace()

    def create_builder_config(self) -> Any:
        return _Config(self.wishes)

    def create_optimization_profile(self) -> Any:
        shapes: list[tuple[int, ...]] = []
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *ranges: shapes.extend(ranges))

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        self.wishes.builds += 1
        self.wishes.profiles = [profile.shapes for profile in config.profiles]
        shared = config.shares_profiles or not self.wishes.version.startswith("8.")
        head = json.dumps({"profiles": self.wishes.profiles, "shared": shared}).encode()
        return None if self.wishes.unbuildable else len(head).to_bytes(4, "big") + head + network.graph


class _Parser:
    def __init__(self, network: Any, wishes: Wishes) -> None:
        self.network, self.wishes = network, wishes
        self.num_errors = len(wishes.unreadable)

    def parse(self, graph: bytes) -> bool:
        self.network.graph = graph
        session = _session(graph)
        picture = SimpleNamespace(name=session.get_inputs()[0].name, shape=_shape(session))
        self.network.get_input = lambda i: picture
        return not self.wishes.unreadable

    def get_error(self, i: int) -> Any:
        return SimpleNamespace(desc=lambda: self.wishes.unreadable[i])


class _Config:
    def __init__(self, wishes: Wishes) -> None:
        self.wishes, self.profiles, self.shares_profiles = wishes, [], False

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        assert feature.name == "PROFILE_SHARING_0806"
        self.shares_profiles = enable

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        assert size > 0

    def set_tactic_sources(self, sources: int) -> None:
        assert sources == 0b11000, "no cuBLAS, no cuDNN"

    def clear_flag(self, flag: Any) -> None:
        self.wishes.flags.append(f"no {flag.name}")

    def set_flag(self, flag: Any) -> None:
        self.wishes.flags.append(flag.name)

    def create_timing_cache(self, content: bytes) -> Any:
        self.wishes.timings.append(content)
        if content == self.wishes.damaged_timings:
            return None
        return SimpleNamespace(content=content, serialize=lambda: content + b"t")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.content == self.wishes.foreign_timings:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)


class _Runtime:
    def __init__(self, trt: Any, wishes: Wishes, memory: Memory) -> None:
        self.parts = trt, wishes, memory

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        size = int.from_bytes(plan[:4], "big")
        try:
            return _Engine(*self.parts, json.loads(plan[4 : 4 + size]), plan[4 + size :])
        except ValueError:
            return None


class _Engine:
    def __init__(self, trt: Any, wishes: Wishes, memory: Memory, head: dict[str, Any], graph: bytes) -> None:
        self.trt, self.wishes, self.memory, self.profiles = trt, wishes, memory, head["profiles"]
        memory.objects.add(self)
        self.num_optimization_profiles = len(self.profiles)
        self.contexts: WeakSet[_Context] | None = None if head["shared"] else WeakSet()
        self.session = _session(graph)
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        self.outputs = [tensor.name for tensor in self.session.get_outputs()]  # in the graph's order
        self.names = [*self.inputs, *reversed(self.outputs)]  # TensorRT guarantees no order
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, i: int) -> str:
        return self.names[i]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType.UINT8 if name in self.inputs else self.trt.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name in self.inputs
        return _shape(self.session)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return self.profiles[profile]

    def create_execution_context(self) -> Any:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.profile, self.addresses = engine, -1, {}
        engine.memory.objects.add(self)
        self.outputs: Any = None
        if engine.contexts is not None:
            self.profile = -1 if self._taken(0) else 0  # release 8 chooses profile 0 by itself
            engine.contexts.add(self)

    def _taken(self, profile: int) -> bool:
        return any(other is not self and other.profile == profile for other in self.engine.contexts or ())

    def _refuses(self, method: str) -> bool:
        return self.engine.wishes.refuse == method

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if self._taken(profile) or self._refuses("set_optimization_profile_async"):
            raise RuntimeError("Error in set optimization profile async.")
        self.profile = profile
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address in self.engine.memory.blocks
        self.addresses[name] = address
        return not self._refuses("set_tensor_address")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile >= 0, "a shape before a profile"
        least, _, most = self.engine.profiles[self.profile]
        self.shape = tuple(shape)
        fits = len(shape) == len(least) and all(a <= s <= b for a, s, b in zip(least, shape, most, strict=True))
        if fits:
            zeros = np.zeros(shape, np.uint8)
            self.outputs = self.engine.session.run(None, {name: zeros})
        return fits and not self._refuses("set_input_shape")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.outputs[self.engine.outputs.index(name)].shape

    def execute_async_v3(self, stream: int) -> bool:
        blocks, name = self.engine.memory.blocks, self.engine.inputs[0]
        assert set(self.addresses) == set(self.engine.names), "a tensor without an address"
        images = blocks[self.addresses[name]][: int(np.prod(self.shape))].reshape(self.shape)
        outputs = self.engine.session.run(None, {name: images})
        for output, value in zip(self.engine.outputs, self.engine.wishes.distort(outputs, len(images)), strict=True):
            content = np.ascontiguousarray(value).view(np.uint8).ravel()
            blocks[self.addresses[output]][: len(content)] = content
        return True


def _session(graph: bytes) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _shape(session: Any) -> tuple[int, ...]:
    return tuple(n if isinstance(n, int) else -1 for n in session.get_inputs()[0].shape)
