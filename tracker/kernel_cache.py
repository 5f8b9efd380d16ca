"""Where Numba caches its compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path
from zlib import crc32

# the files that define types which kernels take
TYPES = tuple(Path(__file__).with_name(name) for name in ("kalman.py", "proposals.py"))
PASSING = "facetrack-numba-"  # prefix of a temporary cache folder, deleted when its process ends
NOT_KEPT, KEEP = "your cache folder (HOME) cannot be written", "set NUMBA_CACHE_DIR to a folder that you can write"


def choose_kernel_cache() -> None:
    """Point NUMBA_CACHE_DIR to the user's cache folder, unless the user has set it.

    Numba reads the variable when it is first imported. Its default is a folder beside the sources, which would outlive
    an uninstall and hide an editable install.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    try:
        from platformdirs import user_cache_path
    except ImportError:  # no dependencies here, so no Numba either: a GPU machine that only runs engines
        return
    folder = user_cache_path("facetrack", appauthor=False) / "numba"
    os.environ["NUMBA_CACHE_DIR"] = str(_writable(folder / _types()))


def is_temporary() -> bool:
    """Whether compiled kernels are lost when the process ends, because the user's cache folder cannot be written."""
    return Path(os.environ.get("NUMBA_CACHE_DIR", "")).name.startswith(PASSING)


def _types() -> str:
    """Return a folder name that changes with the types that kernels take.

    A cache refers to these types by name. Numba cannot open the cache of an earlier version if one of them is gone.
    """
    return f"{crc32(b''.join(map(Path.read_bytes, TYPES))):08x}"


def _writable(folder: Path) -> Path:
    """Return the folder, or a temporary one that is deleted with this process if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    import atexit
    import tempfile

    passing = tempfile.TemporaryDirectory(prefix=PASSING)
    atexit.register(passing.cleanup)
    return Path(passing.name)
