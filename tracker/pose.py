"""Where a head is and how it is turned, and how open the eyes are, from landmarks alone.

Camera coordinates are OpenFace's: millimetres, origin at the camera, x to the right of the picture, y down, z
away from the camera. Rotations are Euler angles in radians with R = Rx Ry Rz; a face that looks straight
along the camera's axis has three zeros. As the picture shows it, a positive Rx lowers the nose (the subject
looks down), a positive Ry moves the nose to the picture's left (the subject turns to the subject's right) and
a positive Rz turns the head clockwise (towards the subject's left shoulder).
Source: OpenFace 2.2, `GetPose` and `RotationHelpers.h`, and its wiki page "Output Format".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from .geometry import bounding_box, longer_side
from .intrinsics import Intrinsics
from .markup import for_points
from .types import Float32, Float64, Int64, frozen_array, whole_size

# Mean face of the ibug68 markup in millimetres, four points (x y z) to a line. Our non-rigid factorisation
# (Torresani et al., PAMI 2008: weak perspective, 8 modes, mirrored copies added) of the 2,012 annotations of
# AFW, HELEN train and LFPW train, scaled to 63.4 mm between the eye centres (Dodgson, "Variation and extrema
# of human interpupillary distance", 2004). The origin is the mean of the points; the mean attitude of those
# photographs counts as level.
_MEAN_FACE = """
-69.9 -35.4  49.7   -69.0 -17.1  48.1   -66.7   1.3  47.3   -63.2  19.2  46.5
-56.7  35.9  42.7   -46.1  50.4  35.4   -32.8  62.6  24.2   -17.5  72.4  11.8
  0.0  75.2   7.6    17.5  72.4  11.8    32.8  62.6  24.2    46.1  50.4  35.4
 56.7  35.9  42.7    63.2  19.2  46.5    66.7   1.3  47.3    69.0 -17.1  48.1
 69.9 -35.4  49.7   -58.2 -50.4  10.6   -49.2 -58.0   1.7   -36.8 -60.3  -6.4
-24.2 -58.6 -12.7   -12.1 -54.1 -17.0    12.1 -54.1 -17.0    24.2 -58.6 -12.7
 36.8 -60.3  -6.4    49.2 -58.0   1.7    58.2 -50.4  10.6     0.0 -39.4 -18.3
  0.0 -27.3 -25.4     0.0 -15.4 -33.3     0.0  -3.1 -40.7   -14.2   5.1 -22.3
 -7.3   7.6 -25.5     0.0   9.8 -27.5     7.3   7.6 -25.5    14.2   5.1 -22.3
-43.8 -37.4   2.0   -36.2 -42.0  -1.8   -26.8 -41.8  -3.6   -18.9 -35.9  -4.0
-27.6 -34.1  -4.2   -36.8 -34.2  -2.6    18.9 -35.9  -4.0    26.8 -41.8  -3.6
 36.2 -42.0  -1.8    43.8 -37.4   2.0    36.8 -34.2  -2.6    27.6 -34.1  -4.2
-27.6  28.1  -1.3   -17.4  23.8 -14.5    -7.2  21.6 -22.0     0.0  23.4 -22.8
  7.2  21.6 -22.0    17.4  23.8 -14.5    27.6  28.1  -1.3    17.9  37.5 -11.8
  7.9  41.5 -18.7     0.0  42.3 -19.8    -7.9  41.5 -18.7   -17.9  37.5 -11.8
-23.4  28.6  -3.7    -7.4  27.7 -19.7     0.0  28.4 -20.9     7.4  27.7 -19.7
 23.4  28.6  -3.7     7.5  32.4 -18.1     0.0  33.2 -19.4    -7.5  32.4 -18.1
"""
MEAN_FACE_MM: Float64 = frozen_array(
    np.array(_MEAN_FACE.split(), np.float64).reshape(-1, 3), (68, 3), "mean face", np.float64
)

# Points that no blink, raised brow, smile or open mouth moves: upper contour, nose, eye corners. With all 68 points
# a jaw opened by 20 degrees is mistaken for 3 degrees of pitch and 23 mm of depth at 600 mm, with these for none.
_RIGID: Int64 = np.array([0, 1, 2, 3, 13, 14, 15, 16, *range(27, 36), 36, 39, 42, 45])
_RIGID_MM: Float64 = MEAN_FACE_MM[_RIGID]
_RvecTvec = tuple[Float64, Float64]  # rotation and translation of a head, each (3, 1), as OpenCV has them

# On a turned head, annotators and networks mark the visible outline, not the jaw behind it: with the far side's contour
# a yaw of 65 degrees is measured as 45. Up to the first of these yaws all of `_RIGID` count, from the second on none of
# the far side's contour, and between them the pose is interpolated between the two fits.
_NOT_FAR_RIGHT = np.flatnonzero(_RIGID > 3)  # what counts of a head turned to its right (a positive yaw)
_NOT_FAR_LEFT = np.flatnonzero((_RIGID < 13) | (_RIGID > 16))
_TURNING_RAD = np.deg2rad(20), np.deg2rad(40)

BESIDE = 0.25  # distance of pixels from a fitted model, over their spread; usually 0.15, for no labelled face over 0.3
FLATTEST = 0.02  # width over length of the points' cloud below which the points are a line, not a face
NARROWEST_EYE = 0.03  # share of the longer side of the landmarks' box; an eye seen from the front has 0.18
SMALLEST_PX = 2.0  # standard deviation along the cloud's longer axis


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """A head in camera coordinates.

    Attributes:
        translation_mm: (3,) float64, the centre of the mean face's 68 points; z grows away from the camera.
        rotation_rad: (3,) float64, Rx (pitch), Ry (yaw), Rz (roll); see the module for axes and signs.
    """

    translation_mm: Float64
    rotation_rad: Float64

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "translation_mm", frozen_array(self.translation_mm, (3,), "Pose.translation_mm", np.float64)
        )
        object.__setattr__(self, "rotation_rad", frozen_array(self.rotation_rad, (3,), "Pose.rotation_rad", np.float64))


def camera_matrix(size: tuple[int, int]) -> Float64:
    """Return the (3, 3) matrix that OpenFace assumes for an unknown camera.

    Args:
        size: (height, width) of the frame in pixels.
    Raises:
        ValueError: the size is not of whole pixels above 0.
    Source: OpenFace 2.2, `SequenceCapture::SetCameraIntrinsics`: 500 px of focal length at 640x480.
    """
    height, width = whole_size(size, "camera", "; take result.frame.size")
    focal_px = (500 * (width / 640) + 500 * (height / 480)) / 2
    return np.array([[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1]])


def head_pose(xy: Float32, size: tuple[int, int], intrinsics: Intrinsics | None = None) -> Pose | None:
    """Fit the mean face to 68 landmarks and return the head's position and rotation.

    The fit uses only the points that no expression moves (upper contour, nose, eye corners), and no initial guess, so
    it depends on this frame alone. For a head turned by 40 degrees or more, the far side's contour does not count.
    Compared with MediaPipe's face mesh on AFW, HELEN and LFPW, yaw is off by 1.5 degrees below 20, 3.1 from 30 to 40,
    3.3 beyond.

    Args:
        xy: (68, 2) ibug68 points in frame pixels; they may lie outside the frame.
        size: (height, width) of the frame in pixels.
        intrinsics: of the camera, at this size or another of the same aspect; default: `camera_matrix`, no distortion.
    Returns:
        The pose, or None if these points do not determine a head: one of them is not finite, they coincide or lie on
        one line, or only a head behind the camera would fit.
    Raises:
        ValueError: xy is not (68, 2), size is not (height, width) in whole pixels above 0, or intrinsics is not an
            `Intrinsics`.
        ConfigError: the aspect of the frame differs from that of the intrinsics.
    Source: Terzakis and Lourakis, "A consistently fast and globally optimal solution to the
        perspective-n-point problem", ECCV 2020.
    """
    points = np.asarray(xy, np.float64)
    if points.shape != MEAN_FACE_MM[:, :2].shape:
        raise ValueError(f"head pose: wanted (68, 2) points of the ibug68 markup, got {points.shape}")
    camera, rigid = camera_matrix(size), points[_RIGID]
    if intrinsics is not None:
        if not isinstance(intrinsics, Intrinsics):
            raise ValueError(
                f"head pose: wanted Intrinsics, as read_intrinsics returns them, got {type(intrinsics).__name__}"
            )
        seen_by = intrinsics.scaled(size)
        camera, rigid = seen_by.matrix, seen_by.undistort(rigid)
    if not _shows_a_face(rigid):
        return None
    pose = _fit(_RIGID_MM, rigid, camera)
    if pose is None or abs(pose.rotation_rad[1]) < _TURNING_RAD[0] / 2:
        return pose
    seen = _NOT_FAR_RIGHT if pose.rotation_rad[1] > 0 else _NOT_FAR_LEFT
    turned = _fit(_RIGID_MM[seen], rigid[seen], camera)
    return pose if turned is None else _between(pose, turned)


def _fit(model_mm: Float64, pixels: Float64, camera: Float64) -> Pose | None:
    """Fit a model (P, 3) to pixels (P, 2); None if it would be behind the camera.

    SQPNP needs no initial guess, but the error that it minimises shrinks as the head comes closer. No face equals the
    mean face, and the camera is usually only assumed, so the minimum is now and then a head turned away at arm's
    length. If the result is far from the pixels, the reprojection error is minimised instead, starting from the pose
    under weak perspective.
    """
    fitted = _solved(model_mm, pixels, camera, cv2.SOLVEPNP_SQPNP)
    error = math.inf if fitted is None else _error(fitted, model_mm, pixels, camera)
    if error > BESIDE * _spread(pixels):
        start = _from_afar(model_mm, pixels, camera)
        other = _solved(model_mm, pixels, camera, cv2.SOLVEPNP_ITERATIVE, start)
        if other is not None and _error(other, model_mm, pixels, camera) < error:
            fitted = other
    if fitted is None:
        return None
    matrix, _ = cv2.Rodrigues(fitted[0])
    return Pose(fitted[1][:, 0], euler_angles(matrix.astype(np.float64)))


def _solved(
    model_mm: Float64, pixels: Float64, camera: Float64, method: int, start: _RvecTvec | None = None
) -> _RvecTvec | None:
    """Solve with one of OpenCV's methods; SQPNP refuses points that span less than a hundredth of the focal length."""
    turn, shift = (None, None) if start is None else start
    try:
        found, turned, moved = cv2.solvePnP(model_mm, pixels, camera, None, turn, shift, start is not None, method)
    except cv2.error:
        return None
    if not found or not np.isfinite(moved).all() or moved[2, 0] <= 0:
        return None
    return turned.astype(np.float64), moved.astype(np.float64)


def _error(fitted: _RvecTvec, model_mm: Float64, pixels: Float64, camera: Float64) -> float:
    """Root mean square reprojection error, px."""
    seen, _ = cv2.projectPoints(model_mm, *fitted, camera, None)
    return float(cv2.norm(seen[:, 0], pixels)) / math.sqrt(len(pixels))


def _spread(pixels: Float64) -> float:
    """Root mean square distance of the pixels from their mean, px."""
    apart = pixels - pixels.mean(0)
    return math.sqrt(float(np.vdot(apart, apart)) / len(pixels))


def _from_afar(model_mm: Float64, pixels: Float64, camera: Float64) -> _RvecTvec:
    """The pose under weak perspective, in which all points have the same depth, as for a distant camera.

    Source: Horaud et al., "Object pose: the link between weak perspective, paraperspective, and full perspective",
        IJCV 1997.
    """
    middle = model_mm.mean(0)
    seen = (pixels - camera[:2, 2]) / camera[[0, 1], [0, 1]]  # at depth 1
    _, moves = cv2.solve(model_mm - middle, seen - seen.mean(0), flags=cv2.DECOMP_QR)  # 3, 2: per millimetre
    scales, left, right = cv2.SVDecomp(moves.T)  # OpenCV's, to avoid the memory that LAPACK takes at its first call
    across = left @ right  # 2, 3: the nearest orthonormal rows
    matrix = np.vstack((across, np.cross(across[0], across[1])))
    place = np.append(seen.mean(0), 1.0) / scales.mean() - matrix @ middle
    return cv2.Rodrigues(matrix)[0].astype(np.float64), place[:, None]


def _between(straight: Pose, turned: Pose) -> Pose:
    """Interpolate from one pose to the other; the second one itself if it is turned far enough."""
    begin, end = _TURNING_RAD
    share = float(np.clip((abs(turned.rotation_rad[1]) - begin) / (end - begin), 0.0, 1.0))
    start = rotation_matrix(straight.rotation_rad)
    way, _ = cv2.Rodrigues(start.T @ rotation_matrix(turned.rotation_rad))
    matrix = start @ cv2.Rodrigues(share * way)[0]
    shift = (1 - share) * straight.translation_mm + share * turned.translation_mm
    return Pose(shift, euler_angles(matrix.astype(np.float64)))


def euler_angles(matrix: Float64) -> Float64:
    """Return (Rx, Ry, Rz) in radians of a (3, 3) rotation matrix R = Rx Ry Rz; Ry lies within +-pi/2."""
    (xx, xy, xz), (_, _, yz), (_, _, zz) = matrix.tolist()
    return np.array([math.atan2(-yz, zz), math.asin(min(max(xz, -1.0), 1.0)), math.atan2(-xy, xx)])


def rotation_matrix(rotation_rad: Float64) -> Float64:
    """Return the (3, 3) matrix R = Rx Ry Rz of three Euler angles in radians, the inverse of `euler_angles`."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(rotation_rad), np.cos(rotation_rad)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    rotation: Float64 = about_x @ about_y @ about_z
    return rotation


def eye_aspect_ratio(xy: Float32) -> tuple[float, float]:
    """Return how open the subject's left and right eyes are: mean gap of the lids over the eye's width.

    About 0.3 for an open eye and below 0.15 for a closed one. With the six points that ibug68 has for an eye
    this is Eq. 1 of the source; wflw98 has three pairs of lid points instead of two, cofw29 one.

    Args:
        xy: (N, 2) points of a known markup.
    Returns:
        (left, right); NaN if the markup does not distinguish the upper lid from the lower one (aflw19, five5), if the
        corners nearly coincide, as in profile, or if a point is not finite.
    Raises:
        ValueError: xy is not (N, 2).
        MarkupError: no markup has N points.
    Source: Soukupova and Cech, "Real-time eye blink detection using facial landmarks", CVWW 2016.
    """
    points = np.asarray(xy, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"eye opening: wanted (N, 2) points of a markup, got {points.shape}")
    known = points if math.isfinite(np.vdot(points, points)) else points[np.isfinite(points).all(1)]
    least = NARROWEST_EYE * longer_side(bounding_box(known.astype(np.float32))) if len(known) else 0.0
    left, right = (_eye_openness(points, upper, lower, least) for upper, lower in lids(len(points)))
    return left, right


def _eye_openness(points: Float64, upper: Int64, lower: Int64, least: float) -> float:
    """As `openness`; NaN also if the eye is less than `least` pixels wide."""
    if upper.size and math.dist(points[upper[0]].tolist(), points[upper[-1]].tolist()) < least:
        return math.nan
    return openness(points, upper, lower)


def lids(count: int) -> tuple[tuple[Int64, Int64], ...]:
    """Upper and lower lid of the left and the right eye, corner to corner; empty if both are one line."""
    return facing(count)[:2]


@cache
def facing(count: int) -> tuple[tuple[Int64, Int64], ...]:
    """Upper and lower edge of the left eye, the right eye and the mouth's opening; empty if both are one line."""
    lines = for_points(count).boundaries
    edges = []
    for part in ("eye_left", "eye_right", "lip_inner"):
        upper, lower = (np.array(lines.get(f"{part}_{edge}", ()), np.int64) for edge in ("upper", "lower"))
        same = np.array_equal(upper, lower)
        edges.append((upper[:0], lower[:0]) if same else (upper, lower))
    return tuple(edges)


def openness(points: Float64, upper: Int64, lower: Int64) -> float:
    """Mean gap between two of the `facing` edges of points (N, 2), over their width; NaN if it is undefined."""
    if not upper.size:
        return math.nan
    (begin, *above, end), below = points[upper].tolist(), points[lower[1:-1]].tolist()
    width = math.dist(begin, end)
    gap = sum(map(math.dist, above, below)) / len(above)
    return gap / width if 0 < width < math.inf and math.isfinite(gap) else math.nan


def _shows_a_face(points: Float64) -> bool:
    """Whether the points spread over an area: not a dot, not a line, all finite."""
    if not math.isfinite(np.vdot(points, points)):
        return False
    x, y = (points - points.mean(0)).T / math.sqrt(len(points))
    xx, yy, xy = float(x @ x), float(y @ y), float(x @ y)
    middle, apart = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)  # the variances along the cloud's axes
    narrow, wide = math.sqrt(max(middle - apart, 0.0)), math.sqrt(middle + apart)
    return wide >= SMALLEST_PX and narrow >= FLATTEST * wide
