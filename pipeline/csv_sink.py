"""The CSV file, schema 1: one long table, a row per frame and face."""

from __future__ import annotations

import csv
import math
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..tracker.errors import SinkError
from ..tracker.intrinsics import Intrinsics
from ..tracker.pose import eye_aspect_ratio
from ..tracker.types import Face, Float32, Float64, Frame, Result
from .camera_file import describe_intrinsics
from .part_file import PartFile
from .sinks import pose_of

SCHEMA = 1
_FRAME = ("frame", "face_id", "timestamp", "confidence", "success", "state")
_FACE = ("box_x", "box_y", "box_w", "box_h", "pose_Tx", "pose_Ty", "pose_Tz", "pose_Rx", "pose_Ry", "pose_Rz")
_EYES = ("ear_left", "ear_right")
_BUFFER_BYTES = 1 << 18  # some 200 rows, lost if the process is killed, unless the sink flushes rows


@dataclass(frozen=True, slots=True)
class CsvColumns:
    """Which columns a file has.

    frame, face_id, timestamp, confidence, success, state, box_x, box_y, box_w, box_h, pose_Tx, pose_Ty, pose_Tz,
    pose_Rx, pose_Ry, pose_Rz, ear_left, ear_right, x_0 .. x_{N-1}, y_0 .. y_{N-1}, then the optional ones.

    `frame` counts from 1. `success` is 1 where the face was measured in this frame, 0 where it was carried on without
    a measurement. Seconds have 6 decimals, pixels and millimetres 2, radians and eye ratios 4, confidences 3.

    A frame without a face has one row with frame, timestamp, confidence 0.000 and success 0. All else is empty, so the
    row belongs to no group of a face_id. Also empty are the pose with a markup other than ibug68 or where none fits,
    the ratios of eyes that the markup does not draw, and raw points and confidences where nothing was measured.

    Attributes:
        points: landmarks of a face, N.
        raw: add xr_*, yr_*, the points as the network measured them.
        landmark_confidence: add c_*, the confidence of each of them.
        images: begin with `input`, the picture's file name.
        intrinsics: of the camera, for the head's pose; None: OpenFace's.
    """

    points: int
    raw: bool = False
    landmark_confidence: bool = False
    images: bool = False
    intrinsics: Intrinsics | None = None

    def names(self) -> list[str]:
        """Column names in order."""
        names = ["input"] if self.images else []
        names += [*_FRAME, *_FACE, *_EYES, *self._series("x"), *self._series("y")]
        if self.raw:
            names += [*self._series("xr"), *self._series("yr")]
        if self.landmark_confidence:
            names += self._series("c")
        return names

    def rows(self, result: Result) -> Iterator[str]:
        """Give a frame's lines, each with its line feed.

        Raises:
            ValueError: a face has another number of points.
            ConfigError: the frame has another aspect than the intrinsics.
        """
        frame = result.frame
        start = f"{_quoted(frame.name)}," if self.images else ""
        start += f"{frame.index + 1},"
        if not result.faces:
            empty = len(self.names()) - len(_FRAME) - self.images
            yield f"{start},{frame.time_s:.6f},0.000,0," + "," * empty + "\n"
        for face in result.faces:
            yield f"{start}{self._face(face, frame)}\n"

    def _face(self, face: Face, frame: Frame) -> str:
        if len(face.smoothed) != self.points:
            raise ValueError(f"CSV: wanted faces of {self.points} points, got {len(face.smoothed)}")
        x1, y1, x2, y2 = face.box.tolist()
        success = int(face.measured is not None)
        pose = pose_of(face, frame.size, self.intrinsics)
        cells = [f"{face.track},{frame.time_s:.6f},{face.confidence:.3f},{success},{face.state.value}"]
        cells.append(f"{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f}")
        cells += [",,,,,"] if pose is None else [_numbers(pose.translation_mm, 2), _numbers(pose.rotation_rad, 4)]
        cells += ["" if math.isnan(ear) else f"{ear:.4f}" for ear in eye_aspect_ratio(face.smoothed)]
        cells.append(_numbers(face.smoothed.T, 2))
        if self.raw:
            cells.append(_numbers(face.measured.xy.T, 2) if face.measured else "," * (2 * self.points - 1))
        if self.landmark_confidence:
            cells.append(_numbers(face.measured.score, 3) if face.measured else "," * (self.points - 1))
        return ",".join(cells)

    def _series(self, name: str) -> list[str]:
        return [f"{name}_{i}" for i in range(self.points)]


def is_table(path: Path) -> bool:
    """Whether a file begins like every table of ours, as far as it goes; an empty one does.

    Raises:
        OSError: it cannot be read.
    """
    begin, images = ",".join(_FRAME).encode(), b"input,"
    with path.open("rb") as file:
        found = file.read(len(images) + len(begin)).removeprefix(images)
    return found[: len(begin)] == begin[: len(found)]


@dataclass(frozen=True, slots=True)
class TableOptions:
    """A user's choices for a table.

    Attributes:
        raw, landmark_confidence: more columns, see `CsvColumns`.
        intrinsics: of the camera, for the head's pose; None: OpenFace's.
    """

    raw: bool = False
    landmark_confidence: bool = False
    intrinsics: Intrinsics | None = None

    def for_faces(self, points: int, *, images: bool) -> CsvColumns:
        """The columns for faces of this many points, from pictures or from a video."""
        return CsvColumns(points, self.raw, self.landmark_confidence, images, self.intrinsics)

    def settings(self) -> dict[str, Any]:
        """The choices for the sidecar, in JSON's types."""
        names = {"raw": self.raw, "landmark_confidence": self.landmark_confidence}
        return names | {"intrinsics": describe_intrinsics(self.intrinsics)}


@dataclass(frozen=True, slots=True)
class Counts:
    """What a table holds, under the names that its sidecar uses.

    Attributes:
        frames: results in it.
        frames_with_face: how many of them have a face.
        rows: one for each face, and one for each frame without a face.
        most_faces: largest number of faces in one frame.
    """

    frames: int = 0
    frames_with_face: int = 0
    rows: int = 0
    most_faces: int = 0

    def plus(self, faces: int) -> Counts:
        """The counts with one more frame that has this many faces."""
        return Counts(
            self.frames + 1,
            self.frames_with_face + (faces > 0),
            self.rows + max(1, faces),
            max(self.most_faces, faces),
        )


class CsvSink:
    """Writes a CSV file of schema 1: UTF-8, line feeds, "." for decimals, no spaces.

    Ctrl-C may come at any moment, in the middle of a frame's rows or before they are counted. Such a frame is left out
    at the end, so that the file holds only whole frames that were counted.

    Args:
        path: NAME.csv; it is NAME.csv.part until it is complete. The first row replaces that of an earlier run.
        columns: which columns it has.
        overwrite: replace an existing file.
        flush_rows: write each frame's rows at once, for runs that cannot be repeated; else some 200 rows at a time.

    Attributes:
        size_bytes: of the whole file, once it is finished.

    Raises:
        SinkError: the file exists, another process is writing it, or it cannot be written.
    """

    def __init__(self, path: Path, columns: CsvColumns, *, overwrite: bool = False, flush_rows: bool = False) -> None:
        self._columns, self._flush_rows = columns, flush_rows
        self._file = PartFile(path, overwrite=overwrite)
        self._closed = False
        self.size_bytes = 0
        self._kept = 0, Counts()  # where the last whole frame ends, and the counts up to it
        self._ends: deque[int] = deque()  # where the last frames end, back to those that are surely in the file
        self._file.lock()
        try:
            self._out = self._file.open(_BUFFER_BYTES)
        except OSError as error:
            self._file.release()
            raise self._file.error(error) from error

    @property
    def counts(self) -> Counts:
        """What the file holds."""
        return self._kept[1]

    @property
    def inherits(self) -> bool:
        """Whether the file still holds the rows of an earlier run."""
        return self._file.inherited

    def resume_rows(self) -> list[str]:
        """Keep the rows of an earlier run that belong to complete pictures; return the names of these.

        Raises:
            SinkError: the file cannot be read or written.
        """
        try:
            names, end, counts = _complete_pictures(self._file.part, self._columns.names())
            if names:
                self._out.seek(end)
                self._out.truncate()
                self._kept, self._file.inherited = (end, counts), False
                self._ends.append(end)
        except OSError as error:
            raise self._given_up(error) from error
        return names

    def write(self, result: Result) -> None:
        """Write a frame's rows.

        Raises:
            SinkError: they cannot be written.
            ValueError: a face has another number of points than the file.
            ConfigError: the frame has another aspect than the intrinsics.
        """
        rows = "".join(self._columns.rows(result)).encode()
        counts = self.counts.plus(len(result.faces))
        try:
            self._begin()
            self._out.write(rows)
            self._kept = self._out.tell(), counts  # in one step, as Ctrl-C may come between two
            if self._flush_rows:
                self._out.flush()
        except OSError as error:
            raise self._given_up(error) from error
        self._ends.append(self._kept[0])
        while self._ends[0] < self._ends[-1] - 2 * _BUFFER_BYTES:
            self._ends.popleft()

    def _begin(self) -> None:
        """Write the columns' names, if nothing is written yet."""
        if not self._kept[0]:
            self._file.begin(self._out)
            self._out.write(f"{','.join(self._columns.names())}\n".encode())
            self._kept = self._out.tell(), Counts()

    def _given_up(self, error: OSError) -> SinkError:
        """Give up: truncate the part file to its last whole frame, and return the error to raise."""
        self._closed = True
        with suppress(OSError):  # the same failure again
            self._out.close()
        with suppress(OSError):
            size = self._file.part.stat().st_size
            end = max((end for end in self._ends if end <= size), default=0)
            if end:
                os.truncate(self._file.part, end)
            else:
                self._file.discard()
        return self._file.error(error)

    def finish(self) -> None:
        """Write what is left to be written; see `sinks.Sink.finish`."""
        if self._out.closed:
            return
        try:
            self._begin()
            self._write_out()
        except OSError as error:
            raise self._given_up(error) from error

    def _write_out(self) -> None:
        with self._out:
            end, _ = self._kept
            if self._out.tell() > end:  # what an interruption left after the last whole frame
                self._out.truncate(end)
            self._out.flush()
            os.fsync(self._out.fileno())
            self.size_bytes = os.fstat(self._out.fileno()).st_size

    def close(self, *, complete: bool) -> None:
        """Give the file its name if it is complete; see `sinks.Sink.close`."""
        try:
            if not self._closed:
                self._end(complete=complete)
        finally:
            self._file.release()

    def _end(self, *, complete: bool) -> None:
        self._closed = True
        if complete:
            self.finish()
            self._file.publish()
            return
        if not self._out.closed:
            try:
                self._write_out()
            except OSError as error:
                self._given_up(error)
        if not self.counts.rows:
            self._file.discard()


def _complete_pictures(part: Path, columns: list[str]) -> tuple[list[str], int, Counts]:
    """The complete pictures in a table that may be cut off, where their rows end, and their counts.

    The very last picture is left out, because nothing shows whether it has all of its faces.
    """
    names, kept = list[str](), (0, Counts())
    faces, end, last = 0, 0, ["", "0"]
    with part.open("rb") as file, suppress(csv.Error, UnicodeDecodeError):
        table = csv.reader(map(bytes.decode, file), strict=True)
        if next(table, None) != columns:
            return names, *kept
        for row in takewhile(lambda row: len(row) == len(columns), table):
            if row[1] != last[1] and last[0]:
                names.append(last[0])
                kept = end, kept[1].plus(faces)
            faces = int(row[2] != "") + (faces if row[1] == last[1] else 0)
            end, last = file.tell(), row[:2]
    return names, *kept


def _numbers(values: Float32 | Float64, decimals: int) -> str:
    """Join numbers with commas."""
    return _format(values.size, decimals) % tuple(values.ravel().tolist())


@cache
def _format(count: int, decimals: int) -> str:
    """One format for a whole series: several times faster than a format for each number."""
    return ",".join([f"%.{decimals}f"] * count)


def _quoted(text: str) -> str:
    """A cell as RFC 4180 requires it."""
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\r\n') else text
