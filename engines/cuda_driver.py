"""What an engine needs from CUDA: context, stream, pinned buffers, copies, graphs.

It uses pycuda, or cuda-bindings where pycuda cannot be built. Both retain the device's primary context, which torch and
the CUDA runtime use too, so that all of them work in one process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..tracker.errors import BackendError
from .cuda_probe import OUT_OF_MEMORY, REASONS, check, load_driver

if TYPE_CHECKING:
    from ..tracker.types import UInt8

INSTALL = 'pip install "facetrack[gpu]" (or, without the CUDA toolkit for pycuda, pip install cuda-bindings)'
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: other threads may allocate meanwhile


@dataclass(frozen=True, slots=True)
class Buffer:
    """Host memory and device memory of the same size.

    Attributes:
        host: (n,) uint8, page-locked: copies are asynchronous and need no staging.
        device: address on the GPU.
        owner: what the driver needs to free them.
    """

    host: UInt8
    device: int
    owner: Any = None


class Cuda(Protocol):
    """One GPU. All methods except `current` and `close` need the context to be current."""

    name: str

    def current(self) -> AbstractContextManager[None]:
        """Push the context in this thread, and pop it on leaving."""
        ...

    def stream(self) -> int:
        """Handle of a new stream."""
        ...

    def buffer(self, size: int) -> Buffer:
        """Allocate `size` bytes on the host and on the GPU."""
        ...

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        """Copy the first `size` bytes to the GPU without waiting."""
        ...

    def download(self, buffer: Buffer, size: int, stream: int) -> None:
        """Copy the first `size` bytes from the GPU without waiting."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait until all work on the stream is done."""
        ...

    def capture(self, work: Callable[[], None], stream: int) -> int:
        """Capture all that `work` enqueues on the stream, without running it, and return the graph's handle."""
        ...

    def launch(self, graph: int, stream: int) -> None:
        """Enqueue a captured graph."""
        ...

    def free(self, *, buffers: list[Buffer], graphs: list[int], stream: int) -> None:
        """Free what one engine has allocated."""
        ...

    def close(self) -> None:
        """Release the context, which must not be current."""
        ...


def open_cuda() -> Cuda:
    """The first visible GPU, through pycuda or else cuda-bindings.

    Raises:
        BackendError: there is no driver, no GPU, or neither package.
    """
    library = load_driver()
    try:
        return PyCuda(library)
    except ImportError as first:
        try:
            return CudaBindings(library)
        except ImportError as second:
            raise BackendError(
                f"neither pycuda ({first}) nor cuda-bindings ({second}) works; run: {INSTALL}"
            ) from second


class _Graphs:
    """Graphs through the driver's C interface, because pycuda does not cover them."""

    def __init__(self, library: Any) -> None:
        self._cuda = library

    def capture(self, work: Callable[[], None], stream: int) -> int:
        """See `Cuda`."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        check(self._cuda.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), RELAXED), "cuStreamBeginCapture")
        try:
            work()
        finally:
            status = self._cuda.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
        check(status, "cuStreamEndCapture")
        instantiate = self._cuda.cuGraphInstantiateWithFlags
        check(instantiate(ctypes.byref(executable), graph, ctypes.c_ulonglong(0)), "cuGraphInstantiate")
        check(self._cuda.cuGraphDestroy(graph), "cuGraphDestroy")
        return int(executable.value or 0)

    def launch(self, graph: int, stream: int) -> None:
        """See `Cuda`."""
        check(self._cuda.cuGraphLaunch(ctypes.c_void_p(graph), ctypes.c_void_p(stream)), "cuGraphLaunch")

    def destroy(self, graph: int) -> None:
        """Free a captured graph."""
        check(self._cuda.cuGraphExecDestroy(ctypes.c_void_p(graph)), "cuGraphExecDestroy")


class PyCuda:
    """`Cuda` with pycuda."""

    def __init__(self, library: Any) -> None:
        """Retain the primary context; raise ImportError without pycuda."""
        import pycuda
        import pycuda.driver as driver

        self._driver, self._library, self._graphs = driver, library, _Graphs(library)
        with self._translate_errors():
            driver.init()
            self._context: Any = driver.Device(0).retain_primary_context()
        self._streams: dict[int, Any] = {}
        self.name = f"pycuda {pycuda.VERSION_TEXT}"
        self.launch, self.capture = self._graphs.launch, self._graphs.capture

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise pycuda's errors, including its own MemoryError class, as a BackendError."""
        try:
            yield
        except self._driver.MemoryError as error:
            raise BackendError(f"NVIDIA driver: {error}: {REASONS[OUT_OF_MEMORY]}") from error
        except self._driver.Error as error:
            raise BackendError(f"NVIDIA driver: {error}; see `facetrack doctor`") from error

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Cuda`."""
        with self._translate_errors():
            self._context.push()
        try:
            yield
        finally:
            with self._translate_errors():
                self._driver.Context.pop()

    def stream(self) -> int:
        """See `Cuda`."""
        with self._translate_errors():
            stream = self._driver.Stream(NON_BLOCKING)
        self._streams[stream.handle] = stream
        return int(stream.handle)

    def buffer(self, size: int) -> Buffer:
        """See `Cuda`."""
        with self._translate_errors():
            device = self._driver.mem_alloc(size)
            return Buffer(self._driver.pagelocked_empty(size, np.uint8), int(device), device)

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        """See `Cuda`."""
        with self._translate_errors():
            self._driver.memcpy_htod_async(buffer.device, buffer.host[:size], self._streams[stream])

    def download(self, buffer: Buffer, size: int, stream: int) -> None:
        """See `Cuda`."""
        with self._translate_errors():
            self._driver.memcpy_dtoh_async(buffer.host[:size], buffer.device, self._streams[stream])

    def synchronize(self, stream: int) -> None:
        """See `Cuda`."""
        with self._translate_errors():
            self._streams[stream].synchronize()

    def free(self, *, buffers: list[Buffer], graphs: list[int], stream: int) -> None:
        """See `Cuda`."""
        for graph in graphs:
            self._graphs.destroy(graph)
        with self._translate_errors():
            for buffer in buffers:
                buffer.owner.free()
                buffer.host.base.free()  # type: ignore[union-attr]  # pycuda's HostAllocation
        del self._streams[stream]

    def close(self) -> None:
        """See `Cuda`.

        pycuda's `detach` requires the context to be current, releases it, and expects CUDA to pop it as when a context
        is destroyed. CUDA does not pop a primary context that is released, so it is popped here.
        """
        with self._translate_errors():
            self._context.push()
            check(self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())), "cuCtxPopCurrent")
            self._context.detach()


class CudaBindings:
    """`Cuda` with NVIDIA's cuda-bindings."""

    def __init__(self, library: Any) -> None:
        """Retain the primary context; raise ImportError without cuda-bindings."""
        from importlib.metadata import version

        from cuda.bindings import driver

        self._driver, self._graphs = driver, _Graphs(library)
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", 0)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self.name = f"cuda-bindings {version('cuda-bindings')}"
        self.launch, self.capture = self._graphs.launch, self._graphs.capture

    def _call(self, name: str, *arguments: Any) -> Any:
        """Make a driver call, check the status that it returns, and return its result if it has one."""
        status, *results = getattr(self._driver, name)(*arguments)
        check(int(status), name)
        return results[0] if results else None

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Cuda`."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def stream(self) -> int:
        """See `Cuda`."""
        return int(self._call("cuStreamCreate", NON_BLOCKING))

    def buffer(self, size: int) -> Buffer:
        """See `Cuda`."""
        device = self._call("cuMemAlloc", size)
        address = int(self._call("cuMemHostAlloc", size, 0))
        host = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return Buffer(host, int(device), (device, address))

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        """See `Cuda`."""
        self._call("cuMemcpyHtoDAsync", buffer.device, buffer.owner[1], size, stream)

    def download(self, buffer: Buffer, size: int, stream: int) -> None:
        """See `Cuda`."""
        self._call("cuMemcpyDtoHAsync", buffer.owner[1], buffer.device, size, stream)

    def synchronize(self, stream: int) -> None:
        """See `Cuda`."""
        self._call("cuStreamSynchronize", stream)

    def free(self, *, buffers: list[Buffer], graphs: list[int], stream: int) -> None:
        """See `Cuda`."""
        for graph in graphs:
            self._graphs.destroy(graph)
        for buffer in buffers:
            self._call("cuMemFree", buffer.owner[0])
            self._call("cuMemFreeHost", buffer.owner[1])
        self._call("cuStreamDestroy", stream)

    def close(self) -> None:
        """See `Cuda`."""
        self._call("cuDevicePrimaryCtxRelease", self._device)
