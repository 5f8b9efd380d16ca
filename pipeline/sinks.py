"""Where results go: the protocol, and JSON lines.

The other sinks have files of their own: csv_sink, video_sink, osc_sink, window.
"""

from __future__ import annotations

import json
from typing import Any, Protocol, TextIO

import numpy as np

from ..tracker.intrinsics import Intrinsics
from ..tracker.pose import MEAN_FACE_MM, Pose, eye_aspect_ratio, head_pose
from ..tracker.types import Face, Result
from .line_writer import LineWriter, descriptor_of, write_error


class Sink(Protocol):
    """Takes one result after the other, in order, on one thread."""

    def write(self, result: Result) -> None:
        """Take a result.

        Raises:
            SinkError: it cannot be written.
        """
        ...

    def finish(self) -> None:
        """Write what is left to be written, without renaming the file yet; only `close` may follow.

        Raises:
            SinkError: it cannot be written.
        """
        ...

    def close(self, *, complete: bool) -> None:
        """Finish what is not finished and give files their names; further calls do nothing.

        Args:
            complete: every result has been written; a file then gets its name. Otherwise it stays behind as
                NAME.part with what it holds, or is removed if that is nothing.
        Raises:
            SinkError: the end cannot be written, or the file not renamed.
        """
        ...


def pose_of(face: Face, size: tuple[int, int], intrinsics: Intrinsics | None) -> Pose | None:
    """Head pose from the smoothed points in a frame of size (height, width); None where the markup has none.

    Raises:
        ConfigError: the frame has another aspect than the intrinsics.
    """
    return head_pose(face.smoothed, size, intrinsics) if len(face.smoothed) == len(MEAN_FACE_MM) else None


class JsonLinesSink:
    """One JSON object per frame, each on a line, for programs that read along while a video runs.

    {"frame": 1, "timestamp": 0.033333, "faces": [
        {"face_id": 0, "state": "tracked", "success": 1, "confidence": 0.987, "box": [x, y, w, h],
         "pose_T": [x, y, z], "pose_R": [x, y, z], "ear": [left, right], "xy": [[x, y], ...]}]}

    It is written without spaces. Names, units and decimals are those of the CSV file; what a face lacks is null. Frames
    of single pictures begin with the picture's name under "input".

    Args:
        stream: each line is flushed, so that readers are as current as the video; stays open. A pipe's reader that
            falls behind does not hold up the tracking: see `line_writer`. A file gets every line.
        intrinsics: of the camera; default: OpenFace's.
    """

    def __init__(self, stream: TextIO, intrinsics: Intrinsics | None = None) -> None:
        self._stream, self._intrinsics = stream, intrinsics
        descriptor = descriptor_of(stream)
        if descriptor is not None:
            stream.flush()
        self._writer = None if descriptor is None else LineWriter(descriptor)

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
        text = json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n"
        if self._writer is not None:
            self._writer.put(text)
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            raise write_error(error) from error

    def drain(self) -> None:
        """Wait until all lines are read, or nobody reads them any more; nothing may be written after.

        Raises:
            KeyboardInterrupt: Ctrl-C, or a signal that the command line treats alike.
        """
        if self._writer is not None:
            self._writer.drain()

    def finish(self) -> None:
        """Wait for the remaining lines as long as their reader takes any.

        Raises:
            SinkError: one could not be written.
        """
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.finish()

    def close(self, *, complete: bool) -> None:
        """Finish what is not finished.

        Raises:
            SinkError: a line could not be written.
        """
        del complete
        self.finish()


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
    """(Nested) lists of rounded numbers, None for those that are not finite."""
    numbers = np.round(np.asarray(values, np.float64), decimals).astype(object)
    numbers[~np.isfinite(np.asarray(values, np.float64))] = None
    return numbers.tolist()
