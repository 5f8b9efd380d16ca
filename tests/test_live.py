"""What a live run refuses before it opens anything, and what it leaves where it fails."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes import PaintedFace, PaintedSource, grey, make_result, read_csv
from fakes_pipeline import PaintedEngines, paint_pictures, paint_video

from facetrack.pipeline.batch import track_all
from facetrack.pipeline.csv_sink import CsvColumns, CsvSink
from facetrack.pipeline.live import Drops, LiveOutputs, LiveRun, identify_live
from facetrack.pipeline.open import Choices
from facetrack.pipeline.part_file import PartFile
from facetrack.pipeline.progress import NoProgress
from facetrack.pipeline.sidecar import when_started
from facetrack.pipeline.sinks import JsonLinesSink
from facetrack.pipeline.tasks import Outputs, tasks_for
from facetrack.tracker.errors import ConfigError, SinkError
from facetrack.tracker.types import Frame


@pytest.mark.parametrize(
    ("csv", "record"), [("out.json", None), ("same.x", "same.x"), ("run.csv", "run.json"), ("a.csv", "./a.csv")]
)
def test_outputs_that_would_write_over_each_other_are_refused(csv: str, record: str | None, tmp_path: Path) -> None:
    outputs = LiveOutputs(csv=tmp_path / csv, record=tmp_path / record if record else None, overwrite=True)
    with pytest.raises(ConfigError, match="wanted different files"):
        outputs.refuse_collisions("0")


@pytest.mark.parametrize("output", ["csv", "record"])
def test_the_source_is_never_written_over(output: str, tmp_path: Path) -> None:
    source = tmp_path / "v.mp4"
    source.touch()
    with pytest.raises(ConfigError, match=r"v\.mp4: would be overwritten by its own output"):
        LiveOutputs(**{output: source}, overwrite=True).refuse_collisions(str(source))


def test_source_is_recognised_by_a_name_in_another_case(tmp_path: Path) -> None:
    (tmp_path / "GX01.MP4").touch()
    (tmp_path / "GX01.mp4").hardlink_to(tmp_path / "GX01.MP4")  # what Windows and macOS do without
    with pytest.raises(ConfigError, match="would be overwritten by its own output"):
        LiveOutputs(record=tmp_path / "GX01.mp4", overwrite=True).refuse_collisions(str(tmp_path / "GX01.MP4"))


def test_existing_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()  # where the sidecar of run.csv would go
    outputs = {"csv": tmp_path / "run.csv", "record": tmp_path / "run.mp4"}
    with pytest.raises(SinkError, match=r"run\.json: exists already; .*--overwrite"):
        LiveOutputs(**outputs).refuse_collisions("0")
    LiveOutputs(**outputs, overwrite=True).refuse_collisions("0")
    LiveOutputs().refuse_collisions("0")


def test_the_sidecar_of_another_table_is_never_replaced(tmp_path: Path) -> None:
    table = CsvSink(tmp_path / "rec.left", CsvColumns(68))
    table.write(make_result())
    table.close(complete=True)
    (tmp_path / "rec.json").touch()
    with pytest.raises(ConfigError, match=r"rec\.json: belongs to .*rec\.left; give the new table another name"):
        LiveOutputs(csv=tmp_path / "rec.right", overwrite=True).refuse_collisions("0")
    LiveOutputs(csv=tmp_path / "rec.left", overwrite=True).refuse_collisions("0")


def test_other_tables_in_the_same_folder_do_not_interfere(tmp_path: Path) -> None:
    for name in ("earlier.csv", "run.csv"):
        table = CsvSink(tmp_path / name, CsvColumns(68))
        table.write(make_result())
        table.close(complete=True)
        (tmp_path / name).with_suffix(".json").touch()
    LiveOutputs(csv=tmp_path / "run.csv", overwrite=True).refuse_collisions("0")


def test_new_table_is_never_left_beside_an_old_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power may fail at any moment; here it does once the table has its name."""
    video, table = paint_video(tmp_path / "v.mp4", PaintedSource(count=3)), tmp_path / "run.csv"
    table.write_text("an earlier one", encoding="utf-8")
    table.with_suffix(".json").write_text("{}", encoding="utf-8")
    publish = PartFile.publish

    def publish_and_end(file: PartFile) -> None:
        publish(file)
        raise KeyboardInterrupt

    monkeypatch.setattr(PartFile, "publish", publish_and_end)
    with PaintedEngines()(Choices()) as engines, pytest.raises(KeyboardInterrupt):
        LiveRun(engines, LiveOutputs(csv=table, window=False, overwrite=True)).track(str(video))
    assert [file.name for file in tmp_path.glob("run*")] == ["run.csv"]
    assert table.read_text(encoding="utf-8") != "an earlier one"


def test_a_live_table_says_when_it_began(tmp_path: Path) -> None:
    video = paint_video(tmp_path / "v.mp4", PaintedSource(count=4))
    before = datetime.now(UTC)
    with PaintedEngines()(Choices()) as engines:
        LiveRun(engines, LiveOutputs(csv=tmp_path / "run.csv", window=False)).track(str(video))
    started = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["started"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", started)
    assert before - timedelta(milliseconds=2) < datetime.fromisoformat(started) < datetime.now(UTC)


def test_start_time_is_counted_back_from_any_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: 100.0)
    began = [datetime.fromisoformat(when_started(Frame(9, at_s, 40.0 + at_s, grey()))) for at_s in (0.0, 3.25)]
    assert abs(began[1] - began[0]) < timedelta(seconds=5)
    assert abs(datetime.now(UTC) - began[0] - timedelta(seconds=60)) < timedelta(seconds=5)


@pytest.mark.parametrize(("share", "told"), [(0.04, 0), (0.06, 1)])
def test_frequent_frame_drops_are_warned_of_once(share: float, told: int, caplog: pytest.LogCaptureFixture) -> None:
    drops = Drops(0.0)
    for second in range(1, 600):
        drops.see(round((1 - share) * 50 * second), round(share * 50 * second), float(second))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "180 of 3000 frames in a minute were dropped: they come faster than they can be tracked"
    ] * told


def test_dropped_frames_are_reported_once_a_second_while_their_number_grows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="facetrack")
    drops = Drops(0.0)
    for frame in range(1, 501):  # 50 a second, of which for five seconds every second one is dropped
        drops.see(frame, min(frame, 250) // 2, frame / 50)
    assert [record.message for record in caplog.records] == [f"{25 * s} frames dropped so far" for s in range(1, 6)]


def test_drop_warning_considers_only_the_last_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Half an hour in which all went well does not hide them."""
    drops = Drops(0.0)
    for second in range(1, 1920):
        dropped = 5 * max(second - 1800, 0)
        drops.see(50 * second - dropped, dropped, float(second))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "300 of 3000 frames in a minute were dropped: they come faster than they can be tracked"
    ]


@pytest.mark.parametrize("address", ["rtsp://user:secret@host/x", "https://user:secret@host/y.m3u8?token=secret"])
def test_stream_identity_omits_the_user_passwords_and_tokens(address: str) -> None:
    identity = identify_live(address, "stream")
    assert "host" in identity["name"]
    assert "secret" not in json.dumps(identity)


class InterruptedListener(io.StringIO):
    """Where lines go until Ctrl-C comes in the middle of the third."""

    def write(self, text: str) -> int:
        if self.getvalue().count("\n") == 2:
            raise KeyboardInterrupt
        return super().write(text)


class Witness(io.StringIO):
    """Where lines go, counting at each what the table holds, were the process killed now."""

    def __init__(self, part: Path) -> None:
        super().__init__()
        self.part, self.rows = part, list[int]()

    def write(self, text: str) -> int:
        self.rows.append(self.part.read_text(encoding="utf-8").count("\n") - 1)
        return super().write(text)


def test_live_rows_are_on_disk_before_the_json_line_of_their_frame(tmp_path: Path) -> None:
    video, table = paint_video(tmp_path / "v.mp4", PaintedSource(count=4)), tmp_path / "run.csv"
    witness = Witness(tmp_path / "run.csv.part")
    with PaintedEngines()(Choices()) as engines:
        LiveRun(engines, LiveOutputs(csv=table, jsonl=witness, window=False)).track(str(video))
    assert witness.rows == list(range(1, len(witness.rows) + 1))
    assert witness.rows


def test_counts_match_the_table_after_an_interrupted_write(tmp_path: Path) -> None:
    video, table = paint_video(tmp_path / "v.mp4", PaintedSource(count=90)), tmp_path / "run.csv"
    outputs = LiveOutputs(csv=table, jsonl=InterruptedListener(), window=False)
    with PaintedEngines()(Choices()) as engines, pytest.raises(KeyboardInterrupt):
        LiveRun(engines, outputs).track(str(video))
    counts = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))["counts"]
    assert (counts["frames"], counts["rows"]) == (3, len(read_csv(table))) == (3, 3)


def test_interrupt_while_draining_json_lines_leaves_a_complete_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: JsonLinesSink) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(JsonLinesSink, "drain", interrupt)
    video, table = paint_video(tmp_path / "v.mp4", PaintedSource(count=4)), tmp_path / "run.csv"
    outputs = LiveOutputs(csv=table, jsonl=io.StringIO(), window=False)
    with PaintedEngines()(Choices()) as engines, pytest.raises(KeyboardInterrupt):
        LiveRun(engines, outputs).track(str(video))
    assert read_csv(table)
    assert json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))["complete"] is True


def test_live_tracks_pictures_independently_as_batch_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = PaintedSource(count=3, faces=(PaintedFace(velocity=(30.0, 0.0)),))
    shots = paint_pictures(tmp_path / "shots", source, ["1.png", "2.png", "3.png"])
    (shots / "4.png").write_text("no picture", encoding="utf-8")
    with PaintedEngines()(Choices()) as engines:
        LiveRun(engines, LiveOutputs(csv=tmp_path / "live.csv", window=False)).track(str(shots))
        track_all(tasks_for([str(shots)], outputs := Outputs(tmp_path / "out")), outputs, engines, NoProgress())
    assert (tmp_path / "live.csv").read_bytes() == (tmp_path / "out/shots.csv").read_bytes()
    assert [(row["face_id"], row["state"]) for row in read_csv(tmp_path / "live.csv")] == [("0", "new")] * 3
    assert json.loads((tmp_path / "live.json").read_text(encoding="utf-8"))["counts"]["failed"] == 1
    assert "shots: problems in 1 place, first: 4.png: is not a complete picture" in caplog.text
