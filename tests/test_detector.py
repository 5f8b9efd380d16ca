"""The detector on painted faces: what is found and what is not, on which pyramid, and which cards it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes_detector import CARD, COLOURS, SHADE, PaintedRefine, PaintedScan, detector, painted

from facetrack.engines.card import find_card
from facetrack.engines.detector import (
    MOST_RESPONSE,
    Detector,
    DetectorSettings,
    adaptive_min_face,
    decode_crops,
    level_scales,
    logistic,
    scan_features,
)
from facetrack.engines.tensorrt_build import LARGEST, SMALLEST, USUAL
from facetrack.tracker.errors import CardError
from facetrack.tracker.proposals import Candidates


class SeenSizes(PaintedScan):
    """A backbone that finds nothing and keeps the sizes of what it saw."""

    def __init__(self, atlas: tuple[int, int] | None = None) -> None:
        self.max_atlas = atlas
        self.sizes: list[tuple[int, ...]] = []

    def run(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        self.sizes.append(images.shape)
        return (np.zeros((1, 5, *images.shape[1:3]), np.float32),)


class PackedScan(PaintedScan):
    """A backbone that wants all levels at once."""

    max_atlas = LARGEST


@pytest.mark.parametrize(
    ("size", "face"),
    [
        ((480, 640), (320.0, 240.0, 60.0, 0.0)),
        ((480, 640), (100.0, 380.0, 90.0, 30.0)),
        ((480, 640), (400.0, 200.0, 160.0, -40.0)),
        ((360, 360), (180.0, 180.0, 330.0, 5.0)),  # fills the picture
        ((1080, 1920), (1700.0, 200.0, 130.0, 10.0)),
        ((1280, 720), (350.0, 640.0, 420.0, -15.0)),
    ],
)
def test_a_face_of_any_size_place_and_tilt_is_found_where_it_was_painted(size, face):
    picture, points = painted(size, [face])
    found = detector().detect(picture)
    assert len(found) == 1
    assert np.abs(found.points[0] - points[0]).max() < 0.03 * face[2]
    box = found.boxes[0]
    assert (box[:2] + box[2:]) / 2 == pytest.approx(face[:2], abs=0.06 * face[2])
    assert (box[2:] - box[:2]).max() == pytest.approx(face[2], rel=0.1)
    assert 0.5 <= found.scores[0] <= 1


def test_several_faces_come_best_first_and_none_twice():
    picture, points = painted((480, 640), [(120, 120, 70, 0), (300, 260, 110, 20), (520, 330, 90, -30)])
    found = detector().detect(picture)
    assert len(found) == 3
    assert (np.diff(found.scores) <= 0).all()
    order = np.argsort(found.points[:, 2, 0])
    assert np.abs(found.points[order] - points).max() < 4


def test_a_picture_without_a_face_gives_nothing():
    assert len(detector().detect(np.full((240, 320, 3), SHADE, np.uint8))) == 0
    alone, _ = painted((240, 320), [])
    cv2.circle(alone, (100, 100), 6, COLOURS[0].tolist(), -1)
    cv2.circle(alone, (220, 60), 6, COLOURS[2].tolist(), -1)
    assert len(detector().detect(alone)) == 0


def test_a_picture_smaller_than_the_last_level_is_enlarged_not_refused():
    picture, points = painted((24, 20), [(9.5, 12.0, 19.0, 0.0)])
    found = detector().detect(picture)
    assert len(found) == 1
    assert np.abs(found.points[0] - points[0]).max() < 1.5


def test_min_face_decides_how_small_a_face_is_looked_for():
    picture, _ = painted((480, 640), [(320, 240, 24, 0)])
    assert len(detector(min_face=80).detect(picture)) == 0
    assert len(detector(min_face=24).detect(picture)) == 1


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920)])
def test_without_small_faces_reliable_sizes_are_found_and_much_smaller_ones_are_not(size):
    sure = detector().min_reliable_face(np.empty((*size, 3), np.uint8))
    assert sure == pytest.approx(2 * adaptive_min_face(*size))
    for side in (sure, 1.5 * sure, 3 * sure):
        picture, _ = painted(size, [(size[1] / 2, size[0] / 2, side, 0)])
        assert len(detector().detect(picture, small=False)) == 1
    picture, _ = painted(size, [(size[1] / 2, size[0] / 2, 0.6 * sure, 0)])
    assert len(detector().detect(picture, small=False)) == 0
    assert len(detector().detect(picture)) == 1


def test_for_pictures_halves_the_smallest_face_unless_min_face_is_set():
    small, usual = np.float32(0.55) * adaptive_min_face(480, 640), detector()
    picture, points = painted((480, 640), [(320, 240, float(small), 0)])
    assert len(usual.detect(picture)) == 0
    (found,) = usual.for_pictures().detect(picture).points
    assert np.abs(found - points[0]).max() < 1.5
    assert usual.for_pictures().min_reliable_face(picture) == pytest.approx(usual.min_reliable_face(picture) / 2)
    assert len(detector(min_face=40).for_pictures().detect(picture)) == 0


def test_a_picture_with_a_single_level_is_searched_even_without_small_faces():
    picture, _ = painted((32, 32), [(16, 16, 26, 0)])
    alone = detector(min_face=24)
    assert alone.min_reliable_face(picture) == pytest.approx(24)
    assert len(alone.detect(picture, small=False)) == 1


def test_threshold_drops_a_detection_of_lower_score():
    picture, _ = painted((480, 640), [(320, 240, 100, 0)])
    score = float(detector().detect(picture).scores[0])
    assert len(detector(threshold=min(score + 1e-4, 1.0)).detect(picture)) == 0


class Weak(PaintedScan):
    """A backbone that answers with a quarter of the strength."""

    def run(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        return (super().run(images)[0] / 4,)


def test_weak_responses_are_detected_only_in_faint_mode():
    picture, points = painted((480, 640), [(320, 240, 100, 0)])
    weak = detector(Weak())
    assert len(weak.detect(picture)) == 0
    found = weak.detect(picture, faint=True)
    np.testing.assert_allclose(found.points, detector().detect(picture).points, atol=0.5)
    assert len(points) == len(found) == 1


@pytest.mark.parametrize("picture", [np.zeros((90, 90), np.uint8), np.zeros((90, 90, 3)), None])
def test_invalid_picture_is_refused(picture):
    with pytest.raises(ValueError, match="detect: wanted a NumPy array"):
        detector().detect(picture)


def test_number_of_refined_candidates_is_limited():
    picture, _ = painted((480, 640), [(120, 120, 70, 0), (300, 260, 110, 20), (520, 330, 90, -30)])
    assert len(detector(most=2).detect(picture)) == 2


def test_the_same_picture_gives_the_same_bytes_from_any_thread():
    picture, _ = painted((480, 640), [(120, 120, 70, 0), (300, 260, 110, 20)])
    shared = detector()
    alone = shared.detect(picture)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: shared.detect(picture), range(8)):
            assert found.points.tobytes() == alone.points.tobytes()
            assert found.scores.tobytes() == alone.scores.tobytes()


def test_card_with_a_wrong_codec_or_missing_calibration_is_refused():
    with pytest.raises(CardError, match="wanted codec kind discs"):
        Detector(replace(CARD, codec={"kind": "vectors"}), PaintedScan(), PaintedRefine())
    with pytest.raises(CardError, match=r"unknown key codec\.face_pixels; did you mean 'face_px'"):
        Detector(replace(CARD, codec={**CARD.codec, "face_pixels": 15}), PaintedScan(), PaintedRefine())
    with pytest.raises(CardError, match="the codec lacks face_px; discs wants face_px, peak"):
        Detector(replace(CARD, codec={"kind": "discs", "peak": 0.3}), PaintedScan(), PaintedRefine())
    with pytest.raises(CardError, match="the calibration lacks refine, second_look"):
        Detector(replace(CARD, calibration={"scan": [0.0] * 9}), PaintedScan(), PaintedRefine())


@pytest.mark.parametrize(("step", "levels"), [(1.16, 13), (1.348, 7)])
def test_pyramids_have_as_many_levels_as_in_the_papers(step, levels):
    assert len(level_scales(480, 80, 32, step, 32)) == levels


def test_twenty_levels_of_the_papers_step_span_32_to_537_pixels():
    scales = level_scales(537, 32, 32, 1.16, 32)
    assert len(scales) == 20
    assert 537 * scales[-1] == pytest.approx(32, abs=0.1)


@pytest.mark.parametrize(
    ("size", "min_face", "pictures"),
    [
        ((3000, 4000), 0, True),
        ((4000, 3000), 0, True),
        ((1920, 1080), 0, True),
        ((2160, 3840), 0, True),
        ((3840, 2160), 0, False),
        ((1080, 1920), 14, False),
        ((1, 1), 0, False),
        ((2, 400), 0, True),
    ],
)
def test_pyramid_levels_of_usual_pictures_fit_a_tensorrt_plan(size, min_face, pictures):
    scan = SeenSizes()
    video = Detector(CARD, scan, PaintedRefine(), DetectorSettings(min_face=min_face))
    (video.for_pictures() if pictures else video).detect(np.zeros((*size, 3), np.uint8))
    assert scan.sizes
    for batch, *level, _ in scan.sizes:
        assert batch == 1
        assert (np.array(SMALLEST) <= level).all()
        assert (np.array(LARGEST) >= level).all()


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (720, 1280), (1280, 720), (1080, 1920), (2160, 3840), (1, 1)])
@pytest.mark.parametrize("small", [True, False])
def test_atlas_of_all_pyramid_levels_fits_a_tensorrt_plan(size, small):
    scan = SeenSizes(atlas=LARGEST)
    detector(scan).detect(np.zeros((*size, 3), np.uint8), small=small)
    ((batch, *atlas, _),) = scan.sizes
    assert batch == 1
    assert (np.array(SMALLEST) <= atlas).all()
    assert (np.array(LARGEST) >= atlas).all()
    if size == (480, 640) and small:
        assert tuple(atlas) == USUAL


@pytest.mark.parametrize(
    ("atlas", "runs"), [(None, 5), ((396, 292), 5), ((392, 296), 5), ((396, 296), 1), ((296, 396), 5)]
)
def test_levels_that_do_not_fit_the_atlas_run_one_by_one(atlas, runs):
    scan = SeenSizes(atlas)
    detector(scan).detect(np.zeros((480, 640, 3), np.uint8))
    assert len(scan.sizes) == runs
    assert runs == 1 or [size[1:3] for size in scan.sizes] == [(224, 296), (116, 152), (64, 80), (36, 44), (24, 28)]


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (720, 1280)])
def test_detections_in_one_atlas_are_identical_to_those_level_by_level(size):
    picture, points = painted(size, [(120, 120, 70, 0), (300, 260, 110, 20), (400, 400, 90, -30)])
    alone, packed = (detector(scan).detect(picture) for scan in (PaintedScan(), PackedScan()))
    assert len(alone) == len(points)
    for name in ("boxes", "scores", "points"):
        assert getattr(packed, name).tobytes() == getattr(alone, name).tobytes()


def test_the_smallest_face_grows_with_the_frame():
    assert adaptive_min_face(1080, 1920) == pytest.approx(40.8)
    assert adaptive_min_face(480, 640) == pytest.approx(33.68)
    assert adaptive_min_face(320, 240) == pytest.approx(23.84)


def test_logistic_adds_its_constant_and_saturates_at_0_and_1_without_overflow():
    chance = logistic(np.array([[0.0, 0.0], [1e6, 0.0], [-1e6, 0.0]], np.float32), [1.0, 1.0, np.log(3)])
    assert chance == pytest.approx([0.75, 1.0, 0.0], abs=1e-6)


MIRROR = [1, 0, 2, 4, 3]


def with_responses(*responses: list[float], residual: float = 0.03) -> Candidates:
    count = len(responses)
    places, points = np.zeros((count, 2), np.float32), np.zeros((count, 5, 2), np.float32)
    sides = np.ones(count, np.float32)
    return Candidates(places, sides, sides, np.float32(responses), np.full(count, residual, np.float32), points)


def test_scan_features_hold_sorted_responses_misfit_inliers_and_the_deficit_of_the_sum():
    features = scan_features(with_responses([0.9, 0.4, 0.8, 0.0, 0.6], [1.0, 9.0, 1.0, 0.7, 0.6]))
    assert features[0] == pytest.approx([0.4, 0.9, 0.8, 0.0, 0.6, 0.3, 4, 2.7 - 3], abs=1e-6)
    assert features[1] == pytest.approx([1.0, MOST_RESPONSE, 1.0, 0.6, 0.7, 0.3, 5, 0], abs=1e-6)


def test_features_of_a_face_and_its_mirror_image_are_equal():
    rng = np.random.default_rng(0)
    seen = rng.uniform(0, 1, (20, 5))
    mirrored, features = (scan_features(with_responses(*both)) for both in (seen[:, MIRROR], seen))
    np.testing.assert_allclose(mirrored, features, atol=1e-6)
    coarse, fine = rng.uniform(0, 1, (2, 5, 32, 32)), rng.uniform(0, 1, (2, 5, 24, 24))
    corner = rng.integers(0, 40, (2, 5, 2))
    _, features = decode_crops(*(np.float32(a) for a in (coarse, fine, corner)))
    other = corner[:, MIRROR] * [-1, 1] + [64 - 24, 0]
    _, mirrored = decode_crops(
        *(np.float32(a) for a in (coarse[:, MIRROR][..., ::-1], fine[:, MIRROR][..., ::-1], other))
    )
    np.testing.assert_allclose(mirrored, features, atol=1e-4)


SHIPPED = Path(__file__).parent.parent / "engines" / "cards" / "bbfcn-5.toml"


@pytest.mark.skipif(not SHIPPED.is_file(), reason="the trained detector is not in this tree")
def test_the_shipped_card_has_a_weight_for_every_feature():
    card = find_card("bbfcn", "detect")
    assert len(card.calibration["scan"]) == 9
    assert len(card.calibration["refine"]) == 13
    assert set(card.weights) == {"scan", "refine"}
