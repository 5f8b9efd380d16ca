"""What FFmpeg decodes: pictures one by one, upright in BGR."""

from __future__ import annotations

import re
import struct
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from typing import cast

import av
import cv2
import numpy as np
from av.buffer import Buffer
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ..tracker.errors import SourceError
from ..tracker.types import UInt8
from .draw import fitted
from .machine import usable_cores
from .pipe import Pipe

DECODE_THREADS = 4  # each holds a picture; four decode faster than anything here can track
PIXELS_A_THREAD = 500_000  # 640x480 decodes in 0.6 ms; more threads would only take time from the networks
BAD_PACKETS = 300  # in a row; longer than the wait for a key frame after joining a broadcast
ASPECT_TOLERANCE = 0.01  # encoders round: 3416:3417 is meant to be square
WIDEST_PIXEL = 4
WITH_LENGTH = frozenset({"avi", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"})  # containers that state their length
CAMERA_NAP_S = 0.005  # between two reads of a camera that answers "nothing yet" instead of waiting
CAMERA_NAPS = 1000  # after five seconds such a camera counts as silent


class Reader:
    """The decoded pictures of one container, in order: one thread reads, any thread may close.

    Attributes:
        stream: the video stream that is read.
        first: the first picture, decoded at once; None if there is none, and after `close`.
        damaged: packets so far that could not be decoded and were skipped.
        damaged_in_a_row: those of them since the last good picture.
        reason: why the last damaged packet could not be decoded.
        read_to: position in the file, in bytes, after the last packet.

    Args:
        container: will be closed by the reader.
        label: the source's name in messages.
        live: prefer low latency to speed.
        cut: the file is known to be truncated, so an incomplete packet at its end is skipped.
        pipe: the one that the container is read from; will be closed, too.
    Raises:
        SourceError: it holds no video that can be decoded, or none that the GPU with which it was opened can decode; or
            reading failed at the first picture.
    """

    def __init__(
        self, container: InputContainer, label: str, *, live: bool = False, cut: bool = False, pipe: Pipe | None = None
    ) -> None:
        self.damaged = self.damaged_in_a_row = 0
        self.reason = ""
        self.read_to = 0
        self._container = container
        self._live, self._cut, self._pipe = live, cut, pipe
        self._lock = threading.Lock()
        self._closed = False
        self._ahead: list[VideoFrame] = []  # pictures that were peeked at
        try:
            self.stream = _video_stream(container, label)
            # Threading over frames is faster, but each thread delays the picture by a frame.
            self.stream.thread_type = "SLICE" if live else "AUTO"
            self.stream.codec_context.thread_count = _decode_threads(self.stream)
            self._pictures = self._decode()
            self.first = self.read()
            if self.first is None and self.damaged and self.stream.codec_context.is_hwaccel:
                raise not_on_gpu(label, self.reason)
        except av.FFmpegError as error:
            container.close()
            if self.damaged_in_a_row and self.stream.codec_context.is_hwaccel:
                raise not_on_gpu(label, why(error)) from error
            raise SourceError(f"{label}: no frame can be read: {why(error)}") from error
        except BaseException:
            container.close()
            raise

    @property
    def format(self) -> str:
        """FFmpeg's name of the container's format."""
        return self._container.format.name

    @property
    def knows_size(self) -> bool:
        """Whether the size in bytes is known; for what a server sends it need not be."""
        with self._lock:
            return not self._closed and self._container.size > 0

    @property
    def unread(self) -> float:
        """Share of the file after the last packet; 0 if unknown or if another stream may account for it."""
        with self._lock:
            if self._closed or len(self._container.streams) > 1 or self._container.size <= 0:
                return 0.0
            return 1 - self.read_to / self._container.size

    def read(self) -> VideoFrame | None:
        """Decode the next picture; None at the end and after `close`.

        Raises:
            av.FFmpegError: the container cannot be read further.
        """
        with self._lock:
            if self._closed:
                return None
            return self._ahead.pop(0) if self._ahead else next(self._pictures, None)

    def peek(self, ahead: int = 0) -> VideoFrame | None:
        """The picture that `read` gives after `ahead` others; None also if it cannot be read, which `read` reports."""
        with self._lock:
            if self._closed:
                return None
            try:
                for picture in islice(self._pictures, max(0, ahead + 1 - len(self._ahead))):
                    self._ahead.append(picture)
            except av.FFmpegError as error:
                self._pictures = _broken(error)
            return self._ahead[ahead] if ahead < len(self._ahead) else None

    def close(self) -> None:
        """Release the file or device; waits for a read in progress in another thread."""
        if self._pipe is not None:
            self._pipe.stop()  # or that read would wait for its next bytes
        with self._lock:
            if not self._closed:
                self._closed = True
                self.first = None
                self._ahead.clear()
                self._pictures.close()
                self._container.close()
                if self._pipe is not None:
                    self._pipe.close()

    def _decode(self) -> Generator[VideoFrame, None, None]:
        try:
            for packet in self._packets():
                if self._cut and packet.is_corrupt:
                    continue  # the incomplete packet at the break would give half a picture
                yield from self._decoded(packet)
        except av.FFmpegError:
            yield from self._held()
            raise

    def _decoded(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        try:
            pictures = packet.decode()
        except av.FFmpegError as error:
            self.damaged += 1
            self.damaged_in_a_row += 1
            self.reason = why(error)
            if self.damaged_in_a_row > BAD_PACKETS:
                raise
            return []
        if pictures:
            self.damaged_in_a_row = 0
        return pictures

    def _held(self) -> list[VideoFrame]:
        """The pictures that the decoder still holds; [] for a live source or on a GPU.

        Those of a live source are outdated, and a GPU may have refused them.
        """
        if not self._live and not self.stream.codec_context.is_hwaccel:
            with suppress(av.FFmpegError):
                return self.stream.decode(None)
        return []

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        naps = 0
        while True:
            try:
                for packet in self._container.demux(self.stream):
                    naps = 0
                    if packet.pos is not None:
                        self.read_to = packet.pos + packet.size
                    yield packet
                return
            except av.BlockingIOError:  # how a camera on macOS or Windows says: nothing yet
                naps += 1
                if naps > CAMERA_NAPS:
                    raise
                time.sleep(CAMERA_NAP_S)
            except IndexError:  # PyAV's own, after the last packet of an input in which streams have appeared meanwhile
                return
            except av.FFmpegError as error:
                forget_address(error)
                raise


def _broken(error: av.FFmpegError) -> Generator[VideoFrame, None, None]:
    """A generator of pictures that raises this error at the first one."""
    raise error
    yield


class ToBgr:
    """Turns decoded pictures of one stream into upright, read-only BGR arrays with square pixels, all of one size.

    A recorded call (WebRTC) changes the size of its pictures with the connection, but a table has one scale. Pictures
    of another size are scaled to that of the first. Those of another aspect are fitted into it, with black borders.

    Attributes:
        changed: a message that the last picture has another aspect than the first, if its size differs from that of the
            one before it; "" otherwise.

    Args:
        first: the first picture.
        aspect: width over height of the stored pixels. If they are not square (PAL and DV, anamorphic films), their
            shorter side is stretched: otherwise faces would be too narrow, and all angles and eye openings wrong.
        size: (height, width) of the arrays; None: that of the first picture.
    """

    def __init__(self, first: VideoFrame, aspect: Fraction, size: tuple[int, int] | None) -> None:
        self._swscale = VideoReformatter()  # one for all frames: setting it up costs more than a frame
        self._transposed, self._flip = _orientation(first)
        self._wider, self._higher = max(aspect, Fraction(1)), max(1 / aspect, Fraction(1))
        turned = size[::-1] if size is not None and self._transposed else size
        self._room = self._square(first) if turned is None else turned
        self._last = self._room
        self.changed = ""

    def __call__(self, picture: VideoFrame) -> UInt8:
        """Convert to (H, W, 3) uint8; colour matrix and range as the stream declares, else BT.601, limited."""
        size = self._square(picture)
        fits = abs(size[0] * self._room[1] / (size[1] * self._room[0]) - 1) <= ASPECT_TOLERANCE
        self.changed = "" if fits or size == self._last else self._describe_change(size)
        self._last = size
        height, width = self._room if fits else size
        stored = self._swscale.reformat(picture, width, height, format="bgr24", threads=1).to_ndarray()
        stored = fitted(cast(UInt8, stored), self._room)
        turned = cv2.transpose(stored) if self._transposed else stored
        upright = turned if self._flip is None else cv2.flip(turned, self._flip)
        bgr = np.ascontiguousarray(upright, np.uint8)  # rows of odd widths are padded
        bgr.flags.writeable = False
        return bgr

    def _square(self, picture: VideoFrame) -> tuple[int, int]:
        """(height, width) of a picture as it is stored, in square pixels."""
        return round(picture.height * self._higher), round(picture.width * self._wider)

    def _describe_change(self, size: tuple[int, int]) -> str:
        (height, width), (now_high, now_wide) = (s[::-1] if self._transposed else s for s in (self._room, size))
        return f"its size changes to {now_wide}x{now_high}, which is fitted into the first frame's {width}x{height}"


def _orientation(picture: VideoFrame) -> tuple[bool, int | None]:
    """Whether to transpose and then how to flip (cv2.flip's code, None: not at all) to set a picture upright.

    The display matrix maps stored (p, q) to shown (x, y) = (a p + c q, b p + d q).
    """
    try:
        matrix = cast(Buffer | None, picture.side_data.get("DISPLAYMATRIX"))
    except ValueError:  # PyAV raises this if any has a kind that it does not know, such as a camera's EXIF
        return {90: (True, 0), 180: (False, -1), 270: (True, 1)}.get(picture.rotation % 360, (False, None))
    if matrix is None:
        return False, None
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    flip_x, flip_y = (c < 0, b < 0) if transposed else (a < 0, d < 0)
    return transposed, {(True, True): -1, (True, False): 1, (False, True): 0}.get((flip_x, flip_y))


def first_picture(reader: Reader, label: str, size: tuple[int, int] | None = None) -> tuple[ToBgr, UInt8]:
    """The converter of a stream, and its first picture, (H, W, 3) uint8 BGR; the reader is closed if there is none.

    Args:
        reader, label: of the stream.
        size: (height, width) to convert its pictures to; None: their own.
    Raises:
        SourceError: there is no picture, or it cannot be converted.
    """
    first = reader.first
    if first is None:
        reader.close()
        raise SourceError(f"{label}: no frame can be decoded: {reader.reason or 'its video stream is empty'}")
    try:
        convert = ToBgr(first, pixel_aspect(reader.stream), size)
        return convert, convert(first)
    except av.FFmpegError as error:
        reader.close()
        raise SourceError(
            f"{label}: cannot convert pictures of the format {first.format.name}: {why(error)}"
        ) from error


def _decode_threads(stream: VideoStream) -> int:
    """One thread for small pictures, more for large ones if there are enough cores; one if a GPU decodes."""
    if stream.codec_context.is_hwaccel:
        return 1
    wanted = 1 + stream.codec_context.width * stream.codec_context.height // PIXELS_A_THREAD
    return min(wanted, DECODE_THREADS, usable_cores())


def _video_stream(container: InputContainer, label: str) -> VideoStream:
    """Choose the first video stream that is not a cover picture.

    Raises:
        SourceError: there is none, or its codec is unknown.
    """
    moving = _moving(container)
    if not moving:
        found = ", ".join(sorted({stream.type for stream in container.streams}))
        raise SourceError(f"{label}: holds no video stream" + (f", only {found}" if found else ""))
    if moving[0].codec_context is None:
        raise SourceError(f"{label}: its video codec is unknown here; convert it, for example to H.264")
    return moving[0]


def streams_left_out(container: InputContainer) -> str:
    """A message that video streams other than the first are ignored; "" if there are none."""
    count = len(_moving(container))
    return f"{count} video streams, the first is tracked" if count > 1 else ""


def _moving(container: InputContainer) -> list[VideoStream]:
    """The video streams, except cover pictures."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def require_gpu_decoding(container: InputContainer, label: str) -> None:
    """Close and refuse a container whose video the GPU with which it was opened will not decode.

    PyAV itself only refuses containers of which no stream is decoded there.

    Raises:
        SourceError: the CPU would decode it.
    """
    for stream in _moving(container)[:1]:
        if stream.codec_context is not None and not stream.codec_context.is_hwaccel:
            container.close()
            raise not_on_gpu(label, f"it has no decoder for the codec {stream.codec_context.name}")


def not_on_gpu(label: str, reason: str) -> SourceError:
    """The error for a video that cannot be decoded on the GPU as requested."""
    return SourceError(
        f"{label}: cannot be decoded with cuda here ({reason}): wanted an NVIDIA GPU, its driver, and a codec that it "
        "decodes; see `facetrack doctor`, or leave --decoder out"
    )


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width over height of the stored pixels; 1 if it is unknown, absurd, or too close to 1 to stretch pictures."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    odd = abs(aspect - 1) > ASPECT_TOLERANCE and 1 / WIDEST_PIXEL <= aspect <= WIDEST_PIXEL
    return aspect if odd else Fraction(1)


def expected_frames(stream: VideoStream, rate: Fraction | None) -> int | None:
    """How many frames there are, by the file's count or else its length and rate; None if these are unknown."""
    if stream.frames:
        return stream.frames
    if rate is None:
        return None
    if stream.duration and stream.time_base:
        return round(stream.duration * stream.time_base * rate)
    duration_us = stream.container.duration  # type: ignore[attr-defined]
    return round(duration_us * rate / 1_000_000) if duration_us else None


def declared_length_s(stream: VideoStream) -> float | None:
    """Seconds from the first picture to the end of the last, as the file's own header states; None if it does not.

    An HLS playlist states the length of each segment. For other formats FFmpeg only estimates the length: from the byte
    rate of the first packets, or from what it finds at the end of the file.
    """
    container = cast(InputContainer, stream.container)
    if container.format.name == "hls":
        return container.duration / av.time_base if container.duration else None
    if container.format.name not in WITH_LENGTH:
        return None
    base = stream.time_base or Fraction(1)
    if stream.duration:
        return float(stream.duration * base)
    end_s = _tagged_end_s(stream)
    if end_s is None and container.duration and len(container.streams) == 1:  # else it may be that of the sound
        end_s = container.duration / av.time_base
    return None if end_s is None else end_s - float((stream.start_time or 0) * base)


def _tagged_end_s(stream: VideoStream) -> float | None:
    """The stream's own end in Matroska, "00:01:02.500000000"."""
    match = re.fullmatch(r"([0-9]+):([0-9]{2}):([0-9]{2}\.[0-9]+)", stream.metadata.get("DURATION", ""))
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else None


def forget_address(error: Exception) -> None:
    """Remove the opened address from an error of FFmpeg's: it may hold a password, which tracebacks would show."""
    if isinstance(error, av.FFmpegError):
        error.args = error.args[:2]


def why(error: Exception) -> str:
    """Say in one line what FFmpeg, or the operating system, found wrong."""
    # how FFmpeg's wait ends at PyAV's time limit, and ours for a camera
    if isinstance(error, av.error.ExitError | av.BlockingIOError):
        return "nothing came in time"
    return (getattr(error, "strerror", None) or str(error)).strip()
