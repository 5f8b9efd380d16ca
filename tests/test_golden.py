"""Every shipped network answers a real face as it did when its weights were committed.

`record_goldens.py` writes the answers down. Tight: from the stored crop, file by file. Loose: from the portrait's JPEG
through detector and aligner, where decoders of JPEG and builds of OpenCV have a say.
"""

from __future__ import annotations

import numpy as np
import pytest
from record_goldens import (
    FOLDER,
    Golden,
    crop_path,
    crop_transform,
    golden_path,
    loose_answer,
    read_golden,
    shipped_cards,
    stored_crop,
    tight_answer,
)

from facetrack.engines.card import ModelCard
from facetrack.pipeline.doctor import EYE_ERROR_PX
from facetrack.pipeline.portrait import EYES, portrait
from facetrack.tracker import markup

# Crop pixels. Another CPU rounds otherwise. Where numbers are floats, changing all float32 parameters by 1e-5 of their
# size moves no landmark by 0.001 px; in 8 bits a number may fall on the other side of a step: up to 0.09 px. A disc's
# place is the mean of 13 whole pixels, and one of them may become another: 0.34 px.
TIGHT_PX = {"fp32": 0.05, "fp16": 0.05, "int8": 0.2}
DISC_PX = 0.6
LOOSE_PX = 2.0  # portrait pixels, the eyes are 43 of them apart; one grey level's noise moves single landmarks by 1
# Crop pixels between a card's own file and the one in 8 bits for CPUs, mean and worst landmark. Where a map has two
# peaks of almost the same height, 8 bits may take the other one: 1.46 px for one landmark of PropNet.
EIGHT_BITS_PX = 0.3, 2.5

CARDS = {card.name: card for card in shipped_cards()}
FILES = [(card, name) for card in CARDS.values() for name in card.files]
each_card = pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
each_file = pytest.mark.parametrize(("card", "name"), FILES, ids=[f"{card.name}-{name}" for card, name in FILES])


def golden_of(card: ModelCard) -> Golden:
    """What the card's networks answered, if they are still the same networks and are there."""
    golden = read_golden(card)
    wanted = {name: weights.sha256 for name, weights in card.files.items()}
    if golden.sha256 != wanted:
        pytest.fail(
            f"{golden_path(card).name} is not of the weights that the card {card.name} names; if they were replaced on "
            f"purpose: python tests/record_goldens.py {card.name} --sheet FILE.png, and look at FILE.png",
            pytrace=False,
        )
    missing = [str(weights.path) for weights in card.files.values() if not weights.path.is_file()]
    if missing:
        pytest.skip(f"the answers of {card.name} are NOT checked: no {', '.join(missing)}")
    return golden


def distance_px(found: np.ndarray, golden: list[list[float]]) -> np.ndarray:
    return np.linalg.norm(found - np.array(golden), axis=-1)


@each_file
def test_stored_crop_gets_its_golden_landmarks(card: ModelCard, name: str) -> None:
    golden, weights = golden_of(card), card.files[name]
    far = distance_px(tight_answer(card, name, weights), golden.tight[name])
    limit = DISC_PX if card.task == "detect" else TIGHT_PX[weights.precision]
    assert far.max() <= limit, f"landmark {far.argmax()} of {name} moved"


@each_card
def test_portrait_gets_its_golden_landmarks(card: ModelCard) -> None:
    golden = golden_of(card)
    far = distance_px(loose_answer(card), golden.loose)
    assert far.max() <= LOOSE_PX
    assert far.mean() <= LOOSE_PX / 2


@pytest.mark.parametrize("card", [c for c in CARDS.values() if "net on a CPU" in c.files], ids=lambda c: c.name)
def test_int8_landmarks_stay_near_the_goldens_of_the_main_file(card: ModelCard) -> None:
    golden, name = golden_of(card), "net on a CPU"
    far = distance_px(tight_answer(card, name, card.files[name]), golden.tight["net"])
    mean, worst = EIGHT_BITS_PX
    assert 0 < far.mean() <= mean
    assert far.max() <= worst


@each_card
def test_golden_landmarks_match_the_hand_measured_eyes(card: ModelCard) -> None:
    """A golden only says "as before"; this says "right". EYES were measured by hand."""
    golden, marks = golden_of(card), markup.load(card.markup)
    for name, points in golden.tight.items():
        transform = crop_transform(card, name)
        five = marks.subset("five5", transform.to_frame(np.array(points, np.float32)))
        assert np.abs(five[:2] - EYES).max() < EYE_ERROR_PX, name
    assert np.abs(marks.subset("five5", np.array(golden.loose, np.float32))[:2] - EYES).max() < EYE_ERROR_PX


@each_file
def test_the_stored_crops_show_the_portrait(card: ModelCard, name: str) -> None:
    """Within what decoders of JPEG and interpolation differ by: nobody has to trust the PNG's origin."""
    drawn = crop_transform(card, name).crop(portrait())
    assert np.abs(stored_crop(card, name).astype(int) - drawn).mean() < 2.0


def test_golden_folder_holds_exactly_the_files_of_the_shipped_cards() -> None:
    wanted = {golden_path(card) for card in CARDS.values()} | {crop_path(card, name) for card, name in FILES}
    assert set(FOLDER.iterdir()) == wanted
