"""Turn faces out of the picture's plane: make large poses from nearly frontal annotated photographs.

    python -m facetrack.training.turned DATA_FOLDER OUT_FOLDER --per-face 3 --seed 0 [--yaw 25 70]

reads a folder in the 300-W layout (68 points) and writes another one. The mean face gives the landmarks a depth, and a
table does so for places between and round them. This makes the photograph a relief, which is turned and drawn again.
The background far from the head stays flat behind it; in between the picture is stretched.
Source of the idea: Zhu et al., "Face Alignment Across Large Poses: A 3D Solution", CVPR 2016, section 4 (300W-LP).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from scipy.interpolate import RBFInterpolator

from ..tracker import markup
from ..tracker.errors import SourceError
from ..tracker.geometry import CropTransform, bounding_box, box_centre_side
from ..tracker.pose import MEAN_FACE_MM, camera_matrix, euler_angles, head_pose, rotation_matrix
from ..tracker.types import Float32, Float64, UInt8
from .command_line import errors_in_one_line
from .datasets import TURNED, Sample, read_pts_folder
from .datasets.point_files import write_jpeg, write_pts
from .rasterise import rasterise, square_grid

IBUG = markup.load("ibug68")

# One half of the relief between the landmarks, millimetres in the mean face's frame: cheeks, jaw, chin, eye sockets,
# temples, forehead, sides of the nose, then the crown. Up to the hairline the depths agree to a few millimetres with
# MediaPipe's canonical face, aligned to the mean face's eyes and chin; the crown was drawn by hand.
_RELIEF = """
 46.6  -6.0   3.9   32.8 -13.5  -2.9   28.0  -5.8  -5.1   37.8   1.7  -1.1   22.8   2.0  -5.6   59.7  -7.6  20.2
 58.9   5.5  24.2   51.0   8.3  12.6   43.2  12.4   5.3   34.4  17.2   1.1   52.4  24.9  22.3   45.2  31.4  14.5
 36.9  29.3   6.7   32.4  37.5   7.1   38.2  43.6  12.9   30.4  50.8   8.8   22.3  56.5   3.8    0.0  52.5  -4.3
  0.0  61.3  -3.4    0.0  69.0   0.5   50.7 -21.3   7.4   32.5 -20.5  -1.5   60.7 -21.3  20.2   66.6 -33.6  34.8
 60.3 -33.4  19.9   58.0 -44.2  13.6   63.7 -46.6  26.5   69.0 -50.8  43.0   60.0 -57.1  16.4   65.6 -63.0  30.5
 59.2 -74.1  15.7   53.7 -65.7   3.9   44.7 -71.3  -6.5   49.8 -82.2   2.3   34.7 -86.9  -9.1   30.2 -73.6 -15.3
 16.0 -73.9 -19.2    0.0 -73.5 -20.3    0.0 -58.0 -21.8    0.0 -89.3 -16.9   18.6 -89.1 -14.8   15.9  -3.8 -18.6
 12.3 -14.7 -18.8   15.9 -15.7 -11.1   20.7 -11.0  -7.2   12.4 -20.0 -15.8   13.1  -9.9 -22.3    9.3 -30.3 -16.1
 12.8 -25.7 -11.8   23.0 -17.8  -5.3
  0.0 -112.0 -4.0   30.0 -110.0 6.0   52.0 -99.0  20.0   66.0 -84.0  40.0   73.0 -66.0  55.0    0.0 -135.0 24.0
 35.0 -132.0 34.0   64.0 -115.0 62.0  79.0 -85.0  85.0   82.0 -60.0  88.0    0.0 -160.0 70.0   45.0 -155.0 80.0
"""
_HALF = np.array(_RELIEF.split(), np.float64).reshape(-1, 3)
RELIEF_MM: Float64 = np.vstack((_HALF, (_HALF * [-1, 1, 1])[_HALF[:, 0] > 0]))

# The mean face's contour is half-way between a frontal outline and a turned one; the jaw's edge and the ear, which
# annotators follow on the near side, lie deeper (measured on annotated faces turned by 18 to 50 degrees).
BACK_MM = np.array([11.0, 14, 16, 14, 7, 0, 0, 0, 0, 0, 0, 0, 7, 14, 16, 14, 11])
FACE_MM: Float64 = MEAN_FACE_MM + np.pad(BACK_MM, (0, 51))[:, None] * [0, 0, 1]

# Beyond the contour the head recedes: (share of the contour's distance from the face's middle, mm of depth added).
RINGS = ((1.1, 14.0), (1.2, 34.0), (1.32, 50.0))
MIDDLE_MM = np.array([0.0, -10.0])  # centre of the rings
CLEAR_MM = 5.0  # least distance of the table's places from the contour that the annotator saw
FARTHEST_MM = 110.0  # greatest depth of the turned relief, from the mean face's origin
SOLID_MM, LOOSE_MM = 12.0, 48.0  # the turning fades out between these distances outside the face's outline
BACKDROP_MM = 250.0  # depth of the backdrop, for the order of drawing only
PIVOT_MM = 30.0  # the backdrop shifts with a point of the head at this depth
REACH_MM, STEP_MM = 200.0, 4.0  # half the side and the cells of the grid that is turned
CONTOUR = slice(0, 17)
INWARDS = np.linspace(0, 0.75, 26)  # shares of the way to the middle where the outline is looked for
SEEN = -0.12  # largest z of the unit normal of a surface that the photograph still shows
DROOP, LOWEST_DROOP_MM = 0.5, 12.0  # annotators place the contour's end lower as it slides inwards, below brow and eye
SIZE = 256  # side of a picture, pixels
SHOWN = 1.6  # side of the area that a picture shows, over the side of the landmarks' box
STRAIGHT_RAD = np.deg2rad(22)  # faces turned more than this are skipped
NODDING_RAD = np.deg2rad(20)
SPOILT = 0.002  # share of a picture's pixels that may show the relief from behind, or nothing
TURNED_DEG = (25.0, 70.0)  # yaw of the results
NODS_RAD, MOST_NOD_RAD = np.deg2rad(8), np.deg2rad(25)  # standard deviation of the added pitch; largest pitch in all
RELIEFS = (0.8, 1.05)  # depth of a head over the mean face's; children's noses are flatter
QUALITY = 92  # of the JPEG files

Depth = Callable[[Float64], Float64]  # of places (V, 2) in upright camera millimetres, (V,)


@dataclass(frozen=True, slots=True)
class Head:
    """A head in weak perspective: pixel = centre + scale * roll * (camera millimetres).

    Attributes:
        centre: (2,) pixel of the mean face's origin.
        scale: pixels per millimetre.
        roll_rad: how far the head's axis leans clockwise in the picture.
        pitch_rad, yaw_rad: the attitude of the head after removing the roll, R = Rx(pitch) Ry(yaw).
        relief: the head's depth as a share of the mean face's, which a single view does not determine.
    """

    centre: Float64
    scale: float
    roll_rad: float
    pitch_rad: float
    yaw_rad: float
    relief: float = 1.0

    def attitude(self) -> Float64:
        """(3, 3) rotation from the mean face to the upright camera."""
        return rotation_matrix(np.array([self.pitch_rad, self.yaw_rad, 0.0]))

    def to_mm(self, pixels: Float64) -> Float64:
        """Upright camera millimetres (..., 2) of pixels (..., 2)."""
        return (pixels - self.centre) @ self._rolled() / self.scale

    def to_pixels(self, mm: Float64) -> Float64:
        """The inverse of `to_mm`."""
        return self.centre + self.scale * mm @ self._rolled().T

    def _rolled(self) -> Float64:
        return rotation_matrix(np.array([0.0, 0.0, self.roll_rad]))[:2, :2]


@dataclass(frozen=True, slots=True)
class Turned:
    """A face after turning.

    Attributes:
        bgr: (SIZE, SIZE, 3) uint8.
        points: (68, 2) float32 pixels of `bgr`.
        yaw_rad: the requested yaw.
        spoilt: share of the pixels that show the relief from behind, or nothing.
    """

    bgr: UInt8
    points: Float32
    yaw_rad: float
    spoilt: float


def fit_head(points: Float32) -> Head | None:
    """Fit the mean face to (68, 2) pixels with `head_pose`, from so far away that perspective hardly matters."""
    origin, far = points.mean(0), 10 * float(np.ptp(points, axis=0).max())
    if not far > 0:
        return None
    pose = head_pose((points - origin + far / 2).astype(np.float32), (int(far), int(far)))
    if pose is None:
        return None
    focal = camera_matrix((int(far), int(far)))[0, 0]
    matrix = rotation_matrix(pose.rotation_rad)
    roll = float(np.arctan2(-matrix[0, 1], matrix[1, 1]))
    pitch, yaw, _ = euler_angles(rotation_matrix(np.array([0, 0, -roll])) @ matrix)
    scale = focal / pose.translation_mm[2]
    centre = origin - far / 2 + int(far) / 2 + scale * pose.translation_mm[:2]
    return Head(centre, float(scale), roll, float(pitch), float(yaw))


class Relief:
    """The depth of a photographed head over the picture's plane, in upright camera millimetres.

    Attributes:
        points: (68, 3) the landmarks on it.
    """

    points: Float64

    def __init__(self, xy: Float64, head: Head) -> None:
        """Build the relief of annotated landmarks (68, 2), upright camera millimetres, from the mean face's depths."""
        attitude = head.attitude()
        mean = MEAN_FACE_MM @ attitude.T
        depth = mean[:, 2].copy()
        depth[CONTOUR] = _outline(_mean_relief(), FACE_MM, attitude)[:, 2]
        fill = RELIEF_MM[_relief_normals() @ attitude[2] < SEEN] @ attitude.T
        drift = RBFInterpolator(mean[:, :2], xy - mean[:, :2], kernel="linear", smoothing=1.0)(fill[:, :2])
        fill[:, :2] += drift
        contour = xy[CONTOUR] - MIDDLE_MM
        rings = [np.column_stack((MIDDLE_MM + far * contour, depth[CONTOUR] + more)) for far, more in RINGS]
        inside = _outside_mm(fill[:, :2], face_outline(xy)) < -CLEAR_MM
        above = fill[:, 1] < xy[[0, 16], 1].min() - CLEAR_MM
        known = np.vstack((np.column_stack((xy, depth)), fill[inside | above], *rings)) * [1, 1, head.relief]
        self._depth = RBFInterpolator(known[:, :2], known[:, 2], kernel="thin_plate_spline", smoothing=2.0)
        self.points = np.column_stack((xy, self.depth(xy)))

    def depth(self, xy: Float64) -> Float64:
        """Depth (V,) at (V, 2)."""
        return np.minimum(np.asarray(self._depth(xy), np.float64), FARTHEST_MM)


@cache
def _mean_relief() -> RBFInterpolator:
    known = np.vstack((FACE_MM, RELIEF_MM))
    return RBFInterpolator(known[:, :2], known[:, 2], kernel="thin_plate_spline", smoothing=2.0)


@cache
def _relief_normals() -> Float64:
    """Outward unit normals of the mean head at `RELIEF_MM`."""
    step, relief = np.array([[2.0, 0.0], [0.0, 2.0]]), _mean_relief()
    slopes = [(relief(RELIEF_MM[:, :2] + s) - relief(RELIEF_MM[:, :2] - s)) / 4 for s in step]
    normals = np.column_stack((*slopes, np.full(len(RELIEF_MM), -1.0)))
    return np.asarray(normals / np.linalg.norm(normals, axis=1, keepdims=True))


def face_outline(xy: Float64) -> Float64:
    """Polygon (V, 2) round a face: its contour, closed by an arc over the forehead."""
    left, right = xy[16], xy[0]
    across, middle = (left - right) / 2, (left + right) / 2
    up = np.array([across[1], -across[0]]) / np.linalg.norm(across) * 75.0
    arc = np.linspace(0, np.pi, 13)[1:-1, None]
    return np.vstack((xy[CONTOUR], middle + np.cos(arc) * across + np.sin(arc) * up))


def _outside_mm(xy: Float64, polygon: Float64) -> Float64:
    """Distance (V,) of points (V, 2) from a polygon, negative inside."""
    shape = polygon.astype(np.float32).reshape(-1, 1, 2)
    return np.array([-cv2.pointPolygonTest(shape, (float(x), float(y)), True) for x, y in xy])


def _outline(depth: Depth, points: Float64, turn: Float64) -> Float64:
    """Turn a contour (17, 3); points of the far side slide inwards on the relief to the outline that is then visible.

    Annotators mark the visible outline. Each point and the places between it and the middle of the face are turned; the
    new point is the one that lies farthest out on the point's own side of the picture.
    """
    contour, middle = points[CONTOUR], points[[27, 30, 33, 8]].mean(0)
    ways = np.repeat(contour[:, None, :2], len(INWARDS), 1)
    ways[..., 0] += INWARDS * (middle[0] - contour[:, None, 0])
    inwards = np.abs(ways[[0, 16], :, 0] - contour[[0, 16], None, 0])
    ways[[0, 16], :, 1] += np.minimum(DROOP * inwards, LOWEST_DROOP_MM)
    deep = np.asarray(depth(ways.reshape(-1, 2)), np.float64).reshape(ways.shape[:2])
    deep += (contour[:, 2] - deep[:, 0])[:, None] * np.clip(1 - INWARDS / 0.2, 0, 1)
    turned = np.concatenate((ways, deep[..., None]), -1) @ turn.T
    side = np.sign(contour[:, 0] - middle[0])
    found = (turned[..., 0] * side[:, None]).argmax(1)
    return np.asarray(turned[np.arange(len(contour)), found], np.float64)


def turned_landmarks(relief: Relief, turn: Float64) -> Float64:
    """The 68 points (68, 3) after a rotation of the camera's frame, the contour where annotators would mark it.

    Checked against the faces of AFW, HELEN and LFPW that are turned by 18 to 50 degrees: their mean contour and that of
    artificially turned faces agree to 4 % of the distance from brow to lower lip, and to 23 % if points may not slide.
    """
    moved = relief.points @ turn.T
    outline = _outline(relief.depth, relief.points, turn)
    for half in (np.arange(9), np.arange(16, 7, -1)):
        moved[half] = _spaced(outline[half], relief.points[half, :2])
    return moved


def _spaced(line: Float64, model: Float64) -> Float64:
    """Move the points of a line (V, 3) along it until they divide its length in the picture as a model (V, 2) does.

    Annotators spread the contour's points evenly between ear and chin, however much of the contour is visible.
    """

    def shares(xy: Float64) -> Float64:
        lengths = np.cumsum(np.r_[0, np.linalg.norm(np.diff(xy, axis=0), axis=1)])
        return np.asarray(lengths / lengths[-1])

    have, want = shares(line[:, :2]), shares(model)
    return np.column_stack([np.interp(want, have, line[:, i]) for i in range(3)])


def turn_face(bgr: UInt8, points: Float32, head: Head, pitch_rad: float, yaw_rad: float) -> Turned:
    """Draw a photographed face at another pitch and yaw.

    Args:
        bgr: (H, W, 3) uint8.
        points: (68, 2) pixels.
        head: its present pose, from `fit_head`.
        pitch_rad, yaw_rad: the new attitude; the roll does not change.
    """
    xy = head.to_mm(points.astype(np.float64))
    relief = Relief(xy, head)
    turn = rotation_matrix(np.array([pitch_rad, yaw_rad, 0.0])) @ head.attitude().T
    marks = head.to_pixels(turned_landmarks(relief, turn)[:, :2]).astype(np.float32)
    centre, side = box_centre_side(bounding_box(marks))
    fine = 2 * SIZE  # drawn twice as large and averaged, so that areas that shrink do not alias
    crop = CropTransform.around(centre, SHOWN * side, fine)
    grid, triangles = square_grid(REACH_MM, STEP_MM)
    moved = _moved(grid, relief, face_outline(xy), turn)
    drawn = np.column_stack((crop.to_crop(head.to_pixels(moved[:, :2]).astype(np.float32)), moved[:, 2]))
    source = np.ascontiguousarray(head.to_pixels(grid), np.float32)
    lookup, spoilt = rasterise(np.ascontiguousarray(drawn, np.float32), source, triangles, fine)
    large = cv2.remap(bgr, lookup[..., 0], lookup[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    small = cv2.resize(large, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    halved = ((crop.to_crop(marks) - 0.5) / 2).astype(np.float32)
    return Turned(np.asarray(small, np.uint8), halved, yaw_rad, float(spoilt.mean()))


def _moved(grid: Float64, relief: Relief, outline: Float64, turn: Float64) -> Float64:
    """New positions (V, 3) of the places (V, 2): the head turns, the backdrop shifts, and the two blend in between."""
    away = (_outside_mm(grid, outline) - SOLID_MM) / (LOOSE_MM - SOLID_MM)
    loose = np.clip(away, 0, 1)
    loose = (loose * loose * (3 - 2 * loose))[:, None]
    shift = turn @ [0, 0, PIVOT_MM] - [0, 0, PIVOT_MM]
    moved = np.column_stack((grid + shift[:2], np.full(len(grid), BACKDROP_MM)))
    head = loose[:, 0] < 1
    turned = np.column_stack((grid[head], relief.depth(grid[head]))) @ turn.T
    moved[head] += (1 - loose[head]) * (turned - moved[head])
    return moved


def turned_faces(
    samples: Iterable[Sample], per_face: int, seed: int, yaws_deg: tuple[float, float] = TURNED_DEG
) -> Iterator[tuple[Sample, int, Turned]]:
    """Turn every nearly frontal face of 68 points away from the camera, `per_face` times.

    Args:
        samples: one or more faces each; faces that are turned too far already are skipped.
        per_face: turned copies of each face; those with visible faults are left out.
        seed: makes the choice of angles repeatable.
        yaws_deg: smallest and largest yaw of the results, to either side; up to 88 they look like profiles.
    Yields:
        Source, number of the result within it, and the result.
    Raises:
        SourceError: a face does not have 68 points.
    """
    for index, sample in enumerate(samples):
        if sample.points.shape[1] != IBUG.points:
            raise SourceError(
                f"{sample.path}: wanted the {IBUG.points} points of {IBUG.name}, got {sample.points.shape[1]}"
            )
        rng, number = np.random.default_rng([seed, index]), 0
        for points in sample.points:
            head = fit_head(points)
            if head is None or abs(head.yaw_rad) > STRAIGHT_RAD or abs(head.pitch_rad) > NODDING_RAD:
                continue
            for pitch, yaw in _attitudes(head, per_face, yaws_deg, rng):
                shaped = replace(head, relief=float(rng.uniform(*RELIEFS)))
                turned = turn_face(sample.bgr(), points, shaped, pitch, yaw)
                if turned.spoilt <= SPOILT:
                    yield sample, number, turned
                number += 1


def _attitudes(
    head: Head, count: int, yaws_deg: tuple[float, float], rng: np.random.Generator
) -> Iterator[tuple[float, float]]:
    """Pitch and yaw of `count` results: yaws spread evenly, preferably to the side that the head is turned to."""
    low, high = np.deg2rad(yaws_deg)
    for share in (np.arange(count) + rng.random(count)) / count:
        side = np.sign(head.yaw_rad) if rng.random() < abs(head.yaw_rad) / STRAIGHT_RAD else rng.choice([-1, 1])
        pitch = head.pitch_rad + rng.normal(0, NODS_RAD)
        yield float(np.clip(pitch, -MOST_NOD_RAD, MOST_NOD_RAD)), float(side * (low + share * (high - low)))


def main() -> None:
    """Run the command; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-face", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--yaw", type=float, nargs=2, default=TURNED_DEG, metavar=("LEAST", "MOST"), help="degrees")
    options = parser.parse_args()
    written = 0
    with errors_in_one_line("turned"):
        faces = read_pts_folder(options.data)
        for sample, number, turned in turned_faces(faces, options.per_face, options.seed, tuple(options.yaw)):
            stem = options.out / sample.path.relative_to(options.data).with_suffix("")
            stem.parent.mkdir(parents=True, exist_ok=True)
            name = f"{stem.name}{TURNED}{number}_yaw{np.rad2deg(turned.yaw_rad):+03.0f}"
            write_jpeg(stem.with_name(f"{name}.jpg"), turned.bgr, QUALITY)
            write_pts(stem.with_name(f"{name}.pts"), turned.points)
            written += 1
    print(f"{options.out}: {written} turned faces")


if __name__ == "__main__":
    main()
