"""What the program tells its user: on stderr, for stdout is for data."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .progress import Reporter

SOME_FAILED = 3  # exit code: the other inputs, or the rest of the only one, are done
log = logging.getLogger("facetrack")  # of all modules


class Talk(logging.Handler):
    """Log lines to wherever stderr is now: a progress bar takes it over for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say a line."""
        say(self.format(record))


def say(line: str) -> None:
    """Tell the user something."""
    click.echo(line, err=True)


def show_progress(tasks: int = 1) -> AbstractContextManager[Reporter]:
    """How far these tasks have got, on stderr; nothing where the user wants errors alone."""
    from .progress import open_progress

    return open_progress(tasks, sys.stderr if log.isEnabledFor(logging.WARNING) else None)
