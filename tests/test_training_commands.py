"""The commands of training: where a folder, a file or a setting is at fault, one line says so; the exit code is 1."""

from __future__ import annotations

import errno
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("scipy", reason="needs the train extra")

from facetrack.tracker.errors import ConfigError
from facetrack.training.command_line import errors_in_one_line

COMMANDS = {
    "cut_faces": ("DIR/none", "DIR/out"),
    "detection.mining": ("DIR/none.toml", "DIR/run", "--data", "DIR"),
    "frames": ("DIR/none", "DIR/out"),
    "full_size": ("--tars", "DIR", "--work", "DIR/work", "--out", "DIR/out", "nobody"),
    "mesh_labels": ("DIR", "DIR/none.npz", "DIR/out", "--annotated", "afw"),
    "publish": ("DIR/none.toml", "DIR/run", "--data", "DIR", "--out", "DIR/out"),
    "relabel": ("DIR/none", "DIR/out", "--model", "nobody"),
    "turned": ("DIR/none", "DIR/out"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_input_is_one_error_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(f"facetrack.training.{name}")
    short = name.rpartition(".")[2]
    monkeypatch.setattr("sys.argv", [short, *(word.replace("DIR", str(tmp_path)) for word in COMMANDS[name])])
    with pytest.raises(SystemExit) as ended:
        module.main()
    line = str(ended.value.code)  # Python writes it on stderr and exits with 1
    assert line.startswith(f"{short}: ")
    assert "none" in line or "nobody" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("wanted a name"), "it: wanted a name"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "a.npz"),
            "it: a.npz: cannot be read or written: No such file",
        ),
        (OSError(errno.ENOSPC, "No space left"), "it: a file: cannot be read or written: No space left"),
    ],
)
def test_own_and_system_errors_are_one_line(error: Exception, line: str) -> None:
    with pytest.raises(SystemExit) as ended, errors_in_one_line("it"):
        raise error
    assert ended.value.code == line


@pytest.mark.parametrize("error", [ValueError("a mistake of ours"), OSError("so is this")])
def test_programming_errors_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), errors_in_one_line("it"):
        raise error
