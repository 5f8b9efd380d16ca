"""What the training commands (`python -m facetrack.training.NAME`) share: `--set` and how they report errors."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager

from ..tracker.errors import FacetrackError


def add_overrides(parser: ArgumentParser) -> None:
    """Add the option `--set` of `facetrack train` to a command, as `overrides`."""
    told = "change a setting of the file, as for the run; repeatable"
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help=told)


@contextmanager
def errors_in_one_line(command: str) -> Iterator[None]:
    """Exit with a one-line message and code 1 if a folder, a file or a setting is at fault.

    Args:
        command: prefix of the message.
    Raises:
        SystemExit: with the message.
    """
    try:
        yield
    except FacetrackError as error:
        raise SystemExit(f"{command}: {error}") from error
    except OSError as error:
        if error.errno is None:  # not raised by the operating system: a bug of ours
            raise
        place = error.filename or "a file"
        raise SystemExit(f"{command}: {place}: cannot be read or written: {error.strerror}") from error
