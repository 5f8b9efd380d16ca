"""From a card's weights to a running TensorRT engine: from the plan cache, or built, proved and cached."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..tracker.errors import BackendError
from . import graph, parity
from .card import Weights
from .cuda_driver import Cuda, open_cuda
from .cuda_probe import Gpu, find_gpu
from .onnx_backend import OnnxBackend
from .plan_cache import Built, PlanCache, PlanKey
from .tensorrt_backend import TensorRTBackend
from .tensorrt_build import PlanRequest, build_with_timings, import_tensorrt

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Toolkit:
    """TensorRT and the GPU of this machine.

    Attributes:
        trt: TensorRT's bindings.
        gpu: the first visible one.
        open_cuda: retains the GPU's primary context, once for each engine, which releases it.
    """

    trt: Any
    gpu: Gpu
    open_cuda: Callable[[], Cuda]


def find_toolkit() -> Toolkit:
    """Find the GPU, then TensorRT, whose runtime ends the process if there is no driver.

    Raises:
        BackendError: driver, GPU or TensorRT is missing; the message says which and what to do.
    """
    gpu = find_gpu()
    return Toolkit(import_tensorrt(), gpu, open_cuda)


def default_request(weights: Weights) -> PlanRequest:
    """The default plan: int8 if the file has symmetric Q/DQ pairs, else fp16."""
    quantised = weights.precision == "int8" and graph.is_symmetric_int8(weights.read())
    return fitted(PlanRequest("int8" if quantised else "fp16"), weights)


def fitted(request: PlanRequest, weights: Weights) -> PlanRequest:
    """Limit the request to batches of 1 for a network that takes any size: it scans one picture at a time.

    Raises:
        BackendError: onnx is not installed.
        CardError: the weights are missing or altered.
    """
    return replace(request, batches=(1,)) if graph.takes_any_size(weights.read()) else request


def plan_key(toolkit: Toolkit, weights: Weights, request: PlanRequest) -> PlanKey:
    """The key of a plan of these weights on this machine."""
    gpu = toolkit.gpu
    return PlanKey(
        onnx_sha256=weights.sha256,
        tensorrt=str(toolkit.trt.__version__),
        gpu=gpu.name,
        capability=gpu.capability,
        driver=gpu.driver,
        cuda=gpu.cuda,
        precision=request.precision,
        profile=f"batches {request.batches}, sizes {request.sizes}",
    )


def open_tensorrt(
    weights: Weights,
    proof: parity.Proof | None,
    request: PlanRequest | None = None,
    toolkit: Toolkit | None = None,
    cache: PlanCache | None = None,
) -> TensorRTBackend:
    """Open a plan; build, prove and store it first if there is none for exactly this graph and machine.

    Args:
        weights: an ONNX file of a card.
        proof: what a new plan is judged by; None forbids building.
        request: precision, batches and sizes; default: those of the plan exported last, else `default_request`.
        toolkit: default: `find_toolkit`.
        cache: default: the user's.
    Raises:
        BackendError: there is no driver, GPU or TensorRT, no proof for a new plan, or the new plan is wrong.
        CardError: the weights are missing or altered.
    """
    toolkit, cache = toolkit or find_toolkit(), cache or PlanCache()
    name, wanted = weights.path.stem, request or default_request(weights)
    key = plan_key(toolkit, weights, wanted)
    found = key if request else cache.latest(name, key)
    plan, reason = cache.find(name, found)
    if plan is None:
        if proof is None:
            raise BackendError(
                f"{name}: no TensorRT plan: {reason}; build it with `facetrack export MODEL --to tensorrt`"
            )
        build = partial(build_and_prove, toolkit, weights, wanted, proof, cache.timing_cache(key))
        found, plan = key, cache.get_or_build(name, key, build)
    return _engine(toolkit, plan, weights.read(), found.precision)


def _engine(toolkit: Toolkit, plan: bytes, content: bytes, precision: str) -> TensorRTBackend:
    """Load a plan; the order of its outputs comes from the ONNX file that it was built from."""
    outputs = graph.output_names(content)
    return TensorRTBackend(toolkit.trt, toolkit.open_cuda(), plan, outputs, precision)


def build_and_prove(
    toolkit: Toolkit, weights: Weights, request: PlanRequest, proof: parity.Proof, timing_cache: Path
) -> Built:
    """Build a plan and compare its landmarks with the fp32 graph's on ONNX Runtime, at every batch size in `proved`.

    Raises:
        BackendError: it cannot be built, or its landmarks are off.
    """
    content, began = weights.read(), time.perf_counter()
    prepared = graph.for_tensorrt(content, request.precision)
    plan = build_with_timings(toolkit.trt, toolkit.open_cuda(), prepared, request, timing_cache)
    build_s = time.perf_counter() - began
    with (
        closing(OnnxBackend(graph.as_fp32(content))) as reference,
        closing(_engine(toolkit, plan, content, request.precision)) as engine,
    ):
        measured = parity.measure(reference, engine, proof, request.proved)
    parity.check_limits(measured, request.precision, f"{weights.path.stem}, TensorRT plan")
    log.info("%s: built in %.0f s; %s", weights.path.stem, build_s, "; ".join(str(asdict(p)) for p in measured))
    return Built(plan, measured, build_s)
