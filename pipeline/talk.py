"""Messages to the user: on stderr, because stdout is for data."""

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


class StderrHandler(logging.Handler):
    """Writes log lines to the current stderr, which a progress bar takes over for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log line."""
        say(self.format(record))


def say(line: str) -> None:
    """Print a line for the user."""
    click.echo(line, err=True)


def show_progress(tasks: int = 1) -> AbstractContextManager[Reporter]:
    """Show the progress of these tasks on stderr; show nothing if the user wants only errors."""
    from .progress import open_progress

    return open_progress(tasks, sys.stderr if log.isEnabledFor(logging.WARNING) else None)
