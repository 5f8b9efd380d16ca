"""`benchmarks/smoothing.py`: what cannot end well is refused before anything is measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import smoothing


@pytest.mark.parametrize(
    ("name", "message"), [("plot.xyz", "wanted a name that ends in .png or .svg"), ("nodir/plot.png", "no folder")]
)
def test_invalid_plot_path_exits_with_a_usage_error(
    name: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["smoothing.py", "--plot", str(tmp_path / name)])
    with pytest.raises(SystemExit) as ended:
        smoothing.main()
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""
