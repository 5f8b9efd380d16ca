"""One face through time: where it was measured last, and where it may be by now."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .geometry import bounding_box, iou, longer_side
from .types import Float32, Landmarks, State

OWN_PLACE_IOU = 0.2  # a lost face that shows up again this near to where it was seen last has not moved away
FORESIGHT_S = 0.21  # motion older than this says nothing about where a face is now; at 5 frames/s it is followed
LONGEST_STEP = 0.25  # of the box's side: how far a crop goes ahead of the last measurement at most
HOLD = 0.012  # of the box's side: smaller changes do not move the crop
SEEK_S = 2.0  # for so long after a loss a face is looked for where it was and where its way led
FASTEST = 6.0  # of its sides: what a face moves in a second at most


@dataclass(frozen=True, slots=True)
class TrackSettings:
    """When tracks begin, go on and end.

    Attributes:
        birth: least presence of a new face.
        keep: least presence for a known face to go on (lower: a known face deserves more trust than a new one).
        coast_s: how long a face that was lost is carried on before it is taken off the picture.
        memory_s: how long a face that left may come back under its old number.
        same_appearance: least similarity in [-1, 1] for a face that returns at another place.
        other_appearance: under this similarity to itself and to the last frame a track's face is not there any more
            (a cut).
        jump: largest move between two frames as a share of the face's box side; more is not a motion.
        duplicate_iou: two tracks that overlap more than this are one face; one of them ends.
        most_faces: faces measured at the same time; further ones are not taken in.
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
        number: its identity, never reused.
        state: in the last frame.
        landmarks: as last measured.
        box: (4,) of these landmarks, frame pixels, see `views.face_box`.
        seen_s: media time of that measurement.
        appearance: unit vector, what the face looks like when it is plain to see: the mean of such frames.
        last_appearance: unit vector, what it looked like in that measurement.
        velocity: (2,) mean speed of the landmarks between the last two measurements, pixels per second; None where
            these are none or too far apart.
        mean_velocity: (2,) the same while the face was plain to see, evened out: what it is taken to keep where it is
            hidden; None where it is not known.
        behind: it was lost behind another face.
        cut: it was lost because something else altogether was in its place.
        learnt: it has been plain to see; before that, its appearance tells little.
        aimed: (N, 2) the landmarks that the last crop was laid round, if there was one.
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
        """Which landmarks (N, 2) the next crop is laid round, at a media time soon after the last measurement.

        Those that the motion leads to: a crop that lags behind a moving face draws its landmarks back, at 8 pixels a
        frame by almost one. While these stay where the last crop was aimed at, so does the crop: one that follows its
        own noise adds to it.
        """
        self.aimed = self.aim_from_here(time_s)
        return self.aimed

    def aim_from_here(self, time_s: float) -> Float32:
        """What `aim` would give, were nothing measured until then; the track is left as it is."""
        ahead = time_s - self.seen_s
        xy = self.landmarks.xy
        side = longer_side(self.box)
        if 0 < ahead <= FORESIGHT_S and self.velocity is not None:
            step = self.velocity * ahead
            length = math.hypot(*step) + 1e-6
            xy = xy + step * (min(max(length - HOLD * side, 0.0), LONGEST_STEP * side) / length)
        if self.aimed is not None and np.abs(bounding_box(xy) - bounding_box(self.aimed)).max() <= HOLD * side:
            return self.aimed
        return np.asarray(xy, np.float32)

    def place(self, time_s: float) -> Float32:
        """The box (4,) where the face should be, out of sight since the last measurement: it goes on as it went."""
        if self.mean_velocity is None:
            return self.box
        step = self.mean_velocity * min(max(time_s - self.seen_s, 0.0), SEEK_S)
        return np.asarray(self.box + np.tile(step, 2), np.float32)

    @property
    def measured(self) -> bool:
        """Whether the landmarks are of the last frame."""
        return self.state is not State.COASTING

    def may_be_at(self, time_s: float, box: Float32) -> bool:
        """Whether it may be the face at this place (4,), lost a moment ago there or on the way there."""
        if self.cut or abs(time_s - self.seen_s) > SEEK_S:
            return False
        places = np.stack([self.box, self.place(time_s)])
        return bool(iou(box[None], places).max() > OWN_PLACE_IOU)

    def can_reach(self, time_s: float, box: Float32) -> bool:
        """Whether, known by its appearance, it may be anywhere else (4,), and of that size, by now."""
        side = max(longer_side(self.box), longer_side(box))
        farthest = (1 + FASTEST * abs(time_s - self.seen_s)) * side
        return self.learnt and shift(self.box, box) <= farthest and as_large(self.box, box)


def shift(old: Float32, new: Float32) -> float:
    """How far the centre of a box (4,) has moved, along the axis along which it moved more."""
    return float(np.abs((new[:2] + new[2:]) - (old[:2] + old[2:])).max()) / 2


def as_large(old: Float32, new: Float32) -> bool:
    """Whether a box (4,) is between half and twice as large as another."""
    grown = longer_side(new) / max(longer_side(old), 1e-3)
    return 0.5 < grown < 2.0
