"""Write several files that belong together: all of them, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...pipeline.part_file import PartFile
from ...tracker.errors import SinkError


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where an evaluation's files go: DIR/STEM.csv and so on."""

    folder: Path
    stem: str

    @property
    def table(self) -> Path:
        """A row per face or video."""
        return self.folder / f"{self.stem}.csv"

    @property
    def summary(self) -> Path:
        """Everything, as JSON."""
        return self.folder / f"{self.stem}.json"

    @property
    def curves(self) -> tuple[Path, Path]:
        """The cumulative error curves as PNG and SVG."""
        return self.folder / f"{self.stem}-ced.png", self.folder / f"{self.stem}-ced.svg"

    def all(self) -> list[Path]:
        """Every file and folder that the evaluation writes."""
        return [self.table, self.summary, *self.curves]


def remove_all(files: Iterable[Path]) -> None:
    """Remove those of the files that exist.

    Raises:
        SinkError: one of them cannot be removed.
    """
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise SinkError(f"{file}: cannot be removed: {error.strerror}; choose another folder") from error


def replace_all(contents: Mapping[Path, bytes]) -> None:
    """Write files, replacing existing ones; they get their names once all of them are completely written.

    Raises:
        SinkError: one of them cannot be written. Then none has changed, unless a renaming failed half-way; the message
            says in which files the rest is.
    """
    parts = {path: PartFile(path, overwrite=True) for path in contents}
    try:
        for path, content in contents.items():
            try:
                parts[path].part.write_bytes(content)
            except OSError as error:
                raise parts[path].error(error) from error
    except BaseException:
        for part in parts.values():
            part.discard()
        raise
    try:
        for part in parts.values():
            part.publish()
    except SinkError as error:
        left = [str(part.part) for part in parts.values() if part.part.exists()]
        raise SinkError(", and so ".join((str(error), *left[1:]))) from error
