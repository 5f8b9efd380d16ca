"""Where results go: the protocol, and JSON lines.

The other sinks have files of their own: csv_sink, video_sink, osc_sink, window.
"""

from __future__ import annotations

import errno
import json
from typing import Any, Protocol, TextIO

import numpy as np

from ..tracker.errors import SinkError
from ..tracker.intrinsics import Intrinsics
from ..tracker.pose import MEAN_FACE_MM, Pose, eye_aspect_ratio, head_pose
from ..tracker.types import Face, Result


class Sink(Protocol):
    """Takes one result after the other, in order, on one thread."""

    def write(self, result: Result) -> None:
        """Take a result.

        Raises:
            SinkError: it cannot be written.
        """
        ...

    def finish(self) -> None:
        """Write what is left to be written, short of a file's name; after it only `close` may follow.

        Raises:
            SinkError: it cannot be written.
        """
        ...

    def close(self, *, complete: bool) -> None:
        """Finish what is not finished and give files their names; further calls do nothing.

        Args:
            complete: every result has been written; a file then gets its name. Otherwise it stays behind as
                NAME.part with what it holds, or goes away if that is nothing.
        Raises:
            SinkError: the end cannot be written, or the file not renamed.
        """
        ...


class ReaderGone(SinkError):  # noqa: N818 - an end, not a fault
    """Nobody reads a pipe any more: its ordinary end, as of `yes | head`."""


def pose_of(face: Face, size: tuple[int, int], intrinsics: Intrinsics | None) -> Pose | None:
    """Head pose from the smoothed points in a frame of size (height, width); None where the markup has none.

    Raises:
        ConfigError: the frame has another aspect than the intrinsics.
    """
    return head_pose(face.smoothed, size, intrinsics) if len(face.smoothed) == len(MEAN_FACE_MM) else None


class JsonLinesSink:
    """One JSON object a frame and line, for programs that listen while a video runs.

    {"frame": 1, "timestamp": 0.033333, "faces": [
        {"face_id": 0, "state": "tracked", "success": 1, "confidence": 0.987, "box": [x, y, w, h],
         "pose_T": [x, y, z], "pose_R": [x, y, z], "ear": [left, right], "xy": [[x, y], ...]}]}

    written without spaces. Names, units and decimals are those of the CSV file; what a face has not is null. Frames
    of single pictures have the picture's name under "input" first.

    Args:
        stream: each line is flushed, so that listeners are as current as the video; stays open.
        intrinsics: of the camera; default: OpenFace's.
    """

    def __init__(self, stream: TextIO, intrinsics: Intrinsics | None = None) -> None:
        self._stream, self._intrinsics = stream, intrinsics

    def write(self, result: Result) -> None:
        """Write a frame's line.

        Raises:
            ReaderGone: nobody reads the stream any more.
            SinkError: it cannot be written.
            ConfigError: the frame has another aspect than the intrinsics.
        """
        frame = result.frame
        line: dict[str, Any] = {"input": frame.name} if frame.name else {}
        line |= {"frame": frame.index + 1, "timestamp": round(frame.time_s, 6)}
        line["faces"] = [_face_object(face, frame.size, self._intrinsics) for face in result.faces]
        try:
            self._stream.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as error:
            if isinstance(error, BrokenPipeError) or error.errno == errno.EINVAL:  # which is Windows' word for it
                raise ReaderGone("JSON lines: the program that read them has gone") from error
            raise SinkError(f"JSON lines: cannot be written: {error.strerror or error}") from error

    def finish(self) -> None:
        """Nothing is left to do: every line has been written."""

    def close(self, *, complete: bool) -> None:
        """Nothing is left to do."""


def _face_object(face: Face, size: tuple[int, int], intrinsics: Intrinsics | None) -> dict[str, Any]:
    x1, y1, x2, y2 = face.box.astype(np.float64)
    pose = pose_of(face, size, intrinsics)
    return {
        "face_id": face.track,
        "state": face.state.value,
        "success": int(face.measured is not None),
        "confidence": round(face.confidence, 3),
        "box": _rounded([x1, y1, x2 - x1, y2 - y1], 2),
        "pose_T": None if pose is None else _rounded(pose.translation_mm, 2),
        "pose_R": None if pose is None else _rounded(pose.rotation_rad, 4),
        "ear": _rounded(eye_aspect_ratio(face.smoothed), 4),
        "xy": _rounded(face.smoothed, 2),
    }


def _rounded(values: Any, decimals: int) -> Any:
    """Give (nested) lists of rounded numbers, null where there is none."""
    numbers = np.round(np.asarray(values, np.float64), decimals).astype(object)
    numbers[~np.isfinite(np.asarray(values, np.float64))] = None
    return numbers.tolist()
