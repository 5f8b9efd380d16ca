"""The decoding that a card asks for: raw network outputs in, landmarks in crop pixels out."""

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

COARSE, FINE = 0.05, 0.03  # radius of BB-FCN's discs over the width of the backbone's input, and of the crop; III-E
Decode = Callable[[Outputs], tuple[Float32, Float32]]


def disc_radius(share: float, width: int) -> int:
    """Radius of BB-FCN's discs in whole pixels, `COARSE` or `FINE` times a width; the paper has 2, for 1.6 and 1.92."""
    return round(share * width)


def disc_pixels(share: float, width: int) -> int:
    """Number of pixels of such a disc: 13 for radius 2, 29 for 3.

    A landmark is the mean place of as many highest responses.
    """
    radius = disc_radius(share, width)
    return sum(x * x + y * y <= radius * radius for x in range(-radius, radius + 1) for y in range(-radius, radius + 1))


DISC = disc_pixels(COARSE, 32)  # 13, in the paper for five landmarks, and in the detector


def decoder(codec: Mapping[str, Any], marks: Markup, name: str) -> Decode:
    """Return the decoding of a network's first outputs; later ones (the logits of its score) are ignored.

    Args:
        codec: "kind", one of `KINDS`, and the numbers that this kind needs.
        marks: markup of the landmarks.
        name: the card's name, for error messages.
    Returns:
        A function from the outputs to places (F, N, 2) in crop pixels and scores (F, N) in [0, 1].
    Raises:
        CardError: the kind is unknown, a number is missing or unknown, or one of `WHOLE` is not whole or too small.
    """
    kind = codec.get("kind")
    if kind not in KINDS:
        raise CardError(f"{name}: cannot decode {kind!r}; wanted codec kind {', '.join(KINDS)}")
    wanted, decode = KINDS[kind]
    check_codec_keys(codec, wanted, name)
    numbers = {key: _whole(codec[key], key, name) if key in WHOLE else float(codec[key]) for key in wanted}
    if kind != "fields":
        return partial(decode, **numbers)
    try:
        lines = lines_of_points(marks, int(numbers.pop("fields")))
    except ValueError as error:
        raise CardError(f"{name}: {error}") from error
    return partial(decode, lines=lines, **numbers)


def check_codec_keys(codec: Mapping[str, Any], wanted: tuple[str, ...], name: str) -> None:
    """Check that a codec has the numbers that its kind needs, and no others.

    Raises:
        CardError: a number is missing or unknown.
    """
    missing = [key for key in wanted if key not in codec]
    if missing:
        raise CardError(f"{name}: the codec lacks {', '.join(missing)}; {codec['kind']} wants {', '.join(wanted)}")
    for key in codec:
        if key not in ("kind", *wanted):
            raise CardError(f"{name}: unknown key codec.{key}; {suggestion(key, ('kind', *wanted))}")


def _whole(value: float, key: str, name: str) -> int:
    if value < WHOLE[key] or not float(value).is_integer():
        raise CardError(f"{name}: codec.{key}: wanted a whole number, {WHOLE[key]} or more, got {value!r}")
    return int(value)


def _discs_in_windows(outputs: Outputs, *, pixels: int) -> tuple[Float32, Float32]:
    """Decode coarse maps, fine maps in windows and the windows' corners."""
    xy, score = decode_discs(outputs[1], 1.0, pixels)
    return xy + outputs[2], score


WHOLE = {"reach": 0, "fields": 1, "pixels": 1}  # the numbers that are integers, and their minimum
# kind -> the numbers that a card must give, and the function that decodes with them
KINDS: dict[str, tuple[tuple[str, ...], Callable[..., tuple[Float32, Float32]]]] = {
    "vectors": (("stride", "sigma", "peak"), lambda outputs, **numbers: decode_vectors(outputs[0], **numbers)),
    "heatmaps": (("stride", "reach"), lambda outputs, **numbers: decode_heatmaps(outputs[0], **numbers)),
    # `decoder` replaces the number of fields by the lines that they belong to
    "fields": (("stride", "reach", "fields"), lambda outputs, **numbers: decode_fields(*outputs[:2], **numbers)),
    "discs-in-windows": (("pixels",), _discs_in_windows),
    "discs-in-maps": (("stride", "pixels"), lambda outputs, **numbers: decode_discs(outputs[0], **numbers)),
    "cells": (("stride",), lambda outputs, **numbers: decode_cells(outputs[0], **numbers)),
}
