"""The figures that a card carries: divided by what was asked for, and by what every markup has where nothing was."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import PaintedFace
from fakes_benchmarks import picture_of
from fakes_nineteen import OF_68, NineteenBackend, nineteen_card
from fakes_pipeline import SIDE, PaintedBackend, painted_card

from facetrack.engines.backend import Backend
from facetrack.engines.card import ModelCard
from facetrack.tracker import markup
from facetrack.tracker.geometry import bounding_box
from facetrack.tracker.metrics import Normaliser
from facetrack.training.datasets import Sample
from facetrack.training.evaluation import card_figures

RIGHT = 4.0  # crop pixels
BOX = np.array([[60, 40, 210, 200]], np.float32)  # a data set's own, 150 by 160 pixels
FACE = PaintedFace(width=96.0)
TRUTH = FACE.landmarks(0)


def figures(
    monkeypatch: pytest.MonkeyPatch, card: ModelCard, net: Backend, sample: Sample, normaliser: Normaliser | None = None
) -> dict[str, float]:
    monkeypatch.setattr(card_figures, "OnnxBackend", lambda *_: net)
    return card_figures.alignment_figures(card, [sample], "held", normaliser)


def sample_of(points: np.ndarray, boxes: np.ndarray | None) -> Sample:
    return Sample(Path("a.png"), points[None], cv2.imencode(".png", picture_of(FACE))[1].tobytes(), boxes=boxes)


@pytest.mark.parametrize("normaliser", [None, "box", "diag", "face", "ip"])
@pytest.mark.parametrize("boxes", [None, BOX], ids=["no boxes", "own boxes"])
def test_figures_of_a_19_point_network_match_hand_computed_ones(
    monkeypatch: pytest.MonkeyPatch, normaliser: Normaliser | None, boxes: np.ndarray | None
) -> None:
    """Landmarks that are all off by so many pixels, over lengths worked out by hand."""
    points, card = TRUTH[OF_68], nineteen_card()
    width, height = (bounding_box(points)[2:] - bounding_box(points)[:2]).tolist()
    lengths = {
        "box": np.sqrt(width * height),
        "face": np.sqrt(width * height) if boxes is None else np.sqrt(150 * 160),
        "diag": np.hypot(width, height),
        "ip": np.linalg.norm(points[10] - points[7]),
    }
    off_px = RIGHT * max(width, height) * card.box_scale / SIDE
    kind = normaliser or "box"
    found = figures(monkeypatch, card, NineteenBackend(right=RIGHT), sample_of(points, boxes), normaliser)
    assert found == {
        f"NME {kind} %, held{turned}": pytest.approx(100 * off_px / lengths[kind], rel=0.05)
        for turned in ("", ", crop turned 30 degrees")
    }


def test_figures_of_a_68_point_network_are_inter_ocular_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for given, kind in ((None, "io"), ("ip", "ip")):
        found = figures(monkeypatch, painted_card(), PaintedBackend(), sample_of(TRUTH, None), given)
        assert list(found) == [f"NME {kind} %, held", f"NME {kind} %, held, crop turned 30 degrees"]
        assert max(found.values()) < 1.0


@pytest.mark.parametrize("name", markup.names())
def test_every_markup_has_its_usual_normaliser(name: str) -> None:
    outer_corners = {"ibug68", "wflw98", "cofw29"}
    assert card_figures.usual_normaliser(markup.load(name)) == ("io" if name in outer_corners else "box")
