"""Recall in whole pictures: suppression as the paper has it, windows in their place, and what counts as found."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes_detector import COLOURS, detector, painted  # noqa: E402 - torch may be missing
from torch import Tensor, nn  # noqa: E402

from facetrack.engines.nets import MEAN, STD  # noqa: E402
from facetrack.training.datasets import Sample  # noqa: E402
from facetrack.training.detection.recall import (  # noqa: E402
    ERRORS,
    GUESSES,
    STEP,
    LandmarkCandidates,
    find_candidates,
    measure_recall,
    refine,
    suppress_windows,
)

FACES = [(70.0, 80.0, 44.0, 0.0), (190.0, 90.0, 60.0, 12.0)]


class PaintedBranches(nn.Module):
    """Answers, like the detector's stand-ins, to each type's colour."""

    landmarks = 5

    def forward(self, planes: Tensor) -> Tensor:
        bgr = (planes[:, :, :3] * STD + MEAN).flip(2)
        away = (bgr - torch.from_numpy(COLOURS)[None, :, :, None, None]).norm(dim=2)
        return (1.2 - away / 150).clamp(0, 1)


def windows(*rows: tuple[int, float, float, float, float]) -> tuple[np.ndarray, ...]:
    """Type, x, y, side and response of each."""
    kind, x, y, side, response = (np.array(values) for values in zip(*rows, strict=True))
    xy = np.stack((x, y), 1).astype(np.float32)
    return kind.astype(np.int64), xy, side.astype(np.float32), response.astype(np.float32)


def test_suppression_keeps_the_strongest_of_equal_windows_and_all_other_types() -> None:
    rows = windows((0, 50, 50, 12, 0.6), (0, 50, 50, 12, 0.9), (1, 50, 50, 12, 0.5), (0, 90, 50, 12, 0.3))
    assert suppress_windows(*rows).tolist() == [1, 2, 3]


@pytest.mark.parametrize(("away", "stays"), [(3.9, False), (4.1, True)])
def test_windows_with_an_iou_above_one_half_are_suppressed(away: float, stays: bool) -> None:
    """12 (12 - a) over 12 (12 + a) is a half for a of 4."""
    rows = windows((2, 50, 50, 12, 0.9), (2, 50 + away, 50, 12, 0.8))
    assert suppress_windows(*rows).tolist() == ([0, 1] if stays else [0])


def test_suppression_is_idempotent_and_the_order_is_that_of_the_responses() -> None:
    rng = np.random.default_rng(0)
    kind, response = rng.integers(0, 5, 300), rng.uniform(0, 1, 300).astype(np.float32)
    xy, side = (rng.uniform(0, 60, (300, 2)).astype(np.float32), rng.uniform(8, 20, 300).astype(np.float32))
    once = suppress_windows(kind, xy, side, response)
    assert 5 < len(once) < 300
    assert (np.diff(response[once]) <= 0).all()
    again = suppress_windows(kind[once], xy[once], side[once], response[once])
    np.testing.assert_array_equal(again, np.arange(len(once)))


def nearest(found: LandmarkCandidates, xy: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distance of each landmark (F, 5) from the nearest guess of its type, pixels."""
    each = [np.linalg.norm(truth[:, k, None] - xy[None, found.kind == k], axis=-1).min(1) for k in range(5)]
    return np.stack(each, 1)


def test_candidates_of_all_levels_lie_near_the_landmarks_and_refine_moves_them_closer() -> None:
    picture, truth = painted((200, 280), FACES)
    looking = detector(step=STEP, min_face=30)
    found = find_candidates(looking, picture)
    scales = {round(float(12 / side), 3) for side in found.side}
    assert len(scales) > 3
    assert nearest(found, found.xy, truth).max() < 2.0
    assert nearest(found, refine(PaintedBranches(), found), truth).max() < 1.0  # type: ignore[arg-type]
    middle = found.origin + 11.5 * found.step
    assert (np.abs(middle - found.xy) <= 0.51 * found.side[:, None] / 12).all()  # a window begins on a whole pixel


def sample(picture: np.ndarray, points: np.ndarray) -> Sample:
    return Sample(Path("painted.png"), points.astype(np.float32), cv2.imencode(".png", picture)[1].tobytes())


def test_recall_is_the_share_of_annotated_landmarks_and_faces_that_are_found() -> None:
    picture, truth = painted((200, 280), FACES)
    looking = detector(step=STEP, min_face=30, threshold=0.0)
    empty, moved = np.full_like(picture, 40), truth.copy()
    moved[1, 2] = np.nan  # nobody knows where this nose is
    found = measure_recall(looking, PaintedBranches(), [sample(picture, moved)])  # type: ignore[arg-type]
    assert found.counts == (9, 2)
    assert found.landmarks.shape == (2, len(GUESSES), len(ERRORS))
    assert (np.diff(found.landmarks, axis=2) >= 0).all()
    assert (found.landmarks[:, :, -1] == 100).all()
    assert (found.faces == 100).all()
    half = measure_recall(looking, PaintedBranches(), [sample(picture, truth), sample(empty, truth)])  # type: ignore[arg-type]
    assert (half.landmarks[:, :, -1] == 50).all()
    assert (half.faces == 50).all()
