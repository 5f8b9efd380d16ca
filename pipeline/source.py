"""The interface of every source of frames, and what a source's name means; needs no FFmpeg."""

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

NOTED = 100  # faults of a live source that are listed one by one: it may run for days
DAMAGED = "damaged, decoded as far as possible"

_URL = re.compile(r"\w\w://")  # a single letter is a Windows drive: C://clip.mp4
_FILE_URL = re.compile(r"file://(?:localhost)?(?=/)", re.IGNORECASE)
_CREDENTIALS = (
    re.compile(r"(\w\w://)[^/?#]*@"),  # user:password@host
    # the same where the password contains one of these characters unescaped, or the URL has lost a slash: nothing else
    # has letters after its colon
    re.compile(r"(\w\w://?)[^/?#@\[]*:(?!\d*(?:[/?#]|$)).*@"),
    # as for SRT, cameras and signed streams
    re.compile(r"([?&](?:pass|passwd|password|passphrase|pwd|(?:access_?|auth_?)?token)=)[^&#]*", re.IGNORECASE),
)


class Source(Protocol):
    """Frames in the order in which they were taken, once; a context manager that closes itself.

    Attributes:
        name: stem for the names of output files.
        kind: camera, video (a file), stream (a URL) or images.
        live: frames arrive by the clock, whether or not the reader is ready for them.
        size: (height, width) of the first frame after rotation; None for images, whose sizes differ.
        rate: mean frames per second; None where unknown.
        start_s: the recording's own timestamp, in seconds, at which the frames' times are 0; correct from the first
            frame on. None where it has no timestamps, or frames are timed otherwise.
        frames: how many to expect, for a progress bar; None where unknown.
        failed: (place, reason) of what so far could not be read, wholly or in part, or was lost for a while.
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
            SourceError: the source broke off, after all frames before the break; the message names frame and time. Or
                it has been read before, even in part: to read it again, open it again.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def close(self) -> None:
        """Stop, from any thread, and release the file or device."""
        ...


class ReadOnce:
    """Frames for one reader: threads read ahead, so a second reader would miss some without noticing."""

    def __init__(self, frames: Iterator[Frame], label: str) -> None:
        self._frames, self._label, self._spent = frames, label, False

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames.

        Raises:
            SourceError: they have been given before, or the source is closed.
        """
        if self._spent:
            raise SourceError(f"{self._label}: was closed or read before, at least in part; open the source again")
        self._spent = True
        return self._frames

    def close(self) -> None:
        """Refuse later readers; a reader that has already started keeps its frames.

        Drops the iterator, which refers to the source: the cycle would keep both alive until a garbage collection.
        """
        self._spent = True
        self._frames = iter(())


class Faults:
    """The faults of a source: all of them, or for a live source the first hundred and the latest."""

    def __init__(self, *, live: bool) -> None:
        self.listed: list[tuple[str, str]] = []
        self._live, self._unlisted = live, 0

    def note(self, place: str, reason: str) -> None:
        """Add a fault with its place in the source."""
        if self._live and len(self.listed) > NOTED:
            self._unlisted += 1
            self.listed[NOTED:] = [(place, f"{reason}; {counted(self._unlisted, 'other')} before it not listed")]
        else:
            self.listed.append((place, reason))


def is_url(spec: str) -> bool:
    """Whether a name is a URL rather than a path."""
    return bool(_URL.search(spec))


def resolve_spec(spec: str) -> str:
    """Resolve the names that stand for a path; return any other unchanged.

    "-" becomes the path of standard input, where it has one. A file URL of this machine, such as
    file:///videos/a%20b.mp4, becomes the path that it names.
    """
    if spec == "-" and STDIN.exists():
        return str(STDIN)
    match = _FILE_URL.match(spec)
    return url2pathname(spec[match.end() :]) if match else spec


def handing_over() -> str:
    """How another program can hand its stream to this one; on Windows, standard input has no path."""
    if STDIN.exists():
        return "pipe it in: ... | facetrack live --camera -"
    return f'send it: ffmpeg -i IN -f mpegts "{SENT}?listen=1"; and name {SENT}'


def is_pipe(spec: str) -> bool:
    """Whether a name is that of something written while it is read, such as /dev/stdin after a "|"."""
    path = Path(spec)
    return not is_url(spec) and (path.is_fifo() or path.is_char_device())


def is_same_file(spec: str, file: Path) -> bool:
    """Whether a user's name for a source refers to this file, however both are spelled.

    Windows and macOS do not distinguish GX01.MP4, as cameras write it, from gx01.mp4.
    """
    # a URL may be too long for a path, which would be an error
    return not is_url(spec) and file.exists() and Path(spec).is_file() and file.samefile(spec)


def counted(count: int, noun: str) -> str:
    """A count with its noun, such as "1 frame" and "2 frames"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def without_credentials(url: str) -> str:
    """Remove the user name and password before a URL's host, and passwords and tokens in its query.

    Any other text is returned unchanged.
    """
    for secret in _CREDENTIALS:
        url = secret.sub(r"\1", url)
    return url
