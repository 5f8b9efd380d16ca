"""How long ONNX Runtime and OpenVINO take for the same network, one picture at a time on one thread of a CPU.

    python benchmarks/openvino_peer.py [FILE.onnx] [--size 240 320] [--runs 100] [--rounds 9]

runs both in turn, ONNX Runtime with the program's settings, and prints JSON: the versions, the median milliseconds of
each, the ratio of ONNX Runtime's to OpenVINO's (median, smallest and largest of the rounds), and the largest difference
of their outputs. Both compute in fp32. It is an error if the outputs differ too much to be the same network's. FILE
defaults to GV; --size is used only for networks that take any size. The file imports nothing from facetrack: run it in
an environment of its own, made by `pip install numpy onnxruntime openvino`. (OpenVINO reports its use to Intel.)
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import, which reads it

import numpy as np
import onnxruntime
import openvino

SHIPPED = Path(__file__).parent.parent / "engines" / "weights" / "gv-mobilenetv3-68.onnx"
WARM_UPS = 30
TOLERANCE = 1e-3  # share of the largest absolute value of an output

Run = Callable[[Any], list[Any]]


def with_onnxruntime(file: Path, size: tuple[int, int]) -> tuple[Run, tuple[int, ...]]:
    """A network as the program opens it (`engines/onnx_backend.py`), and the shape (1, h, w, 3) of its input.

    Args:
        file: with the network.
        size: (h, w), used if the network takes any size.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    shape = [own if isinstance(own, int) else wanted for own, wanted in zip(entry.shape, (1, *size, 3), strict=True)]
    return lambda images: list(session.run(None, {entry.name: images})), tuple(shape)


def with_openvino(file: Path, shape: tuple[int, ...]) -> Run:
    """The same network, compiled for exactly this shape, in fp32; inputs and outputs are not copied."""
    model = openvino.Core().read_model(file)
    model.reshape(list(shape))
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: list(request.infer([images], share_inputs=True, share_outputs=True).values())


def median_ms(run: Run, images: Any, runs: int) -> float:
    """The median time of a run."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - begun)
    return 1000 * median(times)


def largest_difference(answers: list[Any], others: list[Any]) -> float:
    """The largest difference between two runtimes' outputs, as a share of each output's largest absolute value."""
    if [a.shape for a in answers] != [b.shape for b in others]:
        raise SystemExit(f"other outputs: {[a.shape for a in answers]} and {[b.shape for b in others]}")
    return float(np.max([np.abs(a - b).max() / np.abs(a).max() for a, b in zip(answers, others, strict=True)]))


def main() -> None:
    """Measure both and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=SHIPPED)
    parser.add_argument("--size", nargs=2, type=int, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    ours, shape = with_onnxruntime(arguments.file, arguments.size)
    theirs = with_openvino(arguments.file, shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    differ = largest_difference(ours(images), theirs(images))
    if not differ <= TOLERANCE:
        raise SystemExit(f"{arguments.file}: the answers differ by {differ:.2g} of the largest number")
    for run in (ours, theirs):
        median_ms(run, images, WARM_UPS)
    rounds = [[median_ms(run, images, arguments.runs) for run in (ours, theirs)] for _ in range(arguments.rounds)]
    ratios = sorted(our_ms / their_ms for our_ms, their_ms in rounds)
    figures = {
        "file": arguments.file.name,
        "onnxruntime": onnxruntime.__version__,
        "openvino": openvino.__version__,
        "onnxruntime_ms": round(median(our_ms for our_ms, _ in rounds), 3),
        "openvino_ms": round(median(their_ms for _, their_ms in rounds), 3),
        "ratio": [round(ratio, 3) for ratio in (median(ratios), ratios[0], ratios[-1])],
        "differ": differ,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
