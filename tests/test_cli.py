"""The command line: exit codes, one-line errors, data on stdout and talk on stderr."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import pytest
from fakes import PaintedFace, PaintedSource, VideoRecipe, damage, read_csv, search_path, write_video
from fakes_pipeline import PaintedBackend, PaintedEngines, paint_pictures, paint_video
from fakes_stream import served_once
from packaging.requirements import Requirement

import facetrack
from facetrack.cli import main
from facetrack.engines.choices import MIN_FACE
from facetrack.pipeline.check import Check
from facetrack.pipeline.doctor import EXTRAS, examine
from facetrack.pipeline.machine import packages_of
from facetrack.pipeline.open import Choices, Engines
from facetrack.tracker.errors import ConfigError, SinkError
from facetrack.tracker.types import Float32, UInt8

CARD = """
name = "pebble-68"
network = "pebble"
task = "align"
markup = "ibug68"
parameters = 12345
gmac = 0.5
data = ["a beach"]
licence = "research only"
[input]
size = [64, 64]
[codec]
kind = "vectors"
[weights.net]
file = "pebble.onnx"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
precision = "fp32"
[measured]
nme_beach = 3.5
"""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the program sets in the environment, or asks of the user's folders, stays in this test."""
    for name in ("NUMBA_CACHE_DIR", "FACETRACK_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_video(tmp_path_factory.mktemp("videos") / "clip.mp4", PaintedSource(count=12))


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A card of the user's own, whose weights are not those that it describes."""
    cards, weights = tmp_path / "FACETRACK_HOME/cards", tmp_path / "FACETRACK_HOME/weights"
    cards.mkdir(parents=True)
    weights.mkdir()
    (weights / "pebble.onnx").write_bytes(b"sand")
    (cards / "pebble-68.toml").write_text(CARD, encoding="utf-8")
    return cards / "pebble-68.toml"


def run(*words: str | Path, engines: PaintedEngines | None = None) -> int:
    return main([str(word) for word in words], engines or PaintedEngines())


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, beside what a start that compiles says."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("compiling for ")]
    assert len(lines) == 1, lines
    return lines[0]


# batch


def test_successful_batch_exits_with_0_and_prints_nothing_on_stdout(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("batch", video, "--out", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "clip.mp4: 12 frames" in captured.err
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"clip.csv", "clip.json"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("missing.mp4", None, "not found"),
        ("empty.mp4", b"", "the file is empty"),
        ("text.mp4", b"Dear diary, today was a day.\n" * 50, "not a readable video"),
    ],
)
def test_a_single_input_that_cannot_be_read_exits_with_1_and_one_line(
    name: str, content: bytes | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run("batch", tmp_path / name, "--out", tmp_path / "out") == 1
    line = only_line(capsys)
    assert name in line
    assert told in line
    assert list((tmp_path / "out").iterdir()) == []


def test_partly_failed_batch_exits_with_3_and_lists_the_failures_last(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.mp4"
    assert run("batch", missing, video, "--out", tmp_path / "out") == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"facetrack: failed: {missing}: not found")
    assert (tmp_path / "out/clip.csv").is_file()


def test_batch_with_workers_lists_failures_in_input_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["text.mp4", "missing.mp4", "empty.mp4"]  # no video among them: workers would compile for its faces
    (tmp_path / "text.mp4").write_bytes(b"Dear diary\n")
    (tmp_path / "empty.mp4").touch()
    assert run("batch", *(tmp_path / name for name in names), "--out", tmp_path / "out", "--workers", "2") == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-3:]
    assert all(line.startswith(f"facetrack: failed: {tmp_path / name}") for line, name in zip(last, names, strict=True))


def test_each_shard_does_its_own_inputs_and_a_surplus_shard_does_nothing(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("batch", video, "--out", tmp_path / "out", "--shard")
    assert run(*words, "2/2") == 0
    assert "shard 2/2: nothing to do" in only_line(capsys)
    assert not (tmp_path / "out").exists()
    assert run(*words, "1/2") == 0
    assert (tmp_path / "out/clip.csv").is_file()


@pytest.mark.parametrize("words", ["0/2", "3/2", "2", "-1/2", "1/0", "a/b", "1/2/3", " 1/2"])
def test_invalid_shards_are_bad_usage(
    words: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("batch", video, "--out", tmp_path, f"--shard={words}") == 2
    assert "wanted I/N" in capsys.readouterr().err


def test_existing_results_need_overwrite(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("batch", video, "--out", tmp_path) == 0
    capsys.readouterr()
    assert run("batch", video, "--out", tmp_path) == 1
    assert "--overwrite or --resume" in only_line(capsys)
    assert run("batch", video, "--out", tmp_path, "--overwrite") == 0
    assert run("batch", video, "--out", tmp_path, "--resume") == 0


def test_an_output_folder_that_is_a_file_exits_with_1(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    assert run("batch", video, "--out", tmp_path / "out") == 1
    assert "cannot be created" in only_line(capsys)


def test_ctrl_c_exits_with_130_and_keeps_complete_rows(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = PaintedEngines(PaintedBackend(failing={6: KeyboardInterrupt()}))
    assert run("batch", video, "--out", tmp_path, engines=engines) == 130
    assert only_line(capsys).endswith(f"clip.mp4: interrupted; the rows so far are in {tmp_path / 'clip.csv.part'}")
    rows = read_csv(tmp_path / "clip.csv.part")
    assert rows
    assert None not in rows[-1].values()


def test_a_single_video_that_breaks_off_exits_with_3_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = VideoRecipe(mux={"movflags": "faststart"}, options={"crf": "10", "g": "5"})
    source = PaintedSource(count=40, faces=(PaintedFace(velocity=(60.0, 0.0)),))
    cut = write_video(tmp_path / "cut.mp4", (source.picture(index) for index in range(source.count)), recipe)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    for again in ((), ("--resume",)):
        assert run("batch", cut, "--out", tmp_path / "out", *again) == 3
        assert "breaks off after frame" in capsys.readouterr().err.splitlines()[-1]
        assert (tmp_path / "out/cut.csv").is_file()


def test_damaged_video_exits_with_0_on_first_run_and_on_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = PaintedSource(count=9, faces=(PaintedFace(velocity=(60.0, 0.0)),))
    path = write_video(
        tmp_path / "a.mov", (source.picture(i) for i in range(9)), VideoRecipe("png", "rgb24", options={})
    )
    damage(path, 4)
    for again in ((), ("--resume",)):
        assert run("batch", path, "--out", tmp_path / "out", *again) == 0
        assert "a.mov: problems in 1 place, first: packet after frame" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("batch", "", "--out"), ("live", "--no-window", "--camera", "", "--csv")])
def test_empty_input_name_is_refused(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    paint_pictures(tmp_path, PaintedSource(count=1), ["a.png"])
    assert run(*words, tmp_path / "out") == 1
    assert "got an empty name" in only_line(capsys)


@pytest.mark.parametrize(
    "words",
    [
        ("batch", "a.png", "--out"),
        ("batch", "a.png", "--out", "out", "--intrinsics"),
        ("live", "--camera", "0", "--no-window", "--csv"),
        ("live", "--camera", "0", "--no-window", "--record"),
        ("evaluate", "300w", "data", "--out"),
        ("train", "config.toml", "--data", "data", "--out"),
        ("probe", "run", "data", "--out"),
        ("export", "gv", "--to", "onnx", "--out"),
        ("calibrate", "camera", "board.mp4", "--out"),
    ],
)
def test_empty_output_name_is_bad_usage(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a variable that is not set; it would be the current folder."""
    monkeypatch.chdir(tmp_path)
    assert run(*words, "") == 2
    assert "got an empty one; is a variable not set?" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


class LikeWindows:
    """The module `os`, with the name that it has there."""

    name = "nt"

    def __getattr__(self, attribute: str) -> object:
        return getattr(os, attribute)


def test_globs_are_left_unexpanded_by_click_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There click would make a task of each picture, and drop the folders that --keep-folders is to keep."""
    paint_pictures(tmp_path / "shots", PaintedSource(count=2), ["1.png", "2.png"])
    monkeypatch.setattr("click.core.os", LikeWindows())
    words = ["facetrack", "batch", str(tmp_path / "shots/*.png"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", words)
    assert main(engines=PaintedEngines()) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"shots.csv", "shots.json"}


def test_quiet_prints_only_errors(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("batch", video, "--out", tmp_path, "--quiet", "--overwrite") == 0
    run("batch", tmp_path / "missing.mp4", "--out", tmp_path, "-q")
    assert "missing.mp4: not found" in only_line(capsys)


def test_options_reach_the_engines_and_the_table(video: Path, tmp_path: Path) -> None:
    engines = PaintedEngines()
    words = (
        "--detect-every",
        "3",
        "--max-faces",
        "2",
        "--min-face",
        "50",
        "--smooth",
        "none",
        "--threads",
        "2",
        "--raw",
    )
    assert run("batch", video, "--out", tmp_path, *words, "--landmark-confidence", engines=engines) == 0
    assert engines.opened == [Choices(detect_every=3, max_faces=2, min_face=50, smooth="none", threads=2)]
    header = (tmp_path / "clip.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.endswith("yr_67," + ",".join(f"c_{i}" for i in range(68)))


def test_the_defaults_of_the_options_are_those_of_the_library(video: Path, tmp_path: Path) -> None:
    engines = PaintedEngines()
    run("batch", video, "--out", tmp_path, engines=engines)
    assert engines.opened == [Choices()]


# usage


@pytest.mark.parametrize(
    "words",
    [
        ("batch",),
        ("batch", "clip.mp4"),
        ("batch", "clip.mp4", "--out", "out", "--backend", "abacus"),
        ("batch", "clip.mp4", "--out", "out", "--overwrite", "--resume"),
        ("batch", "clip.mp4", "--out", "out", "--threads", "0"),
        ("live", "--camera", "0", "--no-window"),
        ("live",),
        ("--camera",),
        ("live", "--camera", "0", "--camera-size", "1280"),
        ("live", "--camera", "0", "--camera-rate", "0"),
        ("live", "--camera", "0", "--camera-format", "M JPEG"),
        ("live", "--camera", "0", "--retry", "-1"),
        ("juggle",),
        ("export", "gv", "--to", "onnx", "--out", "out", "--precision", "fp8"),
        ("export", "gv", "--to", "onnx", "--out", "out", "--batch", "few"),
        ("bench", "--networks", "--batch", "1" + "0" * 30),
        ("batch", "shots", "--out", "out", "--shard", "1/9999999999"),
        ("batch", "shots", "--out", "out", "--frame-rate", "1000001"),
    ],
    ids=" ".join,
)
def test_bad_usage_exits_with_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert "Error: " in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("file", [".", "", "..", "/"])
@pytest.mark.parametrize(
    "words",
    [
        ("live", "--camera", "clip.mp4", "--no-window", "--csv"),
        ("live", "--camera", "clip.mp4", "--no-window", "--record"),
        ("calibrate", "camera", "clip.mp4", "--out"),
    ],
    ids=" ".join,
)
def test_folder_or_empty_name_in_place_of_an_output_file_is_bad_usage(
    words: tuple[str, ...], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, file) == 2
    assert f"Error: Invalid value for '{words[-1]}': " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_non_finite_min_face_is_bad_usage(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("batch", "clip.mp4", "--out", "out", f"--min-face={value}") == 2
    assert "Error: Invalid value for '--min-face': " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("value", ["1e-300", "0.5", "7.9"])
def test_min_face_below_the_detectors_limit_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("batch", "clip.mp4", "--out", "out", f"--min-face={value}") == 2
    assert f"wanted {MIN_FACE} pixels or more, or 0" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(ConfigError, match=f"min_face: wanted {MIN_FACE} pixels or more, or 0 to"):
        Choices(min_face=float(value))
    assert Choices(min_face=MIN_FACE).min_face == MIN_FACE


@pytest.mark.parametrize("name", ["-dash.mp4", "--out.mp4"])
def test_file_name_that_looks_like_an_option_gets_a_hint_on_how_to_write_it(
    name: str, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(video.read_bytes())
    assert run("batch", name, "--out", "out") == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"To name the file {name}, write ./{name} or put -- before it."
    assert run("batch", "--out", "out", f"./{name}") == 0
    assert run("batch", "--out", "out", "--overwrite", "--", name) == 0


@pytest.mark.parametrize("words", [("-q", "batch", "clip.mp4", "--out", "out"), ("-v", "doctor")], ids=" ".join)
def test_options_before_the_command_are_bad_usage(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert f"Error: options go after the command: facetrack {words[1]} " in capsys.readouterr().err.splitlines()[-1]


def test_ctrl_c_during_imports_exits_quietly() -> None:
    program = """
import sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "facetrack.training.commands":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from facetrack.cli import main
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_version_and_help_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert facetrack.__version__ in capsys.readouterr().out
    assert run("-h") == 0
    assert "batch" in capsys.readouterr().out


def test_module_runs_as_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "facetrack", "--version"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_broken_picture_gives_one_error_line_and_no_opencv_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENCV_LOG_LEVEL", raising=False)
    broken = tmp_path / "board.bmp"
    paint_pictures(tmp_path, PaintedSource(count=1), [broken.name])
    broken.write_bytes(broken.read_bytes()[:1000])
    words = (sys.executable, "-m", "facetrack", "calibrate", "camera", broken, "--out", tmp_path / "camera.toml")
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"facetrack: {broken.name}: is not a complete picture in a format that can be decoded; save it as PNG or JPEG"
    ]


# live


def test_live_json_lines_are_the_only_thing_on_stdout(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--camera", video, "--jsonl", "--no-window") == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert lines[-1]["frame"] == 12  # of the frames before it, a slow machine drops some
    assert all(line["faces"][0]["face_id"] == 0 for line in lines)
    assert "dropped" in captured.err


@pytest.mark.skipif(os.name != "posix", reason="pipes are others elsewhere")
def test_live_completes_its_csv_when_the_reader_closes_the_pipe(
    slow_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", COMPILED)
    monkeypatch.setenv("PYTHONPATH", search_path())
    words = ("live", "--camera", str(slow_video), "--no-window", "--jsonl", "--csv", str(tmp_path / "live.csv"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *words], **pipes) as live:
        assert live.stdout is not None
        assert live.stderr is not None
        for _ in range(2):
            assert live.stdout.readline().startswith(b"{")
        live.stdout.close()
        told = [line for line in live.stderr.read().splitlines() if not line.startswith(b"compiling for ")]
        assert (live.wait(60), told) == (0, [])
    sidecar = json.loads((tmp_path / "live.json").read_text(encoding="utf-8"))
    assert sidecar["complete"] is True
    assert 2 <= sidecar["counts"]["frames"] < 150
    identity = {"name": "slow.mp4", "files": 1, "bytes": slow_video.stat().st_size}
    assert sidecar["input"].items() >= identity.items()
    assert len(sidecar["input"]["digest"]) == 16


def test_live_writes_the_table_and_the_annotated_video(video: Path, tmp_path: Path) -> None:
    table, movie = tmp_path / "live.csv", tmp_path / "live.mp4"
    assert run("live", "--camera", video, "--no-window", "--csv", table, "--record", movie) == 0
    assert {file.name for file in tmp_path.glob("live*")} == {"live.csv", "live.json", "live.mp4"}
    assert json.loads((tmp_path / "live.json").read_text(encoding="utf-8"))["complete"] is True


def test_live_sidecar_records_the_settings_of_the_run_and_is_overwritten_with_its_csv(
    video: Path, tmp_path: Path
) -> None:
    table, sidecar = tmp_path / "live.csv", tmp_path / "live.json"
    words = ("live", "--camera", video, "--no-window", "--csv", table)
    assert run(*words, "--smooth", "none", "--raw") == 0
    settings = json.loads(sidecar.read_text(encoding="utf-8"))["settings"]
    assert (settings["smooth"], settings["raw"], settings["intrinsics"]) == ("none", True, "default")
    assert settings["decoder"] == "cpu"
    assert run(*words, "--overwrite") == 0
    settings = json.loads(sidecar.read_text(encoding="utf-8"))["settings"]
    assert (settings["smooth"], settings["raw"]) == ("kalman", False)


def test_ctrl_c_completes_a_live_csv_and_exits_with_130(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = PaintedEngines(PaintedBackend(failing={3: KeyboardInterrupt()}))  # behind those for the first frame
    assert run("live", "--camera", video, "--no-window", "--csv", tmp_path / "live.csv", engines=engines) == 130
    assert (tmp_path / "live.csv").is_file()
    assert (tmp_path / "live.json").is_file()
    assert re.search(r"^\d+ frames? tracked, \d+ dropped$", capsys.readouterr().err, re.MULTILINE)


def test_live_counts_are_reported_even_after_a_write_error(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = PaintedEngines(PaintedBackend(failing={3: SinkError("the disk is full")}))
    assert run("live", "--camera", video, "--no-window", "--csv", tmp_path / "live.csv", engines=engines) == 1
    assert re.search(r"^\d+ frames? tracked, \d+ dropped\n.*the disk is full", capsys.readouterr().err, re.MULTILINE)


def test_lost_stream_exits_with_1_when_no_retries_are_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = served_once(paint_video(tmp_path / "clip.ts", PaintedSource(count=8)).read_bytes())
    assert run("live", "--camera", address, "--no-window", "--jsonl", "--retry", "0") == 1
    assert re.search(r"lost after frame 8 \(.*\): it ended; in stage capture", capsys.readouterr().err)


@pytest.fixture(scope="module")
def slow_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute of five frames a second."""
    recipe, source = VideoRecipe(rate=Fraction(5)), PaintedSource()
    return write_video(tmp_path_factory.mktemp("videos") / "slow.mp4", [source.picture(0)] * 150, recipe)


COMPILED = os.environ["NUMBA_CACHE_DIR"]  # by `import facetrack`, or by whoever runs the tests
PROGRAM = """
import signal
import sys
for name in ("SIGTERM", "SIGHUP"):  # the tests may run under nohup, where a hang-up stays ignored
    signal.signal(getattr(signal, name), signal.SIG_DFL)
from fakes_pipeline import PaintedEngines
from facetrack.cli import main
sys.exit(main(sys.argv[1:], PaintedEngines()))
"""


@pytest.mark.skipif(os.name != "posix", reason="elsewhere signals do not reach other processes")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_termination_signal_completes_a_live_csv(
    name: str, code: int, slow_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", COMPILED)
    monkeypatch.setenv("PYTHONPATH", search_path())
    words = ("live", "--camera", str(slow_video), "--no-window", "--jsonl", "--csv", str(tmp_path / "live.csv"))
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE) as live:
        assert live.stdout is not None
        for _ in range(2):  # with the second line the first frame is written to every output, and counts
            assert live.stdout.readline().startswith(b"{")
        live.send_signal(getattr(signal, name))
        live.stdout.read()
        assert live.wait(60) == code
    sidecar = json.loads((tmp_path / "live.json").read_text(encoding="utf-8"))
    rows = read_csv(tmp_path / "live.csv")
    assert sidecar["complete"] is True
    assert 0 < len(rows) < 150


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGHUP")
def test_ignored_signals_stay_ignored_and_signal_handlers_are_restored(video: Path, tmp_path: Path) -> None:
    class Ring(PaintedBackend):
        def run(self, images: UInt8) -> tuple[Float32, ...]:
            os.kill(os.getpid(), signal.SIGHUP)
            return super().run(images)

    def mine(*_: object) -> None: ...

    hang_up, end = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, mine)
    try:
        assert run("batch", video, "--out", tmp_path, engines=PaintedEngines(Ring())) == 0
        assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)) == (signal.SIG_IGN, mine)
    finally:
        signal.signal(signal.SIGHUP, hang_up)
        signal.signal(signal.SIGTERM, end)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere os.kill ends the process")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signal_that_python_swallows_is_heard_a_moment_later(
    name: str,
    code: int,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGTERM even where Ctrl-C is ignored, as in a shell's background."""
    number, others = getattr(signal, name), list[object]()

    class Rubbish:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    class Broken:
        def __del__(self) -> None:
            raise ValueError

    class Deaf(PaintedEngines):
        def __call__(self, choices: Choices) -> AbstractContextManager[Engines]:
            Broken()
            Rubbish()
            threading.Event().wait(10)
            return super().__call__(choices)

    def hook(error: object) -> None:
        others.append(getattr(error, "exc_type", None))

    monkeypatch.setattr(sys, "unraisablehook", hook)
    before = signal.signal(signal.SIGINT, signal.default_int_handler if name == "SIGINT" else signal.SIG_IGN)
    try:
        assert run("batch", video, "--out", tmp_path, engines=Deaf()) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert (others, sys.unraisablehook) == ([ValueError], hook)
    assert "KeyboardInterrupt" not in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="has no other signal to stand in")
def test_ctrl_break_ends_a_command_as_ctrl_c_does(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what programs on Windows can send each other; here another signal stands in."""

    class Break(PaintedBackend):
        def run(self, images: UInt8) -> tuple[Float32, ...]:
            os.kill(os.getpid(), number)
            return super().run(images)

    def unheard(*_: object) -> None: ...

    number = signal.SIGUSR1
    monkeypatch.setattr(signal, "SIGBREAK", number, raising=False)
    before = signal.signal(number, unheard)
    try:
        assert run("batch", video, "--out", tmp_path, engines=PaintedEngines(Break())) == 128 + number
        assert signal.getsignal(number) is unheard
    finally:
        signal.signal(number, before)


def test_jsonl_to_a_closed_stdout_is_one_error_line(
    video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert run("--camera", video, "--jsonl", "--no-window") == 1
    assert only_line(capsys).startswith("facetrack: --jsonl: stdout is closed")


def test_closed_stderr_does_not_change_exit_codes(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert run("batch", video, "--out", tmp_path / "out") == 0
    assert run("batch", tmp_path / "missing.mp4", "--out", tmp_path / "out") == 1
    assert run("juggle") == 2
    assert sys.stderr is None


def test_missing_display_is_one_error_line_and_leaves_no_files(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert run("--camera", video, "--csv", tmp_path / "live.csv") == 1
    assert "no display" in only_line(capsys)
    assert not list(tmp_path.glob("live*"))


def test_os_error_is_one_error_line(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = PaintedEngines(PaintedBackend(failing={0: OSError(errno.ENOSPC, "No space left on device", "a.csv")}))
    assert run("--camera", video, "--jsonl", "--no-window", engines=engines) == 1
    assert only_line(capsys).startswith("facetrack: a.csv: cannot be read or written: No space left on device; ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_stdout_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - no file
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(full, write_through=True))
        assert run("models") == 1
    assert only_line(capsys).startswith("facetrack: stdout or a file: cannot be read or written: No space left")


def test_missing_camera_is_one_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--camera", "97", "--jsonl", "--no-window") == 1
    assert "camera 97" in only_line(capsys)


# export, models, doctor, train


def test_an_export_that_has_no_crops_to_be_judged_by_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "crops").mkdir()
    words = ("export", "gv", "--to", "onnx", "--crops", tmp_path / "crops", "--out", tmp_path / "out")
    assert run(*words) == 1
    assert "wanted pictures of faces" in only_line(capsys)
    assert not (tmp_path / "out").exists()


def test_an_export_with_a_picture_that_cannot_be_read_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops/1.jpg").touch()
    words = ("export", "gv", "--to", "onnx", "--crops", tmp_path / "crops", "--out", tmp_path / "out")
    assert run(*words) == 1
    assert "1.jpg: the file is empty" in only_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("export", "--to", "onnx"), ("calibrate", "int8")], ids=" ".join)
def test_export_and_int8_take_models_of_any_task_and_unknown_models_are_bad_usage(
    words: tuple[str, ...], card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refine = '[weights.refine]\nfile = "a"\nsha256 = "b"\nprecision = "fp32"\n[weights.scan]'
    text = CARD.replace('"align"', '"detect"').replace("[weights.net]", refine).replace("pebble-68", "rock-5")
    (card.parent / "rock-5.toml").write_text(text, encoding="utf-8")
    assert run(*words, "nobody", "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "Error: Invalid value for 'MODEL': no model 'nobody' to align or detect with; available: " in told
    assert "pebble-68 (pebble)" in told
    assert "rock-5 (pebble)" in told
    assert run(*words, "rock-5", "--out", tmp_path / "out") == 1
    assert "weights/a: cannot read the weights" in only_line(capsys)


def test_models_lists_every_card_with_its_figures_and_terms(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert card.is_file()
    assert run("models") == 0
    out = capsys.readouterr().out
    for told in ("pebble-68", "ibug68", "12,345", "nme_beach: 3.5", "a beach", "research only"):
        assert told in out


def test_models_json_contains_figures_and_file_sizes(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert card.is_file()
    assert run("models", "--json") == 0
    entry = next(entry for entry in json.loads(capsys.readouterr().out) if entry["name"] == "pebble-68")
    assert entry["measured"] == {"nme_beach": 3.5}
    assert entry["bytes"] == 4


def test_characters_missing_from_the_code_page_are_written_as_ascii_escapes(
    card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into files and pipes, Python on Windows writes such a one."""
    card.write_text(CARD.replace("a beach", "Łódź, playa"), encoding="utf-8")
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="cp1252"))
    assert run("models") == 0
    sys.stdout.flush()
    assert "trained on: \\u0141ód\\u017a, playa".encode("cp1252") in written.getvalue()


def test_models_names_a_broken_card_and_lists_the_others(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (card.parent / "rock.toml").write_text("name = ", encoding="utf-8")
    assert run("models", "--json") == 0
    out, err = capsys.readouterr()
    assert "pebble-68" in [entry["name"] for entry in json.loads(out)]
    assert err.startswith(f"facetrack: broken: {card.parent / 'rock.toml'}: not a usable model card")


def test_models_names_weights_that_are_missing_or_altered(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = card.parent.parent / "weights" / "pebble.onnx"
    assert run("models") == 0
    assert only_line(capsys).startswith(f"facetrack: broken: {weights}: these are not the weights of the card")
    weights.unlink()
    assert run("models") == 0
    assert only_line(capsys).startswith(f"facetrack: broken: {weights}: cannot read the weights (No such file")


def test_an_unknown_model_is_bad_usage_and_one_whose_card_is_broken_an_error(
    card: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refine = '[weights.refine]\nfile = "a"\nsha256 = "b"\nprecision = "fp32"\n[weights.scan]'
    text = card.read_text(encoding="utf-8").replace('"align"', '"detect"')
    card.write_text(text.replace("[weights.net]", refine), encoding="utf-8")
    words = ["batch", str(video), "--out", str(tmp_path / "out"), "--model"]
    assert main([*words, "nobody"]) == 2
    assert "Error: Invalid value for '--model': no model 'nobody'" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    (card.parent / "rock.toml").write_text("name = ", encoding="utf-8")
    assert main([*words, "rock"]) == 1
    assert "rock.toml: not a usable model card" in only_line(capsys)


def test_the_doctor_finds_altered_weights(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert card.is_file()
    assert run("doctor", "--json") == 1
    checks = {check["subject"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["pebble-68"]["status"] == "failed"
    assert "sha256" in checks["pebble-68"]["detail"]
    assert checks["smoother"]["status"] == "ok"
    assert checks["numpy"]["status"] == "ok"
    assert checks["window"]["status"] == "absent" or sys.platform != "linux"


def test_doctor_flags_a_models_folder_that_is_set_but_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = Path(os.environ["FACETRACK_HOME"])
    assert models_folder() == Check(
        "your models", "absent", f"FACETRACK_HOME is {named}, which does not exist", "correct it, or create that folder"
    )
    named.mkdir()
    assert models_folder() == Check("your models", "ok", str(named))
    monkeypatch.delenv("FACETRACK_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert models_folder().status == "ok"


def test_doctor_checks_exactly_the_packages_each_extra_installs() -> None:
    every = [Requirement(line) for line in metadata.requires("facetrack") or []]
    here = [own for own in every if not own.marker or own.marker.evaluate({"extra": ""})]
    for extra in (*EXTRAS, "gpu", "no such extra"):
        more = [own for own in every if own.marker and own.marker.evaluate({"extra": extra})]
        assert packages_of(extra) == [own.name for own in more if own not in here]
    assert packages_of() == [own.name for own in here]
    assert "h5py" in packages_of("eval")


def test_doctor_names_the_missing_packages_of_an_extra_and_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facetrack.pipeline.doctor.version_of", {"h5py": "3.11"}.get)
    check = next(check for check in examine(PaintedEngines()) if check.subject == "evaluation")
    missing = ", ".join(package for package in packages_of("eval") if package != "h5py")
    assert check == Check("evaluation", "absent", f"{missing} not installed", 'pip install "facetrack[eval]"')


def models_folder() -> Check:
    """What the doctor says about it, before it has looked at anything slow."""
    return next(check for check in examine(PaintedEngines()) if check.subject == "your models")


def test_the_doctor_says_what_to_do(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert card.is_file()
    run("doctor")
    out = capsys.readouterr().out
    assert "NO  pebble-68" in out
    assert "    -> write that model again, or remove its card" in out


def test_missing_training_configuration_is_one_error_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", tmp_path / "no\nne.toml", "--data", tmp_path, "--out", tmp_path / "run")
    assert run(*words) == 1
    assert r"no\nne.toml: cannot read the configuration" in only_line(capsys)


def test_unknown_training_network_is_one_error_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    (tmp_path / "a.toml").write_text('[network]\nname = "oracle"\n', encoding="utf-8")
    assert run("train", tmp_path / "a.toml", "--data", tmp_path, "--out", tmp_path / "run") == 1
    assert "'oracle'" in only_line(capsys)


def test_training_without_torch_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("", encoding="utf-8")
    words = ["train", str(tmp_path / "a.toml"), "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    program = f"import sys; sys.modules['torch'] = None; from facetrack.cli import main; sys.exit(main({words}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == 'facetrack: training needs torch; run: pip install "facetrack[train]"\n'


def test_a_scene_of_the_probe_that_does_not_exist_is_bad_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "make", str(tmp_path / "out"), "--photos", str(tmp_path), "--scene", "dance"]) == 2
    assert "unknown scene 'dance'; wanted some of still" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_recording_to_a_name_without_mp4_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("live", "--camera", "clip.mp4", "--no-window", "--record", "clip.avi") == 2
    assert "'--record': wanted a name that ends in .mp4, got 'clip.avi'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--networks", "clip.mp4"), "leave VIDEO out"),
        (("--networks", "--faces", "4"), "--faces and --frames apply only to the generated video"),
        (("clip.mp4", "--frames", "20"), "--faces and --frames apply only to the generated video"),
        (("--batch", "2"), "add --networks"),
        (("--precision", "fp16"), "add --networks"),
    ],
)
def test_bench_options_without_effect_are_bad_usage(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
