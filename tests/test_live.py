"""What a live run refuses before it opens anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from facetrack.pipeline.live import LiveOutputs
from facetrack.tracker.errors import ConfigError, SinkError


@pytest.mark.parametrize(
    ("csv", "record"), [("out.json", None), ("same.x", "same.x"), ("run.csv", "run.json"), ("a.csv", "./a.csv")]
)
def test_outputs_that_would_write_over_each_other_are_refused(csv: str, record: str | None, tmp_path: Path) -> None:
    outputs = LiveOutputs(csv=tmp_path / csv, record=tmp_path / record if record else None, overwrite=True)
    with pytest.raises(ConfigError, match="a file of its own"):
        outputs.refuse_collisions("0")


@pytest.mark.parametrize("output", ["csv", "record"])
def test_the_source_is_never_written_over(output: str, tmp_path: Path) -> None:
    source = tmp_path / "v.mp4"
    source.touch()
    with pytest.raises(ConfigError, match=r"v\.mp4: would be written over by its own output"):
        LiveOutputs(**{output: source}, overwrite=True).refuse_collisions(str(source))


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()  # where the sidecar of run.csv would go
    outputs = {"csv": tmp_path / "run.csv", "record": tmp_path / "run.mp4"}
    with pytest.raises(SinkError, match=r"run\.json: exists already; .*--overwrite"):
        LiveOutputs(**outputs).refuse_collisions("0")
    LiveOutputs(**outputs, overwrite=True).refuse_collisions("0")
    LiveOutputs().refuse_collisions("0")
