"""Identity: which face of this frame is which face of the last one.

A track follows its own landmarks: the next crop is placed where they were last measured, moved on by one step. The
track book keeps the states, decides when a track ends, and gives a returning face its old track ID. It re-identifies a
face by its appearance, learnt while the face was clearly visible, and by the place where the face was lost or where its
motion led.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .appearance import blended, known_cells, similarity, similarity_in_part
from .geometry import iou, longer_side
from .kalman import MIN_STEP_S
from .track import FORESIGHT_S, OWN_PLACE_IOU, SEEK_S, Track, TrackSettings, is_similar_size, shift
from .types import Float32, Landmarks, State
from .views import face_box

COVERED_IOU = 0.3  # a detector's box and a track's own box of the same face have at least this IoU
SEEK_EVERY = 5  # for `SEEK_S` after a loss one frame in this many is searched, even if other faces are in sight
CONFIDENT = 0.8  # confidence from which the appearance of a face is learnt
LEARN_S = 1.5  # time constant of the learnt appearance: longer than a hand or a passer-by hides a face
DRIFT_S = 0.2  # time constant of the velocity that a hidden face is assumed to keep
BEHIND = 0.5  # of its box: a face is not found if another one covers this much of it
MIN_MARGIN = 0.15  # a face belongs to the track that is more similar to it by this much; smaller differences are noise
STEADY = 0.6  # least similarity of a face's appearances in two successive frames: 0.66 or more on clips, 0.46 at a cut
EXPECTED = 0.25  # least similarity of a face that emerges from behind another as expected; half of strangers have less
CROP = 1.2  # side of the crop from which an appearance is computed, over the box
WAIT_S = 0.5  # how long a half-visible face may wait for its track ID, so that it gets the right one


class TrackBook:
    """All tracks of one video. Call `observe` once per frame, then `admit` for every new face.

    `live` holds the tracks of the last frame, sorted by ID: measured in it, or coasting.
    """

    def __init__(self, settings: TrackSettings | None = None) -> None:
        self.settings = settings or TrackSettings()
        self.live: list[Track] = []
        self._lost: list[Track] = []
        self._begins_shot: Callable[[], bool] = lambda: False
        self._now_s = 0.0
        self._missed = self._cut = self._may_reappear = self._seeks = False
        self._pending: list[tuple[Float32, float]] = []  # faces without a track ID yet: box, since when
        self._frames = 0
        self._born = 0

    @property
    def _measured(self) -> list[Track]:
        """The tracks whose faces were measured in this frame."""
        return [track for track in self.live if track.measured]

    @property
    def _measured_boxes(self) -> Float32:
        """Boxes (M, 4) of the tracks whose faces were measured in this frame."""
        return _stacked([track.box for track in self._measured])

    @property
    def in_sight(self) -> bool:
        """Whether a face was measured in this frame."""
        return bool(self._measured)

    @property
    def needs_detection(self) -> bool:
        """Whether to run the detector: no face is in sight, or one was just lost, may emerge or is due for a search."""
        return self.needs_full_search or self._missed or self._may_reappear

    @property
    def needs_full_search(self) -> bool:
        """Whether to search for faces everywhere and not only round `missing`.

        True if no face is in sight, this is another shot, or the next search for a recently lost face is due.
        """
        return self._cut or self._seeks or not self.in_sight

    @property
    def missing(self) -> list[Float32]:
        """Boxes (4,) where faces may be that are not measured.

        First the faces that have no track ID yet, then the recently lost ones, the latest first: where their motion led
        and where they were.
        """
        away = sorted(self._recently_lost(), key=lambda track: -track.seen_s)
        places = [box for track in away for box in (track.place(self._now_s), track.box)]
        return _apart([*(box for box, _ in self._pending), *places])

    def observe(
        self,
        time_s: float,
        found: list[Landmarks],
        appearances: list[Float32],
        begins_shot: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take what was measured in the crops of `live`, in the same order, and update every track's state.

        A face is lost in the frame in which its measurement fails; it coasts for `coast_s` and then leaves. If its crop
        shows something else altogether (a cut, or somebody in front), it leaves at once. Of two tracks that claim the
        same face, the one that is clearly more similar keeps it, otherwise the older one. If nothing was seen for more
        than `SEEK_S` (a camera was away), a face must be as similar as one that returns elsewhere; after `memory_s` all
        tracks begin anew.

        Args:
            time_s: media time of the frame.
            found: one per track.
            appearances: `describe_appearance` of what was found, however uncertain; for a lost face it distinguishes a
                blur from a cut.
            begins_shot: whether the frame is of another shot than the one before; called only if it matters.
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
        for claim in kept[self.settings.most_faces :]:  # others took their places while they coasted
            claim.track.state = State.COASTING
            self._lost.append(claim.track)
        for claim in lost:
            self._release(claim)
        self._missed, self._cut = bool(lost), any(claim.track.cut for claim in lost)
        self._now_s = time_s
        self._frames += 1
        # after a restart of the stream, times are before the remembered ones
        self._lost = [t for t in self._lost if abs(time_s - t.seen_s) <= self.settings.memory_s]
        self._pending = [(box, since) for box, since in self._pending if abs(time_s - since) <= 2 * WAIT_S]
        away = self._recently_lost()
        self._may_reappear = bool(self._pending) or any(t.behind and not self._covered(t.place(time_s)) for t in away)
        self._seeks = bool(away) and self._frames % SEEK_EVERY == 0

    def _contest(self, claims: list[_Claim]) -> tuple[list[_Claim], list[_Claim]]:
        """Split the claims into those that go on and those that are lost: no face, or it is another track's."""
        kept: list[_Claim] = []
        lost: list[_Claim] = []
        for claim in claims:
            if not self._is_continuation(claim):
                lost.append(claim)
                continue
            rival = self._rival(claim, kept)
            if rival is None:
                kept.append(claim)
            elif claim.similarity > rival.similarity + MIN_MARGIN:
                kept[kept.index(rival)] = claim
                lost.append(rival)
            else:
                lost.append(claim)
        return kept, lost

    def _rival(self, claim: _Claim, kept: list[_Claim]) -> _Claim | None:
        """The claim among those that go on that is to the same face."""
        best = self._duplicate(claim.box, _stacked([other.box for other in kept]))
        return None if best is None else kept[best]

    def _duplicate(self, box: Float32, others: Float32) -> int | None:
        """Index of the box (M, 4) that overlaps most with one (4,), if it is enough for both to be of one face."""
        if not len(others):
            return None
        overlap = iou(box[None], others)[0]
        best = int(overlap.argmax())
        return best if overlap[best] >= self.settings.duplicate_iou else None

    def _recently_lost(self) -> list[Track]:
        """The tracks that were lost a moment ago."""
        tracks = (*self.live, *self._lost)
        return [t for t in tracks if not t.measured and abs(self._now_s - t.seen_s) <= SEEK_S]

    def _covered(self, box: Float32) -> bool:
        """Whether a face at this place (4,) would be behind one that was measured in this frame."""
        others = self._measured_boxes
        sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        area = float(np.prod(box[2:] - box[:2])) + 1e-6
        return bool((np.clip(sides, 0, None).prod(1) >= BEHIND * area).any())

    def _is_continuation(self, claim: _Claim) -> bool:
        if not claim.landmarks.presence >= self.settings.keep or claim.elapsed_s > self.settings.memory_s:
            return False
        if self._is_mismatch(claim) and (claim.is_stale or not self._matches_in_part(claim)):
            return False
        old, new = claim.track.box, claim.box
        return shift(old, new) <= self.settings.jump * max(longer_side(old), 1e-3) and is_similar_size(old, new)

    def _is_mismatch(self, claim: _Claim) -> bool:
        """Whether something else is in the face's place: somebody else, or unlike both the face and the last frame.

        For a lost face the last frame proves nothing (the picture may have dissolved into another); only the part that
        is not covered is compared with the learnt appearance.
        """
        limit = self.settings.other_appearance
        if (claim.track.measured or claim.is_stale) and self._is_somebody_else(claim):
            return True
        if claim.similarity >= limit:
            return False
        if claim.track.measured:
            return similarity(claim.track.last_appearance, claim.appearance) < STEADY
        return similarity_in_part(claim.track.appearance, claim.appearance) < limit

    def _is_somebody_else(self, claim: _Claim) -> bool:
        """Whether somebody else is in the face's place after a cut or a gap.

        A cut between two people who talk shows each in the same place, and somebody else may have sat down during a
        gap. Only appearance counts then: the face must be as similar as one that returns elsewhere, and not clearly
        more similar to a lost one.
        """
        if claim.similarity >= 1 - MIN_MARGIN or not (claim.is_stale or self._begins_shot()):
            return False
        others = [similarity(track.appearance, claim.appearance) for track in self._lost]
        return claim.similarity < max(max(others, default=-1.0) - MIN_MARGIN, self.settings.same_appearance)

    def _matches_in_part(self, claim: _Claim) -> bool:
        """Whether part of the face matches although the rest was hidden: the crop had drifted onto the visible part."""
        track = claim.track
        hidden = track.measured and track.landmarks.confidence < CONFIDENT
        return hidden and similarity_in_part(track.appearance, claim.appearance) >= self.settings.other_appearance

    def _take(self, claim: _Claim, time_s: float) -> None:
        """Make a known track, measured in this frame, live, and learn from it if the face is clearly visible."""
        track, landmarks, appearance = claim.track, claim.landmarks, claim.appearance
        elapsed = claim.elapsed_s
        if 0 < elapsed <= FORESIGHT_S:
            moved = (landmarks.xy - track.landmarks.xy).mean(0)
            track.velocity = np.asarray(moved / max(elapsed, MIN_STEP_S), np.float32)
        else:
            track.velocity = track.mean_velocity = None
        if claim.alone and landmarks.confidence >= CONFIDENT and elapsed > 0:
            if track.velocity is not None:
                mean = track.velocity if track.mean_velocity is None else track.mean_velocity
                track.mean_velocity = mean + np.float32(min(elapsed / DRIFT_S, 1.0)) * (track.velocity - mean)
            # an unusual appearance is more often an occlusion than a change
            weight = min(elapsed / LEARN_S, 1.0) * max(claim.similarity, 0.0) ** 2 if track.learnt else 1.0
            track.appearance, track.learnt = blended(track.appearance, appearance, weight), True
        track.state, track.landmarks, track.box, track.seen_s = State.TRACKED, landmarks, claim.box, time_s
        track.last_appearance, track.behind, track.cut = appearance, False, False
        self._show(track)

    def _show(self, track: Track) -> None:
        self.live = sorted([*self.live, track], key=lambda t: t.number)

    def _release(self, claim: _Claim) -> None:
        """Let a lost track coast, or end it: its time is up, or something else is in its place."""
        track = claim.track
        was_measured, unlike = track.measured, self._is_mismatch(claim)
        follower, track.state = self._measured_at(track.box), State.COASTING
        track.behind = track.behind or self._beside(track.box)
        track.cut = track.cut or (was_measured and unlike and not track.behind)
        if follower is None and not unlike and abs(claim.elapsed_s) <= self.settings.coast_s:
            self._show(track)
        elif follower is None or similarity(track.appearance, follower.appearance) < self.settings.same_appearance:
            self._lost.append(track)
        # else it was the follower's own face under a second ID, which can be forgotten

    def _beside(self, box: Float32) -> bool:
        """Whether the crop round a box (4,) touches a face that was measured in this frame."""
        return bool((iou(_crop(box[None]), self._measured_boxes) > 0).any())

    def _measured_at(self, box: Float32) -> Track | None:
        """The track that was measured at this place (4,) in this frame."""
        best = self._duplicate(box, self._measured_boxes)
        return None if best is None else self._measured[best]

    def unclaimed(self, boxes: Float32) -> list[int]:
        """Indices of detected boxes (F, 4), best first, that no measured track covers, up to `most_faces` in all."""
        measured = self._measured_boxes
        free = max(self.settings.most_faces - len(measured), 0)
        uncovered = np.flatnonzero((iou(boxes, measured) < COVERED_IOU).all(1))
        return [int(i) for i in uncovered[:free]]

    def admit(self, time_s: float, landmarks: Landmarks, appearance: Float32) -> Track | None:
        """Track a detected face: under its old ID if it continues a coasting or remembered track, else under a new one.

        Returns:
            The track, or None if the face is too uncertain, is already followed, is one too many or waits for its ID.
        """
        box = face_box(landmarks.xy)
        full = len(self._measured) >= self.settings.most_faces
        if full or not landmarks.presence >= self.settings.birth or self._measured_at(box) is not None:
            return None
        track = self._returning(time_s, box, appearance)
        if track is None and self._waits(time_s, box, appearance):
            return None
        if track is None:
            learnt = landmarks.confidence >= CONFIDENT
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
        """Whether to wait until it is clear who this is: half hidden or half outside, and a known face is missing.

        A new ID, once given, would stay.
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
        """The lost track that this face continues: similar enough, and the most similar of those.

        If a face soon reappears where it was lost or where its motion led, the place is evidence, and less similarity
        is enough. Not so if it was lost at a cut, after which a match of half the face is no proof either. Elsewhere,
        the place and size must be within reach by now (the little that a small face shows is like many a large one),
        and the face must be clearly more similar to this track than to any other known one.
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
            if not near and alike <= max((w for i, w in enumerate(wholes) if i != number), default=-1.0) + MIN_MARGIN:
                continue
            score = alike + (MIN_MARGIN if near else 0.0)
            if alike >= self._needed(track, near=near) and score > best_score:
                best, best_score = track, score
        return best

    def _needed(self, track: Track, *, near: bool) -> float:
        """Least similarity for a face to continue a lost track."""
        if not near:
            return self.settings.same_appearance
        return EXPECTED if track.behind else self.settings.other_appearance


@dataclass(frozen=True, slots=True, eq=False)
class _Claim:
    """What was measured in the crop of a track, and how similar it is to the track.

    Attributes:
        alone: whether no other track's box was in the crop.
        elapsed_s: seconds since the track was last measured.
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
    def is_stale(self) -> bool:
        """Whether the track was seen so long ago, or by another clock, that its place says nothing."""
        return abs(self.elapsed_s) > SEEK_S


def _stacked(boxes: list[Float32]) -> Float32:
    """Stack boxes (4,) into an array (M, 4); there may be none."""
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def _apart(boxes: list[Float32]) -> list[Float32]:
    """Boxes (4,) without those that overlap much with an earlier one."""
    kept: list[Float32] = []
    for box in boxes:
        if (iou(box[None], _stacked(kept)) <= COVERED_IOU).all():
            kept.append(box)
    return kept


def _alone(tracks: list[Track]) -> list[bool]:
    """Which tracks had no other track's box in their crop when they were last measured."""
    if len(tracks) < 2:
        return [True] * len(tracks)
    boxes = np.stack([track.box for track in tracks])
    return [bool(touched == 1) for touched in (iou(_crop(boxes), boxes) > 0).sum(1)]


def _crop(boxes: Float32) -> Float32:
    """Enlarge boxes (F, 4) to the crops from which appearances are computed."""
    margin = (CROP - 1) / 2 * (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True)
    return np.asarray(np.hstack((boxes[:, :2] - margin, boxes[:, 2:] + margin)), np.float32)
