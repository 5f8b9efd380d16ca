"""The size that a container declares, byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from facetrack.pipeline.declared_size import declared_size


@pytest.mark.parametrize(
    ("content", "size"),
    [
        # mp4: two boxes, the second longer than the file
        (struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4s", 1000, b"mdat"), 1016),
        # mp4: cameras leave notes of their own behind the last box
        (struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4s4x", 12, b"mdat") + b"GPS:52.5200,13.4050", 28),
        # mp4: a 64-bit length
        (struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4sQ", 1, b"mdat", 5_000_000_000), 5_000_000_016),
        # mp4: the last box reaches to the end, whatever that is
        (struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4s", 0, b"mdat"), None),
        # AVI: 4 bytes of form type + 96
        (b"RIFF" + struct.pack("<I", 100) + b"AVI ", 108),
        # Matroska: a head of 2 bytes, a segment of 16 bytes (one-byte length), then of unknown length
        (b"\x1a\x45\xdf\xa3\x82xx\x18\x53\x80\x67\x90", 28),
        (b"\x1a\x45\xdf\xa3\x82xx\x18\x53\x80\x67\xff", None),
        # eight-byte length, as muxers write it
        (b"\x1a\x45\xdf\xa3\x82xx\x18\x53\x80\x67\x01" + (1000).to_bytes(7, "big"), 1019),
        (b"\x1a\x45\xdf\xa3\x82xx\x18\x53\x80\x67\x01" + b"\xff" * 7, None),
        # something else, nothing, a stub
        (b"\x47" * 188, None),
        (b"", None),
        (b"\x1a\x45\xdf\xa3", None),
    ],
)
def test_the_declared_size_is_read_from_the_outermost_elements(
    tmp_path: Path, content: bytes, size: int | None
) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    assert declared_size(path) == size
