"""Options and arguments that several commands share: one name, one meaning, one default."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ..engines.choices import KINDS, MAX_FRAME_RATE, MAX_THREADS, MIN_FACE
from .talk import log

if TYPE_CHECKING:
    from ..tracker.intrinsics import Intrinsics

Command = TypeVar("Command", bound=Callable[..., Any])


def chain(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Combine decorators, given in the order in which they would be written above a command."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def refuse_both(*, overwrite: bool, resume: bool) -> None:
    """Refuse two options that contradict each other.

    Raises:
        click.UsageError: both are given.
    """
    if overwrite and resume:
        raise click.UsageError(
            "--overwrite processes everything again, --resume only what is missing: give one of them"
        )


def was_given(parameter: str) -> bool:
    """Whether the user has set a parameter of the current command."""
    return click.get_current_context().get_parameter_source(parameter) is not ParameterSource.DEFAULT


class SomePath(click.Path):
    """The path of a file or folder; refuses an empty one, which would mean the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a path, or fail as bad usage."""
        if not str(value):
            self.fail("wanted the name of a file or folder, got an empty one; is a variable not set?", param, ctx)
        return super().convert(value, param, ctx)


class NewFile(click.Path):
    """The path of a file to write: neither empty nor a folder, and with one of `suffixes` if there are any."""

    def __init__(self, *suffixes: str) -> None:
        super().__init__(dir_okay=False, readable=False, path_type=Path)
        self._suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a path, or fail as bad usage."""
        if not str(value):
            self.fail("wanted the name of a file, got an empty one; is a variable not set?", param, ctx)
        if self._suffixes and not str(value).lower().endswith(self._suffixes):
            self.fail(f"wanted a name that ends in {' or '.join(self._suffixes)}, got {str(value)!r}", param, ctx)
        return super().convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """A range of numbers that excludes nan and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number, or fail as bad usage."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class FaceSide(FiniteRange):
    """A face size in pixels that can be searched for, or 0."""

    def __init__(self) -> None:
        super().__init__(0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number, or fail as bad usage."""
        number = super().convert(value, param, ctx)
        if 0 < number < MIN_FACE:
            self.fail(f"wanted {MIN_FACE} pixels or more, or 0 to choose by the frame, got {value}", param, ctx)
        return number


def _set_talk(ctx: click.Context, parameter: click.Parameter, value: int) -> int:
    """Set the log's level from -v and -q."""
    del ctx
    if value:
        louder = logging.INFO if value == 1 else logging.DEBUG
        log.setLevel(logging.ERROR if parameter.name == "quiet" else louder)
    return value


def _read_shard(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    """The two numbers of "2/8"."""
    del ctx, parameter
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value)
    place, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= place <= count:
        raise click.BadParameter(f"wanted I/N with I from 1 to N, such as 2/8; got {value!r}")
    return place, count


def _read_size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """(height, width) of "1280x720"."""
    if value is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", value)
    if match is None:
        raise click.BadParameter(f"wanted WIDTHxHEIGHT, such as 1280x720; got {value!r}", ctx, parameter)
    return int(match[2]), int(match[1])


def _read_format(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]*", value):
        raise click.BadParameter(f"wanted FFmpeg's name of a format, such as mjpeg; got {value!r}", ctx, parameter)
    return value


def _read_batches(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """The numbers of "1,4,8"."""
    numbers = [int(part) if re.fullmatch("[0-9]{1,4}", part) else 0 for part in value.split(",")]
    if numbers != sorted(set(numbers)) or numbers[0] < 1:
        raise click.BadParameter(f"wanted ascending numbers from 1 to 9999, such as 1,4,8, got {value}", ctx, parameter)
    return tuple(numbers)


def _read_intrinsics(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Intrinsics | None:
    """Read the file at once: a mistake in it shows before any network is loaded."""
    del ctx, parameter
    if value is None:
        return None
    from .camera_file import read_intrinsics

    return read_intrinsics(value)


def _model_to(*tasks: str) -> Callable[[click.Context, click.Parameter, str], str]:
    """A callback that reads the name of a model for one of these tasks."""

    def read(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
        """Refuse an unknown model as bad usage; a broken card is an error of its own."""
        if ctx.get_parameter_source(parameter.name or "") is ParameterSource.DEFAULT:
            return value
        from ..engines.card import broken_cards, find_card
        from ..tracker.errors import CardError

        try:
            find_card(value, *tasks)
        except CardError as error:
            if value in broken_cards():
                raise
            raise click.BadParameter(str(error), ctx, parameter) from error
        return value

    return read


def _parse_address(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    if value is None:
        return None
    from .osc_sink import parse_address

    try:
        return parse_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, parameter) from error


def batches(told: str) -> Callable[[Command], Command]:
    """`--batch` with this help text."""
    return click.option(
        "--batch", "batches", default="1,4,8", show_default=True, metavar="N,N,...", callback=_read_batches, help=told
    )


def _smooth(*kinds: str) -> Callable[[Command], Command]:
    told = "Smoother of the landmarks" + ("; rts also uses the frames that follow." if "rts" in kinds else ".")
    return click.option("--smooth", type=click.Choice(kinds), default=kinds[0], show_default=True, help=told)


PATH, FILE, MP4, PLOT = SomePath(), NewFile(), NewFile(".mp4"), NewFile(".png", ".svg")

talk = chain(
    click.option(
        "-v", "--verbose", count=True, expose_value=False, callback=_set_talk, help="Log more; -vv: everything."
    ),
    click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_set_talk, help="Log only errors."),
)
aligner = click.argument("model", callback=_model_to("align"))
any_model = click.argument("model", callback=_model_to("align", "detect"))
folder = click.argument("folder", type=PATH, metavar="DIR")
out_folder = click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder for the results.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace existing results.")
workers = click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Number of processes; each works on one input at a time.",
)
shard = click.option(
    "--shard",
    default="1/1",
    show_default=True,
    metavar="I/N",
    callback=_read_shard,
    help="Process the I-th of N shares of the inputs: one call for each machine or job of a cluster.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

backend = chain(
    click.option(
        "--model",
        default="gv",
        show_default=True,
        callback=_model_to("align"),
        help="Name of a network or card; see `facetrack models`.",
    ),
    click.option(
        "--backend",
        type=click.Choice(KINDS),
        default="auto",
        show_default=True,
        help="Runtime of the networks; auto takes TensorRT if a plan was exported for this machine, else onnx.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, MAX_THREADS),
        default=1,
        show_default=True,
        help="CPU threads of each network; the search for faces uses up to 4 even if this is lower.",
    ),
)
tracking = chain(
    backend,
    click.option(
        "--detect-every",
        type=click.IntRange(1),
        default=25,
        show_default=True,
        help="Frames between two searches for new faces (below 25 frames/s, 25ths of a second), in crowds a third of "
        "that. While no face is known, every frame is searched as long as something moves.",
    ),
    click.option(
        "--min-face",
        type=FaceSide(),
        default=0,
        help="Smallest face to search for, in pixels, 8 or more; smaller ones may be found by chance.  [default: by "
        "the frame's size, half of that in pictures]",
    ),
    click.option("--max-faces", type=click.IntRange(1), default=32, show_default=True, help="Most faces at a time."),
)
camera_mode = chain(
    click.option(
        "--camera-size", metavar="WxH", callback=_read_size, help="Request this size from the camera, in pixels."
    ),
    click.option(
        "--camera-rate",
        type=FiniteRange(0, min_open=True),
        metavar="FPS",
        help="Request this rate from the camera, in frames per second.",
    ),
    click.option(
        "--camera-format",
        default="",
        metavar="FORMAT",
        callback=_read_format,
        help="Request this format from the camera, such as mjpeg, in which USB cameras send large pictures fast.",
    ),
)
retry = click.option(
    "--retry",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Attempts to reopen a lost camera or stream; the waits double, from 0.5 s up to a minute.",
)
intrinsics = click.option(
    "--intrinsics",
    type=PATH,
    metavar="FILE",
    callback=_read_intrinsics,
    help="Camera file of `facetrack calibrate camera`, for true head poses.",
)
osc = click.option(
    "--osc",
    metavar="HOST:PORT",
    callback=_parse_address,
    help="Send the faces of each frame as Open Sound Control (OSC) over UDP.",
)
decoder = click.option(
    "--decoder",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Decoder of videos and streams; cuda is NVDEC on an NVIDIA GPU.",
)
frame_rate = click.option(
    "--frame-rate",
    type=FiniteRange(0, MAX_FRAME_RATE),
    default=0,
    metavar="FPS",
    help="Treat a folder (or a quoted glob) of pictures as the frames of a video, with this many per second.  "
    "[default: unrelated pictures]",
)
smooth_live = _smooth("kalman", "oneeuro", "none")
smooth_recording = _smooth("kalman", "rts", "oneeuro", "none")
columns = chain(
    click.option("--raw", is_flag=True, help="Add columns for the landmarks before smoothing: xr_*, yr_*."),
    click.option("--landmark-confidence", is_flag=True, help="Add columns for each landmark's confidence: c_*."),
)
