"""Figures on a card: of its own files and, if it has some, of its 8-bit files for CPUs.

Each file is measured separately on ONNX Runtime, whatever backend this machine would use, so that a card is the same
wherever it was made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...engines.aligner import Aligner
from ...engines.card import ModelCard
from ...engines.card_text import card_path, card_text, write_card
from ...engines.onnx_backend import OnnxBackend
from ...pipeline.machine import usable_cores
from ...tracker.errors import CardError
from ...tracker.markup import Markup
from ...tracker.metrics import Normaliser, nme
from ..datasets import Sample
from .locate import GivenBoxLocator

EIGHT_BITS = ", 8 bits on a CPU"  # end of the names of figures of 8-bit files
TURNS = {"": 0.0, ", crop turned 30 degrees": math.pi / 6}
DIGITS = 3


def forms(card: ModelCard) -> dict[str, ModelCard]:
    """End of the figures' names -> the card with one form of files alone: its own, or the 8-bit ones."""
    own = {role: replace(weights, cpu=None) for role, weights in card.weights.items()}
    found = {"": replace(card, weights=own)}
    if any(weights.cpu for weights in card.weights.values()):
        small = {role: weights.cpu or own[role] for role, weights in card.weights.items()}
        found[EIGHT_BITS] = replace(card, weights=small)
    return found


def usual_normaliser(markup: Markup) -> Normaliser:
    """The default normaliser: the distance of the outer eye corners, or the box if the markup lacks these points."""
    return "io" if "io" in markup.normalisers else "box"


def alignment_figures(
    card: ModelCard, samples: Sequence[Sample], pictures: str, normaliser: Normaliser | None = None
) -> dict[str, float]:
    """NME in percent in ground-truth boxes, upright and turned, of each of the card's files.

    Args:
        card: of an alignment network.
        samples: one face each, with all points of the card's markup.
        pictures: their name in the figures' names.
        normaliser: what errors are divided by; None for the markup's usual one.
    """
    figures = {}
    for ending, form in forms(card).items():
        with closing(OnnxBackend(form.weights["net"], usable_cores())) as backend:
            aligner = Aligner(form, backend)
            kind = normaliser or usual_normaliser(aligner.markup)
            for turned, angle in TURNS.items():
                figures[f"NME {kind} %, {pictures}{turned}{ending}"] = _error(aligner, samples, angle, kind)
    return rounded(figures)


def _error(aligner: Aligner, samples: Sequence[Sample], angle: float, kind: Normaliser) -> float:
    locate = GivenBoxLocator(aligner, aligner.markup, angle)
    errors = [
        nme(locate(sample.bgr(), sample.points[0]).xy[None], sample.points, aligner.markup, kind, sample.boxes)
        for sample in samples
    ]
    return 100 * float(np.mean(errors))


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures rounded as on a card; NaNs are left out."""
    return {name: round(value, DIGITS) for name, value in figures.items() if not math.isnan(value)}


def write_figures(card: ModelCard, figures: Mapping[str, float], out: Path) -> Path:
    """Give a card in OUT/cards new figures; its other figures, and everything else in the file, stay as they are.

    Raises:
        CardError: the card cannot be read.
        SinkError: it cannot be written.
    """
    path = card_path(card.name, out)
    try:
        old = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CardError(f"{path}: cannot read the model card: {error.strerror}") from error
    card = replace(card, measured={**card.measured, **figures})
    write_card(card, out, with_table(old, card_text(card), "measured"))
    return path


def with_table(old: str, new: str, name: str) -> str:
    """The text of a card with one table taken from a new text: in place of the old table, or at the end.

    Comments within the old table are removed with it; those after it stay, because they belong to what follows.
    """
    table = re.compile(rf"^\[{re.escape(name)}\]\n(?:.*\n)*?(?=(?:[ \t]*(?:#.*)?\n)*(?:\[|\Z))", re.MULTILINE)
    old, found = f"{old.rstrip()}\n", table.search(new)
    assert found is not None
    if table.search(old) is None:
        return f"{old}\n{found[0]}"
    return table.sub(lambda _: found[0], old, count=1)
