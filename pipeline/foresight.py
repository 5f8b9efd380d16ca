"""Faces of several frames of a recording in one run of the network.

A crop depends on the landmarks of the frame before, so frames have to be measured one after the other. On a GPU, where
eight crops take little longer than one, the crops of the next frames are guessed from the motion and measured together.
When a frame's turn comes and its own crop is close to the guessed one, its landmarks are already there. Otherwise it is
measured again, together with new guesses. The guesses depend only on the frames, not on the clock, so a table is the
same in every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..engines.aligner import Aligner
from ..tracker.geometry import CropTransform
from ..tracker.track import FORESIGHT_S, Track
from ..tracker.types import Frame, Landmarks

SLACK = 0.02  # of the crop's side: how far a guessed crop may be off; training crops are off by more


@dataclass(frozen=True, slots=True)
class _Guess:
    """What was found in one frame, in the crops guessed for these tracks."""

    tracks: tuple[int, ...]
    crops: tuple[CropTransform, ...]
    found: list[Landmarks]

    def fits(self, tracks: Iterable[int], crops: Sequence[CropTransform]) -> bool:
        """Whether the tracks' actual crops match the guessed ones."""
        return self.tracks == tuple(tracks) and all(
            crop.off(guessed) <= SLACK for crop, guessed in zip(crops, self.crops, strict=True)
        )


class Foresight:
    """Measures the tracked faces of a frame and, in advance, those of the frames after it."""

    def __init__(self, aligner: Aligner) -> None:
        self._aligner = aligner
        self._guesses: dict[Frame, _Guess] = {}  # by the frame itself: a caller may use an index twice
        self._frames = 1  # measured together; doubled while guesses hold, else halved, so that bad ones cost little

    def align(self, frame: Frame, tracks: Sequence[Track], ahead: Sequence[Frame]) -> list[Landmarks]:
        """Measure the faces of a frame.

        Args:
            frame: the next one.
            tracks: the tracked faces.
            ahead: the frames after it, as far as they are known; none of them is skipped later.
        Returns:
            One Landmarks per track.
        """
        if not tracks:
            return []
        crops = [self._aligner.crop_of_points(track.aim(frame.time_s)) for track in tracks]
        guess = self._guesses.pop(frame, None)
        if guess is not None and guess.fits((track.number for track in tracks), crops):
            return guess.found
        self._frames = (
            max(self._frames // 2, 1) if guess is not None else min(2 * self._frames, self._aligner.preferred_batch)
        )
        self._guesses.clear()
        return self._measure(frame, tracks, crops, ahead)

    def _measure(
        self, frame: Frame, tracks: Sequence[Track], crops: list[CropTransform], ahead: Sequence[Frame]
    ) -> list[Landmarks]:
        faces = len(tracks)
        most = min(self._frames, self._aligner.preferred_batch // faces) - 1
        rows = [(frame, crops)]
        for other in ahead[: max(most, 0)]:
            if not 0 < other.time_s - frame.time_s < FORESIGHT_S:
                break
            rows.append((other, [self._aligner.crop_of_points(track.aim_from_here(other.time_s)) for track in tracks]))
        found = self._aligner.align_views([(seen.bgr, crop) for seen, row in rows for crop in row])
        numbers = tuple(track.number for track in tracks)
        for i, (other, row) in enumerate(rows[1:], 1):
            self._guesses[other] = _Guess(numbers, tuple(row), found[i * faces : (i + 1) * faces])
        return found[:faces]
