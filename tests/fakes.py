"""Fakes with a known ground truth: painted faces that can be read back from pixels, and videos made of them."""

from __future__ import annotations

import csv
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import cv2
import numpy as np
import pytest

from facetrack.tracker.geometry import bounding_box
from facetrack.tracker.pose import MEAN_FACE_MM
from facetrack.tracker.types import Face, Float32, Float64, Frame, Landmarks, Result, State, UInt8
from facetrack.tracker.views import VIEWS

_MARGIN = 0.15  # painted round a face's landmarks, as a share of the face's width
_BACKGROUND = (48, 40, 32)


def _unit_face() -> Float64:
    """The mean face's 68 points seen from the front, centred on (0, 0), one unit wide."""
    xy = MEAN_FACE_MM[:, :2]
    low, high = xy.min(0), xy.max(0)
    return (xy - (low + high) / 2) / (high[0] - low[0])


UNIT_FACE = _unit_face()


@dataclass(frozen=True)
class PaintedFace:
    """A face that moves at constant speed.

    Attributes:
        start: (x, y) of the landmarks' box centre at time 0, pixels.
        velocity: pixels per second.
        width: of the landmarks' box, pixels.
        angle: tilt at time 0 in radians, positive clockwise.
        spin: radians per second.
        seen: range of frame numbers in which the face is shown.
    """

    start: tuple[float, float] = (160.0, 120.0)
    velocity: tuple[float, float] = (0.0, 0.0)
    width: float = 100.0
    angle: float = 0.0
    spin: float = 0.0
    seen: range = range(1_000_000)

    def matrix(self, time_s: float) -> Float64:
        """(2, 3) map from the unit face to the frame's pixels."""
        angle = self.angle + self.spin * time_s
        cos, sin = self.width * np.cos(angle), self.width * np.sin(angle)
        centre = np.add(self.start, np.multiply(self.velocity, time_s))
        return np.column_stack(([[cos, -sin], [sin, cos]], centre))

    def landmarks(self, time_s: float) -> Float32:
        """(68, 2) float32 frame pixels."""
        matrix = self.matrix(time_s)
        return (UNIT_FACE @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)

    def paint(self, bgr: UInt8, time_s: float) -> None:
        """Draw it as a colour chart: red is full, blue rises with x in the face's own frame, green towards its chin."""
        matrix, size = self.matrix(time_s), bgr.shape[1::-1]
        reach = _HALF * np.abs(matrix[:, :2]).sum(1)  # of the turned square, along x and y
        left, top = np.clip(np.floor(matrix[:, 2] - reach), 0, size).astype(int)
        right, bottom = np.clip(np.ceil(matrix[:, 2] + reach) + 1, 0, size).astype(int)
        x, y = np.arange(left, right), np.arange(top, bottom)[:, None]
        inverse = cv2.invertAffineTransform(matrix)
        u = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
        v = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
        inside = (abs(u) <= _HALF) & (abs(v) <= _HALF)
        painted = np.stack((_level(u[inside]), _level(v[inside]), np.full(inside.sum(), 255)), -1)
        bgr[top:bottom, left:right][inside] = painted


_HALF = 0.5 + _MARGIN


def _level(place: Float64) -> Float64:
    return np.rint(255 * (place + _HALF) / (2 * _HALF))


def read_landmarks(bgr: UInt8) -> Float32 | None:
    """Read the landmarks of the painted face nearest to the middle of a picture back from its pixels.

    Works in any crop, however scaled, turned or blurred, even if most of the face is outside. Faces that touch each
    other cannot be told apart.

    Returns:
        (68, 2) float32 pixels of this picture; None if no face is painted in it.
    """
    red = (bgr[..., 2] > 235).astype(np.uint8)
    count, labels, _, centres = cv2.connectedComponentsWithStats(cv2.erode(red, np.ones((3, 3), np.uint8)))
    if count < 2:
        return None
    middle = np.array([bgr.shape[1] - 1, bgr.shape[0] - 1]) / 2
    nearest = 1 + int(np.argmin(np.linalg.norm(centres[1:] - middle, axis=1)))
    y, x = np.nonzero(labels == nearest)
    if len(x) < 30:
        return None
    unit = bgr[y, x, :2] / 255 * (2 * _HALF) - _HALF
    fit, *_ = np.linalg.lstsq(np.column_stack((unit, np.ones(len(x)))), np.column_stack((x, y)), rcond=None)
    return (np.column_stack((UNIT_FACE, np.ones(68))) @ fit).astype(np.float32)


@dataclass
class PaintedSource:
    """A `pipeline.source.Source` of painted faces, which can be iterated any number of times.

    Attributes:
        count: number of frames.
        shape: (height, width).
        faces: the faces to paint.
        rate: frames per second.
        The rest as in `Source`.
    """

    count: int = 30
    shape: tuple[int, int] = (240, 320)
    faces: Sequence[PaintedFace] = (PaintedFace(),)
    rate: Fraction | None = Fraction(30)
    live: bool = False
    name: str = "painted"
    kind: Any = "video"
    failed: list[tuple[str, str]] = field(default_factory=list)
    start_s: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.shape

    @property
    def frames(self) -> int | None:
        return self.count

    def time_of(self, index: int) -> float:
        """Media time of a frame in seconds."""
        return index / float(self.rate or 1)

    def truth(self, index: int) -> list[Float32]:
        """(68, 2) landmarks of each face shown in a frame."""
        return [face.landmarks(self.time_of(index)) for face in self.faces if index in face.seen]

    def picture(self, index: int) -> UInt8:
        """(H, W, 3) uint8, read-only."""
        bgr = np.full((*self.shape, 3), _BACKGROUND, np.uint8)
        for face in self.faces:
            if index in face.seen:
                face.paint(bgr, self.time_of(index))
        bgr.flags.writeable = False
        return bgr

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count):
            yield Frame(index, self.time_of(index), time.perf_counter(), self.picture(index))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is open."""


def quadrants(height: int = 64, width: int = 96) -> UInt8:
    """A picture in four colours: red and green above blue and white."""
    bgr = np.zeros((height, width, 3), np.uint8)
    half_y, half_x = height // 2, width // 2
    bgr[:half_y, :half_x], bgr[:half_y, half_x:] = (0, 0, 255), (0, 255, 0)
    bgr[half_y:, :half_x], bgr[half_y:, half_x:] = (255, 0, 0), (255, 255, 255)
    return bgr


def jpeg_with_orientation(bgr: UInt8, orientation: int) -> bytes:
    """A JPEG with this EXIF orientation: 1 upright, 3 upside down, 6 to be turned clockwise, 8 counter-clockwise."""
    jpeg = cv2.imencode(".jpg", bgr)[1].tobytes()
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, orientation) + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def noise(count: int, height: int = 64, width: int = 96) -> list[UInt8]:
    """Pictures of random pixels, the same ones in every run."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


def write_no_frames(path: Path) -> Path:
    """Write a video with a stream but without a frame."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


@dataclass(frozen=True)
class VideoRecipe:
    """How `write_video` encodes.

    Attributes:
        codec, pix_fmt, rate, options: as FFmpeg names them; with the default painted faces stay readable.
        times_s: one per picture; None spaces them by the rate.
        turn: degrees counter-clockwise by which a player has to turn the pictures, then whether to mirror them
            horizontally and vertically.
        mux: options of the container.
        tags: attributes of the codec context, such as colorspace.
    """

    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    rate: Fraction = Fraction(30)
    options: dict[str, str] = field(default_factory=lambda: {"crf": "10"})
    times_s: Sequence[float] | None = None
    turn: tuple[float, bool, bool] | None = None
    mux: dict[str, str] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)


_TICKS = 90_000


def write_video(path: Path, pictures: Iterable[UInt8 | av.VideoFrame], recipe: VideoRecipe | None = None) -> Path:
    """Encode pictures, (H, W, 3) BGR or ready-made frames, into a video file."""
    recipe = recipe or VideoRecipe()
    with av.open(path, "w", options=recipe.mux) as container:
        stream = container.add_stream(recipe.codec, rate=recipe.rate, options=recipe.options)
        stream.pix_fmt = recipe.pix_fmt
        for name, value in recipe.tags.items():
            setattr(stream.codec_context, name, value)
        if recipe.times_s is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, _TICKS)
        if recipe.turn is not None:
            stream.set_display_rotation(*recipe.turn)
        for index, picture in enumerate(pictures):
            frame = picture if isinstance(picture, av.VideoFrame) else av.VideoFrame.from_ndarray(picture, "bgr24")
            if index == 0:
                stream.width, stream.height = frame.width, frame.height
            if recipe.times_s is None:
                frame.pts, frame.time_base = index, 1 / recipe.rate
            else:
                frame.pts, frame.time_base = round(recipe.times_s[index] * _TICKS), Fraction(1, _TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def damage(path: Path, *numbers: int, part: slice = slice(None), byte: bytes = b"\0") -> None:
    """Overwrite packets of a video, by number, with one byte value; `part` is the part of each packet in percent."""
    with av.open(path) as container:
        packets = [(p.pos or 0, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for place, size in (packets[number] for number in numbers):
        begin, end, _ = part.indices(100)
        data[place + size * begin // 100 : place + size * end // 100] = byte * (size * end // 100 - size * begin // 100)
    path.write_bytes(data)


def two_in_one(path: Path, first: tuple[int, int], then: tuple[int, int], source: PaintedSource) -> Path:
    """A recording of a source whose size, (height, width), changes after half of its frames."""
    half = source.count // 2
    parts = []
    for (height, width), frames in ((first, range(half)), (then, range(half, source.count))):
        pictures = [cv2.resize(source.picture(i), (width, height), interpolation=cv2.INTER_AREA) for i in frames]
        parts.append(write_video(path, pictures).read_bytes())
    path.write_bytes(b"".join(parts))
    return path


def grey(height: int = 120, width: int = 160) -> UInt8:
    """A uniformly grey picture, read-only."""
    bgr = np.full((height, width, 3), 90, np.uint8)
    bgr.flags.writeable = False
    return bgr


def make_face(
    xy: Float32 | None = None,
    track: int = 0,
    state: State = State.TRACKED,
    raw: Float32 | None = None,
    confidence: float = 0.98765,
) -> Face:
    """A face with raw and smoothed points; by default 60 pixels wide, centred on (80, 60)."""
    xy = PaintedFace((80, 60), width=60).landmarks(0) if xy is None else xy.astype(np.float32)
    raw = xy if raw is None else raw
    score = np.linspace(0, 1, len(xy))
    measured = None if state is State.COASTING else Landmarks(raw, score, confidence, confidence, "ibug68")
    return Face(track, state, bounding_box(xy), measured, xy, np.zeros_like(xy), confidence)


def make_result(
    *faces: Face, index: int = 0, time_s: float | None = None, size: tuple[int, int] = (120, 160), name: str = ""
) -> Result:
    """A result for a grey picture."""
    return Result(Frame(index, index / 30 if time_s is None else time_s, 0.0, grey(*size), name), faces)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table, by column name."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def search_path() -> str:
    """PYTHONPATH for a program that imports modules of the tests, and the same facetrack as they do."""
    return os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


class _Quiet(SimpleHTTPRequestHandler):
    """Serves whole files, without logging."""

    sizes = True
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".php": "application/vnd.apple.mpegurl"}

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""

    def send_header(self, keyword: str, value: str) -> None:
        if self.sizes or keyword != "Content-Length":
            super().send_header(keyword, value)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(ConnectionError):  # the reader has closed the connection
            super().copyfile(source, outputfile)


class _Sizeless(_Quiet):
    sizes = False


@contextmanager
def serving(folder: Path, *, sizes: bool = True) -> Iterator[str]:
    """Serve the files of a folder on this machine, with or without their sizes; yields the address."""
    handler = partial(_Quiet if sizes else _Sizeless, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")  # FFmpeg reads it
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


@contextmanager
def feeding(pipe: Path, content: bytes) -> Iterator[Path]:
    """A named pipe into which a thread writes."""
    os.mkfifo(pipe)

    def write() -> None:
        with suppress(BrokenPipeError):  # the reader has closed the pipe
            pipe.write_bytes(content)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    yield pipe
    writer.join(10)
    assert not writer.is_alive()


def hidden(appearance: Float32) -> Float32:
    """The appearance of a face whose left half is outside the picture."""
    cells = appearance.reshape(8, 8, 3).copy()
    cells[:, :4] = 0
    return cells.ravel() / np.float32(np.linalg.norm(cells))


def placed(view: int, centre: tuple[float, float], side: float, roll_deg: float) -> np.ndarray:
    """Five points (5, 2) of a mean face, in one of the views of `tracker.views`, placed, scaled and turned."""
    angle = np.deg2rad(roll_deg)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return VIEWS[view] @ turn * side + centre
