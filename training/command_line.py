"""What the commands of training (`python -m facetrack.training.NAME`) share: `--set`, and how they end in errors."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager

from ..tracker.errors import FacetrackError


def add_overrides(parser: ArgumentParser) -> None:
    """Give a command the option `--set` of `facetrack train`, as `overrides`."""
    told = "change a setting of the file, as for the run; repeatable"
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help=told)


@contextmanager
def errors_in_one_line(command: str) -> Iterator[None]:
    """End the program with one line and exit code 1 where a folder, a file or a setting is at fault.

    Args:
        command: what the line begins with.
    Raises:
        SystemExit: with that line.
    """
    try:
        yield
    except FacetrackError as error:
        raise SystemExit(f"{command}: {error}") from error
    except OSError as error:
        if error.errno is None:  # not the system's refusal: a mistake of ours
            raise
        place = error.filename or "a file"
        raise SystemExit(f"{command}: {place}: cannot be read or written: {error.strerror}") from error
