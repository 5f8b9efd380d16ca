"""The detector's card: each step of its calibration is made with what the steps before it fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from facetrack.engines.card import ModelCard
from facetrack.engines.detector import logistic
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
