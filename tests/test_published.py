"""The table of networks at the papers' sizes: computed counts beside the papers' own."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from facetrack.cli import main
from facetrack.engines.nets.published import PUBLISHED, Published


@pytest.mark.parametrize("net", [net for net in PUBLISHED if net.paper], ids=lambda net: net.title)
def test_sizes_are_the_papers_to_a_percent(net: Published) -> None:
    count, _, size = net.measured()
    number, unit = net.paper.split(",")[0].split()
    assert (size if unit == "MB" else count / 1e6) == pytest.approx(float(number), rel=0.01)


def test_propnet_costs_what_its_paper_says() -> None:
    (propnet,) = (net for net in PUBLISHED if net.title == "PropNet")
    assert propnet.measured()[1] == pytest.approx(42.83, rel=0.01)


def test_the_command_prints_every_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--published", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["NETWORK"] for row in table] == [net.title for net in PUBLISHED]
    assert {row["PARAMETERS"] for row in table} >= {"148,435", "160,440", "218,448", "312,711", "22,787,714"}
