"""Measure every shipped network on this machine's CPU and write docs/cpu.md.

    python benchmarks/cpu_page.py [--out docs/cpu.md] [--backend onnx] [--frames 600] [--repeats 3]

Runs `facetrack bench --json` for each aligner with one face and with four, and `facetrack bench --networks --json`,
each in a process of its own. Of the repeats of a whole run the fastest counts: on a shared machine the rest is other
programs' time. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from facetrack.engines.card import all_cards

FACES = ("1", "4")
BATCHES = "1,4,8"


def bench(*options: str) -> dict[str, Any]:
    """The report of one `facetrack bench`."""
    done = subprocess.run([sys.executable, "-m", "facetrack", "bench", "--json", *options], stdout=-1, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def fastest(repeats: int, *options: str) -> dict[str, Any]:
    """The report of the fastest of several runs over a whole video."""
    return min((bench(*options) for _ in range(repeats)), key=lambda report: report["wall_ms_per_frame"])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def page_text(wholes: dict[str, dict[str, dict[str, Any]]], networks: dict[str, dict[str, Any]], command: str) -> str:
    """The page in Markdown.

    Args:
        wholes: reports of `facetrack bench` by aligner and number of faces.
        networks: reports of `facetrack bench --networks` by aligner.
        command: that made them.
    """
    first = next(iter(networks.values()))
    machine, peaks = first["machine"], first["peaks"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    runs = {(run["card"], run["role"], run["batch"]): run for report in networks.values() for run in report["networks"]}
    return "\n".join(
        [
            "# Speed on a CPU",
            "",
            f"Written by `{command}` on {datetime.now(UTC).date().isoformat()}, facetrack {first['facetrack']} "
            f"({first['commit']}):",
            "",
            f"- {machine['processor']}, {machine['cores']} cores; {machine['system']}, Python {machine['python']}",
            f"- {packages}; {first['networks'][0]['backend']}",
            f"- peaks {peaks['gmac_per_s']:.0f} GMAC/s and {peaks['gb_per_s']:.0f} GB/s ({peaks['how']})",
            "",
            "## Whole program",
            "",
            "A portrait that moves in 640x480, from the file to the table; milliseconds. A stage's time is the median",
            "over the frames. The stages run on threads of their own.",
            "",
            *table(
                ["aligner", "faces", "frame", "processor time", "capture", "detect", "align", "smooth"],
                [
                    [name, faces, *_times(report)]
                    for name, by_faces in wholes.items()
                    for faces, report in by_faces.items()
                ],
            ),
            "",
            "## Parts",
            "",
            "Each alone on one thread, on the first frame with one face; median, milliseconds.",
            "",
            *_parts({name: by_faces[FACES[0]]["parts_ms"] for name, by_faces in wholes.items()}),
            "",
            "## Networks",
            "",
            "Median of one run, milliseconds. The roofline is the time that its multiplications, or its bytes, take",
            "at the peaks. These are measured anew for each aligner and vary; above are those of the first.",
            "BB-FCN runs with each of them, and has the figures of the last.",
            "",
            *table(
                ["network", "precision", "batch", "run", "each", "GMAC/s", "of roofline"],
                [[f"{card} {role}", *_network(run)] for (card, role, _), run in runs.items()],
            ),
            "",
        ]
    )


def _times(report: dict[str, Any]) -> list[str]:
    stages = (report["stages_ms"][name]["p50"] for name in ("capture", "detect", "align", "smooth"))
    return [f"{ms:.2f}" for ms in (report["wall_ms_per_frame"], report["cpu_ms_per_frame"], *stages)]


def _parts(by_aligner: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    names = next(iter(by_aligner.values()))
    return table(
        ["part", *by_aligner],
        [[name, *(f"{parts[name]['p50']:.3f}" for parts in by_aligner.values())] for name in names],
    )


def _network(run: dict[str, Any]) -> list[str]:
    share = "" if run.get("of_roofline") is None else f"{run['of_roofline']:.0%}"
    figures = [f"{run['ms']['p50']:.2f}", f"{run['ms_per_picture']:.2f}", f"{run['gmac_per_s']:.1f}", share]
    return [run["precision"], str(run["batch"]), *figures]


def main() -> None:
    """Read the arguments, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "cpu.md")
    parser.add_argument("--backend", default="onnx")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    on = ("--backend", given.backend)
    aligners = [card.name for card in all_cards() if card.task == "align"]
    wholes = {
        name: {
            faces: fastest(given.repeats, "--model", name, "--faces", faces, "--frames", str(given.frames), *on)
            for faces in FACES
        }
        for name in aligners
    }
    networks = {name: bench("--networks", "--model", name, "--batch", BATCHES, *on) for name in aligners}
    command = " ".join(["python benchmarks/cpu_page.py", *sys.argv[1:]])
    given.out.write_text(page_text(wholes, networks, command), encoding="utf-8")


if __name__ == "__main__":
    main()
