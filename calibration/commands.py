"""`facetrack export` and `calibrate`. Imports wait until a command runs, so that --help is quick."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..pipeline import options as opt
from ..pipeline.talk import SOME_FAILED, say

if TYPE_CHECKING:
    from ..engines.card import ModelCard
    from ..engines.convert import Exported
    from ..engines.parity import Proof
    from .int8 import Quantised

_crops = click.option(
    "--crops", type=opt.PATH, metavar="DIR", help="Pictures of faces to measure on.  [default: packaged ones]"
)


def _proofs(card: ModelCard, crops: Path | None) -> dict[str, Proof]:
    """What a card's networks are judged by in any precision; the pictures are read before anything is written."""
    from ..engines.fit import check_files_fit
    from ..engines.parity import proof_for
    from ..pipeline.crops import crops_for

    check_files_fit(card)
    return {role: proof_for(card, role, crops_for(card, role, crops)) for role in card.weights}


def _print_report(card: ModelCard, networks: Sequence[Exported | Quantised]) -> None:
    """Print which card was written, and the reports of its networks."""
    click.echo(json.dumps({"card": card.name, "networks": [network.report() for network in networks]}, indent=2))


def _prove_room(out: Path) -> None:
    """Check before the work that a card and its weights can be written to OUT.

    Raises:
        SinkError: they cannot.
    """
    from ..pipeline.part_file import check_folder_writable

    for name in ("cards", "weights"):
        check_folder_writable(out / name)


def _refuse_replacing(name: str, source: ModelCard, out: Path, *, overwrite: bool) -> None:
    """Refuse to replace a card in OUT, unless it is the one from which the new card is made.

    Args:
        name: of the new card.
        source: the card from which it is made.
        out: where it goes.
        overwrite: whether the user allows it.
    Raises:
        SinkError: there is such a card.
    """
    from ..engines.card_text import card_path
    from ..tracker.errors import SinkError

    path, weights = card_path(name, out), next(iter(source.weights.values()))
    lies_here = name == source.name and weights.path.parent.resolve() == (out / "weights").resolve()
    if path.exists() and not lies_here and not overwrite:
        raise SinkError(f"{path}: exists already; choose another --out or add --overwrite")


@click.command("export")
@opt.any_model
@click.option("--to", "target", type=click.Choice(["onnx", "tensorrt"]), required=True, help="Runtime to write for.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp16",
    show_default=True,
    help="Precision of the new files.",
)
@opt.batches("Batch sizes to export for, ascending.")
@opt.out_folder
@_crops
@opt.overwrite
@opt.talk
def export(
    model: str, target: str, precision: str, batches: tuple[int, ...], out: Path, crops: Path | None, overwrite: bool
) -> None:
    """Convert a model to another precision or runtime.

    MODEL is the name of a network or card; see `facetrack models`. The command prints how far the new model's landmarks
    are from those of the fp32 model, in pixels.

    ONNX files get a card; set FACETRACK_HOME to DIR to use them. TensorRT plans are also stored where `--backend
    tensorrt` finds them; it uses the plan of a model that was exported last. 8-bit ONNX files are checked one picture
    at a time, so `--batch` does not apply to them.
    """
    from ..engines.card import TASKS, find_card
    from ..engines.convert import derived_name, export_onnx_card, export_plans
    from ..engines.tensorrt_build import PlanRequest
    from ..pipeline.part_file import check_folder_writable

    if opt.was_given("batches") and (target, precision) == ("onnx", "int8"):
        raise click.BadParameter(
            "8-bit ONNX files are checked one picture at a time; leave it out", param_hint="--batch"
        )
    card = find_card(model, *TASKS)
    if target == "onnx" or precision == "int8":  # plans have no card, and those of one name are the same
        _refuse_replacing(derived_name(card.name, precision), card, out, overwrite=overwrite)
        _prove_room(out)
    if target == "tensorrt":
        check_folder_writable(out)
    proofs = _proofs(card, crops)
    if precision == "int8":
        from .int8 import Int8Settings, quantise_card

        card, quantised = quantise_card(card, proofs, Int8Settings(), out)
        if target == "onnx":
            _print_report(card, quantised)
            return
    if target == "onnx":
        card, exported = export_onnx_card(card, precision, batches, proofs, out)
    else:
        exported = export_plans(card, PlanRequest(precision, batches), proofs, out)
    _print_report(card, exported)


@click.group()
def calibrate() -> None:
    """Measure constants and write them into a card or a camera file."""


@calibrate.command("int8")
@opt.any_model
@opt.out_folder
@_crops
@click.option(
    "--method",
    type=click.Choice(["minmax", "entropy"]),
    default="minmax",
    show_default=True,
    help="How onnxruntime sets the ranges.",
)
@click.option(
    "--limit",
    type=opt.FiniteRange(0),
    help="Largest mean shift of the landmarks, as a share of the crop's width.  [default: 0.3/128]",
)
@click.option(
    "--least-weights",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Keep convolutions with fewer weights in 32 bits.",
)
@click.option("--for-cpu", is_flag=True, help="Write files for ONNX Runtime on CPUs only, into the model's own card.")
@opt.overwrite
@opt.talk
def calibrate_int8(
    model: str,
    out: Path,
    crops: Path | None,
    method: str,
    limit: float | None,
    least_weights: int,
    for_cpu: bool,
    overwrite: bool,
) -> None:
    """Quantise a model to 8 bits.

    MODEL is the name of a network or card; see `facetrack models`. Layers that move the landmarks too far stay in 32
    bits. Set FACETRACK_HOME to DIR to use the result: a model NAME-int8 for TensorRT and CPUs alike. With --for-cpu the
    quantisation is finer and the result is for CPUs only: TensorRT and torch continue to use the model's own files.
    """
    from ..engines.card import TASKS, find_card
    from ..engines.convert import derived_name
    from ..engines.quantise import QuantSettings
    from .int8 import LIMIT, Int8Settings, quantise_card

    quant = QuantSettings(method, symmetric=not for_cpu, least_weights=least_weights)
    settings = Int8Settings(quant, for_cpu, LIMIT if limit is None else limit)
    card = find_card(model, *TASKS)
    name = card.name if for_cpu else derived_name(card.name, "int8")
    _refuse_replacing(name, card, out, overwrite=overwrite)
    _prove_room(out)
    card, quantised = quantise_card(card, _proofs(card, crops), settings, out)
    _print_report(card, quantised)


@calibrate.command("camera")
@click.argument("source")
@click.option(
    "--board",
    default="9x6",
    show_default=True,
    metavar="CxR",
    help="Columns and rows of inner corners, where 4 squares meet.",
)
@click.option(
    "--square-mm",
    type=opt.FiniteRange(0, min_open=True),
    default=25,
    show_default=True,
    help="Side of a square in millimetres; affects only the printed distances.",
)
@click.option("--out", type=opt.FILE, required=True, metavar="FILE", help="TOML file to write, for --intrinsics.")
@opt.overwrite
@opt.talk
def calibrate_camera(source: str, board: str, square_mm: float, out: Path, overwrite: bool) -> int:
    """Measure a camera's intrinsics, for true head poses.

    These are its focal lengths, optical axis and distortion. SOURCE is a camera, a video or a folder of pictures of a
    flat chessboard. Show the whole board tilted to all sides, near and far, in the middle and in the corners.
    """
    from .camera import Board, calibrate_source

    try:
        wanted = Board.parse(board, square_mm)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--board") from error
    learned = calibrate_source(source, wanted, out, overwrite=overwrite)
    click.echo(learned.as_text())
    return SOME_FAILED if learned.unread else 0


@calibrate.command("noise")
@opt.aligner
@click.option(
    "--faces",
    type=opt.PATH,
    required=True,
    metavar="DIR",
    help="Photographs with a .pts beside each, none of which the model was trained on.",
)
@click.option(
    "--test",
    "tests",
    multiple=True,
    type=opt.PATH,
    metavar="DIR",
    help="More photographs, only to test on; repeatable.",
)
@click.option("--out", type=opt.PATH, required=True, metavar="DIR", help="Folder for cards/ and weights/.")
@click.option("--plot", type=opt.PLOT, metavar="FILE", help="Plot the result to a PNG or SVG file.")
@click.option("--crops", type=click.IntRange(2), default=8, show_default=True, help="Crops per photograph.")
@opt.talk
def calibrate_noise(model: str, faces: Path, tests: tuple[Path, ...], out: Path, plot: Path | None, crops: int) -> None:
    """Calibrate a model's confidence and noise on photographs.

    MODEL is the name of a network or card; see `facetrack models`. Set FACETRACK_HOME to DIR to use the result.
    """
    from ..engines.card import find_card
    from ..engines.fit import check_fit
    from ..engines.onnx_backend import OnnxBackend
    from ..pipeline.part_file import PartFile
    from ..tracker import markup
    from ..training.evaluation.error_curves import require_matplotlib
    from . import noise, noise_report

    if plot is not None:
        require_matplotlib()
    card = find_card(model, "align")
    noise_report.refuse_other_weights(card, out)
    _prove_room(out)
    made_for_card = not out.exists() and plot is not None and plot.parent.resolve() == out.resolve()
    if plot is not None and not made_for_card:
        PartFile(plot, overwrite=True).check_writable()
    samples, *others = (noise.annotated_faces(folder, markup.load(card.markup)) for folder in (faces, *tests))
    named = {str(folder): other for folder, other in zip(tests, others, strict=True)}
    with closing(OnnxBackend(card.weights["net"])) as net:  # the card's own file, whatever this machine would run
        check_fit(card, card.weights["net"], net)
        learned = noise.calibrate(noise.plain_aligner(card, net), samples, named, crops)
    say(str(noise_report.write_calibration(card, learned, out)))
    click.echo(noise_report.as_text(learned))
    if plot is not None:
        noise_report.plot(learned, plot)
