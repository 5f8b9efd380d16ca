"""Memory is spared and given back without anything being lost."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit
from numba.core.caching import Cache

from facetrack.pipeline.memory import (
    MIN_MAPPING_BYTES,
    OUR_PACKAGES,
    release_memory,
    without_compiler,
    without_linear_algebra,
)
from facetrack.tracker.codecs import decode_vectors, mean_of_highest

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
def test_release_memory_evicts_the_compiler_and_kernels_still_run_and_compile() -> None:
    vectors = np.ones((1, 2, 8, 2), np.float32)
    xy, _ = decode_vectors(vectors, 4.0, 1.2, 3.0)
    njit(lambda value: value + 1)(1)  # whatever was given back before, the compiler is there now
    before = resident_kb("libllvmlite")
    release_memory()
    assert resident_kb("libllvmlite") < before / 4
    again, _ = decode_vectors(vectors, 4.0, 1.2, 3.0)  # what is compiled still runs
    np.testing.assert_array_equal(again, xy)
    mean_of_highest(vectors[..., :1], 1)  # and what is not is compiled


READ, CODE, WRITE = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_EXEC, mmap.PROT_READ | mmap.PROT_WRITE
FOUR = 4 * MIN_MAPPING_BYTES
MOST = 0.75  # the kernel may take or move a few pages meanwhile


@contextmanager
def mapped(file: Path, *rights: int, written: bool = False) -> Iterator[mmap.mmap]:
    """Map a new file for this process alone; each part of `FOUR` bytes gets its rights, the first is written before."""
    file.write_bytes(b"a" * FOUR * len(rights))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), FOUR * len(rights), mmap.MAP_PRIVATE) as map_:
        if written:
            map_[MIN_MAPPING_BYTES] = ord("b")
        assert set(map_[MIN_MAPPING_BYTES + 1 :: mmap.PAGESIZE]) == {ord("a")}  # every page is there
        place = ctypes.addressof(ctypes.c_char.from_buffer(map_))
        for part, right in enumerate(rights):
            part_place = ctypes.c_void_p(place + part * FOUR)
            assert ctypes.CDLL(None).mprotect(part_place, ctypes.c_size_t(FOUR), right) == 0
        yield map_


def library(folder: Path, of: str = "llvmlite") -> Path:
    """Where a library of this package would be."""
    (folder / of).mkdir()
    return folder / of / "lib one.so"


@LINUX
@pytest.mark.parametrize("written", [False, True])
def test_release_memory_keeps_what_was_written_to_a_read_only_map(tmp_path: Path, *, written: bool) -> None:
    file = library(tmp_path)
    with mapped(file, READ, CODE, WRITE, written=written) as map_:
        before = resident_kb(str(file))
        release_memory()
        after = resident_kb(str(file))
        left_kb = FOUR // 1024 if written else 0  # of the first two parts: the first as well, or the second alone
        assert MOST * left_kb <= after <= left_kb < before
        assert map_[MIN_MAPPING_BYTES] == ord("b" if written else "a")
        assert map_[FOUR + 1] == ord("a")


@LINUX
@pytest.mark.parametrize(
    "rights", [(READ,), (READ, WRITE), (READ, CODE), (READ, WRITE, CODE)], ids=["data", "written", "code", "unfinished"]
)
def test_release_memory_leaves_other_and_partly_loaded_files_alone(tmp_path: Path, rights: tuple[int, ...]) -> None:
    """Another thread may take such a map away, or lay another one over it, while memory is given back."""
    file = library(tmp_path)
    with mapped(file, *rights):
        before = resident_kb(str(file))
        release_memory()
        assert resident_kb(str(file)) >= MOST * before > 0


@LINUX
@pytest.mark.parametrize("ours", ["av", "numpy.libs", "opencv_python_headless.libs"])
def test_release_memory_leaves_libraries_of_the_host_program_alone(tmp_path: Path, ours: str) -> None:
    others, own = library(tmp_path, "torch"), library(tmp_path, ours)
    with mapped(others, READ, CODE, WRITE), mapped(own, READ, CODE, WRITE):
        before = resident_kb(str(others))
        release_memory()
        assert resident_kb(str(others)) >= MOST * before > 0
        assert resident_kb(str(own)) == 0


def test_our_packages_include_the_installed_dependencies() -> None:
    packages = Path(np.__file__).parents[1]
    assert {
        name for name in ("llvmlite", "numpy", "onnxruntime", "cv2", "av") if (packages / name).is_dir()
    } <= OUR_PACKAGES
    assert {path.name.partition(".")[0] for path in packages.glob("opencv*.libs")} <= OUR_PACKAGES


def test_scipy_linalg_is_hidden_until_the_context_ends() -> None:
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


HIDDEN_HERE = """
import threading
from facetrack.pipeline.memory import without_linear_algebra

def hidden():
    try:
        import scipy.linalg
    except ImportError:
        return True
    return False

began, over, found = threading.Event(), threading.Event(), []

def elsewhere():
    with without_linear_algebra():
        began.set()
        over.wait(60)
        found.append(hidden())

thread = threading.Thread(target=elsewhere)
thread.start()
with without_linear_algebra():
    began.wait(60)
    found.append(hidden())
over.set()
thread.join()
with without_linear_algebra():
    thread = threading.Thread(target=lambda: found.append(hidden()))
    thread.start()
    thread.join()
print(found)
"""


def test_scipy_linalg_is_hidden_only_from_threads_within_the_context() -> None:
    """Two at once, one of which ends first; then another one imports it."""
    done = subprocess.run([sys.executable, "-c", HIDDEN_HERE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, True, False]"


def test_scipy_linalg_stays_if_already_loaded() -> None:
    import scipy.linalg

    with without_linear_algebra():
        assert sys.modules["scipy.linalg"] is scipy.linalg


def test_without_compiler_restores_numba_after_the_last_thread_leaves() -> None:
    """Each of two threads leaves as soon as the other one wants in."""
    load, found = Cache.load_overload, []

    def work() -> None:
        for _ in range(100):
            with without_compiler(), without_compiler():
                found.append(Cache.load_overload is load)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Cache.load_overload is load
    assert found == [False] * 200


class Strict:
    """A compiler that takes no other attributes."""

    __slots__ = ()


class Fresh:
    """A compiler that cannot do without being refreshed."""

    fresh = False

    def refresh(self) -> None:
        self.fresh = True


def load_when_fresh(_: object, signature: str, context: Fresh) -> str:
    context.refresh()
    if not context.fresh:
        raise TypeError("not ready")
    return signature


@pytest.mark.parametrize(
    ("load", "arguments", "named"),
    [
        (lambda _, signature, context, how: signature, ("kernel", Fresh(), "quickly"), {}),  # noqa: ARG005
        (lambda _, signature, *, target: signature, ("kernel",), {"target": Fresh()}),  # noqa: ARG005
        (lambda _, signature, context: signature, ("kernel", Strict()), {}),  # noqa: ARG005
        (load_when_fresh, ("kernel", Fresh()), {}),
    ],
    ids=["more arguments", "named ones", "no other attributes", "wants refreshing"],
)
def test_without_compiler_supports_other_signatures_of_load_overload(
    load: Any, arguments: tuple[Any, ...], named: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "load_overload", load)
    with without_compiler():
        assert Cache.load_overload(object(), *arguments, **named) == "kernel"
    assert Cache.load_overload is load


@pytest.mark.parametrize("missing", ["numba.core.caching", "numba.core.runtime"])
def test_without_compiler_leaves_a_numba_lacking_its_internals_unchanged(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Cache.load_overload
    monkeypatch.setitem(sys.modules, missing, None)
    with without_compiler():
        assert Cache.load_overload is load


def test_numba_cache_folder_is_set_before_numba_reads_it(tmp_path: Path) -> None:
    program = """
import os, facetrack.pipeline.memory, numba.core.config
print(numba.core.config.CACHE_DIR == os.environ["NUMBA_CACHE_DIR"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert done.stdout.strip() == "True"


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


def test_compiler_is_initialised_only_if_a_kernel_is_missing(tmp_path: Path) -> None:
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
