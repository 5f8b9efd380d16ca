"""facetrack: real-time face landmark tracking. The public names are below; docs/python.md describes them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .tracker.kernel_cache import choose_kernel_cache

__version__ = "0.1.0"
__all__ = [
    "CameraMode",
    "Choices",
    "Engines",
    "Face",
    "Frame",
    "Landmarks",
    "Pose",
    "Result",
    "Retry",
    "Source",
    "eye_aspect_ratio",
    "head_pose",
    "open_engines",
    "open_source",
    "read_intrinsics",
]

if TYPE_CHECKING:
    from .pipeline.camera_file import read_intrinsics
    from .pipeline.camera_mode import CameraMode
    from .pipeline.live_source import Retry
    from .pipeline.open import Choices, Engines, open_engines
    from .pipeline.source import Source
    from .pipeline.sources import open_source
    from .tracker.pose import Pose, eye_aspect_ratio, head_pose
    from .tracker.types import Face, Frame, Landmarks, Result

choose_kernel_cache()  # before any module of any layer imports Numba

_HOMES = {
    ".pipeline.camera_file": ("read_intrinsics",),
    ".pipeline.camera_mode": ("CameraMode",),
    ".pipeline.open": ("Choices", "Engines", "open_engines"),
    ".pipeline.source": ("Source",),
    ".pipeline.sources": ("open_source",),
    ".pipeline.live_source": ("Retry",),
    ".tracker.pose": ("Pose", "eye_aspect_ratio", "head_pose"),
    ".tracker.types": ("Face", "Frame", "Landmarks", "Result"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # type checkers would accept any misspelled name

    def __getattr__(name: str) -> Any:
        """Import a public name on first use, so that `facetrack --help` waits for no library."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    """The public names, imported or not, and the names that are already defined."""
    return sorted({*globals(), *__all__})
