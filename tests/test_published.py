"""The table of networks at the papers' sizes: computed counts beside the papers' own."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from facetrack.cli import main
from facetrack.engines import nets
from facetrack.engines.card import ModelCard, all_cards
from facetrack.engines.nets.published import PUBLISHED, Published
from facetrack.engines.torch_backend import load_net, torch_file


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    """What the command prints."""
    printed = StringIO()
    with redirect_stdout(printed):
        assert main(["models", "--published", "--json"]) == 0
    rows: list[dict[str, str]] = json.loads(printed.getvalue())
    return rows


@pytest.mark.parametrize("net", [net for net in PUBLISHED if net.paper], ids=lambda net: net.title)
def test_network_sizes_match_the_papers_within_one_percent(net: Published, table: list[dict[str, str]]) -> None:
    (row,) = (row for row in table if row["NETWORK"] == net.title)
    number, unit = net.paper.split(",")[0].split()
    size = float(row["MiB"]) if unit == "MB" else int(row["PARAMETERS"].replace(",", "")) / 1e6
    assert size == pytest.approx(float(number), rel=0.01)


def test_propnet_costs_what_its_paper_says(table: list[dict[str, str]]) -> None:
    (propnet,) = (row for row in table if row["NETWORK"] == "PropNet")
    assert float(propnet["GMAC"]) == pytest.approx(42.83, rel=0.01)


@pytest.mark.parametrize("card", [card for card in all_cards() if card.task == "align"], ids=lambda card: card.name)
def test_card_parameters_and_operations_match_the_deployed_network(card: ModelCard) -> None:
    weights = card.weights["net"]
    net = load_net(torch_file(weights.path), weights.sha256).net
    assert card.parameters == nets.deployed_parameters(net, card.size)
    assert card.gmac == round(nets.gmac(net, card.size), 3)


def test_the_command_prints_every_network(table: list[dict[str, str]]) -> None:
    assert [row["NETWORK"] for row in table] == [net.title for net in PUBLISHED]
    assert {row["PARAMETERS"] for row in table} >= {"148,435", "160,440", "218,448", "312,711", "138,905", "22,787,714"}
