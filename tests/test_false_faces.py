"""What a network takes for faces: written as it was seen, with room; and learnt to be none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from fakes_annotator import Annotator

from facetrack.pipeline.open import Choices
from facetrack.tracker.errors import ConfigError, SourceError
from facetrack.tracker.geometry import CropTransform
from facetrack.tracker.types import Float32, Landmarks, UInt8
from facetrack.training import false_faces as module
from facetrack.training.false_faces import BELIEVED, ROOM, ROUNDS, SIDE, believed, false_faces, write_false_faces

SPOT = np.array([150.0, 90.0], np.float32)
MEAN = np.stack(np.meshgrid(np.linspace(-1, 1, 17), np.linspace(-1, 1, 4)), -1).reshape(68, 2).astype(np.float32)


class Fooled(Annotator):
    """Sees the same face of 40 pixels wherever it looks, half-way between there and `spot`."""

    def __init__(self, presence: float, spot: Float32 = SPOT) -> None:
        super().__init__(0.0)
        self.presence, self.spot = presence, spot

    def align(self, _: UInt8, crops: Sequence[CropTransform]) -> list[Landmarks]:
        return [self._face(crop) for crop in crops]

    def _face(self, crop: CropTransform) -> Landmarks:
        (looked_at,) = crop.to_frame(np.array([[63.5, 63.5]], np.float32))
        xy = (looked_at + self.spot) / 2 + 20 * MEAN
        return Landmarks(xy.astype(np.float32), np.ones(68, np.float32), self.presence, self.presence, "ibug68")

    def crop_of_points(self, xy: Float32) -> CropTransform:
        x, y = xy.mean(0)
        return self.crop_around((float(x), float(y)), 40.0)

    def demand_face_score(self) -> None:
        pass


def middle(crop: CropTransform) -> Float32:
    side = (crop.size[0] - 1) / 2
    return crop.to_frame(np.array([[side, side]], np.float32))[0]


def gradient() -> UInt8:
    """A picture whose colours tell x and y."""
    y, x = np.mgrid[:180, :240].astype(np.float32)
    return np.dstack((x, y, np.full_like(x, 77))).astype(np.uint8)


def test_what_is_found_is_followed_as_often_as_a_proposed_face() -> None:
    start = CropTransform.around((30.0, 30.0), 60.0, 128)
    (crop,) = believed(Fooled(0.9), gradient(), [start])
    np.testing.assert_allclose(middle(crop), SPOT + (np.array([30, 30]) - SPOT) / 2**ROUNDS, atol=1e-3)


@pytest.mark.parametrize(("presence", "kept"), [(BELIEVED, 3), (BELIEVED / 2, 0)])
def test_only_what_the_network_still_believes_is_kept(presence: float, kept: int) -> None:
    squares = [CropTransform.around((x, 60.0), 40.0, 128) for x in (40.0, 90.0, 140.0)]
    assert len(believed(Fooled(presence), gradient(), squares)) == kept


def test_a_written_picture_shows_the_crop_in_its_middle() -> None:
    """Colours tell places: the picture's middle shows the crop's, its sides are `ROOM` times as long."""
    aligner = Fooled(0.9, SPOT)
    (shown,) = list(false_faces(aligner, [gradient()], np.random.default_rng(1), per_picture=1))
    assert shown.shape == (SIDE, SIDE, 3)
    square = module._square(aligner, (180, 240), np.random.default_rng(1))
    (crop,) = believed(aligner, gradient(), [square])
    half = (SIDE - 1) / 2
    pixels = np.array([[half, half], [half - 40, half], [half, half + 30]])
    side = 40 * 1.3 * ROOM  # of what is shown, in the picture
    expected = middle(crop) + (pixels - half) * side / SIDE
    seen = np.array([shown[int(y), int(x), :2] for x, y in np.round(pixels).astype(int)], np.float32)
    np.testing.assert_allclose(seen, expected, atol=1.5)


def test_what_leaves_the_picture_is_passed_over() -> None:
    """Black corners would tell false faces from those at a picture's edge."""
    outside = Fooled(0.9, np.array([0.0, 90.0], np.float32))
    assert not list(false_faces(outside, [np.zeros((180, 40, 3), np.uint8)], np.random.default_rng(2)))


@pytest.fixture
def fooled(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(_: Choices) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(aligner=Fooled(0.9))

    monkeypatch.setattr(module, "open_engines", opened)


@pytest.mark.usefixtures("fooled")
def test_every_picture_of_every_folder_is_looked_at_and_a_second_call_refused(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), gradient())
    out = tmp_path / "out"
    written = write_false_faces([tmp_path / "a", tmp_path / "b"], out, Choices(), per_picture=4)
    assert len(list(out.glob("*.jpg"))) == written == 12
    with pytest.raises(ConfigError, match="is not empty"):
        write_false_faces([tmp_path / "a"], out, Choices())


@pytest.mark.usefixtures("fooled")
def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="none: no pictures found"):
        write_false_faces([tmp_path / "none"], tmp_path / "out", Choices())
