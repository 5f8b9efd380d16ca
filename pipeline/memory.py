"""What starting up costs in memory and tracking does not need: not loaded, or given back to the system."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)
# what we bring with us, by its folder (numpy or numpy.libs), and what Python itself stands on, by how its files begin
OURS = {"llvmlite", "numba", "numpy", "onnxruntime", "cv2", "av", "tensorrt", "tensorrt_libs"}
OURS |= {f"opencv_{kind}" for kind in ("python", "python_headless", "contrib_python", "contrib_python_headless")}
PYTHONS = ("libpython", "libcrypto", "libstdc++", "libc.so")
MADV_DONTNEED = 4  # sys/mman.h
SMALLEST = 1 << 16  # bytes of a map; hundreds of smaller ones hold next to nothing
SWAPPED, OF_FILE, PRESENT = np.uint64(1 << 62), np.uint64(1 << 61), np.uint64(1 << 63)  # of a page, in pagemap


class _Curtain:
    """An import finder that hides scipy.linalg from some threads; all others import it as ever."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Leave a module to the finders behind this one.

        Raises:
            ModuleNotFoundError: it is hidden from this thread.
        """
        del path, target
        if name == "scipy.linalg" and threading.get_ident() in self.threads:
            raise ModuleNotFoundError(f"{name} is hidden from Numba for now", name=name)


_curtain = _Curtain()
_patching = threading.RLock()


@contextmanager
def without_linear_algebra() -> Iterator[None]:
    """Hide scipy.linalg from Numba, which loads it with the first kernel in case one needs it; none of ours does.

    Saves 0.12 s of every start and 13 MB. (filterpy brings scipy along, but tracking does not load it.) It is hidden
    from the calling thread alone. The finder that does it stays: another thread that is importing something may be
    going through the list of finders, and would miss one if another were taken out.
    """
    with _patching:
        if _curtain not in sys.meta_path:
            sys.meta_path.insert(0, _curtain)
    thread = threading.get_ident()
    _curtain.threads.append(thread)
    try:
        yield
    finally:
        _curtain.threads.remove(thread)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let Numba load kernels from its cache without first getting its compiler ready, which none of them needs.

    A kernel that is not in the cache is compiled all the same: the compiler gets itself ready then. Saves 0.1 s.
    Kernels of other threads are loaded as ever; a second thread that wants the same waits until the first is done.
    This reaches into Numba; one that is made otherwise loads its kernels in its own way.
    """
    with _patching:
        undo = _let_this_thread_load_alone()
        try:
            yield
        finally:
            undo()


def _let_this_thread_load_alone() -> Callable[[], None]:
    """Do what `without_compiler` says; gives what undoes it."""
    try:
        from numba.core.caching import Cache
        from numba.core.runtime import rtsys

        load, initialize = Cache.load_overload, rtsys.initialize
    except (ImportError, AttributeError):
        log.debug("Numba has no cache or runtime of the known shape", exc_info=True)
        return lambda: None
    thread = threading.get_ident()

    def load_alone(cache: object, *arguments: Any, **named: Any) -> object:
        if threading.get_ident() == thread:
            try:
                _, context = arguments  # signature, compiler
                initialize(context)  # the memory of arrays: the one part that kernels need
                context.refresh = lambda: None  # nobody else sees it: Numba holds its lock of all compilers meanwhile
                try:
                    return load(cache, *arguments, **named)
                finally:
                    del context.refresh
            except Exception:
                log.debug("Numba loads a kernel in its own way", exc_info=True)
        return load(cache, *arguments, **named)

    def undo() -> None:
        Cache.load_overload = load

    Cache.load_overload = load_alone
    return undo


def give_back() -> None:
    """On Linux, return freed heap and the code and constants of our libraries: 65 MB after the imports, in 10 ms.

    They are maps of files: whatever is wanted again comes back by itself. Little is: not what a library needs once,
    to be loaded, nor Numba's compiler. A peak is kept low by giving back between the steps of a start.

    The system is asked what is mapped, then told what to take: a map that another thread takes away between the two,
    and whose place memory of its own takes at once, would be emptied. Only maps of libraries are touched, therefore:
    Python unloads none, and files of data, which do come and go, are left alone. What remains is a library that
    unloads another one in those very microseconds.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)
    with suppress(OSError):  # a sandbox may hide what is mapped; then the libraries simply stay
        for start, end in _unwritten():
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class _Map:
    """A line of /proc/self/maps."""

    start: int
    end: int
    rights: str
    file: tuple[str, str]  # device, inode
    path: str

    @classmethod
    def read(cls, line: str) -> _Map:
        span, rights, _, device, inode, *path = line.split(maxsplit=5)
        start, end = (int(place, 16) for place in span.split("-"))
        return cls(start, end, rights, (device, inode), "".join(path))


def _unwritten() -> Iterator[tuple[int, int]]:
    """The larger read-only maps of libraries, from and to, in which no page differs from the file.

    A loader writes to some maps, to relocate them, before it makes them read-only: such pages would not come back.
    Source: proc(5); Linux, Documentation/admin-guide/mm/pagemap.rst.
    """
    maps = [_Map.read(line) for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    libraries = _libraries(maps)
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for map_ in maps:
            if map_.rights[:2] != "r-" or map_.file not in libraries or map_.end - map_.start < SMALLEST:
                continue
            first, count = map_.start // mmap.PAGESIZE, (map_.end - map_.start) // mmap.PAGESIZE
            pages = np.frombuffer(os.pread(pagemap.fileno(), 8 * count, 8 * first), np.uint64)
            own = (pages & SWAPPED != 0) | (pages & (PRESENT | OF_FILE) == PRESENT)
            if not own.any():
                yield map_.start, map_.end


def _libraries(maps: Sequence[_Map]) -> set[tuple[str, str]]:
    """Files of ours with code whose last map can be written to; what a host program has loaded is not ours to take.

    That is the map which a loader makes last: where it is missing, a library is just being loaded, and its first map
    still lies where others will.
    """
    last = {map_.file: map_.rights for map_ in maps}
    code = {map_.file for map_ in maps if "x" in map_.rights and map_.file[1] != "0" and _is_ours(map_.path)}
    return {file for file in code if "w" in last[file]}


def _is_ours(path: str) -> bool:
    file = Path(path)
    return file.name.startswith(PYTHONS) or any(part.partition(".")[0] in OURS for part in file.parent.parts)
