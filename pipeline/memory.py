"""What starting up costs in memory and tracking does not need: not loaded, or given back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MADV_DONTNEED = 4  # sys/mman.h


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


def give_back() -> None:
    """On Linux, return freed heap (17 MB after loading networks) and the code of Numba's compiler (50 MB).

    The code is a read-only map of a file, so that whatever of it is wanted again comes back by itself.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)
    for start, end in _code_of("libllvmlite"):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _code_of(library: str) -> list[tuple[int, int]]:
    """Where the executable part of a shared library is mapped; such pages are never written to."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    spans = [line.split()[0].split("-") for line in lines if library in line and " r-xp " in line]
    return [(int(start, 16), int(end, 16)) for start, end in spans]
