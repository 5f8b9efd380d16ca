"""Frames that a program makes itself are looked at before they are tracked."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import PaintedSource
from fakes_pipeline import PaintedEngines, paint_pictures, paint_video

from facetrack import Choices, Frame, open_source
from facetrack.pipeline.intake import LEAPS, check_frames

PICTURE = np.zeros((48, 64, 3), np.uint8)


def at(times_s: Sequence[float]) -> Iterator[Frame]:
    return (Frame(index, time_s, 0.0, PICTURE) for index, time_s in enumerate(times_s))


class TimeLapse:
    """A source of a frame a minute."""

    kind = "video"

    def __iter__(self) -> Iterator[Frame]:
        return at([60.0 * index for index in range(30)])


@pytest.mark.parametrize(
    ("times_s", "told"),
    [
        ([0.0] * 9, ["frame 2: time_s is 0 after 0: wanted increasing seconds; without them nothing is smoothed"]),
        ([0.0, 0.1, 0.2, 0.15, 0.1], ["frame 4: time_s is 0.15 after 0.2"]),
        ([index * 33.3 for index in range(30)], [rf"frame {LEAPS + 1}: time_s has jumped .* is it in milliseconds\?"]),
        ([index / 30 for index in range(30)], []),
        ([float(index) for index in range(30)], []),  # pictures count 0, 1, 2, ...
        ([0.0, 0.04, 9.0, 9.04, 20.0, 20.04], []),  # shots of a film, one after the other
    ],
    ids=["still", "back", "milliseconds", "seconds", "pictures", "shots"],
)
def test_timestamps_unusable_for_smoothing_are_reported_once(
    times_s: list[float], told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with PaintedEngines()(Choices()) as engines, caplog.at_level(logging.WARNING, "facetrack"):
        assert len(list(engines.pipeline(engines.choices).run(at(times_s)))) == len(times_s)
    assert len(caplog.records) == len(told)
    for record, wanted in zip(caplog.records, told, strict=True):
        assert re.match(wanted, record.getMessage())


def test_built_in_sources_and_a_time_lapse_trigger_no_timestamp_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paint_pictures(tmp_path / "p", PaintedSource(count=3), ["1.png", "2.png", "3.png"])
    paint_video(tmp_path / "clip.mp4", PaintedSource(count=6))
    with PaintedEngines()(Choices()) as engines, caplog.at_level(logging.WARNING, "facetrack"):
        for name in ("p", "clip.mp4"):
            with open_source(tmp_path / name) as source:
                assert len(list(engines.pipeline(engines.choices).run(source))) in (3, 6)
        assert len(list(check_frames(TimeLapse()))) == 30
    assert caplog.records == []


@pytest.mark.parametrize("method", ["run", "serial"])
@pytest.mark.parametrize(
    ("frames", "got"), [(PICTURE, "ndarray"), ([PICTURE], "ndarray"), (["clip.mp4"], "str"), ([None], "NoneType")]
)
def test_input_that_is_no_frame_raises_naming_its_type(method: str, frames: Any, got: str) -> None:
    told = pytest.raises(ValueError, match=rf"wanted Frame, got {got}; .* Frame\(index, time_s, taken_s, bgr\)")
    with PaintedEngines()(Choices()) as engines, told:
        list(getattr(engines.pipeline(engines.choices), method)(frames))
