"""Where results go: the protocol, files that appear only when they are complete, and JSON lines.

The other sinks have files of their own: csv_sink, video_sink, osc_sink, window.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

import numpy as np

from ..tracker.errors import SinkError
from ..tracker.intrinsics import Intrinsics
from ..tracker.pose import MEAN_FACE_MM, Pose, eye_aspect_ratio, head_pose
from ..tracker.types import Face, Result
from .line_writer import LineWriter, descriptor_of, not_written

if sys.platform != "win32":
    import fcntl


_NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})  # Windows has no quota


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


class PartFile:
    """A file that is called NAME.part until it is complete.

    A NAME.part that an interrupted run left behind is written over, but not before there is something to write.

    Attributes:
        part: the path to write to.
        inherited: it still holds what an earlier run left.

    Raises:
        SinkError: the file exists and must not be overwritten, or its folder does not exist.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self._path, self._overwrite = path, overwrite
        self._locked: int | None = None  # a file descriptor that holds the lock
        self.part = part_of(path)
        self.inherited = False
        self._check()

    def _check(self) -> None:
        path = self._path
        try:
            has_folder, is_folder, exists = path.parent.is_dir(), path.is_dir(), path.exists()
        except OSError as error:
            raise self.error(error, path) from error
        if not has_folder:
            raise SinkError(f"{path}: there is no folder {path.parent}; create it first")
        if is_folder:
            raise SinkError(f"{path}: is a folder; wanted the name of a file to write")
        if exists and not self._overwrite:
            raise SinkError(f"{path}: exists already; choose another name or allow it to be overwritten (--overwrite)")

    def lock(self) -> None:
        """Keep other processes that lock it too from writing the file, until it is published, discarded or released.

        It is there from then on, with what an earlier run left in it. Nothing is locked on Windows, and on file systems
        that have no locks.

        Raises:
            SinkError: another process has locked it, or has published it meanwhile and it must not be overwritten; or
                it cannot be written.
        """
        if sys.platform == "win32":
            return
        try:
            while self._locked is None:
                self._locked = self._try_to_lock()
        except BlockingIOError as error:
            raise SinkError(
                f"{self._path}: another process is writing this table; wait for it, or choose another --out"
            ) from error
        except OSError as error:
            raise self.error(error) from error
        try:
            self._check()
        except SinkError:
            self.discard()
            raise

    def _try_to_lock(self) -> int | None:
        """A descriptor with the lock; None where the file had got its name, or gone away, before it was locked."""
        descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # this file system has no locks
                return descriptor
            if os.path.samestat(os.fstat(descriptor), self.part.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def release(self) -> None:
        """Let other processes write the file."""
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    def open(self, buffering: int = -1) -> BinaryIO:
        """Open it to write, with what an earlier run left in it: `begin` throws that away.

        Raises:
            OSError: it cannot be opened.
        """
        out = open(self.part, "wb", buffering, opener=_open_untouched)  # noqa: SIM115 - pathlib's has no opener
        self.inherited = os.fstat(out.fileno()).st_size > 0
        return out

    def begin(self, out: BinaryIO) -> None:
        """Empty it for the first that is written.

        Raises:
            OSError: it cannot be written.
        """
        if self.inherited:
            out.truncate(0)
            self.inherited = False

    def publish(self) -> None:
        """Give the file its name.

        Raises:
            SinkError: it cannot be renamed.
        """
        try:
            self.part.replace(self._path)
        except OSError as error:
            raise self.error(error, self._path) from error
        finally:
            self.release()

    def discard(self) -> None:
        """Remove the file, unless it holds what an earlier run left."""
        try:
            if not self.inherited:
                self.part.unlink(missing_ok=True)
        finally:
            self.release()

    def error(self, error: Exception, file: Path | None = None) -> SinkError:
        """Say in one line that a file, by default NAME.part, cannot be written, and why."""
        advice = "; make room, or choose another folder" if getattr(error, "errno", None) in _NO_ROOM else ""
        reason = getattr(error, "strerror", None) or error
        return SinkError(f"{file or self.part}: cannot be written: {reason}{advice}")


def part_of(path: Path) -> Path:
    """What a file is called until it is complete."""
    return path.with_name(f"{path.name}.part")


def _open_untouched(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


def atomic_write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a small UTF-8 file in one step: it is there whole or not at all.

    Raises:
        SinkError: it cannot be written.
        UnicodeEncodeError: the text is none.
    """
    file = PartFile(path, overwrite=overwrite)
    try:
        with file.part.open("w", encoding="utf-8", newline="\n") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
    except BaseException as error:
        with suppress(OSError):
            file.discard()
        if isinstance(error, OSError):
            raise file.error(error) from error
        raise
    file.publish()


def make_folder(folder: Path) -> None:
    """Make a folder for results, and those above it.

    Raises:
        SinkError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"{folder}: cannot be made: {error.strerror or error}; choose another folder") from error


def exist_already(files: Sequence[Path]) -> str:
    """Say of at least one file that it, and how many others, are there."""
    first, others = files[0], len(files) - 1
    if not others:
        return f"{first}: exists already"
    return f"{first} and {others} other{'s' if others > 1 else ''}: exist already"


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
        stream: each line is flushed, so that listeners are as current as the video; stays open. A reader that falls
            behind, of a pipe, keeps nobody waiting: see `line_writer`. A file gets every line.
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
            raise not_written(error) from error

    def finish(self) -> None:
        """Wait for lines that are still to be read, while any are.

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
    """Give (nested) lists of rounded numbers, null where there is none."""
    numbers = np.round(np.asarray(values, np.float64), decimals).astype(object)
    numbers[~np.isfinite(np.asarray(values, np.float64))] = None
    return numbers.tolist()
