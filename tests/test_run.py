"""Who runs where: the threads change nothing, drop only what is old, and always end."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue

import numpy as np
import pytest
from fakes import PaintedFace, PaintedSource, read_landmarks, search_path
from fakes_pipeline import PEAK, SIDE, SIGMA, STRIDE, PaintedBackend, PaintedDetector, painted_card

from facetrack.engines.aligner import Aligner, View
from facetrack.engines.backend import Outputs
from facetrack.pipeline import stages
from facetrack.pipeline import threads as threads_module
from facetrack.pipeline.channel import Abandoned, Channel, Ended
from facetrack.pipeline.run import BATCH_SLOTS, FRAMES_IN_FLIGHT, IDLE_S, Pipeline, _arrivals
from facetrack.pipeline.search import CROWD, EVERY_WAY
from facetrack.pipeline.stages import REFINEMENTS, DetectStage, Job, PipelineSettings, SmoothStage
from facetrack.pipeline.threads import end_runs
from facetrack.tracker import markup
from facetrack.tracker.errors import BackendError, ConfigError, SourceError
from facetrack.tracker.geometry import CropTransform, bounding_box, iou
from facetrack.tracker.track import Track
from facetrack.tracker.types import Frame, Landmarks, Proposals, Result, State, UInt8
from facetrack.training.alignment.targets import gaussian_vectors

PATIENCE_S = 20.0  # only a failing test waits this long
EVERY_FRAME = PipelineSettings(detect_every=1)
IBUG = markup.load("ibug68")
FACE_XY = np.random.default_rng(0).uniform(20, 60, (68, 2)).astype(np.float32)


class Fault(Exception):  # noqa: N818 - the name says what it is for
    """What a test lets a stage raise."""


def picture(index: int) -> UInt8:
    """A small picture with some looks that carries its number."""
    bgr = np.linspace(0, 255, 80 * 80 * 3).reshape(80, 80, 3).astype(np.uint8)
    bgr[0, 0] = index // 256, index % 256, 0
    return bgr


def number_of(bgr: UInt8) -> int:
    return int(bgr[0, 0, 0]) * 256 + int(bgr[0, 0, 1])


TURNED = 771  # what a turned picture's corner reads, at least


def frame(index: int) -> Frame:
    return Frame(index, index / 30, 0.0, picture(index))


def frames(count: int) -> Iterator[Frame]:
    return map(frame, range(count))


def wait_for(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S), "nobody came"


@dataclass
class Watchman:
    """A detector that finds the one face, and can be told to fail or to wait.

    Attributes:
        on: frame number -> what to do when it is searched.
        searched: numbers of the frames that it was shown.
    """

    on: dict[int, Callable[[], object]] = field(default_factory=dict)
    searched: list[int] = field(default_factory=list)

    def min_reliable_face(self, bgr: UInt8) -> float:
        del bgr
        return 0.0

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del small, faint
        number = number_of(bgr)
        self.searched.append(number)
        if number in self.on:
            self.on[number]()
        five = IBUG.subset("five5", FACE_XY)
        return Proposals(bounding_box(FACE_XY)[None], np.ones(1), five[None])


@dataclass
class Surveyor:
    """An aligner that sees the same face in every crop; stands in for `Aligner`.

    Attributes:
        on: frame number -> what to do when it is measured.
        score_of: frame number -> score of every landmark, 1 where it is not given.
        lost: numbers of the frames in which there is no face.
    """

    on: dict[int, Callable[[], object]] = field(default_factory=dict)
    score_of: dict[int, float] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    markup = IBUG
    preferred_batch = 1

    def crop_around(self, centre: tuple[float, float], side: float, angle: float = 0.0) -> CropTransform:
        return CropTransform.around(centre, side, 48, angle=angle)

    def crop_of_points(self, xy: np.ndarray) -> CropTransform:
        return self.crop_around(tuple(xy.mean(0)), 50.0)

    def align(self, bgr: UInt8, crops: list[CropTransform]) -> list[Landmarks]:
        number = number_of(bgr)
        if number in self.on:
            self.on[number]()
        score = np.full(68, self.score_of.get(number, 1.0))
        confidence, presence = (0.0, 0.0) if number in self.lost else (0.9, 1.0)
        return [Landmarks(FACE_XY, score, confidence, presence, "ibug68") for _ in crops]

    def align_views(self, views: list[View]) -> list[Landmarks]:
        return [self.align(bgr, [crop])[0] for bgr, crop in views]


def make(
    detector: Watchman | None = None,
    aligner: Surveyor | None = None,
    settings: PipelineSettings = EVERY_FRAME,
    verifier: Surveyor | None = None,
) -> Pipeline:
    return Pipeline(detector or Watchman(), aligner or Surveyor(), settings, verifier)  # type: ignore[arg-type]


def fail(error: BaseException) -> Callable[[], object]:
    def do() -> None:
        raise error

    return do


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("facetrack-")]


@pytest.fixture(autouse=True)
def nobody_stays_behind() -> Iterator[None]:
    """After every test of this file, however it ended the run, all of its threads are gone."""
    assert threads_left() == []
    yield
    assert threads_left() == []


def collect(results: Iterable[Result]) -> tuple[list[int], BaseException | None]:
    """Frame numbers of all results, and the error that came after them."""
    numbers: list[int] = []
    try:
        for result in results:
            numbers.append(result.frame.index)
    except BaseException as error:  # noqa: BLE001 - the tests compare it
        return numbers, error
    return numbers, None


# the same answers as without threads


def painted(settings: PipelineSettings | None = None) -> tuple[Pipeline, PaintedDetector, PaintedSource]:
    faces = [
        PaintedFace((90, 110), velocity=(40, 10), width=70, spin=0.3),
        PaintedFace((250, 120), velocity=(-20, 15), width=60, angle=-0.3, seen=range(6, 20)),
    ]
    source = PaintedSource(count=36, shape=(220, 320), faces=faces)
    detector = PaintedDetector()
    return Pipeline(detector, Aligner(painted_card(), PaintedBackend()), settings), detector, source


def assert_same(a: Result, b: Result) -> None:
    assert (a.frame.index, a.frame.time_s) == (b.frame.index, b.frame.time_s)
    assert [face.track for face in a.faces] == [face.track for face in b.faces]
    for one, two in zip(a.faces, b.faces, strict=True):
        assert (one.state, one.confidence) == (two.state, two.confidence)
        for name in ("box", "smoothed", "speed"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert (one.measured is None) == (two.measured is None)
        if one.measured is not None and two.measured is not None:
            np.testing.assert_array_equal(one.measured.xy, two.measured.xy)
            np.testing.assert_array_equal(one.measured.score, two.measured.score)


@pytest.mark.parametrize("detect_every", [1, 5, 12])
def test_threaded_run_matches_the_serial_run(detect_every: int) -> None:
    pipeline, _, source = painted(PipelineSettings(detect_every=detect_every))
    serial, threaded = list(pipeline.serial(source)), list(pipeline.run(source))
    assert len(serial) == len(threaded) == source.count
    for one, two in zip(serial, threaded, strict=True):
        assert_same(one, two)
    assert {face.track for result in serial for face in result.faces} == {0, 1}


def test_threaded_run_matches_the_serial_run_through_loss_coasting_and_return() -> None:
    lost = {4, 5, *range(12, 25)}
    serial, threaded = (
        list(make(aligner=Surveyor(lost=lost)).serial(frames(40))),
        list(make(aligner=Surveyor(lost=lost)).run(frames(40))),
    )
    for one, two in zip(serial, threaded, strict=True):
        assert_same(one, two)
    assert {face.state for result in serial for face in result.faces} == set(State)


def test_a_face_that_was_off_the_picture_is_smoothed_anew() -> None:
    stage, rng = SmoothStage(PipelineSettings(), 68), np.random.default_rng(0)
    for index in range(12):
        points = Landmarks(FACE_XY + rng.normal(0, 0.3, (68, 2)), np.ones(68), 0.9, 1.0, "ibug68")
        track = Track(3, State.TRACKED, points, bounding_box(FACE_XY), index / 30, np.zeros(192), np.zeros(192))
        job = Job(frame(index), seen=() if index == 10 else (track,))
        stage(job)
        is_start = [np.array_equal(face.smoothed, points.xy) and not face.speed.any() for face in job.faces]
        assert is_start == ([] if index == 10 else [index in (0, 11)])


def test_a_pipeline_starts_every_run_with_an_empty_memory() -> None:
    pipeline, _, source = painted()
    first, second = list(pipeline.run(source)), list(pipeline.run(source))
    assert len(first) == len(list(source))
    for one, two in zip(first, second, strict=True):
        assert_same(one, two)


def test_the_measured_landmarks_are_those_that_were_painted() -> None:
    pipeline, _, source = painted(PipelineSettings(detect_every=1, smooth="none"))
    results = list(pipeline.run(source))
    assert len(results) == len(list(source))
    for result in results:
        truth = source.truth(result.frame.index)
        measured = [face for face in result.faces if face.measured is not None]
        assert len(measured) == len(truth)
        for face, wanted in zip(measured, truth, strict=True):
            assert np.abs(face.smoothed - wanted).max() < 0.6
            np.testing.assert_array_equal(face.smoothed, face.measured.xy)
            np.testing.assert_array_equal(face.speed, 0)
            np.testing.assert_array_equal(face.box, bounding_box(face.smoothed))


class FiveBackend(PaintedBackend):
    """Answers the five5 points of a painted face alone."""

    def run(self, images: UInt8) -> Outputs:
        """Vectors (B, 5, 32, 2) and two logits (B, 2)."""
        _, logits = super().run(images)
        found = [read_landmarks(image) for image in images]
        nothing = np.full((68, 2), -1e3, np.float32)
        xy = np.stack([nothing if points is None else points for points in found])
        five = markup.load("ibug68").subset("five5", xy)
        return gaussian_vectors(five, SIDE // STRIDE, STRIDE, SIGMA, PEAK), logits


def test_five_point_face_keeps_its_track_id_and_has_the_box_of_the_whole_face() -> None:
    source = PaintedSource(count=20, shape=(220, 320), faces=[PaintedFace((90, 110), velocity=(40, 10), width=70)])
    aligner = Aligner(replace(painted_card(), markup="five5"), FiveBackend())
    for result in Pipeline(PaintedDetector(), aligner, EVERY_FRAME).serial(source):
        (truth,) = source.truth(result.frame.index)
        (face,) = result.faces
        assert face.track == 0
        assert iou(face.box[None], bounding_box(truth)[None])[0, 0] > 0.7


def test_pipeline_settings_refuse_rts_smoothing() -> None:
    with pytest.raises(ConfigError, match="smooth: wanted one of kalman, oneeuro, none, got 'rts'"):
        PipelineSettings(smooth="rts")  # type: ignore[arg-type]


def test_in_a_batch_every_frame_comes_out_once_and_in_order() -> None:
    numbers, error = collect(make().run(frames(400)))
    assert error is None
    assert numbers == list(range(400))


def test_no_frame_gives_no_result() -> None:
    assert collect(make().run(iter(()))) == ([], None)
    assert collect(make().serial(iter(()))) == ([], None)


def test_every_stage_notes_its_time() -> None:
    for results in (list(make().run(frames(3))), list(make().serial(frames(3)))):
        assert len(results) == 3
        for result in results:
            assert set(result.spans_s) == {"capture", "detect", "align", "smooth"}
            assert all(span >= 0 for span in result.spans_s.values())


def test_nothing_runs_before_the_first_result_is_asked_for() -> None:
    detector = Watchman()
    results = make(detector).run(frames(3))
    assert threads_left() == []
    results.close()
    assert detector.searched == []


# when frames are searched


def test_a_tracked_face_is_searched_for_every_n_frames() -> None:
    detector = Watchman()
    assert collect(make(detector, settings=PipelineSettings(detect_every=12)).run(frames(30)))[1] is None
    assert sorted(detector.searched) == [0, 12, 24]


class Onlooker(Watchman):
    """Finds as many small faces as it is told to."""

    def __init__(self, faces: int) -> None:
        super().__init__()
        self.faces = faces

    def min_reliable_face(self, bgr: UInt8) -> float:
        del bgr
        return np.inf

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del faint
        found = super().detect(bgr, small=small)
        return Proposals.joined([found] * self.faces)


@pytest.mark.parametrize(("faces", "searched"), [(CROWD - 1, [0, 24]), (CROWD, [0, 8, 16, 24])])
def test_in_a_crowd_faces_are_searched_for_three_times_as_often(faces: int, searched: list[int]) -> None:
    detector = Onlooker(faces)
    stage = DetectStage(detector, PipelineSettings(detect_every=24))
    for each in frames(30):
        stage(Job(each))
    assert detector.searched == searched


def test_a_frame_without_a_face_or_with_a_lost_one_is_always_searched() -> None:
    detector, aligner = Watchman(), Surveyor(lost={4, 5, *range(20, 40)})
    results = list(make(detector, aligner, PipelineSettings(detect_every=100)).run(frames(42)))
    upright = {number for number in detector.searched if number < TURNED}
    assert upright == {0, 4, 5, *range(20, 41)}
    assert len(detector.searched) > len(upright)  # nobody is in sight any more: perhaps somebody lies there
    states = [[face.state.value for face in result.faces] for result in results]
    assert states[4] == ["coasting"]
    assert states[6] == ["tracked"]
    assert states[39] == []
    assert states[40] == ["tracked"]  # found again in the first frame in which it is back, under its old number
    assert results[40].faces[0].track == 0


def test_identity_check_depends_on_whether_the_picture_begins_a_shot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From frame 4 on the face looks less like itself than two people may."""
    first, other = np.linalg.qr(np.random.default_rng(0).normal(size=(192, 2)))[0].T.astype(np.float32)
    looks = {False: first, True: np.float32(0.55) * first + np.float32(0.835) * other}
    asked = []

    def begins_shot(before: UInt8, now: UInt8) -> bool:
        asked.append((number_of(before), number_of(now)))
        return True

    monkeypatch.setattr(stages, "describe_appearance", lambda bgr, _: looks[number_of(bgr) >= 4])
    for begins, last in ((begins_shot, 1), (lambda *_: False, 0)):
        monkeypatch.setattr(stages, "begins_shot", begins)
        results = list(make().run(frame(index) for index in range(8)))
        assert [result.faces[0].track for result in results] == [0] * 4 + [last] * 4
    assert asked == [(3, 4)]  # nowhere else did it matter, and but once


def test_static_picture_without_a_face_is_searched_when_due_or_changed() -> None:
    def empty(index: int) -> Frame:
        bgr = picture(index)
        bgr[40:, 40:] += np.uint8(90 * (index >= 300))
        return Frame(index, index / 30, 0.0, bgr)

    detector, aligner = Watchman(), Surveyor(lost=set(range(300)))
    results = list(make(detector, aligner, PipelineSettings(detect_every=100)).run(map(empty, range(301))))
    assert len({number for number in detector.searched if EVERY_WAY < number < 300}) == 2  # 100 and 200
    assert [len(result.faces) for result in results] == [0] * 300 + [1]


class Sideways(Watchman):
    """Finds the face in pictures alone that were turned."""

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del faint
        found = super().detect(bgr, small=small)
        return found if number_of(bgr) >= TURNED else Proposals.none()


def test_rotated_face_is_found_in_the_first_frame_and_tracked_without_more_searches() -> None:
    detector = Sideways()
    results = list(make(detector, settings=PipelineSettings(detect_every=100)).run(frames(9)))
    assert [[face.track for face in result.faces] for result in results] == [[0]] * 9
    assert detector.searched[0] == 0
    assert len(detector.searched) == 2  # one direction was enough


@dataclass
class Doubter(Surveyor):
    """An aligner that sees another face at every place that it is shown, and is not sure of some of them.

    Attributes:
        confidences: of the first faces, as they come; of all further ones 0.9.
        presences: of the same; 1 where there are fewer.
    """

    confidences: tuple[float, ...] = ()
    presences: tuple[float, ...] = ()
    shown = 0

    def align(self, bgr: UInt8, crops: list[CropTransform]) -> list[Landmarks]:
        found = super().align(bgr, crops)
        number, self.shown = self.shown // (1 + REFINEMENTS), self.shown + len(found)
        if number >= len(self.confidences):
            return found
        place, confidence = FACE_XY + 100 * number, self.confidences[number]
        presence = self.presences[number] if number < len(self.presences) else 1.0
        return [replace(face, xy=place, confidence=confidence, presence=presence) for face in found]


@pytest.mark.parametrize(
    "confidences",
    [
        (0.75, 0.9),  # upright the hair was taken for a mouth
        (0.75, 0.75, 0.9),  # and upside down, too
    ],
)
def test_sure_face_from_a_rotated_search_replaces_unsure_upright_ones(
    confidences: tuple[float, ...],
) -> None:
    assert taken(Doubter(confidences=confidences)) == [0.9]


def test_rotated_or_faint_faces_need_a_higher_presence_than_upright_ones() -> None:
    """The first and the last but one are found in the upright picture."""
    clear, not_quite, hardly = 1 - 1e-6, 0.9995, 0.995
    presences = (not_quite, not_quite, clear, not_quite, hardly, hardly)
    assert taken(Doubter(confidences=(0.75, 0.74, 0.7, 0.69, 0.6, 0.65), presences=presences)) == [0.75, 0.7, 0.6]


class Couple(Sideways):
    """Finds two faces there."""

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        del faint
        found = super().detect(bgr, small=small)
        return Proposals.joined((found, found))


@dataclass
class Discerning(Surveyor):
    """Sees as many faces as it is shown, each at its own place and with its own presence."""

    presences: tuple[float, ...] = ()

    def align(self, bgr: UInt8, crops: list[CropTransform]) -> list[Landmarks]:
        seen = zip(super().align(bgr, crops), self.presences, strict=False)
        return [replace(face, xy=FACE_XY + 100 * i, presence=presence) for i, (face, presence) in enumerate(seen)]


def test_faces_beside_a_sure_rotated_one_need_only_the_upright_threshold() -> None:
    detector = Couple()
    settings = PipelineSettings(detect_every=100)
    (result,) = make(detector, Discerning(presences=(1 - 1e-6, 0.998)), settings).run(frames(1))
    assert len(result.faces) == 2
    assert len(detector.searched) == 2  # the first way of turning showed them


def taken(aligner: Doubter) -> list[float]:
    """The confidences of faces in a picture that is searched once for each that the aligner doubts."""
    detector = Watchman()
    (result,) = make(detector, aligner, PipelineSettings(detect_every=100)).run(frames(1))
    assert len(detector.searched) == len(aligner.confidences)
    return [round(face.confidence, 6) for face in result.faces]


def test_a_search_comes_after_n_frames_even_if_every_multiple_of_n_was_dropped() -> None:
    detector = Watchman()
    stage = DetectStage(detector, PipelineSettings(detect_every=4))
    for index in range(1, 40, 2):
        stage(Job(frame(index)))
    assert detector.searched == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37]
    stage(Job(frame(100)))
    stage(Job(frame(103)))
    assert detector.searched[-1] == 100


@pytest.mark.parametrize(("index", "time"), [(0, 0), (0, 61), (61, 0)])
def test_frames_whose_index_or_time_restarts_are_searched_at_once(index: int, time: int) -> None:
    """A program may track several recordings in one run: what they show has nothing to do with each other."""
    detector = Watchman()
    stage = DetectStage(detector, PipelineSettings())
    for number in range(61):
        stage(Job(frame(number)))
    for number in range(30):
        stage(Job(Frame(index + number, (time + number) / 30, 0.0, picture(100 + number))))
    assert detector.searched == [0, 25, 50, 100, 125]


@pytest.mark.parametrize(
    ("rate", "every", "searched"),
    [
        (1, 25, [*range(60)]),
        (5, 25, [*range(0, 60, 5)]),
        (12, 50, [0, 24, 48]),
        (25, 25, [0, 25, 50]),
        (60, 25, [0, 25, 50]),
    ],
)
def test_search_interval_in_slow_recordings_is_no_longer_than_at_25_fps(
    rate: int, every: int, searched: list[int]
) -> None:
    detector = Watchman()
    stage = DetectStage(detector, PipelineSettings(detect_every=every))
    for index in range(60):
        stage(Job(Frame(index, index / rate, 0.0, picture(index))))
    assert detector.searched == searched


def test_a_new_face_needs_a_verifier_and_a_known_one_does_not() -> None:
    results = list(make(verifier=Surveyor(lost={0, 1, 2, 5, 6})).serial(frames(8)))
    assert [len(result.faces) for result in results] == [0, 0, 0, 1, 1, 1, 1, 1]


def test_coasting_face_is_carried_on_without_a_measurement() -> None:
    results = list(make(aligner=Surveyor(lost={5, 6})).run(frames(9)))
    for index in (5, 6):
        (face,) = results[index].faces
        assert face.measured is None
        assert face.state is State.COASTING
        assert np.abs(face.smoothed - FACE_XY).max() < 1
        assert face.confidence == pytest.approx(0.9)


# live


class Camera:
    """Gives the first frames, waits until one of them is being searched, and gives the rest at once."""

    def __init__(self, first: int, rest: int) -> None:
        self.first, self.rest = first, rest
        self.busy, self.all_given = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        yield from frames(self.first)
        wait_for(self.busy)
        for index in range(self.first, self.first + self.rest):
            yield frame(index)
        self.all_given.set()  # the capture thread asks for more only when it has put the last one


def test_live_the_newest_frame_wins_and_the_others_are_counted() -> None:
    camera = Camera(1, 6)

    def hold() -> None:
        camera.busy.set()
        wait_for(camera.all_given)

    pipeline = make(Watchman(on={0: hold}))
    assert pipeline.dropped == 0
    results = pipeline.run(camera, live=True)
    assert next(results).frame.index == 0
    assert pipeline.dropped == 5  # also while it runs
    assert collect(results) == ([6], None)
    assert pipeline.dropped == 5


def test_a_batch_drops_nothing_however_slow_the_stages_are() -> None:
    camera = Camera(1, BATCH_SLOTS["capture"])  # as many as find room in front of the busy stage
    pipeline = make(Watchman(on={0: lambda: (camera.busy.set(), wait_for(camera.all_given))}))
    assert collect(pipeline.run(camera)) == ([0, 1, 2], None)
    assert pipeline.dropped == 0


def test_live_at_most_two_frames_are_on_their_way() -> None:
    begun = [threading.Event() for _ in range(40)]
    on_the_way: list[int] = []
    done = 0

    def begin(number: int) -> None:
        on_the_way.append(sum(event.is_set() for event in begun) + 1 - done)
        begun[number].set()

    def paced() -> Iterator[Frame]:
        for number, event in enumerate(begun):
            yield frame(number)
            wait_for(event)  # so that none is dropped

    detector = Watchman(on={number: partial(begin, number) for number in range(40)})
    for result in make(detector).run(paced(), live=True):
        wait_for(begun[min(result.frame.index + 1, 39)])  # the next one is searched while this one is still here
        done += 1
    assert done == 40
    assert max(on_the_way) == FRAMES_IN_FLIGHT


def test_live_frames_stay_in_order_and_the_last_one_is_never_dropped() -> None:
    pipeline = make()
    numbers, error = collect(pipeline.run(frames(500), live=True))
    assert error is None
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 499
    assert len(numbers) + pipeline.dropped == 500


# errors


def broken_source(count: int, error: BaseException) -> Iterator[Frame]:
    yield from frames(count)
    raise error


def failing_at(stage: str, number: int, error: BaseException) -> tuple[Pipeline, Iterator[Frame]]:
    """A pipeline, and frames for it, in which this stage raises at this frame."""
    if stage == "capture":
        return make(), broken_source(number, error)
    detector = Watchman(on={number: fail(error)} if stage == "detect" else {})
    aligner = Surveyor(on={number: fail(error)} if stage == "align" else {})
    return make(detector, aligner), frames(60)


ERRORS = [Fault("broke"), SourceError("gone"), TimeoutError("late"), KeyboardInterrupt(), MemoryError(), SystemExit(3)]


@pytest.mark.parametrize("threaded", [True, False], ids=["run", "serial"])
@pytest.mark.parametrize("number", [0, 1, 17])
@pytest.mark.parametrize("stage", ["capture", "detect", "align"])
def test_an_error_comes_after_all_earlier_results_and_says_where(stage: str, number: int, threaded: bool) -> None:
    error = Fault("broke")
    pipeline, source = failing_at(stage, number, error)
    numbers, caught = collect(pipeline.run(source) if threaded else pipeline.serial(source))
    assert caught is error
    assert numbers == list(range(number))
    where = f"at frame {number + 1}" if stage != "capture" else f"after frame {number}"
    if stage == "capture" and number == 0:
        where = "before the first frame"
    assert error.__notes__ == [f"in stage {stage} {where}"]


def test_smoother_error_follows_all_earlier_results() -> None:
    numbers, caught = collect(make(aligner=Surveyor(score_of={7: float("nan")})).run(frames(30)))
    assert numbers == list(range(7))
    assert isinstance(caught, ValueError)
    assert caught.__notes__ == ["in stage smooth at frame 8"]


@pytest.mark.parametrize("stage", ["capture", "detect", "align"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_reaches_the_caller_as_the_same_object(stage: str, error: BaseException) -> None:
    for idle in (None, lambda: True):
        pipeline, source = failing_at(stage, 3, error)
        numbers, caught = collect(pipeline.run(source, idle=idle))
        assert caught is error
        assert numbers == [0, 1, 2]


@pytest.mark.parametrize("stage", ["capture", "detect", "align"])
def test_live_run_ends_on_an_error(stage: str) -> None:
    error = Fault("broke")
    # what was dropped is not searched: every frame from the third on fails
    detector = Watchman(on=dict.fromkeys(range(3, 60), fail(error)) if stage == "detect" else {})
    aligner = Surveyor(on=dict.fromkeys(range(3, 60), fail(error)) if stage == "align" else {})
    source = broken_source(3, error) if stage == "capture" else frames(60)
    numbers, caught = collect(make(detector, aligner).run(source, live=True))
    assert caught is error
    assert set(numbers) <= {0, 1, 2}


def test_the_cause_and_the_notes_that_an_error_brings_are_kept() -> None:
    cause = OSError("cable")
    error = SourceError("camera lost")
    error.__cause__ = cause
    error.add_note("index 2")
    pipeline, source = failing_at("capture", 2, error)
    _, caught = collect(pipeline.run(source))
    assert caught is error
    assert caught.__cause__ is cause
    assert error.__notes__ == ["index 2", "in stage capture after frame 2"]


def test_two_errors_at_once_give_the_one_of_the_earlier_frame() -> None:
    """The source breaks off while the align stage still has frames before that, of which one fails."""
    late, early = Fault("source"), Fault("align")
    source_broke = threading.Event()

    def source() -> Iterator[Frame]:
        yield from frames(4)
        source_broke.set()
        raise late

    aligner = Surveyor(on={0: lambda: wait_for(source_broke), 2: fail(early)})
    numbers, caught = collect(make(aligner=aligner).run(source()))
    assert caught is early
    assert numbers == [0, 1]


def test_source_that_cannot_be_iterated_raises_before_the_first_frame() -> None:
    class Broken:
        def __iter__(self) -> Iterator[Frame]:
            raise SourceError("no such camera")

    numbers, caught = collect(make().run(Broken()))
    assert numbers == []
    assert isinstance(caught, SourceError)
    assert caught.__notes__ == ["in stage capture before the first frame"]


# ends


def endless() -> Iterator[Frame]:
    index = 0
    while True:
        yield frame(index)
        index = (index + 1) % 60_000


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("taken", [1, 5])
def test_when_the_caller_closes_early_every_thread_ends(live: bool, taken: int) -> None:
    results = make().run(endless(), live=live)
    for _ in range(taken):
        next(results)
    assert len(threads_left()) == 4
    results.close()
    assert threads_left() == []


@pytest.mark.parametrize("live", [False, True])
def test_when_the_callers_own_loop_fails_every_thread_ends(live: bool) -> None:
    def careless() -> None:
        with closing(make().run(endless(), live=live)) as results:
            for result in results:
                if result.frame.index >= 3:
                    raise Fault

    with pytest.raises(Fault):
        careless()


@pytest.mark.parametrize("live", [False, True])
def test_leaving_the_loop_ends_every_thread(live: bool) -> None:
    for _ in make().run(endless(), live=live):
        break
    assert threads_left() == []


@pytest.mark.parametrize("live", [False, True])
def test_closing_while_a_stage_is_at_work_waits_for_it(live: bool) -> None:
    working, closing_began = threading.Event(), threading.Event()
    finished = []

    def work() -> None:
        working.set()
        wait_for(closing_began)
        finished.append(True)

    camera = Camera(1, 1)
    results = make(Watchman(on={0: camera.busy.set, 1: work})).run(camera, live=live)
    next(results)
    wait_for(working)
    closing_began.set()
    results.close()
    assert finished == [True]


class Collecting(PaintedBackend):
    """A network in which, when `owner` calls it, garbage is collected; other threads then wait for the aligner."""

    owner: threading.Thread | None = None

    def run(self, images: UInt8) -> Outputs:
        if threading.current_thread() is self.owner:
            gc.collect()
        return super().run(images)


def join_all() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("facetrack-"):
            thread.join(PATIENCE_S)


def test_run_collected_as_garbage_inside_a_network_call_does_not_deadlock() -> None:
    """The align stage waits for the lock of the aligner, which the collecting thread has."""
    backend, source = Collecting(), PaintedSource(count=10_000)
    aligner = Aligner(painted_card(), backend)
    results = Pipeline(PaintedDetector(), aligner).run(source)
    next(results)
    loop = [results]
    loop.append(loop)  # type: ignore[arg-type]
    del results, loop
    backend.owner = threading.current_thread()
    aligner.align(source.picture(0), [aligner.crop_around((60.0, 60.0), 40.0)])
    join_all()
    assert threads_left() == []
    assert collect(make().run(frames(2))) == ([0, 1], None)
    assert threads_module._under_way == set()


def test_run_collected_as_garbage_in_one_of_its_own_stages_ends() -> None:
    collected = threading.Event()

    def collect_garbage() -> None:
        wait_for(unreachable)
        gc.collect()
        collected.set()

    unreachable = threading.Event()
    results = make(Watchman(on={1: collect_garbage})).run(endless())
    next(results)
    loop = [results]
    loop.append(loop)  # type: ignore[arg-type]
    del results, loop
    unreachable.set()
    wait_for(collected)
    join_all()
    assert threads_left() == []


def silent(released: threading.Event) -> Iterator[Frame]:
    """A camera that falls silent after two frames, until it is closed."""
    yield from frames(2)
    wait_for(released)


def test_idle_is_called_in_the_callers_thread_and_may_end_a_silent_run() -> None:
    released, asked = threading.Event(), []
    numbers: list[int] = []

    def idle() -> bool:
        asked.append(threading.current_thread())
        if numbers:  # before, the stages may be compiling
            released.set()
        return not numbers

    for result in make().run(silent(released), live=True, idle=idle):
        numbers.append(result.frame.index)
    assert numbers in ([0], [1], [0, 1])
    assert set(asked) == {threading.current_thread()}


def test_caller_polls_a_silent_source_with_a_timeout() -> None:
    """Windows tells Python of a signal, but does not end a wait for it."""
    waits: list[float | None] = []

    class Silent:
        def get(self, timeout_s: float | None = None) -> Job:
            waits.append(timeout_s)
            raise TimeoutError if len(waits) < 3 else Ended

    assert list(_arrivals(Silent(), None)) == []  # type: ignore[arg-type]
    assert waits == [IDLE_S] * 3


def test_what_idle_raises_ends_the_run() -> None:
    released = threading.Event()

    def idle() -> bool:
        released.set()
        raise Fault

    _, error = collect(make().run(silent(released), live=True, idle=idle))
    assert isinstance(error, Fault)


def test_capture_thread_of_a_silent_source_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "CAPTURE_PATIENCE_S", 0.01)
    released = threading.Event()
    numbers, error = collect(make().run(silent(released), idle=lambda: False))
    assert error is None
    assert set(numbers) <= {0, 1}
    assert threads_left() == ["facetrack-capture"]
    released.set()
    for thread in threading.enumerate():
        if thread.name == "facetrack-capture":
            thread.join(PATIENCE_S)


def test_an_interrupt_in_the_callers_thread_ends_everything() -> None:
    def interrupted(results: Generator[Result, None, None]) -> Iterator[Result]:
        yield next(results)
        results.throw(KeyboardInterrupt())

    numbers, error = collect(interrupted(make().run(endless())))
    assert numbers == [0]
    assert isinstance(error, KeyboardInterrupt)
    assert threads_left() == []


# engines that are closed, and the program's end


@pytest.mark.parametrize("live", [False, True])
def test_a_run_ends_with_its_engines_and_not_with_others(live: bool) -> None:
    pipeline = make()
    results = pipeline.run(endless(), live=live)
    next(results)
    end_runs(Surveyor())
    assert len(threads_left()) == 4
    next(results)
    end_runs(pipeline.aligner)
    assert threads_left() == []
    _, error = collect(results)
    assert isinstance(error, BackendError)
    assert "open them again" in str(error)


def test_closing_engines_raises_in_a_thread_that_waits_for_a_result() -> None:
    working, heard = threading.Event(), SimpleQueue[BaseException | None]()
    pipeline = make(Watchman(on={0: working.set}))
    caller = threading.Thread(target=lambda: heard.put(collect(pipeline.run(endless()))[1]))
    caller.start()
    wait_for(working)
    end_runs(pipeline.aligner)
    assert isinstance(heard.get(timeout=PATIENCE_S), BackendError)
    caller.join(PATIENCE_S)


def test_finished_recording_is_delivered_although_the_engines_are_closed() -> None:
    done = threading.Event()

    def source() -> Iterator[Frame]:
        yield from frames(3)
        done.set()

    pipeline = make()
    results = pipeline.run(source())
    next(results)
    wait_for(done)
    join_all()
    end_runs(pipeline.aligner)
    assert collect(results) == ([1, 2], None)


PROGRAM = """
import atexit, sys, threading
from itertools import count

def tell():
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("facetrack-")]
    for thread in threads:
        thread.join(0.5)  # one that has done its work takes its time to end
    print("left:", *(thread.name for thread in threads if thread.is_alive()))

atexit.register(tell)  # called after what facetrack does at the end, for it was there first
from test_run import Watchman, endless, make, silent, wait_for

working, ending = threading.Event(), threading.Event()

def work():  # a network that is inside a call when the program ends
    working.set()
    wait_for(ending)
"""
UNFINISHED = f"""{PROGRAM}
results = make(Watchman(on={{1: work}})).run(endless())
next(results)
wait_for(working)
atexit.register(ending.set)  # called first
"""
IN_A_DAEMON = f"""{PROGRAM}
def follow():
    for result in make(Watchman(on={{1: work}})).run(endless()):
        pass
    print("went on")

threading.Thread(target=follow, daemon=True).start()
wait_for(working)
atexit.register(ending.set)
"""
INTERRUPTED = f"""{PROGRAM}
import signal

closed = threading.Event()

class Source:
    def __iter__(self):
        try:
            yield from endless()
        finally:
            closed.set()

def interrupt():  # while the caller closes the run, and once more while the program ends
    working.set()
    wait_for(closed)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    wait_for(ending)
    if TWICE:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        wait_for(heard)

heard = threading.Event()

def hear(*_):
    heard.set() if ending.is_set() else None
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, hear)
results = make(Watchman(on={{1: interrupt}})).run(Source())
next(results)
wait_for(working)
atexit.register(ending.set)
try:
    results.close()
    print("waited")
except KeyboardInterrupt:
    print("interrupted")
"""
SILENT = f"""{PROGRAM}
results = make().run(silent(ending))  # which never comes
next(results)
"""
FORKED = f"""{PROGRAM}
import os, signal, warnings
from facetrack.pipeline import threads

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # from Python 3.12 on

def hold():
    with channel._lock:
        working.set()
        wait_for(ending)

results = make().run(endless())
next(results)
((channel, *_),) = (run.links for run in threads._under_way)
holder = threading.Thread(target=hold)
holder.start()
wait_for(working)
if not (child := os.fork()):
    signal.alarm(20)  # ends a child that hangs
    results.close()
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
ending.set()
holder.join()
results.close()
"""
FORKED_WHILE_COMPILING = f"""{PROGRAM}
import os
from numba.core.compiler_lock import global_compiler_lock

compiled, forking = [], threading.Event()
os.register_at_fork(before=forking.set)  # called first, for it was registered last

def compile():
    with global_compiler_lock:
        working.set()
        wait_for(forking)
        ending.wait(0.3)  # nobody sets it: a fork that does not wait is long over
        compiled.append("kernel")

compiler = threading.Thread(target=compile)
compiler.start()
wait_for(working)
if not (child := os.fork()):
    os._exit(len(compiled))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
compiler.join()
"""


def ended_program(code: str) -> tuple[int, list[str], str]:
    """Exit code, printed lines and the last line on stderr of a program."""
    environment = os.environ | {"PYTHONPATH": search_path()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout.splitlines(), done.stderr.strip().rpartition("\n")[2]


@pytest.mark.parametrize(
    ("last", "code", "told"),
    [("", 0, ""), ("sys.exit(3)", 3, ""), ("raise OSError('mine')", 1, "OSError: mine")],
    ids=["end", "sys.exit", "error"],
)
def test_no_thread_of_an_unfinished_run_works_during_interpreter_shutdown(last: str, code: int, told: str) -> None:
    """Python would stop it inside a network, whose library would abort the process."""
    assert ended_program(UNFINISHED + last) == (code, ["left:"], told)


def test_run_followed_by_a_daemon_thread_ends_before_interpreter_shutdown() -> None:
    assert ended_program(IN_A_DAEMON) == (0, ["left:"], "")


@pytest.mark.skipif(os.name == "nt", reason="no signal reaches a thread there")
@pytest.mark.parametrize("twice", [False, True])
def test_interrupted_close_still_ends_the_run_before_interpreter_shutdown(*, twice: bool) -> None:
    code, lines, _ = ended_program(f"TWICE = {twice}\n{INTERRUPTED}")
    assert (code, lines) == (0, ["interrupted", "left:"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked there")
def test_forked_process_closes_a_run_whose_threads_stayed_in_its_parent() -> None:
    """One of them may have held a lock, which nobody gives back here."""
    assert ended_program(FORKED) == (0, ["left:", "7", "left:"], "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked there")
def test_a_fork_waits_for_a_kernel_that_is_being_compiled() -> None:
    """LLVM aborts a child that ends with one half done: about one in a hundred where kernels are compiled at forks."""
    assert ended_program(FORKED_WHILE_COMPILING) == (0, ["1", "left:"], "")


@pytest.mark.skipif(os.name == "nt", reason="no signal reaches a thread there")
@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_thread_with_an_interrupted_join_is_still_reported_as_alive() -> None:
    """As Python 3.11 takes it: whoever asked next would close a network in the middle of its work."""

    released, main = threading.Event(), threading.main_thread().ident or 0
    inbox: Channel[int] = Channel(1)
    run = threads_module.RunThreads(aligner=None, permits=None)

    def read_ahead() -> None:
        with suppress(Abandoned):
            while True:
                inbox.put(0)
        signal.pthread_kill(main, signal.SIGINT)
        wait_for(released)

    run.add("capture", inbox, read_ahead)
    run.start()
    inbox.get()
    with pytest.raises(KeyboardInterrupt):
        run.end()
    assert run.is_alive()
    released.set()
    run.end()
    assert not run.is_alive()


def test_a_silent_source_does_not_keep_the_program_from_ending() -> None:
    assert ended_program(SILENT) == (0, ["left: facetrack-capture"], "")
