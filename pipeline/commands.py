"""`facetrack live`, `batch`, `doctor` and `bench`. Imports wait until a command runs, which keeps --help fast."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..tracker.errors import SinkError
from . import options as opt
from .talk import SOME_FAILED, say, show_progress

if TYPE_CHECKING:
    from .open import OpenEngines
    from .source import Decoder
    from .tasks import Existing


@click.command()
@click.option(
    "--camera",
    required=True,
    metavar="0|URL|FILE",
    help="Camera index, URL or file to track. A FILE plays at its own speed, like a camera.",
)
@opt.camera_mode
@opt.retry
@click.option(
    "--csv", type=opt.FILE, metavar="FILE", help="Write the landmarks to FILE, and a .json of the same name beside it."
)
@click.option("--record", type=opt.MP4, metavar="FILE", help="Write an MP4 video with the faces drawn.")
@click.option("--jsonl", is_flag=True, help="Write one JSON line per frame to stdout.")
@opt.osc
@click.option("--no-window", is_flag=True, help="Do not open a window.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@opt.columns
@opt.intrinsics
@opt.tracking
@opt.decoder
@opt.smooth_live
@opt.talk
@click.pass_obj
def live(
    engines: OpenEngines,
    /,
    camera: str,
    jsonl: bool,
    no_window: bool,
    decoder: Decoder,
    retry: int,
    **options: Any,
) -> None:
    """Track a camera, a stream or a recording as it happens.

    Press q or Escape in the window, or Ctrl-C, to stop. Frames that come faster than they can be tracked are dropped,
    those of a FILE too: to track every frame of a recording, use `facetrack batch`.
    """
    written = {name: options.pop(name) for name in ("csv", "record", "osc", "overwrite")}
    columns = {name: options.pop(name) for name in ("raw", "landmark_confidence", "intrinsics")}
    if no_window and not (jsonl or any(written[name] for name in ("csv", "record", "osc"))):
        raise click.UsageError(
            "nothing to show and nothing to write: with --no-window, add --csv, --record, --jsonl or --osc"
        )
    asked = {name: options.pop(f"camera_{name}") for name in ("size", "rate", "format")}
    if jsonl and sys.stdout is None:
        raise SinkError("--jsonl: stdout is closed; wanted a file, a pipe or a terminal to write to")
    from .camera_mode import CameraMode
    from .csv_sink import TableOptions
    from .live import LiveOutputs, LiveRun
    from .live_source import Retry
    from .open import Choices

    lines = sys.stdout if jsonl else None
    outputs = LiveOutputs(jsonl=lines, window=not no_window, columns=TableOptions(**columns), **written)
    with engines(Choices(**options)) as opened:
        run = LiveRun(opened, outputs, CameraMode(**asked), decoder, Retry(retry))
        try:
            run.track(camera)
        finally:
            if run.summary:
                say(run.summary)
    if not run.summary:
        _forget_stdout()


def _forget_stdout() -> None:
    """Point stdout at the null device: nobody reads it, and Python's flush at exit must not fail."""
    with suppress(OSError, ValueError):  # it has no file descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@opt.out_folder
@click.option("--video", is_flag=True, help="Also write NAME.mp4 with the faces drawn.")
@opt.overwrite
@click.option(
    "--keep-folders",
    is_flag=True,
    help='Keep the subfolders of the matches of a glob: in/s1/NAME.mp4 of "in/**/*.mp4" gives DIR/s1/NAME.csv.',
)
@click.option(
    "--resume",
    is_flag=True,
    help="Skip inputs whose results are complete and process the others again; an interrupted folder of pictures "
    "continues where it stopped.",
)
@opt.workers
@opt.shard
@opt.columns
@opt.intrinsics
@opt.tracking
@opt.decoder
@opt.frame_rate
@opt.smooth_recording
@opt.talk
@click.pass_obj
def batch(
    engines: OpenEngines,
    /,
    inputs: tuple[str, ...],
    out: Path,
    overwrite: bool,
    resume: bool,
    keep_folders: bool,
    video: bool,
    workers: int,
    shard: tuple[int, int],
    decoder: Decoder,
    frame_rate: float,
    **options: Any,
) -> int:
    """Track recordings: videos and folders of pictures.

    INPUT is a video, a folder of pictures, a glob of either, or a URL. A video NAME.ext gives DIR/NAME.csv and
    DIR/NAME.json, a folder of pictures DIR/FOLDER.csv and DIR/FOLDER.json.
    """
    opt.refuse_both(overwrite=overwrite, resume=resume)
    from .batch import open_and_track_all
    from .csv_sink import TableOptions
    from .open import Choices
    from .tasks import Outputs, tasks_for

    columns = TableOptions(**{name: options.pop(name) for name in ("raw", "landmark_confidence", "intrinsics")})
    existing: Existing = "overwrite" if overwrite else "resume" if resume else "refuse"
    outputs = Outputs(out, video=video, columns=columns, existing=existing)
    choices = Choices(**options)
    tasks = tasks_for(inputs, outputs, shard, keep_folders=keep_folders, decoder=decoder, frame_rate=frame_rate)
    if not tasks:
        say(f"shard {shard[0]}/{shard[1]}: nothing to do; there are fewer inputs than shards")
        return 0
    with show_progress(len(tasks)) as progress:
        failures = open_and_track_all(tasks, outputs, engines, choices, progress, workers)
    for failure in failures:
        say(f"facetrack: failed: {failure}")
    if not failures:
        return 0
    return 1 if len(tasks) == 1 and not failures[0].in_part else SOME_FAILED


@click.command()
@opt.as_json
@opt.talk
@click.pass_obj
def doctor(engines: OpenEngines, /, as_json: bool) -> int:
    """Check what works on this machine.

    For what does not work, print the reason and the remedy. The exit code is 1 if something is broken.
    """
    from dataclasses import asdict

    from .doctor import examine
    from .tables import check_as_lines

    checks = []
    for check in examine(engines):
        checks.append(check)
        if not as_json:
            click.echo(check_as_lines(check))
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    return int(any(check.status == "failed" for check in checks))


@click.command()
@click.argument("video", required=False, type=opt.PATH)
@click.option(
    "--faces", type=click.Choice(["1", "4"]), default="1", show_default=True, help="Faces in the generated video."
)
@click.option(
    "--frames", type=click.IntRange(10), default=600, show_default=True, help="Frames in the generated video."
)
@click.option(
    "--networks", is_flag=True, help="Measure each network alone, by backend and batch size, against the device's peak."
)
@opt.batches("With --networks: batch sizes, ascending.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="With --networks: precision to compute in; repeatable.  [default: what the backend uses]",
)
@opt.as_json
@opt.tracking
@opt.decoder
@opt.smooth_live
@opt.talk
@click.pass_obj
def bench(
    engines: OpenEngines,
    /,
    video: Path | None,
    faces: str,
    frames: int,
    networks: bool,
    batches: tuple[int, ...],
    precisions: tuple[str, ...],
    as_json: bool,
    decoder: Decoder,
    **options: Any,
) -> None:
    """Measure the speed on VIDEO or on a generated video.

    In the generated video a portrait moves.
    """
    from .open import Choices

    if (opt.was_given("batches") or precisions) and not networks:
        raise click.UsageError("--batch and --precision apply only to --networks: add --networks, or leave them out")
    if networks and video is not None:
        raise click.UsageError("--networks measures the networks alone: leave VIDEO out")
    if (networks or video is not None) and (opt.was_given("faces") or opt.was_given("frames")):
        raise click.UsageError(
            "--faces and --frames apply only to the generated video, which is not measured here: leave them out"
        )
    choices = Choices(**options)
    if networks:
        from .model_bench import bench_networks
        from .tables import networks_as_table

        measured = bench_networks(choices, batches, precisions=precisions or (None,))
        click.echo(json.dumps(measured, indent=2) if as_json else networks_as_table(measured))
        return
    from .bench import BenchSettings, run_bench
    from .tables import bench_as_table

    with engines(choices) as opened:
        report = run_bench(BenchSettings(video, int(faces), frames, decoder), opened)
    click.echo(json.dumps(report, indent=2) if as_json else bench_as_table(report))
