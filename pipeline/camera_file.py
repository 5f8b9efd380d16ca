"""The file of a calibrated camera: `facetrack calibrate camera` writes it, `--intrinsics` reads it."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..tracker.errors import ConfigError
from ..tracker.intrinsics import Intrinsics
from .part_file import atomic_write_text
from .source import Source

_NUMBERS = ("width", "height", "fx", "fy", "cx", "cy")
_KNOWN = {*_NUMBERS, "distortion", "rms_px", "how"}
_HEAD = """\
# A camera's intrinsics, by `facetrack calibrate camera`, for `facetrack batch` and `live --intrinsics FILE`.
# Pixels; (0, 0) is the centre of the top left one. Distortion is OpenCV's: k1, k2, p1, p2, k3, ...
"""


def write_intrinsics(path: Path, intrinsics: Intrinsics, *, rms_px: float, how: str, overwrite: bool = False) -> None:
    """Write a small TOML file.

    Args:
        path: of the file.
        intrinsics: the ones to write.
        rms_px: error of the calibration.
        how: how the camera was calibrated, as text.
        overwrite: replace an existing file.
    Raises:
        SinkError: it cannot be written.
    """
    height, width = intrinsics.size
    lines = [f"width = {width}", f"height = {height}"]
    lines += [f"{name} = {getattr(intrinsics, name):.4f}" for name in ("fx", "fy", "cx", "cy")]
    lines.append(f"distortion = [{', '.join(f'{value:.8f}' for value in intrinsics.distortion)}]")
    lines += [f"rms_px = {rms_px:.4f}", f"how = {_quoted(how)}"]
    atomic_write_text(path, _HEAD + "\n".join(lines) + "\n", overwrite=overwrite)


def read_intrinsics(path: Path | str) -> Intrinsics:
    """Read a file by `write_intrinsics` or one written by hand: distortion, rms_px and how may be missing.

    Raises:
        ConfigError: it cannot be read, or is not such a file.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested too deeply
        advice = "wanted a file that `facetrack calibrate camera` wrote"
        raise ConfigError(f"{path}: is not TOML ({error}); {advice}") from error
    strange = sorted(content.keys() - _KNOWN)
    if strange:
        raise ConfigError(f"{path}: unknown {', '.join(strange)}; wanted {', '.join(sorted(_KNOWN))}")
    width, height, fx, fy, cx, cy = (_number(path, name, content.get(name)) for name in _NUMBERS)
    for name, value in (("width", width), ("height", height)):
        if not value.is_integer():
            raise ConfigError(f"{path}: {name}: wanted a whole number, got {value}; correct the file")
    distortion = content.get("distortion", [])
    if not isinstance(distortion, list):
        raise ConfigError(f"{path}: distortion: wanted a list of numbers, got {distortion!r}")
    lens = tuple(_number(path, "distortion", value) for value in distortion)
    try:
        return Intrinsics((int(height), int(width)), fx, fy, cx, cy, lens)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def describe_intrinsics(intrinsics: Intrinsics | None) -> dict[str, Any] | str:
    """The sidecar's entry for the camera that head poses depend on."""
    return "default" if intrinsics is None else asdict(intrinsics)


def refuse_other_aspect(intrinsics: Intrinsics | None, source: Source) -> None:
    """Refuse a video that cannot be from this camera before anything is written; pictures are checked later.

    Raises:
        ConfigError: the video has another aspect.
    """
    if intrinsics is not None and source.size is not None:
        intrinsics.scaled(source.size)


def _number(path: Path | str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        got = "nothing" if value is None else repr(value)
        raise ConfigError(f"{path}: {name}: wanted a number, got {got}; calibrate the camera again or correct the file")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{path}: {name}: wanted a finite number, got {number}; correct the file")
    return number


def _quoted(text: str) -> str:
    """A basic string in TOML."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
