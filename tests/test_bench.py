"""The benchmark measures what it says, on a video of its own making."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fakes_pipeline import PaintedEngines

from facetrack.pipeline.bench import SIZE, BenchSettings, moving_portraits, run_bench
from facetrack.pipeline.machine import source_commit
from facetrack.pipeline.open import Choices
from facetrack.pipeline.tables import bench_as_table


@pytest.mark.parametrize("faces", [1, 4])
def test_bench_pictures_move_and_four_faces_repeat_top_and_bottom(faces: int) -> None:
    first, *_, last = moving_portraits(faces, 10)
    assert first.shape == last.shape == (*SIZE, 3)
    assert (first != last).any()
    if faces == 4:
        top, bottom = np.split(first, 2)
        assert (top == bottom).all()


def test_the_report_holds_the_whole_run_its_parts_and_the_machine() -> None:
    with PaintedEngines()(Choices()) as engines:
        report = run_bench(BenchSettings(frames=12), engines)
    assert report["counts"]["frames"] == 12
    assert report["wall_ms_per_frame"] > 0
    assert set(report["stages_ms"]) == {"capture", "detect", "align", "smooth"}
    assert {"detect, whole frame", "align, 4 faces", "decode, one face"} <= set(report["parts_ms"])
    assert report["machine"]["cores"] >= 1
    assert report["commit"] == source_commit()
    assert json.loads(json.dumps(report)) == report
    assert "12 frames" in bench_as_table(report)
