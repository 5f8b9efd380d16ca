"""Expressions in training: how often they are drawn, and what an opening's error costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes_training import write_faces  # noqa: E402 - torch may be missing

from facetrack.tracker.errors import ConfigError  # noqa: E402
from facetrack.tracker.pose import eye_aspect_ratio  # noqa: E402
from facetrack.tracker.types import Float32  # noqa: E402
from facetrack.training.alignment.networks import VectorAlignment  # noqa: E402
from facetrack.training.alignment.objective import Labels  # noqa: E402
from facetrack.training.alignment.targets import gaussian_vectors  # noqa: E402
from facetrack.training.augment import Geometry  # noqa: E402
from facetrack.training.config import Config, Corpus, Expressions, Network, Schedule  # noqa: E402
from facetrack.training.datasets.point_files import read_pts, write_pts  # noqa: E402
from facetrack.training.expressions import has_closed_eye  # noqa: E402

SIDE = 96
UPPER, LOWER = [37, 38, 43, 44], [41, 40, 47, 46]
CALM = Geometry(roll_deg=0, wide_share=0, log_scale=0, shift=0, stretch=0, flip=0)
GENERATOR = np.random.default_rng

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six faces to learn from, one of them with its eyes closed, and two to hold out."""
    root = tmp_path_factory.mktemp("data")
    write_faces(root / "train", 6)
    write_faces(root / "held", 2, first=6)
    for i in range(6):
        path = root / "train" / f"{i}.pts"
        xy = read_pts(path)
        middle = (xy[UPPER] + xy[LOWER]) / 2
        half = np.array([0, 0.2 if i == 5 else 4.0], np.float32)
        xy[UPPER], xy[LOWER] = middle - half, middle + half
        write_pts(path, xy)
    return root


def configuration(expressions: Expressions, landmarks: int = 68) -> Config:
    return Config(
        network=Network("gv", landmarks, {"encoder": "mobilenetv3-small", "face_score": True}),
        corpora=(Corpus("train"),),
        negative_share=0.0,
        validation="held",
        geometry=CALM,
        expressions=expressions,
        schedule=Schedule(sizes=((0.0, SIDE),)),
    )


def openings(objective: VectorAlignment, count: int = 40) -> Float32:
    """Of the wider eye of items, (count,)."""
    return np.array([max(eye_aspect_ratio(objective.item(i, 0.0)[1])) for i in range(count)], np.float32)


def test_closed_eyes_are_drawn_as_often_as_asked(data: Path) -> None:
    usual = VectorAlignment(configuration(Expressions()), data)
    often = VectorAlignment(configuration(Expressions(closed=0.8)), data)
    draws = [[has_closed_eye(o.draw(0.0, GENERATOR((1, i))).points[0]) for i in range(300)] for o in (usual, often)]
    assert np.mean(draws[0]) == pytest.approx(1 / 6, abs=0.07)
    assert np.mean(draws[1]) == pytest.approx(0.8 + 0.2 / 6, abs=0.07)


def test_blinks_setting_closes_open_eyes(data: Path) -> None:
    usual = openings(VectorAlignment(configuration(Expressions()), data))
    drawn = openings(VectorAlignment(configuration(Expressions(blinks=1.0)), data))
    assert np.mean(usual > 0.15) > 0.7
    assert np.mean(drawn > 0.15) < 0.6  # half of them are shut, a fifth only winks


def test_gap_setting_does_not_change_the_items(data: Path) -> None:
    usual, gap = (VectorAlignment(configuration(b), data) for b in (Expressions(), Expressions(gap=1.0)))
    for index in range(5):
        np.testing.assert_array_equal(usual.item(index, 0.0)[0], gap.item(index, 0.0)[0])


@pytest.mark.parametrize("lift_px", [0.0, 2.0, 8.0])
def test_the_gap_term_is_the_error_of_the_openings_alone(data: Path, lift_px: float) -> None:
    """Lids that are all too far up by as much cost nothing; upper ones alone cost what they are off."""
    objective = VectorAlignment(configuration(Expressions(gap=1.0)), data)
    xy = objective.validation[0].points * np.float32(0.3)
    costs = []
    for moved in (UPPER, UPPER + LOWER):
        answer = xy.copy()
        answer[:, moved, 1] -= lift_px
        vectors = torch.from_numpy(gaussian_vectors(answer, SIDE // 4, 4, 1.2, 3.0))
        terms = objective.terms((vectors, torch.zeros(1, 2)), Labels(torch.from_numpy(xy)), torch.ones(1))
        costs.append(float(terms["gap"][1]))
    beyond = max(lift_px - 0.15, 0.0)  # quadratic within 0.3 pixels
    assert costs[0] == pytest.approx(beyond * 4 / 7 / 2, abs=0.06)  # four of seven pairs, y alone
    assert costs[1] == pytest.approx(0.0, abs=0.06)


def test_expressions_raise_for_a_markup_without_eyelids(data: Path) -> None:
    with pytest.raises(
        ConfigError, match="expressions: wanted a markup that distinguishes upper and lower lids, got five5"
    ):
        VectorAlignment(configuration(Expressions(blinks=0.5), landmarks=5), data)
