"""What is left in the user's folders: compiled kernels in the cache, and nothing of ONNX Runtime's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes_pipeline import PaintedEngines

import facetrack
from facetrack.pipeline.doctor import examine
from facetrack.pipeline.open import Compiling
from facetrack.tracker import kernel_cache
from facetrack.tracker.kernel_cache import choose_kernel_cache

TRACKER = Path(facetrack.__file__).parent / "tracker"
HOMES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA")
KERNEL = "import facetrack.tracker.kalman as k; k.process_noise(1.0, 0.1)"
COMPILING = f"""
from facetrack.pipeline.open import Compiling
from facetrack.tracker import codecs
from numba.core import event  # which reads where kernels are kept
with event.install_listener("numba:compile", Compiling()):
    codecs._sign(1.0); {KERNEL}
"""
NETWORK = (
    "from facetrack.engines.card import find_card; from facetrack.engines.onnx_backend import OnnxBackend; "
    "import numpy as np; net = OnnxBackend(find_card('bbfcn', 'detect').weights['scan']); "
    "net.run(np.zeros((1, 32, 32, 3), np.uint8)); net.close()"
)


def left_by(code: str, home: Path) -> list[str]:
    """Files below a new home after running code in a process of its own."""
    told_by(code, home)
    return [file.name for file in home.rglob("*") if file.is_file()]


def told_by(code: str, home: Path) -> str:
    """What code says on stderr in a process of its own, whose user's home this is."""
    own = {name: str(home) for name in HOMES}
    hidden = ("NUMBA_CACHE_DIR", "ORT_DISABLE_TELEMETRY", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | own
    words = [sys.executable, "-P", "-c", code]  # -P: the folder facetrack in this home is no package
    return subprocess.run(words, env=environment, check=True, timeout=120, cwd=home, stderr=-1, text=True).stderr


def test_kernels_are_cached_in_the_users_folder_even_without_the_command_line(tmp_path: Path) -> None:
    found = left_by(KERNEL, tmp_path)
    assert any(name.startswith("kalman.process_noise") and name.endswith(".nbi") for name in found)


def test_kernels_with_changed_types_get_a_cache_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, changed, (kalman, *others) = [], tmp_path / "kalman.py", kernel_cache.TYPES
    changed.write_text(kalman.read_text(encoding="utf-8").replace("FilterState", "State"), encoding="utf-8")
    for types in (kernel_cache.TYPES, (changed, *others), kernel_cache.TYPES):
        monkeypatch.setattr(kernel_cache, "TYPES", types)
        monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        choose_kernel_cache()
        folders.append(os.environ["NUMBA_CACHE_DIR"])
    assert folders[0] == folders[2] != folders[1]


def test_kernel_cache_types_are_the_files_that_define_named_tuples() -> None:
    defining = {file.name for file in TRACKER.glob("*.py") if "(NamedTuple)" in file.read_text(encoding="utf-8")}
    assert defining == {types.name for types in kernel_cache.TYPES}


def test_compiling_is_announced_once_and_cached_kernels_are_not(tmp_path: Path) -> None:
    assert [told_by(COMPILING, tmp_path) for _ in range(2)] == [
        "compiling for this processor, up to half a minute; it is kept for later starts\n",
        "",
    ]


def test_onnx_runtime_leaves_no_trace(tmp_path: Path) -> None:
    assert left_by(NETWORK, tmp_path) == []


def test_unwritable_cache_falls_back_to_a_writable_folder_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    for name in HOMES:
        monkeypatch.setenv(name, str(tmp_path / "file"))
    choose_kernel_cache()
    assert os.access(os.environ["NUMBA_CACHE_DIR"], os.W_OK)
    Compiling().on_start(None)
    assert "at every start" in caplog.text
    assert "set NUMBA_CACHE_DIR" in caplog.text
    check = next(check for check in examine(PaintedEngines()) if check.subject == "compiled code")
    assert check.status == "absent"
    assert "every start compiles again" in check.detail
    assert check.remedy == "set NUMBA_CACHE_DIR to a folder that you can write"


def test_preset_numba_cache_dir_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/somewhere")
    choose_kernel_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == "/somewhere"
