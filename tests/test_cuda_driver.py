"""CUDA by its two packages, which are not there: what they raise or answer is told in words."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes_gpu import PyCudaError, PyCudaLogicError, PyCudaMemoryError, fake_cuda_bindings, fake_pycuda

from facetrack.engines.cuda_driver import CudaBindings, PyCuda
from facetrack.engines.cuda_probe import check, explained
from facetrack.tracker.errors import BackendError

LIBRARY = SimpleNamespace(cuCtxPopCurrent_v2=lambda _: 0)


def pycuda(monkeypatch: pytest.MonkeyPatch, failing: str = "", error: PyCudaError | None = None) -> PyCuda:
    package = fake_pycuda(failing, error)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", package.driver)
    return PyCuda(LIBRARY)


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tells the version of cuda-bindings."""
    (tmp_path / "cuda_bindings-13.5.0.dist-info").mkdir()
    (tmp_path / "cuda_bindings-13.5.0.dist-info" / "METADATA").write_text("Name: cuda-bindings\nVersion: 13.5.0\n")
    monkeypatch.syspath_prepend(tmp_path)


def bindings(monkeypatch: pytest.MonkeyPatch, failing: str = "", status: int = 0) -> CudaBindings:
    package = fake_cuda_bindings(failing, status)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=package))
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    return CudaBindings(LIBRARY)


def use(cuda: Any) -> None:
    """Everything that an engine does, but graphs."""
    with cuda.current():
        stream = cuda.stream()
        buffer = cuda.buffer(16)
        cuda.upload(buffer, 16, stream)
        cuda.download(buffer, 16, stream)
        cuda.synchronize(stream)
        cuda.free(buffers=[], graphs=[], stream=stream)
    cuda.close()


def test_both_packages_run_without_error_and_report_their_version(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, name in ((pycuda(monkeypatch), "pycuda 2026.1"), (bindings(monkeypatch), "cuda-bindings 13.5.0")):
        assert cuda.name == name
        use(cuda)


PYCUDA_CALLS = [
    "init",
    "Device",
    "retain_primary_context",
    "push",
    "pop",
    "Stream",
    "mem_alloc",
    "memcpy_htod_async",
    "memcpy_dtoh_async",
    "synchronize",
    "detach",
]


@pytest.mark.parametrize("call", PYCUDA_CALLS)
def test_every_pycuda_error_becomes_a_backend_error(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with pytest.raises(BackendError, match=f"NVIDIA driver: {call} failed: invalid argument") as caught:
        use(pycuda(monkeypatch, call))
    assert isinstance(caught.value.__cause__, PyCudaLogicError)


def test_pycudas_memory_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    full = PyCudaMemoryError("cuMemAlloc failed: out of memory")
    with pytest.raises(BackendError, match=r"cuMemAlloc failed: out of memory: the GPU's memory is full; end "):
        use(pycuda(monkeypatch, "mem_alloc", full))


BINDINGS_CALLS = [
    "cuInit",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent",
    "cuCtxPopCurrent",
    "cuStreamCreate",
    "cuMemAlloc",
    "cuMemHostAlloc",
    "cuMemcpyHtoDAsync",
    "cuMemcpyDtoHAsync",
    "cuStreamSynchronize",
    "cuStreamDestroy",
    "cuDevicePrimaryCtxRelease",
]


@pytest.mark.parametrize("call", BINDINGS_CALLS)
def test_failing_cuda_bindings_call_raises_naming_the_call(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with pytest.raises(BackendError, match=f"NVIDIA driver: {call} returns 2: the GPU's memory is full; end "):
        use(bindings(monkeypatch, call, 2))


def test_outdated_driver_raises_advising_a_newer_one() -> None:
    with pytest.raises(BackendError, match=r"returns 35: the driver is older than the CUDA .*; install a newer driver"):
        check(35, "cudaGetDevice")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("CUDA initialization failure with error: 35. Please check", "Please check: the driver is older"),
        ("CUDA initialization failure with error 2", "error 2: the GPU's memory is full"),
        ("CUDA initialization failure with error: 4711", "error: 4711"),
        ("no kernel", "no kernel"),
        ("", ""),
    ],
)
def test_cuda_error_numbers_in_foreign_messages_are_explained(text: str, told: str) -> None:
    assert told in explained(text)
    assert explained(text).startswith(text)
