"""One face through time: where it was last measured, and where it may be by now."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .geometry import bounding_box, iou, longer_side
from .types import Float32, Landmarks, State

OWN_PLACE_IOU = 0.2  # IoU with the expected box of a lost face above which a box is at the same place
FORESIGHT_S = 0.21  # motion older than this does not predict where a face is now; 5 frames/s are still fast enough
LONGEST_STEP = 0.25  # of the box's side: how far a crop moves ahead of the last measurement at most
DEAD_BAND = 0.012  # of the box's side: smaller changes do not move the crop
MISPLACED = 0.1  # of the box's side: a face this far beside its crop, as after a jump cut, is measured again
SEEK_S = 2.0  # how long a lost face is searched for where it was and where its motion led
MAX_SPEED = 6.0  # of the box's side: how far a face moves in a second at most


@dataclass(frozen=True, slots=True)
class TrackSettings:
    """When tracks begin, go on and end.

    Attributes:
        birth: least presence of a new face.
        keep: least presence for a known face to go on (lower: a known face deserves more trust than a new one).
        coast_s: how long a lost face coasts before it disappears from the results.
        memory_s: how long a face that left may come back under its old track ID.
        same_appearance: least similarity in [-1, 1] for a face that returns at another place.
        other_appearance: below this similarity to its learnt appearance, and below `tracks.STEADY` to the last frame,
            a track's face is no longer there (a cut).
        jump: largest move between two frames as a share of the face's box side; a larger one is not a motion.
        duplicate_iou: two tracks whose boxes have this IoU or more are one face; one of them ends.
        most_faces: faces measured at the same time; further ones are not tracked.
    """

    birth: float = 0.9975
    keep: float = 0.85
    coast_s: float = 0.25
    memory_s: float = 8.0
    same_appearance: float = 0.65
    other_appearance: float = 0.45
    jump: float = 0.75
    duplicate_iou: float = 0.5
    most_faces: int = 32


@dataclass(slots=True, eq=False)
class Track:
    """One face through time.

    Attributes:
        number: track ID, never reused.
        state: in the last frame.
        landmarks: as last measured.
        box: (4,) of these landmarks, frame pixels, see `views.face_box`.
        seen_s: media time of that measurement.
        appearance: unit vector, the learnt appearance: a running mean over frames with the face clearly visible.
        last_appearance: unit vector, the appearance in the last measurement.
        velocity: (2,) mean velocity of the landmarks between the last two measurements, pixels per second; None if
            there were no two, or if they are too far apart.
        mean_velocity: (2,) the same, smoothed over frames in which the face was clearly visible: a hidden face is
            assumed to keep it; None if it is not known.
        behind: whether it was lost behind another face.
        cut: whether it was lost because something else altogether was in its place.
        learnt: whether it has been clearly visible; before that, its appearance is of little use.
        aimed: (N, 2) the landmarks round which the last crop was placed, if there was one.
    """

    number: int
    state: State
    landmarks: Landmarks
    box: Float32
    seen_s: float
    appearance: Float32
    last_appearance: Float32
    velocity: Float32 | None = None
    mean_velocity: Float32 | None = None
    behind: bool = False
    cut: bool = False
    learnt: bool = False
    aimed: Float32 | None = None

    def aim(self, time_s: float) -> Float32:
        """The landmarks (N, 2) round which the next crop is placed, at a media time soon after the last measurement.

        They are moved ahead with the face: a crop that lags behind a moving face pulls its landmarks back, at 8 pixels
        per frame by almost one pixel. While they stay within `DEAD_BAND` of where the last crop was aimed, the crop
        does not move: a crop that follows its own noise adds to it.
        """
        self.aimed = self.aim_from_here(time_s)
        return self.aimed

    def aim_from_here(self, time_s: float) -> Float32:
        """What `aim` would return if nothing were measured until then; does not change the track."""
        ahead = time_s - self.seen_s
        xy = self.landmarks.xy
        side = longer_side(self.box)
        if 0 < ahead <= FORESIGHT_S and self.velocity is not None:
            step = self.velocity * ahead
            length = math.hypot(*step) + 1e-6
            xy = xy + step * (min(max(length - DEAD_BAND * side, 0.0), LONGEST_STEP * side) / length)
        if self.aimed is not None and np.abs(bounding_box(xy) - bounding_box(self.aimed)).max() <= DEAD_BAND * side:
            return self.aimed
        return np.asarray(xy, np.float32)

    def place(self, time_s: float) -> Float32:
        """Predict the box (4,) of a face that is out of sight: it is assumed to keep its mean velocity."""
        if self.mean_velocity is None:
            return self.box
        step = self.mean_velocity * min(max(time_s - self.seen_s, 0.0), SEEK_S)
        return np.asarray(self.box + np.tile(step, 2), np.float32)

    @property
    def measured(self) -> bool:
        """Whether the landmarks are from the last frame."""
        return self.state is not State.COASTING

    @property
    def is_misplaced(self) -> bool:
        """Whether the face was found elsewhere than its crop was placed, as after a jump cut."""
        if not self.measured or self.aimed is None:
            return False
        off = np.abs(bounding_box(self.landmarks.xy) - bounding_box(self.aimed)).max()
        return bool(off > MISPLACED * longer_side(self.box))

    def may_be_at(self, time_s: float, box: Float32) -> bool:
        """Whether it may be the face in a box (4,): it was lost a moment ago at that place, or its motion led there."""
        if self.cut or abs(time_s - self.seen_s) > SEEK_S:
            return False
        places = np.stack([self.box, self.place(time_s)])
        return bool(iou(box[None], places).max() > OWN_PLACE_IOU)

    def can_reach(self, time_s: float, box: Float32) -> bool:
        """Whether the face, if its appearance is learnt, can have reached the place and size of a box (4,) by now."""
        side = max(longer_side(self.box), longer_side(box))
        farthest = (1 + MAX_SPEED * abs(time_s - self.seen_s)) * side
        return self.learnt and shift(self.box, box) <= farthest and is_similar_size(self.box, box)


def shift(old: Float32, new: Float32) -> float:
    """How far the centre of a box (4,) has moved along x or y, whichever is more."""
    return float(np.abs((new[:2] + new[2:]) - (old[:2] + old[2:])).max()) / 2


def is_similar_size(old: Float32, new: Float32) -> bool:
    """Whether a box (4,) is between half and twice as large as another."""
    grown = longer_side(new) / max(longer_side(old), 1e-3)
    return 0.5 < grown < 2.0
