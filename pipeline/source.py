"""What every source of frames is, whatever it reads: this needs no FFmpeg."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self
from urllib.request import url2pathname

from ..tracker.errors import SourceError
from ..tracker.types import Frame

Kind = Literal["camera", "video", "stream", "images"]
Decoder = Literal["cpu", "cuda"]

STDIN = Path("/dev/stdin")
SENT = "tcp://127.0.0.1:9000"

NOTED = 100  # faults of what is live that are listed one by one: it may run for days
DAMAGED = "damaged, decoded as far as it goes"

_URL = re.compile(r"\w\w://")  # one letter is a drive of Windows: C://clip.mp4
_FILE_URL = re.compile(r"file://(?:localhost)?(?=/)", re.IGNORECASE)
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
        start_s: what the recording's own time stamps say, in seconds, where the frames' times are 0; right from the
            first frame on. None where frames are timed otherwise, or it has none.
        frames: how many to expect, for a progress bar; None where unknown.
        failed: (place, reason) of what could not be read, wholly or in part, or was lost for a while, so far.
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
    def start_s(self) -> float | None: ...
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


class ReadOnce:
    """Frames that are given to one reader: threads read ahead of it, so that a second one would miss some unawares."""

    def __init__(self, frames: Iterator[Frame], label: str) -> None:
        self._frames, self._label, self._spent = frames, label, False

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames.

        Raises:
            SourceError: they have been given before, or the source is closed.
        """
        if self._spent:
            raise SourceError(f"{self._label}: was read before, if not to its end, or closed; open the source again")
        self._spent = True
        return self._frames

    def close(self) -> None:
        """Give no frames to whoever has not begun to read; who has keeps them.

        They are let go of: they are read from the source, so that both would stay until a collection of garbage.
        """
        self._spent = True
        self._frames = iter(())


class Faults:
    """What failed, as a source tells it: all, or of what is live the first hundred, then the last."""

    def __init__(self, *, live: bool) -> None:
        self.listed: list[tuple[str, str]] = []
        self._live, self._unlisted = live, 0

    def note(self, place: str, reason: str) -> None:
        """Take in one more, by its place in the source."""
        if self._live and len(self.listed) > NOTED:
            self._unlisted += 1
            self.listed[NOTED:] = [(place, f"{reason}; {counted(self._unlisted, 'other')} before it not listed")]
        else:
            self.listed.append((place, reason))


def is_url(spec: str) -> bool:
    """Whether a name is an address and no path."""
    return bool(_URL.search(spec))


def meant_by(spec: str) -> str:
    """What a user's name for a source stands for; all else stays as it is.

    "-" is standard input, where that has a path, and an address of this machine, such as file:///videos/a%20b.mp4, the
    path that it names.
    """
    if spec == "-" and STDIN.exists():
        return str(STDIN)
    match = _FILE_URL.match(spec)
    return url2pathname(spec[match.end() :]) if match else spec


def handing_over() -> str:
    """What a program is to do whose stream is to be read here; Windows' standard input has no path."""
    if STDIN.exists():
        return "pipe it in: ... | facetrack live --camera -"
    return f'send it: ffmpeg -i IN -f mpegts "{SENT}?listen=1"; and name {SENT}'


def is_pipe(spec: str) -> bool:
    """Whether a name is that of what another program writes while it is read, such as /dev/stdin behind a "|"."""
    path = Path(spec)
    return not is_url(spec) and (path.is_fifo() or path.is_char_device())


def is_same_file(spec: str, file: Path) -> bool:
    """Whether a user's name for a source is that of this file, in whatever way both are written.

    Windows and macOS do not tell GX01.MP4, as cameras write it, from gx01.mp4.
    """
    # a URL may be longer than a path can be, which is an error
    return not is_url(spec) and file.exists() and Path(spec).is_file() and file.samefile(spec)


def counted(count: int, noun: str) -> str:
    """Such as "1 frame" and "2 frames"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def without_credentials(url: str) -> str:
    """A URL without the name and the password that may stand before its host, and without passwords in its query.

    Every other text stays as it is.
    """
    for secret in _CREDENTIALS:
        url = secret.sub(r"\1", url)
    return url
