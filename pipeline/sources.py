"""Find the right source for what a user named, and have FFmpeg open it."""

from __future__ import annotations

import logging
import os
import re
import sys
from dataclasses import replace
from fractions import Fraction
from glob import has_magic
from numbers import Rational, Real
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import av
from av.container import InputContainer
from av.stream import Disposition

from ..engines.choices import MAX_FRAME_RATE
from ..tracker.errors import ConfigError, SourceError
from .address import CAMERA_ADVICE, READ_TIMEOUT_S, Address, advice_on
from .camera_mode import CameraMode
from .declared_size import declared_size
from .image_source import IMAGE_SUFFIXES, ImageSource, names_several_pictures, open_folder, open_glob
from .live_source import LiveSource, Retry
from .pipe import Pipe, run_in_thread
from .source import Decoder, Source, counted, handing_over, is_pipe, is_url, resolve_spec, without_credentials
from .video_clock import UNKNOWN_RATE, has_stamps
from .video_reader import streams_left_out, why
from .video_source import VideoSource

log = logging.getLogger(__name__)

WANTED = "wanted a video, a picture, a folder, a glob, a URL or a camera's index"
MODE_ADVICE = "list its modes (docs/camera.md), or leave out --camera-size, --camera-rate and --camera-format"
PLAYLISTS = {"hls": ".m3u8", "dash": ".mpd"}  # formats of playlists and the usual suffixes of their names
PLAYLIST_TIMEOUT_S = 30.0  # a live playlist gives nothing until its next segment, of 2 to 10 s, is complete
RTP_OF_FILE = {"protocol_whitelist": "file,udp,rtp"}  # FFmpeg otherwise lets no file refer to these protocols
TEXT_BYTES = 512  # of a file that is not a video, to tell whether it is text
_TEXT = frozenset(range(32, 127)) | frozenset(b"\t\n\f\r")


def open_source(
    spec: str | Path | int,
    *,
    realtime: bool = False,
    retry: Retry | None = None,
    decoder: Decoder = "cpu",
    frame_rate: float | Fraction | None = None,
    camera_mode: CameraMode | None = None,
) -> Source:
    """Open the source that a user named.

    Args:
        spec: a camera's index ("0"), a video, a picture, a folder of pictures, a glob of pictures ("shots/*.png"),
            a URL that FFmpeg opens (rtsp, http, udp, ...; file:// names a path), an .sdp file that describes a stream
            (RTP), or "lavfi:" followed by a filter graph that generates pictures.
            Digits name a camera, unless a file or folder of that name exists and `realtime` is False; "./0" is always
            a path and "/dev/video0" always a camera.
        realtime: give the frames of a recording at their own times, as a camera would.
        retry: how often a lost camera or stream is reopened; default `Retry()`.
        decoder: "cuda" decodes recordings and streams on an NVIDIA GPU (NVDEC); pictures and cameras, which would gain
            nothing, ignore it.
        frame_rate: frames per second of the video whose frames are the pictures of a folder or glob; None: the pictures
            are unrelated. Other sources have a clock of their own.
        camera_mode: the mode to request from a camera; None: its default.
    Returns:
        the source with its first frame already read, so that one that cannot be opened fails here.
    Raises:
        SourceError: it cannot be opened; the message says why in one line.
        ConfigError: an argument is invalid, or there is a frame rate and `spec` is neither a folder nor a glob of
            pictures.
    """
    for name, value, kind in (("retry", retry, Retry), ("camera_mode", camera_mode, CameraMode)):
        if not isinstance(value, kind | None):
            raise ConfigError(f"{name}: wanted facetrack.{kind.__name__}, such as {kind()!r}, got {value!r}")
    if decoder not in get_args(Decoder):
        raise ConfigError(f"decoder: wanted one of {', '.join(get_args(Decoder))}, got {decoder!r}")
    if isinstance(spec, bool) or not isinstance(spec, str | os.PathLike | int):
        raise SourceError(f"source: {WANTED}, got {type(spec).__name__}")
    text = resolve_spec(str(spec))
    if not text:
        raise SourceError(f"source: {WANTED}, got an empty name")
    rate = None if frame_rate is None else _rate_of_pictures(text, frame_rate)
    camera = re.fullmatch(r"(/dev/video)?([0-9]+)", text)
    if camera and (realtime or camera[1] or isinstance(spec, int) or not Path(text).exists()):
        label = text if camera[1] else f"camera {int(text)}"
        return _open_camera(int(camera[2]), label, retry or Retry(), camera_mode or CameraMode())
    if camera_mode is not None and camera_mode != CameraMode():
        raise SourceError(f"{without_credentials(text)}: is not a camera, so it cannot be asked for {camera_mode}")
    if text.startswith("lavfi:"):
        return _open_live(
            Address(text.removeprefix("lavfi:"), text, "lavfi", "stream", "lavfi"), None, realtime=realtime
        )
    if is_url(text):
        return _open_url(text, retry or Retry(), decoder, realtime=realtime)
    try:
        if Path(text).suffix.lower() == ".sdp" and Path(text).is_file():
            address = Address(f"file:{text}", text, Path(text).stem, "stream", options=RTP_OF_FILE, decoder=decoder)
            return run_in_thread(lambda: _open_live(address, retry or Retry(), realtime=realtime), lambda: None)
        return _open_path(text, decoder, rate, realtime=realtime)
    except OSError as error:  # such as a folder without permission, or a name that is too long
        raise SourceError(f"{without_credentials(text)}: cannot be read: {error.strerror or error}") from error


def _open_path(text: str, decoder: Decoder, rate: Fraction | None, *, realtime: bool) -> Source:
    path = Path(text)
    if path.is_dir():
        return open_folder(path, rate)
    if is_pipe(text):
        return _open_pipe(path, decoder, realtime=realtime)
    if path.exists():
        return _open_file(path, decoder, realtime=realtime)
    if has_magic(text):
        return open_glob(text, rate)
    if text == "-":
        raise SourceError(f"-: standard input cannot be read on this system; have a program {handing_over()}")
    raise SourceError(f"{without_credentials(text)}: not found; {WANTED}")


def _rate_of_pictures(spec: str, frame_rate: float | Fraction) -> Fraction:
    """The rate as containers write it, such as 30000/1001.

    Raises:
        ConfigError: it is not a valid rate, or `spec` is neither a folder nor a glob of pictures.
    """
    rate = Fraction(0)
    if isinstance(frame_rate, Real) and 0 < frame_rate <= MAX_FRAME_RATE:
        exact = frame_rate if isinstance(frame_rate, Rational) else float(frame_rate)  # such as NumPy's float32
        rate = Fraction(exact).limit_denominator(1_000_000)
    if not rate:
        raise ConfigError(f"frame_rate: wanted frames per second, at most {MAX_FRAME_RATE:,}, got {frame_rate!r}")
    if not names_several_pictures(spec):
        raise ConfigError(f"frame_rate: {without_credentials(spec)} is neither a folder nor a glob of pictures")
    return rate


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
    address = Address(f"file:{path}", str(path), path.stem, "video", patient=True, decoder=decoder)
    try:
        container = address.open()
    except av.FFmpegError as error:
        reason = (
            f"it was cut off before its index: {shortage} ({why(error)}); copy or record it again"
            if shortage
            else f"it is not a readable video ({why(error)}); {_advice_on_file(path)}"
        )
        raise SourceError(f"{path}: {reason}") from error
    refusal = _refusal(container)
    if refusal:
        container.close()
        raise SourceError(f"{path}: {refusal}")
    left_out = streams_left_out(container)
    source = VideoSource(container, label=str(path), name=path.stem, realtime=realtime, shortage=shortage)
    if left_out:
        log.warning("%s: %s", path, left_out)
    _warn_unknown_rate(source, container, str(path))
    return source


def _open_pipe(path: Path, decoder: Decoder, *, realtime: bool) -> Source:
    """Open a recording that another program writes while it is read.

    With `realtime`, one without timestamps is treated like a camera.
    """
    pipe = Pipe(path)
    try:
        return run_in_thread(lambda: _read_pipe(path, pipe, decoder, realtime=realtime), pipe.stop)
    except BaseException:
        pipe.close()
        raise


def _read_pipe(path: Path, pipe: Pipe, decoder: Decoder, *, realtime: bool) -> Source:
    address = Address(pipe, str(path), path.stem, "stream", patient=True, decoder=decoder)
    advice = "a pipe can only be read from front to back: write MPEG-TS or Matroska into it"
    try:
        pipe.open()
        container = address.open()
    except (av.FFmpegError, OSError) as error:
        raise SourceError(f"{path}: no video can be read ({why(error)}); {advice}") from error
    return _stream_with_an_end(address, container, advice, realtime=realtime, pipe=pipe)


def _stream_with_an_end(
    address: Address, container: InputContainer, advice: str, *, realtime: bool, pipe: Pipe | None = None
) -> Source:
    label, name = address.label, address.name
    try:
        if realtime and pipe is not None and not has_stamps(container):
            return LiveSource(container, address.open, label=label, name=name, kind="stream", retry=None, pipe=pipe)
        source = VideoSource(container, label=label, name=name, kind="stream", realtime=realtime, pipe=pipe)
    except SourceError as error:
        raise SourceError(f"{error}; {advice}") from error
    _warn_unknown_rate(source, container, label)
    return source


def _warn_unknown_rate(source: VideoSource, container: InputContainer, label: str) -> None:
    if source.rate is None and not has_stamps(container):
        log.warning(
            "%s: has neither time stamps nor a frame rate, like raw H.264 and MJPEG: %d frames/s are assumed; put it "
            "into a container with the right rate, for example: ffmpeg -framerate 30 -i IN -c copy OUT.mp4",
            label,
            UNKNOWN_RATE,
        )


def _advice_on_file(path: Path) -> str:
    """What to do about a file whose format FFmpeg does not recognise."""
    with path.open("rb") as file:
        begin = file.read(TEXT_BYTES)
    if begin.isascii() and all(byte in _TEXT for byte in begin):
        return "it contains text; name the video itself"
    converting = "" if path.suffix.lower() == ".mp4" else ", or convert it to .mp4"
    return f"copy or record it again{converting}"


def _refusal(container: InputContainer) -> str:
    """Why a file is refused although FFmpeg decodes pictures from it, and what to do; "" if it is not refused."""
    if container.format.name == "tty":  # FFmpeg's renderer of text as pictures, which accepts every .txt
        return "it is a text file, not a video; name a video or a picture"
    if container.format.name in PLAYLISTS and not _has_an_end(container):  # FFmpeg would wait for more forever
        return (
            "it is a playlist that may still grow; if it is complete, add a line #EXT-X-ENDLIST "
            '(DASH: make its type "static"), or name its segments'
        )
    pictures = container.streams.video
    if pictures and all(stream.disposition & Disposition.attached_pic for stream in pictures):
        return "holds no video, only a cover picture; name a video or a picture"
    return ""


def _open_url(url: str, retry: Retry, decoder: Decoder, *, realtime: bool) -> Source:
    label = without_credentials(url)  # no password in messages
    try:
        parts = urlsplit(label)
    except ValueError as error:
        raise SourceError(f"{label}: is not a valid address: {error}; wanted one such as rtsp://host/path") from error
    host = parts.hostname or ""
    name = re.sub(r"[^\w.-]+", "_", f"{host}{parts.path}").strip("_.") or parts.scheme
    # Over UDP, FFmpeg's default for RTSP, lost packets become smeared faces.
    options = {"rtsp_transport": "tcp"} if parts.scheme in ("rtsp", "rtsps") else {}
    timeout_s = PLAYLIST_TIMEOUT_S if parts.path.lower().endswith(tuple(PLAYLISTS.values())) else READ_TIMEOUT_S
    address = Address(url, label, name, "stream", options=options, decoder=decoder, read_timeout_s=timeout_s)
    return run_in_thread(
        lambda: _open_live(address, retry, realtime=realtime), lambda: None
    )  # FFmpeg times out by itself


def _open_camera(index: int, label: str, retry: Retry, mode: CameraMode) -> Source:
    name = f"camera{index}"
    if sys.platform == "darwin":
        _refuse_screen(index)
        # the built-in cameras refuse the default of 29.97 frames per second
        options = {"framerate": "30"} | mode.options("avfoundation")
        address = Address(f"{index}:none", label, name, "camera", "avfoundation", options)
    elif sys.platform == "win32":
        address = Address(f"video={_dshow_name(index)}", label, name, "camera", "dshow", mode.options("dshow"))
    else:
        address = Address(f"/dev/video{index}", label, name, "camera", "v4l2", mode.options("v4l2"))
    source = _open_live(address, retry, asked_for=str(mode))
    if mode.size not in (None, source.size):  # Linux drivers choose the nearest size that the camera has
        source.close()
        height, width = source.size or (0, 0)
        raise SourceError(f"{label}: wanted {mode}, got {width}x{height}; {MODE_ADVICE}")
    return source


def _refuse_screen(index: int) -> None:
    """Refuse the index of a screen: AVFoundation numbers the screens after the cameras."""
    seen = [d.description for d in av.enumerate_input_devices("avfoundation") if "video" in d.media_types]
    cameras = [name for name in seen if not name.startswith("Capture screen")]
    if len(cameras) <= index < len(seen):
        raise SourceError(_not_found(index, "macOS", len(cameras)))


def _dshow_name(index: int) -> str:
    try:
        devices = av.enumerate_input_devices("dshow")
    except av.FFmpegError as error:
        reason = "Windows cannot list cameras where there is no camera or no microphone"
        raise SourceError(f"camera {index}: not found; {reason}; {CAMERA_ADVICE}") from error
    names = [d.name for d in devices if "video" in d.media_types]
    if index >= len(names):
        raise SourceError(_not_found(index, "Windows", len(names)))
    return names[index]


def _not_found(index: int, system: str, cameras: int) -> str:
    return f"camera {index}: not found; {system} lists {counted(cameras, 'camera')}, counted from 0; {CAMERA_ADVICE}"


def _open_live(address: Address, retry: Retry | None, *, realtime: bool = False, asked_for: str = "") -> Source:
    try:
        container = address.open()
        in_pieces = container.format.name in PLAYLISTS
        if in_pieces and address.read_timeout_s < PLAYLIST_TIMEOUT_S and not _has_an_end(container):
            container.close()  # its name did not show that it is a playlist
            address = replace(address, read_timeout_s=PLAYLIST_TIMEOUT_S)
            container = address.open()
    except av.FFmpegError as error:
        advice = advice_on(address.label.removeprefix("camera ")) if address.kind == "camera" else "check the address"
        if isinstance(error, av.error.ProtocolNotFoundError):
            scheme = address.label.partition(":")[0]
            advice = f"the FFmpeg inside PyAV does not support {scheme}: have a program that does {handing_over()}"
        advice = f"it was asked for {asked_for}: {MODE_ADVICE}; or {advice}" if asked_for else advice
        raise SourceError(f"{address.label}: cannot be opened: {why(error)}; {advice}") from error
    if address.format is None and _has_an_end(container):
        ranges = "if its index is at its end, the server must allow ranges; else download it first"
        advice = ranges if container.streams.video else "name a video"
        return _stream_with_an_end(address, container, advice, realtime=realtime)
    label, name, kind = address.label, address.name, address.kind
    by_stamps = in_pieces or (address.format == "lavfi" and realtime)

    def reopen() -> InputContainer | None:
        again = address.open()
        if in_pieces and _has_an_end(again):
            again.close()
            return None
        return again

    return LiveSource(container, reopen, label=label, name=name, kind=kind, retry=retry, by_stamps=by_stamps)


def _has_an_end(container: InputContainer) -> bool:
    """Whether what a server sends is a recording, judging by the server and the container's header.

    Anything with a known size in bytes is a recording, except a playlist, which may grow. Where the server gives no
    size, as it cannot for a live stream, the header must give a duration, and not 0 as that of live FLV. FFmpeg reports
    the duration of the fragments received so far for a fragmented MP4, which, unlike a whole one, has no frame count.
    """
    if container.format.name in PLAYLISTS:
        return bool(container.duration)
    if container.format.name == "sdp":  # the file has a size, but it describes an RTP stream
        return False
    if container.size > 0:
        return True
    in_fragments = "mp4" in container.format.name and not any(stream.frames for stream in container.streams.video)
    return bool(container.duration) and not in_fragments
