"""What `facetrack doctor` says where something is odd, without looking at all the rest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes_pipeline import PaintedEngines, painted_card

from facetrack.engines import card as cards
from facetrack.engines.card_text import write_card
from facetrack.pipeline import doctor, machine
from facetrack.pipeline.check import Check
from facetrack.pipeline.doctor import REINSTALL, examine

OURS, CONTRIB = "opencv-python-headless", "opencv-contrib-python"


def check_of(subject: str) -> Check:
    """The first finding about it; nothing is looked at after that."""
    return next(check for check in examine(PaintedEngines()) if check.subject == subject)


def installed(*packages: str) -> Callable[[str], str | None]:
    """A machine on which all that is not OpenCV is installed, and of OpenCV just these packages."""
    return lambda package: "4.11" if package in packages or package not in doctor.OPENCV else None


def test_unknown_memory_is_reported_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"processor": "abacus", "cores": 2, "memory_gb": None, "system": "wood"}
    monkeypatch.setattr(doctor, "describe_machine", lambda: machine)
    assert check_of("machine").detail == "abacus, 2 cores, memory unknown, wood"


@pytest.mark.parametrize(
    ("packages", "status"), [((OURS,), "ok"), ((CONTRIB,), "ok"), ((OURS, CONTRIB), "absent"), ((), "ok")]
)
def test_working_opencv_never_fails_whichever_package_provides_it(
    packages: tuple[str, ...], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "version_of", installed(*packages))
    check = check_of("opencv")
    assert check.status == status
    assert all(f"{package} 4.11" in check.detail for package in packages)


@pytest.mark.parametrize(
    ("packages", "status", "remedy"),
    [
        (("onnxruntime",), "ok", ""),
        (("onnxruntime-gpu",), "ok", ""),  # as docs/engines.md has it
        (
            ("onnxruntime", "onnxruntime-gpu"),
            "absent",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
        ),
        ((), "failed", "pip install onnxruntime"),
    ],
)
def test_onnx_runtime_needs_exactly_one_of_its_cpu_and_gpu_packages(
    packages: tuple[str, ...], status: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {*doctor.ONNX_RUNTIME} - {*packages}
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name in missing else "1.24")
    check = check_of("onnxruntime")
    assert (check.status, check.remedy) == (status, remedy)
    assert all(f"{package} 1.24" in check.detail for package in packages)
    assert {check_of(name).status for name in ("numpy", "filterpy", "platformdirs")} == {"ok"}


def test_requirements_are_reported_unknown_if_facetrack_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DISTRIBUTION", "no-such-distribution")
    assert "its requirements are unknown" in check_of("packages").detail


@pytest.mark.parametrize("packages", [(OURS,), (OURS, CONTRIB), ()])
def test_opencv_that_cannot_be_imported_is_reported_as_failed(
    packages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "version_of", installed(*packages))
    monkeypatch.setitem(sys.modules, "cv2", None)
    check = check_of("opencv")
    assert (check.status, check.remedy[:13]) == ("failed", "pip uninstall")
    assert "ModuleNotFoundError" in check.detail


def test_missing_onnx_runtime_fails_its_backend_but_not_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = check_of("backend onnx")
    assert (check.status, check.remedy) == ("failed", "pip install onnxruntime")
    assert check_of("gv-mobilenetv3-68").status == "ok"


@pytest.mark.parametrize(("module", "subject"), [("cv2", "opencv"), ("av", "video")])
def test_unloadable_library_is_reported_and_the_remaining_checks_run(module: str, subject: str) -> None:
    """From the start, as where libGL is missing; the program that opens engines is none here."""
    program = f"""
import sys
sys.modules[{module!r}] = None
from facetrack.pipeline.doctor import examine
print(*(f"{{check.subject}}: {{check.status}}" for check in examine(None)), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()
    assert f"{subject}: failed" in told
    assert told[-1] == "whole program: failed"


def test_broken_card_is_reported_and_the_others_are_still_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "rock.toml").write_text("name = ", encoding="utf-8")
    check = check_of("rock")
    assert check.status == "failed"
    assert check.detail.startswith(f"{tmp_path / 'cards' / 'rock.toml'}: not a usable model card")
    assert check_of("gv-mobilenetv3-68").status == "ok"


def test_wrong_weights_suggest_reinstalling_for_shipped_cards_and_removal_for_user_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the package from its checkout, for no registry has it; those of the user's own from nowhere."""
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cards, "SHIPPED", tmp_path / "package")
    monkeypatch.setattr(doctor, "SHIPPED", tmp_path / "package")
    for name, place in (("rock", "package"), ("pebble", "home")):
        write_card(painted_card(name), tmp_path / place)
    assert check_of("rock").remedy == REINSTALL
    assert "--no-deps ." in REINSTALL
    assert "remove its card" in check_of("pebble").remedy
