"""Evaluation on 300VW: a small benchmark drawn in its layout, the numbers against a computation of the test's own."""

from __future__ import annotations

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import PaintedFace, PaintedSource, write_video
from fakes_benchmarks import AVI, lose_a_packet, pts_text, write_300vw_video
from fakes_pipeline import PaintedBackend, PaintedDetector, PaintedEngines

from facetrack.cli import main
from facetrack.engines.aligner import Aligner
from facetrack.engines.card import Weights
from facetrack.pipeline.batch import Failure, Task
from facetrack.pipeline.open import Choices, Engines, open_engines
from facetrack.pipeline.portrait import portrait
from facetrack.pipeline.progress import Ending, NoProgress
from facetrack.pipeline.sources import open_source
from facetrack.tracker import markup, metrics
from facetrack.tracker.errors import CardError, SinkError, SourceError
from facetrack.tracker.geometry import CropTransform
from facetrack.tracker.types import Float32, Float64
from facetrack.training.evaluation.measure_video import MEASURES, VideoMeasuring, measure_video, read_errors
from facetrack.training.evaluation.video_benchmark import list_test_videos, published_split, ranges_of
from facetrack.training.evaluation.videos import VideoSettings, check_videos, evaluate_videos

pytest.importorskip("matplotlib", reason="needs the eval extra")

CHOICES = Choices(smooth="none")
READING_PX = 0.6  # how exactly painted faces are read back from compressed frames


@dataclass(frozen=True)
class Drawn:
    """A video of the small benchmark: annotations and how far each lies beside the face."""

    scenario: int
    truths: list[Float32]
    offsets: Float64
    seen: np.ndarray


def draw(folder: Path) -> dict[str, Drawn]:
    """Four videos in three scenarios; in 410 the face is gone in the last 4 of 10 frames, but annotated."""
    recipes = {
        "114": (1, PaintedFace((120, 110), (20, 10), 90), 8, 2.0),
        "150": (1, PaintedFace((150, 120), (0, -10), 100, 0.1, 0.3), 12, 5.0),
        "203": (2, PaintedFace((170, 120), (-15, 0), 80), 6, 3.0),
        "410": (3, PaintedFace((150, 120), (10, 0), 100, seen=range(6)), 10, 4.0),
    }
    drawn = {}
    for number, (scenario, face, count, length) in recipes.items():
        source = PaintedSource(count=count, faces=(face,))
        offsets = length * (1 + np.arange(count) / 10)
        shifts = [(0.6 * offset, -0.8 * offset) for offset in offsets]
        truths = write_300vw_video(folder / number, source, shifts)
        drawn[number] = Drawn(scenario, truths, offsets, np.isin(np.arange(count), face.seen))
    return drawn


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Drawn]]:
    folder = tmp_path_factory.mktemp("300vw")
    return folder, draw(folder)


@pytest.fixture(scope="module")
def results(
    data: tuple[Path, dict[str, Drawn]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, str]]:
    """boxes -> folder of the results and table."""
    found = {}
    for boxes in ("gt", "detector"):
        out = tmp_path_factory.mktemp(boxes)
        found[boxes] = out, run(VideoSettings(data[0], out, boxes))[0]
    return found


def evaluate(settings: VideoSettings, *rest: Any) -> tuple[str, list[Failure]]:
    return evaluate_videos(settings, list_test_videos(settings.folder), *rest)


def run(settings: VideoSettings, engines: Any = None, choices: Choices = CHOICES) -> tuple[str, list[Failure]]:
    return evaluate(settings, engines or PaintedEngines(), choices, NoProgress())


def summary(out: Path, boxes: str = "gt") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / f"300vw-{boxes}.json").read_text(encoding="utf-8"))
    return content


def lengths(truth: Float32) -> dict[str, float]:
    """The normalisers of 68 points, written down once more."""
    eyes = truth[36:42].mean(0) - truth[42:48].mean(0)
    return {
        "io": float(np.linalg.norm(truth[36] - truth[45])),
        "ip": float(np.linalg.norm(eyes)),
        "edge": float(np.ptp(truth, 0).mean()),
    }


def expected_errors(video: Drawn, kind: str) -> Float64:
    """Fractions: every point of a frame is off by the same offset, so 49 points have the errors of 68."""
    return np.array([offset / lengths(xy)[kind] for offset, xy in zip(video.offsets, video.truths, strict=True)])


# numbers


def test_figures_of_all_protocols_match_the_painted_ground_truth(
    data: tuple[Path, dict[str, Drawn]], results: dict[str, tuple[Path, str]]
) -> None:
    drawn, out = data[1], results["gt"][0]
    tolerance = 100 * READING_PX / 55  # the least distance of the eyes is 55 pixels
    for scenario in (1, 2):  # without a face, as in 3, the painted network answers with nonsense in a given box
        figures = summary(out)["scenarios"][str(scenario)]["figures_percent"]
        videos = [video for video in drawn.values() if video.scenario == scenario]
        for kind in ("io", "ip"):
            errors = [100 * expected_errors(video, kind) for video in videos]
            of_videos = np.mean([e.mean() for e in errors])
            of_frames = np.concatenate(errors).mean()
            for points in (68, 49):
                assert figures[f"A  NME {kind} %, {points} points, mean of videos"] == pytest.approx(
                    of_videos, abs=tolerance
                )
            assert figures[f"B  NME {kind} %, 68 points"] == pytest.approx(of_frames, abs=tolerance)
        edge = np.concatenate([100 * expected_errors(video, "edge") for video in videos])
        assert figures["D  NME edge %, 68 points"] == pytest.approx(edge.mean(), abs=tolerance)
    figures = summary(out)["scenarios"]["1"]["figures_percent"]
    assert abs(figures["A  NME io %, 68 points, mean of videos"] - figures["B  NME io %, 68 points"]) > 0.3


@pytest.mark.parametrize("boxes", ["gt", "detector"])
def test_the_summary_follows_from_the_errors_of_the_frames(
    data: tuple[Path, dict[str, Drawn]], results: dict[str, tuple[Path, str]], boxes: Any
) -> None:
    """The second computation: plain loops over the kept files."""
    drawn, out = data[1], results[boxes][0]
    for scenario in (1, 2, 3):
        pooled: dict[str, list[float]] = {}
        means = []
        for number in (name for name, video in drawn.items() if video.scenario == scenario):
            kept = json.loads((out / f"300vw-{boxes}/{number}.json").read_text(encoding="utf-8"))
            for name, errors in kept["errors_percent"].items():
                pooled.setdefault(name, []).extend(float("inf") if e is None else e for e in errors)
            found = [e for e in kept["errors_percent"]["io 68"] if e is not None]
            means.append(sum(found) / len(found))
        figures = summary(out, boxes)["scenarios"][str(scenario)]["figures_percent"]
        assert figures["A  NME io %, 68 points, mean of videos"] == pytest.approx(sum(means) / len(means), abs=1e-3)
        for row, name, limit in (
            ("B  {} io %, 68 points", "io 68", 7),
            ("C  {} io %, 68 points", "io 68", 8),
            ("C  {} io %, 49 points", "io 49", 8),
            ("D  {} edge %, 68 points", "edge 68", 8),
        ):
            errors = pooled[name]
            under = [max(0.0, 1 - e / limit) for e in errors]
            assert figures[row.format(f"AUC{limit}")] == pytest.approx(100 * sum(under) / len(errors), abs=1e-3)
            share = sum(e > limit for e in errors) / len(errors)
            assert figures[row.format(f"FR{limit}")] == pytest.approx(100 * share)


def test_frames_in_which_the_tracker_has_no_face_are_lost_and_counted(
    data: tuple[Path, dict[str, Drawn]], results: dict[str, tuple[Path, str]]
) -> None:
    drawn, (out, table) = data[1], results["detector"]
    scenarios = summary(out, "detector")["scenarios"]
    assert [scenarios[name]["lost_percent"] for name in "123"] == [0.0, 0.0, 40.0]
    figures = scenarios["3"]["figures_percent"]
    seen = drawn["410"].seen
    errors = 100 * expected_errors(drawn["410"], "io")[seen]
    assert figures["B  NME io %, 68 points"] == pytest.approx(errors.mean(), abs=1.1)
    assert figures["C  FR8 io %, 68 points"] == pytest.approx(100 * (np.sum(errors > 8) + 4) / 10, abs=10.1)
    assert figures["C  FR8 io %, 68 points"] >= 40
    assert table.splitlines()[-1].split() == ["lost", "frames", "%", "0.00", "0.00", "40.00"]
    with (out / "300vw-detector.csv").open(encoding="utf-8") as file:
        rows = {row["video"]: row for row in csv.DictReader(file)}
    assert {number: (row["lost"], row["tracks"]) for number, row in rows.items()} == {
        "114": ("0", "1"),
        "150": ("0", "1"),
        "203": ("0", "1"),
        "410": ("4", "1"),
    }


def test_rts_smoothing_is_measured_as_batch_applies_it_with_the_cards_noise(tmp_path: Path) -> None:
    source = PaintedSource(count=20, faces=(PaintedFace((120, 110), (60, -40), 90, spin=1.0),))
    truths = write_300vw_video(tmp_path / "114", source, [(0, 0)] * 20)
    ((video,), _) = list_test_videos(tmp_path)
    choices = Choices(smooth="rts")
    with PaintedEngines()(choices) as opened, open_source(video.path) as frames:
        card = replace(opened.aligner.card, calibration={"noise": [0.004, 0.001, 3.0]})
        engines = replace(opened, aligner=Aligner(card, PaintedBackend()))
        smoothed = np.stack([result.faces[0].smoothed for result in engines.track(frames)])
        measured = measure_video(video, VideoMeasuring(tmp_path, "detector", choices), engines)
    ibug = markup.load("ibug68")
    truth = np.stack(truths)
    expected = metrics.normalised_errors(smoothed, truth, metrics.normalising_lengths(truth, ibug, "io"))
    np.testing.assert_allclose(measured.errors["io", 68], expected, rtol=1e-4)


@pytest.mark.parametrize("boxes", ["gt", "detector"])
def test_video_that_lost_a_frame_is_not_measured(boxes: str, tmp_path: Path) -> None:
    """Every annotation behind it would be of the frame before."""
    write_300vw_video(tmp_path / "data/203", PaintedSource(12), [(0, 0)] * 12)
    lose_a_packet(tmp_path / "data/203", map(PaintedSource(12).picture, range(12)))
    with pytest.raises(SourceError, match=r"203/vid\.mp4: .* the annotation no longer fits what follows"):
        run(VideoSettings(tmp_path / "data", tmp_path / "out", boxes))


def test_a_video_whose_face_is_never_found_is_named(tmp_path: Path) -> None:
    nobody = PaintedSource(count=4, faces=(PaintedFace(seen=range(0)),))
    write_300vw_video(tmp_path / "data/203", nobody, [(0, 0)] * 4)
    table, _ = run(VideoSettings(tmp_path / "data", tmp_path / "out", "detector"))
    assert "not found in any frame, and so in no NME: 203" in table
    scenario = summary(tmp_path / "out", "detector")["scenarios"]["2"]
    assert scenario["figures_percent"]["A  NME io %, 68 points, mean of videos"] is None
    assert scenario["figures_percent"]["C  AUC8 io %, 68 points"] == 0.0


def test_bad_frames_do_not_count_unless_they_are_kept(tmp_path: Path) -> None:
    source = PaintedSource(count=12)
    shifts = [(0.0, 0.0)] * 9 + [(30.0, 0.0)] * 3  # frames 10 to 12 are badly annotated
    write_300vw_video(tmp_path / "data/114", source, shifts)
    scipy_io = pytest.importorskip("scipy.io", reason="needs the eval extra")
    scipy_io.savemat(tmp_path / "114.mat", {"error": np.array([[10, 11, 12]])})
    with zipfile.ZipFile(tmp_path / "data/extra.zip", "w") as archive:
        archive.write(tmp_path / "114.mat", "Not_Used/114.mat")
    for keep, frames in ((False, 9), (True, 12)):
        run(VideoSettings(tmp_path / "data", tmp_path / f"out{keep}", keep_bad=keep))
        scenario = summary(tmp_path / f"out{keep}")["scenarios"]["1"]
        assert scenario["frames"] == frames
        assert (scenario["figures_percent"]["C  FR8 io %, 68 points"] > 0) is keep


# files, failures, interruptions


def test_the_report_has_the_papers_rows_a_table_of_videos_and_curves(
    data: tuple[Path, dict[str, Drawn]], results: dict[str, tuple[Path, str]]
) -> None:
    out, table = results["gt"]
    lines = table.splitlines()
    assert lines[0] == "300VW: painted-68, ground-truth boxes"
    assert "not exactly the published frames were scored" in lines[1]
    assert lines[3].split() == ["scenario", "1", "scenario", "2", "scenario", "3"]
    assert lines[4].split() == ["videos", "2", "of", "31", "1", "of", "19", "1", "of", "14"]
    assert lines[5].split()[:4] == ["frames", "20", "of", "62135"]
    (span,) = [line.split() for line in lines if line.strip().startswith("SPAN")]
    assert span == ["SPAN", "4.49", "4.23", "5.87"]
    names = {"300vw-gt.csv", "300vw-gt.json", "300vw-gt-ced.png", "300vw-gt-ced.svg", "300vw-gt"}
    assert {file.name for file in out.iterdir()} == names
    assert {file.name for file in (out / "300vw-gt").iterdir()} == {f"{n}.json" for n in (114, 150, 203, 410)}
    curves = (out / "300vw-gt-ced.svg").read_text(encoding="utf-8")
    assert "scenario 3, 49 points" in curves
    assert "frames with at most this error, %" in curves
    content = summary(out)
    assert content["models"][0]["name"] == "painted-68"
    with pytest.raises(SinkError, match="others: exist already; add --overwrite or --resume"):
        check_videos(VideoSettings(data[0], out))
    check_videos(VideoSettings(data[0], out, resume=True))


def test_a_broken_video_or_annotation_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    draw(tmp_path / "data")
    (tmp_path / "data/150/vid.avi").write_bytes(b"no video")
    (tmp_path / "data/203/annot/000003.pts").write_text("n_points: 1\n{\n1 1\n}\n", encoding="utf-8")
    table, failures = run(VideoSettings(tmp_path / "data", tmp_path / "out"))
    assert [failure.what[-11:] for failure in failures] == ["150/vid.avi", "203/vid.avi"]
    assert "000003.pts: wanted 68 points, got 1" in str(failures[1])
    assert "2 videos could not be measured and are left out" in table
    assert [video["video"] for video in summary(tmp_path / "out")["videos"]] == ["114", "410"]
    words = ["evaluate", "300vw", str(tmp_path / "data"), "--out", str(tmp_path / "out2")]
    assert main(words, PaintedEngines()) == 3


def test_incomplete_video_is_named_and_the_others_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in ("114", "150", "203", "401", "410"):
        write_300vw_video(tmp_path / "data" / number, PaintedSource(count=2), [(0, 0)] * 2)
    (tmp_path / "data/114/vid.avi").unlink()
    for number in ("150", "203", "410"):
        shutil.rmtree(tmp_path / "data" / number / "annot")
    (tmp_path / "data/203/annot").mkdir()
    (tmp_path / "data/410/annot").write_bytes(b"")
    words = ["evaluate", "300vw", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main(words, PaintedEngines()) == 3
    assert [video["video"] for video in summary(tmp_path / "out")["videos"]] == ["401"]
    told = capsys.readouterr()
    assert "4 videos could not be measured and are left out" in told.out
    reasons = [
        "114: wanted vid.avi or vid.mp4 or vid.mkv in it; is it another data set, or not unpacked?",
        "150: wanted annot in it; is it another data set, or not unpacked?",
        "203/annot: wanted files such as 000001.pts in it; unpack the data set again",
        "410/annot: cannot be read: Not a directory; wanted a folder of .pts files",
    ]
    assert "1 done, 4 failed, 0 left" in told.err
    lines = [line for line in told.err.splitlines() if line.startswith("facetrack: failed: ")]
    assert lines == [f"facetrack: failed: {tmp_path}/data/{reason}" for reason in reasons]
    assert [failure["reason"] for failure in summary(tmp_path / "out")["failures"]] == [
        f"{tmp_path}/data/{reason}" for reason in reasons
    ]


@pytest.mark.parametrize("boxes", ["gt", "detector"])
def test_unusable_annotation_fails_only_its_own_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], boxes: str
) -> None:
    broken = {
        "114": ("nan nan\n", "wanted 68 points that are numbers, got 67"),
        "150": ("inf 3\n", "wanted coordinates up to 1048576 pixels, got inf"),
        "203": ("1e20 3\n", "wanted coordinates up to 1048576 pixels, got 1e+20"),
    }
    for number in (*broken, "401", "410"):
        write_300vw_video(tmp_path / "data" / number, PaintedSource(count=2), [(0, 0)] * 2)
    for number, (line, _) in broken.items():
        change_point(tmp_path / "data" / number / "annot/000002.pts", 30, line)
    (tmp_path / "data/401/annot/000001.pts").write_text(pts_text(np.full((68, 2), 99, np.float32)), encoding="utf-8")
    words = ["evaluate", "300vw", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--boxes", boxes]
    assert main(words, PaintedEngines()) == 3
    assert [video["video"] for video in summary(tmp_path / "out", boxes)["videos"]] == ["410"]
    told = capsys.readouterr().err
    assert "1 done, 4 failed, 0 left" in told
    lines = [line for line in told.splitlines() if line.startswith("facetrack: failed: ")]
    reasons = [f"{number}/annot/000002.pts: {reason}" for number, (_, reason) in broken.items()]
    reasons.append("401/annot/000001.pts: wanted points round a face, got a box of 0x0")
    assert len(lines) == len(reasons)
    for line in lines:
        assert any(reason in line for reason in reasons), line


def change_point(path: Path, point: int, line: str) -> None:
    """Write another line for one point of a .pts file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[lines.index("{\n") + 1 + point] = line
    path.write_text("".join(lines), encoding="utf-8")


def test_annotation_with_coincident_eyes_is_named_by_its_file(tmp_path: Path) -> None:
    (truth, _) = write_300vw_video(tmp_path / "data/114", PaintedSource(count=2), [(0, 0)] * 2)
    truth[36:48] = truth[30]
    (tmp_path / "data/114/annot/000002.pts").write_text(pts_text(truth), encoding="utf-8")
    with pytest.raises(SourceError, match=r"annot/000002\.pts: cannot serve as ground truth: NME"):
        run(VideoSettings(tmp_path / "data", tmp_path / "out"))


class Heard(NoProgress):
    """Keeps what is said of tasks that are over."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def ended(self, task: Task, line: str, how: Ending = "done") -> None:
        del how
        self.lines.append(f"{task.name}: {line}")


@pytest.mark.parametrize("keep", [False, True])
def test_progress_line_of_a_video_matches_the_summary(tmp_path: Path, *, keep: bool) -> None:
    """Frame 14 of video 508 is the first of those that do not count."""
    shifts = [(0.0, 0.0)] * 13 + [(30.0, 0.0), (0.0, 0.0)]
    write_300vw_video(tmp_path / "data/508", PaintedSource(count=15), shifts)
    heard = Heard()
    settings = VideoSettings(tmp_path / "data", tmp_path / "out", keep_bad=keep)
    evaluate(settings, PaintedEngines(), CHOICES, heard)
    scenario = summary(tmp_path / "out")["scenarios"]["1"]
    nme = scenario["figures_percent"]["A  NME io %, 68 points, mean of videos"]
    assert heard.lines == [f"300VW 508: {15 if keep else 14} frames, NME io {nme:.2f} %, 0.0 % lost"]


def test_video_without_a_frame_that_counts_is_reported_and_left_out(tmp_path: Path) -> None:
    for number in ("114", "508"):
        write_300vw_video(tmp_path / "data" / number, PaintedSource(count=14), [(0.0, 0.0)] * 14)
    for i in range(13):
        (tmp_path / f"data/508/annot/{i + 1:06}.pts").unlink()
    heard = Heard()
    evaluate(VideoSettings(tmp_path / "data", tmp_path / "out"), PaintedEngines(), CHOICES, heard)
    assert heard.lines[1] == "300VW 508: no frame counts: the annotation of all of them is known to be inaccurate"
    assert summary(tmp_path / "out")["scenarios"]["1"]["videos"] == 1


def test_evaluation_without_a_measurable_video_raises_and_writes_no_file(tmp_path: Path) -> None:
    write_300vw_video(tmp_path / "data/114", PaintedSource(count=2), [(0, 0)] * 2)
    (tmp_path / "data/114/vid.avi").write_bytes(b"no video")
    with pytest.raises(SourceError, match="no video could be measured; the first"):
        run(VideoSettings(tmp_path / "data", tmp_path / "out"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("boxes", ["gt", "detector"])
@pytest.mark.parametrize(
    ("annotated", "told", "counts"),
    [
        (5, "114/vid.avi: 2 annotated frames are not in the video", {"frames": 3, "unread": 2, "unannotated": 0}),
        (2, "114/vid.avi: frames without an annotation: 1", {"frames": 2, "unread": 0, "unannotated": 1}),
    ],
)
def test_mismatch_of_frames_and_annotations_is_reported_on_every_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, boxes: Any, annotated: int, told: str, counts: dict[str, int]
) -> None:
    """Annotations go by the frames' numbers: it may be another video."""
    write_300vw_video(tmp_path / "data/114", PaintedSource(count=3), [(0, 0)] * annotated)
    for _ in range(2):
        caplog.clear()
        run(VideoSettings(tmp_path / "data", tmp_path / "out", boxes, resume=True))
        assert told in caplog.text
    with (tmp_path / f"out/300vw-{boxes}.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert {name: int(row[name]) for name in counts} == counts
    (video,) = summary(tmp_path / "out", boxes)["videos"]
    assert video == {"video": "114", "scenario": 1, "scored": counts["frames"], **counts}


def test_fully_annotated_video_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_300vw_video(tmp_path / "data/114", PaintedSource(count=3), [(0, 0)] * 3)
    run(VideoSettings(tmp_path / "data", tmp_path / "out"))
    assert not caplog.records


@pytest.mark.parametrize("source", ["list", "extra.zip", "kept"])
def test_summary_states_the_excluded_frames_and_what_is_comparable(tmp_path: Path, source: str) -> None:
    """With the errors of the frames, that is all that the table follows from."""
    for number in ("114", "508"):
        write_300vw_video(tmp_path / "data" / number, PaintedSource(count=15), [(0, 0)] * 15)
    if source == "extra.zip":
        pytest.importorskip("scipy.io", reason="needs the eval extra").savemat(
            tmp_path / "114.mat", {"error": np.array([[2, 4, 5, 6]])}
        )
        with zipfile.ZipFile(tmp_path / "data/extra.zip", "w") as archive:
            archive.write(tmp_path / "114.mat", "extra/114.mat")
    run(VideoSettings(tmp_path / "data", tmp_path / "out", keep_bad=source == "kept"))
    content = summary(tmp_path / "out")
    assert content["keep_bad"] is (source == "kept")
    assert (
        content["excluded_frames"]
        == {
            "list": {"source": "the published list", "videos": {"508": ranges_of(published_split().excluded["508"])}},
            "extra.zip": {"source": "extra.zip", "videos": {"114": "2 4-6"}},
            "kept": {"source": None, "videos": {}},
        }[source]
    )
    scenario = content["scenarios"]["1"]
    frames = {"list": 29, "extra.zip": 26, "kept": 30}[source]
    assert (scenario["frames"], scenario["published_frames"], scenario["comparable"]) == (frames, 62135, False)
    assert (scenario["videos"], scenario["published_videos"]) == (2, 31)


def test_an_interrupted_evaluation_keeps_the_finished_videos_and_goes_on_from_there(
    data: tuple[Path, dict[str, Drawn]], results: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    folder = data[0]
    broken = PaintedEngines(PaintedBackend(failing={14: KeyboardInterrupt()}))  # 8 frames of 114, then in 150
    settings = VideoSettings(folder, tmp_path / "out", resume=True)
    with pytest.raises(KeyboardInterrupt):
        run(settings, broken)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["300vw-gt"]
    assert [file.name for file in (tmp_path / "out/300vw-gt").iterdir()] == ["114.json"]
    again = PaintedEngines()
    resumed, _ = run(settings, again)
    assert again.backend.calls == 12 + 6 + 10
    assert resumed == results["gt"][1]


@pytest.mark.parametrize("again", ["overwrite", "resume"])
def test_interrupted_rerun_removes_the_old_summary_once_it_replaces_errors(tmp_path: Path, again: str) -> None:
    """Nor does it lose what it has done, or errors in whose place there is nothing yet."""
    for number in ("114", "150", "203"):
        write_300vw_video(tmp_path / "data" / number, PaintedSource(count=4), [(0, 0)] * 4)
    settings, kept = VideoSettings(tmp_path / "data", tmp_path / "out"), tmp_path / "out/300vw-gt"
    other = replace(CHOICES, threads=2)
    run(settings)
    former = contents(tmp_path / "out")
    changed = replace(settings, overwrite=again == "overwrite", resume=again == "resume")
    with pytest.raises(KeyboardInterrupt):
        run(changed, PaintedEngines(PaintedBackend(failing={2: KeyboardInterrupt()})), other)
    assert contents(tmp_path / "out") == former  # in the first video
    with pytest.raises(KeyboardInterrupt):
        run(changed, PaintedEngines(PaintedBackend(failing={6: KeyboardInterrupt()})), other)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["300vw-gt"]
    threads = {file.stem: json.loads(file.read_bytes())["origin"]["settings"]["threads"] for file in kept.iterdir()}
    assert threads == {"114": 2, "150": CHOICES.threads, "203": CHOICES.threads}
    engines = PaintedEngines()
    run(replace(settings, resume=True), engines, other)
    assert engines.backend.calls == 4 + 4
    assert contents(tmp_path / "out").keys() == former.keys()


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_failed_video_removes_its_errors_and_the_old_summary(tmp_path: Path) -> None:
    for number in ("114", "150"):
        write_300vw_video(tmp_path / "data" / number, PaintedSource(count=4), [(0, 0)] * 4)
    settings = VideoSettings(tmp_path / "data", tmp_path / "out", overwrite=True)
    run(settings)
    (tmp_path / "data/114/vid.avi").write_bytes(b"no video")
    with pytest.raises(KeyboardInterrupt):
        run(settings, PaintedEngines(PaintedBackend(failing={2: KeyboardInterrupt()})))
    assert contents(tmp_path / "out").keys() == {"300vw-gt/150.json"}


def test_resuming_a_finished_run_gives_the_same_bytes_without_measuring(
    data: tuple[Path, dict[str, Drawn]], results: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    shutil.copytree(results["detector"][0], tmp_path / "out")
    engines = PaintedEngines()
    run(VideoSettings(data[0], tmp_path / "out", "detector", resume=True), engines)
    assert engines.backend.calls == 0
    for name in ("300vw-detector.csv", "300vw-detector-ced.png", "300vw-detector-ced.svg"):
        assert (tmp_path / "out" / name).read_bytes() == (results["detector"][0] / name).read_bytes(), name
    fresh, resumed = (summary(out, "detector") for out in (results["detector"][0], tmp_path / "out"))
    assert {**fresh, "wall_s": 0} == {**resumed, "wall_s": 0}


@pytest.mark.parametrize("again", ["overwrite", "resume"])
def test_video_that_now_fails_loses_its_former_errors(tmp_path: Path, again: str) -> None:
    """Otherwise the folder would mix models."""
    for number in ("114", "203"):
        write_300vw_video(tmp_path / "data" / number, PaintedSource(count=2), [(0, 0)] * 2)
    settings = VideoSettings(tmp_path / "data", tmp_path / "out")
    run(settings)
    (tmp_path / "data/203/vid.avi").write_bytes(b"no video")
    changed = replace(settings, overwrite=again == "overwrite", resume=again == "resume")
    run(changed, choices=replace(CHOICES, threads=2))
    assert [file.name for file in (tmp_path / "out/300vw-gt").iterdir()] == ["114.json"]


def test_video_whose_worker_dies_loses_its_former_errors(tmp_path: Path) -> None:
    for number, height in (("114", 240), ("203", 300)):
        write_300vw_video(tmp_path / "data" / number, PaintedSource(count=2, shape=(height, 320)), [(0, 0)] * 2)
    settings = VideoSettings(tmp_path / "data", tmp_path / "out", "detector", workers=2)
    run(settings)
    deadly = PaintedEngines(detector=PaintedDetector(deadly_height=300))
    _, (failure,) = run(replace(settings, resume=True), deadly, replace(CHOICES, threads=2))
    assert "203/vid.avi: the process that worked on it died" in str(failure)
    assert [file.name for file in (tmp_path / "out/300vw-detector").iterdir()] == ["114.json"]


def test_errors_that_are_not_in_the_table_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever computes from all files of the folder has another table."""
    for number in ("114", "203", "401", "410"):
        write_300vw_video(tmp_path / "data" / number, PaintedSource(count=2), [(0, 0)] * 2)
    words = ["evaluate", "300vw", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--resume"]
    assert main(words, PaintedEngines()) == 0
    assert "not in the table" not in capsys.readouterr().err
    (tmp_path / "out/300vw-gt/notes.json").write_text("somebody's", encoding="utf-8")
    shutil.rmtree(tmp_path / "data/203")
    (tmp_path / "data/410/vid.avi").unlink()
    assert main(words, PaintedEngines()) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not in the table" in line]
    assert f"{tmp_path}/out/300vw-gt: errors of videos that are not in the table" in line
    assert re.findall(r"\w+\.json", line) == ["203.json", "410.json"]
    assert [video["video"] for video in summary(tmp_path / "out")["videos"]] == ["114", "401"]


@pytest.mark.parametrize("name", ["file", "file/below", "taken"])
def test_unwritable_output_folder_is_refused_before_videos_are_listed(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    settings = VideoSettings(tmp_path / "nowhere", tmp_path / name)
    if name == "taken":
        settings.out.mkdir()
        settings.files.frames.touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SinkError, match="choose another"):
        check_videos(replace(settings, resume=True))
    assert sorted(tmp_path.rglob("*")) == before


def test_overwrite_removes_errors_of_vanished_videos_and_no_other_files(tmp_path: Path) -> None:
    for number in ("114", "203"):
        write_300vw_video(tmp_path / "data" / number, PaintedSource(count=2), [(0, 0)] * 2)
    settings = VideoSettings(tmp_path / "data", tmp_path / "out", overwrite=True)
    run(settings)
    (tmp_path / "out/300vw-gt/notes.json").write_text("somebody's", encoding="utf-8")
    shutil.rmtree(tmp_path / "data/203")
    run(replace(settings, overwrite=False, resume=True))  # the videos may come in parts
    assert (tmp_path / "out/300vw-gt/203.json").exists()
    run(settings)
    assert {file.name for file in (tmp_path / "out/300vw-gt").iterdir()} == {"114.json", "notes.json"}


@pytest.mark.parametrize("change", ["settings", "video", "annotation", "version", "cut", "depth"])
def test_resume_remeasures_a_video_whose_settings_data_or_kept_errors_changed(tmp_path: Path, change: str) -> None:
    write_300vw_video(tmp_path / "data/114", PaintedSource(count=3), [(0, 0)] * 3)
    settings = VideoSettings(tmp_path / "data", tmp_path / "out", resume=True)
    run(settings)
    choices, kept = CHOICES, tmp_path / "out/300vw-gt/114.json"
    if change == "settings":
        choices = replace(CHOICES, threads=2)
    elif change == "video":
        write_video(tmp_path / "data/114/vid.avi", [PaintedSource().picture(i) for i in range(4)], AVI)
    elif change == "annotation":
        annotation = tmp_path / "data/114/annot/000002.pts"
        before = annotation.read_text(encoding="utf-8").splitlines()
        change_point(annotation, 30, before[33 + 1] + "\n")  # of another point: as many bytes
        assert annotation.stat().st_size == len("\n".join(before)) + 1
    elif change == "version":
        content = json.loads(kept.read_text(encoding="utf-8"))
        content["origin"] |= {"schema": 1, "annotations": {"files": 3, "bytes": 4321}}
        kept.write_text(json.dumps(content), encoding="utf-8")
    else:
        kept.write_bytes(kept.read_bytes()[:50] if change == "cut" else b"[" * 100_000)
    engines = PaintedEngines()
    run(settings, engines, choices)
    assert engines.backend.calls == 3


@pytest.mark.parametrize(
    "change",
    [
        {"frames": [102, *range(3, 9)]},
        {"frames": [1, 2, 3, 4, 5, 6, 8, 7]},
        {"frames": [*range(8)]},
        {"frames": [1.7, *range(2, 9)]},
        {"frames": [[i] for i in range(1, 9)]},
        {"frames": [*range(1, 8), 10**30]},
        {"tracks": [0] * 7},
        {"io 68": [5.0] * 7},
        {"io 68": [float("nan")] * 8},
        {"io 68": [-5.0] * 8},
        {"io 68": [10**400] * 8},
        {"unread": float("inf")},
        {"unannotated": -1},
        {"frames": [], "tracks": [], **{f"{kind} {points}": [] for kind, points in MEASURES}},
    ],
)
def test_damaged_error_file_is_rejected_with_a_warning(
    data: tuple[Path, dict[str, Drawn]],
    results: dict[str, tuple[Path, str]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
) -> None:
    (video, *_), _ = list_test_videos(data[0])
    kept = tmp_path / "114.json"
    content = json.loads((results["gt"][0] / "300vw-gt/114.json").read_text(encoding="utf-8"))
    origin = content["origin"]
    kept.write_text(json.dumps(content), encoding="utf-8")
    assert read_errors(kept, video, origin) is not None
    for name, value in change.items():
        (content if name in content else content["errors_percent"])[name] = value
    kept.write_text(json.dumps(content), encoding="utf-8")
    assert read_errors(kept, video, origin) is None
    assert caplog.messages == [f"{kept}: measured again: it cannot be read"]


IDLE = {"detect_every", "min_face", "max_faces", "smooth"}  # nothing is searched for, followed or smoothed


def test_summary_in_given_boxes_omits_tracking_settings(results: dict[str, tuple[Path, str]]) -> None:
    assert summary(results["detector"][0], "detector")["settings"].keys() >= IDLE
    assert not IDLE & summary(results["gt"][0])["settings"].keys()


def test_resume_in_given_boxes_ignores_changed_tracking_settings(tmp_path: Path) -> None:
    write_300vw_video(tmp_path / "data/114", PaintedSource(count=3), [(0, 0)] * 3)
    settings = VideoSettings(tmp_path / "data", tmp_path / "out", resume=True)
    run(settings)
    engines = PaintedEngines()
    run(settings, engines, Choices(detect_every=3, min_face=50, max_faces=2, smooth="rts"))
    assert engines.backend.calls == 0


@pytest.mark.parametrize("option", ["--detect-every", "--min-face", "--max-faces", "--smooth"])
def test_tracking_options_in_given_boxes_are_bad_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    words = ["evaluate", "300vw", str(tmp_path), "--out", str(tmp_path), option, "rts" if option == "--smooth" else "9"]
    assert main(words, PaintedEngines()) == 2
    told = capsys.readouterr().err
    assert f"in given boxes nothing is tracked: add --boxes detector, or leave out {option}\n" in told
    assert main([*words, "--boxes", "detector"], PaintedEngines()) == 1  # there are no videos


def test_resume_accepts_errors_measured_on_a_copy_of_the_data_set(tmp_path: Path) -> None:
    write_300vw_video(tmp_path / "data/114", PaintedSource(count=3), [(0, 0)] * 3)
    run(VideoSettings(tmp_path / "data", tmp_path / "out"))
    shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copyfile)  # with times of its own
    engines = PaintedEngines()
    run(VideoSettings(tmp_path / "copy", tmp_path / "out", resume=True), engines)
    assert engines.backend.calls == 0


def test_resume_remeasures_after_a_change_of_opencv_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cuts other crops, by a fraction of a grey level, and landmarks move."""
    write_300vw_video(tmp_path / "data/114", PaintedSource(count=3), [(0, 0)] * 3)
    settings = VideoSettings(tmp_path / "data", tmp_path / "out", resume=True)
    for version, calls in (("4.10.0", 3), ("4.10.0", 0), ("5.0.0", 3)):
        monkeypatch.setattr("cv2.__version__", version)
        engines = PaintedEngines()
        run(settings, engines)
        assert engines.backend.calls == calls


class EnginesOfTwoFiles(PaintedEngines):
    """Painted engines whose card has a file for CPUs that multiply bytes."""

    @contextmanager
    def _open(self, choices: Choices) -> Iterator[Engines]:
        with super()._open(choices) as engines:
            (card,) = engines.cards
            weights = replace(card.weights["net"], cpu=Weights(Path("small.onnx"), "1" * 64, "int8"))
            yield replace(engines, cards=(replace(card, weights={"net": weights}),))


def test_resume_remeasures_if_this_machine_runs_another_weights_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_300vw_video(tmp_path / "data/114", PaintedSource(count=3), [(0, 0)] * 3)
    settings = VideoSettings(tmp_path / "data", tmp_path / "out", resume=True)
    for byte_products, calls in ((True, 3), (True, 0), (False, 3)):
        monkeypatch.setattr("facetrack.engines.backend.has_int8_dot_product", lambda answer=byte_products: answer)
        engines = EnginesOfTwoFiles()
        run(settings, engines)
        assert engines.backend.calls == calls
        ran = summary(tmp_path / "out")["models"][0]["file"]["net"]
        assert ran == ("small.onnx" if byte_products else "painted.onnx")


def test_two_workers_find_what_one_finds(
    data: tuple[Path, dict[str, Drawn]], results: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    out, one = results["detector"]
    two, _ = run(VideoSettings(data[0], tmp_path, "detector", workers=2))
    assert one == two
    for file in (out / "300vw-detector").iterdir():
        assert file.read_bytes() == (tmp_path / "300vw-detector" / file.name).read_bytes()


class Impatient(NoProgress):
    """Presses Ctrl-C when the first video is finished and the second under way, whichever is later."""

    def __init__(self) -> None:
        self.heard: set[str] = set()

    def began(self, task: Task, frames: int | None) -> None:
        del frames
        self.hear(f"{task.name} began")

    def ended(self, task: Task, line: str, how: Ending = "done") -> None:
        del line, how
        self.hear(f"{task.name} ended")

    def hear(self, what: str) -> None:
        self.heard.add(what)
        if self.heard >= {"300VW 114 ended", "300VW 203 began"}:
            raise KeyboardInterrupt


def test_ctrl_c_stops_the_workers_in_the_middle_of_their_videos(tmp_path: Path) -> None:
    for number, frames in (("114", 2), ("203", 4)):
        write_300vw_video(tmp_path / "data" / number, PaintedSource(count=frames), [(0, 0)] * frames)
    settings = VideoSettings(tmp_path / "data", tmp_path / "out", workers=2)
    engines = PaintedEngines(PaintedBackend(endless=2))  # in 203, in a process of its own or not: it does not end
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings, engines, CHOICES, Impatient())
    assert [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()] == ["114.json"]


# the real thing


def test_the_shipped_networks_follow_a_moving_portrait(tmp_path: Path) -> None:
    picture = portrait()
    try:
        with open_engines(Choices()) as opened:
            still = opened.aligner.align(picture, [opened.aligner.crop_around((128.0, 125.0), 95.0)])[0].xy
    except CardError as error:
        pytest.skip(f"the trained weights are not here: {error}")
    frames, truths = [], []
    for i in range(20):
        angle, scale = 0.1 * np.sin(i / 5), 1.2 + 0.01 * i
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        matrix = np.array([[cos, -sin, 40 + 1.5 * i], [sin, cos, 10 - i]])
        frames.append(
            np.asarray(cv2.warpAffine(picture, matrix, (480, 360), borderMode=cv2.BORDER_REPLICATE), np.uint8)
        )
        truths.append(CropTransform(matrix, (360, 480)).to_crop(still))
    (tmp_path / "data/114/annot").mkdir(parents=True)
    write_video(tmp_path / "data/114/vid.avi", frames, AVI)
    for i, xy in enumerate(truths):
        (tmp_path / f"data/114/annot/{i + 1:06}.pts").write_text(pts_text(xy), encoding="utf-8")
    for boxes in ("gt", "detector"):
        words = ["evaluate", "300vw", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--boxes", boxes]
        assert main([*words, "-q"]) == 0
        scenario = summary(tmp_path / "out", boxes)["scenarios"]["1"]
        assert scenario["lost_percent"] == 0
        assert scenario["figures_percent"]["A  NME io %, 68 points, mean of videos"] < 2.5
