"""The annotated video: as long as its source, frame for frame at the same times."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import av
import cv2
from av.container import OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream

from ..tracker.errors import SinkError
from ..tracker.types import Result, UInt8
from .draw import draw_faces, fitted
from .part_file import PartFile

# For libx264: no visible loss, faster than tracking. Without B-frames the file's length is exact to the tick; with them
# the mp4 writer gets it wrong if the frame rate varies.
QUALITY = {"preset": "veryfast", "crf": "20", "bf": "0"}
# The file consists of fragments of a second each until it is finished; then it is an ordinary one.
FRAGMENTED = {"movflags": "hybrid_fragmented", "frag_duration": "1000000"}
LONGEST_SIDE = 16_384  # libx264's limit for its input
FALLBACK_RATE = Fraction(30)
SLOWEST_RATE = Fraction(1, 65_536)  # at 20,000 ticks per second its frames last almost as long as an mp4 can express
FEWEST_TICKS, MOST_TICKS = 10_000, 1_000_000  # per second, of the file's clock
LONGEST_WAIT = 2**30  # ticks from frame to frame; with twice as many, an mp4 loses its times
_BT709_MATRIX = 1  # AVCOL_SPC_BT709; PyAV names only swscale's numbers


class _Unfailing:
    """A file for FFmpeg in which writing never fails: the first failure is kept, and what follows is discarded.

    FFmpeg writes several times before PyAV checks for failures. PyAV keeps one of them and prints the others with their
    tracebacks.

    Attributes:
        error: the first failure.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.error: OSError | None = None

    @property
    def closed(self) -> bool:
        """Whether the file is closed, which PyAV asks."""
        return self._out.closed

    def write(self, content: bytes) -> int:
        """Write, unless something has failed."""
        try:
            if self.error is None:
                self._out.write(content)
        except OSError as error:
            self.error = error
        return len(content)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position, after writing what is buffered."""
        try:
            if self.error is None:
                return self._out.seek(place, whence)
        except OSError as error:
            self.error = error
        return place

    def tell(self) -> int:
        """The current position."""
        return self._out.tell()


class VideoSink:
    """Writes an H.264 mp4 with the faces drawn on the frames.

    Each frame keeps its timestamp relative to the first one written, so variable frame rates and dropped frames are
    preserved. In a pause of more than 18 minutes, at the finest clock, the frame before it is repeated. H.264 in its
    common 4:2:0 form only has even sizes: an odd last row or column is doubled. Frames of another size than the first
    are fitted into it.

    Args:
        path: NAME.mp4; it is NAME.mp4.part until it is complete. The part of an interrupted run can be played. So can
            that of a killed one, except its last second and the ten to thirty frames that the encoder still held.
        rate: the source's mean frames per second, from which the clock of the file is chosen; None: unknown.
        size: (height, width) of the frames, so that those that are too large are refused before anything is written;
            None: unknown until the first one.
        overwrite: replace an existing file.

    Attributes:
        size_bytes: of the whole file, once it is finished.

    Raises:
        SinkError: the file exists, or cannot be written, or the frames are too large for it.
    """

    def __init__(
        self,
        path: Path,
        *,
        rate: Fraction | None = None,
        size: tuple[int, int] | None = None,
        overwrite: bool = False,
    ) -> None:
        self._file = PartFile(path, overwrite=overwrite)
        self._path = path
        if size is not None:
            self._refuse_too_large(size)
        self._rate = rate if rate and rate >= SLOWEST_RATE else FALLBACK_RATE
        self._tick_s = Fraction(1, ticks_per_second(self._rate))
        self._to_yuv = VideoReformatter()
        self._start_s = 0.0
        self._pts = -1
        self._last: av.VideoFrame | None = None
        self._closed = False
        self.size_bytes = 0
        self._stream: VideoStream | None = None
        try:
            # Opened here, because FFmpeg would open its own file only at the first frame, and crashes when it has to
            # finish one that could not be written. PyAV leaves a closed file alone.
            self._out = self._file.open()
        except OSError as error:
            raise self._file.error(error) from error
        self._unfailing = _Unfailing(self._out)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="facetrack-video")
        self._work: Future[None] | None = None  # that nobody has waited for to the end
        try:
            self._do(self._open)  # starts the thread, too; if an interrupt came later, there could be two
        except BaseException:
            self._thread.shutdown(wait=False)
            self._out.close()
            raise

    def write(self, result: Result) -> None:
        """Draw and encode a frame.

        Raises:
            SinkError: it cannot be written, or the first frame is too large.
        """
        if self._stream is None:
            self._refuse_too_large(result.frame.size)
        bgr = draw_faces(result.frame.bgr, result.faces)
        self._do(lambda: self._write(bgr, result.frame.time_s))

    def finish(self) -> None:
        """Encode and write what is left; see `sinks.Sink.finish`."""
        self._wait()
        if not self._out.closed:
            self._do(self._finish)

    def _do(self, work: Callable[[], None]) -> None:
        """Do work with the container and wait for it.

        The main thread has another one do it. Signals are raised in the main thread only; in a function that FFmpeg
        calls, PyAV would swallow the KeyboardInterrupt, and the file would lack what was to be written.
        """
        self._wait()
        if threading.current_thread() is not threading.main_thread():  # it hears no signals
            work()
            return
        self._work = self._thread.submit(work)
        self._wait()

    def _wait(self) -> None:
        """Wait for the work to end and raise its error. After an interrupt, the next call does so."""
        if self._work is None:
            return
        wait([self._work])
        try:
            self._work.result()
        finally:
            self._work = None

    def _open(self) -> None:
        self._container: OutputContainer = av.open(self._unfailing, "w", format="mp4", options=FRAGMENTED)

    def _write(self, bgr: UInt8, time_s: float) -> None:
        with self._guarded():
            if self._stream is None:
                self._file.begin(self._out)
                self._start_s = time_s
                self._stream = self._add_stream(bgr)
            self._encode(self._stream, bgr, time_s - self._start_s)
            self._out.flush()

    def _finish(self) -> None:
        if self._out.closed:  # an interrupt came before `finish` noted that this had begun
            return
        with self._guarded():
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            self._out.flush()
            self.size_bytes = os.fstat(self._out.fileno()).st_size
            self._out.close()

    def close(self, *, complete: bool) -> None:
        """Give the file its name if it is complete; see `sinks.Sink.close`."""
        try:
            self.finish()
        except SinkError:
            if complete:
                raise
        finally:
            if self._out.closed:
                self._thread.shutdown(wait=False)
        if self._closed:
            return
        self._closed = True
        if self._stream is None:
            self._file.discard()  # without a frame it is not a video
        elif complete:
            self._file.publish()

    def _refuse_too_large(self, size: tuple[int, int]) -> None:
        """Refuse frames that libx264 would refuse with only "generic error"."""
        if max(size) > LONGEST_SIDE:
            raise SinkError(
                f"{self._path}: cannot be written: wanted frames of at most {LONGEST_SIDE} pixels a side, as libx264 "
                f"takes no more, got {size[1]}x{size[0]}; leave the annotated video out, or scale the input down"
            )

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn a failure to write into a SinkError and give the file up."""
        try:
            yield
            if self._unfailing.error is not None:
                raise self._unfailing.error
        except (av.FFmpegError, OSError) as error:
            self._closed = True
            with contextlib.suppress(OSError):  # the same failure again
                self._out.close()
            with contextlib.suppress(OSError):
                if self._file.part.stat().st_size == 0:
                    self._file.discard()
            raise self._file.error(self._unfailing.error or error) from error

    def _add_stream(self, first: UInt8) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=self._rate, options=QUALITY)
        even = pad_to_even(first)
        stream.height, stream.width, stream.pix_fmt = even.shape[0], even.shape[1], "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = self._tick_s
        context.colorspace, context.color_range = _BT709_MATRIX, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        return stream

    def _encode(self, stream: VideoStream, bgr: UInt8, time_s: float) -> None:
        picture = self._to_yuv.reformat(
            av.VideoFrame.from_ndarray(fitted(pad_to_even(bgr), (stream.height, stream.width)), "bgr24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        pts = max(self._pts + 1, round(time_s / self._tick_s))
        while self._last is not None and pts - self._pts > LONGEST_WAIT:
            self._mux(stream, self._last, self._pts + LONGEST_WAIT)
        self._mux(stream, picture, pts)
        self._last = picture

    def _mux(self, stream: VideoStream, picture: av.VideoFrame, pts: int) -> None:
        self._pts = picture.pts = pts
        picture.time_base = self._tick_s
        self._container.mux(stream.encode(picture))


def ticks_per_second(rate: Fraction) -> int:
    """Choose a clock in which frames at this rate fall on whole ticks, fine enough for frames between them."""
    ticks = rate.numerator
    while ticks < FEWEST_TICKS:
        ticks *= 2
    return min(ticks, MOST_TICKS)


def pad_to_even(bgr: UInt8) -> UInt8:
    """Double the last row or column of a picture whose height or width is odd."""
    height, width = bgr.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return bgr
    return cast(UInt8, cv2.copyMakeBorder(bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
