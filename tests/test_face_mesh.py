"""The pictures that MediaPipe is shown; MediaPipe itself wants an environment of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
from fakes import quadrants

from facetrack.training.face_mesh import find_meshes


class Finder:
    """Sees a face of one point in the middle of every picture."""

    def process(self, rgb: object) -> SimpleNamespace:
        del rgb
        return SimpleNamespace(multi_face_landmarks=[SimpleNamespace(landmark=[SimpleNamespace(x=0.5, y=0.5, z=0.0)])])


def test_pictures_with_non_ascii_names_are_read_and_broken_ones_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV opens no other names than ASCII ones on Windows."""
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces/Łódź.png").write_bytes(cv2.imencode(".png", quadrants())[1].tobytes())
    monkeypatch.setattr("cv2.imread", lambda _: None)
    ((name, meshes),) = find_meshes(Finder(), tmp_path, ["faces"])
    assert (name, meshes.shape) == ("faces/Łódź.png", (2, 1, 3))
    (tmp_path / "faces/empty.png").touch()
    with pytest.raises(SystemExit, match=r"empty\.png: not a readable picture"):
        list(find_meshes(Finder(), tmp_path, ["faces"]))
