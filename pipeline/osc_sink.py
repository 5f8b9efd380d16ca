"""Faces as Open Sound Control over UDP, for avatars, games and stages; docs/osc.md lists the addresses.

Source: Wright, "The Open Sound Control 1.0 Specification", 2002.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..tracker.errors import SinkError
from ..tracker.intrinsics import Intrinsics
from ..tracker.pose import eye_aspect_ratio
from ..tracker.types import Face, Frame, Result
from .sinks import pose_of

if TYPE_CHECKING:
    from pythonosc.osc_message import OscMessage

log = logging.getLogger(__name__)

ROOT = "/facetrack"


class OscSink:
    """Sends each frame as one bundle per face, or as a single bundle if there is no face.

    Sending never blocks: a datagram that the system refuses is lost, and counted.

    Args:
        host: name, address or broadcast address of the receiver.
        port: its UDP port.
        intrinsics: of the camera; default: OpenFace's.

    Attributes:
        lost: number of datagrams that the system refused.

    Raises:
        SinkError: python-osc is not installed, or the host is not known.
    """

    def __init__(self, host: str, port: int, intrinsics: Intrinsics | None = None) -> None:
        try:
            import pythonosc.osc_bundle_builder  # noqa: F401 - fails before the camera opens, not in the first frame
        except ImportError as error:
            raise SinkError('OSC needs python-osc; run: pip install "facetrack[osc]"') from error
        self._intrinsics = intrinsics
        self._label = f"OSC to {host} port {port}"
        try:
            places = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            # "localhost" is ::1 first on most systems, and programs that take OSC listen on IPv4
            family, *_, address = min(places, key=lambda place: place[0] != socket.AF_INET)
            self._socket, self._address = socket.socket(family, socket.SOCK_DGRAM), address
        except OSError as error:
            raise SinkError(f"{self._label}: {error.strerror or error}; check the host's name") from error
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self.lost = 0

    def write(self, result: Result) -> None:
        """Send a frame.

        Raises:
            ConfigError: the frame has another aspect than the intrinsics.
        """
        for datagram in datagrams(result, self._intrinsics):
            try:
                self._socket.sendto(datagram, self._address)
            except OSError as error:
                if not self.lost:
                    log.warning("%s: a datagram was lost: %s; continuing", self._label, error.strerror or error)
                self.lost += 1

    def finish(self) -> None:
        """No effect: every datagram has been sent."""

    def close(self, *, complete: bool) -> None:
        """Close the socket and log how many datagrams were lost."""
        del complete
        if self._socket.fileno() == -1:
            return
        self._socket.close()
        if self.lost:
            log.warning("%s: %d datagrams were lost", self._label, self.lost)


def datagrams(result: Result, intrinsics: Intrinsics | None = None) -> Iterator[bytes]:
    """OSC bundles of a frame: one for each face, or one if there is none.

    Each begins with the frame and the tracks of all its faces, so that it is complete by itself. Its time tag is
    "immediately", because receivers would delay or drop bundles that carry the times of a video.

    Args:
        result: that of the frame.
        intrinsics: of the camera; default: OpenFace's.
    Raises:
        ConfigError: the frame has another aspect than the intrinsics.
    """
    frame = result.frame
    tracks = [face.track for face in result.faces]
    header = [_frame_message(frame), _message("faces", "i" * len(tracks), tracks)]
    if not result.faces:
        yield _bundle(header)
    for face in result.faces:
        yield _bundle([*header, *_face_messages(face, frame, intrinsics)])


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT"; an IPv6 address must be in brackets.

    Raises:
        ValueError: the text has another form.
    """
    message = f"wanted HOST:PORT, such as 127.0.0.1:9000, got {text}"
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # as a socket does it
    except ValueError as error:  # a port that is no number, or too large; a bracket without the other; a..b
        raise ValueError(message) from error
    if not host or not port or parts.netloc != text or "@" in text:
        raise ValueError(message)
    return host, port


def _frame_message(frame: Frame) -> OscMessage:
    height, width = frame.size
    return _message("frame", "ifii", [frame.index + 1, frame.time_s, width, height])


def _face_messages(face: Face, frame: Frame, intrinsics: Intrinsics | None) -> Iterator[OscMessage]:
    yield _float_message(f"{face.track}/confidence", [face.confidence])
    yield _message(f"{face.track}/success", "i", [int(face.measured is not None)])
    pose = pose_of(face, frame.size, intrinsics)
    if pose is not None:
        yield _float_message(f"{face.track}/pose", [*pose.translation_mm.tolist(), *pose.rotation_rad.tolist()])
    for name, opening in zip(("eye_left", "eye_right"), eye_aspect_ratio(face.smoothed), strict=True):
        if math.isfinite(opening):
            yield _float_message(f"{face.track}/{name}", [opening])
    yield _float_message(f"{face.track}/landmarks", face.smoothed.ravel().tolist())


def _float_message(address: str, values: Sequence[float]) -> OscMessage:
    return _message(address, "f" * len(values), values)


def _message(address: str, types: str, values: Sequence[float]) -> OscMessage:
    """A message whose arguments have these OSC type tags, one letter each."""
    from pythonosc.osc_message_builder import OscMessageBuilder

    builder = OscMessageBuilder(f"{ROOT}/{address}")
    for kind, value in zip(types, values, strict=True):
        builder.add_arg(value, kind)
    return builder.build()


def _bundle(messages: Sequence[OscMessage]) -> bytes:
    from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder

    builder = OscBundleBuilder(IMMEDIATELY)
    for message in messages:
        builder.add_content(message)
    return builder.build().dgram
