"""Crop, run, decode: painted faces come back in frame pixels, however they lie in the frame."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import PaintedFace, PaintedSource
from fakes_pipeline import PaintedBackend, painted_card

from facetrack.engines.aligner import LARGEST_BATCH, Aligner
from facetrack.engines.backend import Outputs, Shapes
from facetrack.engines.card import ModelCard
from facetrack.tracker.errors import CardError
from facetrack.tracker.geometry import CropTransform, bounding_box, box_centre_side, longer_side, rotated_box
from facetrack.tracker.pose import MEAN_FACE_MM
from facetrack.tracker.types import Float32, UInt8
from facetrack.training.alignment.targets import gaussian_vectors

# paint is read back from pixels of 8 bits and a crop of 128: half a crop pixel is what that and the codec cost
TOLERANCE_CROP_PX = 0.5
PATIENCE_S = 60.0


class Recorder:
    """A backend that remembers the pictures and answers with the same points and logits for each."""

    description = "recorder"
    precision = shapes = max_atlas = None

    def __init__(self, xy: Float32, logits: tuple[float, float] = (4.0, 4.0)) -> None:
        self.xy, self.logits = xy, logits
        self.seen: list[UInt8] = []
        self.closed = False

    def run(self, images: UInt8) -> Outputs:
        self.seen.append(images.copy())
        vectors = gaussian_vectors(np.repeat(self.xy[None], len(images), 0), 32, 4, 1.2, 3.0)
        return vectors, np.repeat(np.array([self.logits], np.float32), len(images), 0)

    def close(self) -> None:
        self.closed = True


def painted(*faces: PaintedFace) -> tuple[UInt8, list[Float32]]:
    source = PaintedSource(count=1, shape=(480, 640), faces=faces)
    return source.picture(0), source.truth(0)


def recorder(**logits: tuple[float, float]) -> tuple[Aligner, Recorder]:
    rng = np.random.default_rng(0)
    backend = Recorder(rng.uniform(20, 108, (68, 2)).astype(np.float32), **logits)
    return Aligner(painted_card(), backend), backend


@pytest.mark.parametrize("angle", [0.0, 0.5, -1.2, 3.0])
@pytest.mark.parametrize("width", [40.0, 110.0, 300.0])
def test_landmarks_come_back_in_frame_pixels_for_turned_and_scaled_faces(angle: float, width: float) -> None:
    bgr, (truth,) = painted(PaintedFace((320, 240), width=width, angle=angle))
    aligner = Aligner(painted_card(), PaintedBackend())
    crop = aligner.crop_of_points(truth)
    (face,) = aligner.align(bgr, [crop])
    assert np.abs(face.xy - truth).max() <= TOLERANCE_CROP_PX / crop.scale
    assert face.confidence > 0.9
    assert face.markup == "ibug68"
    assert face.score.shape == (68,)


class Scoreless(PaintedBackend):
    """A network that was trained without a face score, as the papers' are."""

    def run(self, images: UInt8) -> Outputs:
        return super().run(images)[:1]


def test_network_without_face_score_takes_confidence_from_its_landmarks_and_cannot_track() -> None:
    bgr, (truth,) = painted(PaintedFace((320, 240), width=110.0))
    scored, aligner = Aligner(painted_card(), PaintedBackend()), Aligner(painted_card(), Scoreless())
    crop = aligner.crop_of_points(truth)
    (face,), (other,) = aligner.align(bgr, [crop]), scored.align(bgr, [crop])
    np.testing.assert_array_equal(face.xy, other.xy)
    assert face.confidence == pytest.approx(float(other.score.mean()))
    assert face.presence == 1.0
    scored.require_face_score()
    with pytest.raises(CardError, match=r"painted-68: cannot track: .* network\.options\.face_score = true"):
        aligner.require_face_score()


def test_graph_without_face_score_is_refused_for_tracking_before_its_first_run() -> None:
    backend = Scoreless(shapes=Shapes((None, 128, 128, 3), ((None, 68, 32, 2),)))
    with pytest.raises(CardError, match="cannot track"):
        Aligner(painted_card(), backend).require_face_score()
    assert backend.calls == 0


@pytest.mark.parametrize("start", [(10.0, 240.0), (635.0, 240.0), (320.0, 5.0), (630.0, 474.0)])
def test_landmarks_outside_the_frame_are_not_clipped(start: tuple[float, float]) -> None:
    bgr, (truth,) = painted(PaintedFace(start, width=120.0))
    aligner = Aligner(painted_card(), PaintedBackend())
    crop = aligner.crop_of_points(truth)
    (face,) = aligner.align(bgr, [crop])
    assert np.abs(face.xy - truth).max() <= 2 * TOLERANCE_CROP_PX / crop.scale  # half the paint, twice the noise
    box = bounding_box(face.xy)
    assert (box[:2] < 0).any() or (box[2:] > [639, 479]).any()


def test_off_centre_crop_still_finds_landmarks_inside_and_outside_of_it() -> None:
    bgr, (truth,) = painted(PaintedFace((320, 240), width=150.0))
    aligner = Aligner(painted_card(), PaintedBackend())
    centre, side = box_centre_side(bounding_box(truth))
    crop = aligner.crop_around((centre[0] + 0.3 * side, centre[1]), side, 0.2)
    (face,) = aligner.align(bgr, [crop])
    assert (crop.to_crop(truth) < -3).any()
    error_crop_px = np.abs(face.xy - truth) * crop.scale
    assert np.median(error_crop_px) <= TOLERANCE_CROP_PX
    assert error_crop_px.max() <= 4.0  # in the outermost cell inside and outside cannot be told apart


def test_crop_of_points_is_upright_centred_and_scaled_as_the_card_says() -> None:
    _, (truth,) = painted(PaintedFace((320, 240), width=100.0, angle=0.7))
    aligner = Aligner(painted_card(), PaintedBackend())
    crop = aligner.crop_of_points(truth)
    five = aligner.markup.subset("five5", crop.to_crop(truth))
    (cx, cy), side, roll = rotated_box(crop.to_crop(truth), five)
    assert abs(roll) < 1e-3
    assert side * aligner.card.box_scale == pytest.approx(128, abs=0.01)
    assert (cx, cy) == pytest.approx((63.5, 63.5), abs=0.01)


def test_crop_of_five_points_covers_the_whole_face() -> None:
    _, (truth,) = painted(PaintedFace((320, 240), width=100.0, angle=0.7))
    whole = Aligner(painted_card(), PaintedBackend())
    five = Aligner(replace(painted_card(), markup="five5"), PaintedBackend())
    crop = five.crop_of_points(whole.markup.subset("five5", truth))
    assert crop.scale == pytest.approx(whole.crop_of_points(truth).scale, rel=0.15)
    assert (np.abs(crop.to_crop(truth) - 63.5) < 64).all()


@pytest.mark.parametrize(
    ("count", "runs"), [(0, []), (1, [1]), (8, [8]), (9, [4, 5]), (16, [8, 8]), (17, [5, 6, 6]), (20, [6, 7, 7])]
)
def test_many_faces_are_split_into_batches_of_nearly_equal_size(count: int, runs: list[int]) -> None:
    aligner, backend = recorder()
    bgr = np.random.default_rng(1).integers(0, 255, (200, 300, 3), np.uint8)
    crops = [aligner.crop_around((10.0 + 9 * i, 100.0), 60.0, 0.1 * i) for i in range(count)]
    found = aligner.align(bgr, crops)
    assert [len(images) for images in backend.seen] == runs
    assert max(runs, default=0) <= LARGEST_BATCH
    assert len(found) == count
    seen = [image for images in backend.seen for image in images]
    for crop, image, face in zip(crops, seen, found, strict=True):
        np.testing.assert_array_equal(image, crop.crop(bgr))
        np.testing.assert_allclose(face.xy, crop.to_frame(backend.xy), atol=0.2)


def test_results_of_one_call_are_untouched_by_the_next() -> None:
    aligner, _ = recorder()
    bgr = np.zeros((100, 100, 3), np.uint8)
    (first,) = aligner.align(bgr, [aligner.crop_around((50.0, 50.0), 40.0)])
    before = first.xy.copy()
    aligner.align(bgr, [aligner.crop_around((20.0, 70.0), 90.0)])
    np.testing.assert_array_equal(first.xy, before)


@pytest.mark.parametrize("logits", [(0.0, 8.0), (8.0, 0.0), (0.0, 0.0)])
def test_the_confidence_is_that_of_the_weaker_logit(logits: tuple[float, float]) -> None:
    aligner, _ = recorder(logits=logits)
    (face,) = aligner.align(np.zeros((50, 50, 3), np.uint8), [aligner.crop_around((20.0, 20.0), 20.0)])
    assert face.confidence == pytest.approx(0.5)


def test_poor_landmarks_lower_the_confidence_but_not_the_presence() -> None:
    aligner, _ = recorder(logits=(8.0, -8.0))
    (face,) = aligner.align(np.zeros((50, 50, 3), np.uint8), [aligner.crop_around((20.0, 20.0), 20.0)])
    assert face.presence == pytest.approx(1 / (1 + np.exp(-8.0)), abs=1e-6)
    assert face.confidence == pytest.approx(1 / (1 + np.exp(8.0)), abs=1e-6)


def test_outlying_contour_point_is_corrected_only_if_the_card_sets_a_shape_reach() -> None:
    flat = MEAN_FACE_MM[:, :2]
    jumped = (flat / longer_side(bounding_box(flat)) * 80 + 64).astype(np.float32)
    jumped[13] += np.float32([12, -10])
    found = {}
    for reach in (0.0, 0.02):
        aligner = Aligner(replace(painted_card(), calibration={"shape": reach}), Recorder(jumped))
        crop = aligner.crop_around((64.0, 64.0), 80.0)
        found[reach] = crop.to_crop(aligner.align(np.zeros((128, 128, 3), np.uint8), [crop])[0].xy)
    np.testing.assert_allclose(found[0.0], jumped, atol=0.2)  # what the codec costs
    back = np.linalg.norm(found[0.02] - found[0.0], axis=1)
    assert back[13] > 10
    assert back[27:].max() < 1e-3


@pytest.mark.parametrize("logit", [-1e4, -90.0, 90.0, 1e4])
def test_extreme_logits_neither_overflow_nor_leave_the_unit_interval(logit: float) -> None:
    aligner, _ = recorder(logits=(logit, logit))
    (face,) = aligner.align(np.zeros((50, 50, 3), np.uint8), [aligner.crop_around((20.0, 20.0), 20.0)])
    assert face.confidence == face.presence == float(logit > 0)


class Door:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self) -> None:
        self._lock, self.knocked = threading.Lock(), threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.knocked.set()
            self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


class Meeting(PaintedBackend):
    """Keeps the first of two callers inside until the second one is there, too: at the door, or inside."""

    def __init__(self, there: threading.Event) -> None:
        super().__init__()
        self.there, self.inside, self.together_inside = there, threading.Semaphore(1), False

    def run(self, images: UInt8) -> Outputs:
        if not self.inside.acquire(blocking=False):
            self.together_inside = True
            self.there.set()
        assert self.there.wait(PATIENCE_S), "the other never came"
        self.inside.release()
        return super().run(images)


def test_concurrent_threads_each_get_the_landmarks_of_their_own_picture() -> None:
    """As two videos that are tracked at once on the same engines."""
    door, found = Door(), {}
    backend = Meeting(door.knocked)
    aligner = Aligner(painted_card(), backend)
    aligner._lock = door
    views = {width: painted(PaintedFace((320, 240), width=width)) for width in (60.0, 200.0)}

    def work(width: float) -> None:
        bgr, (truth,) = views[width]
        found[width] = aligner.align(bgr, [aligner.crop_of_points(truth)])[0].xy

    threads = [threading.Thread(target=work, args=(width,)) for width in views]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not backend.together_inside
    for width, (_, (truth,)) in views.items():
        crop = aligner.crop_of_points(truth)
        assert np.abs(crop.to_crop(found[width]) - crop.to_crop(truth)).max() < TOLERANCE_CROP_PX


@pytest.mark.parametrize(
    ("picture", "got"),
    [
        (np.zeros((300, 640), np.uint8), r"\(300, 640\) of uint8"),
        (np.zeros((300, 640, 3), np.float32), r"\(300, 640, 3\) of float32"),
        (np.zeros((300, 640, 4), np.uint8), r"\(300, 640, 4\) of uint8"),
        (None, "NoneType"),
    ],
)
def test_invalid_picture_is_refused_before_the_network_runs(picture: Any, got: str) -> None:
    aligner, backend = recorder()
    crop = aligner.crop_around((320.0, 240.0), 90.0)
    good, _ = painted(PaintedFace((320, 240), width=90))
    aligner.align(good, [crop])
    with pytest.raises(ValueError, match=f"align: wanted a NumPy array .* got {got}"):
        aligner.align(picture, [crop])
    with pytest.raises(ValueError, match=f"align: wanted a NumPy array .* got {got}"):
        aligner.align_views([(good, crop), (picture, crop)])
    assert len(backend.seen) == 1


def test_a_crop_of_another_size_than_the_networks_is_refused() -> None:
    aligner, _ = recorder()
    good, _ = painted(PaintedFace((320, 240), width=90))
    with pytest.raises(ValueError, match=r"align: wanted crops of \(128, 128\), got \(64, 64\); see crop_around"):
        aligner.align(good, [CropTransform.around((320.0, 240.0), 150.0, 64)])


def test_coincident_landmarks_still_give_a_finite_crop() -> None:
    aligner, _ = recorder()
    crop = aligner.crop_of_points(np.full((68, 2), 30.0, np.float32))
    assert isinstance(crop, CropTransform)
    assert np.isfinite(crop.matrix).all()


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ({"kind": "smoke"}, r"painted-68: cannot decode 'smoke'"),
        ({}, r"cannot decode None"),
        ({"kind": "vectors", "stride": 4, "peak": 3.0}, r"painted-68: the codec lacks sigma"),
        (
            {"kind": "vectors", "stride": 4, "sigma": 1.2, "peak": 3.0, "peek": 2.0},
            r"painted-68: unknown key codec\.peek; did you mean 'peak'",
        ),
        (
            {"kind": "discs-in-maps", "stride": 2, "pixels": 0.5},
            r"painted-68: codec\.pixels: wanted a whole number, 1 or more, got 0\.5",
        ),
        ({"kind": "discs-in-windows", "pixels": 0}, r"codec\.pixels: wanted a whole number, 1 or more, got 0"),
        ({"kind": "heatmaps", "stride": 4, "reach": -1}, r"codec\.reach: wanted a whole number, 0 or more, got -1"),
        ({"kind": "fields", "stride": 4, "reach": 2.5, "fields": 15}, r"codec\.reach: wanted a whole .* got 2\.5"),
        ({"kind": "fields", "stride": 4, "reach": 3, "fields": 15.5}, r"codec\.fields: wanted a whole .* got 15\.5"),
    ],
)
def test_card_with_an_unusable_codec_is_refused(codec: dict[str, object], message: str) -> None:
    card: ModelCard = replace(painted_card(), codec=codec)
    with pytest.raises(CardError, match=message):
        Aligner(card, PaintedBackend())
