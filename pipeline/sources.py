"""Where frames come from: one protocol, one function that finds the right source for what a user wrote."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from fractions import Fraction
from glob import escape, iglob
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self
from urllib.parse import urlsplit

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.stream import Disposition

from ..tracker.errors import SourceError
from ..tracker.types import Frame
from .declared_size import declared_size
from .image_source import IMAGE_SUFFIXES, ImageSource
from .video_reader import forget_address, why
from .video_source import Kind, LiveSource, Retry, VideoSource

__all__ = [
    "IMAGE_SUFFIXES",
    "Decoder",
    "Kind",
    "Retry",
    "Source",
    "counted",
    "holds_pictures",
    "open_source",
    "pictures_among",
    "without_credentials",
]

Decoder = Literal["cpu", "cuda"]

log = logging.getLogger(__name__)

WANTED = "wanted a video, a picture, a folder, a glob, a URL or a camera's index"
OPEN_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 5.0  # a camera that gives nothing for so long is lost
MOST_KINDS = 5  # of files that are left out, by name
# by which a folder's videos are told from its other files; a video that is named may have any suffix
VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ts", ".webm", ".wmv"}
)
PLAYLISTS = ("hls", "dash")  # formats
TEXT_BYTES = 512  # of a file that is no video, to tell whether it is a text
_TEXT = frozenset(range(32, 127)) | frozenset(b"\t\n\f\r")
_MAGIC = re.compile(r"[*?\[]")  # what makes a path a glob
_CREDENTIALS = (
    re.compile(r"(\w\w://)[^/?#]*@"),  # user:password@host
    # the same where the password holds one of these signs as it is, or the URL has lost a slash: nothing else has
    # letters behind its colon
    re.compile(r"(\w\w://?)[^/?#@\[]*:(?!\d*(?:[/?#]|$)).*@"),
    re.compile(r"([?&](?:pass|passwd|password|passphrase|pwd)=)[^&#]*", re.IGNORECASE),  # as of SRT, and of cameras
)


class Source(Protocol):
    """Frames in the order of their taking, once; a context manager that closes itself.

    Attributes:
        name: stem for the names of output files.
        kind: camera, video (a file), stream (a URL) or images.
        live: frames come by the clock, whether or not anybody is ready for them.
        size: (height, width) of the first frame after rotation; None for images, whose sizes differ.
        rate: mean frames per second; None where unknown.
        frames: how many to expect, for a progress bar; None where unknown.
        failed: (place, reason) of what could not be read, wholly or in part, so far.
    """

    name: str
    failed: list[tuple[str, str]]

    @property
    def kind(self) -> Kind: ...
    @property
    def live(self) -> bool: ...
    @property
    def size(self) -> tuple[int, int] | None: ...
    @property
    def rate(self) -> Fraction | None: ...
    @property
    def frames(self) -> int | None: ...

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames.

        Raises:
            SourceError: the source broke off; every frame before has been given. Names frame and time. Or they have
                been given before, in part or all: another reading takes another source.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def close(self) -> None:
        """Stop, from any thread, and let go of file or device."""
        ...


def open_source(
    spec: str | Path | int, *, realtime: bool = False, retry: Retry | None = None, decoder: Decoder = "cpu"
) -> Source:
    """Open what a user named.

    Args:
        spec: a camera's index ("0"), a video, a picture, a folder of pictures, a glob of pictures ("shots/*.png"),
            a URL that FFmpeg opens (rtsp, http, udp, ...) or "lavfi:" and a filter graph that makes pictures.
            Digits name a camera, unless there is a file or folder of that name and `realtime` is not wanted; "./0" is
            always a path and "/dev/video0" always a camera.
        realtime: give the frames of a recording when their time has come, as a camera would.
        retry: how often a lost camera or stream is opened again; default `Retry()`.
        decoder: "cuda" decodes recordings and streams on an NVIDIA GPU (NVDEC); pictures and cameras have nothing to
            gain from it.
    Returns:
        the source with its first frame already read, so that what cannot be opened fails here.
    Raises:
        SourceError: in one line, what is wrong with it.
    """
    if isinstance(spec, bool) or not isinstance(spec, str | os.PathLike | int):
        raise SourceError(f"source: {WANTED}, got {type(spec).__name__}")
    text = str(spec)
    if not text:
        raise SourceError(f"source: {WANTED}, got an empty name")
    camera = re.fullmatch(r"(/dev/video)?([0-9]+)", text)
    if camera and (realtime or camera[1] or isinstance(spec, int) or not Path(text).exists()):
        return _open_camera(int(camera[2]), retry or Retry())
    if text.startswith("lavfi:"):
        return _open_live(_Address(text.removeprefix("lavfi:"), text, "lavfi", "stream", "lavfi"), None)
    if "://" in text:
        return _open_url(text, retry or Retry(), decoder, realtime=realtime)
    path = Path(text)
    if path.is_dir():
        return _open_folder(path)
    if path.is_fifo() or path.is_char_device():  # such as /dev/stdin
        return _open_pipe(path, decoder, realtime=realtime)
    if path.exists():
        return _open_file(path, decoder, realtime=realtime)
    if _MAGIC.search(text):
        return _open_glob(text)
    label = without_credentials(text)
    raise SourceError(f"{label}: not found; {WANTED}")


@dataclass(frozen=True, slots=True)
class _Address:
    """What FFmpeg is to open, how, and what it is called."""

    location: str
    label: str
    name: str
    kind: Kind
    format: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    patient: bool = False  # files may take their time, devices and networks may not
    decoder: Decoder = "cpu"

    def open(self) -> InputContainer:
        timeout = None if self.patient else (OPEN_TIMEOUT_S, READ_TIMEOUT_S)
        try:
            accelerator = None if self.decoder == "cpu" else HWAccel(self.decoder)
            return av.open(
                self.location,
                "r",
                format=self.format,
                container_options=self.options,
                timeout=timeout,
                hwaccel=accelerator,
            )
        except (av.FFmpegError, NotImplementedError, RuntimeError) as error:
            forget_address(error)
            if self.decoder == "cpu" or not self._opens_without():
                raise
            raise SourceError(
                f"{self.label}: cannot be decoded with {self.decoder} here ({why(error)}): wanted an NVIDIA GPU, its "
                "driver, and a codec that it decodes; see `facetrack doctor`, or leave --decoder away"
            ) from error

    def _opens_without(self) -> bool:
        """Whether the same input is fine for the CPU: then it is the decoder that cannot be had."""
        try:
            replace(self, decoder="cpu").open().close()
        except av.FFmpegError:
            return False
        return True


def counted(count: int, noun: str) -> str:
    """Such as "1 frame" and "2 frames"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def holds_pictures(spec: str) -> bool:
    """Whether `open_source` takes a name for that of a picture, or of several: a folder, or a glob."""
    path = Path(spec)
    if "://" in spec:
        return False
    if path.exists():
        return path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES
    return bool(_MAGIC.search(spec))


def _open_folder(folder: Path) -> Source:
    found = list(folder.iterdir())
    files = pictures_among(found)
    if not files:
        raise SourceError(f"{folder}: {_without_pictures(folder)}")
    _tell_left_out(folder, set(found).difference(files))
    return ImageSource(folder, files, folder.resolve().name)


def _tell_left_out(folder: Path, others: Iterable[Path]) -> None:
    """Warn of folders, and of files that are no pictures by their names; nobody misses what starts with a dot."""
    seen = [path for path in others if path.name[0] != "."]
    files, folders = [path for path in seen if path.is_file()], [path for path in seen if path.is_dir()]
    told = [f"{counted(len(files), 'other file')} ({_kinds_of(files)})"] if files else []
    if folders:
        told.append(f"{counted(len(folders), 'folder')} (a glob such as {_deep_glob(folder)} goes in)")
    if told:
        log.warning("%s: left out: %s", folder, ", ".join(told))


def _deep_glob(folder: Path) -> str:
    return f"'{escape(str(folder))}/**/*.jpg'"


def _kinds_of(files: Iterable[Path]) -> str:
    """Their suffixes, in words."""
    return ", ".join(sorted({file.suffix.lower() or "without a suffix" for file in files})[:MOST_KINDS])


def _without_pictures(folder: Path) -> str:
    """What such a folder is instead, and what to name."""
    videos = sorted(_files_of(VIDEO_SUFFIXES, folder.iterdir()))
    if not videos:
        others = [path for path in folder.iterdir() if path.name[0] != "."]
        files, deeper = [path for path in others if path.is_file()], any(path.is_dir() for path in others)
        found = f" (its files: {_kinds_of(files)})" if files else ""
        where = f", or a glob such as {_deep_glob(folder)} for those in its folders" if deeper else ""
        return f"a folder without pictures{found}; wanted files such as .jpg or .png in it{where}"
    count, them = counted(len(videos), "video"), "it" if len(videos) == 1 else "them"
    return f"holds {count} and no picture; name {them}, e.g. '{escape(str(folder))}/*{videos[0].suffix}'"


def _open_glob(pattern: str) -> Source:
    parts = Path(pattern).parts
    depth = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    root = Path(*parts[:depth])
    try:
        matches = list(root.glob(str(Path(*parts[depth:]))))
    except ValueError as error:  # "**" beside other letters
        raise SourceError(f"{pattern}: is no pattern that can be searched for: {error}") from error
    files = pictures_among(matches)
    if not files:
        wanted = "matches no picture; wanted files such as .jpg or .png"
        raise SourceError(f"{pattern}: {wanted if matches else _why_no_match(pattern)}")
    return ImageSource(root, files, root.resolve().name)


def _why_no_match(pattern: str) -> str:
    """Say so; and what to write, where a folder's own name has been taken for a pattern."""
    path = Path(pattern)
    folder = next(parent for parent in path.parents if parent.exists())  # at last "." or "/"
    meant = str(Path(escape(str(folder)), path.relative_to(folder)))
    if _MAGIC.search(str(folder)) and any(iglob(meant, recursive=True)):  # noqa: PTH207 - as a batch does
        return f"matches no file; for the folder {folder}, whose name looks like a pattern, write '{meant}'"
    return "matches no file"


def pictures_among(paths: Iterable[Path]) -> list[Path]:
    """Keep the pictures; files whose name starts with a dot are somebody's leavings."""
    return _files_of(IMAGE_SUFFIXES, paths)


def _files_of(suffixes: Set[str], paths: Iterable[Path]) -> list[Path]:
    return [p for p in paths if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file()]


def _open_file(path: Path, decoder: Decoder, *, realtime: bool) -> Source:
    try:
        size, declared = path.stat().st_size, declared_size(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {why(error)}") from error
    if size == 0:
        raise SourceError(f"{path}: the file is empty; copy or record it again")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(path.parent, [path], path.stem)
    shortage = f"it should be {declared} bytes long and is {size}" if declared and declared > size else ""
    # "file:" keeps FFmpeg from reading a colon as a protocol
    address = _Address(f"file:{path}", str(path), path.stem, "video", patient=True, decoder=decoder)
    try:
        container = address.open()
    except av.FFmpegError as error:
        reason = (
            f"it was cut off before its index: {shortage} ({why(error)}); copy or record it again"
            if shortage
            else f"it is not a video that can be read ({why(error)}); {_advice_on_file(path)}"
        )
        raise SourceError(f"{path}: {reason}") from error
    refusal = _no_video(container)
    if refusal:
        container.close()
        raise SourceError(f"{path}: {refusal}; name a video or a picture")
    return VideoSource(container, label=str(path), name=path.stem, realtime=realtime, shortage=shortage)


def _open_pipe(path: Path, decoder: Decoder, *, realtime: bool) -> Source:
    """A recording that another program writes while it is read."""
    address = _Address(f"file:{path}", str(path), path.stem, "stream", patient=True, decoder=decoder)
    advice = "nobody can go back in a pipe: write MPEG-TS or Matroska into it"
    try:
        container = address.open()
    except av.FFmpegError as error:
        raise SourceError(f"{path}: no video can be read ({why(error)}); {advice}") from error
    return _stream_with_an_end(address, container, advice, realtime=realtime)


def _stream_with_an_end(address: _Address, container: InputContainer, advice: str, *, realtime: bool) -> Source:
    try:
        return VideoSource(container, label=address.label, name=address.name, kind="stream", realtime=realtime)
    except SourceError as error:
        raise SourceError(f"{error}; {advice}") from error


def _advice_on_file(path: Path) -> str:
    """What to do about a file that FFmpeg takes for nothing it knows."""
    with path.open("rb") as file:
        begin = file.read(TEXT_BYTES)
    if begin.isascii() and all(byte in _TEXT for byte in begin):
        return "what it holds is a text; name the video itself"
    converting = "" if path.suffix.lower() == ".mp4" else ", or convert it to .mp4"
    return f"copy or record it again{converting}"


def _no_video(container: InputContainer) -> str:
    """What FFmpeg makes pictures of although it is no video; "" for all else."""
    if container.format.name == "tty":  # FFmpeg's player of text as pictures takes every .txt
        return "it is a text, not a video"
    pictures = container.streams.video
    if pictures and all(stream.disposition & Disposition.attached_pic for stream in pictures):
        return "holds no video, only a cover picture"
    return ""


def _advice_on(camera: str) -> str:
    number = camera.removeprefix("camera")
    if Path(number).exists():
        return f"plug one in, or write ./{number} for what is here of that name"
    return f"plug one in, or name a video instead; there is no file or folder {number} here"


def without_credentials(url: str) -> str:
    """A URL without the name and the password that may stand before its host, and without passwords in its query.

    Every other text stays as it is.
    """
    for secret in _CREDENTIALS:
        url = secret.sub(r"\1", url)
    return url


def _open_url(url: str, retry: Retry, decoder: Decoder, *, realtime: bool) -> Source:
    label = without_credentials(url)  # no password in messages
    try:
        parts = urlsplit(label)
    except ValueError as error:
        raise SourceError(f"{label}: is no address: {error}; wanted one such as rtsp://host/path") from error
    host = parts.hostname or ""
    name = re.sub(r"[^\w.-]+", "_", f"{host}{parts.path}").strip("_.") or parts.scheme
    # Over UDP, FFmpeg's default for RTSP, lost packets become smeared faces.
    options = {"rtsp_transport": "tcp"} if parts.scheme in ("rtsp", "rtsps") else {}
    address = _Address(url, label, name, "stream", options=options, decoder=decoder)
    return _open_live(address, retry, realtime=realtime)


def _open_camera(index: int, retry: Retry) -> Source:
    label, name = f"camera {index}", f"camera{index}"
    if sys.platform == "darwin":
        # the default of 29.97 frames a second is refused by the built-in cameras
        address = _Address(f"{index}:none", label, name, "camera", "avfoundation", {"framerate": "30"})
    elif sys.platform == "win32":
        address = _Address(f"video={_dshow_name(index)}", label, name, "camera", "dshow")
    else:
        address = _Address(f"/dev/video{index}", label, name, "camera", "v4l2")
    return _open_live(address, retry)


def _dshow_name(index: int) -> str:
    names = [d.name for d in av.enumerate_input_devices("dshow") if "video" in d.media_types]
    if index >= len(names):
        raise SourceError(f"camera {index}: not found; Windows knows {len(names)} cameras, counted from 0")
    return names[index]


def _open_live(address: _Address, retry: Retry | None, *, realtime: bool = False) -> Source:
    try:
        container = address.open()
    except av.FFmpegError as error:
        advice = _advice_on(address.name) if address.kind == "camera" else "check the address"
        raise SourceError(f"{address.label}: cannot be opened: {why(error)}; {advice}") from error
    if address.format is None and _has_an_end(container):
        advice = "if its index is at its end, the server must allow ranges; else download it first"
        return _stream_with_an_end(address, container, advice, realtime=realtime)
    return LiveSource(container, address.open, label=address.label, name=address.name, kind=address.kind, retry=retry)


def _has_an_end(container: InputContainer) -> bool:
    """Whether what lies on a server is a recording: it says how long it is, or how many bytes."""
    is_list = container.format.name in PLAYLISTS  # whose bytes are those of a list, which may grow
    return container.duration is not None or (container.size > 0 and not is_list)
