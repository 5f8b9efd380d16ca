"""Build one TensorRT plan, run it and measure it, in a process of its own, so that a crash ends this job alone.

    python benchmarks/gpu_worker.py JOB.json | --check

`gpu_engines.py` starts it, perhaps with another Python than the one that facetrack runs on, because TensorRT's bindings
exist only for certain releases of Python. It needs 3.10 with numpy and pycuda or cuda-bindings, nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from facetrack.engines.cuda_driver import Cuda, open_cuda
from facetrack.engines.cuda_probe import find_gpu
from facetrack.engines.files import replace_file
from facetrack.engines.packed import pack_levels, run_levels
from facetrack.engines.tensorrt_backend import TensorRTBackend
from facetrack.engines.tensorrt_build import PlanRequest, build_with_timings, import_tensorrt

REPEATS, LAUNCHES = 100, 200


def measure(job: dict[str, Any], trt: Any, hold: Callable[[], Cuda]) -> dict[str, Any]:
    """Do one job.

    Args:
        job: "graph", "pictures", "outputs", "timings" (paths), "output_names" (in the graph's order), "precision",
            "batches", "sizes", "timed" (shapes), "levels" (sizes; only for networks that scan).
        trt: TensorRT's bindings.
        hold: retains the GPU's context.
    Returns:
        Build time in seconds, size of the plan, and times of each shape and of a scan in milliseconds. The outputs for
        all pictures, in batches of every size, are written to the file "outputs".
    """
    sizes = tuple(tuple(size) for size in job["sizes"])
    request = PlanRequest(job["precision"], tuple(job["batches"]), sizes)
    began = time.perf_counter()
    plan = build_with_timings(trt, hold(), Path(job["graph"]).read_bytes(), request, Path(job["timings"]))
    result: dict[str, Any] = {"build_s": round(time.perf_counter() - began, 1), "plan_mb": round(len(plan) / 1e6, 2)}
    names = job["output_names"]
    with_graphs = TensorRTBackend(trt, hold(), plan, names, request.precision)
    without = TensorRTBackend(trt, hold(), plan, names, request.precision, graphs=False)
    try:
        _keep_outputs(with_graphs, job, request)
        result["description"] = with_graphs.description
        result["runs"] = [_times(with_graphs, without, tuple(shape)) for shape in job["timed"]]
        if job["levels"]:
            result["scan"] = _scan_times(with_graphs, [tuple(size) for size in job["levels"]])
    finally:
        with_graphs.close()
        without.close()
    return result


def _keep_outputs(backend: TensorRTBackend, job: dict[str, Any], request: PlanRequest) -> None:
    pictures, kept = np.load(job["pictures"]), {}
    for batch in request.proved:
        parts = []
        # the first batch is run twice, because its first run is recorded and all others are replayed
        for start in (0, *range(0, len(pictures), batch)):
            index = np.arange(start, start + batch) % len(pictures)
            parts.append([output.copy() for output in backend.run(pictures[index])])
        for i, outputs in enumerate(zip(*parts[1:], strict=True)):
            kept[f"batch{batch}.{i}"] = np.concatenate(outputs)[: len(pictures)]
    np.savez(job["outputs"], **kept)


def _scan_times(backend: TensorRTBackend, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """Times of both ways to scan a pyramid, including their work in main memory."""
    rng = np.random.default_rng(0)
    levels = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    largest, layout = backend.max_atlas, pack_levels(tuple(sizes))
    packed_ms = _median_ms(lambda: list(run_levels(backend, levels)))
    backend.max_atlas = None
    separate_ms = _median_ms(lambda: list(run_levels(backend, levels)))
    backend.max_atlas = largest
    return {"levels": sizes, "atlas": layout.size, "packed_ms": packed_ms, "separate_ms": separate_ms}


def _times(with_graphs: TensorRTBackend, without: TensorRTBackend, shape: tuple[int, ...]) -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return {
        "shape": list(shape),
        "run_ms": _median_ms(lambda: with_graphs.run(images)),
        "run_without_graph_ms": _median_ms(lambda: without.run(images)),
        "compute_ms": 1e3 * with_graphs.compute_s(images, LAUNCHES),
    }


def _median_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 5):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times[5:]))


def main() -> None:
    """Do the job and write its result beside it; or check that jobs could be done."""
    gpu = find_gpu()  # before TensorRT, whose runtime ends the process if there is no driver
    trt = import_tensorrt()
    if sys.argv[1] == "--check":
        open_cuda().close()
        return
    path = Path(sys.argv[1])
    result = measure(json.loads(path.read_text(encoding="utf-8")), trt, open_cuda)
    result |= {"tensorrt": trt.__version__, "gpu": asdict(gpu), "python": sys.version.split()[0]}
    replace_file(path.with_suffix(".result.json"), json.dumps(result, indent=2).encode())


if __name__ == "__main__":
    main()
