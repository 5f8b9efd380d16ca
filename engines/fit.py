"""Check that a card's numbers fit its networks when a network is opened, not at the first face."""

from __future__ import annotations

from contextlib import closing

from ..tracker import markup
from ..tracker.errors import CardError
from .backend import Backend
from .card import ModelCard, Weights
from .codec import decoder

PLACES = {"discs-in-windows": 1}  # codec kind -> index of the output with the landmarks, if it is not the first
PLANES = {"cells": 3}  # codec kind -> planes per landmark, if there are several


def check_fit(card: ModelCard, weights: Weights, backend: Backend) -> None:
    """Compare a card with the network that was opened for it, as far as the backend knows its shapes.

    Args:
        card: its size, markup and codec kind.
        weights: of the network, for the error message.
        backend: runs it.
    Raises:
        CardError: the network takes crops of another size, or returns another number of landmarks.
        MarkupError: there is no such markup.
    """
    if backend.shapes is None:
        return
    size = backend.shapes.input[1:3]
    if any(found not in (None, wanted) for found, wanted in zip(size, card.size, strict=False)):
        raise CardError(
            f"{card.name}: input.size: wanted {list(size)}, which {weights.path.name} takes, got "
            f"{list(card.size)}; correct the card"
        )
    found, points = _landmarks(card, backend), markup.load(card.markup).points
    if found not in (None, points):
        raise CardError(
            f"{card.name}: markup: wanted one with {found} points, as {weights.path.name} has, got {card.markup} "
            f"with {points}; correct the card"
        )


def _landmarks(card: ModelCard, backend: Backend) -> int | None:
    """Number of landmarks that a network returns; None if its graph does not say."""
    kind = str(card.codec.get("kind"))
    outputs = backend.shapes.outputs[PLACES.get(kind, 0) :] if backend.shapes else ()
    planes = outputs[0][1] if outputs and len(outputs[0]) > 1 else None
    return None if planes is None else planes // PLANES.get(kind, 1)


def scores_faces(backend: Backend) -> bool:
    """Whether an alignment network scores faces, in its last output; True if its shapes are not known."""
    return backend.shapes is None or len(backend.shapes.outputs[-1]) == 2


def can_track(card: ModelCard) -> bool:
    """Whether a card's network scores faces, which tracking needs; opens its file on ONNX Runtime.

    Raises:
        BackendError: ONNX Runtime cannot be imported, or cannot load a file.
        CardError: a file is missing or altered.
    """
    from .onnx_backend import OnnxBackend

    if card.task != "align":
        return True
    with closing(OnnxBackend(card.weights["net"])) as backend:
        return scores_faces(backend)


def check_files_fit(card: ModelCard) -> None:
    """Open every file of a card on ONNX Runtime, and compare the card with it.

    Raises:
        BackendError: ONNX Runtime cannot be imported, or cannot load a file.
        CardError: a file is missing or altered, or the card does not fit it.
        MarkupError: there is no such markup.
    """
    from .onnx_backend import OnnxBackend

    if card.task == "align":
        decoder(card.codec, markup.load(card.markup), card.name)
    for weights in card.files.values():
        with closing(OnnxBackend(weights)) as backend:
            check_fit(card, weights, backend)
