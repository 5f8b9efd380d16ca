"""How FFmpeg opens a file, a camera or a stream, and with which decoder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer

from ..tracker.errors import SourceError
from .pipe import Pipe, run_in_thread
from .source import Decoder, Kind
from .video_reader import forget_address, not_on_gpu, require_gpu_decoding, why

CAMERA_ADVICE = "plug one in, close other programs that use it, allow it in the system's privacy settings"
OPEN_TIMEOUT_S = 10.0
CAMERA_TIMEOUT_S = 30.0  # for FFmpeg to open one and the user to allow it; AVFoundation would wait forever
READ_TIMEOUT_S = 5.0  # a camera that gives nothing for this long is lost
NON_BLOCK = 4  # AVFMT_FLAG_NONBLOCK
PYAV_FOR_GPU = 18  # older ones copy only a picture's time: no display matrix, no dts (AVI's only stamps), no range


@dataclass(frozen=True, slots=True)
class Address:
    """What FFmpeg is to open, how, and its name."""

    location: str | Pipe
    label: str
    name: str
    kind: Kind
    format: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    patient: bool = False  # files may take their time, devices and networks may not
    decoder: Decoder = "cpu"
    read_timeout_s: float = READ_TIMEOUT_S

    def open(self) -> InputContainer:
        """Have FFmpeg open it.

        Raises:
            av.FFmpegError: it cannot.
            SourceError: it can, but not with this decoder; or a camera's driver does not answer.
        """
        if self.kind != "camera" or self.format == "dshow":  # whose objects belong to the thread that made them (COM)
            return self._open()
        try:
            return run_in_thread(self._open, lambda: None, CAMERA_TIMEOUT_S)
        except TimeoutError as error:
            advice = advice_on(self.label.removeprefix("camera "))
            raise SourceError(f"{self.label}: cannot be opened: {why(error)}; {advice}") from error

    def _open(self) -> InputContainer:
        timeout = None if self.patient else (OPEN_TIMEOUT_S, self.read_timeout_s)
        try:
            container = av.open(
                self.location,
                "r",
                format=self.format,
                container_options=self.options,
                metadata_errors="replace",  # titles may be in any code page, and are not used
                timeout=timeout,
                hwaccel=accelerator(self.decoder),
            )
        except (av.FFmpegError, NotImplementedError, RuntimeError) as error:
            forget_address(error)
            # an error that is not FFmpeg's is PyAV's own refusal of streams that it has read
            if self.decoder == "cpu" or (isinstance(error, av.FFmpegError) and not self._opens_without()):
                raise
            raise not_on_gpu(self.label, why(error)) from error
        if self.decoder != "cpu":
            require_gpu_decoding(container, self.label)
        if self.format == "dshow":  # else FFmpeg waits for the next picture forever, whatever the time-out
            container.flags |= NON_BLOCK
        return container

    def _opens_without(self) -> bool:
        """Whether the same input opens for the CPU: then the problem is the decoder."""
        try:
            replace(self, decoder="cpu").open().close()
        except av.FFmpegError:
            return False
        return True


def accelerator(decoder: Decoder, version: str = av.__version__) -> HWAccel | None:
    """PyAV's setting for the decoder; None for the CPU.

    Args:
        decoder: the requested one.
        version: PyAV's.
    Raises:
        SourceError: this version of PyAV copies only the time of a picture from the GPU.
    """
    if decoder == "cpu":
        return None
    if int(version.partition(".")[0]) < PYAV_FOR_GPU:
        raise SourceError(
            f"--decoder {decoder}: PyAV {version} loses a picture's rotation, colour range and number in the file on "
            f'the way from the GPU: wanted {PYAV_FOR_GPU}; run: pip install "av=={PYAV_FOR_GPU}.*"'
        )
    return HWAccel(decoder, allow_software_fallback=False)  # else FFmpeg silently falls back to the CPU


def advice_on(camera: str) -> str:
    """What to do about a camera that cannot be opened, named as the user did: by a number, or by its device."""
    if camera.startswith("/dev/"):
        return f"{CAMERA_ADVICE}, or name a video instead"
    if Path(camera).exists():
        return f"{CAMERA_ADVICE}, or write ./{camera} for the file or folder of that name"
    return f"{CAMERA_ADVICE}, or name a video instead; there is no file or folder {camera} here"
