"""Small painted copies of published data sets, in exactly their layouts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from fakes import PaintedFace, PaintedSource, VideoRecipe, damage, write_video

from facetrack.tracker import markup
from facetrack.tracker.types import Float32, UInt8

SIZE = 240, 320  # of the pictures
NOBODY = PaintedSource(faces=(), shape=SIZE)


def face_number(number: int) -> PaintedFace:
    """A face with its own position, width and tilt for each number, so that no two faces are alike."""
    place = 150.0 + 5 * (number % 5), 115.0 + 4 * (number % 3)
    return PaintedFace(place, width=90.0 + 6 * (number % 4), angle=0.05 * (number % 3 - 1))


def picture_of(face: PaintedFace) -> UInt8:
    """(240, 320, 3) uint8."""
    return PaintedSource(faces=(face,), shape=SIZE).picture(0)


def write_image(path: Path, bgr: UInt8) -> Path:
    """Encode by the suffix, without loss if possible: painted faces are read back from their colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, 100] if path.suffix == ".jpg" else []
    path.write_bytes(cv2.imencode(path.suffix, bgr, options)[1].tobytes())
    return path


def pts_text(xy: Float32) -> str:
    """The 1-based text of a .pts file for 0-based points."""
    lines = [f"{x + 1:.6f} {y + 1:.6f}" for x, y in xy.tolist()]
    return "\n".join(["version: 1", f"n_points:  {len(xy)}", "{", *lines, "}", ""])


def write_300w(folder: Path, names: Sequence[str], shift: tuple[float, float] = (0.0, 0.0)) -> list[Float32]:
    """Write painted faces as 300-W does, each annotated with an error of `shift` pixels.

    Args:
        folder: of the data set.
        names: such as "lfpw/testset/image_0001.png".
        shift: (x, y).
    Returns:
        The annotations, (68, 2) each.
    """
    truths = []
    for number, name in enumerate(names):
        face = face_number(number)
        image = write_image(folder / name, picture_of(face))
        truths.append(face.landmarks(0) + np.float32(shift))
        image.with_suffix(".pts").write_text(pts_text(truths[-1]), encoding="utf-8")
    return truths


def wflw_line(points: Float32, flags: str, name: str) -> str:
    """A face's line in WFLW's table: points, their box, attributes as six digits, picture."""
    box = [points[:, 0].min(), points[:, 1].min(), points[:, 0].max(), points[:, 1].max()]
    return " ".join([*(f"{v:.6f}" for v in points.ravel()), *(f"{v:.0f}" for v in box), *flags, name])


def write_wflw(folder: Path, part: str, *lines: str) -> Path:
    """Write WFLW's table of its "train" or "test" part."""
    table = folder / f"WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{part}.txt"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def eye_distance(xy: Float32) -> float:
    """Distance between the outer eye corners, computed from their indices alone."""
    return float(np.hypot(*(xy[36] - xy[45])))


def five_of(xy: Float32) -> Float32:
    """The five5 points (5, 2) of 68."""
    return markup.load("ibug68").subset("five5", xy)


AVI = VideoRecipe(options={"crf": "10", "bf": "0"})  # frames in display order: .avi has no other


def write_300vw_video(folder: Path, source: PaintedSource, shifts: Sequence[tuple[float, float]]) -> list[Float32]:
    """Write a video and its annotations as 300VW does, each annotated with an error.

    Args:
        folder: of the video, such as DIR/114.
        source: of one face, which is annotated in all frames, also where it is not shown.
        shifts: (x, y) for each frame.
    Returns:
        The annotations, (68, 2) each.
    """
    (folder / "annot").mkdir(parents=True)
    write_video(folder / "vid.avi", (source.picture(i) for i in range(source.count)), AVI)
    truths = []
    for i, shift in enumerate(shifts):
        truths.append(source.faces[0].landmarks(source.time_of(i)) + np.float32(shift))
        (folder / f"annot/{i + 1:06}.pts").write_text(pts_text(truths[-1]), encoding="utf-8")
    return truths


def lose_a_packet(folder: Path, pictures: Iterable[UInt8]) -> None:
    """Replace a video in 300VW's layout by one of these pictures whose fifth frame cannot be decoded."""
    lossless = VideoRecipe("png", "rgb24", options={})
    video = write_video(folder / "vid.mov", pictures, lossless).rename(folder / "vid.mp4")
    (folder / "vid.avi").unlink()
    damage(video, 4)
