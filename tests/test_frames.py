"""Frames of videos as training pictures: on drawn videos, whose faces can be read back from the pictures."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import PaintedFace, PaintedSource, read_landmarks
from fakes_benchmarks import lose_a_packet, pts_text, write_300vw_video
from fakes_training import write_faces

from facetrack.pipeline.image_source import VIDEO_SUFFIXES
from facetrack.pipeline.sources import open_source
from facetrack.tracker.errors import ConfigError, SinkError, SourceError
from facetrack.tracker.types import Int64, UInt8
from facetrack.training import frames
from facetrack.training.config import load
from facetrack.training.datasets import read_faces
from facetrack.training.frames import Footage, Selection, cut_out, list_footage, take_frames

COUNT = 12
ALONG = PaintedFace((90, 110), velocity=(240, 30), width=60, spin=0.3)
BACK = PaintedFace((230, 120), velocity=(-200, 0), width=72, angle=-0.1)
NOWHERE = [(0.0, 0.0)] * COUNT


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training videos and one for tests."""
    folder = tmp_path_factory.mktemp("300VW")
    for number, face in (("001", ALONG), ("002", BACK), ("114", BACK)):
        write_300vw_video(folder / number, PaintedSource(COUNT, faces=(face,)), NOWHERE)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file())


def take(folder: Path, out: Path, selection: Selection) -> list[str]:
    footage, left_out = list_footage(folder, selection.layout)
    return [str(taken) for taken in (*left_out, *take_frames(footage, out, selection))]


def test_macos_metadata_files_are_not_videos(tmp_path: Path) -> None:
    for name in ("1.mp4", "._1.mp4", "a/2.mov", "a/._2.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [shot.name for shot in list_footage(tmp_path, "videos")[0]] == ["1.mp4", "a/2.mov"]


def test_video_reached_by_several_links_is_listed_once(tmp_path: Path) -> None:
    (tmp_path / "disk" / "a").mkdir(parents=True)
    (tmp_path / "disk" / "a" / "1.mp4").touch()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "videos" / "again").symlink_to(tmp_path / "disk" / "a")
    assert [shot.name for shot in list_footage(tmp_path / "videos", "videos")[0]] == ["again/1.mp4"]


def test_recognised_video_suffixes_match_those_of_batch(tmp_path: Path) -> None:
    for suffix in VIDEO_SUFFIXES:
        (tmp_path / f"clip{suffix}").touch()
    assert {Path(shot.name).suffix for shot in list_footage(tmp_path, "videos")[0]} == VIDEO_SUFFIXES


def test_every_nth_frame_of_the_training_videos_is_taken(benchmark: Path, tmp_path: Path) -> None:
    told = take(benchmark, tmp_path, Selection(every=5, first=2))
    assert told == ["001: 3 frames, 3 labelled", "002: 3 frames, 3 labelled"]
    stems = [f"{video}/{frame:06d}" for video in ("001", "002") for frame in (2, 7, 12)]
    assert names(tmp_path) == sorted(["frames.json", *(f"{s}{end}" for s in stems for end in (".jpg", ".pts"))])


def test_points_and_pixels_are_cropped_by_the_same_whole_pixels(benchmark: Path, tmp_path: Path) -> None:
    take(benchmark, tmp_path, Selection(every=4))
    moved = 0
    for number, face in (("001", ALONG), ("002", BACK)):
        truth = PaintedSource(COUNT, faces=(face,)).truth
        with open_source(benchmark / number / "vid.avi") as source:
            decoded = [frame.bgr.astype(int) for frame in source]
        for sample in read_faces(tmp_path / number, "pts"):
            index = int(sample.path.stem) - 1
            points, bgr = sample.points[0], sample.bgr()
            offset = truth(index)[0] - points
            corner = np.rint(offset[0]).astype(int)
            assert np.abs(offset - corner).max() < 0.01  # the text has three decimals
            here, right, down = (off_by(decoded[index], bgr, corner + step) for step in ((0, 0), (1, 0), (0, 1)))
            assert here < 2  # a JPEG file more
            assert max(here / right, here / down) < 0.8
            found = read_landmarks(bgr)
            assert found is not None
            assert np.abs(found - points).mean() < 1.5  # of colours that were encoded twice
            moved += bool(corner.any())
    assert moved > 3  # pieces, not whole frames


def off_by(decoded: Int64, bgr: UInt8, corner: Int64) -> float:
    """Mean difference of a piece from its place in a frame, levels."""
    x, y = corner
    there = decoded[y : y + bgr.shape[0], x : x + bgr.shape[1]]
    return float(np.abs(there - bgr[: there.shape[0], : there.shape[1]]).mean())


def test_a_frame_without_annotation_is_taken_whole_and_without_points(tmp_path: Path) -> None:
    write_300vw_video(tmp_path / "300VW/001", PaintedSource(COUNT), NOWHERE)
    (tmp_path / "300VW/001/annot/000006.pts").unlink()
    assert take(tmp_path / "300VW", tmp_path / "out", Selection(every=5)) == ["001: 3 frames, 2 labelled"]
    assert not (tmp_path / "out/001/000006.pts").exists()
    assert cv2.imread(str(tmp_path / "out/001/000006.jpg")).shape == (240, 320, 3)


def test_frames_whose_face_is_outside_the_picture_are_left_out() -> None:
    bgr, face = np.zeros((50, 60, 3), np.uint8), np.array([[10, 10], [20, 20]], np.float32)
    assert cut_out(bgr, face - 40) is None
    assert cut_out(bgr, face + 60) is None
    assert cut_out(bgr, face * np.nan) is None
    part, points = cut_out(bgr, face + np.float32([45, 0])) or pytest.fail("half of it is inside")
    assert part.shape == (31, 15, 3)
    np.testing.assert_array_equal(points, face)


def test_excluded_frames_are_absent(benchmark: Path, tmp_path: Path) -> None:
    footage = [Footage(shot.name, shot.video, frozenset({1, 7})) for shot in list_footage(benchmark, "300vw")[0]]
    list(take_frames(footage, tmp_path, Selection(every=3)))
    assert [path.name for path in sorted((tmp_path / "001").glob("*.jpg"))] == ["000004.jpg", "000010.jpg"]


def test_bad_frames_listed_in_extra_zip_are_excluded(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="needs the eval extra")
    write_300vw_video(tmp_path / "001", PaintedSource(COUNT), NOWHERE)
    content = io.BytesIO()
    scipy_io.savemat(content, {"error": np.array([[6, 9]])})
    with zipfile.ZipFile(tmp_path / "extra.zip", "w") as archive:
        archive.writestr("extra/001.mat", content.getvalue())
    ((shot,), _) = list_footage(tmp_path, "300vw")
    assert shot.excluded == {6, 9}


def test_a_second_call_does_only_what_is_missing(benchmark: Path, tmp_path: Path) -> None:
    selection = Selection(every=6)
    take(benchmark, tmp_path, selection)
    kept = tmp_path / "001/000001.jpg"
    kept.write_bytes(b"touched")
    (tmp_path / "002").rename(tmp_path / "002.part")  # as an interrupted call leaves it
    assert take(benchmark, tmp_path, selection) == ["001: already done", "002: 2 frames, 2 labelled"]
    assert kept.read_bytes() == b"touched"
    assert not (tmp_path / "002.part").exists()


def test_a_folder_keeps_to_one_selection(benchmark: Path, tmp_path: Path) -> None:
    take(benchmark, tmp_path, Selection(every=6))
    with pytest.raises(SinkError, match=r"holds another selection of frames: .*'every': 6.*; choose another folder"):
        take(benchmark, tmp_path, Selection(every=5))
    (tmp_path / "frames.json").write_text("{")
    with pytest.raises(SinkError, match=r"frames\.json: cannot be read"):
        take(benchmark, tmp_path, Selection(every=6))


@pytest.mark.parametrize(("name", "value"), [("layout", "vhs"), ("every", 0), ("first", 0)])
def test_invalid_selection_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match="wanted"):
        Selection(**{name: value})  # type: ignore[arg-type]


def test_videos_layout_gives_pictures_without_points(tmp_path: Path) -> None:
    source = PaintedSource(COUNT)
    write_300vw_video(tmp_path / "in/holiday", source, NOWHERE)  # its annotation is not looked for
    told = take(tmp_path / "in", tmp_path / "out", Selection("videos", every=6, first=4))
    assert told == ["holiday/vid.avi: 2 frames, 0 labelled"]
    assert names(tmp_path / "out") == ["frames.json", *(f"holiday/vid.avi/{i:06d}.jpg" for i in (4, 10))]
    found = read_landmarks(cv2.imread(str(tmp_path / "out/holiday/vid.avi/000010.jpg")))
    assert found is not None
    assert np.abs(found - source.truth(9)[0]).mean() < 1.5  # a level of its colours is half a pixel


def test_a_broken_video_is_named_and_the_others_are_taken(tmp_path: Path) -> None:
    for number in ("001", "002", "003"):
        write_300vw_video(tmp_path / f"in/{number}", PaintedSource(COUNT), NOWHERE)
    (tmp_path / "in/001/vid.avi").write_bytes(b"RIFF and no more")
    (tmp_path / "in/002/annot/000006.pts").write_text(pts_text(np.zeros((5, 2), np.float32)))
    first, second, third = take(tmp_path / "in", tmp_path / "out", Selection(every=5))
    assert first.startswith("left out: ")
    assert "001/vid.avi: it is not a readable video" in first
    assert "000006.pts: wanted 68 points, got 5" in second
    assert third == "003: 3 frames, 3 labelled"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["003", "frames.json"]


@pytest.mark.parametrize(
    ("missing", "told"),
    [("vid.avi", "001: wanted vid.avi or"), ("annot/*.pts", "001/annot: wanted files such as 000001.pts")],
)
def test_incomplete_training_video_is_named_and_the_others_are_taken(tmp_path: Path, missing: str, told: str) -> None:
    for number in ("001", "002"):
        write_300vw_video(tmp_path / f"in/{number}", PaintedSource(COUNT), NOWHERE)
    for file in (tmp_path / "in/001").glob(missing):
        file.unlink()
    first, second = take(tmp_path / "in", tmp_path / "out", Selection(every=5))
    assert first.startswith("left out: ")
    assert told in first
    assert second == "002: 3 frames, 3 labelled"


@pytest.mark.parametrize("cells", ["nan nan", "inf 3"])
def test_video_with_a_non_finite_point_is_named_and_the_others_are_taken(tmp_path: Path, cells: str) -> None:
    for number in ("001", "002"):
        write_300vw_video(tmp_path / f"in/{number}", PaintedSource(COUNT), NOWHERE)
    annotation = tmp_path / "in/001/annot/000006.pts"
    lines = annotation.read_text().splitlines()
    annotation.write_text("\n".join([*lines[:20], cells, *lines[21:]]))
    first, second = take(tmp_path / "in", tmp_path / "out", Selection(every=5))
    assert first.startswith("left out: ")
    assert "001/annot/000006.pts: " in first
    assert second == "002: 3 frames, 3 labelled"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["002", "frames.json"]


def test_annotated_video_that_lost_a_frame_is_left_out(tmp_path: Path) -> None:
    """One frame less, and every annotation behind it is one frame late."""
    write_300vw_video(tmp_path / "in/001", PaintedSource(COUNT), NOWHERE)
    lose_a_packet(tmp_path / "in/001", map(PaintedSource(COUNT).picture, range(COUNT)))
    (told,) = take(tmp_path / "in", tmp_path / "out", Selection(every=5))
    assert "the annotation no longer fits what follows" in told
    assert names(tmp_path / "out") == ["frames.json"]


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no videos found"):
        list_footage(tmp_path, "videos")
    with pytest.raises(SourceError, match="none of the 50 training videos"):
        list_footage(tmp_path, "300vw")


def test_the_command_says_what_it_did_and_fails_with_3_where_something_was_left_out(
    benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: object) -> int:
        monkeypatch.setattr("sys.argv", ["frames", *map(str, words)])
        return frames.main()

    assert command(benchmark, tmp_path / "out", "--every", 6, "--first", 3) == 0
    assert capsys.readouterr().out.splitlines()[0] == "001: 2 frames, 2 labelled"
    assert json.loads((tmp_path / "out/frames.json").read_text()) == {"layout": "300vw", "every": 6, "first": 3}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.mp4").write_bytes(b"x")
    assert command(tmp_path / "other", tmp_path / "b", "--layout", "videos") == 3
    assert "left out: " in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"frames: .*none of the 50"):
        command(tmp_path / "other", tmp_path / "c")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("base", "options"),
    [
        pytest.param(
            "span-compact-68.toml",
            "{ stacks = 2, width = 16, head = 16, face_score = true }",
            marks=pytest.mark.slow,
        ),
        ("gv-mobilenetv3-68-taught.toml", '{ encoder = "mobilenetv3-small", face_score = true }'),
    ],
)
def test_the_shipped_recipe_trains_on_labelled_and_unlabelled_frames(
    benchmark: Path, tmp_path: Path, base: str, options: str
) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from facetrack.training.span import LABELLED, UNLABELLED, SelfConsistency
    from facetrack.training.train import Run

    data = tmp_path / "data"
    for number, place in enumerate(("helen/trainset", "lfpw/trainset", "afw", "lfpw/testset")):
        write_faces(data / place, 2, first=2 * number)
    take(benchmark, data / "frames/300vw", Selection(every=10, first=4))
    take(benchmark, data / "frames/300vw-others", Selection(every=10, first=9))
    schedule = {"steps": 2, "batch": 4, "workers": 0, "bf16": "false", "validate_every": 2, "sizes": [[0.0, 128]]}
    config = load(
        Path("configs/span-300vw.toml"),
        [
            f"base={base}",
            f"network.options={options}",
            'start=""',
            "negatives=[]",
            "negative_share=0.0",
            *(f"schedule.{name}={value}" for name, value in schedule.items()),
        ],
    )
    objective = SelfConsistency(config, data)
    assert {sample.path.name for sample in objective.inner.corpora[-1]} == {"000004.jpg"}
    assert {sample.path.name for sample in objective.unlabelled} == {"000009.jpg"}
    assert {int(objective.item(index, 0.0)[5]) for index in range(12)} == {LABELLED, UNLABELLED}
    Run(config, objective, tmp_path / "run").train()
    log = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert log["step"] == 2
    assert log["consistency"] > 0
    assert np.isfinite(log["val"]["nme"])
