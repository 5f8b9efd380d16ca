"""300VW: its split, its bad frames and its layout."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import PaintedSource
from fakes_benchmarks import write_300vw_video

from facetrack.tracker.errors import SourceError
from facetrack.training.evaluation.video_benchmark import (
    excluded_frames,
    list_test_videos,
    list_training_videos,
    published_split,
    ranges_of,
)

SHORT = PaintedSource(count=2)
STILL = [(0.0, 0.0)] * 2
# The lists as SBR, mmpose and FHR have them, frame by frame, with the lengths of FHR's predictions.
SPECIFIED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "300vw.json").read_text(encoding="utf-8"))
# What the specification says in words of the frames that do not count.
BAD_FRAMES = {
    1: {"401": 120, "402": 109, "508": 99, "518": 208, "540": 6, "547": 30, "548": 139},
    2: {"551": 36, "553": 31},
    3: {"410": 148, "411": 316, "529": 134, "530": 109, "531": 14, "533": 234, "557": 394},
}


def test_the_split_has_the_published_numbers_of_videos_and_no_video_twice() -> None:
    split = published_split()
    assert len(split.train) == 50
    assert {scenario: len(numbers) for scenario, numbers in split.scenarios.items()} == {1: 31, 2: 19, 3: 14}
    every = [*split.train, *(number for numbers in split.scenarios.values() for number in numbers)]
    assert len(set(every)) == len(every) == 114
    assert all(len(number) == 3 for number in every)


def test_split_matches_that_of_other_implementations() -> None:
    split = published_split()
    assert list(split.train) == SPECIFIED["train"]
    assert {scenario: list(numbers) for scenario, numbers in split.scenarios.items()} == {
        scenario: SPECIFIED[f"test{scenario}"] for scenario in (1, 2, 3)
    }


def test_every_excluded_frame_is_the_specified_one_and_within_its_video() -> None:
    split, frames = published_split(), SPECIFIED["frames_fhr"]
    assert {number: sorted(bad) for number, bad in split.excluded.items()} == SPECIFIED["excluded"]
    counts = {
        scenario: {number: len(split.excluded[number]) for number in sorted(numbers) if number in split.excluded}
        for scenario, numbers in split.scenarios.items()
    }
    assert counts == BAD_FRAMES
    assert all(1 <= min(bad) <= max(bad) <= frames[number] for number, bad in split.excluded.items())
    assert split.scored_frames == {
        scenario: sum(frames[number] for number in numbers) - sum(BAD_FRAMES[scenario].values())
        for scenario, numbers in split.scenarios.items()
    }


def test_the_excluded_frames_are_2127_of_16_test_videos() -> None:
    split = published_split()
    assert len(split.excluded) == 16
    assert sum(map(len, split.excluded.values())) == 2127
    assert split.scored_frames == {1: 62846 - 711, 2: 32872 - 67, 3: 27687 - 1349}  # lengths of FHR's predictions
    assert {722, 723, 724, 727} <= split.excluded["401"]
    assert not {721, 725, 726} & split.excluded["401"]


def test_frames_are_told_as_ranges() -> None:
    assert ranges_of([]) == ""
    assert ranges_of(frozenset({9, 3, 8, 7, 11})) == "3 7-9 11"
    assert ranges_of([1, 2]) == "1-2"


def test_the_papers_rows_have_a_value_for_each_scenario() -> None:
    assert published_split().papers["SPAN"] == (4.49, 4.23, 5.87)
    assert all(len(values) == 3 for values in published_split().papers.values())


@pytest.mark.parametrize("home", [".", "300VW_Dataset_2015_12_14"])
def test_videos_are_found_scenario_by_scenario(tmp_path: Path, home: str) -> None:
    for number in ("410", "001", "203", "150", "114"):
        write_300vw_video(tmp_path / home / number, SHORT, STILL)
    videos, _ = list_test_videos(tmp_path)
    assert [(video.number, video.scenario) for video in videos] == [("114", 1), ("150", 1), ("203", 2), ("410", 3)]
    assert videos[0].path == tmp_path / home / "114/vid.avi"
    assert list(videos[0].annotations) == [1, 2]
    assert videos[0].annotations[2].name == "000002.pts"
    assert [video.number for video in list_training_videos(tmp_path)[0]] == ["001"]


def test_names_without_leading_zeros_in_capitals_and_other_files_are_tolerated(tmp_path: Path) -> None:
    write_300vw_video(tmp_path / "114", SHORT, STILL)
    annot = tmp_path / "114/annot"
    (annot / "000001.pts").rename(annot / "1.pts")
    (annot / "000002.pts").rename(annot / "000002.PTS")
    (annot / "Thumbs.db").write_bytes(b"x")
    (annot / "._000002.pts").write_bytes(b"x")
    ((video,), _) = list_test_videos(tmp_path)
    assert [path.name for path in video.annotations.values()] == ["1.pts", "000002.PTS"]


def test_a_folder_without_the_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no such folder; wanted that of 300VW"):
        list_test_videos(tmp_path / "none")
    with pytest.raises(SourceError, match="none of the 64 test videos is in it"):
        list_test_videos(tmp_path)
    with pytest.raises(SourceError, match="none of the 50 training videos is in it"):
        list_training_videos(tmp_path)
    (tmp_path / "114").mkdir()
    with pytest.raises(SourceError, match=r"wanted vid\.avi or"):
        list_test_videos(tmp_path)
    (tmp_path / "114/vid.avi").write_bytes(b"")
    (tmp_path / "114/annot").mkdir()
    with pytest.raises(SourceError, match=r"wanted files such as 000001\.pts"):
        list_test_videos(tmp_path)


def test_bad_frames_of_the_data_set_replace_the_published_list(tmp_path: Path) -> None:
    assert excluded_frames(tmp_path) is published_split().excluded
    with zipfile.ZipFile(tmp_path / "extra.zip", "w") as archive:
        for name, frames in (("extra/114.mat", [3, 5]), ("extra/410_error.mat", [7])):
            archive.writestr(name, bad_frames(frames))
        archive.writestr("ReadMe.txt", "hello")
    assert excluded_frames(tmp_path) == {"114": frozenset({3, 5}), "410": frozenset({7})}
    with zipfile.ZipFile(tmp_path / "extra.zip") as archive:
        archive.extract("extra/114.mat", tmp_path)
    (tmp_path / "extra.zip").unlink()
    assert excluded_frames(tmp_path) == {"114": frozenset({3, 5})}


def bad_frames(frames: list[float]) -> bytes:
    """A file of extra.zip."""
    content = io.BytesIO()
    pytest.importorskip("scipy.io", reason="needs the eval extra").savemat(content, {"error": np.array([frames])})
    return content.getvalue()


def test_bad_frames_are_found_at_any_depth_and_what_macos_adds_is_passed_over(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "extra.zip", "w") as archive:
        archive.writestr("extra/401.mat", bad_frames([3, 5]))
        archive.writestr("__MACOSX/extra/._401.mat", b"\0\5\x16\7Mac")
    assert excluded_frames(tmp_path) == {"401": frozenset({3, 5})}
    with zipfile.ZipFile(tmp_path / "extra.zip") as archive:
        archive.extractall(tmp_path / "extra")
    (tmp_path / "extra.zip").unlink()
    (tmp_path / "extra/extra/._402.mat").write_bytes(b"\0\5\x16\7Mac")
    assert excluded_frames(tmp_path) == {"401": frozenset({3, 5})}


@pytest.mark.parametrize("packed", [False, True])
def test_extra_without_bad_frames_is_refused(tmp_path: Path, *, packed: bool) -> None:
    """The published 2,127 frames would count."""
    if packed:
        with zipfile.ZipFile(tmp_path / "extra.zip", "w") as archive:
            archive.writestr("extra/readme.txt", "hello")
    else:
        (tmp_path / "extra").mkdir()
        (tmp_path / "extra/readme.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(SourceError, match=r"extra(\.zip)?: wanted files such as 401\.mat in it; .* or remove it"):
        excluded_frames(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (29, 1),  # longer than it is: EOFError
        (37, 0),  # what is compressed: zlib.error
        (-67, 255),  # its flags: NotImplementedError
        (-67, 1),  # RuntimeError: it needs a password
    ],
)
def test_a_damaged_extra_zip_is_named(tmp_path: Path, place: int, value: int) -> None:
    with zipfile.ZipFile(tmp_path / "extra.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("401.mat", bad_frames([3, 5]))
    content = bytearray((tmp_path / "extra.zip").read_bytes())
    content[place] = value
    (tmp_path / "extra.zip").write_bytes(content)
    with pytest.raises(SourceError, match=r"extra\.zip: cannot be read: .+; unpack the data set again, or remove it"):
        excluded_frames(tmp_path)


@pytest.mark.parametrize("number", [np.nan, np.inf, -1e300])
def test_a_bad_frame_that_is_no_number_of_a_frame_is_refused(tmp_path: Path, number: float) -> None:
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra/401.mat").write_bytes(bad_frames([3, number]))
    with pytest.raises(SourceError, match=r"401\.mat: error: wanted numbers of frames, got (nan|inf|-1e\+300)$"):
        excluded_frames(tmp_path)


def test_extra_zip_with_invalid_content_is_named(tmp_path: Path) -> None:
    (tmp_path / "extra.zip").write_bytes(b"PK but not quite")
    with pytest.raises(SourceError, match=r"extra\.zip: cannot be read"):
        excluded_frames(tmp_path)
    with zipfile.ZipFile(tmp_path / "extra.zip", "w") as archive:
        archive.writestr("extra/error.mat", b"x")
    with pytest.raises(SourceError, match=r"wanted \.mat files named after videos in it, got extra/error\.mat"):
        excluded_frames(tmp_path)
    with zipfile.ZipFile(tmp_path / "extra.zip", "w") as archive:
        archive.writestr("extra/114.mat", b"x" * 200)
    with pytest.raises(SourceError, match=r"114\.mat"):
        excluded_frames(tmp_path)


def test_long_name_in_extra_zip_is_shortened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "extra.zip", "w") as archive:
        archive.writestr("x" * 999 + ".mat", b"")
    with pytest.raises(SourceError, match=r"in it, got x{100}\.\.\.$"):
        excluded_frames(tmp_path)
    with zipfile.ZipFile(tmp_path / "extra.zip", "w") as archive:
        archive.writestr("x" * 999 + "/401.mat", b"")
    content = (tmp_path / "extra.zip").read_bytes()
    other = content.replace(b"x" * 999, b"y" + b"x" * 998, 1)  # the two places of its name differ
    (tmp_path / "extra.zip").write_bytes(other)
    with pytest.raises(SourceError, match=r"extra\.zip: cannot be read: File name .*x\.\.\.; unpack"):
        excluded_frames(tmp_path)
