"""The stages that each frame passes through: search, align, smooth. `run` assigns them to threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Literal, get_args

import numpy as np

from ..engines.aligner import Aligner
from ..tracker.appearance import begins_shot, describe_appearance
from ..tracker.errors import ConfigError
from ..tracker.geometry import longer_side
from ..tracker.one_euro import OneEuro, OneEuroSettings
from ..tracker.smooth import Smoother, SmootherSettings
from ..tracker.track import Track, TrackSettings
from ..tracker.tracks import CONFIDENT, TrackBook
from ..tracker.types import Face, Float32, Frame, Landmarks, Proposals, UInt8
from ..tracker.views import box_of_five, face_box, rotated_face_box
from .foresight import Foresight
from .search import EQUALISED, FAINT, FaceDetector, MotionGate, Search

CROWD_SEARCHES = 3  # in a crowd for each one elsewhere
SLOWEST = 25.0  # frames per second; with fewer, new faces would by default wait longer than a second
# Least presence of a face that a harder search finds, in turned pictures and in others, if none is certain: most false
# positives lie on their side or come from faint detections.
LYING, LEAST = 0.999995, {EQUALISED: 0.0, FAINT: 0.9999}
ROUGH_PRESENCE = 0.5  # least presence in a proposal's first crop, which seldom fits well; the last one decides
CONVINCED = 0.985  # least presence by the network alone: the detector is as sure of cats' faces as of people's
PROPOSAL = 20.0  # cap on the odds of a proposal: 19 of 20 faces reach it, and hardly any false positive
REFINEMENTS = 2  # rounds after the first; the second lowers the error upside down from 3.30 to 3.24 % (LFPW test)

Stage = Callable[["Job"], None]
OnlineSmoothing = Literal["kalman", "oneeuro", "none"]  # smoothers that need no later frames


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How a video is tracked.

    Attributes:
        detect_every: frames between two searches while every known face is tracked, but no longer than they take at
            `SLOWEST` per second. A frame without any face, or in which one was just lost, is searched at once, unless
            nothing moves in it (`search.MotionGate`). `search.Search` decides how thoroughly.
        smooth: "kalman" or "oneeuro"; "none" leaves the landmarks as measured, also for `hindsight.look_back`, which
            smooths the results.
        tracks, smoother: see their classes.
    Raises:
        ConfigError: smooth is none of these.
    """

    detect_every: int = 25
    smooth: OnlineSmoothing = "kalman"
    tracks: TrackSettings = field(default_factory=TrackSettings)
    smoother: SmootherSettings = field(default_factory=SmootherSettings)

    def __post_init__(self) -> None:
        if self.smooth not in get_args(OnlineSmoothing):
            raise ConfigError(f"smooth: wanted one of {', '.join(get_args(OnlineSmoothing))}, got {self.smooth!r}")


@dataclass(slots=True)
class Job:
    """One frame on its way through the stages.

    Attributes:
        ahead: the frames that come next, where the align stage wants them.
        seen: copies of the tracks as the align stage leaves them, because the tracks themselves keep changing.
    """

    frame: Frame
    ahead: Sequence[Frame] = ()
    proposals: Proposals | None = None
    seen: tuple[Track, ...] = ()
    faces: tuple[Face, ...] = ()
    spans_s: dict[str, float] = field(default_factory=dict)


class DetectStage:
    """Searches for faces ahead of the align stage, in the first frame and then every `detect_every` frames.

    At the latest, it searches after the time that these take at `SLOWEST` per second. In a crowd, where faces come and
    go, it searches after a third of either.
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
        # dropped frames leave gaps in the indices, so that no multiple need ever occur; and a caller's own indices or
        # times may start again
        return abs(frame.index - index) >= every or abs(frame.time_s - time_s) >= every / SLOWEST


class AlignStage:
    """Tracks known faces by their landmarks and admits new ones; the only stage that looks where faces were before."""

    def __init__(
        self, aligner: Aligner, detector: FaceDetector, settings: PipelineSettings, verifier: Aligner | None
    ) -> None:
        self.aligner, self._search, self._verifier = aligner, Search(detector), verifier
        self.book, self._foresight, self._motion_gate = TrackBook(settings.tracks), Foresight(aligner), MotionGate()
        self._before: UInt8 | None = None

    def __call__(self, job: Job) -> None:
        frame, book = job.frame, self.book
        found = self._foresight.align(frame, book.live, job.ahead)
        job.ahead = ()
        appearances = [self._appearance(frame.bgr, face) for face in found]
        book.observe(frame.time_s, found, appearances, cache(partial(begins_shot, self._before, frame.bgr)))
        self._before = frame.bgr
        self._recentre(frame.bgr)
        if job.proposals is None:
            job.proposals = self._search_if_needed(frame.bgr)
        if job.proposals is not None:
            found = self._found(frame.bgr, job.proposals)
            if not book.live and not self._is_any_sure(found):
                found = self._harder(frame.bgr, found)
            for face in sorted(found, key=lambda face: -face.confidence):
                book.admit(frame.time_s, face, self._appearance(frame.bgr, face))
        if book.live:
            self._motion_gate.reset()
        job.seen = tuple(map(replace, book.live))

    def _recentre(self, bgr: UInt8) -> None:
        """Measure each face that lies beside its crop again, in a crop of its own, and keep the surer landmarks.

        This comes after the decision whose face it is: a crop that moves to whoever is there would bridge a cut.
        """
        misplaced = [track for track in self.book.live if track.is_misplaced]
        again = self.aligner.align(bgr, [self.aligner.crop_of_points(track.landmarks.xy) for track in misplaced])
        for track, landmarks in zip(misplaced, again, strict=True):
            if landmarks.confidence > track.landmarks.confidence:
                track.landmarks, track.box = landmarks, face_box(landmarks.xy)

    def _search_if_needed(self, bgr: UInt8) -> Proposals | None:
        """What a search finds, if the frame needs one although `detect_every` does not schedule it; else None."""
        book = self.book
        if not book.needs_full_search:
            return self._search.near(bgr, book.missing) if book.needs_detection else None
        if not (book.live or self._motion_gate.worth_searching(bgr)):
            return None
        return self._search(bgr, book.missing, beside=book.in_sight)

    def _harder(self, bgr: UInt8, found: list[Landmarks]) -> list[Landmarks]:
        """Add the finds of harder searches, until one finds a face whose landmarks are likely to be right.

        A face on its side may be mistaken for another, upright one, with its hair as the mouth: where a turned picture
        certainly shows a face, the earlier finds are dropped. Where it does not, only very clear faces in it count; the
        same holds for faint detections.
        """
        for way, proposals in self._search.harder(bgr):
            more = self._found(bgr, proposals)
            clear = [face for face in more if face.presence >= LEAST.get(way, LYING)]
            if not self._is_any_sure(clear):
                more = clear
            is_sure = self._is_any_sure(more)
            found = more if is_sure and way not in LEAST else found + more
            if is_sure:
                break
        return found

    def _is_any_sure(self, faces: list[Landmarks]) -> bool:
        birth = self.book.settings.birth
        return any(face.presence >= birth and face.confidence >= CONFIDENT for face in faces)

    def _found(self, bgr: UInt8, proposals: Proposals) -> list[Landmarks]:
        """Align the proposals that no known face claims, then again in the crops around the landmarks found.

        The presence of the result combines the network's judgement with the detector's.
        """
        chosen = self.book.unclaimed(proposals.boxes)
        crops = [self.aligner.crop_around(*box_of_five(proposals.points[i])) for i in chosen]
        rough = self.aligner.align(bgr, crops)
        scores = [float(proposals.scores[i]) for i, face in zip(chosen, rough, strict=True) if _is_likely(face)]
        likely = [face for face in rough if _is_likely(face)]
        for _ in range(REFINEMENTS):
            likely = self.aligner.align(bgr, [self.aligner.crop_of_points(face.xy) for face in likely])
        seen = zip(self._verified(bgr, likely), scores, strict=True)
        return [
            replace(face, presence=_combined_presence(face, score))
            for face, score in seen
            if face.presence >= CONVINCED
        ]

    def _verified(self, bgr: UInt8, faces: list[Landmarks]) -> list[Landmarks]:
        """The faces, each with a presence no higher than the verifier gives it."""
        if self._verifier is None:
            return faces
        boxes = [rotated_face_box(face.xy, self.aligner.markup.subset("five5", face.xy)) for face in faces]
        seen = self._verifier.align(bgr, [self._verifier.crop_around(*box) for box in boxes])
        pairs = zip(faces, seen, strict=True)
        return [replace(face, presence=min(face.presence, other.presence)) for face, other in pairs]

    def _appearance(self, bgr: UInt8, face: Landmarks) -> Float32:
        return describe_appearance(bgr, self.aligner.crop_of_points(face.xy))


def _is_likely(face: Landmarks) -> bool:
    return face.presence >= ROUGH_PRESENCE


def _combined_presence(face: Landmarks, score: float) -> float:
    """The probability of a face that was proposed with this score, as if all evidence were independent.

    Multiplies the odds that it is a face, that its landmarks are right, and that the detector is right. Poor landmarks
    are no evidence against it: profiles have them.
    """
    odds = _odds(face.presence) * max(_odds(face.confidence), 1.0) * min(_odds(score), PROPOSAL)
    return odds / (1 + odds)


def _odds(probability: float) -> float:
    return probability / max(1 - probability, 1e-9)


class SmoothStage:
    """Smooths each track with its own smoother and turns the tracks into faces."""

    def __init__(self, settings: PipelineSettings, points: int) -> None:
        self.settings, self.points = settings, points
        self._smoothers: dict[int, Smoother | OneEuro] = {}

    def __call__(self, job: Job) -> None:
        gone = self._smoothers.keys() - {seen.number for seen in job.seen}
        for number in gone:
            del self._smoothers[number]
        job.faces = tuple(self._face(job.frame.time_s, seen) for seen in job.seen)

    def _face(self, time_s: float, seen: Track) -> Face:
        xy, speed = self._smooth(time_s, seen)
        measured = seen.landmarks if seen.measured else None
        return Face(seen.number, seen.state, face_box(xy), measured, xy, speed, seen.landmarks.confidence)

    def _smooth(self, time_s: float, seen: Track) -> tuple[Float32, Float32]:
        raw = seen.landmarks
        if self.settings.smooth == "none":
            return raw.xy, np.zeros_like(raw.xy)
        if seen.number not in self._smoothers:
            self._smoothers[seen.number] = self._new_smoother()
        smoother = self._smoothers[seen.number]
        if not seen.measured:
            return smoother.coast(time_s)
        return smoother.update(time_s, raw.xy, raw.score, longer_side(face_box(raw.xy)))

    def _new_smoother(self) -> Smoother | OneEuro:
        if self.settings.smooth == "oneeuro":
            return OneEuro(OneEuroSettings(), self.points)
        return Smoother(self.settings.smoother, self.points)
