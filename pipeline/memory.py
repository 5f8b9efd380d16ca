"""What starting up costs in memory and tracking does not need: not loaded, or given back to the system."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numba.core.caching import Cache
from numba.core.runtime import rtsys

MADV_DONTNEED = 4  # sys/mman.h
SMALLEST = 1 << 16  # bytes of a map; hundreds of smaller ones hold next to nothing
SWAPPED, OF_FILE, PRESENT = np.uint64(1 << 62), np.uint64(1 << 61), np.uint64(1 << 63)  # of a page, in pagemap


@contextmanager
def without_linear_algebra() -> Iterator[None]:
    """Hide scipy.linalg from Numba, which loads it with the first kernel in case one needs it; none of ours does.

    Saves 0.12 s of every start and 13 MB. (filterpy brings scipy along, but tracking does not load it.)
    """
    if "scipy.linalg" in sys.modules:
        yield
        return
    sys.modules["scipy.linalg"] = None  # type: ignore[assignment] # Python's way to say that it cannot be imported
    try:
        yield
    finally:
        del sys.modules["scipy.linalg"]


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let Numba load kernels from its cache without first getting its compiler ready, which none of them needs.

    A kernel that is not in the cache is compiled all the same: the compiler gets itself ready then. Saves 0.1 s.
    """
    load = Cache.load_overload

    def load_alone(cache: Cache, signature: object, context: Any) -> object:
        rtsys.initialize(context)  # the memory of arrays: the one part that kernels need
        context.refresh = lambda: None
        try:
            return load(cache, signature, context)
        finally:
            del context.refresh

    Cache.load_overload = load_alone
    try:
        yield
    finally:
        Cache.load_overload = load


def give_back() -> None:
    """On Linux, return freed heap and the code and constants of all libraries: 65 MB after the imports, in 10 ms.

    They are maps of files: whatever is wanted again comes back by itself. Little is: not what a library needs once,
    to be loaded, nor Numba's compiler. A peak is kept low by giving back between the steps of a start.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)
    with suppress(OSError):  # a sandbox may hide what is mapped; then the libraries simply stay
        for start, end in _unwritten():
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _unwritten() -> Iterator[tuple[int, int]]:
    """The larger read-only maps of files, from and to, in which no page differs from the file.

    A loader writes to some maps, to relocate them, before it makes them read-only: such pages would not come back.
    Source: proc(5); Linux, Documentation/admin-guide/mm/pagemap.rst.
    """
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            span, rights, _, _, inode, *_ = line.split()
            start, end = (int(place, 16) for place in span.split("-"))
            if rights[:2] != "r-" or inode == "0" or end - start < SMALLEST:
                continue
            first, count = start // mmap.PAGESIZE, (end - start) // mmap.PAGESIZE
            pages = np.frombuffer(os.pread(pagemap.fileno(), 8 * count, 8 * first), np.uint64)
            own = (pages & SWAPPED != 0) | (pages & (PRESENT | OF_FILE) == PRESENT)
            if not own.any():
                yield start, end
