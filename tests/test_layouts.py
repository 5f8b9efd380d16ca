"""300-W and WFLW in their published layouts: what is found, in which subsets, and what is said of broken files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from fakes_benchmarks import wflw_line, write_300w, write_image, write_wflw

from facetrack.tracker.errors import SourceError
from facetrack.training.datasets import read_entries, read_faces
from facetrack.training.datasets.layouts import list_300w, list_300w_all, list_300w_train, list_wflw, list_wflw_train

BLANK = np.full((12, 16, 3), 99, np.uint8)
TEST_NAMES = [
    "lfpw/testset/image_0001.png",
    "helen/testset/30844800_1.jpg",
    "ibug/image_003_1.jpg",
    "300W/01_Indoor/indoor_001.png",
    "300W/02_Outdoor/outdoor_001.png",
]


# 300-W


def test_300w_makes_its_subsets_from_the_folders(tmp_path: Path) -> None:
    truths = write_300w(tmp_path, TEST_NAMES)
    samples = list(read_faces(tmp_path, "300w"))
    assert [sample.path for sample in samples] == [tmp_path / name for name in TEST_NAMES]
    assert [sample.subsets for sample in samples] == [
        ("common", "full"),
        ("common", "full"),
        ("challenging", "full"),
        ("test", "indoor"),
        ("test", "outdoor"),
    ]
    for sample, truth in zip(samples, truths, strict=True):
        np.testing.assert_allclose(sample.points, truth[None], atol=1e-4)


def test_300w_competition_folders_may_lie_at_the_top_level(tmp_path: Path) -> None:
    write_300w(tmp_path, ["01_Indoor/indoor_001.png"])
    assert [entry.name for entry in list_300w(tmp_path)] == ["01_Indoor/indoor_001.png"]


def test_300w_test_set_excludes_mirrored_unlabelled_and_training_pictures(tmp_path: Path) -> None:
    names = ["lfpw/testset/image_0001.png", "lfpw/testset/image_0001_mirror.png", "lfpw/trainset/image_0002.png"]
    write_300w(tmp_path, [*names, "afw/1.jpg"])
    write_image(tmp_path / "lfpw/testset/unlabelled.png", BLANK)
    assert [entry.name for entry in list_300w(tmp_path)] == names[:1]
    assert [entry.name for entry in list_300w_train(tmp_path)] == ["afw/1.jpg", names[2]]


def test_300w_all_is_everything_but_the_competition_test_set(tmp_path: Path) -> None:
    """3,148 + 689 faces."""
    train = ["afw/1.jpg", "helen/trainset/2.jpg", "lfpw/trainset/image_0002.png"]
    write_300w(tmp_path, [*TEST_NAMES, *train])
    assert [entry.name for entry in list_300w_all(tmp_path)] == [*train, *TEST_NAMES[:3]]
    assert [sample.subsets for sample in read_faces(tmp_path, "300w-all")] == [()] * 6
    tested = [sample.path.name for sample in read_faces(tmp_path, "300w-test")]
    assert tested == ["indoor_001.png", "outdoor_001.png"]


def test_a_folder_without_300w_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"no pictures with \.pts files in lfpw/testset, .*; wanted the folder of 300-W"
    ):
        list_300w(tmp_path)


def test_a_broken_file_is_refused_or_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_300w(tmp_path, TEST_NAMES[:3])
    (tmp_path / "helen/testset/30844800_1.pts").write_text("version: 1", encoding="utf-8")
    (tmp_path / "ibug/image_003_1.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match=r"30844800_1\.pts: not a \.pts file"):
        list(read_entries(list_300w(tmp_path)))
    with caplog.at_level(logging.WARNING, "facetrack"):
        kept = list(read_entries(list_300w(tmp_path), "skip"))
    assert [sample.path.name for sample in kept] == ["image_0001.png"]
    assert ["30844800_1.pts" in caplog.messages[0], "image_003_1.jpg" in caplog.messages[1]] == [True, True]


def test_an_annotation_of_300w_without_its_picture_is_a_broken_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_300w(tmp_path, TEST_NAMES[:3])
    (tmp_path / "helen/testset/30844800_1.jpg").unlink()
    entries = list_300w(tmp_path)
    assert [entry.name for entry in entries] == [TEST_NAMES[0], "helen/testset/30844800_1.pts", TEST_NAMES[2]]
    wanted = (
        r"30844800_1\.pts: wanted a picture \(\.bmp, \.jpeg, \.jpg, \.png\) of its name beside it; restore or remove"
    )
    with pytest.raises(SourceError, match=wanted):
        list(read_entries(entries))
    with caplog.at_level(logging.WARNING, "facetrack"):
        assert len(list(read_entries(entries, "skip"))) == 2
    assert "30844800_1.pts" in caplog.text


def test_the_mirrored_annotations_without_pictures_are_left_out_as_well(tmp_path: Path) -> None:
    write_300w(tmp_path, ["ibug/1.jpg", "ibug/1_mirror.jpg"])
    (tmp_path / "ibug/1_mirror.jpg").unlink()
    assert [entry.name for entry in list_300w(tmp_path)] == ["ibug/1.jpg"]


def test_300w_without_a_single_picture_is_refused(tmp_path: Path) -> None:
    write_300w(tmp_path, ["ibug/1.jpg"])
    (tmp_path / "ibug/1.jpg").unlink()
    with pytest.raises(SourceError, match=r"no pictures with \.pts files in"):
        list_300w(tmp_path)


def test_annotation_with_two_pictures_raises_or_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_300w(tmp_path, ["ibug/1.jpg", "ibug/2.png", "ibug/2.jpg"])
    for folder, layout in ((tmp_path, "300w"), (tmp_path / "ibug", "pts")):
        with pytest.raises(SourceError, match=r"2\.pts: wanted one picture .*, got 2\.jpg and 2\.png; keep one"):
            list(read_faces(folder, layout))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "facetrack"):
            assert [sample.path.name for sample in read_faces(folder, layout, "skip")] == ["1.jpg"]
        assert len(caplog.messages) == 1


# WFLW


def test_wflw_line_gives_a_face_with_its_box_and_attribute_subsets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 16, (3, 98, 2)).astype(np.float32)
    parade, dance = "0--Parade/0_Parade_1.jpg", "5--Dance/5_Dance_2.jpg"
    for name in (parade, dance):
        write_image(tmp_path / "WFLW_images" / name, BLANK)
    write_wflw(
        tmp_path,
        "test",
        wflw_line(points[0], "000000", parade),
        wflw_line(points[1], "101000", parade),
        wflw_line(points[2], "010111", dance),
    )
    entries = list_wflw(tmp_path)
    assert [entry.name for entry in entries] == [f"{parade}#1", f"{parade}#2", f"{dance}#3"]
    samples = list(read_entries(entries))
    assert [sample.subsets for sample in samples] == [
        ("test",),
        ("test", "pose", "illumination"),
        ("test", "expression", "make-up", "occlusion", "blur"),
    ]
    for sample, truth in zip(samples, points, strict=True):
        np.testing.assert_allclose(sample.points, truth[None], atol=1e-5)  # counted from 0 already
        assert sample.boxes is not None
        np.testing.assert_allclose(sample.boxes[0], np.rint([*truth.min(0), *truth.max(0)]))


def test_wflws_training_part_has_a_list_of_its_own(tmp_path: Path) -> None:
    write_image(tmp_path / "WFLW_images/a.jpg", BLANK)
    write_wflw(tmp_path, "train", wflw_line(np.ones((98, 2)), "000000", "a.jpg"))
    (entry,) = list_wflw_train(tmp_path)
    assert entry.read().subsets == ("train",)
    with pytest.raises(SourceError, match=r"wanted WFLW_annotations/.*list_98pt_rect_attr_test\.txt or list_98pt"):
        list_wflw(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3 a.jpg", "line 1: wanted 206 numbers and a name, got 3"),
        (" ".join(["x"] * 206) + " a.jpg", "line 1: could not convert string to float: 'x'"),
        (" ".join(["x" * 999] * 206) + " a.jpg", r"line 1: could not convert string to float: 'x{64}\.\.\.$"),
        (" ".join(["1e39"] * 206) + " a.jpg", r"test\.txt, line 1: wanted coordinates up to 1048576.* got 1e\+39"),
        (wflw_line(np.ones((98, 2)), "000000", "none.jpg"), r"none\.jpg: cannot be read: No such file"),
    ],
)
def test_a_broken_line_of_wflw_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_image(tmp_path / "WFLW_images/a.jpg", BLANK)
    write_wflw(tmp_path, "test", line)
    with pytest.raises(SourceError, match=message):
        list(read_faces(tmp_path, "wflw"))


def test_an_empty_list_of_wflw_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "WFLW_images/a.jpg", BLANK)
    write_wflw(tmp_path, "test", "")
    with pytest.raises(SourceError, match="there is no face in it"):
        list_wflw(tmp_path)
