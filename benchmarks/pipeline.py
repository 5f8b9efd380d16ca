"""Speed, memory and start-up time of the installed program, with each run in a process of its own.

    python benchmarks/pipeline.py [--videos FILE...] [--minutes 10] [--repeats 3] [--peer PYTHON] [--json FILE]

measures on a moving portrait (one face, four faces, 640x480; no other data is needed) and on the given videos:

    ms/frame   wall time of `facetrack batch` over the number of frames, decoding and writing included, start excluded
    cpu        processor time of the whole process, start included, over the number of frames
    peak MB    largest resident set of the process
    first ms   from starting `facetrack live --jsonl` to its first line, with a warm Numba cache

    peer       ms/frame of MediaPipe's face mesh for the same number of faces (one in the given videos), run in turn
               with this program by PYTHON, from an environment of its own (`mediapipe_peer.py`); the last column is the
               ratio

and the peak memory of a long video beside that of a ten-second one. The best of the repeats counts, because on a shared
machine other programs take the rest of the time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from facetrack.pipeline.bench import RATE, BenchSettings, write_moving_portrait
from facetrack.pipeline.machine import describe_machine
from facetrack.pipeline.tables import columns

PEER = Path(__file__).with_name("mediapipe_peer.py")
PROGRAM = (sys.executable, "-m", "facetrack")
SHORT_S = 10
FIGURES = ("wall_ms", "cpu_ms", "peak_mb", "first_ms", "peer_ms")
# Developers set this variable; with it every start compiles all Python modules again, which users do not wait for.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True)
class Measured:
    """Figures of one video: milliseconds per frame, megabytes (10^6), milliseconds to the first result, the peer's."""

    video: str
    frames: int
    with_face: int
    wall_ms: float
    cpu_ms: float
    peak_mb: float
    first_ms: float
    peer_ms: float = math.nan


def run_batch(video: Path, folder: Path) -> Measured:
    """Track a video in a new process."""
    command = [*PROGRAM, "batch", str(video), "--out", str(folder), "--overwrite", "-q"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{video}: facetrack batch ended with {process.returncode}")
    sidecar = json.loads((folder / f"{video.stem}.json").read_text(encoding="utf-8"))
    counts, frames = sidecar["counts"], sidecar["counts"]["frames"]
    return Measured(
        video=video.name,
        frames=frames,
        with_face=counts["frames_with_face"],
        wall_ms=1000 * sidecar["wall_s"] / frames,
        cpu_ms=1000 * (usage.ru_utime + usage.ru_stime) / frames,
        peak_mb=usage.ru_maxrss * 1024 / 1e6,
        first_ms=first_result_ms(video),
    )


def first_result_ms(video: Path) -> float:
    """Milliseconds from starting the program to its first JSON line."""
    command = [*PROGRAM, "live", "--camera", str(video), "--jsonl", "--no-window"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"{video}: facetrack live gave no line")
        took_ms = 1000 * (time.monotonic() - began)
        process.terminate()
    return took_ms


def peer_ms(python: Path, video: Path, faces: int) -> float:
    """Milliseconds per frame of MediaPipe, run by the interpreter of its own environment."""
    command = [str(python), str(PEER), str(video), str(faces)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    return float(json.loads(answer.splitlines()[-1])["wall_ms"])


def measure(video: Path, faces: int, folder: Path, wanted: argparse.Namespace) -> Measured:
    """Measure all repeats of one video, in turn with the peer if there is one."""
    runs = []
    for _ in range(wanted.repeats):
        run = run_batch(video, folder)
        runs.append(replace(run, peer_ms=peer_ms(wanted.peer, video, faces)) if wanted.peer else run)
    return best(runs)


def best(runs: list[Measured]) -> Measured:
    """The smallest value of each figure over the repeats."""
    first = asdict(runs[0])
    least = {name: min(getattr(run, name) for run in runs) for name in FIGURES}
    return Measured(**(first | least))


def table(measured: list[Measured]) -> str:
    """All figures as a text table."""
    head = ["video", "frames", "with face", "ms/frame", "cpu", "peak MB", "first ms", "peer", "ratio"]
    rows = [
        [
            m.video,
            str(m.frames),
            str(m.with_face),
            f"{m.wall_ms:.2f}",
            f"{m.cpu_ms:.2f}",
            f"{m.peak_mb:.0f}",
            f"{m.first_ms:.0f}",
            *(["", ""] if math.isnan(m.peer_ms) else [f"{m.peer_ms:.2f}", f"{m.wall_ms / m.peer_ms:.2f}"]),
        ]
        for m in measured
    ]
    return columns([head, *rows], numbers_from=1)


def main() -> None:
    """Measure everything that was requested, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="*", default=[])
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the long video; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="interpreter of an environment with MediaPipe")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    wanted = parser.parse_args()
    with TemporaryDirectory(prefix="facetrack-benchmark-") as name:
        folder, frames = Path(name), round(SHORT_S * RATE)
        videos = [
            (write_moving_portrait(folder / f"{faces}-face.mp4", BenchSettings(faces=faces, frames=frames)), faces)
            for faces in (1, 4)
        ]
        first_result_ms(videos[0][0])  # fills Numba's cache
        videos += [(video, 1) for video in wanted.videos]
        measured = [measure(video, faces, folder, wanted) for video, faces in videos]
        if wanted.minutes:
            settings = BenchSettings(frames=round(60 * wanted.minutes * RATE))
            measured.append(run_batch(write_moving_portrait(folder / "long.mp4", settings), folder))
    print(table(measured))
    if wanted.json:
        content = {"machine": describe_machine(), "measured": [asdict(m) for m in measured]}
        wanted.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
