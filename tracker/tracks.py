"""Identity: which face of this frame is which face of the last one.

A track follows its own landmarks: the next crop is where they were last measured, and one step farther. The book
keeps the states, decides what ends a track, and gives a face that comes back its old number. Who it is it tells by
its appearance, learnt while the face was plain to see, and by the place where it was lost or where its way led.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .appearance import blended, known_cells, similarity, similarity_in_part
from .geometry import iou, longer_side
from .kalman import LEAST_STEP_S
from .track import FORESIGHT_S, OWN_PLACE_IOU, SEEK_S, Track, TrackSettings, as_large, shift
from .types import Float32, Landmarks, State
from .views import face_box

COVERED_IOU = 0.3  # a detector's box and a track's own box of the same face overlap at least so much
SEEK_EVERY = 5  # for `SEEK_S` after a loss one frame in so many is searched, also beside other faces
SURE = 0.8  # confidence from which a face is learnt by heart
LEARN_S = 1.5  # time constant of what is learnt: longer than a hand or a passer-by is in front of a face
DRIFT_S = 0.2  # time constant of the speed that a hidden face is taken to keep
BEHIND = 0.5  # of its box: a face so much covered by another is not found
CLEARLY = 0.15  # more similarity than another track by so much makes a face its own; less is noise
STEADY = 0.6  # least similarity of a face's appearances in two successive frames: 0.66 or more on clips, 0.46 at a cut
EXPECTED = 0.25  # similarity of a face that comes out from behind another where one should; half of strangers have less
CROP = 1.2  # the picture that an appearance is taken of, over the box
WAIT_S = 0.5  # how long a face that is half in sight may go without a number, so that it gets the right one


class TrackBook:
    """All tracks of one video. Call `observe` once per frame, then `admit` for every new face.

    `live` are the tracks on the picture, by number: measured in the last frame, or coasting.
    """

    def __init__(self, settings: TrackSettings | None = None) -> None:
        self.settings = settings or TrackSettings()
        self.live: list[Track] = []
        self._lost: list[Track] = []
        self._begins_shot: Callable[[], bool] = lambda: False
        self._now_s = 0.0
        self._missed = self._cut = self._emerges = self._seeks = False
        self._pending: list[tuple[Float32, float]] = []  # faces without a number yet: box, since when
        self._frames = 0
        self._born = 0

    @property
    def _measured(self) -> list[Track]:
        """The tracks whose faces were measured in this frame."""
        return [track for track in self.live if track.measured]

    @property
    def _measured_boxes(self) -> Float32:
        """Theirs (M, 4)."""
        return _stacked([track.box for track in self._measured])

    @property
    def in_sight(self) -> bool:
        """Whether a face was measured in this frame."""
        return bool(self._measured)

    @property
    def wants_detection(self) -> bool:
        """Nobody is in sight; somebody was just lost, may come into sight or is to be looked for once more."""
        return self.wants_whole or self._missed or self._emerges

    @property
    def wants_whole(self) -> bool:
        """Whether to look for faces everywhere and not round `missing` alone.

        Nobody is in sight, this is another shot, or it is time to look for somebody lost a moment ago.
        """
        return self._cut or self._seeks or not self.in_sight

    @property
    def missing(self) -> list[Float32]:
        """Boxes (4,) where faces may be that are not measured.

        Those that have no number yet; and those that were lost a moment ago, the last first, where their way led and
        where they were.
        """
        away = sorted(self._away(), key=lambda track: -track.seen_s)
        places = [box for track in away for box in (track.place(self._now_s), track.box)]
        return _apart([*(box for box, _ in self._pending), *places])

    def observe(
        self,
        time_s: float,
        found: list[Landmarks],
        appearances: list[Float32],
        begins_shot: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take what was measured in the crops of `live`, in the same order, and settle every track's state.

        A face is lost in the very frame in which its measurement fails; it coasts for `coast_s` and then leaves. Where
        its crop shows something else altogether (a cut, or somebody in front), it leaves at once. Of two tracks that
        claim the same face the one that looks like it keeps it, of two that do the older. Where nothing was seen for
        more than `SEEK_S` (a camera was away), a face must be as like as elsewhere; after `memory_s` all begin anew.

        Args:
            time_s: media time of the frame.
            found: one per track.
            appearances: `describe_appearance` at what was found, sure or not; at a lost face it tells a blur from a
                cut.
            begins_shot: whether the frame is of another shot than the one before; asked only where it matters.
        """
        self._begins_shot = begins_shot
        claims = [
            _Claim(track, landmarks, face_box(landmarks.xy), appearance, alone, time_s - track.seen_s)
            for track, landmarks, appearance, alone in zip(
                self.live, found, appearances, _alone(self.live), strict=True
            )
        ]
        kept, lost = self._contest(claims)
        self.live = []
        kept.sort(key=lambda claim: claim.track.number)
        for claim in kept[: self.settings.most_faces]:
            self._take(claim, time_s)
        for claim in kept[self.settings.most_faces :]:  # somebody had taken the place of one that coasted
            claim.track.state = State.COASTING
            self._lost.append(claim.track)
        for claim in lost:
            self._release(claim)
        self._missed, self._cut = bool(lost), any(claim.track.cut for claim in lost)
        self._now_s = time_s
        self._frames += 1
        # a stream that starts again has times before those remembered
        self._lost = [t for t in self._lost if abs(time_s - t.seen_s) <= self.settings.memory_s]
        self._pending = [(box, since) for box, since in self._pending if abs(time_s - since) <= 2 * WAIT_S]
        away = self._away()
        self._emerges = bool(self._pending) or any(t.behind and not self._covered(t.place(time_s)) for t in away)
        self._seeks = bool(away) and self._frames % SEEK_EVERY == 0

    def _contest(self, claims: list[_Claim]) -> tuple[list[_Claim], list[_Claim]]:
        """Who goes on, and who is lost: their face is not there, or it is another track's."""
        kept: list[_Claim] = []
        lost: list[_Claim] = []
        for claim in claims:
            if not self._goes_on(claim):
                lost.append(claim)
                continue
            rival = self._rival(claim, kept)
            if rival is None:
                kept.append(claim)
            elif claim.similarity > rival.similarity + CLEARLY:
                kept[kept.index(rival)] = claim
                lost.append(rival)
            else:
                lost.append(claim)
        return kept, lost

    def _rival(self, claim: _Claim, kept: list[_Claim]) -> _Claim | None:
        """Who of those that go on has claimed the same face."""
        best = self._duplicate(claim.box, _stacked([other.box for other in kept]))
        return None if best is None else kept[best]

    def _duplicate(self, box: Float32, others: Float32) -> int | None:
        """Which of the boxes (M, 4) overlaps most with one (4,), where so much that both are of one face."""
        if not len(others):
            return None
        overlap = iou(box[None], others)[0]
        best = int(overlap.argmax())
        return best if overlap[best] >= self.settings.duplicate_iou else None

    def _away(self) -> list[Track]:
        """The tracks that were lost a moment ago."""
        tracks = (*self.live, *self._lost)
        return [t for t in tracks if not t.measured and abs(self._now_s - t.seen_s) <= SEEK_S]

    def _covered(self, box: Float32) -> bool:
        """Whether a face at this place (4,) would be behind one that was measured in this frame."""
        others = self._measured_boxes
        sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        area = float(np.prod(box[2:] - box[:2])) + 1e-6
        return bool((np.clip(sides, 0, None).prod(1) >= BEHIND * area).any())

    def _goes_on(self, claim: _Claim) -> bool:
        if not claim.landmarks.presence >= self.settings.keep or claim.elapsed_s > self.settings.memory_s:
            return False
        if self._unlike(claim) and (claim.unwatched or not self._comes_out(claim)):
            return False
        old, new = claim.track.box, claim.box
        return shift(old, new) <= self.settings.jump * max(longer_side(old), 1e-3) and as_large(old, new)

    def _unlike(self, claim: _Claim) -> bool:
        """Whether something else is in the face's place: somebody else, or unlike itself and unlike a moment ago.

        While a face is lost, the previous frame proves nothing (the picture may have dissolved into another); compare
        only the part that is not covered.
        """
        limit = self.settings.other_appearance
        if (claim.track.measured or claim.unwatched) and self._is_somebody_else(claim):
            return True
        if claim.similarity >= limit:
            return False
        if claim.track.measured:
            return similarity(claim.track.last_appearance, claim.appearance) < STEADY
        return similarity_in_part(claim.track.appearance, claim.appearance) < limit

    def _is_somebody_else(self, claim: _Claim) -> bool:
        """Whether a new shot shows somebody else in the face's place: where two people talk, each is in the middle.

        Or somebody else has sat down there while nobody watched. Nothing but its appearance speaks for a face then: it
        must be as like as elsewhere, and no lost one's likelier.
        """
        if claim.similarity >= 1 - CLEARLY or not (claim.unwatched or self._begins_shot()):
            return False
        others = [similarity(track.appearance, claim.appearance) for track in self._lost]
        return claim.similarity < max(max(others, default=-1.0) - CLEARLY, self.settings.same_appearance)

    def _comes_out(self, claim: _Claim) -> bool:
        """Whether part of the face matches although the rest was hidden: the crop had drifted onto the visible part."""
        track = claim.track
        hidden = track.measured and track.landmarks.confidence < SURE
        return hidden and similarity_in_part(track.appearance, claim.appearance) >= self.settings.other_appearance

    def _take(self, claim: _Claim, time_s: float) -> None:
        """Put a known track, measured in this frame, on the picture, and learn from it where it is plain to see."""
        track, landmarks, appearance = claim.track, claim.landmarks, claim.appearance
        elapsed = claim.elapsed_s
        if 0 < elapsed <= FORESIGHT_S:
            moved = (landmarks.xy - track.landmarks.xy).mean(0)
            track.velocity = np.asarray(moved / max(elapsed, LEAST_STEP_S), np.float32)
        else:
            track.velocity = track.mean_velocity = None
        if claim.alone and landmarks.confidence >= SURE and elapsed > 0:
            if track.velocity is not None:
                mean = track.velocity if track.mean_velocity is None else track.mean_velocity
                track.mean_velocity = mean + np.float32(min(elapsed / DRIFT_S, 1.0)) * (track.velocity - mean)
            # an unusual appearance is more often an obstacle than a change
            weight = min(elapsed / LEARN_S, 1.0) * max(claim.similarity, 0.0) ** 2 if track.learnt else 1.0
            track.appearance, track.learnt = blended(track.appearance, appearance, weight), True
        track.state, track.landmarks, track.box, track.seen_s = State.TRACKED, landmarks, claim.box, time_s
        track.last_appearance, track.behind, track.cut = appearance, False, False
        self._show(track)

    def _show(self, track: Track) -> None:
        self.live = sorted([*self.live, track], key=lambda t: t.number)

    def _release(self, claim: _Claim) -> None:
        """Let a lost track coast, or take it off the picture: its time is up, or something else is in its place."""
        track = claim.track
        was_measured, unlike = track.measured, self._unlike(claim)
        follower, track.state = self._follower(track.box), State.COASTING
        track.behind = track.behind or self._beside(track.box)
        track.cut = track.cut or (was_measured and unlike and not track.behind)
        if follower is None and not unlike and abs(claim.elapsed_s) <= self.settings.coast_s:
            self._show(track)
        elif follower is None or similarity(track.appearance, follower.appearance) < self.settings.same_appearance:
            self._lost.append(track)
        # else it was the follower's own face under a second number, which nobody will miss

    def _beside(self, box: Float32) -> bool:
        """Whether the crop round a box (4,) touches a face that was measured in this frame."""
        return bool((iou(_crop(box[None]), self._measured_boxes) > 0).any())

    def _follower(self, box: Float32) -> Track | None:
        """The track that was measured at this place (4,) in this frame."""
        best = self._duplicate(box, self._measured_boxes)
        return None if best is None else self._measured[best]

    def unclaimed(self, boxes: Float32) -> list[int]:
        """Indices of detected boxes (F, 4), best first, that no measured track covers, at most what fits in."""
        measured = self._measured_boxes
        free = max(self.settings.most_faces - len(measured), 0)
        uncovered = np.flatnonzero((iou(boxes, measured) < COVERED_IOU).all(1))
        return [int(i) for i in uncovered[:free]]

    def admit(self, time_s: float, landmarks: Landmarks, appearance: Float32) -> Track | None:
        """Take in a face found by detection: a coasting or remembered one under its number, else a new one.

        Returns:
            The track, or None if the face is too uncertain, is already followed or is one too many.
        """
        box = face_box(landmarks.xy)
        full = len(self._measured) >= self.settings.most_faces
        if full or not landmarks.presence >= self.settings.birth or self._follower(box) is not None:
            return None
        track = self._returning(time_s, box, appearance)
        if track is None and self._waits(time_s, box, appearance):
            return None
        if track is None:
            learnt = landmarks.confidence >= SURE
            track = Track(self._born, State.NEW, landmarks, box, time_s, appearance, appearance, learnt=learnt)
            self._born += 1
            self._show(track)
            return track
        self.live = [t for t in self.live if t is not track]
        self._lost = [t for t in self._lost if t is not track]
        claim = _Claim(track, landmarks, box, appearance, alone=False, elapsed_s=time_s - track.seen_s)
        self._take(claim, time_s)
        return track

    def _waits(self, time_s: float, box: Float32, appearance: Float32) -> bool:
        """Whether to wait and see who this is: half behind another face or half outside, and somebody is missing.

        A new number now would stay.
        """
        missing = any(not track.measured for track in (*self.live, *self._lost))
        if not missing or not (self._beside(box) or not known_cells(appearance).all()):
            return False
        same = [iou(box[None], seen[None])[0, 0] > OWN_PLACE_IOU for seen, _ in self._pending]
        since = min((first for (_, first), is_it in zip(self._pending, same, strict=True) if is_it), default=time_s)
        others = [arrival for arrival, is_it in zip(self._pending, same, strict=True) if not is_it]
        self._pending = [*others, (box, since)]
        return abs(time_s - since) < WAIT_S

    def _returning(self, time_s: float, box: Float32, appearance: Float32) -> Track | None:
        """The lost track that this face continues: alike enough, and the most alike of those.

        Where a face reappears soon where it was lost or where its way led, the place speaks for it and less similarity
        will do; not so if it was lost to a cut, after which no half of it is proof either. Elsewhere it must be as near
        and as large as it can be by now (what can be seen of a small face is like many a large one), and like no other
        known face.
        """
        best, best_score = None, -np.inf
        known = (*self.live, *self._lost)
        if all(track.measured for track in known):
            return None
        wholes = [similarity(track.appearance, appearance) for track in known]
        for number, track in enumerate(known):
            if track.measured:
                continue
            near = track.may_be_at(time_s, box)
            if not near and not track.can_reach(time_s, box):
                continue
            alike = wholes[number] if track.cut else similarity_in_part(track.appearance, appearance)
            if not near and alike <= max((w for i, w in enumerate(wholes) if i != number), default=-1.0) + CLEARLY:
                continue
            score = alike + (CLEARLY if near else 0.0)
            if alike >= self._needed(track, near=near) and score > best_score:
                best, best_score = track, score
        return best

    def _needed(self, track: Track, *, near: bool) -> float:
        """Least similarity for a face that may be a lost track's."""
        if not near:
            return self.settings.same_appearance
        return EXPECTED if track.behind else self.settings.other_appearance


@dataclass(frozen=True, slots=True, eq=False)
class _Claim:
    """What was measured in the crop of a track, and how like it that is.

    Attributes:
        alone: there, or with a part of another face.
        elapsed_s: since the track was measured.
    """

    track: Track
    landmarks: Landmarks
    box: Float32
    appearance: Float32
    alone: bool
    elapsed_s: float
    similarity: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "similarity", similarity(self.track.appearance, self.appearance))

    @property
    def unwatched(self) -> bool:
        """Whether the track was seen so long ago, or by another clock, that its place says nothing."""
        return abs(self.elapsed_s) > SEEK_S


def _stacked(boxes: list[Float32]) -> Float32:
    """Boxes (4,) as an array (M, 4), of none, too."""
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def _apart(boxes: list[Float32]) -> list[Float32]:
    """Boxes (4,) without those that overlap much with one before them."""
    kept: list[Float32] = []
    for box in boxes:
        if (iou(box[None], _stacked(kept)) <= COVERED_IOU).all():
            kept.append(box)
    return kept


def _alone(tracks: list[Track]) -> list[bool]:
    """Which tracks had no other one's box in their crop when they were last measured."""
    if len(tracks) < 2:
        return [True] * len(tracks)
    boxes = np.stack([track.box for track in tracks])
    return [bool(touched == 1) for touched in (iou(_crop(boxes), boxes) > 0).sum(1)]


def _crop(boxes: Float32) -> Float32:
    """Boxes (F, 4) as large as what appearances are taken of."""
    margin = (CROP - 1) / 2 * (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True)
    return np.asarray(np.hstack((boxes[:, :2] - margin, boxes[:, 2:] + margin)), np.float32)
