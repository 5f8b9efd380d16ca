"""Find the NVIDIA driver and GPU, or the reason why there is none, using only the driver's C interface.

TensorRT's runtime ends the process if there is no driver, so this is called first.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from typing import Any

from ..tracker.errors import BackendError

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MANAGEMENT = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
# CUresult in cuda.h; TOO_OLD is from cudaError_t in driver_types.h, which has the other numbers, too
OUT_OF_MEMORY, TOO_OLD, NO_DEVICE, UNKNOWN, MISMATCH, TOO_NEW, NOT_READY = 2, 35, 100, 999, 803, 804, 802
REASONS = {
    OUT_OF_MEMORY: "the GPU's memory is full; end other programs that use it (see nvidia-smi), or use smaller batches",
    TOO_OLD: "the driver is older than the CUDA version that this was built for; install a newer driver",
    NO_DEVICE: "no NVIDIA GPU is visible: there is none, CUDA_VISIBLE_DEVICES hides it, or the container has no "
    "access to it (docker run --gpus all)",
    UNKNOWN: "the driver does not respond; after an update or suspend, restart the machine or reload its module "
    "(sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm)",
    MISMATCH: "the driver's library and its kernel module have different versions; restart the machine",
    TOO_NEW: "this GPU does not support the installed CUDA compatibility package; install a newer driver",
    NOT_READY: "the system of GPUs is not ready; start the fabric manager (sudo systemctl start nvidia-fabricmanager)",
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first visible GPU.

    Attributes:
        name: trade name.
        capability: "major.minor" of its compute capability.
        memory_gb: 10^9 bytes.
        driver: version of the driver, e.g. "580.159.03"; "" if it is not known.
        cuda: the newest CUDA that the driver supports, e.g. "13.0".
    """

    name: str
    capability: str
    memory_gb: float
    driver: str
    cuda: str


def find_gpu() -> Gpu:
    """Describe the first visible GPU.

    Raises:
        BackendError: there is no driver or no GPU; the message says what to do.
    """
    cuda = load_driver()
    device, major, minor = (ctypes.c_int() for _ in range(3))
    name, memory, version = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    check(cuda.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    check(cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device), "cuDeviceGetAttribute")  # cuda.h: CC major
    check(cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device), "cuDeviceGetAttribute")
    check(cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device), "cuDeviceTotalMem")
    check(cuda.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    return Gpu(
        name=name.value.decode(),
        capability=f"{major.value}.{minor.value}",
        memory_gb=round(memory.value / 1e9, 1),
        driver=_driver_version(),
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def load_driver(library: str = DRIVER) -> Any:
    """Load and initialise the driver's library.

    Raises:
        BackendError: it is missing, or cannot be initialised.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        raise BackendError(
            f"no NVIDIA driver: {library} cannot be loaded; install the driver of your GPU from "
            "https://www.nvidia.com/drivers, or start the container with access to it (docker run --gpus all)"
        ) from error
    check(cuda.cuInit(0), "cuInit")
    return cuda


def check(status: int, call: str) -> None:
    """Check the status of a driver call.

    Raises:
        BackendError: it is not 0 (CUDA_SUCCESS).
    """
    if status:
        raise BackendError(f"NVIDIA driver: {call} returns {status}: {REASONS.get(status, 'see CUresult in cuda.h')}")


def explained(text: str) -> str:
    """Add the reason to another library's message about CUDA if the message names a known error number."""
    number = re.search(r"\berror:? ([0-9]+)\b", text)
    reason = REASONS.get(int(number[1])) if number else None
    return f"{text}: {reason}" if reason else text


def _driver_version() -> str:
    """The driver's version from NVML; "" if that is missing, as in some containers."""
    try:
        nvml = ctypes.CDLL(MANAGEMENT)
    except OSError:
        return ""
    text = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, len(text)):
        return ""
    nvml.nvmlShutdown()
    return text.value.decode()
