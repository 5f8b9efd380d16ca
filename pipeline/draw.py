"""The overlay: landmarks, lines, box and label of each face, drawn on a copy of the picture."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import cast

import cv2
import numpy as np

from ..tracker.markup import for_points
from ..tracker.types import Face, Float32, Int64, State, UInt8

Colour = tuple[int, int, int]

COLOURS: dict[State, Colour] = {
    State.NEW: (255, 181, 77),  # sky blue
    State.TRACKED: (151, 220, 61),  # mint
    State.COASTING: (0, 176, 255),  # amber
}
WHITE, DARK = (255, 255, 255), (28, 24, 20)
FACE_PER_LINE = 240.0  # a face this wide, in drawn pixels, has lines one pixel thick
SMALL_FACE = 80.0  # drawn pixels; a narrower face has room for its number only
TINY_FACE = 60.0  # drawn pixels; a narrower face would be hidden by lines, and by dots as large as a pixel
FAINTEST = 0.6  # white pixels per dot; fainter ones cannot be seen on a bright face
TINY_MARGIN = 3.0  # pixels between the points of a tiny face and its corners
_SHIFT = 4  # OpenCV's fixed-point bits: lines and dots sit on sixteenths of a pixel
_FAR = 30_000.0  # drawn pixels; what lies further out would overflow the fixed-point numbers
_FONT = cv2.FONT_HERSHEY_DUPLEX


def draw_faces(bgr: UInt8, faces: Iterable[Face], *, scale: float = 1.0) -> UInt8:
    """Draw faces on a copy of a picture.

    Measured faces have a white dot at each point. A face that is carried on without a measurement has only lines, in
    amber. Lines and letters grow with the face. A tiny one has no lines, fainter dots, and its number below.

    Args:
        bgr: (H, W, 3) uint8; a frame, or a frame resized by `scale`.
        faces: in the frame's own pixels.
        scale: drawn pixels per frame pixel.
    Returns:
        (H, W, 3) uint8.
    """
    canvas = bgr.copy()
    for face in faces:
        # pixel centres have whole coordinates in both pictures
        xy, box = ((values + 0.5) * scale - 0.5 for values in (face.smoothed, face.box))
        if np.isfinite(xy).all():
            _draw_face(canvas, face, xy, box)
    return canvas


def draw_text(canvas: UInt8, text: str, place: tuple[float, float], *, height: float, plate: Colour) -> None:
    """Write a line of text on a coloured plate, in place.

    Args:
        canvas: (H, W, 3) uint8, changed.
        text: ASCII.
        place: (x, y) of the plate's lower left corner; moved inside the picture if it would stick out.
        height: of a capital letter, pixels.
        plate: colour of the plate; the letters are dark, or white on a dark plate.
    """
    size, pad = cv2.getFontScaleFromHeight(_FONT, max(round(height), 1)), _pad(height)
    plate_width, plate_height = _plate_size(text, height)
    x = int(np.clip(place[0], 0, max(canvas.shape[1] - plate_width, 0)))
    y = int(np.clip(place[1], plate_height, max(canvas.shape[0], plate_height)))
    cv2.rectangle(canvas, (x, y - plate_height), (x + plate_width - 1, y - 1), plate, cv2.FILLED)
    letters = WHITE if sum(plate) < 250 else DARK
    cv2.putText(canvas, text, (x + pad, y - pad - 1), _FONT, size, letters, 1, cv2.LINE_AA)


def _pad(height: float) -> int:
    return round(height * 0.45) + 1


def _plate_size(text: str, height: float) -> tuple[int, int]:
    """Width and height of the plate behind a line whose capital letters have this height."""
    size = cv2.getFontScaleFromHeight(_FONT, max(round(height), 1))
    (width, capital), _ = cv2.getTextSize(text, _FONT, size, 1)
    return width + 2 * _pad(height), capital + 2 * _pad(height)


def fit_scale(size: tuple[int, int], room: tuple[int, int]) -> float:
    """Largest scale at which a picture of `size`, (height, width), fits into `room`, (height, width)."""
    return min(room[0] / size[0], room[1] / size[1])


def resized(bgr: UInt8, room: tuple[int, int]) -> UInt8:
    """Resize a picture to fit into a room of (height, width), and keep its aspect."""
    height, width = bgr.shape[:2]
    scale = fit_scale((height, width), room)
    fit = max(1, min(round(width * scale), room[1])), max(1, min(round(height * scale), room[0]))
    if fit == (width, height):
        return bgr
    return cast(UInt8, cv2.resize(bgr, fit, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR))


def fitted(bgr: UInt8, room: tuple[int, int]) -> UInt8:
    """Resize a picture to fit into a black one of (height, width), and centre it there."""
    if bgr.shape[:2] == room:
        return bgr
    picture = resized(bgr, room)
    height, width = picture.shape[:2]
    y, x = (room[0] - height) // 2, (room[1] - width) // 2
    canvas = np.zeros((*room, 3), np.uint8)
    canvas[y : y + height, x : x + width] = picture
    return canvas


def _draw_face(canvas: UInt8, face: Face, xy: Float32, box: Float32) -> None:
    colour = COLOURS[face.state]
    side = float(np.clip((box[2:] - box[:2]).max(), 1.0, 4.0 * max(canvas.shape)))
    if side < TINY_FACE:
        _draw_tiny_face(canvas, face, xy, box, side)
        return
    thickness = max(1, round(side / FACE_PER_LINE))
    points = _fixed(xy)
    cv2.polylines(canvas, [points[line] for line in _lines(len(xy))], False, colour, thickness, cv2.LINE_AA, _SHIFT)
    if face.measured is not None:
        radius = round(max(1.0, side / 150) * (1 << _SHIFT))
        for x, y in points.tolist():
            cv2.circle(canvas, (x, y), radius, WHITE, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    margin = 0.06 * side
    frame = box + np.array([-margin, -margin, margin, margin], np.float32)
    cv2.polylines(canvas, _corners(frame, 0.16 * side), False, colour, thickness + 1, cv2.LINE_AA, _SHIFT)
    height = float(np.clip(side / 18, 8, 40))
    label = f"{face.track}  {face.confidence:.0%}" if side >= SMALL_FACE else str(face.track)
    draw_text(canvas, label, (float(frame[0]), float(frame[1]) - thickness - 2), height=height, plate=colour)


def _draw_tiny_face(canvas: UInt8, face: Face, xy: Float32, box: Float32, side: float) -> None:
    colour = COLOURS[face.state]
    if face.measured is not None:
        _lighten(canvas, xy, max(FAINTEST, np.pi * (side / TINY_FACE) ** 2))  # the area of its dots
    frame = box + TINY_MARGIN * np.array([-1, -1, 1, 1], np.float32)
    cv2.polylines(canvas, _corners(frame, 0.16 * side), False, colour, 1, cv2.LINE_AA, _SHIFT)
    label, height = str(face.track), float(np.clip(side / 7, 6, 8))
    y = float(frame[3]) + 3 + _plate_size(label, height)[1]
    if y > canvas.shape[0]:
        y = float(frame[1]) - 2
    draw_text(canvas, label, (float(frame[0]), y), height=height, plate=colour)


def _lighten(canvas: UInt8, xy: Float32, weight: float) -> None:
    """Lighten the four pixels around each of points (N, 2) by `weight` white pixels in all; skip those outside."""
    corners = np.floor(xy)[:, None] + np.array([[0, 0], [1, 0], [0, 1], [1, 1]])  # (N, 4, 2)
    shares = weight * np.prod(1 - np.abs(xy[:, None] - corners), axis=2)
    seen = ((corners >= 0) & (corners < (canvas.shape[1], canvas.shape[0]))).all(2)
    x, y = corners[seen].astype(np.intp).T
    places, which = np.unique(y * canvas.shape[1] + x, return_inverse=True)
    share = np.minimum(np.bincount(which, shares[seen], len(places)), 1)[:, None]
    y, x = np.divmod(places, canvas.shape[1])
    canvas[y, x] = np.rint(canvas[y, x] * (1 - share) + 255 * share)


@cache
def _lines(count: int) -> tuple[Int64, ...]:
    """Indices along each boundary line of the markup with this many points; identical lines only once."""
    return tuple(np.array(line) for line in dict.fromkeys(for_points(count).boundaries.values()) if line)


def _corners(box: Float32, length: float) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int32]]]:
    """Four angles, one at each corner of a box."""
    x1, y1, x2, y2 = (float(v) for v in box)
    angles = []
    for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2)):
        inward_x, inward_y = (length if x == x1 else -length), (length if y == y1 else -length)
        angles.append(_fixed(np.array([[x + inward_x, y], [x, y], [x, y + inward_y]], np.float32)))
    return angles


def _fixed(xy: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return np.rint(np.clip(xy, -_FAR, _FAR) * (1 << _SHIFT)).astype(np.int32)
