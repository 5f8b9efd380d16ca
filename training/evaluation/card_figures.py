"""Figures on a card: of its own files and, where it has such, of those in 8 bits for CPUs.

Each file is measured by itself, on ONNX Runtime, whatever this machine would run: a card says the same wherever it was
made.
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
from .locate import InGivenBox

EIGHT_BITS = ", 8 bits on a CPU"  # ends the names of the figures of files in 8 bits
TURNS = {"": 0.0, ", crop turned 30 degrees": math.pi / 6}
DIGITS = 3


def forms(card: ModelCard) -> dict[str, ModelCard]:
    """How the names of the figures end -> the card with the files of one form alone: its own, or those of 8 bits."""
    own = {role: replace(weights, cpu=None) for role, weights in card.weights.items()}
    found = {"": replace(card, weights=own)}
    if any(weights.cpu for weights in card.weights.values()):
        small = {role: weights.cpu or own[role] for role, weights in card.weights.items()}
        found[EIGHT_BITS] = replace(card, weights=small)
    return found


def usual_normaliser(markup: Markup) -> Normaliser:
    """What errors are divided by where nobody says so: the outer eye corners' distance, without such points the box."""
    return "io" if "io" in markup.normalisers else "box"


def alignment_figures(
    card: ModelCard, samples: Sequence[Sample], pictures: str, normaliser: Normaliser | None = None
) -> dict[str, float]:
    """NME in percent in the annotations' boxes, upright and turned, of each of the card's files.

    Args:
        card: of an alignment network.
        samples: one face each, with all points of the card's markup.
        pictures: what they are called.
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
    locate = InGivenBox(aligner, aligner.markup, angle)
    errors = [
        nme(locate(sample.bgr(), sample.points[0]).xy[None], sample.points, aligner.markup, kind, sample.boxes)
        for sample in samples
    ]
    return 100 * float(np.mean(errors))


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures with the digits of a card; those that do not exist are left out."""
    return {name: round(value, DIGITS) for name, value in figures.items() if not math.isnan(value)}


def write_figures(card: ModelCard, figures: Mapping[str, float], out: Path) -> Path:
    """Give a card that is in OUT/cards new figures; others that it has, and everything else in the file, stay.

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
    """The text of a card with one table of another text of it: in the old one's place, or at the end.

    Comments within the old table go with it; those behind it stay, for they are of what follows.
    """
    table = re.compile(rf"^\[{re.escape(name)}\]\n(?:.*\n)*?(?=(?:[ \t]*(?:#.*)?\n)*(?:\[|\Z))", re.MULTILINE)
    old, found = f"{old.rstrip()}\n", table.search(new)
    assert found is not None
    if table.search(old) is None:
        return f"{old}\n{found[0]}"
    return table.sub(lambda _: found[0], old, count=1)
