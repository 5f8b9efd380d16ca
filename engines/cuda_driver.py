"""The few lines of CUDA that an engine needs: context, stream, pinned buffers, copies, graphs.

pycuda gives them, or cuda-bindings where pycuda cannot be built. Both retain the device's primary context, which is
the one that torch and the CUDA runtime use, so that they work side by side in one process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..tracker.errors import BackendError
from .cuda_probe import check, load_driver

if TYPE_CHECKING:
    from ..tracker.types import UInt8

INSTALL = 'pip install "facetrack[gpu]" (or, without the CUDA toolkit for pycuda, pip install cuda-bindings)'
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: other threads may allocate meanwhile


@dataclass(frozen=True, slots=True)
class Buffer:
    """The same bytes twice.

    Attributes:
        host: (n,) uint8 page-locked, so that copies need no further copy and do not wait.
        device: address on the GPU.
        owner: what the driver needs for freeing it.
    """

    host: UInt8
    device: int
    owner: Any = None


class Cuda(Protocol):
    """One GPU. Everything but `current` needs the context to be current."""

    name: str

    def current(self) -> AbstractContextManager[None]:
        """Make the context current in this thread, and what was current before on leaving."""
        ...

    def stream(self) -> int:
        """Handle of a new stream."""
        ...

    def buffer(self, size: int) -> Buffer:
        """Reserve `size` bytes here and there."""
        ...

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        """Copy the first `size` bytes to the GPU without waiting."""
        ...

    def download(self, buffer: Buffer, size: int, stream: int) -> None:
        """Copy the first `size` bytes from the GPU without waiting."""
        ...

    def wait(self, stream: int) -> None:
        """Until everything on the stream is done."""
        ...

    def record(self, work: Callable[[], None], stream: int) -> int:
        """Handle of a graph of everything that `work` puts on the stream; nothing of it is run."""
        ...

    def replay(self, graph: int, stream: int) -> None:
        """Put a recorded graph on the stream."""
        ...

    def free(self, *, buffers: list[Buffer], graphs: list[int], stream: int) -> None:
        """Give back what one engine has reserved."""
        ...

    def close(self) -> None:
        """Release the context, which must not be current."""
        ...


def open_cuda() -> Cuda:
    """The first visible GPU, through pycuda or else cuda-bindings.

    Raises:
        BackendError: no driver, no GPU, or neither package.
    """
    library = load_driver()
    try:
        return PyCuda(library)
    except ImportError as first:
        try:
            return CudaBindings(library)
        except ImportError as second:
            raise BackendError(f"neither pycuda ({first}) nor cuda-bindings ({second}); run: {INSTALL}") from second


class _Graphs:
    """Graphs by the driver's own C interface: pycuda has no names for it."""

    def __init__(self, library: Any) -> None:
        self._cuda = library

    def record(self, work: Callable[[], None], stream: int) -> int:
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

    def replay(self, graph: int, stream: int) -> None:
        """See `Cuda`."""
        check(self._cuda.cuGraphLaunch(ctypes.c_void_p(graph), ctypes.c_void_p(stream)), "cuGraphLaunch")

    def destroy(self, graph: int) -> None:
        """Free a recorded graph."""
        check(self._cuda.cuGraphExecDestroy(ctypes.c_void_p(graph)), "cuGraphExecDestroy")


class PyCuda:
    """`Cuda` by pycuda."""

    def __init__(self, library: Any) -> None:
        """Retain the primary context; ImportError without pycuda."""
        import pycuda
        import pycuda.driver as driver

        driver.init()
        self._driver, self._library, self._graphs = driver, library, _Graphs(library)
        self._context: Any = driver.Device(0).retain_primary_context()
        self._streams: dict[int, Any] = {}
        self.name = f"pycuda {pycuda.VERSION_TEXT}"
        self.replay, self.record = self._graphs.replay, self._graphs.record

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Cuda`."""
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def stream(self) -> int:
        """See `Cuda`."""
        stream = self._driver.Stream(NON_BLOCKING)
        self._streams[stream.handle] = stream
        return int(stream.handle)

    def buffer(self, size: int) -> Buffer:
        """See `Cuda`."""
        device = self._driver.mem_alloc(size)
        return Buffer(self._driver.pagelocked_empty(size, np.uint8), int(device), device)

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        """See `Cuda`."""
        self._driver.memcpy_htod_async(buffer.device, buffer.host[:size], self._streams[stream])

    def download(self, buffer: Buffer, size: int, stream: int) -> None:
        """See `Cuda`."""
        self._driver.memcpy_dtoh_async(buffer.host[:size], buffer.device, self._streams[stream])

    def wait(self, stream: int) -> None:
        """See `Cuda`."""
        self._streams[stream].synchronize()

    def free(self, *, buffers: list[Buffer], graphs: list[int], stream: int) -> None:
        """See `Cuda`."""
        for graph in graphs:
            self._graphs.destroy(graph)
        for buffer in buffers:
            buffer.owner.free()
            buffer.host.base.free()  # type: ignore[union-attr]  # pycuda's HostAllocation
        del self._streams[stream]

    def close(self) -> None:
        """See `Cuda`.

        pycuda takes the release of a primary context for the end of a context of its own, which CUDA would take off
        the thread's stack by itself; so it is taken off by hand. It releases nothing at all from a thread that has not
        made the context current.
        """
        self._context.push()
        check(self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())), "cuCtxPopCurrent")
        self._context.detach()


class CudaBindings:
    """`Cuda` by NVIDIA's cuda-bindings."""

    def __init__(self, library: Any) -> None:
        """Retain the primary context; ImportError without cuda-bindings."""
        from importlib.metadata import version

        from cuda.bindings import driver

        self._driver, self._graphs = driver, _Graphs(library)
        self._do(driver.cuInit(0))
        self._device = self._do(driver.cuDeviceGet(0))
        self._context = self._do(driver.cuDevicePrimaryCtxRetain(self._device))
        self.name = f"cuda-bindings {version('cuda-bindings')}"
        self.replay, self.record = self._graphs.replay, self._graphs.record

    def _do(self, answer: tuple[Any, ...]) -> Any:
        """The value that a call gives behind its status."""
        check(int(answer[0]), "a call by cuda-bindings")
        return answer[1] if len(answer) > 1 else None

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Cuda`."""
        self._do(self._driver.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            self._do(self._driver.cuCtxPopCurrent())

    def stream(self) -> int:
        """See `Cuda`."""
        return int(self._do(self._driver.cuStreamCreate(NON_BLOCKING)))

    def buffer(self, size: int) -> Buffer:
        """See `Cuda`."""
        device = self._do(self._driver.cuMemAlloc(size))
        address = int(self._do(self._driver.cuMemHostAlloc(size, 0)))
        host = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return Buffer(host, int(device), (device, address))

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        """See `Cuda`."""
        self._do(self._driver.cuMemcpyHtoDAsync(buffer.device, buffer.owner[1], size, stream))

    def download(self, buffer: Buffer, size: int, stream: int) -> None:
        """See `Cuda`."""
        self._do(self._driver.cuMemcpyDtoHAsync(buffer.owner[1], buffer.device, size, stream))

    def wait(self, stream: int) -> None:
        """See `Cuda`."""
        self._do(self._driver.cuStreamSynchronize(stream))

    def free(self, *, buffers: list[Buffer], graphs: list[int], stream: int) -> None:
        """See `Cuda`."""
        for graph in graphs:
            self._graphs.destroy(graph)
        for buffer in buffers:
            self._do(self._driver.cuMemFree(buffer.owner[0]))
            self._do(self._driver.cuMemFreeHost(buffer.owner[1]))
        self._do(self._driver.cuStreamDestroy(stream))

    def close(self) -> None:
        """See `Cuda`."""
        self._do(self._driver.cuDevicePrimaryCtxRelease(self._device))
