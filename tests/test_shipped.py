"""The program as it is installed, with the weights that it brings, on a real face."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

from facetrack.engines.card import all_cards
from facetrack.pipeline.bench import BenchSettings, write_moving_portrait
from facetrack.pipeline.doctor import EYE_ERROR_PX
from facetrack.pipeline.portrait import EYES, portrait

pytestmark = pytest.mark.skipif(
    {card.task for card in all_cards()} != {"align", "detect"}, reason="no weights are shipped with this checkout"
)

FRAMES = 20
RIGHT_EYE, LEFT_EYE = range(36, 42), range(42, 48)  # ibug68


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("shipped")
    video = write_moving_portrait(folder / "portrait.mp4", BenchSettings(frames=FRAMES))
    command = [sys.executable, "-m", "facetrack", "batch", str(video), "--out", str(folder / "out")]
    environment = {**os.environ, "FACETRACK_HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    with (folder / "out/portrait.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_frame_has_one_face_with_the_same_track_id(table: list[dict[str, str]]) -> None:
    assert [(row["frame"], row["face_id"], row["success"]) for row in table] == [
        (str(1 + index), "0", "1") for index in range(FRAMES)
    ]


def test_the_eyes_are_where_a_human_sees_them(table: list[dict[str, str]]) -> None:
    scale = 480 / len(portrait())  # of the portrait in the video, whose first frame is not yet moved
    wanted = (EYES + 0.5) * scale - 0.5 + np.array([(640 - 480) / 2, 0])
    found = [[np.mean([float(table[0][f"{axis}_{i}"]) for i in eye]) for axis in "xy"] for eye in (RIGHT_EYE, LEFT_EYE)]
    assert np.abs(np.array(found) - wanted).max() < EYE_ERROR_PX * scale


def test_the_head_is_upright_and_looks_at_the_camera(table: list[dict[str, str]]) -> None:
    for axis in "xyz":
        assert abs(float(table[-1][f"pose_R{axis}"])) < np.radians(15)


def test_both_eyes_are_open(table: list[dict[str, str]]) -> None:
    assert min(float(table[-1]["ear_left"]), float(table[-1]["ear_right"])) > 0.15
