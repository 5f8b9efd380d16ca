"""How fast each network runs alone, by backend and batch size, compared with the best that the processor can do.

The roofline: a run cannot be faster than its multiplications at the measured rate of a large matrix product, nor
than its bytes at the measured rate of a large copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from .. import __version__
from ..engines.backend import Backend, open_backend, weights_for
from ..engines.card import ModelCard, find_card
from ..engines.convert import open_in
from ..engines.graph import precision_of
from ..engines.graph_cost import Peaks, cost_of
from ..engines.tensorrt_build import PlanRequest
from ..tracker.errors import BackendError
from ..tracker.types import UInt8
from .crops import crops_for, portrait_proof
from .machine import describe_machine, source_commit
from .open import DETECTOR, Choices
from .timing import measure, seconds_of

SCAN_SIZE = (224, 296)  # the largest level of a 640x480 picture, with its margin, for the smallest face of 34 pixels
MATRIX, COPY_MB = 1024, 256
MOST_REPEATS, LONGEST_S = 100, 1.0  # of each figure, whichever comes first
WARM_UPS = 3  # runs that do not count
PEAK_TRIES = 5


def cpu_peaks(threads: int) -> Peaks:
    """Measure this processor on one thread; with several, products count as that many times faster, copies do not."""
    rng = np.random.default_rng(0)
    one, two = (rng.random((MATRIX, MATRIX), np.float32) for _ in range(2))
    product = np.empty_like(one)
    product_s = min(seconds_of(lambda: np.matmul(one, two, out=product)) for _ in range(PEAK_TRIES))
    source = np.ones(COPY_MB * 10**6, np.uint8)
    target = np.zeros_like(source)
    copy_s = min(seconds_of(lambda: np.copyto(target, source)) for _ in range(PEAK_TRIES))
    how = f"numpy: product of {MATRIX}x{MATRIX} fp32 on one thread times {threads}, copy of {COPY_MB} MB"
    return Peaks(threads * MATRIX**3 / 1e9 / product_s, 2 * COPY_MB / 1e3 / copy_s, how)


@dataclass(frozen=True, slots=True)
class Subject:
    """One network as one backend runs it.

    Attributes:
        card, role: which network.
        kind: of the backend, see `open_backend`; not "auto".
        precision: the one to run it in; None: the backend's default.
    """

    card: ModelCard
    role: str
    kind: str
    precision: str | None

    @property
    def way(self) -> str:
        """Backend and, if one was requested, precision, as text."""
        return self.kind if self.precision is None else f"{self.kind} in {self.precision}"

    def open(self, threads: int, batches: tuple[int, ...]) -> tuple[Backend, bytes]:
        """The network, ready to run, and the ONNX file that it was made from.

        Raises:
            BackendError: the backend is not available, or not in this precision.
        """
        weights = self.card.weights[self.role]
        proof = portrait_proof(self.card, self.role) if self.kind == "tensorrt" else None
        if self.precision is not None:
            return open_in(PlanRequest(self.precision, batches), weights, self.kind, threads, proof)
        return open_backend(weights, self.kind, threads, proof), weights_for(self.kind, weights).read()


def bench_networks(
    choices: Choices,
    batches: Sequence[int],
    peaks: Callable[[int], Peaks] = cpu_peaks,
    precisions: Sequence[str | None] = (None,),
) -> dict[str, Any]:
    """Measure every network of a detector and an aligner; the report has JSON's types.

    Args:
        choices: model, backend and threads; backend "auto" measures all that are available.
        batches: pictures in one run, ascending.
        peaks: measures the device, given the threads.
        precisions: of "fp32", "fp16" and "int8"; None: the backend's default.
    Raises:
        BackendError: only one backend and one precision were requested, and they are not available.
    """
    kinds = ("onnx", "tensorrt", "torch") if choices.backend == "auto" else (choices.backend,)
    device, batches = peaks(choices.threads), tuple(batches)
    runs: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for card in (find_card(choices.model, "align"), find_card(DETECTOR, "detect")):
        for role, kind, precision in product(card.weights, kinds, precisions):
            subject = Subject(card, role, kind, precision)
            try:
                runs += _bench(subject, choices.threads, batches, device)
            except BackendError as error:
                if len(kinds) == len(precisions) == 1:
                    raise
                missing.setdefault(subject.way, str(error))
    return {
        "facetrack": __version__,
        "commit": source_commit(),
        "machine": describe_machine(),
        "peaks": asdict(device),
        "networks": runs,
        "not_measured": missing,
    }


def _bench(subject: Subject, threads: int, batches: tuple[int, ...], device: Peaks) -> list[dict[str, Any]]:
    backend, content = subject.open(threads, batches)
    on_cpu = subject.kind in ("onnx", "torch")
    with closing(backend):
        return [_run(subject, backend, content, batch, device if on_cpu else None) for batch in batches]


def _run(subject: Subject, backend: Backend, content: bytes, batch: int, device: Peaks | None) -> dict[str, Any]:
    """The figures of one batch size, with its share of the roofline if the device was measured; that is in fp32."""
    running = backend.precision or precision_of(content)  # ONNX Runtime runs the file as it is
    pictures = _pictures(subject.card, subject.role, batch)
    cost = cost_of(content, pictures.shape, running)
    times = measure(partial(backend.run, pictures), MOST_REPEATS, LONGEST_S, before=WARM_UPS)
    run = {
        "card": subject.card.name,
        "role": subject.role,
        "backend": backend.description,
        "precision": running,
        "batch": batch,
        "input": list(pictures.shape),
        "ms": times.summary_ms(),
        "ms_per_picture": round(1000 * times.at(50) / batch, 4),
        "gmac": round(cost.gmac, 4),
        "megabytes": round(cost.megabytes, 2),
        "gmac_per_s": round(cost.gmac / times.at(50), 1),
    }
    if device and running == "int8":  # processors multiply bytes faster than the fp32 that was measured
        run |= {"roofline_ms": None, "of_roofline": None}
    elif device:
        least_ms = device.least_ms(cost)
        run |= {"roofline_ms": round(least_ms, 4), "of_roofline": round(least_ms / 1000 / times.at(50), 3)}
    return run


def _pictures(card: ModelCard, role: str, batch: int) -> UInt8:
    """A batch of what the network receives in use."""
    if role == "scan":
        return np.random.default_rng(0).integers(0, 256, (batch, *SCAN_SIZE, 3), np.uint8)
    return np.ascontiguousarray(np.take(crops_for(card, role), range(batch), 0, mode="wrap"))
