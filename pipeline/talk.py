"""What the program tells its user: on stderr, for stdout is for data."""

from __future__ import annotations

import logging
import os
import sys
from hashlib import sha1, sha256
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING

import click

from ..tracker.kernel_cache import is_passing

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .progress import Reporter

SOME_FAILED = 3  # exit code: the other inputs, or the rest of the only one, are done
# of the tracker, which every start compiles
KERNEL_SOURCES = ("appearance", "codecs", "geometry", "kalman", "proposals")
NOT_KEPT, KEEP = "your cache folder (HOME) cannot be written", "set NUMBA_CACHE_DIR to a folder of yours"
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
    """Explain the one long start: Numba compiles for this very processor, and keeps what it made where it can."""
    if is_passing():
        say(f"compiling for this processor, half a minute at every start: {NOT_KEPT}; {KEEP}")
        return
    sources = Path(__file__).parents[1] / "tracker"
    if not all(_is_kept(sources / f"{name}.py") for name in KERNEL_SOURCES):
        say("first start: compiling for this processor, half a minute once")


def _is_kept(source: Path) -> bool:
    """Whether this Numba keeps a kernel of this very source, by its index files (`numba.core.caching`)."""
    from .machine import version_of

    folder = f"{source.parent.name}_{sha1(str(source.parent).encode()).hexdigest()}"
    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    indices = Path(os.environ["NUMBA_CACHE_DIR"], folder).glob(f"{source.stem}.*.{python}.nbi")
    # Numba's version comes first, then the source's hash; in earlier versions, the time of its change, pickled
    stamps = sha256(source.read_bytes()).digest(), pack(">d", source.stat().st_mtime)
    version = (version_of("numba") or "").encode()
    return any(version in kept and any(stamp in kept for stamp in stamps) for kept in map(Path.read_bytes, indices))


def show_progress(tasks: int = 1) -> AbstractContextManager[Reporter]:
    """How far these tasks have got, on stderr; nothing where the user wants errors alone."""
    from .progress import open_progress

    return open_progress(tasks, sys.stderr if log.isEnabledFor(logging.WARNING) else None)
