"""What `facetrack doctor` says about a GPU, on machines that are not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import pytest
from fakes_gpu import H200

from facetrack.engines.cuda_probe import NO_DEVICE, REASONS, Gpu, check, load_driver
from facetrack.pipeline.check import Check
from facetrack.pipeline.doctor_gpu import examine_gpu
from facetrack.tracker.errors import BackendError


def installed(**versions: str) -> Callable[[str], str | None]:
    return lambda package: versions.get(package.replace("-", "_"))


def findings(gpu: Gpu | BackendError = H200, **versions: str) -> dict[str, Check]:
    def find() -> Gpu:
        if isinstance(gpu, BackendError):
            raise gpu
        return gpu

    return {check.subject: check for check in examine_gpu(installed(**versions), find)}


NO_DRIVER = BackendError("no NVIDIA driver: libcuda.so.1 cannot be loaded; install the driver of your GPU")


def test_without_a_gpu_and_without_tensorrt_nothing_is_broken() -> None:
    found = findings(NO_DRIVER)
    assert found["gpu"] == Check(
        "gpu", "absent", "no NVIDIA driver: libcuda.so.1 cannot be loaded", "install the driver of your GPU"
    )
    assert {check.status for check in found.values()} == {"absent"}


def test_tensorrt_without_a_driver_is_broken() -> None:
    assert findings(NO_DRIVER, tensorrt="11.4.0")["gpu"].status == "failed"


def test_the_gpu_is_described() -> None:
    detail = findings()["gpu"].detail
    assert detail == "NVIDIA H200, compute capability 9.0, 143.8 GB, driver 580.159.03, CUDA up to 13.0"


def test_each_missing_package_comes_with_the_line_that_installs_it() -> None:
    found = findings()
    assert found["cuda for python"].remedy.startswith("pip install pycuda")
    assert "pip install cuda-bindings" in found["cuda for python"].remedy
    assert found["backend tensorrt"].remedy.startswith("pip install tensorrt-cu13 ")


def test_an_older_driver_is_offered_the_release_that_it_supports() -> None:
    older = replace(H200, cuda="12.4")
    assert "tensorrt-cu12" in findings(older)["backend tensorrt"].remedy
    mismatch = findings(older, tensorrt_cu13="11.4.0")["backend tensorrt"]
    assert mismatch.status == "failed"
    assert "made for CUDA 13, this driver supports up to 12.4" in mismatch.detail


def test_pycuda_is_named_before_cuda_bindings() -> None:
    found = findings(cuda_bindings="13.5.0", pycuda="2026.1")["cuda for python"]
    assert found.detail == "pycuda 2026.1, cuda-bindings 13.5.0; the first is used"


def test_tensorrt_that_cannot_be_imported_is_a_failure() -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("this machine has TensorRT")
    broken = findings(tensorrt="11.4.0")["backend tensorrt"]
    assert broken.status == "failed"
    assert "cannot be imported" in broken.detail


@pytest.mark.parametrize("status", REASONS)
def test_driver_status_codes_are_explained(status: int) -> None:
    with pytest.raises(BackendError, match=rf"cuInit returns {status}: \w+ .*\w"):
        check(status, "cuInit")


def test_no_device_error_names_the_ways_a_gpu_can_be_hidden() -> None:
    with pytest.raises(BackendError, match=r"CUDA_VISIBLE_DEVICES .*docker run --gpus all"):
        check(NO_DEVICE, "cuInit")


def test_an_unknown_status_is_given_as_it_is() -> None:
    with pytest.raises(BackendError, match="returns 4711: see CUresult"):
        check(4711, "cuInit")


def test_missing_driver_library_raises_backend_error() -> None:
    with pytest.raises(BackendError, match=r"no NVIDIA driver: none\.so\.1 cannot be loaded; install"):
        load_driver("none.so.1")
