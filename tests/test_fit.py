"""Whether a card fits its networks is found when they are opened."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from facetrack.engines.backend import Shapes
from facetrack.engines.card import SHIPPED, ModelCard, find_card, read_card
from facetrack.engines.card_text import write_card, write_weights
from facetrack.engines.fit import check_files_fit, check_fit
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.pipeline.doctor import _models
from facetrack.pipeline.open import Choices, open_engines
from facetrack.tracker.errors import CardError

GV = read_card(SHIPPED / "cards" / "gv-mobilenetv3-68.toml")
DETECTOR = read_card(SHIPPED / "cards" / "bbfcn-5.toml")
WRONG = [
    ({"markup": "wflw98"}, r"broken: markup: wanted one with 68 points, as broken\.onnx has, got wflw98 with 98;"),
    (
        {"size": (96, 128)},
        r"broken: input\.size: wanted \[96, 96\], which broken\.onnx takes, got \[96, 128\]; correct",
    ),
]

pytestmark = pytest.mark.skipif(not GV.weights["net"].path.exists(), reason="the trained weights are not here")


def backend(*shape: int | None, outputs: list[tuple[int | None, ...]]) -> Any:
    return SimpleNamespace(shapes=Shapes(shape, tuple(outputs)))


def written(home: Path, **changes: object) -> ModelCard:
    """The shipped GV with other numbers on its card, in a folder of the user's."""
    weights = {"net": write_weights(home, "broken", GV.weights["net"].read(), "fp16")}
    return write_card(replace(GV, name="broken", weights=weights, **changes), home)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted((SHIPPED / "cards").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_card_fits_each_of_its_files(path: Path) -> None:
    check_files_fit(read_card(path))


def test_onnx_backend_reports_graph_shapes_and_dynamic_axes() -> None:
    shapes = OnnxBackend(GV.weights["net"]).shapes
    assert shapes == Shapes((None, 96, 96, 3), ((None, 68, 24, 2), (None, 2)))
    assert OnnxBackend(DETECTOR.weights["scan"]).shapes == Shapes((None, None, None, 3), ((None, 5, None, None),))


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_card_that_does_not_match_its_network_is_refused_on_opening(
    changes: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    written(tmp_path, **changes)
    with pytest.raises(CardError, match=message), open_engines(Choices(model="broken", backend="onnx")):
        pytest.fail("opened")


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_doctor_reports_a_card_that_does_not_match_its_network(
    changes: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    written(tmp_path, **changes)
    checks = {check.subject: check for check in _models()}
    assert checks["broken"].status == "failed"
    assert re.search(message, checks["broken"].detail)
    assert {checks[card.name].status for card in (GV, DETECTOR)} == {"ok"}
    assert find_card("broken", "align").weights["net"].read()


@pytest.mark.parametrize(
    ("kind", "outputs", "fits"),
    [
        ("vectors", [(None, 68, 24, 2), (None, 2)], True),
        ("vectors", [(None, 98, 24, 2), (None, 2)], False),
        ("vectors", [(None, None, 24, 2), (None, 2)], True),  # nothing is known
        ("discs-in-windows", [(None, 1, 9, 9), (None, 68, 24, 24), (None, 68, 2), (None, 2)], True),
        ("discs-in-windows", [(None, 68, 9, 9), (None, 5, 24, 24), (None, 5, 2), (None, 2)], False),
        ("discs-in-windows", [(None, 68, 9, 9)], True),  # nothing to compare
        ("cells", [(None, 3 * 68, 9, 9), (None, 2)], True),
        ("cells", [(None, 68, 9, 9), (None, 2)], False),
    ],
)
def test_number_of_points_is_checked_in_the_output_that_the_codec_reads(
    kind: str, outputs: list[tuple[int | None, ...]], *, fits: bool
) -> None:
    card, net = replace(GV, codec={"kind": kind}), backend(None, 96, 96, 3, outputs=outputs)
    if fits:
        check_fit(card, card.weights["net"], net)
    else:
        with pytest.raises(CardError, match="wanted one with "):
            check_fit(card, card.weights["net"], net)


def test_backend_without_shapes_is_not_checked() -> None:
    wrong: Any = replace(GV, markup="wflw98", size=(1, 1))
    check_fit(wrong, GV.weights["net"], SimpleNamespace(shapes=None))  # type: ignore[arg-type]
