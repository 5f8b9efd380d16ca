"""Build, verify and measure TensorRT engines of every network and precision on a GPU; write a JSON file and a page.

    python benchmarks/gpu_engines.py --out DIR [--work DIR] [--python PYTHON] [--minutes 8] [--only gv,tab]

Networks with a card have their trained weights. Full-size ones without a card have random weights, to measure their
speed and their numerical error. Every finished step is kept in --work (default: OUT/work), which must be kept from one
call to the next. When the time is up the running step is aborted and the report names what was not run; the same
command then resumes from there. The report is rewritten after every job. PYTHON runs `gpu_worker.py`, for a TensorRT
whose bindings need another release of Python; `gpu_engines.sh` prepares one.

fp16 comes first, then fp32 and int8. Parity is the distance of the landmarks from those of the fp32 graph on ONNX
Runtime, in crop pixels, in batches of every size. For networks with random weights, whose landmarks mean nothing, it is
the largest relative difference of the outputs.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

import facetrack
from facetrack.engines import graph, parity
from facetrack.engines.card import Weights, all_cards
from facetrack.engines.files import replace_file
from facetrack.engines.graph_cost import Cost, Peaks, cost_of
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.engines.quantise import QuantSettings, quantise_onnx
from facetrack.engines.tensorrt_build import LARGEST, SMALLEST, USUAL, PlanRequest
from facetrack.pipeline.crops import crops_for, portrait_crops
from facetrack.pipeline.machine import describe_machine, source_commit, usable_cores
from facetrack.tracker.errors import BackendError, describe_error
from facetrack.tracker.types import UInt8

PACKAGE = Path(__file__).parent.parent
CHECKOUT = PACKAGE / ".typecheck"  # here the sources can be imported as facetrack
WORKER = Path(__file__).with_name("gpu_worker.py")
BATCHES = (1, 8, 32)  # of crops; pictures are scanned one at a time
CROPS = 32
LEVELS = ((224, 296), (116, 152), (64, 80), (36, 44), (24, 28))  # of a 640x480 picture, for faces of 34 pixels and more
PRECISIONS = ("fp16", "fp32", "int8")
JOB_LIMIT_S = 420  # of each of a job's two steps
NOT_RUN = "not run: no time was left"
LEAST_S = 20.0  # with less time left no job is begun
# name -> network, landmarks, options: the full-size networks that the papers time; the shipped ones are compact
UNTRAINED: dict[str, tuple[str, int, dict[str, Any]]] = {
    "tab-full": ("tab", 68, {}),
    "propnet-full": ("propnet", 98, {}),
    "gv-resnet50": ("gv", 68, {"encoder": "resnet50v2"}),
    "span-full": ("span", 68, {}),
}
UNTRAINED_SIZE = (256, 256)  # crop of all full-size networks and of no compact one
MATRIX, COPY_BYTES = 8192, 1 << 32


@dataclass(frozen=True)
class Network:
    """One graph to be built.

    Attributes:
        name: of the card or network, and role.
        read: returns its fp32 graph.
        weights: sha256 of the file that the graph is made from; "" if the weights are random.
        pictures: (32, h, w, 3) to verify it with.
        proof: decodes the outputs; None if the weights are random.
        timed: (h, w) at which it is timed.
        batches: sizes of the batches in which it is run.
        levels: (h, w) of a pyramid that is also scanned, level by level and in one atlas.
    """

    name: str
    read: Callable[[], bytes]
    weights: str
    pictures: UInt8
    proof: parity.Proof | None
    timed: tuple[int, int]
    batches: tuple[int, ...]
    levels: tuple[tuple[int, int], ...] = ()


def networks() -> Iterator[Network]:
    """The networks with cards, then the full-size ones without a card."""
    cards = all_cards()
    for card in cards:
        for role, weights in card.weights.items():
            pictures = np.take(crops_for(card, role), range(CROPS), 0, mode="wrap")
            timed, batches, levels = (LEVELS[0], (1,), LEVELS) if role == "scan" else (card.size, BATCHES, ())
            name = card.name if role == "net" else f"{card.name}-{role}"
            proof = parity.proof_for(card, role, pictures)
            read = partial(_fp32_graph, weights)
            yield Network(name, read, weights.sha256, pictures, proof, timed, batches, levels)
    pictures = portrait_crops(UNTRAINED_SIZE, 1.25, CROPS)
    for name, recipe in UNTRAINED.items():
        if not any((card.network, card.size) == (recipe[0], UNTRAINED_SIZE) for card in cards):
            yield Network(name, partial(_export, recipe, pictures), "", pictures, None, UNTRAINED_SIZE, BATCHES)


def _fp32_graph(weights: Weights) -> bytes:
    return graph.as_fp32(weights.read())


def _export(recipe: tuple[str, int, dict[str, Any]], pictures: UInt8) -> bytes:
    """The ONNX file of a network with random weights, whose normalisation layers are fitted to real crops."""
    from tempfile import TemporaryDirectory

    import torch

    from facetrack.engines import nets
    from facetrack.engines.export import export_onnx

    name, landmarks, options = recipe
    torch.manual_seed(0)
    net = nets.FromBytes(nets.build(name, landmarks, **options)).train()
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the plain mean over the crops below
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


@dataclass(frozen=True)
class Call:
    """One call of this command.

    Attributes:
        folder: of everything that must be kept from one call to the next.
        python: runs the worker.
        ends: when its last step must be over, on the monotonic clock.
    """

    folder: Path
    python: str
    ends: float

    @property
    def has_time(self) -> bool:
        """Whether there is enough time to begin another job."""
        return self.ends - time.monotonic() >= LEAST_S

    def run(self, *words: str) -> None:
        """Run a step in a process of its own, which can be aborted at any time.

        Raises:
            OutOfTimeError: the call ends first.
            BackendError: the step failed, or took longer than `JOB_LIMIT_S`.
        """
        limit_s = min(JOB_LIMIT_S, self.ends - time.monotonic())
        search = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": search}
        try:
            done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=max(limit_s, 0), check=False)
        except subprocess.TimeoutExpired:
            if limit_s < JOB_LIMIT_S:
                raise OutOfTimeError from None
            raise BackendError(f"not done within {limit_s:.0f} s") from None
        if done.returncode:
            raise BackendError(f"exit {done.returncode}: {done.stderr.strip()[-2000:]}")


class OutOfTimeError(Exception):
    """A step was aborted because the call ends; the next call starts it again."""


def prepare(network: Network, precision: str, folder: Path) -> Path:
    """Write the graph, the pictures, the reference's outputs and the job; each once, completely or not at all.

    Files of this network from another checkout or with other weights are made again, except verdicts.

    Returns:
        The job's path.
    """
    job = _job(network, precision, folder)
    if not _is_current(network, folder):
        _forget(network, folder)
        replace_file(_origin_file(network, folder), json.dumps(_origin(network)).encode())
    full, pictures = folder / f"{network.name}.onnx", folder / f"{network.name}.pictures.npy"
    if not full.exists():
        replace_file(full, network.read())
    reference = folder / f"{network.name}.reference.npz"
    if not reference.exists():
        np.save(pictures, network.pictures)
        replace_file(reference, _reference(full.read_bytes(), network.pictures))
    prepared = folder / f"{network.name}-{precision}.onnx"
    if not prepared.exists():
        source = full
        if precision == "int8":
            source = folder / f"{network.name}.qdq.onnx"
            quantise_onnx(full, source, [network.pictures[:8]], QuantSettings(symmetric=True))
        replace_file(prepared, graph.for_tensorrt(source.read_bytes(), precision))
    description = {
        "network": network.name,
        "graph": str(prepared),
        "pictures": str(pictures),
        "outputs": str(job.with_suffix(".outputs.npz")),
        "output_names": graph.output_names(prepared.read_bytes()),
        "timings": str(folder / "timings.cache"),
        "precision": precision,
        "batches": list(network.batches),
        "sizes": [SMALLEST, USUAL, LARGEST],
        "timed": [(batch, *network.timed, 3) for batch in network.batches],
        "levels": network.levels,
    }
    replace_file(job, json.dumps(description, indent=2).encode())
    return job


@cache
def _sources() -> str:
    """A hash of the code that prepares and runs jobs, because a copied checkout has no commit."""
    code = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(path for name in ("engines", "pipeline", "tracker") for path in (PACKAGE / name).rglob("*.py")):
        code.update(path.read_bytes())
    return code.hexdigest()


def _origin(network: Network) -> dict[str, str]:
    """What the files of a network's jobs depend on."""
    return {"sources": _sources(), "weights": network.weights}


def _origin_file(network: Network, folder: Path) -> Path:
    return folder / f"{network.name}.origin.json"


def _is_current(network: Network, folder: Path) -> bool:
    """Whether the prepared files of a network are those that this checkout would prepare."""
    file = _origin_file(network, folder)
    return file.exists() and json.loads(file.read_text(encoding="utf-8")) == _origin(network)


def _forget(network: Network, folder: Path) -> None:
    """Remove the prepared files and the results of a network, except verdicts and error messages."""
    for stem in (network.name, *(f"{network.name}-{precision}" for precision in PRECISIONS)):
        for path in folder.glob(f"{glob.escape(stem)}.*"):
            if not path.name.endswith((".verdict.json", ".error.txt")):
                path.unlink()


def _reference(full: bytes, pictures: UInt8) -> bytes:
    """Outputs of the fp32 graph for each picture on its own, as an archive of arrays "0", "1", ..."""
    with closing(OnnxBackend(full, threads=usable_cores())) as backend:
        outputs = [backend.run(picture[None]) for picture in pictures]
    content = BytesIO()
    np.savez(content, **{f"{i}": np.concatenate(parts) for i, parts in enumerate(zip(*outputs, strict=True))})
    return content.getvalue()


def preparing(network: Network, precision: str, folder: Path) -> tuple[str, ...]:
    """The command that prepares a job: in the same process torch's exporter and the quantiser cannot be aborted."""
    return sys.executable, str(Path(__file__)), "--out", str(folder), "--prepare", network.name, precision


def do_job(network: Network, precision: str, call: Call) -> None:
    """Prepare a job, run it and judge it, unless it is done; an error message is kept beside it.

    A job that failed is prepared again when it is retried: its graph may have been at fault.
    """
    job = _job(network, precision, call.folder)
    if _verdict(job).exists():
        return
    error = ""
    try:
        if not (job.exists() and _is_current(network, call.folder)):
            call.run(*preparing(network, precision, call.folder))
        if not job.with_suffix(".result.json").exists():
            call.run(call.python, str(WORKER), str(job))
        replace_file(_verdict(job), json.dumps(judge(network, precision, call.folder)).encode())
    except OutOfTimeError:
        return
    except (
        BackendError,
        ValueError,
        KeyError,
    ) as failure:  # the latter two: outputs of other shapes than the reference's
        error = describe_error(failure)
    job.with_suffix(".error.txt").unlink(missing_ok=True)
    if error:
        replace_file(job.with_suffix(".error.txt"), error.encode())
        for suffix in (".json", ".onnx", ".result.json"):
            job.with_suffix(suffix).unlink(missing_ok=True)


def outcome(network: Network, precision: str, folder: Path) -> dict[str, Any]:
    """The verdict on a job, its error message, or that it was not run yet."""
    job = _job(network, precision, folder)
    if _verdict(job).exists():
        verdict: dict[str, Any] = json.loads(_verdict(job).read_text(encoding="utf-8"))
        return verdict
    error = job.with_suffix(".error.txt")
    return _head(network, precision) | {"error": error.read_text(encoding="utf-8") if error.exists() else NOT_RUN}


def _verdict(job: Path) -> Path:
    return job.with_suffix(".verdict.json")


def _head(network: Network, precision: str) -> dict[str, Any]:
    return {"network": network.name, "trained": network.proof is not None, "precision": precision}


def judge(network: Network, precision: str, folder: Path) -> dict[str, Any]:
    """The result of a finished job, with parity and the least cost of its runs."""
    job = _job(network, precision, folder)
    verdict = _head(network, precision) | json.loads(job.with_suffix(".result.json").read_text(encoding="utf-8"))
    with (
        np.load(job.with_suffix(".outputs.npz")) as got,
        np.load(folder / f"{network.name}.reference.npz") as wanted,
    ):
        proved = PlanRequest(precision, network.batches).proved
        verdict["parity"] = [_parity(network, dict(got), dict(wanted), batch) for batch in proved]
    verdict["accepted"] = all(_acceptable(entry, precision) for entry in verdict["parity"])
    content = (folder / f"{network.name}.onnx").read_bytes()
    for run in verdict["runs"]:
        run["cost"] = asdict(cost_of(content, tuple(run["shape"]), precision))
    return verdict


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


def known_peaks(call: Call) -> dict[str, Peaks]:
    """Peak rates of the GPU by precision, measured once; empty, with a message, if they cannot be measured."""
    file = call.folder / "peaks.json"
    try:
        if not file.exists():
            call.run(sys.executable, str(Path(__file__)), "--out", str(call.folder), "--peaks")
    except (OutOfTimeError, BackendError) as error:
        print(f"no roofline: {error or NOT_RUN}", flush=True)
        return {}
    return {name: Peaks(**values) for name, values in json.loads(file.read_text(encoding="utf-8")).items()}


def gpu_peaks() -> dict[str, Peaks]:
    """Peak rates by precision, measured with torch; empty if torch is missing or sees no GPU."""
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
    """Write everything as JSON and a summary as a page."""
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
        "mean distance of the landmarks from the fp32 reference in crop pixels at each batch size; for",
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
    """Time of a scan level by level and in one atlas."""
    scan = engine["scan"]
    largest, atlas = ("x".join(map(str, reversed(size))) for size in (scan["levels"][0], scan["atlas"]))
    return (
        f"- {engine['network']} {engine['precision']}, {len(scan['levels'])} levels from {largest} on: "
        f"{scan['separate_ms']:.3f} ms one after the other, {scan['packed_ms']:.3f} ms in one atlas of {atlas}"
    )


def _has_failed(network: Network, precision: str, folder: Path) -> bool:
    """Whether a job has failed; it is retried after all others, because it may fail again and take as long."""
    return _job(network, precision, folder).with_suffix(".error.txt").exists()


def _outcome(result: dict[str, Any]) -> str:
    return "done" if "runs" in result else str(result["error"].splitlines()[-1])


def check_worker(call: Call) -> None:
    """Check that the worker has a GPU and TensorRT, before minutes are spent on preparing jobs.

    Raises:
        SystemExit: it has not; says why.
    """
    try:
        call.run(call.python, str(WORKER), "--check")
    except (OutOfTimeError, BackendError) as error:
        raise SystemExit(f"gpu_engines: {call.python} cannot build engines: {error or NOT_RUN}") from error


def do_jobs(wanted: Sequence[tuple[Network, str]], call: Call, out: Path, page: Path) -> None:
    """Do jobs until all are done or the time is up, with a report after every job."""
    waiting = [(network, p) for network, p in wanted if not _verdict(_job(network, p, call.folder)).exists()]
    peaks: dict[str, Peaks] = {}
    if waiting and call.has_time:
        check_worker(call)
    if call.has_time:
        peaks = known_peaks(call)
    write_report([outcome(*job, call.folder) for job in wanted], peaks, out, page)
    for network, precision in sorted(waiting, key=lambda job: _has_failed(*job, call.folder)):
        if not call.has_time:
            return
        do_job(network, precision, call)
        print(network.name, precision, _outcome(outcome(network, precision, call.folder)), flush=True)
        write_report([outcome(*job, call.folder) for job in wanted], peaks, out, page)


def main(words: Sequence[str] | None = None) -> None:
    """Read the arguments and do the work of one call, or one step of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="gets gpu_engines.json and gpu.md")
    parser.add_argument("--work", type=Path, help="lasts from one call to the next; default: OUT/work")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--page", type=Path, help="default: OUT/gpu.md")
    parser.add_argument("--prepare", nargs=2, metavar=("NETWORK", "PRECISION"), help=argparse.SUPPRESS)
    parser.add_argument("--peaks", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.prepare:
        name, precision = given.prepare
        prepare(next(network for network in networks() if network.name == name), precision, given.out)
        return
    if given.peaks:
        peaks = {precision: asdict(values) for precision, values in gpu_peaks().items()}
        if not peaks:
            raise SystemExit("torch is missing or sees no GPU")
        replace_file(given.out / "peaks.json", json.dumps(peaks).encode())
        return
    call = Call(given.work or given.out / "work", given.python, time.monotonic() + 60 * given.minutes)
    only = tuple(filter(None, given.only.split(",")))
    chosen = [network for network in networks() if not only or network.name.startswith(only)]
    wanted = [(network, precision) for precision in PRECISIONS for network in chosen]
    do_jobs(wanted, call, given.out, given.page or given.out / "gpu.md")


if __name__ == "__main__":
    main()
