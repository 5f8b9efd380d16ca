"""Whether something is a new face: what network and detector make of it together, and by which search it was found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fakes import PaintedFace, PaintedSource, read_landmarks
from fakes_pipeline import PEAK, SIDE, SIGMA, STRIDE, PaintedBackend, PaintedDetector, painted_card

from facetrack.engines.aligner import Aligner
from facetrack.engines.backend import Outputs
from facetrack.pipeline.run import Pipeline
from facetrack.pipeline.search import FAINT
from facetrack.pipeline.stages import CONVINCED, LEAST, LYING, PROPOSAL, PipelineSettings
from facetrack.tracker.geometry import CropTransform
from facetrack.tracker.track import TrackSettings
from facetrack.tracker.types import Frame, Proposals, UInt8
from facetrack.training.alignment.targets import gaussian_vectors

LAG = 0.3
SOURCE = PaintedSource(count=1, shape=(220, 240), faces=[PaintedFace((110, 110), width=90)])


class Unsure(PaintedBackend):
    """Has the same two logits for every crop."""

    def __init__(self, face: float, right: float) -> None:
        super().__init__()
        self.logits = face, right

    def run(self, images: UInt8) -> Outputs:
        vectors, logits = super().run(images)
        return vectors, np.broadcast_to(np.array(self.logits, np.float32), logits.shape).copy()


class Centred(PaintedBackend):
    """Is as sure and as exact as the face is in the middle of its crop; else its landmarks lag towards the middle."""

    def run(self, images: UInt8) -> Outputs:
        _, logits = super().run(images)
        found = [read_landmarks(image) for image in images]
        away = [np.zeros(2) if xy is None else (xy.min(0) + xy.max(0) - SIDE) / 2 for xy in found]
        lagging = [
            np.full((68, 2), -1e3) if xy is None else xy - LAG * off for xy, off in zip(found, away, strict=True)
        ]
        logits[:, 1] -= np.hypot(*np.transpose(away)) / SIDE
        vectors = gaussian_vectors(np.asarray(lagging, np.float32), SIDE // STRIDE, STRIDE, SIGMA, PEAK)
        return vectors, logits


class Hesitant(PaintedDetector):
    """Proposes with the same score whatever it finds."""

    def __init__(self, score: float) -> None:
        super().__init__()
        self.score = score

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del faint
        found = super().detect(bgr, small=small)
        return replace(found, scores=np.full(len(found.scores), self.score, np.float32))


class Faint(Hesitant):
    """Finds faces by faint answers alone."""

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del small
        return super().detect(bgr) if faint else Proposals.none()


class Lying(Hesitant):
    """Finds faces in the picture that was turned by a quarter alone, though they were painted upright."""

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del small, faint
        picture = SOURCE.picture(0)
        if bgr.shape != np.rot90(picture).shape or not (bgr == np.rot90(picture)).all():
            return Proposals.none()
        found, turn = super().detect(picture), CropTransform.quarter_turns(1, picture.shape[:2])
        return replace(found, points=turn.to_crop(found.points))


def presence_of(face: float, right: float, score: float, kind: type[Hesitant] = Hesitant) -> float | None:
    """Of the painted face in its first frame, found by such a detector; None where it is taken for none."""
    pipeline = Pipeline(kind(score), Aligner(painted_card(), Unsure(face, right)), PipelineSettings(smooth="none"))
    (result,) = pipeline.serial([Frame(0, 0.0, 0.0, SOURCE.picture(0))])
    if not result.faces:
        return None
    (found,) = result.faces
    assert found.measured is not None
    return found.measured.presence


def log_odds(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


@pytest.mark.parametrize(("face", "right", "score"), [(6.0, 2.0, 0.6), (4.5, 4.0, 0.8), (8.0, 0.5, 0.4)])
def test_presence_multiplies_the_odds_of_detector_and_network(face: float, right: float, score: float) -> None:
    """Bayes, of independent witnesses without a prior: their log odds add up."""
    presence = presence_of(face, right, score)
    assert presence is not None
    assert log_odds(presence) == pytest.approx(face + min(face, right) + log_odds(score), abs=1e-3)


def test_contribution_of_the_detector_score_is_capped() -> None:
    most = PROPOSAL / (1 + PROPOSAL)
    assert presence_of(4.5, 2.0, 0.9999) == presence_of(4.5, 2.0, most + 1e-3)
    assert presence_of(4.5, 2.0, 1.0) == presence_of(4.5, 2.0, 0.9999)


def test_weak_proposal_needs_a_higher_face_score() -> None:
    assert presence_of(4.8, 1.0, 0.9) is not None
    assert presence_of(4.8, 1.0, 0.35) is None
    assert presence_of(6.8, 1.0, 0.35) is not None


def test_unconvinced_network_vetoes_a_face() -> None:
    """As for cats, of which the detector is sure, and which have eyes, a nose and a mouth."""
    limit = log_odds(CONVINCED)
    assert presence_of(limit - 0.01, 9.0, 1.0) is None
    assert presence_of(limit + 0.01, 9.0, 1.0) is not None


def test_poor_landmarks_do_not_lower_the_presence() -> None:
    """Profiles have them."""
    assert presence_of(6.0, -9.0, 0.9) == presence_of(6.0, 0.0, 0.9) != presence_of(6.0, 1.0, 0.9)


def test_extreme_logits_do_not_overflow() -> None:
    assert presence_of(80.0, 80.0, 1.0) == pytest.approx(1.0)
    assert presence_of(80.0, -80.0, 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("kind", "least"), [(Hesitant, TrackSettings().birth), (Faint, LEAST[FAINT]), (Lying, LYING)])
def test_face_is_accepted_only_above_the_threshold_of_its_search(kind: type[Hesitant], least: float) -> None:
    """The landmarks are good, the detector says half; so the network has to bring the odds."""
    right, limit = 1.0, log_odds(least) - 1.0
    assert presence_of(limit - 0.05, right, 0.5, kind) is None
    presence = presence_of(limit + 0.05, right, 0.5, kind)
    assert presence is not None
    assert log_odds(presence) == pytest.approx(log_odds(least), abs=0.1)


@pytest.mark.parametrize(("moves", "runs"), [(0.0, 1), (0.3, 2)])
def test_face_beside_its_crop_is_measured_again_in_its_own(moves: float, runs: int) -> None:
    """After a jump of three tenths of its width, one crop would leave `LAG` of these; a second one, its square."""
    face = PaintedFace((100, 110), width=90)
    later = replace(face, start=(100 + 90 * moves, 110))
    network = Centred()
    pipeline = Pipeline(PaintedDetector(), Aligner(painted_card(), network), PipelineSettings(smooth="none"))
    results = pipeline.serial(
        Frame(i, i / 30, i / 30, replace(SOURCE, faces=[seen]).picture(0)) for i, seen in enumerate([face, later])
    )
    next(results)
    before = network.calls
    (found,) = next(results).faces
    assert network.calls - before == runs
    assert found.measured is not None
    lag = later.landmarks(0).mean(0) - found.measured.xy.mean(0)
    np.testing.assert_allclose(lag, [LAG**2 * 90 * moves, 0], atol=1.0)  # of the crop's rounding and the mean's place
