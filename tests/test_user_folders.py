"""What is left in the user's folders: compiled kernels in the cache, and nothing of ONNX Runtime's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from facetrack.tracker.kernel_cache import choose_kernel_cache

HOMES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA")
KERNEL = "import facetrack.tracker.kalman as k; k.process_noise(1.0, 0.1)"
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


def test_onnx_runtime_leaves_no_trace(tmp_path: Path) -> None:
    assert left_by(NETWORK, tmp_path) == []


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    for name in HOMES:
        monkeypatch.setenv(name, str(tmp_path / "file"))
    choose_kernel_cache()
    assert os.access(os.environ["NUMBA_CACHE_DIR"], os.W_OK)


def test_the_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/somewhere")
    choose_kernel_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == "/somewhere"
