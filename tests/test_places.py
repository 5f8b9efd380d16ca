"""Where the parts of a data set are found: nested as archives are unpacked, behind links, and never twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes_benchmarks import wflw_line, write_300w, write_image, write_wflw

from facetrack.tracker.errors import SourceError
from facetrack.training.datasets import images_below, list_faces, read_faces
from facetrack.training.datasets.layouts import list_300w, list_300w_train, list_wflw
from facetrack.training.datasets.places import find_place, folders_below

BLANK = np.full((12, 16, 3), 99, np.uint8)


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.symlink_to(target, target_is_directory=True)
    except OSError:
        pytest.skip("links may not be made here")


def names_below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folders_below(folder)]


def write_one_face_of_wflw(folder: Path) -> None:
    write_image(folder / "WFLW_images/a.jpg", BLANK)
    write_wflw(folder, "test", wflw_line(np.ones((98, 2)), "000000", "a.jpg"))


# the walk


def test_every_folder_below_is_seen_once_and_links_are_followed(tmp_path: Path) -> None:
    for name in ("data/b/c", "data/a", "elsewhere/d"):
        (tmp_path / name).mkdir(parents=True)
    link(tmp_path / "data/a/far", tmp_path / "elsewhere")
    link(tmp_path / "data/a/near", tmp_path / "data/b")  # that is there under its own name
    assert names_below(tmp_path / "data") == [".", "a", "b", "b/c", "a/far", "a/far/d"]
    assert names_below(tmp_path / "none") == []


def test_links_that_lead_up_round_or_nowhere_are_not_followed(tmp_path: Path) -> None:
    for name in ("data/a", "beside"):
        (tmp_path / name).mkdir(parents=True)
    targets = {"here": "data", "up": ".", "nowhere": "none", "itself": "data/a/itself"}
    for name, target in targets.items():
        link(tmp_path / "data/a" / name, tmp_path / target)
    assert names_below(tmp_path / "data") == [".", "a"]


def test_hidden_and_macos_folders_are_ignored(tmp_path: Path) -> None:
    for name in ("__MACOSX/ibug", ".cache/ibug", "x"):
        (tmp_path / name).mkdir(parents=True)
    assert names_below(tmp_path) == [".", "x"]
    assert find_place(tmp_path, "ibug") is None


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is closed to this user")
def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path: Path) -> None:
    for name in ("closed/a", "open"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    try:
        assert names_below(tmp_path) == [".", "open"]
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_pictures_behind_a_link_are_found_and_none_twice(tmp_path: Path) -> None:
    for name in ("data/b/1.jpg", "elsewhere/2.jpg"):
        write_image(tmp_path / name, BLANK)
    link(tmp_path / "data/a", tmp_path / "data/b")
    link(tmp_path / "data/far", tmp_path / "elsewhere")
    assert images_below(tmp_path / "data") == [tmp_path / "data/b/1.jpg", tmp_path / "data/far/2.jpg"]


def test_annotated_pictures_behind_a_link_are_a_corpus(tmp_path: Path) -> None:
    write_300w(tmp_path / "elsewhere", ["1.jpg", "2.jpg"])
    link(tmp_path / "data/far", tmp_path / "elsewhere")
    assert [entry.name for entry in list_faces(tmp_path / "data", "pts")] == ["far/1.jpg", "far/2.jpg"]


# the parts of a data set


def test_find_place_prefers_the_first_name_then_the_only_match_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "x/y/part").mkdir(parents=True)
    assert find_place(tmp_path, "data/part", "part") == tmp_path / "x/y/part"
    (tmp_path / "part").mkdir()
    assert find_place(tmp_path, "data/part", "part") == tmp_path / "part"
    (tmp_path / "data/part").mkdir(parents=True)
    assert find_place(tmp_path, "data/part", "part") == tmp_path / "data/part"


def test_a_folder_that_only_wraps_its_namesake_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "part/part").mkdir(parents=True)
    assert find_place(tmp_path, "part") == tmp_path / "part/part"


def test_several_places_are_refused_by_name_but_links_to_one_are_one(tmp_path: Path) -> None:
    (tmp_path / "a/part").mkdir(parents=True)
    link(tmp_path / "b/part", tmp_path / "a/part")
    found = find_place(tmp_path, "part")
    assert found is not None
    assert found.samefile(tmp_path / "a/part")
    (tmp_path / "c/part").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"wanted part once in it, got (a|b)/part, c/part; remove all but one"):
        find_place(tmp_path, "part")


def test_300w_is_read_from_archives_each_unpacked_into_a_folder_of_its_name(tmp_path: Path) -> None:
    tests = ["lfpw/lfpw/testset/1.png", "helen/helen/testset/2.jpg", "ibug/ibug/3.jpg", "new/300W/01_Indoor/4.png"]
    write_300w(tmp_path, [*tests, "afw/afw/5.jpg"])
    assert [sample.path for sample in read_faces(tmp_path, "300w")] == [tmp_path / name for name in tests]
    assert [entry.name for entry in list_300w_train(tmp_path)] == ["afw/5.jpg"]


def test_300w_is_read_from_links(tmp_path: Path) -> None:
    write_300w(tmp_path / "store", ["L/testset/1.png", "I/2.jpg"])
    link(tmp_path / "data/x/lfpw", tmp_path / "store/L")
    link(tmp_path / "data/ibug", tmp_path / "store/I")
    assert [entry.name for entry in list_300w(tmp_path / "data")] == ["lfpw/testset/1.png", "ibug/2.jpg"]


def test_two_copies_of_a_part_of_300w_are_refused_by_name(tmp_path: Path) -> None:
    write_300w(tmp_path, ["new/ibug/1.jpg", "old/ibug/1.jpg"])
    with pytest.raises(SourceError, match=r"wanted ibug once in it, got new/ibug, old/ibug"):
        list_300w(tmp_path)


@pytest.mark.parametrize("wrap", ["WFLW", "WFLW/deep/down"])
def test_wflw_is_found_at_any_depth(tmp_path: Path, wrap: str) -> None:
    write_one_face_of_wflw(tmp_path / wrap)
    assert [sample.path for sample in read_faces(tmp_path, "wflw")] == [tmp_path / wrap / "WFLW_images/a.jpg"]


def move_into_namesake(folder: Path) -> None:
    folder.rename(folder.with_name("moving"))
    folder.mkdir()
    folder.with_name("moving").rename(folder / folder.name)


def move_behind_link(folder: Path) -> None:
    target = folder.parents[1] / "store" / folder.name[-5:]
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    link(folder, target)


@pytest.mark.parametrize("move", [move_into_namesake, move_behind_link])
def test_wflws_two_folders_may_be_nested_or_links(tmp_path: Path, move: Callable[[Path], None]) -> None:
    write_one_face_of_wflw(tmp_path / "data")
    for name in ("WFLW_annotations", "WFLW_images"):
        move(tmp_path / "data" / name)
    (sample,) = read_faces(tmp_path / "data", "wflw")
    assert sample.bgr().shape == BLANK.shape


def test_two_copies_of_wflw_are_refused_by_name(tmp_path: Path) -> None:
    for copy in ("new", "old"):
        write_one_face_of_wflw(tmp_path / copy)
    with pytest.raises(SourceError, match=r"got new/WFLW_annotations/.*_test\.txt, old/WFLW_annotations/.*_test\.txt"):
        list_wflw(tmp_path)
