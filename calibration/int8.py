"""Quantise networks to 8 bits on real crops: onnxruntime finds the ranges, and sensitive layers stay in 32 bits.

The files have Q/DQ pairs, so that ONNX Runtime on a CPU and TensorRT compute the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..engines import graph, parity
from ..engines.backend import Backend
from ..engines.card import ModelCard, Weights
from ..engines.card_text import refuse_files_of_others, write_card, write_weights
from ..engines.convert import derived_card, derived_name
from ..engines.onnx_backend import OnnxBackend
from ..engines.quantise import QuantSettings, convolutions, quantise_onnx
from ..pipeline.timing import seconds_of
from ..tracker.errors import BackendError, ConfigError
from ..tracker.types import UInt8
from ..training.evaluation.card_figures import EIGHT_BITS

# Largest mean shift of the landmarks over the crop's width: 0.3 px in 128. Added in quadrature to 1.6 px, the error of
# the default network, it raises that by 1.7 %; the project ships nothing that raises it by 2 %.
LIMIT = 0.3 / 128
REPEATS = 50
CPU_FILE, OWN_FILE = "int8", "int8-symmetric"  # at the end of file names: in an fp32 or fp16 card, in one of its own
RANGES_BATCH = 8  # pictures whose activations are measured together


@dataclass(frozen=True, slots=True)
class Int8Settings:
    """How to quantise, and how much it may cost.

    Attributes:
        quant: how ranges are found.
        for_cpu: if True, the card keeps its name and its files, and ONNX Runtime on a CPU uses the new ones beside
            them; if False, the new ones get a card of their own.
        limit: largest mean shift of the landmarks over the crop's width.
        most_kept: largest share of the convolutions that may stay in 32 bits; if more are needed, quantising fails.
    """

    quant: QuantSettings = field(default_factory=lambda: QuantSettings(symmetric=True))
    for_cpu: bool = False
    limit: float = LIMIT
    most_kept: float = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """What `quantise` found.

    Attributes:
        content: the 8-bit file.
        kept: names of the convolutions that stay in 32 bits.
        layers: number of all dense convolutions of the wanted size.
        judged: the pictures on which the landmarks' shift was measured, which did not set the ranges.
    """

    content: bytes
    kept: tuple[str, ...]
    layers: int
    judged: parity.Proof


@dataclass(frozen=True, slots=True)
class Quantised:
    """One network in 8 bits.

    Attributes:
        role: its role in the card.
        weights: the file.
        layers: number of dense convolutions of the wanted size.
        kept: names of those that stay in 32 bits.
        parity: distance to the fp32 network, crop pixels, on pictures that did not set the ranges.
        fp32_ms, int8_ms: median time of one picture on one thread of this CPU.
    """

    role: str
    weights: Weights
    layers: int
    kept: tuple[str, ...]
    parity: parity.Parity
    fp32_ms: float
    int8_ms: float

    def report(self) -> dict[str, object]:
        """The result in JSON's types."""
        return {
            "role": self.role,
            "file": self.weights.path.name,
            "mean_px": round(self.parity.mean_px, 4),
            "p99_px": round(self.parity.p99_px, 4),
            "layers": self.layers,
            "kept_in_fp32": list(self.kept),
            "fp32_ms": round(self.fp32_ms, 3),
            "int8_ms": round(self.int8_ms, 3),
        }


def quantise_card(
    card: ModelCard, proofs: Mapping[str, parity.Proof], settings: Int8Settings, out: Path
) -> tuple[ModelCard, list[Quantised]]:
    """Write a card and its networks in 8 bits so that `$FACETRACK_HOME` may point at `out`.

    Args:
        card: with fp32 or fp16 files.
        proofs: role -> real crops and their decoding; half of the crops set the ranges, the others judge.
        settings: how to quantise.
        out: folder in which `cards` and `weights` are made.
    Raises:
        BackendError: the landmarks are too far off even with as many layers in 32 bits as are allowed.
        ConfigError: the card is of 8 bits already, or there are fewer than two crops.
        SinkError: a file cannot be written, or belongs to another card.
    """
    for role, weights in card.weights.items():
        if weights.precision == "int8":
            raise ConfigError(f"{card.name}: its network {role!r} is in 8 bits already; wanted an fp32 or fp16 file")
    searches, costs = {}, {}
    for role, weights in card.weights.items():  # all are judged before any is written: a refusal leaves no file
        full = graph.as_fp32(weights.read())
        found = quantise(full, proofs[role], settings)
        searches[role] = replace(found, content=graph.store_fp16(found.content))
        costs[role] = _cost(full, searches[role])
    stems = {role: _stem(weights, for_cpu=settings.for_cpu) for role, weights in card.weights.items()}
    contents = {stems[role]: found.content for role, found in searches.items()}
    if settings.for_cpu:
        refuse_files_of_others(out, card.name, contents | {w.path.stem: w.read() for w in card.weights.values()})
    else:
        refuse_files_of_others(out, derived_name(card.name, "int8"), contents)
    done = []
    for role, found in searches.items():
        stored = write_weights(out, stems[role], found.content, "int8")
        done.append(Quantised(role, stored, found.layers, found.kept, *costs[role]))
    if settings.for_cpu:
        card = _with_cpu_files(card, done, out)
    else:
        card = derived_card(card, "int8", {e.role: e.weights for e in done}, {e.role: e.parity for e in done})
    return write_card(card, out), done


def _stem(full: Weights, *, for_cpu: bool) -> str:
    """Name of the 8-bit file of a network; the two kinds share a folder and must not replace each other."""
    stem = full.path.stem
    return f"{stem}-{CPU_FILE}" if for_cpu else derived_name(stem, OWN_FILE)


def _with_cpu_files(card: ModelCard, done: list[Quantised], out: Path) -> ModelCard:
    """The card with the 8-bit files beside its own, which are copied to the same folder.

    Figures of former 8-bit files do not apply to these and are dropped; `training.publish` measures new ones.
    """
    weights, measured = {}, {name: value for name, value in card.measured.items() if not name.endswith(EIGHT_BITS)}
    for entry in done:
        full = card.weights[entry.role]
        path = entry.weights.path.with_name(full.path.name)
        if not (path.exists() and path.samefile(full.path)):
            write_weights(out, full.path.stem, full.read(), full.precision)
        weights[entry.role] = replace(full, path=path, cpu=entry.weights)
        measured[f"{entry.role}: landmarks moved by 8 bits on a CPU, mean px"] = round(entry.parity.mean_px, 4)
    return replace(card, weights=weights, measured=measured)


def quantise(full: bytes, proof: parity.Proof, settings: Int8Settings) -> Found:
    """Quantise a network; if its landmarks shift too far, keep 1, 2, 4, ... of the worst layers in 32 bits.

    Raises:
        BackendError: too many would have to be kept.
        ConfigError: there are fewer than two crops.
    """
    if len(proof.pictures) < 2:
        raise ConfigError(
            f"int8: wanted at least 2 crops, some to set ranges and some to judge, got {len(proof.pictures)}"
        )
    ranges, judged = proof.pictures[::2], replace(proof, pictures=proof.pictures[1::2])
    limit_px = settings.limit * proof.pictures.shape[2]
    with TemporaryDirectory(prefix="facetrack-int8-") as folder:
        source, target = Path(folder) / "full.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(full)
        dense, _ = convolutions(source, settings.quant.least_weights)
        quantise_onnx(source, target, _batches(ranges), settings.quant)
        first = target.read_bytes()
    worst: list[str] = []
    for count in _counts(int(settings.most_kept * len(dense))):
        kept = tuple(worst[:count])
        content = restored(full, first, kept)
        shift = _shift(full, content, judged)
        if shift <= limit_px:
            return Found(content, kept, len(dense), judged)
        worst = worst or layers_by_harm(full, first, judged, dense)
    raise BackendError(
        f"int8: the landmarks shift by {shift:.3f} px with {len(kept)} of {len(dense)} layers in fp32, wanted at most "
        f"{limit_px:.3f}; stay with fp32, or allow more with --limit"
    )


def _counts(most: int) -> list[int]:
    """0, the powers of two up to `most`, and `most` itself."""
    return sorted({0, *(2**i for i in range(most.bit_length()) if 2**i <= most), most})


def _batches(pictures: UInt8) -> list[UInt8]:
    """Full batches, the last filled up with the first pictures: onnxruntime's entropy calibration needs equal sizes."""
    size = min(RANGES_BATCH, len(pictures))
    starts = range(0, len(pictures), size)
    return [np.take(pictures, range(start, start + size), 0, mode="wrap") for start in starts]


def _shift(full: bytes, other: bytes, proof: parity.Proof) -> float:
    return parity.measure(OnnxBackend(full), OnnxBackend(other), proof, (1,))[0].mean_px


def layers_by_harm(full: bytes, quantised: bytes, proof: parity.Proof, layers: list[str]) -> list[str]:
    """The convolutions of an 8-bit network, sorted by how much it helps to return each alone to 32 bits, best first."""
    left = {name: _shift(full, restored(full, quantised, (name,)), proof) for name in layers}
    return sorted(layers, key=lambda name: left[name])


def restored(full: bytes, quantised: bytes, layers: Sequence[str]) -> bytes:
    """An 8-bit network with some convolutions in 32 bits again: their inputs, weights and outputs.

    An 8-bit convolution behind one of them still gets its input in 8 bits.
    """
    import onnx

    source, model = onnx.load_from_string(full), onnx.load_from_string(quantised)
    weights = {weight.name: weight for weight in source.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    originals = {node.name: node for node in source.graph.node if node.name in layers}
    for node in model.graph.node:
        if node.name in originals:
            node.input[0] = _before_quantising(node.input[0], makers)
            for index, name in enumerate(originals[node.name].input[1:], 1):
                weight = onnx.TensorProto()
                weight.CopyFrom(weights[name])
                weight.name = node.input[index] = f"{node.name}.{name}.fp32"
                model.graph.initializer.append(weight)
        elif node.op_type not in (*graph.QUANTISERS, "Conv"):
            _take_unquantised(node, makers, originals)
    for output in model.graph.output:
        before = _before_quantising(output.name, makers)
        if before in makers and makers[before].name in originals:
            makers[output.name].CopyFrom(onnx.helper.make_node("Identity", [before], [output.name]))
    graph.remove_dead_nodes(model)
    return bytes(model.SerializeToString())


def _take_unquantised(node: Any, makers: dict[str, Any], originals: dict[str, Any]) -> None:
    """Connect a node that is not a convolution directly to the outputs of restored ones."""
    for index, name in enumerate(node.input):
        before = _before_quantising(name, makers)
        if before in makers and makers[before].name in originals:
            node.input[index] = before


def _before_quantising(name: str, makers: dict[str, Any]) -> str:
    """The name of the tensor before Q/DQ pairs."""
    maker = makers.get(name)
    while maker is not None and maker.op_type in graph.QUANTISERS:
        name = maker.input[0]
        maker = makers.get(name)
    return name


def _cost(full: bytes, found: Found) -> tuple[parity.Parity, float, float]:
    """Distance to the fp32 network, and the times of the fp32 and of the 8-bit network, ms."""
    reference, backend = OnnxBackend(full), OnnxBackend(found.content)
    measured = parity.measure(reference, backend, found.judged, (1,))[0]
    picture = found.judged.pictures[:1]
    return measured, _median_ms(reference, picture), _median_ms(backend, picture)


def _median_ms(backend: Backend, picture: UInt8) -> float:
    return 1000 * float(np.median([seconds_of(lambda: backend.run(picture)) for _ in range(REPEATS)]))
