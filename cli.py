"""The command line: words -> one call -> exit code.

0 done, 1 an error in one line, 2 bad usage, 3 some files of a batch failed and the others are done, 130 Ctrl-C.
Data goes to stdout, talk to stderr. What a command needs is imported when it runs, so that --help is quick.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import __version__
from .tracker.errors import BackendError, FacetrackError

if TYPE_CHECKING:
    from .pipeline.open import OpenEngines

log = logging.getLogger("facetrack")
Command = TypeVar("Command", bound=Callable[..., Any])

SOME_FAILED, INTERRUPTED = 3, 130
BACKENDS = ("auto", "onnx", "onnx:cuda", "onnx:tensorrt", "tensorrt", "torch", "torch:cuda")


class _Commands(click.Group):
    """Takes options without a command for those of `live`: `facetrack --camera 0`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            args = ["live", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="facetrack")
def _commands() -> None:
    """Track the landmarks of faces in video. `facetrack --camera 0` is short for `facetrack live --camera 0`."""


def main(arguments: Sequence[str] | None = None, engines: OpenEngines | None = None) -> int:
    """Run one command and give its exit code.

    Args:
        arguments: the words after the program's name; default: this process's.
        engines: opens the networks; default: `pipeline.open.open_engines`.
    """
    _prepare_process()
    log.handlers = [_Talk()]
    log.setLevel(logging.WARNING)
    try:
        code = _commands.main(arguments, prog_name="facetrack", standalone_mode=False, obj=engines)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except FacetrackError as error:
        log.debug("", exc_info=True)
        say(f"facetrack: {'; '.join([str(error), *getattr(error, '__notes__', [])])}")
        return 1
    return code or 0


def say(line: str) -> None:
    """Tell the user something."""
    click.echo(line, err=True)


def _prepare_process() -> None:
    """Settings that libraries read when they are first imported; what the user has set stays."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads and their memory are of no use here
    if "NUMBA_CACHE_DIR" not in os.environ:
        os.environ["NUMBA_CACHE_DIR"] = str(_compilation_cache())


def _compilation_cache() -> Path:
    """The user's cache folder; one that lasts as long as this process where that cannot be written."""
    from platformdirs import user_cache_path

    folder = user_cache_path("facetrack", appauthor=False) / "numba"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    import atexit
    import tempfile

    passing = tempfile.TemporaryDirectory(prefix="facetrack-numba-")
    atexit.register(passing.cleanup)
    return Path(passing.name)


def _announce_compilation() -> None:
    """Explain the one long start: Numba compiles for this very processor, and keeps what it made."""
    cache = Path(os.environ["NUMBA_CACHE_DIR"])
    if not any(cache.glob("**/*.nbi")):
        say("first start: compiling for this processor, half a minute once")


class _Talk(logging.Handler):
    """Log lines to wherever stderr is now: a progress bar takes it over for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def _set_talk(ctx: click.Context, parameter: click.Parameter, value: int) -> int:
    """Set the log's level from -v and -q."""
    del ctx
    if value:
        louder = logging.INFO if value == 1 else logging.DEBUG
        log.setLevel(logging.ERROR if parameter.name == "quiet" else louder)
    return value


def _chain(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


_talk = _chain(
    click.option("-v", "--verbose", count=True, expose_value=False, callback=_set_talk, help="Say more; -vv: all."),
    click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_set_talk, help="Say errors alone."),
)
_backend = _chain(
    click.option("--model", default="gv", show_default=True, help="Network or card; see `facetrack models`."),
    click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each network."),
)
_tracking = _chain(
    _backend,
    click.option(
        "--detect-every",
        type=click.IntRange(1),
        default=25,
        show_default=True,
        help="Frames between two searches for new faces; a frame without any face is always searched.",
    ),
    click.option(
        "--min-face",
        type=click.FloatRange(0),
        default=0,
        help="Smallest face to search for, pixels.  [default: by the frame's size]",
    ),
    click.option("--max-faces", type=click.IntRange(1), default=32, show_default=True, help="Faces at a time."),
)


def _smooth(*kinds: str) -> Callable[[Command], Command]:
    told = "How landmarks are smoothed" + ("; rts also looks at what follows." if "rts" in kinds else ".")
    return click.option("--smooth", type=click.Choice(kinds), default=kinds[0], show_default=True, help=told)


_smooth_live = _smooth("kalman", "oneeuro", "none")
_smooth_recording = _smooth("kalman", "rts", "oneeuro", "none")
_columns = _chain(
    click.option("--raw", is_flag=True, help="Add the landmarks as measured: xr_*, yr_*."),
    click.option("--landmark-confidence", is_flag=True, help="Add the confidence of each landmark: c_*."),
)


@_commands.command()
@click.option("--camera", required=True, metavar="0|URL|FILE", help="What to watch; a FILE plays at its own speed.")
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Write the landmarks, FILE.json beside.")
@click.option("--record", type=click.Path(path_type=Path), metavar="FILE", help="Write an mp4 with the faces drawn.")
@click.option("--jsonl", is_flag=True, help="Write a JSON line for each frame to stdout.")
@click.option("--no-window", "window", flag_value=False, default=True, help="Do not open a window.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@_columns
@_tracking
@_smooth_live
@_talk
@click.pass_obj
def live(engines: OpenEngines | None, /, camera: str, jsonl: bool, **options: Any) -> None:
    """Track a camera, a stream or a recording as it happens. Ends with q, Escape or Ctrl-C."""
    outputs = {
        name: options.pop(name) for name in ("csv", "record", "window", "raw", "landmark_confidence", "overwrite")
    }
    if not (jsonl or outputs["window"] or outputs["csv"] or outputs["record"]):
        raise click.UsageError("nothing to show and nothing to write: give --csv, --record or --jsonl with --no-window")
    _announce_compilation()
    from .pipeline.live import LiveOutputs, LiveRun
    from .pipeline.open import Choices, open_engines

    choices = Choices(**options)
    with (engines or open_engines)(choices) as opened:
        run = LiveRun(opened, choices, LiveOutputs(jsonl=sys.stdout if jsonl else None, **outputs))
        say(run.track(camera))


@_commands.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder of the results.")
@click.option("--video", is_flag=True, help="Write NAME.mp4 with the faces drawn, too.")
@click.option("--overwrite", is_flag=True, help="Replace results that are there.")
@click.option("--resume", is_flag=True, help="Skip inputs whose results are complete, do the others again.")
@_columns
@_tracking
@_smooth_recording
@_talk
@click.pass_obj
def batch(
    engines: OpenEngines | None, /, inputs: tuple[str, ...], out: Path, overwrite: bool, resume: bool, **options: Any
) -> int:
    """Track recordings. A video NAME.ext gives DIR/NAME.csv and NAME.json, a folder of pictures DIR/FOLDER.csv."""
    if overwrite and resume:
        raise click.UsageError("--overwrite does everything again and --resume what is missing: give one of them")
    from .pipeline.batch import Outputs, plan, track_all
    from .pipeline.open import Choices, open_engines
    from .pipeline.progress import NoProgress, open_progress

    written = {name: options.pop(name) for name in ("video", "raw", "landmark_confidence")}
    outputs = Outputs(out, existing="overwrite" if overwrite else "resume" if resume else "refuse", **written)
    tasks, choices = plan(inputs, outputs), Choices(**options)
    _announce_compilation()
    quiet = not log.isEnabledFor(logging.WARNING)
    with (
        (engines or open_engines)(choices) as opened,
        NoProgress() if quiet else open_progress(len(tasks), sys.stderr) as progress,
    ):
        failures = track_all(tasks, outputs, opened, choices, progress)
    for failure in failures:
        say(f"facetrack: failed: {failure}")
    if not failures:
        return 0
    return 1 if failures[0].what == tasks[0].spec and len(tasks) == 1 else SOME_FAILED


@_commands.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.option("--published", is_flag=True, help="Our networks at the papers' sizes beside the papers' own figures.")
@_talk
def models(as_json: bool, published: bool) -> None:
    """List the networks that are here: what they do, how well, and on which terms."""
    from .engines.card import all_cards
    from .pipeline.tables import cards_as_json, cards_as_table, columns

    if published:
        try:
            from .engines.nets.published import rows
        except ModuleNotFoundError as error:
            raise BackendError(f'building networks needs {error.name}; run: pip install "facetrack[train]"') from error
        head, *lines = rows()
        table = [dict(zip(head, line, strict=True)) for line in lines]
        click.echo(json.dumps(table, indent=2) if as_json else columns([head, *lines], numbers_from=1))
        return
    cards = all_cards()
    click.echo(json.dumps(cards_as_json(cards), indent=2) if as_json else cards_as_table(cards))


@_commands.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@_talk
@click.pass_obj
def doctor(engines: OpenEngines | None, /, as_json: bool) -> int:
    """Say what works here, what does not, why, and what to do about it. Exit code 1 if something is broken."""
    from dataclasses import asdict

    from .pipeline.doctor import examine
    from .pipeline.open import open_engines
    from .pipeline.tables import check_as_lines

    checks = []
    for check in examine(engines or open_engines):
        checks.append(check)
        if not as_json:
            click.echo(check_as_lines(check))
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    return int(any(check.status == "failed" for check in checks))


@_commands.command()
@click.argument("video", required=False, type=click.Path(path_type=Path))
@click.option("--faces", type=click.Choice(["1", "4"]), default="1", show_default=True, help="In the made video.")
@click.option("--frames", type=click.IntRange(10), default=600, show_default=True, help="Of the made video.")
@click.option("--networks", is_flag=True, help="Measure each network alone, by backend and batch, against the device.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@_tracking
@_smooth_live
@_talk
@click.pass_obj
def bench(
    engines: OpenEngines | None,
    /,
    video: Path | None,
    faces: str,
    frames: int,
    networks: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the speed on VIDEO, or on a video in which a portrait moves."""
    from .pipeline.bench import BenchSettings, run_bench
    from .pipeline.open import Choices, open_engines
    from .pipeline.tables import bench_as_table

    choices = Choices(**options)
    _announce_compilation()
    if networks:
        from .pipeline.model_bench import bench_networks, networks_as_table

        measured = bench_networks(choices)
        click.echo(json.dumps(measured, indent=2) if as_json else networks_as_table(measured))
        return
    with (engines or open_engines)(choices) as opened:
        report = run_bench(BenchSettings(video, int(faces), frames), opened, choices)
    click.echo(json.dumps(report, indent=2) if as_json else bench_as_table(report))


@_commands.command()
@click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG.toml")
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Root of the data sets.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Checkpoints and log.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change a setting of the file; repeatable.")
@_talk
def train(config: Path, data: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """Train a network as CONFIG.toml says; a run that was interrupted goes on from its last checkpoint."""
    from .training.config import load

    load(config, overrides)  # a mistake in the settings is told before torch is missed
    try:
        from .training.train import run_config
    except ModuleNotFoundError as error:
        raise BackendError(f'training needs {error.name}; run: pip install "facetrack[train]"') from error
    log.setLevel(min(log.getEffectiveLevel(), logging.INFO))  # a run of hours says how far it is
    run_config(config, data, out, overrides)


@_commands.group()
def evaluate() -> None:
    """Measure a model on a published data set as papers do: table, error curves, worst cases, CSV, JSON."""


_evaluation = _chain(
    click.argument("folder", type=click.Path(path_type=Path), metavar="DIR"),
    click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder of the results."),
    click.option(
        "--boxes",
        type=click.Choice(["gt", "detector"]),
        default="gt",
        show_default=True,
        help="Take the annotation's face boxes, or find the faces; missed ones then count as failures.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace results that are there."),
)


def _add_evaluation(name: str, told: str) -> None:
    """Add `facetrack evaluate NAME` for a data set of pictures."""

    @evaluate.command(name, help=told)
    @_evaluation
    @click.option("--skip-broken", is_flag=True, help="Name broken files and leave them out, instead of refusing them.")
    @_backend
    @_talk
    @click.pass_obj
    def command(
        engines: OpenEngines | None,
        /,
        folder: Path,
        out: Path,
        boxes: Any,
        overwrite: bool,
        skip_broken: bool,
        **options: Any,
    ) -> None:
        from .pipeline.open import Choices, open_engines
        from .pipeline.progress import NoProgress, open_progress
        from .training import evaluate as pictures

        settings = pictures.EvaluationSettings(name, folder, out, boxes, "skip" if skip_broken else "refuse", overwrite)
        pictures.check(settings)
        choices = Choices(**options)
        _announce_compilation()
        quiet = not log.isEnabledFor(logging.WARNING)
        with (
            (engines or open_engines)(choices) as opened,
            NoProgress() if quiet else open_progress(1, sys.stderr) as progress,
        ):
            table = pictures.evaluate(settings, opened, choices, progress)
        click.echo(table)


@evaluate.command("300vw")
@_evaluation
@click.option("--keep-bad", is_flag=True, help="Score frames whose annotation is known to be inaccurate as well.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes, a video each.")
@click.option("--resume", is_flag=True, help="Take the videos that a former run has finished.")
@_tracking
@_smooth_recording
@_talk
@click.pass_obj
def evaluate_300vw(
    engines: OpenEngines | None,
    /,
    folder: Path,
    out: Path,
    boxes: Any,
    overwrite: bool,
    keep_bad: bool,
    workers: int,
    resume: bool,
    **options: Any,
) -> int:
    """300VW, 68 and 49 points: DIR holds 114/vid.avi, 114/annot/000001.pts and so on. All protocols side by side."""
    if overwrite and resume:
        raise click.UsageError("--overwrite does everything again and --resume what is missing: give one of them")
    from .pipeline.open import Choices, open_engines
    from .pipeline.progress import NoProgress, open_progress
    from .training import evaluate_videos as videos

    settings = videos.VideoSettings(folder, out, boxes, keep_bad, workers, resume, overwrite)
    videos.check_videos(settings)
    _announce_compilation()
    quiet = not log.isEnabledFor(logging.WARNING)
    with NoProgress() if quiet else open_progress(1, sys.stderr) as progress:
        table, failures = videos.evaluate_videos(settings, engines or open_engines, Choices(**options), progress)
    click.echo(table)
    for failure in failures:
        say(f"facetrack: failed: {failure}")
    return SOME_FAILED if failures else 0


_add_evaluation("300w", "300-W, 68 points: DIR holds lfpw/testset, helen/testset, ibug, 01_Indoor, 02_Outdoor.")
_add_evaluation("wflw", "WFLW, 98 points: DIR holds WFLW_annotations and WFLW_images.")
_add_evaluation("cofw", "COFW, 29 points: DIR holds COFW_test_color.mat.")
_add_evaluation("aflw", "AFLW, 19 points: DIR holds AFLWinfo_release.mat and data/flickr.")
_add_evaluation("aflw2000", "AFLW2000-3D, 68 points: DIR holds image*.jpg and image*.mat.")


@_commands.command("export")
@click.argument("model")
@click.option("--to", "target", type=click.Choice(["onnx", "tensorrt"]), required=True)
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp16", show_default=True)
@click.option("--batch", default="1,4,8", show_default=True, metavar="N,N,...", help="Usual batch sizes, ascending.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder of the results.")
@click.option("--crops", type=click.Path(path_type=Path), metavar="DIR", help="Pictures of faces.  [default: packaged]")
@_talk
def export_model(model: str, target: str, precision: str, batch: str, out: Path, crops: Path | None) -> None:
    """Write a model for another precision or runtime, and how far its landmarks are from the fp32 ones, in pixels.

    ONNX files get a card; set FACETRACK_HOME to DIR to use them. TensorRT plans are also kept where `--backend
    tensorrt` finds them.
    """
    from .engines.convert import any_card, export_onnx_card, export_plans, report
    from .engines.parity import proof_for
    from .engines.tensorrt_build import PlanRequest
    from .pipeline.crops import crops_for

    try:
        request = PlanRequest(precision, tuple(int(number) for number in batch.split(",")))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--batch") from error
    card = any_card(model)

    def proofs(card: Any, role: str) -> Any:
        return proof_for(card, role, crops_for(card, role, crops))

    if precision == "int8":
        from .calibration.int8 import Int8Settings, quantise_card

        card, quantised = quantise_card(card, proofs, Int8Settings(), out)
        if target == "onnx":
            click.echo(json.dumps({"card": card.name, "networks": [entry.report() for entry in quantised]}, indent=2))
            return
    if target == "onnx":
        card, exported = export_onnx_card(card, precision, request.batches, proofs, out)
    else:
        exported = export_plans(card, request, proofs, out)
    click.echo(json.dumps(report(card, exported), indent=2))


@_commands.group()
def calibrate() -> None:
    """Measure constants and write them where the program finds them."""


@calibrate.command("int8")
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder of the results.")
@click.option("--crops", type=click.Path(path_type=Path), metavar="DIR", help="Pictures of faces.  [default: packaged]")
@click.option("--method", type=click.Choice(["minmax", "entropy"]), default="minmax", show_default=True)
@click.option("--limit", type=click.FloatRange(0), help="Largest mean shift of a landmark, share of the crop's width.")
@click.option("--unsigned", is_flag=True, help="Finer steps, for CPUs alone: TensorRT wants signed ones.")
@_talk
def calibrate_int8(model: str, out: Path, crops: Path | None, method: str, limit: float | None, unsigned: bool) -> None:
    """Write a model in 8 bits; layers that move the landmarks too far stay in 32.

    Set FACETRACK_HOME to DIR to use it.
    """
    from .calibration.int8 import LIMIT, Int8Settings, quantise_card
    from .engines.convert import any_card
    from .engines.parity import proof_for
    from .engines.quantise import QuantSettings
    from .pipeline.crops import crops_for

    settings = Int8Settings(QuantSettings(method, symmetric=not unsigned), LIMIT if limit is None else limit)
    card, quantised = quantise_card(
        any_card(model), lambda card, role: proof_for(card, role, crops_for(card, role, crops)), settings, out
    )
    click.echo(json.dumps({"card": card.name, "networks": [entry.report() for entry in quantised]}, indent=2))


@calibrate.command("noise")
@click.argument("model")
@click.option(
    "--faces",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Photographs with a .pts beside each, none of them of the model's training.",
)
@click.option(
    "--test", "tests", multiple=True, type=click.Path(path_type=Path), metavar="DIR", help="More, to measure on alone."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Gets cards/ and weights/.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the result, PNG or SVG.")
@click.option("--crops", type=click.IntRange(2), default=8, show_default=True, help="Of each photograph.")
@_talk
def calibrate_noise(model: str, faces: Path, tests: tuple[Path, ...], out: Path, plot: Path | None, crops: int) -> None:
    """Learn what scores are worth, confidence and noise; set FACETRACK_HOME to DIR to use it."""
    from .calibration import noise, noise_report
    from .engines.backend import open_backend
    from .engines.card import find_card
    from .training.datasets import one_face_each, read_pts_folder

    card = find_card(model, "align")
    net = open_backend(card.weights["net"], "auto", 1)
    samples, *others = (one_face_each(read_pts_folder(folder)) for folder in (faces, *tests))
    named = {str(folder): other for folder, other in zip(tests, others, strict=True)}
    learned = noise.calibrate(noise.plain_aligner(card, net), samples, named, crops)
    net.close()
    say(str(noise_report.write_calibration(card, learned, out)))
    if plot is not None:
        noise_report.plot(learned, plot)
    click.echo(noise_report.as_text(learned))


@_commands.group()
def probe() -> None:
    """Clips of moving faces whose place is known exactly: make them, and measure tracking on them."""


@probe.command("make")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--photos",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Photographs of faces, with a .pts of 68 points beside each.",
)
@click.option("--scene", "scenes", multiple=True, help="Make this scene alone; repeatable.  [default: all]")
@click.option("--copies", type=click.IntRange(1), default=1, show_default=True, help="Of each scene, with other faces.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same clips.")
@_talk
def make_probe(folder: Path, photos: Path, scenes: tuple[str, ...], copies: int, seed: int) -> None:
    """Make the clips in DIR, a folder each in the layout of 300VW."""
    from .training.probe import Recipe
    from .training.probe import make_probe as make

    for clip in make(folder, Recipe(photos, scenes, copies, seed)):
        say(str(clip))


@probe.command("run")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Keep the tables and report.json there.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@_tracking
@_smooth_recording
@_talk
@click.pass_obj
def run_probe(engines: OpenEngines | None, /, folder: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Track the clips of DIR as `facetrack batch` does, and compare with where the faces really are."""
    from .pipeline.open import Choices, open_engines
    from .training.probe import read_probe
    from .training.probe_run import measure_probe
    from .training.probe_table import report_as_table

    clips, choices = read_probe(folder), Choices(**options)
    _announce_compilation()
    with (engines or open_engines)(choices) as opened:
        report = measure_probe(clips, out, opened, choices)
    click.echo(json.dumps(report, indent=2) if as_json else report_as_table(report))


if __name__ == "__main__":
    sys.exit(main())
