"""A camera's intrinsics from pictures of a chessboard, by OpenCV.

Source: Zhang, "A flexible new technique for camera calibration", PAMI 2000; Duda and Frese, "Accurate detection and
localization of checkerboard corners for calibration", BMVC 2018 (the corners).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..pipeline.batch import failures_in
from ..pipeline.camera_file import write_intrinsics
from ..pipeline.part_file import PartFile
from ..pipeline.progress import Task
from ..pipeline.source import Source, counted, without_credentials
from ..pipeline.sources import open_source
from ..pipeline.talk import say
from ..tracker.errors import ConfigError
from ..tracker.intrinsics import Intrinsics
from ..tracker.types import Float32, Float64, Frame, UInt8

FEWEST = 8  # views; fewer do not determine the coefficients of the lens
ENOUGH = 30  # views of a live camera, which has no end; more hardly help
STEP_S = 0.2  # of media time between two searches: a board moves little in less
APART = 0.04  # mean shift of the corners from which a view adds something new, share of the picture's diagonal
TILTED = 0.04  # the same for their shape alone, share of its radius: a tilt of 20 degrees from a frontal board
STRAY = 3.0  # times the median error: above it, a view's corners count as misplaced
STRAY_PX = 1.0  # but never below this error
LOOSE = 0.02  # standard deviation of a focal length, share of it, above which it is not known
FLATTEST_DEG = 5.0  # root mean square angle between boards and their mean; without tilts any focal length fits (Zhang)
LENS = cv2.CALIB_FIX_K3  # Zhang's two radial coefficients; a third diverges beyond the outermost corners seen
_FIND = cv2.CALIB_CB_NORMALIZE_IMAGE | cv2.CALIB_CB_ACCURACY


@dataclass(frozen=True, slots=True)
class Board:
    """A chessboard.

    Attributes:
        columns, rows: inner corners, where four squares meet: a board of 10x7 squares has 9x6.
        square_mm: side of a square.
    """

    columns: int = 9
    rows: int = 6
    square_mm: float = 25.0

    @classmethod
    def parse(cls, text: str, square_mm: float) -> Self:
        """Parse a text such as "9x6".

        Raises:
            ValueError: it has another form, or is less than 3x3 or more than 999x999.
        """
        match = re.fullmatch(r"([0-9]{1,3})x([0-9]{1,3})", text)
        if match is None or min(int(match[1]), int(match[2])) < 3:
            raise ValueError(f"wanted the inner corners of the board, such as 9x6, at least 3x3, got {text}")
        return cls(int(match[1]), int(match[2]), square_mm)

    def __str__(self) -> str:
        return f"{self.columns}x{self.rows}"

    def corners_mm(self) -> Float32:
        """The corners (columns * rows, 3) in the order in which `find` returns them."""
        grid = np.zeros((self.rows, self.columns, 3), np.float32)
        grid[..., 1], grid[..., 0] = np.mgrid[: self.rows, : self.columns]
        return grid.reshape(-1, 3) * np.float32(self.square_mm)

    def find(self, bgr: UInt8) -> Float32 | None:
        """(columns * rows, 2) pixels of the corners; None if not all of them are seen."""
        grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
        found, corners = cv2.findChessboardCornersSB(grey, (self.columns, self.rows), flags=_FIND)
        return np.asarray(corners, np.float32).reshape(-1, 2) if found else None


@dataclass(frozen=True, slots=True)
class View:
    """A picture in which the whole board was found.

    Attributes:
        place: its file name, or its time in the video.
        size: (height, width) of the picture.
        xy: (columns * rows, 2) pixels.
    """

    place: str
    size: tuple[int, int]
    xy: Float32

    def is_like(self, other: View) -> bool:
        """Whether the board has nearly the same place and tilt in another view, so that one of them adds nothing."""
        near = APART * float(np.hypot(*self.size))
        return any(
            _shift(self.xy, xy) < near and _bent(self.xy, xy) < TILTED
            for xy in (other.xy, other.xy[::-1])  # half a turn looks the same
        )


@dataclass(frozen=True, slots=True)
class CalibratedCamera:
    """The result of a camera calibration.

    Attributes:
        intrinsics: of the camera.
        deviation: standard deviations of fx, fy, cx, cy in pixels, estimated from the scatter of the corners.
        rms_px: root mean square reprojection error of the corners.
        views: number of views that were used.
        strays: places of views that were left out because their corners are misplaced.
        distance_mm: nearest and farthest of the boards' centres, to compare with the real distances.
        unread: pictures of the folder that could not be read.
    """

    intrinsics: Intrinsics
    deviation: tuple[float, float, float, float]
    rms_px: float
    views: int
    strays: tuple[str, ...]
    distance_mm: tuple[float, float]
    unread: int = 0

    def as_text(self) -> str:
        """Format the result as lines of text."""
        camera, (height, width) = self.intrinsics, self.intrinsics.size
        values = zip(("fx", "fy", "cx", "cy"), self.deviation, strict=True)
        lines = [f"RMS reprojection error {self.rms_px:.3f} px, {self.views} views of {width}x{height}"]
        lines.append(
            ", ".join(f"{name} {getattr(camera, name):.1f} +- {spread:.1f}" for name, spread in values) + " px"
        )
        lines.append(f"distortion {', '.join(f'{value:.4f}' for value in camera.distortion)}")
        lines.append(f"the board was {self.distance_mm[0]:.0f} to {self.distance_mm[1]:.0f} mm away")
        if self.strays:
            lines.append(f"left out because their corners are misplaced: {', '.join(self.strays)}")
        if self.unread:
            lines.append(f"left out because they cannot be read: {counted(self.unread, 'picture')}")
        return "\n".join(lines)


def calibrate_source(spec: str, board: Board, out: Path, *, overwrite: bool = False) -> CalibratedCamera:
    """Calibrate a camera from a camera, stream, video or folder of pictures, and write its file.

    Pictures of a folder that cannot be read are left out; a line names each of them.

    Raises:
        SourceError: the source cannot be opened or read.
        SinkError: the file cannot be written.
        ConfigError: the views are too few or too similar.
    """
    PartFile(out, overwrite=overwrite).check_writable()  # fail now rather than after minutes of waving a board
    with open_source(spec) as source:
        views = collect_views(source, board)
    unread = failures_in(Task(spec, source.name), source.failed)
    for failure in unread:
        say(f"facetrack: failed: {failure}")
    learned = replace(calibrate_camera(views, board), unread=len(unread))
    how = f"{learned.views} views of a {board} chessboard in {without_credentials(spec)}, facetrack {__version__}"
    write_intrinsics(out, learned.intrinsics, rms_px=learned.rms_px, how=how, overwrite=overwrite)
    return learned


def collect_views(source: Source, board: Board, enough: int = ENOUGH) -> list[View]:
    """Collect all distinct views of a recording, or `enough` from a live source, with a line on stderr for each.

    Raises:
        SourceError: the source broke off.
        ConfigError: the pictures are not all of one size.
    """
    views: list[View] = []
    for view in distinct_views(source, board):
        views.append(view)
        if source.live:
            say(f"view {len(views)} of {enough}")
            if len(views) == enough:
                break
    return views


def distinct_views(frames: Iterable[Frame], board: Board) -> Iterator[View]:
    """Look for the board a few times per second, and yield each view that differs from all before.

    Raises:
        ConfigError: the pictures are not all of one size.
    """
    kept: list[View] = []
    size, next_s = None, -np.inf
    for frame in frames:
        size = size or frame.size
        if frame.size != size:
            raise ConfigError(
                f"{_place(frame)}: wanted pictures of one size, got {size[1]}x{size[0]} and "
                f"{frame.size[1]}x{frame.size[0]}; take all of them with the same camera and settings"
            )
        if frame.time_s < next_s:
            continue
        next_s = frame.time_s + STEP_S
        xy = board.find(frame.bgr)
        if xy is None:
            continue
        view = View(_place(frame), frame.size, xy)
        if not any(view.is_like(other) for other in kept):
            kept.append(view)
            yield view


def calibrate_camera(views: list[View], board: Board) -> CalibratedCamera:
    """Fit a camera to views of a board; views with misplaced corners are left out.

    Raises:
        ConfigError: the views are too few, or too similar to determine the focal length.
    """
    _refuse_few(views, board)
    fit = _Fit(views, board)
    limit = max(STRAY * float(np.median(fit.errors)), STRAY_PX)
    good = [view for view, error in zip(views, fit.errors, strict=True) if error <= limit]
    strays = tuple(view.place for view, error in zip(views, fit.errors, strict=True) if not error <= limit)
    if strays:
        _refuse_few(good, board)
        fit = _Fit(good, board)
    camera = fit.intrinsics
    loose = max(fit.deviation[0] / camera.fx, fit.deviation[1] / camera.fy)
    if not (loose <= LOOSE and fit.tilt_deg >= FLATTEST_DEG):
        raise ConfigError(
            f"calibration: the {len(good)} views are too similar to measure the focal length: the board is tilted by "
            f"{fit.tilt_deg:.0f} degrees; tilt it by 30 degrees or more to all sides, near and far"
        )
    return CalibratedCamera(camera, fit.deviation, fit.rms_px, len(good), strays, fit.distance_mm)


class _Fit:
    """One run of OpenCV's calibration.

    Attributes:
        errors: (V,) pixels, root mean square of each view.
        tilt_deg: root mean square angle between the boards and their mean.
        The rest as in `CalibratedCamera`.
    """

    def __init__(self, views: list[View], board: Board) -> None:
        size = views[0].size
        corners = board.corners_mm()
        try:
            rms, matrix, lens, turns, shifts, spread, _, errors = cv2.calibrateCameraExtended(
                [corners] * len(views), [view.xy for view in views], size[::-1], np.eye(3), np.zeros(4), flags=LENS
            )
            (fx, _, cx), (_, fy, cy), _ = np.asarray(matrix, np.float64).tolist()
            self.intrinsics = Intrinsics(size, fx, fy, cx, cy, tuple(np.ravel(lens)[:4].tolist()))
        except (cv2.error, ValueError) as error:
            raise ConfigError(
                "calibration: no camera fits these views; show a flat board, tilted to all sides, near and far"
            ) from error
        self.rms_px = float(rms)
        self.errors: Float64 = np.ravel(errors).astype(np.float64)
        first, second, third, fourth = np.ravel(spread)[:4].tolist()
        self.deviation = first, second, third, fourth
        turned = np.array([cv2.Rodrigues(turn)[0] for turn in turns])
        away = np.linalg.norm(turned @ corners.mean(0) + np.reshape(shifts, (-1, 3)), axis=1)
        self.distance_mm = float(away.min()), float(away.max())
        normals = turned[:, :, 2]
        mean = normals.mean(0) / np.linalg.norm(normals.mean(0))
        self.tilt_deg = float(np.sqrt(np.mean(np.degrees(np.arccos(np.clip(normals @ mean, -1, 1))) ** 2)))


def _shift(xy: Float32, other: Float32) -> float:
    return float(np.linalg.norm(xy - other, axis=1).mean())


def _bent(xy: Float32, other: Float32) -> float:
    """Root mean square shift that remains after aligning place, size and rotation in the picture, over the radius."""
    first, second = (_unit(points) for points in (xy, other))
    return float(np.sqrt(max(2 - 2 * abs(complex(np.vdot(first, second))), 0)))


def _unit(xy: Float32) -> NDArray[np.complex128]:
    """Corners relative to their mean as complex numbers x + iy, as a vector of norm 1."""
    centred = (xy - xy.mean(0)).astype(np.float64) @ np.array([1, 1j])
    return np.asarray(centred / np.linalg.norm(centred), np.complex128)


def _refuse_few(views: list[View], board: Board) -> None:
    if len(views) < FEWEST:
        raise ConfigError(
            f"calibration: wanted at least {FEWEST} distinct views of a board with {board} inner corners, got "
            f"{len(views)}; show the whole board with a white border, slowly tilted to all sides, near and far"
        )


def _place(frame: Frame) -> str:
    return frame.name or f"{frame.time_s:.1f} s"
