"""The command line: words -> one call -> exit code.

0 done, 1 an error in one line, 2 bad usage, 3 some files of a batch failed and the others are done, 130 Ctrl-C.
Data goes to stdout, talk to stderr. What a command needs is imported when it runs, so that --help is quick.
"""

from __future__ import annotations

import json as json_format
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
        from platformdirs import user_cache_path

        os.environ["NUMBA_CACHE_DIR"] = str(user_cache_path("facetrack", appauthor=False) / "numba")


def _set_talk(ctx: click.Context, parameter: click.Parameter, value: int) -> int:
    """Configure logging from -v and -q, whichever was given."""
    del ctx
    if value or parameter.name == "verbose":
        levels = [logging.WARNING, logging.INFO, logging.DEBUG]
        level = logging.ERROR if parameter.name == "quiet" else levels[min(value, 2)]
        logging.basicConfig(format="%(levelname).1s %(message)s", force=True)
        log.setLevel(level)
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
    click.option("--backend", type=click.Choice(["auto", "onnx"]), default="auto", show_default=True),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each network."),
)
_tracking = _chain(
    _backend,
    click.option(
        "--detect-every",
        type=click.IntRange(1),
        default=12,
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
    click.option("--no-smooth", "smooth", flag_value=False, default=True, help="Leave landmarks as measured."),
)
_columns = _chain(
    click.option("--raw", is_flag=True, help="Add the landmarks as measured: xr_*, yr_*."),
    click.option("--landmark-confidence", is_flag=True, help="Add the confidence of each landmark: c_*."),
)
