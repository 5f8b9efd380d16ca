"""Keeps the memory of a start low: what tracking does not need is not loaded, or returned to the system."""

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
# packages that we depend on, by their folders (numpy or numpy.libs), and libraries of Python by prefixes of their files
OUR_PACKAGES = {"llvmlite", "numba", "numpy", "onnxruntime", "cv2", "av", "tensorrt", "tensorrt_libs"}
OUR_PACKAGES |= {
    f"opencv_{kind}" for kind in ("python", "python_headless", "contrib_python", "contrib_python_headless")
}
PYTHON_LIBRARIES = ("libpython", "libcrypto", "libstdc++", "libc.so")
MADV_DONTNEED = 4  # sys/mman.h
MIN_MAPPING_BYTES = 1 << 16  # hundreds of smaller mappings hold next to nothing
SWAPPED, FILE_BACKED, PRESENT = np.uint64(1 << 62), np.uint64(1 << 61), np.uint64(1 << 63)  # of a page, in pagemap


class _ImportBlocker:
    """An import finder that hides scipy.linalg from some threads and leaves it to the other finders for the rest."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Leave a module to the next finders.

        Raises:
            ModuleNotFoundError: it is hidden from this thread.
        """
        del path, target
        if name == "scipy.linalg" and threading.get_ident() in self.threads:
            raise ModuleNotFoundError(f"{name} is hidden from Numba for now", name=name)


_blocker = _ImportBlocker()
_patching = threading.RLock()


@contextmanager
def without_linear_algebra() -> Iterator[None]:
    """Hide scipy.linalg from Numba, which loads it with the first kernel in case one needs it; none of ours does.

    Saves 0.12 s of every start and 13 MB. (filterpy depends on scipy, but tracking does not load it.) Only the calling
    thread is affected. The finder stays in `sys.meta_path`: another thread that iterates over the list while it imports
    would skip a finder if one were removed.
    """
    with _patching:
        if _blocker not in sys.meta_path:
            sys.meta_path.insert(0, _blocker)
    thread = threading.get_ident()
    _blocker.threads.append(thread)
    try:
        yield
    finally:
        _blocker.threads.remove(thread)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let Numba load kernels from its cache without initialising its compiler, which saves 0.1 s.

    A kernel that is not in the cache is compiled all the same: the compiler is initialised then. Only the calling
    thread is affected; a second thread that enters waits until the first has left. This patches Numba's internals;
    if a version of Numba has different ones, kernels are loaded in its usual way.
    """
    with _patching:
        undo = _patch_loading()
        try:
            yield
        finally:
            undo()


def _patch_loading() -> Callable[[], None]:
    """Patch Numba for this thread as `without_compiler` says; gives the function that reverts it."""
    try:
        from numba.core.caching import Cache
        from numba.core.runtime import rtsys

        load, initialize = Cache.load_overload, rtsys.initialize
    except (ImportError, AttributeError):
        log.debug("Numba has no cache or runtime of the known shape", exc_info=True)
        return lambda: None
    thread = threading.get_ident()

    def load_without_compiler(cache: object, *arguments: Any, **named: Any) -> object:
        if threading.get_ident() == thread:
            try:
                _, context = arguments  # signature, compiler
                initialize(context)  # Numba's runtime, which manages arrays: the one part that kernels need
                context.refresh = lambda: None  # no other thread sees it: Numba holds its compiler lock meanwhile
                try:
                    return load(cache, *arguments, **named)
                finally:
                    del context.refresh
            except Exception:
                log.debug("Numba loads a kernel in its usual way", exc_info=True)
        return load(cache, *arguments, **named)

    def undo() -> None:
        Cache.load_overload = load

    Cache.load_overload = load_without_compiler
    return undo


def release_memory() -> None:
    """On Linux, return freed heap and the clean pages of our libraries to the system: 65 MB after imports, in 10 ms.

    Clean pages of a file are read again when they are accessed. Few are: neither what libraries need once, while they
    are loaded, nor Numba's compiler. To keep the peak low, call this between the steps of a start.

    The mappings are listed first and released then. If another thread unmapped one in between and mapped anonymous
    memory at its address, that memory would be cleared. Therefore only mappings of libraries are released: Python
    unloads none, while data files are mapped and unmapped. The remaining risk is a library that unloads another one
    within those microseconds.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)
    with suppress(OSError):  # a sandbox may hide the mappings; then they are not released
        for start, end in _clean_mappings():
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class _Mapping:
    """A line of /proc/self/maps: addresses, permissions, device and inode, path."""

    start: int
    end: int
    permissions: str
    file: tuple[str, str]  # device, inode
    path: str

    @classmethod
    def read(cls, line: str) -> _Mapping:
        span, permissions, _, device, inode, *path = line.split(maxsplit=5)
        start, end = (int(place, 16) for place in span.split("-"))
        return cls(start, end, permissions, (device, inode), "".join(path))


def _clean_mappings() -> Iterator[tuple[int, int]]:
    """Start and end addresses of the larger read-only mappings of libraries in which no page differs from the file.

    The loader relocates some mappings before it makes them read-only: such private pages could not be read again.
    Source: proc(5); Linux, Documentation/admin-guide/mm/pagemap.rst.
    """
    maps = [_Mapping.read(line) for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    libraries = _libraries(maps)
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for mapping in maps:
            if (
                mapping.permissions[:2] != "r-"
                or mapping.file not in libraries
                or mapping.end - mapping.start < MIN_MAPPING_BYTES
            ):
                continue
            first, count = mapping.start // mmap.PAGESIZE, (mapping.end - mapping.start) // mmap.PAGESIZE
            pages = np.frombuffer(os.pread(pagemap.fileno(), 8 * count, 8 * first), np.uint64)
            private = (pages & SWAPPED != 0) | (pages & (PRESENT | FILE_BACKED) == PRESENT)
            if not private.any():
                yield mapping.start, mapping.end


def _libraries(maps: Sequence[_Mapping]) -> set[tuple[str, str]]:
    """Device and inode of our libraries that are fully loaded; those of a host program are not released.

    The loader maps the writable segment last: where it is missing, a library is just being loaded, and its first
    mapping still covers the addresses of the others.
    """
    last = {mapping.file: mapping.permissions for mapping in maps}
    code = {
        mapping.file
        for mapping in maps
        if "x" in mapping.permissions and mapping.file[1] != "0" and _is_ours(mapping.path)
    }
    return {file for file in code if "w" in last[file]}


def _is_ours(path: str) -> bool:
    file = Path(path)
    return file.name.startswith(PYTHON_LIBRARIES) or any(
        part.partition(".")[0] in OUR_PACKAGES for part in file.parent.parts
    )
