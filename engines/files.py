"""Files that are complete or absent."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..tracker.errors import BackendError, FacetrackError


def replace_file(path: Path, content: bytes, failure: type[FacetrackError] = BackendError) -> None:
    """Write a file atomically, by renaming a temporary one; create its folder if needed.

    Args:
        path: of the file.
        content: its new bytes.
        failure: class of the error to raise.
    Raises:
        BackendError, or another `failure`: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise failure(f"{path}: cannot be written ({error.strerror})") from error
