"""The detector's card: each step of its calibration is made with what the steps before it fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from facetrack.engines.backend import Outputs
from facetrack.engines.card import ModelCard
from facetrack.engines.detector import logistic
from facetrack.engines.packed import run_levels
from facetrack.tracker.types import UInt8
from facetrack.training.config import Config, Network
from facetrack.training.detection import publish
from facetrack.training.detection.mining import UNFITTED, draft_card
from facetrack.training.detection.score import SECOND_LOOK_LOSS, Measured, fit_logistic


def candidates(features: int, seed: int) -> Measured:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(300, features)).astype(np.float32)
    return Measured(values, values[:, 0] + rng.normal(size=300) > 0)


def test_the_second_look_is_fitted_with_the_scans_fitted_score_and_no_card_is_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[ModelCard, dict[str, object], bool]] = []
    answers = {False: candidates(8, seed=0), True: candidates(12, seed=1)}

    def measure(detector: ModelCard, *_: object, refined: bool) -> Measured:
        seen.append((detector, dict(detector.calibration), refined))
        return answers[refined]

    monkeypatch.setattr(publish, "kept_out", lambda *_, **__: ([], []))
    monkeypatch.setattr(publish, "_open", lambda card, threshold: card)  # noqa: ARG005 - as it is called
    monkeypatch.setattr(publish, "measure", measure)
    config = Config(Network("bbfcn", 5))
    fitted = publish.fit(draft_card(config), config, Path())
    scan = fit_logistic(answers[False])
    chance = logistic(answers[False].features[answers[False].is_face], scan)
    half = {"scan": scan, "second_look": pytest.approx(np.quantile(chance, SECOND_LOOK_LOSS))}
    assert [(calibration, refined) for _, calibration, refined in seen] == [
        (UNFITTED, False),
        (UNFITTED | half, True),
    ]
    assert all(card.calibration == calibration for card, calibration, _ in seen)
    assert fitted == UNFITTED | half | {"refine": fit_logistic(answers[True])}


def test_a_witness_sees_each_level_by_itself_even_for_a_backend_that_would_have_all_on_one_canvas() -> None:
    class Anything:
        description, precision, canvas = "anything", None, (2304, 2304)

        def run(self, images: UInt8) -> Outputs:
            return (np.zeros((1, 5, *images.shape[1:3]), np.float32),)

        def close(self) -> None:
            pass

    witness = publish.Witness(Anything())
    sizes = [(40, 60), (20, 32)]
    assert len(list(run_levels(witness, [np.zeros((*size, 3), np.uint8) for size in sizes]))) == 2
    assert [seen.shape for seen in witness.seen] == [(1, *size, 3) for size in sizes]
