"""`facetrack models`, `train`, `evaluate` and `probe`. Commands import their parts when they run: --help is quick."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..pipeline import options as opt
from ..pipeline.talk import SOME_FAILED, log, say, show_progress
from ..tracker.errors import BackendError

if TYPE_CHECKING:
    from ..pipeline.open import OpenEngines
    from ..pipeline.tasks import Existing


@click.command()
@opt.as_json
@click.option(
    "--published", is_flag=True, help="List our networks in the sizes of the papers, beside the papers' figures."
)
@opt.talk
def models(as_json: bool, published: bool) -> None:
    """List the available networks.

    For each, print what it does, how well, what it was trained on and its licence.
    """
    from ..engines.card import all_cards, broken_cards, broken_weights
    from ..pipeline.tables import cards_as_json, cards_as_table, columns

    if published:
        try:
            from ..engines.nets.published import rows
        except ModuleNotFoundError as error:
            raise BackendError(f'building networks needs {error.name}; run: pip install "facetrack[train]"') from error
        head, *lines = rows()
        table = [dict(zip(head, line, strict=True)) for line in lines]
        click.echo(json.dumps(table, indent=2) if as_json else columns([head, *lines], numbers_from=1))
        return
    cards = all_cards()
    click.echo(json.dumps(cards_as_json(cards), indent=2) if as_json else cards_as_table(cards))
    for reason in [*broken_cards().values(), *broken_weights(cards)]:
        say(f"facetrack: broken: {reason}")


@click.command()
@click.argument("config", type=opt.PATH, metavar="CONFIG.toml")
@click.option("--data", type=opt.PATH, required=True, metavar="DIR", help="Root folder of the data sets.")
@click.option("--out", type=opt.PATH, required=True, metavar="DIR", help="Folder for the checkpoints and the log.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change a setting of the file; repeatable.")
@click.option(
    "--skip-broken", is_flag=True, help="Report broken files and leave them out; short for --set skip_broken=true."
)
@opt.talk
def train(config: Path, data: Path, out: Path, overrides: tuple[str, ...], *, skip_broken: bool) -> None:
    """Train a network as CONFIG.toml says.

    An interrupted run continues from its last checkpoint.
    """
    from .config import load

    overrides += ("skip_broken=true",) if skip_broken else ()
    load(config, overrides)  # report a mistake in the settings before a missing torch
    try:
        from .objectives import run_config
    except ModuleNotFoundError as error:
        raise BackendError(f'training needs {error.name}; run: pip install "facetrack[train]"') from error
    if log.isEnabledFor(logging.WARNING):  # not with -q
        log.setLevel(min(log.getEffectiveLevel(), logging.INFO))  # a run takes hours: log its progress
    run_config(config, data, out, overrides)


@click.group()
def evaluate() -> None:
    """Measure a model on a published data set as papers do.

    The results are a table, error curves, worst cases, CSV and JSON.
    """


_evaluation = opt.chain(
    opt.folder,
    opt.out_folder,
    click.option(
        "--boxes",
        type=click.Choice(["gt", "detector"]),
        default="gt",
        show_default=True,
        help="Use the annotated face boxes (gt), or find the faces (detector); missed ones then count as failures.",
    ),
    opt.overwrite,
)


def _add_evaluation(name: str, title: str, content: str) -> None:
    """Add `facetrack evaluate NAME` for a picture data set with this title and content of DIR."""

    @evaluate.command(name, help=f"Measure a model on {title}.\n\nDIR holds {content}.")
    @_evaluation
    @click.option(
        "--skip-broken", is_flag=True, help="Report broken files and leave them out, instead of refusing them."
    )
    @opt.backend
    @opt.talk
    @click.pass_obj
    def command(
        engines: OpenEngines,
        /,
        folder: Path,
        out: Path,
        boxes: Any,
        overwrite: bool,
        skip_broken: bool,
        **options: Any,
    ) -> None:
        from ..pipeline.open import Choices
        from .evaluation import pictures

        settings = pictures.EvaluationSettings(name, folder, out, boxes, "skip" if skip_broken else "refuse", overwrite)
        pictures.check(settings)
        choices = Choices(**options)
        with engines(choices) as opened, show_progress() as progress:
            table = pictures.evaluate(settings, opened, progress)
        click.echo(table)


_add_evaluation("300w", "300-W (68 points)", "lfpw/testset, helen/testset, ibug, 01_Indoor, 02_Outdoor")
_add_evaluation("wflw", "WFLW (98 points)", "WFLW_annotations and WFLW_images")
_add_evaluation("cofw", "COFW (29 points)", "COFW_test_color.mat")
_add_evaluation("cofw68", "COFW-68 (68 points)", "COFW68_Data/test_annotations and COFW_test_color.mat")
_add_evaluation("aflw", "AFLW (19 points)", "AFLWinfo_release.mat and data/flickr")
_add_evaluation("aflw2000", "AFLW2000-3D (68 points)", "image*.jpg and image*.mat")


@evaluate.command("300vw")
@_evaluation
@click.option("--keep-bad", is_flag=True, help="Also score frames whose annotation is known to be inaccurate.")
@opt.workers
@click.option("--resume", is_flag=True, help="Keep the results of the videos that an earlier run has finished.")
@opt.tracking
@opt.smooth_recording
@opt.talk
@click.pass_obj
def evaluate_300vw(
    engines: OpenEngines,
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
    """Measure a model on 300VW (68 and 49 points).

    DIR holds 114/vid.avi, 114/annot/000001.pts and so on. The table shows all protocols side by side.
    """
    opt.refuse_both(overwrite=overwrite, resume=resume)
    from ..pipeline.open import Choices
    from .evaluation import videos
    from .evaluation.locate import TRACKING
    from .evaluation.video_benchmark import list_test_videos

    idle = [f"--{name.replace('_', '-')}" for name in options if name in TRACKING and opt.was_given(name)]
    if boxes == "gt" and idle:
        raise click.UsageError(
            f"in given boxes nothing is tracked: add --boxes detector, or leave out {' and '.join(idle)}"
        )
    settings = videos.VideoSettings(folder, out, boxes, keep_bad, workers, resume, overwrite)
    videos.check_videos(settings)
    found = list_test_videos(folder)
    with show_progress(sum(len(part) for part in found)) as progress:
        table, failures = videos.evaluate_videos(settings, found, engines, Choices(**options), progress)
    click.echo(table)
    for failure in failures:
        say(f"facetrack: failed: {failure}")
    return SOME_FAILED if failures else 0


@click.group()
def probe() -> None:
    """Measure tracking on generated clips with known ground truth.

    The clips show moving faces whose places are known exactly.
    """


@probe.command("make")
@opt.folder
@click.option(
    "--photos",
    type=opt.PATH,
    required=True,
    metavar="DIR",
    help="Photographs of faces, with a .pts of 68 points beside each.",
)
@click.option("--scene", "scenes", multiple=True, help="Make only this scene; repeatable.  [default: all]")
@click.option(
    "--copies", type=click.IntRange(1), default=1, show_default=True, help="Clips of each scene, with other faces."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Random seed; the same seed gives the same clips.",
)
@click.option("--resume", is_flag=True, help="Keep the clips that an earlier run with the same arguments has finished.")
@opt.talk
def make_probe(folder: Path, photos: Path, scenes: tuple[str, ...], copies: int, seed: int, resume: bool) -> None:
    """Make the clips in DIR.

    Each clip is a folder in the layout of 300VW.
    """
    from ..tracker.errors import ConfigError
    from .probe import clips

    recipe = clips.Recipe(photos, scenes, copies, seed)
    try:
        recipe.chosen()
    except ConfigError as error:
        raise click.BadParameter(str(error), param_hint="--scene") from error
    for clip in clips.make_probe(folder, recipe, resume=resume):
        say(str(clip))


@probe.command("run")
@opt.folder
@click.option("--out", type=opt.PATH, metavar="DIR", help="Folder to keep the tables and report.json in.")
@opt.overwrite
@click.option("--resume", is_flag=True, help="Keep the tables that an earlier run has finished.")
@opt.as_json
@opt.tracking
@opt.smooth_recording
@opt.talk
@click.pass_obj
def run_probe(
    engines: OpenEngines,
    /,
    folder: Path,
    out: Path | None,
    overwrite: bool,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Track the clips of DIR and compare with the ground truth.

    Tracking is that of `facetrack batch`.
    """
    opt.refuse_both(overwrite=overwrite, resume=resume)
    if resume and out is None:
        raise click.UsageError("--resume continues in the folder of --out: add --out")
    from ..pipeline.open import Choices
    from .probe.clips import read_probe
    from .probe.run import measure_probe
    from .probe.table import report_as_table

    existing: Existing = "overwrite" if overwrite else "resume" if resume else "refuse"
    found, choices = read_probe(folder), Choices(**options)
    with engines(choices) as opened:
        report, failures = measure_probe(found, out, opened, existing)
    click.echo(json.dumps(report, indent=2) if as_json else report_as_table(report))
    for failure in failures:
        say(f"facetrack: failed: {failure}")
    return SOME_FAILED if failures else 0
