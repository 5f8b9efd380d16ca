"""Batches: every input gets its own whole answer, or says why not, whatever happens to the others."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from fakes import (
    PaintedFace,
    PaintedSource,
    VideoRecipe,
    feeding,
    make_face,
    make_result,
    read_csv,
    serving,
    two_in_one,
    write_video,
)
from fakes_pipeline import PaintedBackend, PaintedDetector, PaintedEngines, paint_pictures, paint_video, painted_card

from facetrack.engines.card import Weights
from facetrack.pipeline.batch import Failure, open_and_track_all, track_all
from facetrack.pipeline.csv_sink import CsvColumns, CsvSink, TableOptions
from facetrack.pipeline.live import LiveOutputs
from facetrack.pipeline.open import Choices
from facetrack.pipeline.pictures import track_independently
from facetrack.pipeline.progress import Ending, LineProgress, Task
from facetrack.pipeline.run import Pipeline
from facetrack.pipeline.sidecar import describe_models, identify_input, where
from facetrack.pipeline.source import STDIN, Decoder
from facetrack.pipeline.sources import open_source
from facetrack.pipeline.tasks import Existing, Outputs, tasks_for
from facetrack.tracker.errors import ConfigError, SinkError
from facetrack.tracker.intrinsics import Intrinsics
from facetrack.tracker.smooth import Smoothing
from facetrack.tracker.types import Frame, Result

MOVING = PaintedSource(count=24, faces=(PaintedFace(velocity=(30.0, 0.0)),))
RAW = TableOptions(raw=True)
NEAR_PX = 0.5  # one level of the painted chart is half a pixel
LOSSLESS = VideoRecipe(codec="ffv1", pix_fmt="bgr0", options={})


@dataclass
class Notes:
    """A reporter that remembers."""

    frames: list[int | None] = field(default_factory=list)
    advances: int = 0
    lines: list[str] = field(default_factory=list)
    endings: dict[str, Ending] = field(default_factory=dict)

    def began(self, task: Task, frames: int | None) -> None:
        assert task.name
        self.frames.append(frames)

    def advanced(self, task: Task, frames: int = 1) -> None:
        assert task.name
        self.advances += frames

    def ended(self, task: Task, line: str, how: Ending = "done") -> None:
        self.lines.append(f"{task.name}: {line}")
        self.endings[task.name] = how


def track(
    inputs: Sequence[Path | str],
    outputs: Outputs,
    *,
    engines: PaintedEngines | None = None,
    choices: Choices | None = None,
    notes: Notes | None = None,
    decoder: Decoder = "cpu",
    frame_rate: float = 0,
) -> list[Failure]:
    engines, choices = engines or PaintedEngines(), choices or Choices()
    with engines(choices) as opened:
        tasks = tasks_for([str(spec) for spec in inputs], outputs, decoder=decoder, frame_rate=frame_rate)
        return track_all(tasks, outputs, opened, notes or Notes())


def points(row: dict[str, str]) -> np.ndarray[Any, Any]:
    return np.array([[float(row[f"x_{i}"]), float(row[f"y_{i}"])] for i in range(68)])


def sidecar(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "moving.mkv"
    return write_video(path, (MOVING.picture(index) for index in range(MOVING.count)), LOSSLESS)


@pytest.fixture(scope="module")
def cut_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = VideoRecipe(mux={"movflags": "faststart"}, options={"crf": "10", "g": "5"})
    source = PaintedSource(count=60, faces=(PaintedFace(velocity=(60.0, 0.0)),))
    path = tmp_path_factory.mktemp("videos") / "cut.mp4"
    whole = write_video(path, (source.picture(i) for i in range(source.count)), recipe)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    return whole


# what is written


def test_every_frame_of_a_video_has_its_face_where_it_was_painted(video: Path, tmp_path: Path) -> None:
    assert track([video], Outputs(tmp_path), choices=Choices(smooth="none")) == []
    table = read_csv(tmp_path / "moving.csv")
    assert [row["frame"] for row in table] == [str(1 + i) for i in range(MOVING.count)]
    assert {row["face_id"] for row in table} == {"0"}
    for index, row in enumerate(table):
        assert np.abs(points(row) - MOVING.truth(index)[0]).max() < NEAR_PX


def test_the_same_input_and_settings_give_the_same_bytes(video: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        track([video], Outputs(tmp_path / name, columns=TableOptions(raw=True, landmark_confidence=True)))
    assert (tmp_path / "one/moving.csv").read_bytes() == (tmp_path / "two/moving.csv").read_bytes()


def test_sidecar_records_settings_models_counts_and_versions(video: Path, tmp_path: Path) -> None:
    track([video], Outputs(tmp_path), choices=Choices(detect_every=5))
    content = sidecar(tmp_path / "moving.json")
    assert content["schema"] == 1
    assert content["complete"] is True
    assert content["error"] is None
    assert content["settings"]["detect_every"] == 5
    assert content["models"][0]["sha256"] == {"net": "0" * 64}
    assert content["counts"]["frames"] == content["counts"]["rows"] == MOVING.count
    assert set(content["stages_ms"]) == {"capture", "detect", "align", "smooth"}
    assert content["machine"]["packages"]["numpy"] == np.__version__


def test_sidecar_records_start_size_and_rate_of_the_recording(tmp_path: Path) -> None:
    """Of a recording whose sound begins 0.852 s before its pictures."""
    count = 5
    recipe = VideoRecipe("ffv1", "bgr0", options={}, times_s=[0.852 + 0.04 * i for i in range(count)])
    source = PaintedSource(count=count, rate=Fraction(25))
    path = write_video(tmp_path / "late.mkv", map(source.picture, range(count)), replace(recipe, rate=Fraction(25)))
    for name in ("one", "two"):
        assert track([path], Outputs(tmp_path / name)) == []
    content, again = (sidecar(tmp_path / name / "late.json") for name in ("one", "two"))
    assert read_csv(tmp_path / "one/late.csv")[0]["timestamp"] == "0.000000"
    assert content["start_s"] == pytest.approx(0.852, abs=1e-6)
    assert (content["size"], content["rate"]) == ([320, 240], 25.0)
    assert [content[key] for key in ("start_s", "size", "rate")] == [again[key] for key in ("start_s", "size", "rate")]
    notes = Notes()
    assert track([path], Outputs(tmp_path / "one", existing="resume"), notes=notes) == []
    assert notes.lines[0].endswith("already finished")


def test_sidecar_of_pictures_has_no_start_size_or_rate(tmp_path: Path) -> None:
    paint_pictures(tmp_path / "shots", PaintedSource(count=1), ["1.png"])
    track([tmp_path / "shots"], Outputs(tmp_path / "out"))
    content = sidecar(tmp_path / "out/shots.json")
    assert [content[key] for key in ("start_s", "size", "rate")] == [None, None, None]


def test_sidecar_records_the_backend(video: Path, tmp_path: Path) -> None:
    track([video], Outputs(tmp_path))
    assert sidecar(tmp_path / "moving.json")["backend"] == PaintedBackend().description


@pytest.mark.parametrize(
    ("backend", "byte_products", "ran"), [("auto", True, 1), ("onnx", False, 0), ("torch", True, 0)]
)
def test_the_sidecar_names_the_files_that_ran(
    backend: str, byte_products: bool, ran: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facetrack.engines.backend.has_int8_dot_product", lambda: byte_products)
    cpu = Weights(Path("weights/a-int8.onnx"), "1" * 64, "int8")
    card = replace(painted_card(), weights={"net": Weights(Path("weights/a.onnx"), "0" * 64, "fp32", cpu)})
    with PaintedEngines()(Choices(backend=backend)) as engines:
        (model,) = describe_models(replace(engines, cards=(card,)))
    assert model["file"] == {"net": ("a.onnx", "a-int8.onnx")[ran]}
    assert model["sha256"] == {"net": str(ran) * 64}
    assert model["precision"] == {"net": ("fp32", "int8")[ran]}


def test_models_that_run_report_the_precision_of_the_backend() -> None:
    with PaintedEngines(PaintedBackend(precision="fp16"))(Choices()) as engines:
        (model,) = describe_models(engines)
    assert model["precision"] == {"net": "fp16"}


def test_the_annotated_video_is_written_on_request(video: Path, tmp_path: Path) -> None:
    track([video], Outputs(tmp_path, video=True))
    assert {file.name for file in tmp_path.iterdir()} == {"moving.csv", "moving.json", "moving.mp4"}


def test_progress_counts_the_frames(video: Path, tmp_path: Path) -> None:
    notes = Notes()
    track([video], Outputs(tmp_path), notes=notes)
    assert notes.frames == [MOVING.count]
    assert notes.advances == MOVING.count
    assert "24 frames, 24 with a face" in notes.lines[0]


@pytest.mark.parametrize("smooth", ["kalman", "rts"])
def test_video_that_changes_size_midway_is_tracked_to_its_end_with_every_output(
    smooth: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recording = two_in_one(tmp_path / "turned.ts", (240, 320), (320, 240), PaintedSource(count=12))
    columns = TableOptions(intrinsics=Intrinsics((240, 320), 300.0, 300.0, 160.0, 120.0))
    outputs = Outputs(tmp_path / "out", video=True, columns=columns)
    assert track([recording], outputs, choices=Choices(smooth=smooth)) == []
    assert "turned.ts: problems in 1 place, first: frame 7 (0.200 s): its size changes to 240x320" in caplog.text
    assert len({row["frame"] for row in read_csv(tmp_path / "out/turned.csv")}) == 12
    with open_source(tmp_path / "out/turned.mp4") as source:
        assert len(list(source)) == 12


# pictures


def test_pictures_have_an_input_column_and_are_tracked_independently(tmp_path: Path) -> None:
    source = PaintedSource(count=3, faces=(PaintedFace(velocity=(600.0, 0.0)),))
    paint_pictures(tmp_path / "shots", source, ["c.png", "a.png", "b.png"])
    assert track([tmp_path / "shots"], Outputs(tmp_path / "out")) == []
    table = read_csv(tmp_path / "out/shots.csv")
    assert [(row["input"], row["face_id"], row["state"]) for row in table] == [
        ("a.png", "0", "new"),
        ("b.png", "0", "new"),
        ("c.png", "0", "new"),
    ]
    for row, index in zip(table, (1, 2, 0), strict=True):
        assert np.abs(points(row) - source.truth(index)[0]).max() < NEAR_PX


@pytest.mark.parametrize("smooth", ["kalman", "rts"])
def test_folder_of_frames_gives_the_same_table_as_its_video(smooth: Smoothing, tmp_path: Path) -> None:
    source = PaintedSource(count=12, faces=(PaintedFace(velocity=(30.0, 0.0)),))
    folder = paint_pictures(tmp_path / "frames", source, [f"{i}.png" for i in range(12)])
    lossless = VideoRecipe(codec="ffv1", pix_fmt="bgr0", rate=Fraction(25), options={})
    clip = write_video(tmp_path / "clip.mkv", (source.picture(i) for i in range(12)), lossless)
    choices = Choices(smooth=smooth)
    assert track([folder, clip], Outputs(tmp_path / "out", video=True), choices=choices, frame_rate=25) == []
    assert (tmp_path / "out/frames.csv").read_bytes() == (tmp_path / "out/clip.csv").read_bytes()
    told = sidecar(tmp_path / "out/frames.json")
    assert (told["size"], told["rate"], told["settings"]["frame_rate"]) == (
        sidecar(tmp_path / "out/clip.json")["size"],
        25,
        25,
    )
    assert sidecar(tmp_path / "out/clip.json")["settings"]["frame_rate"] == 0
    with open_source(tmp_path / "out/frames.mp4") as annotated:
        assert (annotated.rate, len(list(annotated))) == (25, 12)


def test_unreadable_frame_in_a_folder_is_reported_and_its_number_skipped(tmp_path: Path) -> None:
    folder = paint_pictures(tmp_path / "frames", PaintedSource(count=3), ["1.png", "2.png", "3.png"])
    (folder / "2.png").write_text("no picture", encoding="utf-8")
    (failure,) = track([folder], Outputs(tmp_path / "out"), frame_rate=10)
    assert failure.what.endswith("frames: 2.png")
    table = read_csv(tmp_path / "out/frames.csv")
    assert [(row["frame"], row["timestamp"], row["face_id"]) for row in table] == [
        ("1", "0.000000", "0"),
        ("3", "0.200000", "0"),
    ]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["shots", "shots/1.png"], r"--frame-rate: .*1\.png is a single picture; name the folder"),
        (["clip.mp4"], "--frame-rate applies only to folders and globs of pictures, and none was given"),
    ],
)
def test_frame_rate_raises_for_a_single_picture_or_videos_alone(names: list[str], told: str, tmp_path: Path) -> None:
    paint_pictures(tmp_path / "shots", PaintedSource(count=1), ["1.png"])
    with pytest.raises(ConfigError, match=told):
        tasks_for([str(tmp_path / name) for name in names], Outputs(tmp_path / "out"), frame_rate=25)


def test_every_picture_is_searched(tmp_path: Path) -> None:
    engines = PaintedEngines()
    paint_pictures(tmp_path / "shots", PaintedSource(count=3), ["1.png", "2.png", "3.png"])
    track([tmp_path / "shots"], Outputs(tmp_path / "out"), engines=engines)
    assert engines.detector.searched == 3


def test_unreadable_picture_is_reported_and_the_others_are_tracked(tmp_path: Path) -> None:
    folder = paint_pictures(tmp_path / "shots", PaintedSource(count=2), ["1.png", "3.png"])
    (folder / "2.png").write_text("no picture", encoding="utf-8")
    (failure,) = track([folder], Outputs(tmp_path / "out"))
    assert failure.what.endswith("shots: 2.png")
    assert len(read_csv(tmp_path / "out/shots.csv")) == 2
    assert sidecar(tmp_path / "out/shots.json")["counts"]["failed"] == 1


def test_picture_on_which_a_stage_raises_is_reported_and_the_others_are_tracked() -> None:
    class Fragile:
        def serial(self, frames: Iterable[Frame]) -> Iterator[Result]:
            for frame in frames:
                if frame.index == 1:
                    raise ValueError("this one is odd")
                yield Result(frame, (), {"detect": 0.1})

    failed: list[tuple[str, str]] = []
    pictures = (Frame(i, float(i), 0.0, np.zeros((4, 4, 3), np.uint8), f"{i}.png") for i in range(3))
    results = list(track_independently(cast(Pipeline, Fragile()), pictures, failed))
    assert [result.frame.name for result in results] == ["0.png", "2.png"]
    assert all(set(result.spans_s) == {"capture", "detect"} for result in results)
    assert failed == [("1.png", "ValueError: this one is odd")]


def test_sidecar_of_pictures_has_the_time_of_every_stage(tmp_path: Path) -> None:
    track([paint_pictures(tmp_path / "shots", PaintedSource(count=1), ["1.png"])], Outputs(tmp_path / "out"))
    stages = sidecar(tmp_path / "out/shots.json")["stages_ms"]
    assert set(stages) == {"capture", "detect", "align", "smooth"}
    assert all(stage["max"] > 0 for stage in stages.values())


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_picture_with_an_undecodable_name_is_tracked(tmp_path: Path) -> None:
    folder = paint_pictures(tmp_path / "shots", PaintedSource(count=1), ["1.png"])
    (folder / "1.png").rename(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))
    assert track([folder], Outputs(tmp_path / "out")) == []
    assert [row["input"] for row in read_csv(tmp_path / "out/shots.csv")] == ["\ufffd.png"]


# what goes wrong


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_truncated_video_with_an_undecodable_name_gets_a_sidecar(cut_video: Path, tmp_path: Path) -> None:
    named = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4"))
    shutil.copy(cut_video, named)
    assert len(track([named], Outputs(tmp_path / "out"))) == 1
    assert sorted(file.suffix for file in (tmp_path / "out").iterdir()) == [".csv", ".json"]
    (written,) = (tmp_path / "out").glob("*.json")
    assert "\ufffd.mp4: breaks off after frame" in sidecar(written)["error"]


def test_one_broken_file_does_not_stop_the_others(video: Path, tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.touch()
    text.write_text("Dear diary\n", encoding="utf-8")
    out = tmp_path / "out"
    failures = track([empty, tmp_path / "missing.mp4", video, text], Outputs(out))
    assert [Path(failure.what).name for failure in failures] == ["empty.mp4", "missing.mp4", "text.mp4"]
    assert all(len(failure.reason.splitlines()) == 1 for failure in failures)
    assert {file.name for file in out.iterdir()} == {"moving.csv", "moving.json"}


def test_truncated_video_keeps_the_rows_before_the_break(cut_video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (failure,) = track([cut_video], Outputs(out))
    content = sidecar(out / "cut.json")
    table = read_csv(out / "cut.csv")
    assert "breaks off after frame" in failure.reason
    assert content["complete"] is False
    assert content["error"] == failure.reason
    assert 10 < len(table) == content["counts"]["frames"] < 60


def test_engine_failure_leaves_the_complete_rows_in_a_part_file(video: Path, tmp_path: Path) -> None:
    engines = PaintedEngines(PaintedBackend(failing={12: MemoryError("no room")}))
    (failure,) = track([video], Outputs(tmp_path), engines=engines)
    assert "MemoryError: no room" in failure.reason
    assert "in stage align at frame" in failure.reason
    assert [file.name for file in tmp_path.iterdir()] == ["moving.csv.part"]
    table = read_csv(tmp_path / "moving.csv.part")
    assert table
    assert None not in table[-1].values()


def test_video_that_fails_at_its_first_frame_leaves_no_files(video: Path, tmp_path: Path) -> None:
    engines = PaintedEngines(PaintedBackend(failing={0: MemoryError("no room")}))
    track([video], Outputs(tmp_path, video=True), engines=engines)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_the_complete_rows_and_stops_the_batch(video: Path, tmp_path: Path) -> None:
    engines, notes = PaintedEngines(PaintedBackend(failing={12: KeyboardInterrupt()})), Notes()
    other = paint_video(tmp_path / "other.mp4", PaintedSource(count=5))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        track([video, other], Outputs(out), engines=engines, notes=notes)
    assert [file.name for file in out.iterdir()] == ["moving.csv.part"]
    text = (out / "moving.csv.part").read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert len(text.splitlines()) > 2
    assert notes.lines == [f"moving: interrupted; the rows so far are in {out / 'moving.csv.part'}"]
    assert notes.endings == {"moving": "interrupted"}


@pytest.mark.parametrize("video_too", [False, True])
def test_interruption_before_the_first_row_keeps_and_names_the_part_file_of_an_earlier_run(
    video: Path, tmp_path: Path, video_too: bool
) -> None:
    notes, outputs = Notes(), Outputs(tmp_path, video=video_too, existing="resume")
    for earlier in (False, True):
        if earlier:
            (tmp_path / "moving.csv.part").write_text("rows", encoding="utf-8")
            (tmp_path / "moving.mp4.part").write_text("frames", encoding="utf-8")
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        with pytest.raises(KeyboardInterrupt):
            track(
                [video], outputs, engines=PaintedEngines(PaintedBackend(failing={0: KeyboardInterrupt()})), notes=notes
            )
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert notes.lines == [
        "moving: interrupted",
        f"moving: interrupted; {tmp_path / 'moving.csv.part'} is from an earlier run",
    ]


def test_resume_removes_the_part_files_of_the_interrupted_run_and_no_others(video: Path, tmp_path: Path) -> None:
    engines = PaintedEngines(PaintedBackend(failing={12: KeyboardInterrupt()}))
    with pytest.raises(KeyboardInterrupt):
        track([video], Outputs(tmp_path, video=True), engines=engines)
    assert {file.name for file in tmp_path.iterdir()} == {"moving.csv.part", "moving.mp4.part"}
    (tmp_path / "another.mp4.part").touch()  # a download, perhaps
    assert track([video], Outputs(tmp_path, existing="resume")) == []
    assert {file.name for file in tmp_path.iterdir()} == {"moving.csv", "moving.json", "another.mp4.part"}


def test_foreign_part_file_of_a_video_is_left_alone(video: Path, tmp_path: Path) -> None:
    (tmp_path / "moving.mp4.part").write_text("half of it", encoding="utf-8")
    assert track([video], Outputs(tmp_path)) == []
    assert (tmp_path / "moving.mp4.part").read_text(encoding="utf-8") == "half of it"


def test_output_folder_that_cannot_be_created_raises(video: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match=r"out: cannot be created: Not a directory; choose another folder"):
        track([video], Outputs(tmp_path / "file" / "out"))


def test_progress_lines_name_a_failed_input_once_and_say_1_frame(tmp_path: Path) -> None:
    one = paint_video(tmp_path / "one.mp4", PaintedSource(count=1))
    stream, outputs = io.StringIO(), Outputs(tmp_path / "out")
    with PaintedEngines()(Choices()) as opened:
        tasks = tasks_for([str(tmp_path / "no.mp4"), str(one)], outputs)
        track_all(tasks, outputs, opened, LineProgress(stream))
    failed, done = stream.getvalue().splitlines()
    assert failed.startswith(f"{tmp_path / 'no.mp4'}: failed: not found; wanted ")
    assert done.startswith(f"{one}: 1 frame, 1 with a face, ")
    assert " 0 frames/s" not in done


# before the start


def test_picture_faster_than_a_clock_tick_has_a_finite_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock of Windows ticks 64 times a second."""
    paint_pictures(tmp_path / "shots", PaintedSource(count=1), ["1.png"])
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    notes = Notes()
    track([tmp_path / "shots"], Outputs(tmp_path / "out"), notes=notes)
    rate = notes.lines[0].split(", ")[2].split()[0]
    assert 0 < float(rate) < 100_000
    assert sidecar(tmp_path / "out/shots.json")["wall_s"] > 0


def test_two_inputs_with_one_output_name_raise(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a/clip\.mp4 and b/CLIP\.mov would both be written to"):
        tasks_for(["a/clip.mp4", "b/CLIP.mov"], Outputs(tmp_path))


def test_keep_folders_is_suggested_only_where_it_resolves_the_collision(tmp_path: Path) -> None:
    for place in ("s1/clip.mp4", "s1/clip.mov", "s2/clip.mp4"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    outputs, one_folder = Outputs(tmp_path / "out"), str(tmp_path / "s1/clip.*")
    for keep_folders in (False, True):
        with pytest.raises(ConfigError, match=r"rename one of them, or process one in a batch with another --out$"):
            tasks_for([one_folder], outputs, keep_folders=keep_folders)
    with pytest.raises(ConfigError, match=r"or keep the subfolders of the matches of a glob \(--keep-folders\)$"):
        tasks_for([str(tmp_path / "*/clip.mp4")], outputs)
    assert len(tasks_for([str(tmp_path / "*/clip.mp4")], outputs, keep_folders=True)) == 2


def test_glob_matches_keep_their_folders_with_keep_folders(video: Path, tmp_path: Path) -> None:
    for place in ("in/s1/v.mkv", "in/s2/deep/v.mkv"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(video.read_bytes())
    spec, outputs = str(tmp_path / "in/**/*.mkv"), Outputs(tmp_path / "out", video=True)
    with pytest.raises(ConfigError, match="--keep-folders"):
        tasks_for([spec], outputs)
    tasks = tasks_for([spec, str(tmp_path / "in/s?/*.mkv")], outputs, keep_folders=True)
    assert [task.name for task in tasks] == ["s1/v", "s2/deep/v"]
    with PaintedEngines()(Choices()) as opened:
        assert track_all(tasks, outputs, opened, Notes()) == []
    written = {file.relative_to(outputs.folder).as_posix() for file in outputs.folder.rglob("*") if file.is_file()}
    assert written == {f"{name}.{kind}" for name in ("s1/v", "s2/deep/v") for kind in ("csv", "json", "mp4")}


def test_symlinked_folders_do_not_duplicate_recordings(tmp_path: Path) -> None:
    for place in ("in/s1/v.mkv", "in/s2/v.mkv"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
    (tmp_path / "in/latest").symlink_to(tmp_path / "in/s2", target_is_directory=True)
    (tmp_path / "in/s2/up").symlink_to(tmp_path / "in", target_is_directory=True)
    tasks = tasks_for([str(tmp_path / "in/**/*.mkv")], Outputs(tmp_path / "out"), keep_folders=True)
    assert [task.name for task in tasks] == ["s1/v", "s2/v"]


def test_an_input_that_is_named_in_several_ways_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.mp4").touch()
    Path("shots").mkdir()
    named = ["a.mp4", "./a.mp4", str(tmp_path / "a.mp4"), "a.*4", "shots", "./shots/"]
    assert tasks_for(named, Outputs(tmp_path)) == [Task("a.mp4", "a"), Task("shots", "shots")]
    assert tasks_for(named[::-1], Outputs(tmp_path)) == [Task("./shots/", "shots"), Task("a.mp4", "a")]


def test_annotated_video_that_would_overwrite_its_input_raises(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(ConfigError, match="overwritten by its own output"):
        tasks_for([f"{tmp_path}/clip.mp4"], Outputs(tmp_path, video=True, existing="overwrite"))


def test_annotated_video_that_is_its_input_on_a_case_insensitive_disk_raises(tmp_path: Path) -> None:
    """Cameras write GX01.MP4. A link stands in for Windows and macOS."""
    (tmp_path / "GX01.MP4").touch()
    os.link(tmp_path / "GX01.MP4", tmp_path / "GX01.mp4")
    with pytest.raises(ConfigError, match=r"GX01\.MP4: would be overwritten by its own output"):
        tasks_for([f"{tmp_path}/GX01.MP4"], Outputs(tmp_path, video=True, existing="overwrite"))


def test_tables_of_urls_and_whole_drives_get_portable_names(tmp_path: Path) -> None:
    named = {
        "http://host/get?v=12": "get_v=12",
        "tcp://host:1234": "host_1234",
        "http://host/a:b|c.mp4?x=1": "a_b_c",
        "/*.none": "input",  # on Windows E:\\*.jpg, of a camera's card
    }
    for spec, name in named.items():
        assert [task.name for task in tasks_for([spec], Outputs(tmp_path))] == [name]


def test_existing_results_raise_before_any_work(video: Path, tmp_path: Path) -> None:
    (tmp_path / "moving.csv").touch()
    with pytest.raises(SinkError, match=r"moving\.csv: exists already; add --overwrite or --resume"):
        tasks_for([str(video)], Outputs(tmp_path))
    (tmp_path / "moving.json").touch()
    with pytest.raises(SinkError, match=r"moving\.csv and 1 other: exist already; add"):
        tasks_for([str(video)], Outputs(tmp_path))
    (tmp_path / "moving.mp4").touch()
    with pytest.raises(SinkError, match=r"moving\.csv and 2 others: exist already; add"):
        tasks_for([str(video)], Outputs(tmp_path, video=True))


def test_camera_number_raises_but_a_folder_of_that_name_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="facetrack live --camera 001"):
        tasks_for(["001"], Outputs(tmp_path))
    Path("001").mkdir()
    assert tasks_for(["001"], Outputs(tmp_path)) == [Task("001", "001")]


def test_glob_gives_a_task_per_video_but_a_single_task_for_all_pictures(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mp4", "1.png", "2.png"):
        (tmp_path / name).touch()
    names = [task.name for task in tasks_for([f"{tmp_path}/*.mp4", f"{tmp_path}/*.png"], Outputs(tmp_path / "out"))]
    assert names == ["a", "b", tmp_path.name]


# resuming


def test_resume_skips_what_is_finished(video: Path, tmp_path: Path) -> None:
    engines, notes = PaintedEngines(), Notes()
    track([video], Outputs(tmp_path), engines=engines)
    calls = engines.backend.calls
    assert track([video], Outputs(tmp_path, existing="resume"), engines=engines, notes=notes) == []
    assert engines.backend.calls == calls
    assert notes.lines == ["moving: already finished"]


UNREADABLE = "clip.json cannot be read"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda told: told["settings"].pop("smooth"), "settings differ: smooth"),  # as of an earlier version
        (lambda told: told["settings"].update(sharpen=True), "settings differ: sharpen"),  # or of a later one
        (lambda told: told["models"][0]["sha256"].update(net="1" * 64), "models differ"),
        (lambda told: told.pop("libraries"), "libraries differ"),
        (lambda told: told.pop("table_bytes"), UNREADABLE),
        (lambda told: told.pop("failed"), UNREADABLE),
        (lambda told: told.update(failed=1), UNREADABLE),
        (lambda told: told.update(failed=["1.png"]), UNREADABLE),
        (lambda told: told.update(failed=[{"place": "1.png"}]), UNREADABLE),
        (lambda told: told.update(failed=[{"place": "1.png", "reason": None}]), UNREADABLE),
    ],
)
def test_resume_redoes_an_input_whose_sidecar_differs_or_is_damaged_and_says_why(
    edit: Callable[[dict[str, Any]], object], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recording, out = paint_video(tmp_path / "clip.mp4", PaintedSource(count=5)), tmp_path / "out"
    track([recording], Outputs(out))
    content = sidecar(out / "clip.json")
    edit(content)
    (out / "clip.json").write_text(json.dumps(content), encoding="utf-8")
    assert not finished([recording], out)
    assert f"processed again: {reason}" in caplog.text
    assert sidecar(out / "clip.json")["complete"] is True


@pytest.mark.parametrize("text", ["{", "[" * 500_000, None])
def test_resume_redoes_an_input_with_a_missing_or_unreadable_sidecar(
    text: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recording, out = paint_video(tmp_path / "clip.mp4", PaintedSource(count=5)), tmp_path / "out"
    track([recording], Outputs(out))
    if text is None:
        (out / "clip.json").unlink()
    else:
        (out / "clip.json").write_text(text, encoding="utf-8")
    assert not finished([recording], out)
    assert f"processed again: {'clip.json is missing' if text is None else UNREADABLE}" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_resume_does_not_block_on_a_named_pipe_in_place_of_the_sidecar(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recording, out = paint_video(tmp_path / "clip.mp4", PaintedSource(count=5)), tmp_path / "out"
    track([recording], Outputs(out))
    (out / "clip.json").unlink()
    os.mkfifo(out / "clip.json")
    assert not finished([recording], out)
    assert f"processed again: {UNREADABLE}" in caplog.text


def test_resume_redoes_an_input_if_the_settings_or_the_file_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recording, out = paint_video(tmp_path / "clip.mp4", PaintedSource(count=5)), tmp_path / "out"
    track([recording], Outputs(out))
    outputs = Outputs(out, columns=RAW, existing="resume")
    assert track([recording], outputs, choices=Choices(detect_every=3)) == []
    os.utime(recording, (1, 1))
    assert track([recording], outputs, choices=Choices(detect_every=3)) == []
    told = [message.partition("processed again: ")[2] for message in caplog.messages]
    assert told == ["settings differ: detect_every, raw", "input differs"]


@pytest.mark.parametrize(
    ("runtime", "opencv", "told"),
    [
        ("TensorRT 10.3.0 fp16, NVIDIA H200", "4.10.0", ""),  # another GPU, as another processor
        ("TensorRT 11.0.0 fp16, NVIDIA A100", "4.10.0", "TensorRT 10.3.0 fp16, this run has TensorRT 11.0.0 fp16"),
        ("TensorRT 10.3.0 fp16, NVIDIA A100", "5.0.0", "OpenCV 4.10.0, this run has OpenCV 5.0.0"),
        (
            "ONNX Runtime 1.32.0, CPU, 1 thread",
            "5.0.0",
            "TensorRT 10.3.0 fp16 and OpenCV 4.10.0, this run has ONNX Runtime 1.32.0 and OpenCV 5.0.0",
        ),
    ],
)
def test_resume_redoes_results_of_other_library_versions_but_not_of_another_gpu(
    runtime: str,
    opencv: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recording, outputs = paint_video(tmp_path / "clip.mp4", PaintedSource(count=5)), Outputs(tmp_path / "out")
    monkeypatch.setattr(cv2, "__version__", "4.10.0")
    before = PaintedEngines(PaintedBackend(description="TensorRT 10.3.0 fp16, NVIDIA A100"))
    track([recording], outputs, engines=before)
    assert sidecar(tmp_path / "out/clip.json")["libraries"] == ["TensorRT 10.3.0 fp16", "OpenCV 4.10.0"]
    monkeypatch.setattr(cv2, "__version__", opencv)
    engines, notes = PaintedEngines(PaintedBackend(description=runtime)), Notes()
    assert track([recording], replace(outputs, existing="resume"), engines=engines, notes=notes) == []
    table = tmp_path / "out/clip.csv"
    assert caplog.messages == [f"{table}: processed again: it was made with {told}"] * bool(told)
    assert notes.advances == (5 if told else 0)


def test_resume_reports_unreadable_pictures_again(tmp_path: Path) -> None:
    folder = paint_pictures(tmp_path / "shots", PaintedSource(count=1), ["1.png"])
    (folder / "2.png").write_text("no picture", encoding="utf-8")
    first = track([folder], Outputs(tmp_path / "out"))
    assert len(first) == 1
    assert track([folder], Outputs(tmp_path / "out", existing="resume")) == first


def test_resume_redoes_a_folder_in_which_a_picture_was_renamed(tmp_path: Path) -> None:
    folder = paint_pictures(tmp_path / "shots", PaintedSource(count=2), ["1.png", "2.png"])
    track([folder], Outputs(tmp_path / "out"))
    (folder / "1.png").rename(folder / "9.png")
    track([folder], Outputs(tmp_path / "out", existing="resume"))
    assert [row["input"] for row in read_csv(tmp_path / "out/shots.csv")] == ["2.png", "9.png"]


def test_resume_redoes_an_input_if_decoder_or_frame_rate_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = paint_pictures(tmp_path / "shots", PaintedSource(count=2), ["1.png", "2.png"])
    track([folder], Outputs(tmp_path / "out"))
    assert track([folder], Outputs(tmp_path / "out", existing="resume"), decoder="cuda", frame_rate=10) == []
    assert "settings differ: decoder, frame_rate" in caplog.text


def test_resume_retries_a_truncated_video(cut_video: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    track([cut_video], Outputs(out))
    assert len(track([cut_video], Outputs(out, existing="resume"))) == 1
    assert "it is incomplete: " in caplog.text


def finished(inputs: Sequence[Path | str], out: Path) -> bool:
    """Whether --resume finds nothing to do."""
    notes = Notes()
    assert track(inputs, Outputs(out, existing="resume"), notes=notes) == []
    return notes.lines == [line for line in notes.lines if line.endswith(": already finished")]


def test_resume_keeps_another_videos_table_if_its_path_is_recorded(tmp_path: Path) -> None:
    for place, frames in (("s1", 5), ("s2", 6)):
        (tmp_path / place).mkdir()
        paint_video(tmp_path / place / "clip.mp4", PaintedSource(count=frames))
    first, second, out = tmp_path / "s1/clip.mp4", tmp_path / "s2/clip.mp4", tmp_path / "out"
    track([first], Outputs(out))
    before = {file: file.read_bytes() for file in out.iterdir()}
    (failure,) = track([second], Outputs(out, existing="resume"), choices=Choices(detect_every=3))
    wanted = f"clip.csv: is the table of {first.resolve()}; choose another --out or --keep-folders"
    assert failure.reason.endswith(wanted)
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    content = sidecar(out / "clip.json")
    del content["path"]  # as it was written before: done again
    (out / "clip.json").write_text(json.dumps(content), encoding="utf-8")
    assert track([second], Outputs(out, existing="resume")) == []
    assert len(read_csv(out / "clip.csv")) == 6


OPENFACE_HEADER = b"frame,face_id,timestamp,confidence,success,gaze_0_x"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clip.csv", OPENFACE_HEADER),
        ("clip.csv", b"time;speaker\n"),
        ("clip.json", b'{"fps": 25}'),
        ("clip.json", b"[]"),
        ("clip.json", b'{"a": 1}\n{"a": 2}\n'),
        ("clip.mp4", b"the recording as it was sent"),
    ],
)
@pytest.mark.parametrize("after", ["nothing", "a table"])
def test_resume_does_not_replace_files_not_written_by_facetrack(
    name: str, content: bytes, after: str, tmp_path: Path
) -> None:
    recording, out = paint_video(tmp_path / "clip.mkv", PaintedSource(count=5)), tmp_path / "out"
    out.mkdir()
    if after == "a table":
        assert track([recording], Outputs(out)) == []
        if name == "clip.json" and content.startswith(b'{"a"'):
            (out / "clip.csv").write_bytes(OPENFACE_HEADER)  # a sidecar of ours may have been damaged
    (out / name).write_bytes(content)
    before = {file: file.read_bytes() for file in out.iterdir()}
    (failure,) = track([recording], Outputs(out, video=True, existing="resume"))
    assert "was not written by facetrack" in failure.reason
    assert failure.reason.endswith("choose another --out, or replace it with --overwrite")
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    assert track([recording], Outputs(out, video=True, existing="overwrite")) == []


def test_resume_replaces_empty_files(tmp_path: Path) -> None:
    """They hold nothing that could be lost: a full disk leaves such."""
    recording, out = paint_video(tmp_path / "clip.mkv", PaintedSource(count=5)), tmp_path / "out"
    out.mkdir()
    for name in ("clip.csv", "clip.json", "clip.mp4"):
        for file in out.iterdir():
            file.unlink()
        (out / name).touch()
        assert track([recording], Outputs(out, video=True, existing="resume")) == []
        assert min((out / other).stat().st_size for other in ("clip.csv", "clip.json", "clip.mp4")) > 0


@pytest.mark.parametrize("lost", [["clip.json"], ["clip.csv"], ["clip.csv", "clip.json", "clip.mp4"], ["clip.mp4"]])
def test_resume_restores_missing_output_files(lost: list[str], tmp_path: Path) -> None:
    """A table and its video get their names one after the other, and then their sidecar."""
    recording, out = paint_video(tmp_path / "clip.mkv", PaintedSource(count=5)), tmp_path / "out"
    outputs = Outputs(out, video=True, existing="resume")
    assert track([recording], outputs) == []
    for name in lost:
        (out / name).unlink()
    assert track([recording], outputs) == []
    assert {file.name for file in out.iterdir()} == {"clip.csv", "clip.json", "clip.mp4"}


def test_resume_restores_the_missing_sidecar_of_a_picture_table(tmp_path: Path) -> None:
    folder = paint_pictures(tmp_path / "shots", PaintedSource(count=1), ["1.png"])
    track([folder], Outputs(tmp_path / "out"))
    (tmp_path / "out/shots.json").unlink()
    assert track([folder], Outputs(tmp_path / "out", existing="resume")) == []
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"shots.csv", "shots.json"}


SHOTS = [f"{i}, {'a' if i % 2 else 'b'}.png" for i in range(8)]  # names that a table has to quote


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Eight pictures of two faces, and one that cannot be read."""
    source = PaintedSource(count=8, faces=(PaintedFace((90, 120)), PaintedFace((230, 120))))
    folder = paint_pictures(tmp_path / "shots", source, SHOTS)
    (folder / "2, broken.png").write_text("no picture", encoding="utf-8")
    return folder


def interrupted(folder: Path, out: Path, runs: int, **options: Any) -> None:
    engines = PaintedEngines(PaintedBackend(failing={runs: KeyboardInterrupt()}))
    with pytest.raises(KeyboardInterrupt):
        track([folder], Outputs(out, existing="resume", **options), engines=engines)


def test_resume_continues_after_the_last_whole_picture_and_gives_the_same_table(shots: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    (wanted,) = track([shots], Outputs(whole))
    interrupted(shots, out, 12)
    assert {file.name for file in out.iterdir()} == {"shots.csv.part", "shots.json.part"}
    part = (out / "shots.csv.part").read_bytes()
    done = part.count(b"\n") // 2
    assert 2 <= done < 7
    interrupted(shots, out, 0)  # before a new row: of the last picture nothing tells whether it is whole
    assert part.startswith((out / "shots.csv.part").read_bytes())
    notes, engines = Notes(), PaintedEngines()
    assert track([shots], Outputs(out, existing="resume"), engines=engines, notes=notes) == [wanted]
    assert notes.advances == 8
    assert engines.detector.searched == 8 - (done - 2)  # each interruption has cost one
    assert (out / "shots.csv").read_bytes() == (whole / "shots.csv").read_bytes()
    assert {file.name for file in out.iterdir()} == {"shots.csv", "shots.json"}
    told, meant = (sidecar(folder / "shots.json") for folder in (out, whole))
    assert (told["counts"], told["failed"]) == (meant["counts"], meant["failed"])


@pytest.mark.parametrize("cut", range(0, 9000, 700))
def test_resumed_picture_table_is_identical_wherever_the_killed_run_stopped(
    cut: int, shots: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    track([shots], Outputs(whole))
    interrupted(shots, out, 16)
    part = out / "shots.csv.part"
    part.write_bytes((whole / "shots.csv").read_bytes()[:cut])
    track([shots], Outputs(out, existing="resume"))
    assert (out / "shots.csv").read_bytes() == (whole / "shots.csv").read_bytes()


def test_resume_counts_earlier_pictures_without_a_face(tmp_path: Path) -> None:
    shots, whole, out = tmp_path / "shots", tmp_path / "whole", tmp_path / "out"
    paint_pictures(shots, PaintedSource(count=4), [f"{i}.png" for i in (0, 3, 5, 7)])
    paint_pictures(shots, PaintedSource(count=4, faces=()), [f"{i}.png" for i in (1, 2, 4, 6)])
    track([shots], Outputs(whole))
    interrupted(shots, out, 8)
    part = (out / "shots.csv.part").read_bytes()
    assert 4 <= part.count(b"\n") - 1 < 8
    track([shots], Outputs(out, existing="resume"))
    assert (out / "shots.csv").read_bytes() == (whole / "shots.csv").read_bytes()
    counts = sidecar(out / "shots.json")["counts"]
    assert counts == sidecar(whole / "shots.json")["counts"]
    assert (counts["frames"], counts["frames_with_face"]) == (8, 4)


def test_resume_restarts_a_folder_to_which_a_picture_was_added(shots: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(shots, out, 12)
    (shots / "0, first.png").write_bytes((shots / SHOTS[0]).read_bytes())
    engines = PaintedEngines()
    track([shots], Outputs(out, existing="resume"), engines=engines)
    assert engines.detector.searched == 9
    track([shots], Outputs(tmp_path / "whole"))
    assert (out / "shots.csv").read_bytes() == (tmp_path / "whole/shots.csv").read_bytes()


def test_resume_restarts_pictures_begun_with_other_libraries_and_says_why(
    shots: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(shots, tmp_path, 12)
    engines = PaintedEngines(PaintedBackend(description="paint 2, wet"))
    track([shots], Outputs(tmp_path, existing="resume"), engines=engines)
    assert engines.detector.searched == 8
    assert caplog.messages == [
        f"{tmp_path / 'shots.csv'}: processed again: it was made with paint, this run has paint 2"
    ]


def test_resume_logs_a_continued_table_as_continued_and_not_as_done_again(
    shots: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    track([shots], Outputs(out))
    os.utime(shots / SHOTS[0], (1, 1))
    interrupted(shots, out, 12)
    done = (out / "shots.csv.part").read_bytes().count(b"\n") // 2
    again = f"{out / 'shots.csv'}: processed again: input differs"
    assert caplog.messages == [again]
    track([shots], Outputs(out, existing="resume"))
    assert caplog.messages == [again, f"{out / 'shots.csv'}: continues after {done - 1} pictures"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
def test_resume_restarts_pictures_whose_names_print_alike(shots: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    for index, name in enumerate(SHOTS):
        (shots / name).rename(os.fsdecode(os.fsencode(shots) + b"/" + bytes([0xF0 + index]) + b".png"))
    track([shots], Outputs(whole))
    interrupted(shots, out, 12)
    engines = PaintedEngines()
    track([shots], Outputs(out, existing="resume"), engines=engines)
    assert engines.detector.searched == 8
    assert (out / "shots.csv").read_bytes() == (whole / "shots.csv").read_bytes()


def test_resume_distinguishes_recordings_at_two_urls(tmp_path: Path) -> None:
    for place, frames in (("s1", 5), ("s2", 6)):
        (tmp_path / place).mkdir()
        paint_video(tmp_path / place / "clip.mkv", PaintedSource(count=frames))
    out = tmp_path / "out"
    with serving(tmp_path) as address:
        first, second = f"{address}/s1/clip.mkv", f"{address}/s2/clip.mkv"
        track([first], Outputs(out))
        assert finished([first], out)
        (failure,) = track([second], Outputs(out, existing="resume"))
    assert failure.reason.endswith(f"clip.csv: is the table of {first}; choose another --out or --keep-folders")
    assert len(read_csv(out / "clip.csv")) == 5


def test_file_url_is_treated_as_a_path(cut_video: Path, tmp_path: Path) -> None:
    clip = paint_video(tmp_path / "a b%.mp4", PaintedSource(count=5))
    outputs = Outputs(tmp_path / "out")
    for spec in (clip.as_uri(), f"FILE://localhost{clip.as_posix()}"):
        assert tasks_for([spec], outputs) == [Task(str(clip), "a b%")]
        with open_source(spec) as source:
            assert (source.kind, source.name, source.size) == ("video", "a b%", (240, 320))
    (failure,) = track([cut_video.as_uri()], outputs)
    assert "bytes long and is" in failure.reason  # as of the path
    assert tasks_for(["file://host/share/a.mp4"], outputs) == [Task("file://host/share/a.mp4", "a")]


def test_url_password_is_in_neither_the_name_nor_the_identity() -> None:
    (task,) = tasks_for(["rtsp://me:s@cret@host.org"], Outputs(Path("out")))
    assert (where(task.spec), task.name, identify_input(task.spec)["name"]) == ("rtsp://host.org", "host", "host.org")
    others = [identify_input(spec) for spec in ("rtsp://host.org", "rtsp://host.org/a", "http://host.org")]
    assert others[0] == identify_input(task.spec)
    assert len({other["digest"] for other in others}) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_rts_video_from_a_pipe_fails_and_the_table_alone_succeeds(tmp_path: Path) -> None:
    """As in-hindsight smoothing does for the annotated video; its table alone comes from one reading."""
    content = paint_video(tmp_path / "clip.ts", PaintedSource(count=6)).read_bytes()
    hindsight = Choices(smooth="rts")
    with feeding(tmp_path / "pipe", content) as pipe:
        (failure,) = track([pipe], Outputs(tmp_path / "video", video=True), choices=hindsight)
    assert "a pipe cannot be read twice" in failure.reason
    with feeding(tmp_path / "other", content) as pipe:
        assert track([pipe], Outputs(tmp_path / "table"), choices=hindsight) == []


@pytest.mark.skipif(not STDIN.exists(), reason="standard input has no path here")
def test_a_dash_is_standard_input(tmp_path: Path) -> None:
    file = paint_video(tmp_path / "clip.ts", PaintedSource(count=6))
    assert tasks_for(["-"], Outputs(tmp_path)) == [Task(str(STDIN), "stdin")]
    code = "from facetrack import open_source; print(len(list(open_source('-'))))"
    with file.open("rb") as stdin:
        done = subprocess.run([sys.executable, "-c", code], stdin=stdin, capture_output=True, check=True, text=True)
    assert done.stdout == "6\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_resume_never_treats_a_pipe_as_finished(tmp_path: Path) -> None:
    one, two = (paint_video(tmp_path / f"{i}.ts", PaintedSource(count=i)).read_bytes() for i in (6, 7))
    out = tmp_path / "out"
    with feeding(tmp_path / "pipe", one) as pipe:
        assert track([pipe], Outputs(out, existing="resume")) == []
    (failure,) = track([pipe], Outputs(out, existing="resume"))  # which nobody has to write into
    assert "cannot tell whether a pipe is the same as before" in failure.reason
    assert len(read_csv(out / "pipe.csv")) == 6
    pipe.unlink()
    with feeding(pipe, two):
        assert track([pipe], Outputs(out, existing="overwrite")) == []
    assert len(read_csv(out / "pipe.csv")) == 7


SECRET_URL = "rtsp://me:secret@host.org/s1/clip.mp4?pwd=secret&a=.b"
SHOWN_URL = "rtsp://host.org/s1/clip.mp4?pwd=&a=.b"


def test_outputs_progress_and_log_hold_no_url_password(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "facetrack")
    monkeypatch.setattr("facetrack.pipeline.batch.open_source", lambda *_, **__: open_source(video))
    out, stream = tmp_path / "out", io.StringIO()
    engines = PaintedEngines()
    progress = LineProgress(stream)
    with engines(Choices()) as opened:
        outputs = Outputs(out)
        assert track_all(tasks_for([SECRET_URL], outputs), outputs, opened, progress) == []
        outputs = Outputs(out, existing="resume")
        changed = SECRET_URL.replace("secret", "another")
        assert track_all(tasks_for([changed], outputs), outputs, opened, progress) == []
    assert sorted(file.name for file in out.iterdir()) == ["clip.csv", "clip.json"]
    assert sidecar(out / "clip.json")["path"] == SHOWN_URL
    assert [line.split(": ")[0] for line in stream.getvalue().splitlines()] == [SHOWN_URL] * 2
    assert stream.getvalue().endswith(": already finished\n")
    written = "".join(file.read_text(encoding="utf-8") for file in out.iterdir())
    assert not [text for text in (written, stream.getvalue(), caplog.text) if "secret" in text or "another" in text]


@pytest.mark.parametrize(
    "spec",
    ["rtsp://me:secret@127.0.0.1:9/live", "rtsp:/me:secret@127.0.0.1/live", "rtsp://127.0.0.1:a/secret@127.0.0.1/live"],
)
def test_no_failure_shows_a_password(
    spec: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG", "facetrack")
    (failure,) = track([spec], Outputs(tmp_path))
    assert "127.0.0.1" in str(failure)
    assert not [text for text in (str(failure), caplog.text, *capsys.readouterr()) if "secret" in text]


def test_colliding_inputs_are_named_without_their_passwords(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        tasks_for([SECRET_URL, "http://me:secret@host.org/clip.mkv"], Outputs(tmp_path))
    assert str(caught.value).startswith(f"{SHOWN_URL} and http://host.org/clip.mkv would both be written to ")


def test_url_longer_than_a_path_is_named_after_its_file(tmp_path: Path) -> None:
    (task,) = tasks_for([f"https://host.org/s1/clip.mp4?a={'a.b/' * 2000}"], Outputs(tmp_path))
    assert task.name == "clip"
    LiveOutputs(csv=tmp_path / "a.csv").refuse_collisions(task.spec)


def test_recording_too_large_for_an_annotated_video_fails_without_writing_anything(tmp_path: Path) -> None:
    recording = write_video(tmp_path / "wide.mkv", [np.zeros((16, 16_386, 3), np.uint8)], LOSSLESS)
    (failure,) = track([recording], Outputs(tmp_path / "out", video=True))
    assert "wide.mp4: cannot be written: wanted frames of at most 16384 pixels a side" in str(failure)
    assert list((tmp_path / "out").iterdir()) == []


def test_resume_recognises_an_input_under_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    paint_video(tmp_path / "clip.mp4", PaintedSource(count=5))
    paint_pictures(tmp_path / "shots", PaintedSource(count=1), ["1.png"])
    paint_pictures(tmp_path / "others", PaintedSource(count=1), ["1.png"])
    there.mkdir()
    shutil.copy2(tmp_path / "clip.mp4", there)  # as on another mount
    monkeypatch.chdir(tmp_path)
    track(["clip.mp4", "shots", "others/*.png"], Outputs(out))
    assert finished([tmp_path / "clip.mp4", tmp_path / "shots", f"{tmp_path}/others/*.png"], out)
    assert finished(["there/../clip.mp4", "./shots/", "./others/*.png"], out)
    assert finished([there / "clip.mp4"], out)
    monkeypatch.chdir(tmp_path / "shots")
    assert finished(["."], out)


def test_resume_recognises_a_moved_project_with_timestamps_truncated_to_seconds(tmp_path: Path) -> None:
    """As tar, scp -p and some file systems do."""
    before, after = tmp_path / "before", tmp_path / "after"
    (before / "in").mkdir(parents=True)
    clip = paint_video(before / "in/clip.mp4", PaintedSource(count=5))
    shots = paint_pictures(before / "in/shots", PaintedSource(count=1), ["1.png"])
    for file in (clip, shots / "1.png"):
        os.utime(file, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    track([clip, shots], Outputs(before / "out"))
    before.rename(after)
    for file in ("clip.mp4", "shots/1.png"):
        os.utime(after / "in" / file, (1_700_000_000, 1_700_000_000))
    assert finished([after / "in/clip.mp4", after / "in/shots"], after / "out")


def test_input_digest_depends_on_the_path_and_size_of_each_file(tmp_path: Path) -> None:
    """Of files of one time, the same number and as many bytes together."""
    for place, size in (("a/1.png", 10), ("b/1.png", 20)):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(bytes(size))
        os.utime(tmp_path / place, (1, 1))
    pattern = str(tmp_path / "*/1.png")
    known = [identify_input(pattern)]
    (tmp_path / "a/1.png").rename(tmp_path / "a/2.png")
    (tmp_path / "b/1.png").rename(tmp_path / "a/1.png")
    (tmp_path / "a/2.png").rename(tmp_path / "b/1.png")
    known.append(identify_input(pattern))
    (tmp_path / "b").rename(tmp_path / "c")
    known.append(identify_input(pattern))
    assert len({entry["digest"] for entry in known}) == 3
    assert {(entry["files"], entry["bytes"]) for entry in known} == {(2, 30)}


def test_resume_keeps_the_table_of_a_vanished_input_and_suggests_overwrite(tmp_path: Path) -> None:
    recording, out = paint_video(tmp_path / "clip.mp4", PaintedSource(count=5)), tmp_path / "out"
    track([recording], Outputs(out))
    (tmp_path / "there").mkdir()
    moved = recording.rename(tmp_path / "there/clip.mp4")
    os.utime(moved, (1, 1))
    (failure,) = track([moved], Outputs(out, existing="resume"))
    assert f"clip.csv: is the table of {recording.resolve()}; choose another --out" in failure.reason
    assert failure.reason.endswith("; if this is the same input, moved and changed since, use --overwrite")


@pytest.mark.parametrize("kept", [0, 100])
def test_resume_redoes_a_truncated_table(kept: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recording, out = paint_video(tmp_path / "clip.mp4", PaintedSource(count=5)), tmp_path / "out"
    track([recording], Outputs(out))
    whole = (out / "clip.csv").read_bytes()
    (out / "clip.csv").write_bytes(whole[:kept])
    assert not finished([recording], out)
    assert f"processed again: the table has {kept} bytes, but {len(whole)} were written" in caplog.text
    assert (out / "clip.csv").read_bytes() == whole


def test_resume_redoes_an_emptied_annotated_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recording, out = paint_video(tmp_path / "clip.mkv", PaintedSource(count=5)), tmp_path / "out"
    outputs = Outputs(out, video=True, existing="resume")
    track([recording], outputs)
    size = (out / "clip.mp4").stat().st_size
    assert sidecar(out / "clip.json")["video_bytes"] == size
    (out / "clip.mp4").write_bytes(b"")
    assert track([recording], outputs) == []
    assert f"processed again: the video has 0 bytes, but {size} were written" in caplog.text
    assert (out / "clip.mp4").stat().st_size == size


@pytest.mark.parametrize("existing", ["overwrite", "resume"])
def test_new_table_removes_the_annotated_video_of_an_earlier_run(existing: Existing, tmp_path: Path) -> None:
    recording, out = paint_video(tmp_path / "clip.mkv", PaintedSource(count=5)), tmp_path / "out"
    track([recording], Outputs(out, video=True))
    track([recording], Outputs(out, existing=existing), choices=Choices(smooth="none"))
    assert {file.name for file in out.iterdir()} == {"clip.csv", "clip.json"}


@pytest.mark.parametrize("whose", ["nobody's", "another one", "the input"])
def test_overwrite_keeps_a_video_that_is_foreign_or_the_input(whose: str, tmp_path: Path) -> None:
    recording, out = paint_video(tmp_path / "clip.mkv", PaintedSource(count=5)), tmp_path / "out"
    track([recording], Outputs(out, video=whose != "nobody's"))
    if whose != "the input":
        (out / "clip.mp4").write_bytes(b"something else")
    again = out / "clip.mp4" if whose == "the input" else recording
    assert track([again], Outputs(out, existing="overwrite")) == []
    assert (out / "clip.mp4").exists()


@pytest.mark.parametrize("name", ["clip.json", "clip.json.part"])
def test_folder_in_place_of_the_sidecar_fails_before_any_work(name: str, tmp_path: Path) -> None:
    recording, out, notes = paint_video(tmp_path / "clip.mp4", PaintedSource(count=5)), tmp_path / "out", Notes()
    (out / name).mkdir(parents=True)
    (failure,) = track([recording], Outputs(out, existing="resume"), notes=notes)
    assert failure.reason.endswith(f"{name}: is a folder; remove it, or choose another --out")
    assert notes.advances == 0


@pytest.mark.parametrize("length", [246, 251])
def test_name_too_long_for_its_sidecar_fails_without_writing_anything(length: int, tmp_path: Path) -> None:
    recording = paint_video(tmp_path / "clip.mp4", PaintedSource(count=5)).rename(tmp_path / f"{'y' * length}.mp4")
    (failure,) = track([recording], Outputs(tmp_path / "out"))
    assert failure.reason.endswith(
        "cannot be written: File name too long; give the video a shorter name, or choose another --out"
    )
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_files_that_another_process_is_writing_are_left_alone(tmp_path: Path) -> None:
    recording, out = paint_video(tmp_path / "clip.mp4", PaintedSource(count=5)), tmp_path / "out"
    track([recording], Outputs(out, video=True))
    other = CsvSink(out / "clip.csv", CsvColumns(68), overwrite=True)
    other.write(make_result(make_face()))
    other.finish()
    before = {file: file.read_bytes() for file in out.iterdir()}
    (failure,) = track([recording], Outputs(out, video=True, existing="overwrite"))
    assert failure.reason.endswith(
        "clip.csv: another process is writing this table; wait for it, or choose another --out"
    )
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    other.close(complete=True)
    assert track([recording], Outputs(out, video=True, existing="overwrite")) == []


# side by side


@dataclass
class SideBySide:
    """What two workers made of five inputs, one of which is no video, and one of which kills whoever reads it."""

    inputs: list[Path]
    out: Path
    failures: list[Failure]
    notes: Notes


def track_side_by_side(
    inputs: Sequence[Path], outputs: Outputs, notes: Notes, engines: PaintedEngines | None = None
) -> list[Failure]:
    tasks = tasks_for([str(spec) for spec in inputs], outputs)
    return open_and_track_all(tasks, outputs, engines or PaintedEngines(), Choices(), notes, workers=2)


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    folder, notes = tmp_path_factory.mktemp("side-by-side"), Notes()
    face = (PaintedFace(velocity=(60.0, 20.0)),)
    (folder / "text.mp4").write_text("Dear diary\n", encoding="utf-8")
    inputs = [
        paint_video(folder / "long.mp4", PaintedSource(count=30, faces=face)),
        folder / "text.mp4",
        paint_video(folder / "deadly.mp4", PaintedSource(count=5, shape=(200, 320), faces=face)),
        paint_video(folder / "short.mp4", PaintedSource(count=7, faces=face)),
        paint_video(folder / "last.mp4", PaintedSource(count=11, faces=face)),
    ]
    engines = PaintedEngines(detector=PaintedDetector(deadly_height=200))
    failures = track_side_by_side(inputs, Outputs(folder / "out", columns=RAW), notes, engines)
    return SideBySide(inputs, folder / "out", failures, notes)


def test_two_workers_write_the_bytes_that_one_writes(side_by_side: SideBySide, tmp_path: Path) -> None:
    whole = [side_by_side.inputs[i] for i in (0, 3, 4)]
    track(whole, Outputs(tmp_path, columns=RAW))
    for path in whole:
        table = f"{path.stem}.csv"
        assert (side_by_side.out / table).read_bytes() == (tmp_path / table).read_bytes()
        assert sidecar(side_by_side.out / f"{path.stem}.json")["complete"] is True
    assert side_by_side.notes.advances == 30 + 7 + 11


def test_broken_input_and_crashed_worker_are_reported_and_the_others_finish(side_by_side: SideBySide) -> None:
    assert [Path(failure.what).name for failure in side_by_side.failures] == ["text.mp4", "deadly.mp4"]
    assert "died on" not in str(side_by_side.failures[0])
    assert "the process that worked on it died (it ended with exit code 3)" in side_by_side.failures[1].reason
    assert side_by_side.notes.endings == dict.fromkeys(("last", "long", "short"), "done") | dict.fromkeys(
        ("deadly", "text"), "failed"
    )
    assert "deadly: failed: the process that worked on it died" in "".join(side_by_side.notes.lines)


def test_workers_resume_what_is_missing(side_by_side: SideBySide) -> None:
    notes, inputs = Notes(), [path for path in side_by_side.inputs if path.name != "text.mp4"]
    before = (side_by_side.out / "long.csv").stat().st_mtime_ns
    assert track_side_by_side(inputs, Outputs(side_by_side.out, columns=RAW, existing="resume"), notes) == []
    assert sorted(notes.lines)[1:] == [f"{name}: already finished" for name in ("last", "long", "short")]
    assert "deadly: 5 frames" in sorted(notes.lines)[0]
    assert (side_by_side.out / "long.csv").stat().st_mtime_ns == before


class Impatient(Notes):
    """Presses Ctrl-C at the first frame that it hears of."""

    def advanced(self, task: Task, frames: int = 1) -> None:
        super().advanced(task, frames)
        raise KeyboardInterrupt


def test_ctrl_c_keeps_the_complete_rows_of_workers(tmp_path: Path) -> None:
    notes, still = Impatient(), PaintedSource().picture(0)
    inputs = [write_video(tmp_path / "first.mp4", [still] * 300), tmp_path / "second.mp4"]
    with pytest.raises(KeyboardInterrupt):
        track_side_by_side(inputs, Outputs(tmp_path / "out"), notes)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["first.csv.part"]
    text = (tmp_path / "out/first.csv.part").read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert len({line.count(",") for line in text.splitlines()}) == 1
    assert f"first: interrupted; the rows so far are in {tmp_path}" in "".join(notes.lines)


# shards


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_partition_the_inputs_evenly_in_any_order(count: int, tmp_path: Path) -> None:
    inputs = [f"{name}.mp4" for name in "abcde"]
    outputs = Outputs(tmp_path)
    shards = [tasks_for(inputs if i % 2 else inputs[::-1], outputs, (i + 1, count)) for i in range(count)]
    assert sorted(task.spec for shard in shards for task in shard) == inputs
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_shard_ignores_existing_results_of_others_but_raises_on_name_collisions(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    inputs, outputs = ["a.mp4", "b.mp4"], Outputs(tmp_path)
    assert [task.name for task in tasks_for(inputs, outputs, (2, 2))] == ["b"]
    with pytest.raises(SinkError, match="exists already"):
        tasks_for(inputs, outputs, (1, 2))
    with pytest.raises(ConfigError, match="both be written"):
        tasks_for([*inputs, "a.mov"], outputs, (3, 3))


# smoothing in hindsight


@pytest.mark.parametrize("video_too", [False, True])
def test_rts_smoothing_writes_every_frame_in_order_and_is_reproducible(
    video: Path, tmp_path: Path, video_too: bool
) -> None:
    for name in ("one", "two"):
        assert track([video], Outputs(tmp_path / name, video=video_too), choices=Choices(smooth="rts")) == []
    table = read_csv(tmp_path / "one/moving.csv")
    assert [row["frame"] for row in table] == [str(1 + i) for i in range(MOVING.count)]
    for index, row in enumerate(table):
        assert np.abs(points(row) - MOVING.truth(index)[0]).max() < NEAR_PX
    assert (tmp_path / "one/moving.csv").read_bytes() == (tmp_path / "two/moving.csv").read_bytes()
    assert (tmp_path / "one/moving.mp4").exists() == video_too


@pytest.mark.parametrize("video_too", [False, True])
def test_truncated_recording_keeps_the_rows_waiting_for_rts_smoothing(
    cut_video: Path, tmp_path: Path, video_too: bool
) -> None:
    kept = {}
    for smooth in ("none", "rts"):
        failures = track([cut_video], Outputs(tmp_path / smooth, video=video_too), choices=Choices(smooth=smooth))
        assert len(failures) == 1
        kept[smooth] = [row["frame"] for row in read_csv(tmp_path / smooth / "cut.csv")]
    assert kept["rts"] == kept["none"]
