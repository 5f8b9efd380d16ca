"""How far apart two backends are: in pixels, after decoding, on real crops.

A difference in the fifth digit of raw outputs says nothing, and builds that are wrong only when batched have been
shipped (TensorRT issues 1697 and 4813). So landmarks are compared, at every batch size for which a plan has kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..tracker import markup
from ..tracker.codecs import mean_of_highest
from ..tracker.errors import BackendError, CardError
from ..tracker.types import Float32, UInt8
from .backend import Backend, Outputs
from .card import ModelCard
from .codec import DISC, decoder

# Largest mean distance of a backend in crop pixels. Those for fp32 and fp16 are the project's; int8 is judged by the
# network's error and reported with it, so that this limit only catches what is broken.
LIMITS_PX = {"fp32": 0.01, "fp16": 0.1, "int8": 1.0}


@dataclass(frozen=True, slots=True)
class Proof:
    """What a backend is judged by.

    Attributes:
        pictures: (B, h, w, 3) uint8 BGR, real crops; repeated if a batch is larger.
        decode: outputs -> landmarks (B, N, 2) in the pictures' pixels.
    """

    pictures: UInt8
    decode: Callable[[Outputs], Float32]


@dataclass(frozen=True, slots=True)
class Parity:
    """Distance between the landmarks of two backends, crop pixels.

    Attributes:
        batch: pictures in one run.
        mean_px, p99_px, worst_px: over all landmarks.
    """

    batch: int
    mean_px: float
    p99_px: float
    worst_px: float


def proof_for(card: ModelCard, role: str, pictures: UInt8) -> Proof:
    """The pictures, and how the outputs of one of a card's networks become landmarks.

    Raises:
        CardError: the card's codec or the role is unknown.
    """
    kind = card.codec.get("kind")
    if kind != "discs":
        decode = decoder(card.codec, markup.load(card.markup), card.name)
        return Proof(pictures, lambda outputs: decode(outputs)[0])
    if role == "refine":
        return Proof(pictures, lambda outputs: mean_of_highest(outputs[1], DISC)[0] + outputs[2])
    if role == "scan":
        return Proof(pictures, lambda outputs: mean_of_highest(outputs[0], DISC)[0])
    raise CardError(f"{card.name}: its network {role!r} is unknown")


def measure(reference: Backend, other: Backend, proof: Proof, batches: Sequence[int]) -> tuple[Parity, ...]:
    """Compare two backends, at each batch size over all pictures.

    `other` runs each batch size once before it is judged, because TensorRT replays a recording after its first run.
    Landmarks that are not finite are infinitely far off.

    Raises:
        BackendError: the landmarks of the two differ in shape.
    """
    wanted = _landmarks(reference, proof, 1)
    measured = []
    for batch in batches:
        other.run(_batch(proof, 0, batch))
        measured.append(_parity(batch, wanted, _landmarks(other, proof, batch)))
    return tuple(measured)


def check_limits(parities: Sequence[Parity], precision: str, what: str) -> None:
    """Refuse a backend that is too far off.

    Raises:
        BackendError: a mean is above `LIMITS_PX`.
    """
    limit = LIMITS_PX[precision]
    for parity in parities:
        if not parity.mean_px <= limit:
            raise BackendError(
                f"{what}: refused: at batch {parity.batch} its landmarks are {parity.mean_px:.3g} px from the fp32 "
                f"reference's in the mean (worst {parity.worst_px:.3g}), wanted at most {limit} for {precision}"
            )


def _landmarks(backend: Backend, proof: Proof, batch: int) -> Float32:
    """Landmarks (B, N, 2) of all pictures; the last batch is filled up with the first pictures."""
    count = len(proof.pictures)
    places = [proof.decode(backend.run(_batch(proof, start, batch))) for start in range(0, count, batch)]
    return np.concatenate(places)[:count]


def _batch(proof: Proof, start: int, size: int) -> UInt8:
    """`size` pictures from `start` on; after the last one the first ones follow again."""
    return proof.pictures[np.arange(start, start + size) % len(proof.pictures)]


def _parity(batch: int, wanted: Float32, got: Float32) -> Parity:
    if wanted.shape != got.shape:
        raise BackendError(f"landmarks of batch {batch}: wanted {wanted.shape}, got {got.shape}")
    distance = np.linalg.norm(got - wanted, axis=-1)
    distance = np.where(np.isfinite(distance), distance, np.inf)
    return Parity(
        batch, *(float(v) for v in (distance.mean(), np.quantile(distance, 0.99, method="lower"), distance.max()))
    )
