"""The mode to request from a camera instead of its default, in FFmpeg's terms for devices."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from numbers import Real

from ..tracker.errors import ConfigError, SourceError
from ..tracker.types import whole_size

COMPRESSED = frozenset({"mjpeg", "h264", "hevc"})


@dataclass(frozen=True, slots=True)
class CameraMode:
    """Size, rate and format of a camera's pictures; the device or its driver chooses what is not set.

    Attributes:
        size: (height, width) in pixels.
        rate: frames per second.
        format: as FFmpeg names it, such as "mjpeg" or "yuyv422".
    Raises:
        ConfigError: a value is invalid.
    """

    size: tuple[int, int] | None = None
    rate: float | None = None
    format: str = ""

    def __post_init__(self) -> None:
        if self.size is not None:
            try:
                object.__setattr__(self, "size", whole_size(self.size, "camera mode"))
            except ValueError as error:
                raise ConfigError(str(error)) from error
        if self.rate is not None:
            if not isinstance(self.rate, Real) or not 0 < self.rate <= sys.float_info.max:
                raise ConfigError(f"camera mode: wanted frames per second, got {self.rate!r}")
            object.__setattr__(self, "rate", float(self.rate))  # Python 3.11 cannot format a Fraction with ":g"
        if not isinstance(self.format, str) or not re.fullmatch(r"[a-z0-9_]*", self.format):
            raise ConfigError(f'camera mode: wanted a format such as "mjpeg", got {self.format!r}')

    def __str__(self) -> str:
        """Text such as "1920x1080 at 30 frames/s in mjpeg"; "" if nothing is set."""
        size = "" if self.size is None else f"{self.size[1]}x{self.size[0]}"
        rate = "" if self.rate is None else f"at {self.rate:g} frames/s"
        return " ".join(part for part in (size, rate, self.format and f"in {self.format}") if part)

    def options(self, device: str) -> dict[str, str]:
        """The options for FFmpeg.

        Args:
            device: FFmpeg's name for the system's cameras: v4l2, dshow or avfoundation.
        Raises:
            SourceError: the format cannot be chosen with this device.
        """
        told = {} if self.size is None else {"video_size": f"{self.size[1]}x{self.size[0]}"}
        told |= {} if self.rate is None else {"framerate": f"{self.rate:g}"}
        if self.format and device == "v4l2":
            told["input_format"] = self.format
        elif self.format in COMPRESSED:  # for dshow, only the program ffmpeg can; avfoundation cannot
            raise SourceError(
                f"camera: on this system FFmpeg decides by size and rate whether to use {self.format}: wanted only "
                "size and rate, or an uncompressed format such as nv12"
            )
        elif self.format:
            told["pixel_format"] = self.format
        return told
