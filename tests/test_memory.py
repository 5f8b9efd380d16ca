"""Memory is spared and given back without anything being lost."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from facetrack.pipeline.memory import SMALLEST, give_back, without_linear_algebra
from facetrack.tracker.codecs import decode_vectors
from facetrack.tracker.proposals import mean_of_highest

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is given back on Linux alone")


def resident_kb(library: str) -> int:
    """Resident size of all read-only maps of a file."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            inside = library in line and " r-" in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@LINUX
def test_the_compilers_code_leaves_and_comes_back_when_it_is_wanted() -> None:
    vectors = np.ones((1, 2, 8, 2), np.float32)
    xy, _ = decode_vectors(vectors, 4.0, 1.2, 3.0)
    before = resident_kb("libllvmlite")
    give_back()
    assert resident_kb("libllvmlite") < before / 4
    again, _ = decode_vectors(vectors, 4.0, 1.2, 3.0)  # what is compiled still runs
    np.testing.assert_array_equal(again, xy)
    mean_of_highest(vectors[..., :1], 1)  # and what is not is compiled


@LINUX
@pytest.mark.parametrize("written", [False, True])
def test_a_read_only_map_holds_what_was_written_to_it_before(tmp_path: Path, *, written: bool) -> None:
    file, size = tmp_path / "library", 4 * SMALLEST
    file.write_bytes(b"a" * size)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE) as map_:
        if written:
            map_[SMALLEST] = ord("b")
        assert map_[-1] == ord("a")
        place = ctypes.addressof(ctypes.c_char.from_buffer(map_))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(place), ctypes.c_size_t(size), mmap.PROT_READ) == 0
        before = resident_kb(str(file))
        give_back()
        after = resident_kb(str(file))
        assert (after == before) if written else (after == 0 < before)
        assert map_[SMALLEST] == ord("b" if written else "a")
        assert map_[-1] == ord("a")


def test_linear_algebra_is_hidden_for_a_while_and_then_there_again() -> None:
    program = """
from facetrack.pipeline.memory import without_linear_algebra
with without_linear_algebra():
    try:
        import scipy.linalg
    except ImportError:
        print("hidden")
import scipy.linalg
with without_linear_algebra():
    import scipy.linalg
print("there")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["hidden", "there"]


def test_linear_algebra_that_is_loaded_already_stays() -> None:
    import scipy.linalg

    with without_linear_algebra():
        assert sys.modules["scipy.linalg"] is scipy.linalg


KERNELS = """
import sys
from numba import njit
from facetrack.pipeline.memory import without_compiler

@njit(cache=True)
def doubled(values):
    total = 0.0
    for value in values:
        total += 2 * value
    return total

with without_compiler():
    import numpy as np
    print(doubled(np.ones(3)), sum(doubled.stats.cache_hits.values()), "numba.np.npyimpl" in sys.modules)
print(doubled(np.ones(3, np.float32)), sum(doubled.stats.cache_misses.values()))
"""


def test_the_compiler_is_made_ready_only_where_a_kernel_is_missing(tmp_path: Path) -> None:
    """The first process compiles both kernels, the second finds them in the cache."""
    (tmp_path / "kernels.py").write_text(KERNELS, encoding="utf-8")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(tmp_path / "kernels.py")]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
        for _ in range(2)
    )
    assert first == ["6.0", "0", "True", "6.0", "2"]
    assert second == ["6.0", "1", "False", "6.0", "0"]
