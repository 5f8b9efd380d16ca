"""Files that get their names only when they are complete, and the folders that they go to."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ..tracker.errors import SinkError

if sys.platform != "win32":
    import fcntl

TRIES, NAP_S = 10, 0.1  # attempts to rename on Windows, where a virus scanner may hold the file open for a moment
_NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})  # not everywhere


class PartFile:
    """A file that is called NAME.part until it is complete.

    A NAME.part that an interrupted run left behind is overwritten, but not before there is something to write.

    Attributes:
        part: the path to write to.
        inherited: whether it still holds what an earlier run left.

    Raises:
        SinkError: the file exists and must not be overwritten, its folder does not exist, or NAME.part is a link to a
            file.
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
            is_link = self.part.is_symlink() and self.part.is_file()
            if sys.platform == "win32" and path.is_file() and self._overwrite:
                path.open("r+b").close()  # fails now, not at the end, if a spreadsheet has it open
        except OSError as error:
            raise self.error(error, path) from error
        if not has_folder:
            raise SinkError(f"{path}: there is no folder {path.parent}; create it first")
        if is_folder:
            raise SinkError(f"{path}: is a folder; wanted the name of a file to write")
        if exists and not self._overwrite:
            raise SinkError(f"{path}: exists already; choose another name or allow it to be overwritten (--overwrite)")
        if is_link:
            raise SinkError(f"{self.part}: is a link to another file, which would be overwritten; remove it")

    def check_writable(self) -> None:
        """Check before the work that the file can be written; leave nothing behind.

        Raises:
            SinkError: it cannot.
        """
        try:
            self.open().close()
            self.discard()
        except OSError as error:
            raise self.error(error) from error

    def lock(self) -> None:
        """Keep other processes that lock it too from writing the file, until it is published, discarded or released.

        Creates the file if it is missing, and keeps what an earlier run left in it. Locks nothing on Windows, nor on
        file systems without locks.

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
        """A descriptor with the lock; None if the file was renamed or removed before it could be locked."""
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
        """Open it for writing, and keep what an earlier run left in it until `begin`.

        Raises:
            OSError: it cannot be opened.
        """
        out = open(self.part, "wb", buffering, opener=_open_untouched)  # noqa: SIM115 - pathlib's has no opener
        self.inherited = os.fstat(out.fileno()).st_size > 0
        return out

    def begin(self, out: BinaryIO) -> None:
        """Empty the file before the first write.

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
            self._rename()
        except OSError as error:
            kept = f"; what was written is in {self.part}: rename it" if self.part.exists() else ""
            raise SinkError(f"{self.error(error, self._path)}{kept}") from error
        finally:
            self.release()

    def _rename(self) -> None:
        for _ in range(TRIES if sys.platform == "win32" else 0):
            with suppress(PermissionError):
                self.part.replace(self._path)
                return
            time.sleep(NAP_S)
        self.part.replace(self._path)

    def discard(self) -> None:
        """Remove the file, unless it holds what an earlier run left."""
        try:
            if not self.inherited:
                self.part.unlink(missing_ok=True)
        finally:
            self.release()

    def error(self, error: Exception, file: Path | None = None) -> SinkError:
        """An error that says in one line why a file, by default NAME.part, cannot be written."""
        advice = "; make room, or choose another folder" if getattr(error, "errno", None) in _NO_ROOM else ""
        if sys.platform == "win32" and isinstance(error, PermissionError):
            advice = "; close it where it is open, such as in Excel, or choose another name"
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
        UnicodeEncodeError: the text is not valid Unicode.
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
    """Make a folder for results, and its parents.

    Raises:
        SinkError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"{folder}: cannot be created: {error.strerror or error}; choose another folder") from error


def check_folder_writable(folder: Path) -> None:
    """Check before the work that files can be made in a folder that may be missing; leave nothing behind.

    Raises:
        SinkError: they cannot, or the folder cannot be made.
    """
    missing: list[Path] = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        make_folder(folder)
        trial = folder / f".facetrack-{os.getpid()}.part"
        trial.touch()
        trial.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise SinkError(f"{folder}: no file can be created in it: {reason}; choose another folder") from error
    finally:
        for path in missing:
            with suppress(OSError):  # another process has put something into it
                path.rmdir()


def refuse_existing(files: Sequence[Path], advice: str) -> None:
    """Check before the work that its results would not replace others.

    Raises:
        SinkError: one of the files exists; `advice` says what to do.
    """
    existing = [file for file in files if file.exists()]
    if existing:
        first, others = existing[0], len(existing) - 1
        beside = f" and {others} other{'s' if others > 1 else ''}: exist" if others else ": exists"
        raise SinkError(f"{first}{beside} already; {advice}")
