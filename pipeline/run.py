"""capture -> detect -> align -> smooth: who runs where, and how frames pass from thread to thread.

One thread per stage; the caller's own `for` loop is the fifth and writes. What a frame's answer depends on (the last
frame's landmarks) never leaves the align stage, so the threads change nothing but the speed: `Pipeline.serial` and
`Pipeline.run` give the same results for a file.

An error travels behind the frames before it: the stage that fails abandons its inbox, so that nobody waits for it,
and ends its outbox with a `_Fault`; the later stages pass that on, and the caller's loop raises what it carries.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

import numpy as np

from ..engines.aligner import Aligner
from ..tracker.appearance import describe_appearance
from ..tracker.geometry import bounding_box, longer_side, rotated_box
from ..tracker.one_euro import OneEuro, OneEuroSettings
from ..tracker.smooth import Smoother, SmootherSettings, Smoothing
from ..tracker.track import TrackSettings
from ..tracker.tracks import SURE, TrackBook
from ..tracker.types import Face, Float32, Frame, Landmarks, Proposals, Result, State, UInt8
from ..tracker.views import box_of_five
from .channel import Abandoned, Channel, Ended
from .foresight import Foresight
from .intake import taken_in
from .search import FaceDetector, Search
from .threads import Permits, ProgramEnds, RunThreads, stay_if_daemon

FRAMES_IN_FLIGHT = 2  # live; full throughput at two thirds of the delay that one slot per hand-off would cost
# A search holds the detect stage up for as long as the align stage takes for several frames: so many lie ready (six
# take 5 % longer, twelve as long). Each waiting frame is a picture in memory, and the other stages keep pace with two.
BATCH_SLOTS = {"capture": 2, "detect": 9, "align": 2, "smooth": 2}
CROWD_SEARCHES = 3  # in a crowd, in place of one elsewhere
SLOWEST = 25.0  # frames per second; with fewer, newcomers would wait for longer than a second by default
ROUGH_PRESENCE = 0.5  # of a proposal's first crop, which seldom sits well; the last must convince
REFINEMENTS = 2  # rounds after that one; the second of them takes a face upside down from 3.30 to 3.24 % (LFPW test)
IDLE_S = 0.05  # a window that answers within 50 ms feels alive

Stage = Callable[["Job"], None]


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How a video is tracked.

    Attributes:
        detect_every: frames between two searches while every known face is tracked, and no longer than they last at
            `SLOWEST` per second; a frame without any face, or in which one was just lost, is always searched. How
            thoroughly, `search.Search` decides.
        smooth: "kalman" or "oneeuro"; "none" leaves the landmarks as measured, and so does "rts", which is done to the
            results: see `hindsight.look_back`.
        tracks, smoother: see there.
    """

    detect_every: int = 25
    smooth: Smoothing = "kalman"
    tracks: TrackSettings = field(default_factory=TrackSettings)
    smoother: SmootherSettings = field(default_factory=SmootherSettings)


@dataclass(frozen=True, slots=True)
class Seen:
    """A track as the align stage leaves it: a snapshot, for the track itself goes on changing."""

    number: int
    state: State
    landmarks: Landmarks

    @property
    def measured(self) -> bool:
        """Whether the landmarks are of this very frame."""
        return self.state is not State.COASTING


@dataclass(slots=True)
class Job:
    """One frame on its way through the stages; `ahead` are those that come next, where the align stage wants them."""

    frame: Frame
    ahead: Sequence[Frame] = ()
    proposals: Proposals | None = None
    seen: tuple[Seen, ...] = ()
    faces: tuple[Face, ...] = ()
    spans_s: dict[str, float] = field(default_factory=dict)


class DetectStage:
    """Searches for faces ahead of the align stage, in the first frame and once `detect_every` frames have gone by.

    Or the time that they take at `SLOWEST` per second. In a crowd faces come and go: there, once a third of them has.
    """

    def __init__(self, detector: FaceDetector, settings: PipelineSettings) -> None:
        self._search, self._every = Search(detector), settings.detect_every
        self._last: tuple[int, float] | None = None  # index and time of the frame that was searched last

    def __call__(self, job: Job) -> None:
        if self._is_due(job.frame):
            self._last = job.frame.index, job.frame.time_s
            job.proposals = self._search(job.frame.bgr)

    def _is_due(self, frame: Frame) -> bool:
        if self._last is None:
            return True
        index, time_s = self._last
        every = -(-self._every // CROWD_SEARCHES) if self._search.crowded else self._every
        # indices have gaps where frames were dropped: no multiple of anything need ever come
        return frame.index - index >= every or frame.time_s - time_s >= every / SLOWEST


class AlignStage:
    """Follows known faces by their landmarks and takes in new ones; the only stage with a memory of places."""

    def __init__(
        self, aligner: Aligner, detector: FaceDetector, settings: PipelineSettings, verifier: Aligner | None = None
    ) -> None:
        self.aligner, self._search, self._verifier = aligner, Search(detector), verifier
        self.book, self._foresight = TrackBook(settings.tracks), Foresight(aligner)

    def __call__(self, job: Job) -> None:
        frame, book = job.frame, self.book
        found = self._foresight.align(frame, book.live, job.ahead)
        job.ahead = ()
        book.observe(frame.time_s, found, [self._appearance(frame.bgr, face) for face in found])
        if job.proposals is None and book.wants_whole:
            job.proposals = self._search(frame.bgr, book.missing, beside=book.in_sight)
        elif job.proposals is None and book.wants_detection:
            job.proposals = self._search.near(frame.bgr, book.missing)
        if job.proposals is not None:
            found = self._found(frame.bgr, job.proposals)
            if not book.live and not self._is_any_sure(found):
                found = self._harder(frame.bgr, found)
            for face in sorted(found, key=lambda face: -face.confidence):
                book.admit(frame.time_s, face, self._appearance(frame.bgr, face))
        job.seen = tuple(Seen(t.number, t.state, t.landmarks) for t in book.live)

    def _harder(self, bgr: UInt8, found: list[Landmarks]) -> list[Landmarks]:
        """What was found and what harder searches find, until they find a face whose landmarks are likely to be right.

        Upright, a face that lies may be taken for another one.
        """
        for proposals in self._search.harder(bgr):
            found = found + self._found(bgr, proposals)
            if self._is_any_sure(found):
                break
        return found

    def _is_any_sure(self, faces: list[Landmarks]) -> bool:
        birth = self.book.settings.birth
        return any(face.presence >= birth and face.confidence >= SURE for face in faces)

    def _found(self, bgr: UInt8, proposals: Proposals) -> list[Landmarks]:
        """Align what was proposed beside the known faces, and again in the crop that follows these landmarks."""
        chosen = self.book.unclaimed(proposals.boxes)
        crops = [self.aligner.crop_around(*box_of_five(proposals.points[i])) for i in chosen]
        rough = self.aligner.align(bgr, crops)
        likely = [face for face in rough if face.presence >= ROUGH_PRESENCE]
        for _ in range(REFINEMENTS):
            likely = self.aligner.align(bgr, [self.aligner.crop_of_points(face.xy) for face in likely])
        return self._verified(bgr, likely)

    def _verified(self, bgr: UInt8, faces: list[Landmarks]) -> list[Landmarks]:
        """The faces, none of them more likely to be one than the verifier finds."""
        if self._verifier is None:
            return faces
        boxes = [rotated_box(face.xy, self.aligner.markup.subset("five5", face.xy)) for face in faces]
        seen = self._verifier.align(bgr, [self._verifier.crop_around(*box) for box in boxes])
        pairs = zip(faces, seen, strict=True)
        return [replace(face, presence=min(face.presence, other.presence)) for face, other in pairs]

    def _appearance(self, bgr: UInt8, face: Landmarks) -> Float32:
        return describe_appearance(bgr, self.aligner.crop_of_points(face.xy))


class SmoothStage:
    """One smoother per track; turns what was seen into faces."""

    def __init__(self, settings: PipelineSettings, points: int) -> None:
        self.settings, self.points = settings, points
        self._smoothers: dict[int, Smoother | OneEuro] = {}

    def __call__(self, job: Job) -> None:
        gone = self._smoothers.keys() - {seen.number for seen in job.seen}
        for number in gone:
            del self._smoothers[number]
        job.faces = tuple(self._face(job.frame.time_s, seen) for seen in job.seen)

    def _face(self, time_s: float, seen: Seen) -> Face:
        xy, speed = self._smooth(time_s, seen)
        measured = seen.landmarks if seen.measured else None
        return Face(seen.number, seen.state, bounding_box(xy), measured, xy, speed, seen.landmarks.confidence)

    def _smooth(self, time_s: float, seen: Seen) -> tuple[Float32, Float32]:
        raw = seen.landmarks
        if self.settings.smooth in ("none", "rts"):
            return raw.xy, np.zeros_like(raw.xy)
        if seen.number not in self._smoothers:
            self._smoothers[seen.number] = self._new_smoother()
        smoother = self._smoothers[seen.number]
        if not seen.measured:
            return smoother.coast(time_s)
        return smoother.update(time_s, raw.xy, raw.score, longer_side(bounding_box(raw.xy)))

    def _new_smoother(self) -> Smoother | OneEuro:
        if self.settings.smooth == "oneeuro":
            return OneEuro(OneEuroSettings(), self.points)
        return Smoother(self.settings.smoother, self.points)


class Pipeline:
    """A detector, an aligner and a smoother over one video at a time.

    The engines belong to the caller, who opened them; each `run` or `serial` starts with an empty memory. What a
    verifier does not take for a face, too, is not taken in as one.
    """

    def __init__(
        self,
        detector: FaceDetector,
        aligner: Aligner,
        settings: PipelineSettings | None = None,
        verifier: Aligner | None = None,
    ) -> None:
        self.detector, self.aligner, self.verifier = detector, aligner, verifier
        self.settings = settings or PipelineSettings()
        self._captured: Channel[Job] | None = None

    @property
    def dropped(self) -> int:
        """Frames that the present or last `run` dropped so far, because newer ones came before they were wanted."""
        return 0 if self._captured is None else self._captured.dropped

    def _stages(self) -> list[tuple[str, Stage]]:
        settings = self.settings
        return [
            ("detect", DetectStage(self.detector, settings)),
            ("align", AlignStage(self.aligner, self.detector, settings, self.verifier)),
            ("smooth", SmoothStage(settings, self.aligner.markup.points)),
        ]

    def serial(self, frames: Iterable[Frame]) -> Generator[Result, None, None]:
        """Everything on the caller's thread, frame by frame: the reference for `run`."""
        stages = self._stages()
        for job in _foreseen(_jobs(frames), self.aligner.preferred_batch):
            for name, work in stages:
                _do(name, work, job)
            yield _result(job)

    def run(
        self, frames: Iterable[Frame], *, live: bool = False, idle: Callable[[], bool] | None = None
    ) -> Generator[Result, None, None]:
        """Track on four threads; iterate to receive, leave the loop or close the iterator to stop.

        Args:
            frames: taken one after the other on the capture thread.
            live: False: every frame, in order. True: while the stages are busy only the newest frame waits, older
                ones are dropped and counted in `dropped`, and at most `FRAMES_IN_FLIGHT` are on their way.
            idle: called on the caller's thread every `IDLE_S` seconds in which no result comes, so that a window
                can answer its user while a camera is silent; False ends the run.
        Raises:
            Whatever the source or a stage raised, after all results of the frames before it, with a note naming
            stage and frame.
            ValueError: what came is no `Frame`.
            BackendError: the engines were closed meanwhile; see `threads`, also for how runs end with the program.
        """
        capture: Channel[Job] = Channel(1, "drop-oldest") if live else Channel(BATCH_SLOTS["capture"])
        permits = _permits(FRAMES_IN_FLIGHT) if live else None
        self._captured = inbox = capture
        threads = RunThreads(self.aligner, permits)
        threads.add("capture", capture, _capture, frames, capture)
        for name, work in self._stages():
            outbox: Channel[Job] = Channel(1 if live else BATCH_SLOTS[name])
            gate = permits if name == "detect" else None
            lookahead = self.aligner.preferred_batch if name == "align" and not live else 1
            threads.add(name, outbox, _stage, name, work, inbox, outbox, gate, lookahead)
            inbox = outbox
        try:
            threads.start()
            for job in _arrivals(inbox, idle):
                yield _result(job)
                if permits is not None:
                    permits.put(None)
        finally:
            threads.end()


class _Fault(Exception):  # noqa: N818 - not raised to anybody: a parcel for an error of any kind
    """An error on its way through the channels; none of them can mistake it for one of its own."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def _permits(count: int) -> Permits:
    permits: Permits = SimpleQueue()
    for _ in range(count):
        permits.put(None)
    return permits


def _arrivals(inbox: Channel[Job], idle: Callable[[], bool] | None) -> Iterator[Job]:
    """The jobs that come out of the last stage, and after them the error that stopped a stage."""
    fault: BaseException | None = None
    while fault is None:
        try:
            job = inbox.get(None if idle is None else IDLE_S)
        except TimeoutError:
            if idle is not None and not idle():
                return
            continue
        except Ended:
            return
        except _Fault as parcel:
            fault = parcel.error
        except ProgramEnds:
            stay_if_daemon()
            raise
        else:
            yield job
    raise fault


def _jobs(frames: Iterable[Frame]) -> Iterator[Job]:
    """A job for each frame of a source; its errors learn which frame they followed."""
    last = "before the first frame"
    began = time.perf_counter()
    try:
        for frame in taken_in(frames):
            yield Job(frame, spans_s={"capture": time.perf_counter() - began})
            last = f"after frame {frame.index + 1}"
            began = time.perf_counter()
    except BaseException as error:
        error.add_note(f"in stage capture {last}")
        raise


def _capture(frames: Iterable[Frame], outbox: Channel[Job]) -> None:
    """Main function of the capture thread."""
    try:
        for job in _jobs(frames):
            outbox.put(job)
    except Abandoned:
        return
    except BaseException as error:  # noqa: BLE001 - crosses the thread; the caller's loop raises it
        outbox.end(_Fault(error))
    else:
        outbox.end()


def _stage(
    name: str, work: Stage, inbox: Channel[Job], outbox: Channel[Job], gate: Permits | None, lookahead: int
) -> None:
    """Main function of a stage's thread: work on each job of the inbox, `lookahead` of them known; see `_foreseen`."""
    try:
        with inbox:
            for job in _foreseen(_permitted(inbox, gate), lookahead):
                _do(name, work, job)
                outbox.put(job)
    except Abandoned:
        return
    except _Fault as fault:
        outbox.end(fault)
    except BaseException as error:  # noqa: BLE001 - crosses the thread; the caller's loop raises it
        outbox.end(_Fault(error))
    else:
        outbox.end()


def _permitted(inbox: Channel[Job], gate: Permits | None) -> Iterator[Job]:
    """The inbox's jobs, each taken only when the gate lets another frame in."""
    with suppress(Ended):
        while True:
            if gate is not None:
                gate.get()
            yield inbox.get()


def _foreseen(jobs: Iterator[Job], lookahead: int) -> Iterator[Job]:
    """The jobs with the frames ahead of them: each as soon as `lookahead` jobs have come, itself included, or the last.

    An error of `jobs` is raised behind all that came before it.
    """
    waiting: deque[Job] = deque()
    end: BaseException | None = None
    while True:
        while end is None and len(waiting) < lookahead:
            try:
                waiting.append(next(jobs))
            except BaseException as error:  # noqa: BLE001 - raised below
                end = error
        if not waiting:
            break
        job = waiting.popleft()
        job.ahead = tuple(other.frame for other in waiting)
        yield job
    if end is not None and not isinstance(end, StopIteration):
        raise end


def _do(name: str, work: Stage, job: Job) -> None:
    """Let a stage work on a job and note the time; its errors learn where they happened."""
    began = time.perf_counter()
    try:
        work(job)
    except BaseException as error:
        error.add_note(f"in stage {name} at frame {job.frame.index + 1}")
        raise
    job.spans_s[name] = time.perf_counter() - began


def _result(job: Job) -> Result:
    return Result(job.frame, job.faces, job.spans_s)
