"""What an earlier run has left at the path of a table, and what that means for `--resume`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from .csv_sink import is_table
from .sidecar import Origin


@dataclass(frozen=True, slots=True)
class PreviousRun:
    """A table, its sidecar and its video, as far as they exist.

    Attributes:
        table, sidecar: where they would be.
        video: where it would be; None if none is to be written.
        state: of the sidecar.
        found: the sidecar's content, if it could be read and is an object; else empty.
    """

    table: Path
    sidecar: Path
    video: Path | None
    state: Literal["missing", "unreadable", "read"]
    found: Mapping[str, Any]

    @classmethod
    def read(cls, table: Path, sidecar: Path, video: Path | None) -> Self:
        """Read the sidecar, once."""
        try:
            if sidecar.is_fifo():  # reading would wait until somebody writes
                return cls(table, sidecar, video, "unreadable", {})
            found = json.loads(sidecar.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(table, sidecar, video, "missing", {})
        except (OSError, ValueError, RecursionError):
            return cls(table, sidecar, video, "unreadable", {})
        return cls(table, sidecar, video, "read", found if isinstance(found, dict) else {})

    @property
    def foreign_files(self) -> list[Path]:
        """The existing files that no run of ours has left.

        An interruption leaves a video, or a sidecar that cannot be read, only beside a table. An empty file holds
        nothing that could be lost.
        """
        ours = _begins_as_ours(self.table)
        others = [self.table] * (ours is False)
        if self.state == "read":
            known, settings = self.found.keys() >= {"schema", "facetrack"}, self.found.get("settings")
            has_video = known and isinstance(settings, dict) and settings.get("video") is True
            others += [self.sidecar] * (not known)
        else:
            has_video = bool(ours)
            others += [self.sidecar] * (not ours and _holds_something(self.sidecar))
        if self.video is not None and not has_video and _holds_something(self.video):
            others.append(self.video)
        return others

    @property
    def claims_video(self) -> bool:
        """Whether the sidecar says that the video was written with its table, in the size that it has."""
        try:
            claimed = self.found["settings"]["video"] is True
            return claimed and self.video is not None and self.video.stat().st_size == self.found["video_bytes"]
        except (OSError, LookupError, TypeError):
            return False

    @property
    def failures(self) -> list[tuple[str, str]]:
        """(place, reason) of what the run had to leave out, if it is finished."""
        return [(entry["place"], entry["reason"]) for entry in self.found["failed"]]

    def other_input(self, origin: Origin, input_path: str) -> str:
        """The path of the other input that a complete table was made from; "" if it was made from this one.

        An input that has changed in place is not another one. A sidecar without a path, or one that cannot be read,
        says nothing about this.
        """
        path = self.found.get("path")
        if self.found.get("complete") is not True or not isinstance(path, str):
            return ""
        same = self.found.get("input") == origin.input or path == input_path
        return "" if same else path

    def why_not_finished(self, origin: Origin) -> str:
        """Say why the files are not the complete results of the same origin; "" if they are."""
        not_finished, unreadable = "it was not finished", f"{self.sidecar.name} cannot be read"
        if self.state != "read":
            return not_finished if self.state == "missing" else unreadable
        files = {"table": self.table} | ({"video": self.video} if self.video is not None else {})
        try:
            sizes = {name: file.stat().st_size for name, file in files.items()}
        except OSError as error:
            return not_finished if isinstance(error, FileNotFoundError) else unreadable
        differs = origin.what_differs(self.found)
        if differs:
            return differs
        if self.found.get("complete") is not True:
            return f"it is incomplete: {self.found.get('error')}"
        if not _are_failures(self.found.get("failed")) or any(f"{name}_bytes" not in self.found for name in sizes):
            return unreadable
        for name, size in sizes.items():
            written = self.found[f"{name}_bytes"]
            if written != size:
                return f"the {name} has {size} bytes, but {written} were written"
        return ""


def _are_failures(found: Any) -> bool:
    """Whether a sidecar's "failed" has the form that `PreviousRun.failures` reads."""
    return isinstance(found, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("place", "reason"))
        for entry in found
    )


def _begins_as_ours(table: Path) -> bool | None:
    """Whether a table is one of ours; None if there is none."""
    try:
        return is_table(table) if table.is_file() else None
    except OSError:
        return False


def _holds_something(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
