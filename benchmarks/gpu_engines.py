"""Build, prove and measure TensorRT engines of every network and precision on a GPU machine; one JSON and one page.

    python benchmarks/gpu_engines.py --out DIR [--python PYTHON] [--minutes 8] [--only gv,tab] [--page docs/gpu.md]

Networks with a card are taken with their trained weights, full-size ones without a card with random ones, for their
speed and their numbers. Every step that is done is kept in DIR: when the time is up, the report names what was not run,
and the same command goes on from there. PYTHON runs
`gpu_worker.py`, for TensorRT whose bindings want another release of Python; `gpu_engines.sh` prepares one.

fp16 comes first, then fp32 and int8. Parity is the distance of the landmarks from those of the fp32 graph on ONNX
Runtime, crop pixels, in batches of 1 and of the largest; of networks with random weights, whose landmarks mean
nothing, it is the largest relative difference of the outputs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import facetrack
from facetrack.engines import graph, parity
from facetrack.engines.card import Weights, all_cards
from facetrack.engines.graph_cost import Cost, Peaks, cost_of
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.engines.quantise import QuantSettings, quantise_onnx
from facetrack.engines.tensorrt_build import LARGEST, SMALLEST, USUAL
from facetrack.pipeline.crops import crops_for, portrait_crops
from facetrack.pipeline.machine import describe_machine, source_commit
from facetrack.tracker.errors import BackendError
from facetrack.tracker.types import UInt8

BATCHES = (1, 8, 32)  # of crops; pictures are scanned one at a time
CROPS = 32
LEVELS = ((224, 296), (116, 152), (64, 80), (36, 44))  # of a 640x480 picture, for faces of 34 pixels and more
PRECISIONS = ("fp16", "fp32", "int8")
JOB_LIMIT_S = 420
NOT_RUN = "not run: no time was left"
LEAST_S = 20.0  # a job that has less time left is not begun
# name -> network, landmarks, options: those that the papers time. The shipped ones are compact.
UNTRAINED: dict[str, tuple[str, int, dict[str, Any]]] = {
    "tab-full": ("tab", 68, {}),
    "propnet-full": ("propnet", 98, {}),
    "gv-resnet50": ("gv", 68, {"encoder": "resnet50v2"}),
    "span-full": ("span", 68, {}),
}
UNTRAINED_SIZE = (256, 256)  # of the crop; that of all full-size networks and of no compact one
MATRIX, COPY_BYTES = 8192, 1 << 32


@dataclass(frozen=True)
class Network:
    """One graph to be built.

    Attributes:
        name: of the card or network, and role.
        read: gives its fp32 graph.
        pictures: (32, h, w, 3) that prove it.
        proof: decodes; None where the weights are random.
        timed: (h, w) at which it is timed.
        batches: in which it is run.
        levels: (h, w) of a pyramid that is also scanned, one level after the other and all on one canvas.
    """

    name: str
    read: Callable[[], bytes]
    pictures: UInt8
    proof: parity.Proof | None
    timed: tuple[int, int]
    batches: tuple[int, ...]
    levels: tuple[tuple[int, int], ...] = ()


def networks() -> Iterator[Network]:
    """Those with cards, then the full-size ones of which there is no card."""
    cards = all_cards()
    for card in cards:
        for role, weights in card.weights.items():
            pictures = np.take(crops_for(card, role), range(CROPS), 0, mode="wrap")
            timed, batches, levels = (LEVELS[0], (1,), LEVELS) if role == "scan" else (card.size, BATCHES, ())
            name = card.name if role == "net" else f"{card.name}-{role}"
            proof = parity.proof_for(card, role, pictures)
            yield Network(name, partial(_fp32_graph, weights), pictures, proof, timed, batches, levels)
    pictures = portrait_crops(UNTRAINED_SIZE, 1.25, CROPS)
    for name, recipe in UNTRAINED.items():
        if not any((card.network, card.size) == (recipe[0], UNTRAINED_SIZE) for card in cards):
            yield Network(name, partial(_export, recipe, pictures), pictures, None, UNTRAINED_SIZE, BATCHES)


def _fp32_graph(weights: Weights) -> bytes:
    return graph.as_fp32(weights.read())


def _export(recipe: tuple[str, int, dict[str, Any]], pictures: UInt8) -> bytes:
    """The ONNX file of a network with random weights and normalisations that fit real crops."""
    from tempfile import TemporaryDirectory

    import torch

    from facetrack.engines import nets
    from facetrack.engines.export import export_onnx

    name, landmarks, options = recipe
    torch.manual_seed(0)
    net = nets.FromBytes(nets.build(name, landmarks, **options)).train()
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the plain mean over what follows
    with torch.no_grad():
        net(torch.from_numpy(pictures[:8]))
        outputs = net.eval()(torch.from_numpy(pictures[:2]))
    count = len(outputs) if isinstance(outputs, tuple) else 1
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        export_onnx(net, path, pictures[:2], tuple(f"out{i}" for i in range(count)))
        return path.read_bytes()


def _job(network: Network, precision: str, folder: Path) -> Path:
    return folder / f"{network.name}-{precision}.json"


def prepare(network: Network, precision: str, folder: Path) -> Path:
    """Write the graph, the pictures, the reference's outputs and the job; gives the job's path."""
    job = _job(network, precision, folder)
    full, pictures = folder / f"{network.name}.onnx", folder / f"{network.name}.pictures.npy"
    if not full.exists():
        folder.mkdir(parents=True, exist_ok=True)
        full.write_bytes(network.read())
    reference = folder / f"{network.name}.reference.npz"
    if not reference.exists():
        np.save(pictures, network.pictures)
        backend = OnnxBackend(full.read_bytes(), threads=os.cpu_count() or 1)
        outputs = [backend.run(picture[None]) for picture in network.pictures]
        np.savez(reference, **{f"{i}": np.concatenate(parts) for i, parts in enumerate(zip(*outputs, strict=True))})
    prepared = folder / f"{network.name}-{precision}.onnx"
    if not prepared.exists():
        source = full
        if precision == "int8":
            source = folder / f"{network.name}.qdq.onnx"
            quantise_onnx(full, source, [network.pictures[:8]], QuantSettings(symmetric=True))
        prepared.write_bytes(graph.for_tensorrt(source.read_bytes(), precision))
    description = {
        "network": network.name,
        "graph": str(prepared),
        "pictures": str(pictures),
        "outputs": str(job.with_suffix(".outputs.npz")),
        "timings": str(folder / "timings.cache"),
        "precision": precision,
        "batches": list(network.batches),
        "sizes": [SMALLEST, USUAL, LARGEST],
        "timed": [(batch, *network.timed, 3) for batch in network.batches],
        "levels": network.levels,
    }
    job.write_text(json.dumps(description, indent=2), encoding="utf-8")
    return job


def run_job(job: Path, python: str, limit_s: float) -> None:
    """Run the worker; its result, or its error, lies beside the job afterwards."""
    package = Path(facetrack.__file__).parent.parent
    search = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    worker = [python, str(Path(__file__).with_name("gpu_worker.py")), str(job)]
    try:
        done = subprocess.run(
            worker,
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        error = "" if done.returncode == 0 else f"exit {done.returncode}: {done.stderr.strip()[-2000:]}"
    except subprocess.TimeoutExpired:
        error = f"not done within {limit_s:.0f} s"
    job.with_suffix(".error.txt").unlink(missing_ok=True)
    if error:
        job.with_suffix(".error.txt").write_text(error, encoding="utf-8")


def do_job(network: Network, precision: str, folder: Path, python: str, ends: float) -> None:
    """Prepare a job and run it, unless it is done; what goes wrong is kept beside it.

    Args:
        ends: of the time that there is, on the monotonic clock.
    """
    job = _job(network, precision, folder)
    if job.with_suffix(".result.json").exists():
        return
    try:
        prepare(network, precision, folder)
    except BackendError as error:
        job.with_suffix(".error.txt").write_text(str(error), encoding="utf-8")
        return
    run_job(job, python, min(JOB_LIMIT_S, max(ends - time.monotonic(), LEAST_S)))


def judge(network: Network, precision: str, folder: Path) -> dict[str, Any]:
    """What a job shows: its result with parity and the share of the roofline to come; its error; or that it waits."""
    head: dict[str, Any] = {"network": network.name, "trained": network.proof is not None, "precision": precision}
    job = _job(network, precision, folder)
    result, error = job.with_suffix(".result.json"), job.with_suffix(".error.txt")
    if not result.exists():
        return head | {"error": error.read_text(encoding="utf-8") if error.exists() else NOT_RUN}
    head |= json.loads(result.read_text(encoding="utf-8"))
    with (
        np.load(job.with_suffix(".outputs.npz")) as got,
        np.load(folder / f"{network.name}.reference.npz") as wanted,
    ):
        proved = sorted({1, network.batches[-1]})
        head["parity"] = [_parity(network, dict(got), dict(wanted), batch) for batch in proved]
    head["accepted"] = all(_acceptable(entry, precision) for entry in head["parity"])
    content = (folder / f"{network.name}.onnx").read_bytes()
    for run in head["runs"]:
        run["cost"] = asdict(cost_of(content, tuple(run["shape"]), precision))
    return head


LARGEST_RELATIVE = {"fp32": 1e-3, "fp16": 3e-2, "int8": 0.5}


def _parity(network: Network, got: dict[str, Any], wanted: dict[str, Any], batch: int) -> dict[str, Any]:
    outputs = tuple(got[f"batch{batch}.{i}"] for i in range(len(wanted)))
    references = tuple(wanted[f"{i}"] for i in range(len(wanted)))
    relative = max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(outputs, references, strict=True))
    entry: dict[str, Any] = {"batch": batch, "relative": relative}
    if network.proof is None:
        return entry
    distance = np.linalg.norm(network.proof.decode(outputs) - network.proof.decode(references), axis=-1)
    mean_px = float(distance.mean()) if np.isfinite(distance).all() else float("inf")
    return entry | {"mean_px": mean_px, "worst_px": float(distance.max())}


def _acceptable(entry: dict[str, Any], precision: str) -> bool:
    if "mean_px" in entry:
        return bool(entry["mean_px"] <= parity.LIMITS_PX[precision])
    return bool(entry["relative"] <= LARGEST_RELATIVE[precision])


def gpu_peaks() -> dict[str, Peaks]:
    """Measured with torch, by precision; empty where there is none that sees the GPU."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    gb_per_s = 2 * COPY_BYTES / 1e9 / _gpu_seconds(torch, lambda: target.copy_(source))
    peaks = {}
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("int8", torch.int8)):
        one = torch.randn(MATRIX, MATRIX, device="cuda").to(dtype)
        multiply = torch._int_mm if precision == "int8" else torch.matmul
        product_s = _gpu_seconds(torch, lambda: multiply(one, one.t()))  # noqa: B023 - called at once
        how = f"torch {torch.__version__}: product of {MATRIX}x{MATRIX} {precision}, copy of {COPY_BYTES >> 30} GiB"
        peaks[precision] = Peaks(MATRIX**3 / 1e9 / product_s, gb_per_s, how)
    return peaks


def _gpu_seconds(torch: Any, work: Callable[[], object]) -> float:
    for _ in range(3):
        work()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(10):
        work()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended)) / 1e4


def write_report(results: list[dict[str, Any]], peaks: dict[str, Peaks], out: Path, page: Path) -> None:
    """Write everything as JSON and the essence as a page."""
    for result in results:
        for run in result.get("runs", ()):
            if result["precision"] in peaks:
                least_ms = peaks[result["precision"]].least_ms(Cost(**run["cost"]))
                run["roofline_ms"], run["of_roofline"] = least_ms, least_ms / run["compute_ms"]
    report = {
        "facetrack": facetrack.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": source_commit(),
        "machine": describe_machine(),
        "peaks": {precision: asdict(values) for precision, values in peaks.items()},
        "engines": results,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu_engines.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page.write_text(page_text(report), encoding="utf-8")


def page_text(report: dict[str, Any]) -> str:
    """The measured table in Markdown."""
    done = [engine for engine in report["engines"] if "runs" in engine]
    gpu = done[0]["gpu"] if done else {"name": "no GPU", "driver": "", "cuda": ""}
    columns = ("network", "precision", "batch", "run, ms", "without graph", "GPU, ms", "each", "of roofline", "parity")
    lines = [
        "# TensorRT engines, measured",
        "",
        f"Made by `benchmarks/gpu_engines.py` on {report['date']}, commit {report['commit']}: {gpu['name']}, driver "
        f"{gpu['driver']}, TensorRT {done[0]['tensorrt'] if done else '-'}.",
        "",
        *(f"- {p['gmac_per_s']:.0f} GMAC/s, {p['gb_per_s']:.0f} GB/s ({p['how']})" for p in report["peaks"].values()),
        "",
        "`run` is from pixels in main memory to outputs in main memory; `GPU` is the computing alone. Parity is the",
        "mean distance of the landmarks from the fp32 reference in crop pixels at batch 1 / at the largest; for",
        "networks with random weights (*) the largest relative difference of the outputs. **Bold** would be refused.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for engine in done:
        name = engine["network"] + ("" if engine["trained"] else "*")
        shifts = " / ".join(f"{entry.get('mean_px', entry['relative']):.3g}" for entry in engine["parity"])
        for run in engine["runs"]:
            batch, gpu_ms = run["shape"][0], run["compute_ms"]
            row = [name, engine["precision"], str(batch), f"{run['run_ms']:.3f}", f"{run['run_without_graph_ms']:.3f}"]
            row += [f"{gpu_ms:.3f}", f"{gpu_ms / batch:.4f}"]
            row += [f"{run['of_roofline']:.0%}" if "of_roofline" in run else "-"]
            row += [shifts if engine["accepted"] else f"**{shifts}**"]
            lines.append(f"| {' | '.join(row)} |")
    lines += ["", *(_scan_line(engine) for engine in done if "scan" in engine)]
    failed = [engine for engine in report["engines"] if "runs" not in engine]
    lines += ["", *(f"- {e['network']} {e['precision']}: {_outcome(e)}" for e in failed)]
    return "\n".join(lines).rstrip() + "\n"


def _scan_line(engine: dict[str, Any]) -> str:
    """What is gained by one canvas."""
    scan = engine["scan"]
    largest, canvas = ("x".join(map(str, reversed(size))) for size in (scan["levels"][0], scan["canvas"]))
    return (
        f"- {engine['network']} {engine['precision']}, {len(scan['levels'])} levels from {largest} on: "
        f"{scan['separate_ms']:.3f} ms one after the other, {scan['packed_ms']:.3f} ms on one canvas of {canvas}"
    )


def _has_failed(network: Network, precision: str, folder: Path) -> bool:
    """Such a job is tried again after all others, for it may fail again and take as long."""
    return _job(network, precision, folder).with_suffix(".error.txt").exists()


def _outcome(result: dict[str, Any]) -> str:
    return "done" if "runs" in result else str(result["error"].splitlines()[-1])


def main(words: Sequence[str] | None = None) -> None:
    """Go on until all is done or the time is up, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args(words)
    ends, folder = time.monotonic() + 60 * arguments.minutes, arguments.out / "work"
    only = tuple(filter(None, arguments.only.split(",")))
    chosen = [network for network in networks() if not only or network.name.startswith(only)]
    wanted = [(network, precision) for precision in PRECISIONS for network in chosen]
    for network, precision in sorted(wanted, key=lambda job: _has_failed(*job, folder)):
        if ends - time.monotonic() >= LEAST_S:
            do_job(network, precision, folder, arguments.python, ends)
            print(network.name, precision, _outcome(judge(network, precision, folder)), flush=True)
    results = [judge(network, precision, folder) for network, precision in wanted]
    write_report(results, gpu_peaks(), arguments.out, arguments.page or arguments.out / "gpu.md")


if __name__ == "__main__":
    main()
