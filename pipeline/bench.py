"""The speed on this machine: of a whole batch run and its parts, as percentiles, with a description of the machine."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from .. import __version__
from ..engines.codec import decoder
from ..tracker.errors import SourceError
from ..tracker.geometry import CropTransform
from ..tracker.smooth import Smoother, SmootherSettings
from ..tracker.types import Frame, Result, UInt8
from .batch import track_all
from .machine import describe_machine, source_commit
from .open import Engines
from .portrait import portrait
from .progress import NoProgress, Task
from .sidecar import describe_models
from .source import Decoder
from .sources import open_source
from .tasks import Outputs
from .timing import measure
from .video_sink import VideoSink

SIZE = 480, 640  # of the video that is made if none is given
RATE = Fraction(30)
SWING = 0.08  # of the picture's width: how far the faces move to either side
SWING_S = 2.0  # period
MOST_REPEATS, LONGEST_S = 200, 2.0  # of each part, whichever comes first


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What to measure.

    Attributes:
        video: the recording to track; None makes one in which a portrait moves.
        faces: 1 or 4, in the video that is made.
        frames: of the video that is made.
        decoder: of the run, see `open_source`.
    """

    video: Path | None = None
    faces: int = 1
    frames: int = 600
    decoder: Decoder = "cpu"


def run_bench(settings: BenchSettings, engines: Engines) -> dict[str, Any]:
    """Measure the speed; the report has JSON's types, and durations in milliseconds.

    Raises:
        SourceError: the video cannot be read.
    """
    with TemporaryDirectory(prefix="facetrack-bench-") as folder:
        video = settings.video or write_moving_portrait(Path(folder) / "portrait.mp4", settings)
        whole = _measure_whole(Task(str(video), "bench", settings.decoder), Path(folder) / "out", engines)
        parts = _measure_parts(video, engines)
    return {
        "facetrack": __version__,
        "commit": source_commit(),
        "machine": describe_machine(),
        "backend": engines.backend,
        "models": describe_models(engines),
        "settings": asdict(engines.choices) | {"decoder": settings.decoder},
        "input": settings.video.name if settings.video else _describe(settings),
        **whole,
        "parts_ms": parts,
    }


def _describe(settings: BenchSettings) -> str:
    return f"moving portrait, {settings.faces} face{'s' * (settings.faces > 1)}, {SIZE[1]}x{SIZE[0]}"


def write_moving_portrait(path: Path, settings: BenchSettings) -> Path:
    """Encode a video in which the portrait, or four of them, swing from side to side."""
    sink = VideoSink(path, rate=RATE)
    for index, bgr in enumerate(moving_portraits(settings.faces, settings.frames)):
        time_s = index / float(RATE)
        sink.write(Result(Frame(index, time_s, time_s, bgr), ()))
    sink.close(complete=True)
    return path


def moving_portraits(faces: int, frames: int) -> Iterator[UInt8]:
    """Pictures (480, 640, 3) uint8 BGR of one portrait in the middle, or of one in each quarter."""
    picture, (height, width) = portrait(), SIZE
    columns = 1 if faces == 1 else 2
    cell = height // columns, width // columns
    for index in range(frames):
        shift = SWING * cell[1] * np.sin(2 * np.pi * index / float(RATE) / SWING_S)
        centre = picture.shape[1] / 2 - shift * picture.shape[0] / cell[0], picture.shape[0] / 2
        scale = cell[0] / picture.shape[0]
        matrix = np.array([[scale, 0, cell[1] / 2 - scale * centre[0]], [0, scale, cell[0] / 2 - scale * centre[1]]])
        tile = cv2.warpAffine(picture, matrix, (cell[1], cell[0]), borderMode=cv2.BORDER_REPLICATE)
        yield np.asarray(np.tile(tile, (columns, columns, 1)), np.uint8)


def _measure_whole(task: Task, folder: Path, engines: Engines) -> dict[str, Any]:
    """One batch run, tables written: wall and processor time per frame, and each stage."""
    outputs = Outputs(folder)
    cpu_s = time.process_time()
    failures = track_all([task], outputs, engines, NoProgress())
    cpu_s = time.process_time() - cpu_s
    if failures:
        raise SourceError(failures[0].reason)
    sidecar = json.loads(outputs.sidecar(task).read_text(encoding="utf-8"))
    frames, wall_s = sidecar["counts"]["frames"], sidecar["wall_s"]
    return {
        "counts": sidecar["counts"],
        "wall_ms_per_frame": round(1000 * wall_s / frames, 3),
        "cpu_ms_per_frame": round(1000 * cpu_s / frames, 3),
        "frames_per_s": round(frames / wall_s, 1),
        "stages_ms": sidecar["stages_ms"],
    }


def _measure_parts(video: Path, engines: Engines) -> dict[str, dict[str, float]]:
    """Each part alone on one thread, on the video's first frame."""
    with open_source(video) as source:
        frame = next(iter(source))
    return {name: measure(part, MOST_REPEATS, LONGEST_S).summary_ms() for name, part in _parts(frame.bgr, engines)}


def _parts(bgr: UInt8, engines: Engines) -> Iterator[tuple[str, Callable[[], object]]]:
    aligner = engines.aligner
    middle, side = (bgr.shape[1] / 2, bgr.shape[0] / 2), bgr.shape[0] / 3
    crop = aligner.crop_around(middle, side)
    yield "detect, whole frame", lambda: engines.detector.detect(bgr)
    yield "crop, one face", lambda: CropTransform(crop.matrix, crop.size).crop(bgr)
    for count in (1, 4):
        yield f"align, {count} face{'s' * (count > 1)}", partial(aligner.align, bgr, [crop] * count)
    outputs = tuple(output.copy() for output in aligner.backend.run(crop.crop(bgr)[None]))
    decode = decoder(aligner.card.codec, aligner.markup, aligner.card.name)
    yield "decode, one face", lambda: decode(outputs)
    points, rng = aligner.markup.points, np.random.default_rng(0)
    smoother, clock = Smoother(SmootherSettings(), points), itertools.count(1 / RATE, 1 / RATE)
    xy, score = 100 * rng.random((points, 2), np.float32), np.ones(points, np.float32)
    yield "smooth, one face", lambda: smoother.update(float(next(clock)), xy, score, 100.0)
