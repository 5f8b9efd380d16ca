"""Speed, memory and start of the installed program, each run in a process of its own.

    python benchmarks/pipeline.py [--videos FILE...] [--minutes 10] [--repeats 3] [--json FILE]

Measures on a moving portrait (one face, four faces, 640x480; nothing else is needed) and on the videos given:

    ms/frame   wall time of `facetrack batch` over the number of frames, decoding and writing included, start excluded
    cpu        processor time of the whole process, start included, over the number of frames
    peak MB    largest resident set of the process
    first ms   from starting `facetrack live --jsonl` to its first line, with a warm Numba cache

and the peak memory of a long video beside that of a ten-second one. The best of the repeats counts: on a shared
machine everything else is somebody else's time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from facetrack.pipeline.bench import RATE, BenchSettings, write_moving_portrait
from facetrack.pipeline.machine import describe_machine
from facetrack.pipeline.tables import columns

PROGRAM = (sys.executable, "-m", "facetrack")
SHORT_S = 10
# With this set, which developers do, every start compiles all of Python's modules anew: nothing that users wait for.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True)
class Measured:
    """One video: milliseconds per frame, megabytes (10^6), milliseconds to the first result."""

    video: str
    frames: int
    with_face: int
    wall_ms: float
    cpu_ms: float
    peak_mb: float
    first_ms: float


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
    """From starting the program to its first JSON line."""
    command = [*PROGRAM, "live", "--camera", str(video), "--jsonl", "--no-window"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"{video}: facetrack live gave no line")
        took_ms = 1000 * (time.monotonic() - began)
        process.terminate()
    return took_ms


def best(runs: list[Measured]) -> Measured:
    """The least of each figure over the repeats."""
    first = asdict(runs[0])
    least = {name: min(getattr(run, name) for run in runs) for name in ("wall_ms", "cpu_ms", "peak_mb", "first_ms")}
    return Measured(**(first | least))


def table(measured: list[Measured]) -> str:
    """All figures as text."""
    head = ["video", "frames", "with face", "ms/frame", "cpu", "peak MB", "first ms"]
    rows = [
        [
            m.video,
            str(m.frames),
            str(m.with_face),
            f"{m.wall_ms:.2f}",
            f"{m.cpu_ms:.2f}",
            f"{m.peak_mb:.0f}",
            f"{m.first_ms:.0f}",
        ]
        for m in measured
    ]
    return columns([head, *rows], numbers_from=1)


def main() -> None:
    """Measure everything that was asked for, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="*", default=[])
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the long video; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    wanted = parser.parse_args()
    with TemporaryDirectory(prefix="facetrack-benchmark-") as name:
        folder, frames = Path(name), round(SHORT_S * RATE)
        videos = [
            write_moving_portrait(folder / f"{faces}-face.mp4", BenchSettings(faces=faces, frames=frames))
            for faces in (1, 4)
        ]
        first_result_ms(videos[0])  # fills Numba's cache
        measured = [
            best([run_batch(video, folder) for _ in range(wanted.repeats)]) for video in [*videos, *wanted.videos]
        ]
        if wanted.minutes:
            settings = BenchSettings(frames=round(60 * wanted.minutes * RATE))
            measured.append(run_batch(write_moving_portrait(folder / "long.mp4", settings), folder))
    print(table(measured))
    if wanted.json:
        content = {"machine": describe_machine(), "measured": [asdict(m) for m in measured]}
        wanted.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
