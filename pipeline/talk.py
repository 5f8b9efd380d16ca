"""What the program tells its user: on stderr, for stdout is for data."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from .progress import Progress

SOME_FAILED = 3  # exit code: the other inputs are done
log = logging.getLogger("facetrack")  # of all modules


class Talk(logging.Handler):
    """Log lines to wherever stderr is now: a progress bar takes it over for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say a line."""
        say(self.format(record))


def say(line: str) -> None:
    """Tell the user something."""
    click.echo(line, err=True)


def announce_compilation() -> None:
    """Explain the one long start: Numba compiles for this very processor, and keeps what it made."""
    cache = Path(os.environ["NUMBA_CACHE_DIR"])
    if not any(cache.glob("**/*.nbi")):
        say("first start: compiling for this processor, half a minute once")


def show_progress(tasks: int = 1) -> Progress:
    """How far these tasks have got, on stderr; nothing where the user wants errors alone."""
    from .progress import NoProgress, open_progress

    return open_progress(tasks, sys.stderr) if log.isEnabledFor(logging.WARNING) else NoProgress()
