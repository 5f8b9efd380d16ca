"""How a camera maps directions to pixels, as measured by a calibration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from .errors import ConfigError
from .types import Float64, whole_size

_COEFFICIENTS = (0, 4, 5, 8, 12, 14)  # how many OpenCV's lens model can have
_ROUNDED_PX = 1.0  # sizes are rounded to whole pixels: 1920x1080 scaled down may be 854x480
# OpenCV's 5 iterations leave an error of a pixel in the corners of a wide lens; these leave a thousandth at most.
_UNDISTORT = (cv2.TERM_CRITERIA_MAX_ITER + cv2.TERM_CRITERIA_EPS, 100, 1e-4)


@dataclass(frozen=True, slots=True)
class Intrinsics:
    """A pinhole camera with a distorting lens, in pixels of pictures of one size.

    Attributes:
        size: (height, width) of the pictures.
        fx, fy: focal lengths.
        cx, cy: where the optical axis meets the picture; (0, 0) is the centre of the top left pixel.
        distortion: (k1, k2, p1, p2[, k3[, k4, k5, k6[, s1, s2, s3, s4[, tx, ty]]]]), in OpenCV's order; () is none.

    Sizes and coefficients may be lists or arrays, as in OpenCV.

    Raises:
        ValueError: a focal length is not above 0, the size is not in whole pixels above 0, a value is not finite, or
            there is another number of coefficients.
    """

    size: tuple[int, int]
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", whole_size(self.size, "intrinsics"))
        for name in ("fx", "fy", "cx", "cy"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "distortion", tuple(np.asarray(self.distortion, np.float64).ravel().tolist()))
        if not np.isfinite([self.fx, self.fy, self.cx, self.cy, *self.distortion]).all():
            raise ValueError("intrinsics: wanted finite numbers")
        if min(self.fx, self.fy) <= 0:
            raise ValueError(f"intrinsics: wanted focal lengths above 0, got fx {self.fx} and fy {self.fy}")
        if len(self.distortion) not in _COEFFICIENTS:
            wanted = ", ".join(map(str, _COEFFICIENTS))
            raise ValueError(f"intrinsics: wanted {wanted} coefficients of distortion, got {len(self.distortion)}")

    @property
    def matrix(self) -> Float64:
        """(3, 3) camera matrix."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])

    def scaled(self, size: tuple[int, int]) -> Intrinsics:
        """The same camera for pictures that were scaled as a whole.

        Args:
            size: (height, width) of these pictures.
        Raises:
            ValueError: size is not (height, width) in whole pixels above 0.
            ConfigError: the aspect differs: the pictures were cropped, squeezed, turned or taken by another camera.
        """
        return _scaled(self, whole_size(size, "intrinsics"))

    def undistort(self, xy: Float64) -> Float64:
        """Return the pixels in which the same camera with a perfect lens would see points.

        Args:
            xy: (N, 2) pixels.
        Returns:
            (N, 2); not finite, or far away, for a pixel that sees no direction.
        """
        if not any(self.distortion):
            return xy
        lens = np.array(self.distortion)
        straight = cv2.undistortImagePoints(xy[:, None], self.matrix, lens, None, _UNDISTORT)
        return straight[:, 0].astype(np.float64)


@cache
def _scaled(camera: Intrinsics, size: tuple[int, int]) -> Intrinsics:
    if size == camera.size:
        return camera
    (own_height, own_width), (height, width) = camera.size, size
    scale = max(height / own_height, width / own_width)
    if max(abs(own_height * scale - height), abs(own_width * scale - width)) > _ROUNDED_PX:
        raise ConfigError(
            f"intrinsics: the camera was calibrated at {own_width}x{own_height}, and these pictures are "
            f"{width}x{height}: they show another part of its view; calibrate it with pictures of this aspect"
        )
    cx, cy = ((value + 0.5) * scale - 0.5 for value in (camera.cx, camera.cy))  # scaled about the picture's corner
    return Intrinsics(size, camera.fx * scale, camera.fy * scale, cx, cy, camera.distortion)
