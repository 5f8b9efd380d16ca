"""Checks what networks need on an NVIDIA GPU: driver, CUDA for Python, TensorRT, providers, plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..engines.card import ModelCard, find_card
from ..engines.cuda_probe import Gpu, find_gpu
from ..tracker.errors import FacetrackError
from .check import Check, Status
from .machine import version_of

TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
DRIVERS = ("pycuda", "cuda-bindings")
NEWEST_KNOWN = 11  # newest major release of TensorRT whose API the tests check
CUDA_FOR_CU13 = 13  # major version that the driver must support for tensorrt-cu13
Versions = Callable[[str], str | None]


def examine_gpu(versions: Versions = version_of, find: Callable[[], Gpu] = find_gpu) -> Iterator[Check]:
    """Run the checks of a GPU. If TensorRT is not installed, a missing GPU counts as absent, not as failed.

    Args:
        versions: gives the installed version of a distribution, or None.
        find: describes the GPU; raises a FacetrackError with the reason where there is none.
    """
    severity: Status = "failed" if any(versions(package) for package in TENSORRT) else "absent"
    try:
        gpu = find()
    except FacetrackError as error:
        reason, _, remedy = str(error).partition("; ")
        yield Check("gpu", severity, reason, remedy)
        yield Check("backend tensorrt", severity, _installed(versions, TENSORRT) or "not installed; it needs a GPU")
        return
    driver = f"driver {gpu.driver}, " if gpu.driver else ""
    detail = f"{gpu.name}, compute capability {gpu.capability}, {gpu.memory_gb} GB, {driver}CUDA up to {gpu.cuda}"
    yield Check("gpu", "ok", detail)
    yield _cuda(versions)
    tensorrt = _tensorrt(versions, gpu)
    yield tensorrt
    yield _providers()
    if tensorrt.status == "ok":
        yield from _plans()


def _installed(versions: Versions, packages: tuple[str, ...]) -> str:
    return ", ".join(f"{package} {versions(package)}" for package in packages if versions(package))


def _cuda(versions: Versions) -> Check:
    found = _installed(versions, DRIVERS)
    if found:
        return Check("cuda for python", "ok", f"{found}; the first is used")
    remedy = "pip install pycuda (compiles, with the CUDA toolkit), or pip install cuda-bindings (does not)"
    return Check("cuda for python", "absent", "neither pycuda nor cuda-bindings is installed", remedy)


def _tensorrt(versions: Versions, gpu: Gpu) -> Check:
    found = _installed(versions, TENSORRT)
    major = int(gpu.cuda.partition(".")[0])
    package = "tensorrt-cu13" if major >= CUDA_FOR_CU13 else "tensorrt-cu12"
    install = f"pip install {package} --extra-index-url https://pypi.nvidia.com"
    if not found:
        return Check("backend tensorrt", "absent", "not installed", install)
    if versions("tensorrt-cu13") and major < CUDA_FOR_CU13:
        detail = f"{found} is made for CUDA 13, this driver supports up to {gpu.cuda}"
        return Check("backend tensorrt", "failed", detail, f"install a newer driver, or: {install}")
    try:
        from ..engines.tensorrt_build import import_tensorrt

        version = import_tensorrt().__version__
    except FacetrackError as error:
        return Check("backend tensorrt", "failed", str(error), install)
    if int(version.partition(".")[0]) > NEWEST_KNOWN:
        detail = f"{version} is newer than the version that facetrack was written for ({NEWEST_KNOWN})"
        return Check("backend tensorrt", "ok", detail)
    return Check("backend tensorrt", "ok", version)


def _providers() -> Check:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return Check("onnx on the gpu", "absent", str(error), "pip install onnxruntime-gpu")
    names = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    if "CUDA" in names:
        return Check("onnx on the gpu", "ok", f"ONNX Runtime's providers: {', '.join(names)}")
    detail = f"ONNX Runtime was built without CUDA (providers: {', '.join(names)})"
    return Check("onnx on the gpu", "absent", detail, "pip uninstall -y onnxruntime && pip install onnxruntime-gpu")


def _plans() -> Iterator[Check]:
    """Whether `--backend auto` would use TensorRT."""
    for network, task in (("gv", "align"), ("bbfcn", "detect")):
        try:
            yield _plan(find_card(network, task))
        except FacetrackError as error:
            yield Check(f"plan of {network}", "absent", str(error))


def _plan(card: ModelCard) -> Check:
    from ..engines.plan_cache import PlanCache
    from ..engines.tensorrt_open import default_request, find_toolkit, plan_key

    toolkit, cache = find_toolkit(), PlanCache()
    for weights in card.weights.values():
        name = weights.path.stem
        plan, reason = cache.find(name, cache.latest(name, plan_key(toolkit, weights, default_request(weights))))
        if plan is None:
            detail = f"{name}: no plan for this machine: {reason}"
            return Check(
                f"plan of {card.name}", "absent", detail, f"facetrack export {card.name} --to tensorrt --out ."
            )
    return Check(f"plan of {card.name}", "ok", "built and proved")
