"""Which pictures a training learns from, and those that it is refused without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
def test_detector_without_training_or_validation_pictures_is_refused(
    faces: list[int], grass: list[int], wanted: str, tmp_path: Path
) -> None:
    """By its name 12.png is kept out of the training."""
    for folder, numbers in (("faces", faces), ("grass", grass)):
        for number in numbers:
            write_faces(tmp_path / folder, 1, number)
    settings = Config(Network("bbfcn-backbone", 5), corpora=(Corpus("faces"),), negatives=("grass",) if grass else ())
    with pytest.raises(SourceError, match=rf"^wanted {wanted}, got none; a tenth of .* used only for validation$"):
        open_objective(settings, tmp_path, tmp_path)


def test_negatives_that_show_people_are_not_learnt(tmp_path: Path) -> None:
    """12.png is kept for the detector's validation."""
    for folder, numbers in (("faces", (1, 12)), ("test", (2,)), ("grass", (3, 4, 12)), ("lawn", (5,))):
        for number in numbers:
            write_faces(tmp_path / folder, 1, number)
    people = ("grass/4.png", "faces/3.png", "lawn/5.png")
    settings = Config(corpora=(Corpus("faces"),), negatives=("grass", "lawn"), people=people, validation="test")
    aligner: Any = open_objective(settings, tmp_path, tmp_path)
    assert [sample.path.name for sample in aligner.negatives] == ["12.png", "3.png"]
    scan = replace(settings, network=Network("bbfcn-backbone", 5), validation="")
    detector: Any = open_objective(scan, tmp_path, tmp_path)
    held, learnt = ([sample.bgr()] for sample in aligner.negatives)
    assert np.array_equal(detector.windows.backgrounds, learnt)
    assert np.array_equal(detector.windows.held_backgrounds, held)
