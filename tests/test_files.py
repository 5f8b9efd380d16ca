"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from facetrack.engines.files import replace_file
from facetrack.tracker.errors import BackendError, FacetrackError, SinkError


def test_replace_file_overwrites_creates_folders_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    replace_file(tmp_path / "made" / "for" / "it", b"here")
    assert (tmp_path / "made" / "for" / "it").read_bytes() == b"here"


@pytest.mark.parametrize("failure", [BackendError, SinkError])
def test_failed_write_raises_and_leaves_no_temporary_file(tmp_path: Path, failure: type[FacetrackError]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below", tmp_path / "folder"):
        with pytest.raises(failure, match=f"{path}: cannot be written"):
            replace_file(path, b"new", failure)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}
