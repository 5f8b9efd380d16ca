"""Which decoding a card asks for: raw network outputs in, landmarks in crop pixels out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..tracker.codecs import decode_fields, decode_heatmaps, decode_vectors, lines_of_points
from ..tracker.errors import CardError
from ..tracker.markup import Markup
from ..tracker.types import Float32
from .backend import Outputs

DISC = 13  # pixels of a disc of radius 2: a landmark of codec kind "discs" is the mean place of so many highest answers
Decode = Callable[[Outputs], tuple[Float32, Float32]]
KINDS = {
    "vectors": ("stride", "sigma", "peak"),
    "heatmaps": ("stride", "reach"),
    "fields": ("stride", "reach", "fields"),
}


def decoder(codec: Mapping[str, Any], marks: Markup, name: str) -> Decode:
    """The decoding of a network's first outputs; what follows them (the logits of its score) is not looked at.

    Args:
        codec: "kind", one of `KINDS`, and the numbers that this kind needs.
        marks: markup of the landmarks.
        name: whose codec it is, for the errors.
    Returns:
        A function from the outputs to places (F, N, 2) in crop pixels and scores (F, N) in [0, 1].
    Raises:
        CardError: the kind is unknown or a number is missing.
    """
    kind = codec.get("kind")
    if kind not in KINDS:
        raise CardError(f"{name}: cannot decode {kind!r}; wanted codec kind {', '.join(KINDS)}")
    missing = [key for key in KINDS[kind] if key not in codec]
    if missing:
        raise CardError(f"{name}: the codec lacks {', '.join(missing)}; {kind} wants {', '.join(KINDS[kind])}")
    stride = float(codec["stride"])
    if kind == "vectors":
        return partial(_vectors, stride=stride, sigma=float(codec["sigma"]), peak=float(codec["peak"]))
    if kind == "heatmaps":
        return partial(_heatmaps, stride=stride, reach=int(codec["reach"]))
    try:
        lines = lines_of_points(marks, int(codec["fields"]))
    except ValueError as error:
        raise CardError(f"{name}: {error}") from error
    return lambda outputs: decode_fields(outputs[0], outputs[1], lines, stride, int(codec["reach"]))


def _vectors(outputs: Outputs, *, stride: float, sigma: float, peak: float) -> tuple[Float32, Float32]:
    return decode_vectors(outputs[0], stride, sigma, peak)


def _heatmaps(outputs: Outputs, *, stride: float, reach: int) -> tuple[Float32, Float32]:
    return decode_heatmaps(outputs[0], stride, reach)
