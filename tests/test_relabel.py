"""A network's own labels as a corpus: written once each, however often the work is cut short."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes_annotator import Annotator
from fakes_pipeline import PaintedDetector
from fakes_training import write_faces

from facetrack.pipeline.open import Choices
from facetrack.tracker.errors import SourceError
from facetrack.tracker.geometry import CropTransform
from facetrack.tracker.types import Landmarks, Proposals, UInt8
from facetrack.training import relabel as module
from facetrack.training.datasets import read_images, read_pts
from facetrack.training.relabel import Relabelled, relabel


class Teacher(Annotator):
    """Is unsure of faces left of x = 103, and remembers where the faces are that it was shown a single crop of."""

    def __init__(self, asymmetry: float = 0.0) -> None:
        super().__init__(asymmetry)
        self.firsts: list[float] = []
        self.detector: Detector | None = None

    def align(self, bgr: UInt8, crops: Sequence[CropTransform]) -> list[Landmarks]:
        found = super().align(bgr, crops)
        if len(crops) == 1:
            self.firsts.append(round(float(found[0].xy[:, 0].mean())))
        sure = 1.0 if found[0].xy[:, 0].mean() > 103 else 0.1
        return [Landmarks(face.xy, face.score, sure, sure, "ibug68") for face in found]


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Teacher:
    teacher = Teacher()

    @contextmanager
    def opened(_: Choices) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(detector=teacher.detector, aligner=teacher)

    monkeypatch.setattr(module, "open_engines", opened)
    return teacher


def test_calls_that_end_early_go_on_where_they_stopped(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock says one o'clock before a call's first picture, two before its second: two fit until three."""
    write_faces(tmp_path / "faces", 5)
    progress = []
    for _ in range(3):
        hours = iter(range(1, 9))
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda hours=hours: next(hours)))
        progress.append(relabel(tmp_path / "faces", tmp_path / "out", Choices(), ends=3))
    assert progress == [Relabelled(2, 1, False), Relabelled(4, 3, False), Relabelled(5, 4, True)]
    assert len(teacher.firsts) == len(set(teacher.firsts)) == 5  # each picture was looked at once
    assert (tmp_path / "out" / module.REFUSED).read_text() == "0.png\n"
    assert sorted(path.name for path in (tmp_path / "out").glob("*.p*")) == sorted(
        f"{number}.{suffix}" for number in range(1, 5) for suffix in ("png", "pts")
    )


def test_a_picture_whose_label_was_cut_short_is_done_again(tmp_path: Path, teacher: Teacher) -> None:
    write_faces(tmp_path / "faces", 2, first=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.png").write_bytes(b"half a pic")
    assert relabel(tmp_path / "faces", tmp_path / "out", Choices()) == Relabelled(2, 2, True)
    assert len(teacher.firsts) == 2
    assert (tmp_path / "out" / "1.png").read_bytes() == (tmp_path / "faces" / "1.png").read_bytes()


def test_pictures_that_would_share_a_label_are_refused_before_any_is_looked_at(
    tmp_path: Path, teacher: Teacher
) -> None:
    write_faces(tmp_path / "faces" / "more", 2, first=1)
    (tmp_path / "faces" / "2.png").write_bytes((tmp_path / "faces" / "more" / "2.png").read_bytes())  # elsewhere
    (tmp_path / "faces" / "more" / "2.jpg").write_bytes((tmp_path / "faces" / "2.png").read_bytes())
    with pytest.raises(
        SourceError, match=r"more.2: wanted one picture with this name, got 2\.jpg and 2\.png; keep one"
    ):
        relabel(tmp_path / "faces", tmp_path / "out", Choices())
    assert not teacher.firsts
    assert not (tmp_path / "out").exists()


class Detector:
    """Finds one face in every picture, and counts the pictures."""

    def __init__(self) -> None:
        self.searched = 0

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del faint
        self.searched += 1
        return PaintedDetector().detect(bgr, small=small)


def test_unlabelled_pictures_beside_labelled_ones_are_searched_and_relabelled(tmp_path: Path, teacher: Teacher) -> None:
    write_faces(tmp_path / "faces", 2, first=1)
    write_faces(tmp_path / "faces" / "more", 2, first=3)
    for unlabelled in ("2.pts", "more/4.pts"):
        (tmp_path / "faces" / unlabelled).unlink()
    teacher.detector = Detector()
    assert relabel(tmp_path / "faces", tmp_path / "out", Choices()) == Relabelled(4, 4, True)
    assert teacher.detector.searched == 2
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.pts")}
    assert written == {"1.pts", "2.pts", "more/3.pts", "more/4.pts"}


@pytest.mark.parametrize("asymmetry", [0.0, 0.01])
def test_labels_match_the_annotation_of_the_teacher(asymmetry: float, tmp_path: Path, teacher: Teacher) -> None:
    teacher.asymmetry = asymmetry
    write_faces(tmp_path / "faces", 1, first=2)
    relabel(tmp_path / "faces", tmp_path / "out", Choices(), asymmetry=asymmetry)
    (sample,) = read_images(tmp_path / "faces")
    wanted = teacher.annotate(sample.bgr())
    np.testing.assert_allclose(read_pts(tmp_path / "out" / "2.pts"), wanted, atol=0.05)
