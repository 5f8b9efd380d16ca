"""Which decoding a card asks for: raw network outputs in, landmarks in crop pixels out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..tracker.codecs import (
    decode_cells,
    decode_discs,
    decode_fields,
    decode_heatmaps,
    decode_vectors,
    lines_of_points,
)
from ..tracker.errors import CardError, suggestion
from ..tracker.markup import Markup
from ..tracker.types import Float32
from .backend import Outputs

COARSE, FINE = 0.05, 0.03  # radius of BB-FCN's discs over the width of what the backbone sees, and of the crop; III-E
Decode = Callable[[Outputs], tuple[Float32, Float32]]


def disc_radius(share: float, width: int) -> int:
    """Radius of BB-FCN's discs, `COARSE` or `FINE` of a width, in whole pixels: 2 in the paper, for 1.6 and 1.92."""
    return round(share * width)


def disc_pixels(share: float, width: int) -> int:
    """Pixels of such a disc: a landmark is the mean place of so many highest answers. 13 for radius 2, 29 for 3."""
    radius = disc_radius(share, width)
    return sum(x * x + y * y <= radius * radius for x in range(-radius, radius + 1) for y in range(-radius, radius + 1))


DISC = disc_pixels(COARSE, 32)  # 13: the paper's for five landmarks, and the detector's


def decoder(codec: Mapping[str, Any], marks: Markup, name: str) -> Decode:
    """The decoding of a network's first outputs; what follows them (the logits of its score) is not looked at.

    Args:
        codec: "kind", one of `KINDS`, and the numbers that this kind needs.
        marks: markup of the landmarks.
        name: whose codec it is, for the errors.
    Returns:
        A function from the outputs to places (F, N, 2) in crop pixels and scores (F, N) in [0, 1].
    Raises:
        CardError: the kind is unknown, or a number is missing or unknown.
    """
    kind = codec.get("kind")
    if kind not in KINDS:
        raise CardError(f"{name}: cannot decode {kind!r}; wanted codec kind {', '.join(KINDS)}")
    wanted, decode = KINDS[kind]
    demand_numbers(codec, wanted, name)
    numbers = {key: int(codec[key]) if key in WHOLE else float(codec[key]) for key in wanted}
    if kind != "fields":
        return partial(decode, **numbers)
    try:
        lines = lines_of_points(marks, int(numbers.pop("fields")))
    except ValueError as error:
        raise CardError(f"{name}: {error}") from error
    return partial(decode, lines=lines, **numbers)


def demand_numbers(codec: Mapping[str, Any], wanted: tuple[str, ...], name: str) -> None:
    """See that a codec has its kind and the numbers of it, and no others.

    Raises:
        CardError: a number is missing or unknown.
    """
    missing = [key for key in wanted if key not in codec]
    if missing:
        raise CardError(f"{name}: the codec lacks {', '.join(missing)}; {codec['kind']} wants {', '.join(wanted)}")
    for key in codec:
        if key not in ("kind", *wanted):
            raise CardError(f"{name}: unknown key codec.{key}; {suggestion(key, ('kind', *wanted))}")


def _discs_in_windows(outputs: Outputs, *, pixels: int) -> tuple[Float32, Float32]:
    """Of coarse maps, fine maps in windows and the windows' corners."""
    xy, score = decode_discs(outputs[1], 1.0, pixels)
    return xy + outputs[2], score


WHOLE = ("reach", "fields", "pixels")  # of the numbers
# kind -> the numbers that a card must give, and what decodes with them
KINDS: dict[str, tuple[tuple[str, ...], Callable[..., tuple[Float32, Float32]]]] = {
    "vectors": (("stride", "sigma", "peak"), lambda outputs, **numbers: decode_vectors(outputs[0], **numbers)),
    "heatmaps": (("stride", "reach"), lambda outputs, **numbers: decode_heatmaps(outputs[0], **numbers)),
    # the number of fields is decoded with as the lines that they belong to
    "fields": (("stride", "reach", "fields"), lambda outputs, **numbers: decode_fields(*outputs[:2], **numbers)),
    "discs-in-windows": (("pixels",), _discs_in_windows),
    "discs-in-maps": (("stride", "pixels"), lambda outputs, **numbers: decode_discs(outputs[0], **numbers)),
    "cells": (("stride",), lambda outputs, **numbers: decode_cells(outputs[0], **numbers)),
}
