"""Where Numba keeps what it compiled."""

from __future__ import annotations

import os
from pathlib import Path
from zlib import crc32

# that define types which kernels take
TYPES = tuple(Path(__file__).with_name(name) for name in ("kalman.py", "proposals.py"))
PASSING = "facetrack-numba-"  # begins the name of a folder that lasts as long as its process
NOT_KEPT, KEEP = "your cache folder (HOME) cannot be written", "set NUMBA_CACHE_DIR to a folder of yours"


def choose_kernel_cache() -> None:
    """Let Numba, which reads it when first imported, use the user's cache folder, unless the user has chosen one.

    Its own choice is beside the sources: there it would outlive an uninstall and hide an editable install.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    try:
        from platformdirs import user_cache_path
    except ImportError:  # no dependencies here, so no Numba either: a GPU machine that only runs engines
        return
    folder = user_cache_path("facetrack", appauthor=False) / "numba"
    os.environ["NUMBA_CACHE_DIR"] = str(_writable(folder / _types()))


def is_passing() -> bool:
    """Whether what is compiled is lost at the end, because the user's cache folder cannot be written."""
    return Path(os.environ.get("NUMBA_CACHE_DIR", "")).name.startswith(PASSING)


def _types() -> str:
    """A name that changes with the types that kernels take.

    A cache names its kernels' types: Numba cannot even open one of an earlier version if one of them is gone.
    """
    return f"{crc32(b''.join(map(Path.read_bytes, TYPES))):08x}"


def _writable(folder: Path) -> Path:
    """The folder; one that lasts as long as this process where that cannot be written."""
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
