"""The worst cases side by side, to see what goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import cv2
import numpy as np

from ...pipeline.draw import draw_text
from ...tracker.geometry import CropTransform, bounding_box, box_centre_side
from ...tracker.metrics import Normaliser
from ...tracker.types import Float32, UInt8
from .measure import FaceResult

CELL, COLUMNS = 240, 6
ROOM = 1.7  # side of a cell over the longer side of the annotated points' box
LETTERS = 9.0
GREEN, ORANGE, DARK = (90, 200, 60), (0, 140, 255), (28, 24, 20)
_SHIFT = 4  # OpenCV's fixed-point bits


def contact_sheet(faces: Sequence[FaceResult], normaliser: Normaliser) -> bytes:
    """Draw faces with the annotated points in green and the found ones in orange.

    Args:
        faces: at least one; their pictures are read again.
        normaliser: of the errors written on them.
    Returns:
        A JPEG.
    """
    cells = [_cell(face, 100 * face.errors[normaliser]) for face in faces]
    empty = np.full((CELL, CELL, 3), DARK, np.uint8)
    across = min(COLUMNS, len(cells))
    cells += [empty] * (-len(cells) % across)
    rows = [np.concatenate(cells[i : i + across], 1) for i in range(0, len(cells), across)]
    return bytes(cv2.imencode(".jpg", np.concatenate(rows), [cv2.IMWRITE_JPEG_QUALITY, 92])[1])


def _cell(face: FaceResult, percent: float) -> UInt8:
    centre, side = box_centre_side(bounding_box(face.truth))
    crop = CropTransform.around(centre, max(side, 1.0) * ROOM, CELL)
    picture = crop.crop(face.entry.read().bgr())
    _dots(picture, crop.to_crop(face.truth), GREEN)
    if face.found is not None:
        _dots(picture, crop.to_crop(face.found), ORANGE)
    label = "missed" if face.found is None else f"{percent:.1f} %"
    draw_text(picture, label, (0, CELL), height=LETTERS, plate=DARK)
    name = PurePath(face.entry.name).name.encode("ascii", "replace").decode()[-30:]
    draw_text(picture, name, (0, 0), height=LETTERS - 2, plate=DARK)
    return picture


def _dots(picture: UInt8, xy: Float32, colour: tuple[int, int, int]) -> None:
    for x, y in np.rint(np.clip(xy, -CELL, 2 * CELL) * (1 << _SHIFT)).astype(int).tolist():
        cv2.circle(picture, (x, y), round(1.6 * (1 << _SHIFT)), colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)
