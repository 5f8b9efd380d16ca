"""A moving-face probe with exact ground truth: clips made from still photographs with annotated landmarks.

Each clip has a folder in the layout of 300VW: `vid.avi`, and `annot/NNNNNN.pts` for its frames, counted from 1. Further
faces of a clip are in `annot-2`, `annot-3`. `probe.json` contains the scene, the seed, a sha256 of everything that the
clip is made of, and how much of each face can be seen. A clip is made in a folder NAME.part, which is renamed when the
clip is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from ... import __version__
from ...pipeline.batch import Failure
from ...pipeline.part_file import check_folder_writable, part_of
from ...tracker.errors import ConfigError, SinkError, SourceError
from ...tracker.types import Float32, UInt8
from ..datasets import read_pts_folder
from ..datasets.point_files import write_pts
from ..evaluation.video_benchmark import read_annotation
from .render import Cutout, Painter
from .scenes import HEIGHT, RATE, SCENES, WIDTH, Scene

POINTS = 68
ABOUT = "probe.json"
PART = ".part"  # suffix of a clip that is not finished, see `part_of`


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a probe is made of.

    Attributes:
        photographs: folder with pictures and a .pts of 68 points beside each.
        scenes: names from `SCENES`; empty: all.
        copies: clips of each scene, each with other heads.
        seed: the same recipe gives the same clips.
    """

    photographs: Path
    scenes: tuple[str, ...] = ()
    copies: int = 1
    seed: int = 0

    def chosen(self, table: Sequence[Scene] = SCENES) -> list[Scene]:
        """The scenes in the table's order.

        Raises:
            ConfigError: a name is not in the table.
        """
        known = {scene.name: scene for scene in table}
        for name in self.scenes:
            if name not in known:
                raise ConfigError(f"probe: unknown scene {name!r}; wanted some of {', '.join(known)}")
        return [scene for scene in table if not self.scenes or scene.name in self.scenes]


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of a probe with its truth.

    Attributes:
        name: of its folder.
        video: its file.
        rate: frames per second.
        truth: (F, T, 68, 2) frame pixels, also of hidden faces and those outside the frame.
        visible: (F, T) share of the landmarks that can be seen.
        seed: of its recipe.
    """

    name: str
    video: Path
    rate: float
    truth: Float32
    visible: Float32
    seed: int

    @property
    def folder(self) -> Path:
        """The clip's folder."""
        return self.video.parent


@dataclass(frozen=True, slots=True)
class Probe:
    """The contents of a probe's folder.

    Attributes:
        folder: the probe's.
        clips: at least one, sorted by name.
        failures: the clips that cannot be read, and why.
    """

    folder: Path
    clips: tuple[Clip, ...]
    failures: tuple[Failure, ...] = ()


def make_probe(
    folder: Path, recipe: Recipe, table: Sequence[Scene] = SCENES, *, resume: bool = False
) -> Iterator[Path]:
    """Make the clips, one after the other.

    Args:
        folder: gets a folder for each clip; must be missing or empty, except for unfinished clips of an interrupted
            call, which are removed.
        recipe: what to make.
        table: the available scenes.
        resume: the folder may also hold clips of this recipe, which are kept.
    Yields:
        The folder of each clip, when it is complete.
    Raises:
        ConfigError: a scene is unknown.
        SourceError: the photographs cannot be read, or are too few.
        SinkError: the folder holds something else, or cannot be written.
    """
    scenes = recipe.chosen(table)
    clips = {
        f"{scene.name}-{copy + 1}" if recipe.copies > 1 else scene.name: (scene, copy)
        for scene in scenes
        for copy in range(recipe.copies)
    }
    check_folder_writable(folder)
    _make_room(folder, clips if resume else ())
    heads = read_heads(recipe.photographs)
    most = max((len(scene.faces) for scene in scenes), default=0)
    if len(heads) < most:
        raise SourceError(
            f"{recipe.photographs}: wanted at least {most} usable faces of {POINTS} points, got {len(heads)}"
        )
    for name, (scene, copy) in clips.items():
        seeds, place = [recipe.seed, zlib.crc32(scene.name.encode()), copy], folder / name
        rng = np.random.default_rng(seeds)
        chosen = [heads[i] for i in rng.choice(len(heads), len(scene.faces), replace=False)]
        origin = _origin(scene, chosen, seeds)
        if place.exists():
            _refuse_another(place, origin)
        else:
            try:
                _write_whole(place, Painter(scene, chosen, rng), {"seed": recipe.seed, "origin": origin})
            except OSError as error:
                raise SinkError(f"{place}: cannot be written: {error.strerror or error}") from error
        yield place


def _origin(scene: Scene, heads: Iterable[Cutout], seeds: Sequence[int]) -> str:
    """Fingerprint of a clip: a sha256 of everything that it is made of."""
    digest = hashlib.sha256(repr((__version__, scene, seeds)).encode())
    for head in heads:
        digest.update(head.bgr.tobytes() + head.points.tobytes())
    return digest.hexdigest()


def _refuse_another(folder: Path, origin: str) -> None:
    """Check that an existing clip is the one that would be made.

    Raises:
        SinkError: it is not.
    """
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["origin"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        found = None
    if found != origin:
        raise SinkError(
            f"{folder}: is a clip of another seed, of other photographs or of another version; "
            "remove it, or choose another folder"
        )


def _make_room(folder: Path, clips: Container[str]) -> None:
    """Check before the work that the folder holds nothing but these clips, and remove unfinished ones.

    Raises:
        SinkError: there is something else.
    """
    found = [path for path in folder.iterdir() if path.name not in clips] if folder.exists() else []
    others = [path.name for path in found if not _is_half(path)]
    if others:
        raise SinkError(
            f"{folder}: is not empty, it holds {others[0]}; choose another folder for the probe, or remove this one; "
            "--resume continues with clips of the same arguments"
        )
    for half in found:
        try:
            shutil.rmtree(half)
        except OSError as error:
            raise SinkError(f"{half}: cannot be removed: {error.strerror or error}") from error


def _is_half(path: Path) -> bool:
    """Whether it is the folder of an unfinished clip, with nothing else in it."""
    if path.suffix != PART or not path.is_dir():
        return False
    return all(file.name in ("vid.avi", ABOUT) or file.name.startswith("annot") for file in path.iterdir())


def read_heads(folder: Path) -> list[Cutout]:
    """The annotated heads of a folder with all their points inside the photograph.

    Raises:
        SourceError: the folder cannot be read.
    """
    heads = []
    for sample in read_pts_folder(folder):
        points = sample.points[0]
        if points.shape == (POINTS, 2) and np.isfinite(points).all():
            height, width = sample.bgr().shape[:2]
            if (points >= 0).all() and (points <= (width - 1, height - 1)).all():
                heads.append(Cutout(sample.bgr(), points))
    return heads


def _write_whole(folder: Path, painter: Painter, made_of: Mapping[str, object]) -> None:
    """Write a complete clip, or nothing."""
    part = part_of(folder)
    try:
        _write(part, painter, made_of)
        part.rename(folder)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(part)
        raise


def _write(folder: Path, painter: Painter, made_of: Mapping[str, object]) -> None:
    folder.mkdir(parents=True)
    truth = painter.truth()
    for number, track in enumerate(truth, start=1):
        place = folder / ("annot" if number == 1 else f"annot-{number}")
        place.mkdir()
        for t, xy in enumerate(track, start=1):
            write_pts(place / f"{t:06d}.pts", xy)
    encode(folder / "vid.avi", painter.frames(), painter.scene.crf)
    scene = {"scene": painter.scene.name, **made_of, "rate": RATE, "frames": painter.scene.frames}
    about = {**scene, "visible": np.round(painter.visible(truth), 3).tolist()}
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def encode(path: Path, frames: Iterable[UInt8], crf: int) -> None:
    """Write frames (HEIGHT, WIDTH, 3) as H.264 in an AVI file, the same bytes every time."""
    with av.open(str(path), "w", format="avi") as container:
        options = {"crf": str(crf), "preset": "veryfast", "bf": "0", "threads": "1"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for bgr in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(bgr, format="bgr24")))
        container.mux(stream.encode(None))


def read_probe(folder: Path) -> Probe:
    """All clips of a probe, sorted by name, and those that cannot be read.

    Raises:
        SourceError: no clip can be read.
    """
    clips, failures = [], []
    for place in sorted(path for path in folder.glob("*") if _holds_clip(path)):
        try:
            clips.append(read_clip(place))
        except SourceError as error:
            failures.append(Failure(str(place), str(error)))
    if failures and not clips:
        raise SourceError(f"no clip could be read; the first: {failures[0]}")
    if not clips:
        raise SourceError(f"{folder}: no clips of a probe; make some with `facetrack probe make {folder} --photos DIR`")
    return Probe(folder, tuple(clips), tuple(failures))


def _holds_clip(folder: Path) -> bool:
    """Whether it is the folder of a clip, complete or not."""
    return any((folder / name).exists() for name in (ABOUT, "vid.avi", "annot"))


def read_clip(folder: Path) -> Clip:
    """One clip and its truth.

    Raises:
        SourceError: a file is missing or broken.
    """
    path = folder / ABOUT
    if folder.suffix == PART or not path.exists():
        what = "its making was interrupted" if folder.suffix == PART else f"there is no {ABOUT}"
        raise SourceError(f"{folder}: is not a complete clip, {what}; remove it, or make the probe again")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise SourceError(f"{path}: wanted a JSON object, got a {type(about).__name__}; make the probe again")
        frames, rate = int(about["frames"]), float(about["rate"])
        visible = np.array(about["visible"], np.float32).reshape(-1, frames)
        seed = int(about["seed"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read: {error}; make the probe again") from error
    places = [folder / ("annot" if number == 1 else f"annot-{number}") for number in range(1, len(visible) + 1)]
    tracks = [_track(place, frames) for place in places]
    truth = np.array(tracks, np.float32).reshape(len(tracks), frames, POINTS, 2)
    return Clip(folder.name, folder / "vid.avi", rate, truth, visible, seed)


def _track(folder: Path, frames: int) -> Sequence[Float32]:
    return [read_annotation(folder / f"{t:06d}.pts") for t in range(1, frames + 1)]
