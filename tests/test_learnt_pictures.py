"""Which pictures a training learns from, and those that it is refused without."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from fakes_training import write_faces

from facetrack.tracker.errors import SourceError
from facetrack.training.config import Config, Corpus, Network
from facetrack.training.objectives import open_objective

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("faces", "grass", "wanted"),
    [
        ([12], [1, 12], "faces in faces"),
        ([1, 2], [1, 12], "faces to validate with"),
        ([1, 12], [12], "pictures without faces"),
        ([1, 12], [], "pictures without faces"),
        ([1, 12], [1, 2], "pictures without faces to validate with"),
    ],
)
def test_a_detector_without_pictures_to_learn_from_or_to_validate_with_is_refused_in_one_line(
    faces: list[int], grass: list[int], wanted: str, tmp_path: Path
) -> None:
    """By its name 12.png is kept out of the training."""
    for folder, numbers in (("faces", faces), ("grass", grass)):
        for number in numbers:
            write_faces(tmp_path / folder, 1, number)
    settings = Config(Network("bbfcn-backbone", 5), corpora=(Corpus("faces"),), negatives=("grass",) if grass else ())
    with pytest.raises(SourceError, match=rf"^wanted {wanted}, got none; a tenth of all pictures, .* validated with$"):
        open_objective(settings, tmp_path, tmp_path)
