"""Convert a card's networks to another precision or runtime, and prove each against its fp32 form."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..tracker.errors import BackendError, ConfigError
from . import graph, parity
from .backend import Backend, open_backend
from .card import ModelCard, Weights
from .card_text import refuse_files_of_others, write_card, write_weights
from .onnx_backend import OnnxBackend
from .plan_cache import PlanCache
from .tensorrt_build import PlanRequest
from .tensorrt_open import Toolkit, find_toolkit, fitted, open_tensorrt, plan_key


@dataclass(frozen=True, slots=True)
class Exported:
    """One network that was written.

    Attributes:
        role: its role in the card.
        file: what was written.
        runtime: what it was proved on.
        parity: distance to the fp32 network at each batch size, crop pixels.
    """

    role: str
    file: Path
    runtime: str
    parity: tuple[parity.Parity, ...]

    def report(self) -> dict[str, object]:
        """The result in JSON's types."""
        return {
            "role": self.role,
            "file": self.file.name,
            "runtime": self.runtime,
            "parity_px": [asdict(p) for p in self.parity],
        }


def export_onnx_card(
    card: ModelCard, precision: str, batches: tuple[int, ...], proofs: Mapping[str, parity.Proof], out: Path
) -> tuple[ModelCard, list[Exported]]:
    """Write a card NAME-PRECISION and its networks so that `$FACETRACK_HOME` may point at `out`.

    Args:
        card: whose networks are written.
        precision: "fp32" or "fp16", in which the graph computes.
        batches: sizes to prove.
        proofs: role -> what it is judged by.
        out: folder in which `cards` and `weights` are made.
    Raises:
        BackendError: the new file's landmarks are too far off.
        ConfigError: int8 is requested, which needs calibration.
        SinkError: a file cannot be written, or belongs to another card.
    """
    if precision not in ("fp32", "fp16"):
        raise ConfigError(f"precision {precision}: wanted fp32 or fp16; `facetrack calibrate int8` makes 8-bit files")
    stems = {role: derived_name(stored.path.stem, precision) for role, stored in card.weights.items()}
    contents, proved = {}, {}
    for role, stored in card.weights.items():  # all are proved before any is written: a refusal leaves no file
        full = graph.as_fp32(stored.read())
        contents[role] = graph.in_precision(full, precision)
        proved[role] = _measure(full, contents[role], proofs[role], batches)
        parity.check_limits(proved[role][1], precision, f"{stems[role]}.onnx")
    refuse_files_of_others(out, derived_name(card.name, precision), {stems[r]: contents[r] for r in stems})
    weights, exported = {}, []
    for role, stem in stems.items():
        weights[role] = write_weights(out, stem, contents[role], precision)
        exported.append(Exported(role, weights[role].path, *proved[role]))
    card = derived_card(card, precision, weights, {entry.role: entry.parity[-1] for entry in exported})
    return write_card(card, out), exported


def export_plans(
    card: ModelCard, request: PlanRequest, proofs: Mapping[str, parity.Proof], out: Path, toolkit: Toolkit | None = None
) -> list[Exported]:
    """Build the TensorRT plans of a card in the plan cache, and copy them to a folder.

    From then on facetrack runs these plans, whatever it ran before.

    Raises:
        BackendError: there is no GPU or no TensorRT, or a plan's landmarks are too far off.
    """
    toolkit, cache = toolkit or find_toolkit(), PlanCache()
    out.mkdir(parents=True, exist_ok=True)
    exported = []
    for role, weights in card.weights.items():
        wanted = fitted(request, weights)
        backend = open_tensorrt(weights, proofs[role], wanted, toolkit, cache)
        backend.close()
        name, key = weights.path.stem, plan_key(toolkit, weights, wanted)
        cache.mark_exported(name, key)  # the plan that was exported last is the one that is run
        plan = cache.path(name, key)
        for path in (plan, plan.with_suffix(".json")):
            shutil.copy(path, out)
        exported.append(Exported(role, out / plan.name, backend.description, cache.parity(plan)))
    return exported


def open_in(
    request: PlanRequest, weights: Weights, kind: str, threads: int, proof: parity.Proof | None
) -> tuple[Backend, bytes]:
    """Open a network in a given precision, whatever the backend's default; also return the ONNX file that it came from.

    Args:
        request: the precision and, for a TensorRT plan, its batches and sizes.
        weights: from a card.
        kind, threads, proof: see `backend.open_backend`; not "auto".
    Raises:
        BackendError: the backend is not available, or not with this network in this precision.
    """
    runtime, _, device = kind.partition(":")
    if runtime == "torch":
        if request.precision != "fp32":
            raise BackendError(f"backend torch: wanted {request.precision}, but it computes only in fp32")
        return open_backend(weights, kind, threads), weights.read()
    if runtime == "tensorrt":
        return open_tensorrt(weights, proof, fitted(request, weights)), weights.read()
    content = _in_precision(request.precision, weights)
    return OnnxBackend(content, threads, provider=device or "cpu"), content


def _in_precision(precision: str, weights: Weights) -> bytes:
    """An ONNX file that computes in this precision."""
    if precision == "int8":
        for stored in (weights, weights.cpu):
            if stored is not None and stored.precision == "int8":
                return stored.read()
        raise BackendError(
            f"{weights.path.stem}: wanted int8, got no 8-bit file; make one with `facetrack calibrate int8`"
        )
    return graph.in_precision(graph.as_fp32(weights.read()), precision)


def derived_name(name: str, precision: str) -> str:
    """A card's or file's name with another precision at its end."""
    return f"{re.sub('-(fp32|fp16|int8)$', '', name)}-{precision}"


def derived_card(
    card: ModelCard, precision: str, weights: Mapping[str, Weights], moved: Mapping[str, parity.Parity]
) -> ModelCard:
    """A card for the same networks in another precision, without the figures that were measured on the old files."""
    measured = {
        f"{role}: landmarks moved against {card.name}, mean px": round(p.mean_px, 4) for role, p in moved.items()
    }
    return replace(card, name=derived_name(card.name, precision), weights=weights, measured=measured)


def _measure(
    full: bytes, content: bytes, proof: parity.Proof, batches: tuple[int, ...]
) -> tuple[str, tuple[parity.Parity, ...]]:
    """The backend that ran an exported network, in words, and the network's distance to the full one."""
    backend: Backend = OnnxBackend(content)
    return backend.description, parity.measure(OnnxBackend(full), backend, proof, batches)
