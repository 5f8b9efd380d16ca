"""How the commands of training (`python -m facetrack.training.NAME`) end where they cannot do what they were told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..tracker.errors import FacetrackError


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
