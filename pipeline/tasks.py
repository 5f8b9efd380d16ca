"""Turn what a user names into tasks: which inputs there are, and which files each of them gets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from glob import has_magic
from pathlib import Path
from typing import Literal

from ..tracker.errors import ConfigError
from .csv_sink import TableOptions
from .image_source import IMAGE_SUFFIXES, expand_glob, glob_root, holds_pictures, names_several_pictures
from .part_file import refuse_existing
from .progress import Task
from .sidecar import where
from .source import Decoder, is_same_file, is_url, resolve_spec, without_credentials

Existing = Literal["refuse", "overwrite", "resume"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is written, and where.

    Attributes:
        folder: created if it does not exist.
        video: also NAME.mp4, with the faces drawn.
        columns: what the tables hold.
        existing: what to do about tables that already exist.
    """

    folder: Path
    video: bool = False
    columns: TableOptions = field(default_factory=TableOptions)
    existing: Existing = "refuse"

    def table(self, task: Task) -> Path:
        """NAME.csv."""
        return self.folder / f"{task.name}.csv"

    def sidecar(self, task: Task) -> Path:
        """NAME.json."""
        return self.folder / f"{task.name}.json"

    def video_file(self, task: Task) -> Path:
        """NAME.mp4."""
        return self.folder / f"{task.name}.mp4"

    def files(self, task: Task) -> list[Path]:
        """All files of a task."""
        return [self.table(task), self.sidecar(task)] + [self.video_file(task)] * self.video


def tasks_for(
    inputs: Sequence[str],
    outputs: Outputs,
    shard: tuple[int, int] = (1, 1),
    *,
    keep_folders: bool = False,
    decoder: Decoder = "cpu",
    frame_rate: float = 0.0,
) -> list[Task]:
    """Turn what a user named into tasks, and refuse beforehand what could not succeed.

    A folder, or a glob that only matches pictures, is one task; any other glob is a task for each match. What is named
    twice is done once.

    Args:
        inputs: files, folders, globs, URLs.
        outputs: what is to be written.
        shard: (i, n) keeps the i-th, from 1, of n shares, which together are everything; each takes every n-th of the
            tasks in the order of their inputs' names.
        keep_folders: matches of a glob keep their folders below its part without wildcards.
        decoder: for all tasks.
        frame_rate: of folders and globs of pictures, which it makes videos; other inputs have a clock of their own.
    Raises:
        ConfigError: two inputs would write the same files, or one would be overwritten, is a camera or has an empty
            name; or there is a frame rate and nothing that it applies to.
        SinkError: outputs of this share exist that must not be overwritten.
    """
    found: dict[tuple[str, str], Task] = {}
    for spec in inputs:
        for task in _expand(resolve_spec(spec), keep_folders=keep_folders):
            found.setdefault((where(task.spec), task.name), task)
    tasks = list(found.values())
    if frame_rate:
        _refuse_lone_pictures(tasks)
    rates = [frame_rate if names_several_pictures(task.spec) else 0.0 for task in tasks]
    tasks = [replace(task, decoder=decoder, frame_rate=rate) for task, rate in zip(tasks, rates, strict=True)]
    names: dict[str, Task] = {}
    for task in tasks:
        other = names.setdefault(task.name.casefold(), task)
        if other is not task:
            advice = "rename one of them, or process one in a batch with another --out"
            if not keep_folders and _lie_apart(other, task):
                advice += ", or keep the subfolders of the matches of a glob (--keep-folders)"
            raise ConfigError(
                f"{other.label} and {task.label} would both be written to {outputs.table(task)}; {advice}"
            )
        if any(is_same_file(task.spec, file) for file in outputs.files(task)):
            raise ConfigError(f"{task.spec}: would be overwritten by its own output; choose another --out folder")
    if shard != (1, 1):
        tasks = sorted(tasks, key=lambda task: task.spec)[shard[0] - 1 :: shard[1]]
    if outputs.existing == "refuse":
        files = [file for task in tasks for file in outputs.files(task)]
        refuse_existing(files, "add --overwrite or --resume, or choose another --out")
    return tasks


def _refuse_lone_pictures(tasks: Sequence[Task]) -> None:
    """Check that a frame rate has pictures to apply to.

    Raises:
        ConfigError: a single picture is named, as by a shell that has expanded a glob; or there is none.
    """
    if alone := next((t for t in tasks if holds_pictures(t.spec) and not names_several_pictures(t.spec)), None):
        raise ConfigError(
            f"--frame-rate: {alone.spec} is a single picture; name the folder of the frames, or put the glob in quotes"
        )
    if not any(names_several_pictures(task.spec) for task in tasks):
        raise ConfigError(
            "--frame-rate applies only to folders and globs of pictures, and none was given: leave it out"
        )


def _lie_apart(one: Task, other: Task) -> bool:
    """Whether two inputs are files in different folders."""
    if is_url(one.spec) or is_url(other.spec):
        return False
    return Path(where(one.spec)).parent != Path(where(other.spec)).parent


def _expand(spec: str, *, keep_folders: bool) -> list[Task]:
    if not spec:
        raise ConfigError("input: wanted a file, a folder, a glob or a URL, got an empty name; is a variable not set?")
    if is_url(spec):
        return [Task(spec, _name_of_url(without_credentials(spec)))]
    path = Path(spec)
    if spec.isdecimal() and not path.exists():
        raise ConfigError(f"{spec}: a camera never ends; `facetrack live --camera {spec} --csv FILE` records from it")
    if path.exists() or not has_magic(spec):
        name = path.resolve().name if path.is_dir() else path.stem
        return [Task(spec, name or "input")]
    matches = expand_glob(spec)
    root = glob_root(path)
    if all(match.suffix.lower() in IMAGE_SUFFIXES for match in matches):
        return [Task(spec, root.resolve().name or "input")]
    stems = [match if match.is_dir() else match.with_suffix("") for match in matches]
    names = [stem.relative_to(root).as_posix() if keep_folders else stem.name for stem in stems]
    return [Task(str(match), name) for match, name in zip(matches, names, strict=True)]


def _name_of_url(url: str) -> str:
    """The stem of the URL's file; if it names none, what follows the last slash, to distinguish it from others.

    Characters that Windows does not allow in file names become "_": of a name with a colon, Windows would create a file
    named by the text before it.
    """
    file = Path(re.split("[?#]", url, maxsplit=1)[0])
    return re.sub(r'[<>:"\\|?*]', "_", (file if file.suffix else Path(url)).stem) or "input"
