"""The size that a video file's structure declares, to tell a complete file from a truncated one.

FFmpeg reads a truncated file without an error and stops early. The common containers state the sizes of their
top-level elements, which reveal the truncation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_ISO_BOXES = frozenset(  # of the top level
    b"emsg ftyp free mdat meco meta mfra moof moov pdin pnot prft sidx skip ssix styp uuid wide".split()
)
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def declared_size(path: Path) -> int | None:
    """Give the size in bytes that the file's structure declares.

    For ISO base media (mp4, mov, m4v, 3gp), Matroska and WebM, and AVI.

    Returns:
        The end of the last top-level element, which lies beyond the end of a truncated file; None for other formats
        and where the writer left the size open.
    Raises:
        OSError: the file cannot be read.
    Source: ISO/IEC 14496-12 section 4.2; RFC 8794 sections 4 and 6; Microsoft's AVI RIFF file reference.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] == b"ftyp":
            return _walk(file, size, _iso_box)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return _walk(file, size, _riff_chunk)
        if head[:4] == _EBML:
            return _matroska(file)
    return None


def _walk(file: BinaryIO, size: int, length_of_next: Callable[[BinaryIO], int | None]) -> int | None:
    """The end of the last top-level element; None if its length is open.

    Args:
        file: seekable.
        size: of the file, bytes.
        length_of_next: reads the header of an element and gives its length, header included; None where that is open,
            0 for what is not an element.
    """
    at = 0
    while at < size:
        file.seek(at)
        length = length_of_next(file)
        if length is None:
            return None
        if length == 0:  # cameras append data of their own
            return at
        at += length
    return at


def _iso_box(file: BinaryIO) -> int | None:
    """Length of an ISO box, see `_walk`."""
    header = file.read(16)
    if header[4:8] not in _ISO_BOXES:
        return 0
    length = int.from_bytes(header[:4], "big")
    if length == 1:
        length = int.from_bytes(header[8:16], "big")
    return length if length >= 8 else None  # 0: to the end of the file


def _riff_chunk(file: BinaryIO) -> int | None:
    """Length of a RIFF chunk, see `_walk`; large AVI files have several."""
    header = file.read(8)
    if header[:4] != b"RIFF":
        return None  # players ignore what follows the last RIFF chunk
    length = int.from_bytes(header[4:8], "little")
    return 8 + length + length % 2


def _matroska(file: BinaryIO) -> int | None:
    """End of the segment that follows the EBML header; None where its size is unknown."""
    file.seek(4)
    head_length = _ebml_length(file)
    if head_length is None:
        return None
    file.seek(head_length, 1)
    if file.read(4) != _SEGMENT:
        return None
    length = _ebml_length(file)
    return None if length is None else file.tell() + length


def _ebml_length(file: BinaryIO) -> int | None:
    """Read a variable-length size; None where it is invalid or all its bits are set, which means unknown."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + file.read(extra), "big")
    return None if value == (1 << (7 * (extra + 1))) - 1 else value
