"""The command line: words -> one call -> exit code.

0 done, 1 an error in one line, 2 bad usage, 3 some files of a batch failed and the others are done, 130 Ctrl-C.
Data goes to stdout, talk to stderr. Each command stands in `commands.py` of the layer that does its work.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click

from . import __version__
from .calibration.commands import calibrate, export
from .pipeline.commands import batch, bench, doctor, live
from .pipeline.talk import Talk, log, say
from .tracker.errors import FacetrackError
from .training.commands import evaluate, models, probe, train

if TYPE_CHECKING:
    from .pipeline.open import Choices, Engines, OpenEngines

COMMANDS = (live, batch, evaluate, export, models, doctor, bench, train, calibrate, probe)
INTERRUPTED = 130


class _Commands(click.Group):
    """Takes options without a command for those of `live`: `facetrack --camera 0`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            command = next((word for word in args if word in self.commands), None)
            if command:
                raise click.UsageError(f"options go behind the command: facetrack {command} ... {args[0]}", ctx)
            args = ["live", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
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
    log.handlers = [Talk()]
    log.setLevel(logging.WARNING)
    try:
        code = _commands.main(arguments, prog_name="facetrack", standalone_mode=False, obj=engines or _open_engines)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except FacetrackError as error:
        return _fail(error, str(error))
    except OSError as error:
        if error.errno is None:  # not the system's refusal: a mistake of ours
            raise
        return _fail(error, f"{error.filename or 'a file'}: cannot be read or written: {error.strerror}")
    return code or 0


def _fail(error: Exception, line: str) -> int:
    log.debug("", exc_info=True)
    say(f"facetrack: {'; '.join([line, *getattr(error, '__notes__', [])])}")
    return 1


def _open_engines(choices: Choices) -> AbstractContextManager[Engines]:
    from .pipeline.open import open_engines

    return open_engines(choices)


def _prepare_process() -> None:
    """Settings of the process, and those that libraries read when first imported; what the user has set stays."""
    gc.set_threshold(5_000, 100)  # a start makes 180,000 objects that stay; to search them again and again takes 75 ms
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads and their memory are of no use here


if __name__ == "__main__":
    sys.exit(main())
