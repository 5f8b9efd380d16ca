"""What is left in the user's folders: compiled kernels in the cache, and nothing of ONNX Runtime's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest
from fakes_pipeline import PaintedEngines

import facetrack
from facetrack.pipeline.doctor import examine
from facetrack.pipeline.talk import KERNEL_SOURCES, announce_compilation
from facetrack.tracker import kernel_cache
from facetrack.tracker.kernel_cache import choose_kernel_cache

TRACKER = Path(facetrack.__file__).parent / "tracker"
HOMES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA")
KERNEL = "import facetrack.tracker.kalman as k; k.process_noise(1.0, 0.1)"
KERNELS = (
    f"{KERNEL}; import numpy as np; from facetrack.tracker import appearance, codecs, geometry, proposals; "
    "appearance._cube_root(0.5); codecs._sign(1.0); plane = np.zeros((8, 8), np.float32); "
    "geometry._turned_box(plane[:, :2].copy(), 1.0, 0.0); proposals._is_peak(plane, 0, 0)"
)
NETWORK = (
    "from facetrack.engines.card import find_card; from facetrack.engines.onnx_backend import OnnxBackend; "
    "import numpy as np; net = OnnxBackend(find_card('bbfcn', 'detect').weights['scan']); "
    "net.run(np.zeros((1, 32, 32, 3), np.uint8)); net.close()"
)


def left_by(code: str, home: Path) -> list[str]:
    """Files below a new home after running code in a process of its own."""
    own = {name: str(home) for name in HOMES}
    hidden = ("NUMBA_CACHE_DIR", "ORT_DISABLE_TELEMETRY", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | own
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120, cwd=home)
    return [file.name for file in home.rglob("*") if file.is_file()]


def test_kernels_are_kept_in_the_users_cache_also_without_the_command_line(tmp_path: Path) -> None:
    found = left_by(KERNEL, tmp_path)
    assert any(name.startswith("kalman.process_noise") and name.endswith(".nbi") for name in found)


def test_another_version_whose_kernels_take_other_types_has_a_cache_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, changed, (kalman, *others) = [], tmp_path / "kalman.py", kernel_cache.TYPES
    changed.write_text(kalman.read_text(encoding="utf-8").replace("FilterState", "State"), encoding="utf-8")
    for types in (kernel_cache.TYPES, (changed, *others), kernel_cache.TYPES):
        monkeypatch.setattr(kernel_cache, "TYPES", types)
        monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        choose_kernel_cache()
        folders.append(os.environ["NUMBA_CACHE_DIR"])
    assert folders[0] == folders[2] != folders[1]


def test_the_files_whose_types_kernels_take_are_those() -> None:
    defining = {file.name for file in TRACKER.glob("*.py") if "(NamedTuple)" in file.read_text(encoding="utf-8")}
    assert defining == {types.name for types in kernel_cache.TYPES}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a kernel of each source that every start compiles."""
    home = tmp_path_factory.mktemp("home")
    left_by(KERNELS, home)
    return next(home.rglob("*.nbi")).parents[1]


def index_of(source: str, cache: Path) -> Path:
    return next(cache.rglob(f"{source}.*.nbi"))


@pytest.mark.parametrize("change", ["nothing", "source", "numba", "python", "place", "missing", "empty"])
def test_a_start_is_announced_when_it_will_compile(
    change: str, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "numba"
    shutil.copytree(kept, cache)
    index = index_of("codecs", cache)
    if change == "source":
        index.write_bytes(index.read_bytes().replace(sha256((TRACKER / "codecs.py").read_bytes()).digest(), bytes(32)))
    elif change == "numba":
        index.write_bytes(index.read_bytes().replace(version("numba").encode(), b"0.0.0"))
    elif change == "python":
        index.rename(index.with_name(index.name.replace(".py3", ".py2")))
    elif change == "place":
        index.parent.rename(cache / "tracker_0123")
    elif change == "missing":
        index.unlink()
    elif change == "empty":
        shutil.rmtree(cache)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache))
    announce_compilation()
    assert bool(capsys.readouterr().err) == (change != "nothing")


def test_every_source_of_kernels_is_looked_for_but_the_one_that_an_option_needs() -> None:
    with_kernels = {file.stem for file in TRACKER.glob("*.py") if "\n@njit(" in file.read_text(encoding="utf-8")}
    assert with_kernels == {*KERNEL_SOURCES, "rts"}


def test_onnx_runtime_leaves_no_trace(tmp_path: Path) -> None:
    assert left_by(NETWORK, tmp_path) == []


def test_a_cache_that_cannot_be_written_is_no_obstacle_and_every_start_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    for name in HOMES:
        monkeypatch.setenv(name, str(tmp_path / "file"))
    choose_kernel_cache()
    assert os.access(os.environ["NUMBA_CACHE_DIR"], os.W_OK)
    announce_compilation()
    told = capsys.readouterr().err
    assert "at every start" in told
    assert "set NUMBA_CACHE_DIR" in told
    check = next(check for check in examine(PaintedEngines()) if check.subject == "compiled code")
    assert check.status == "absent"
    assert "every start compiles anew" in check.detail
    assert check.remedy == "set NUMBA_CACHE_DIR to a folder of yours"


def test_the_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/somewhere")
    choose_kernel_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == "/somewhere"
