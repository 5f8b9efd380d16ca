"""BB-FCN in use: scan a pyramid with the backbone, look again at every candidate with backbone and branches."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..tracker.errors import CardError
from ..tracker.geometry import CropTransform
from ..tracker.proposals import Agreement, Candidates, agree, find_peaks, fit_views, mean_of_highest, suppress
from ..tracker.types import Float32, Proposals, UInt8
from .backend import Backend
from .card import ModelCard
from .codec import DISC
from .packed import run_levels

MARGIN = 4  # grey pixels round every level, so that faces at the picture's edge are seen whole by the network
GREY = 127
LAST_LEVEL = 26.0  # pixels of the shorter side; a face as large as the picture still fits
MOST_PEAKS = 64  # per landmark type and level
PICTURES = 0.5  # of the smallest face in a video's frame: the smallest one in a picture, which is searched once


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """How hard to look.

    Attributes:
        min_face: longer side of the smallest face's landmark box, frame pixels; 0 chooses by the frame's size.
        share: of the size that is chosen so.
        step: ratio of neighbouring pyramid levels.
        threshold: chance of being a face that a proposal needs.
        most: at most so many candidates get a second look.
    """

    min_face: float = 0.0
    share: float = 1.0
    step: float = 2.0
    threshold: float = 0.5
    most: int = 24


def adaptive_min_face(height: int, width: int) -> float:
    """Smallest face worth its time: 14 pixels and 4 % of the shorter side, in large pictures 30 pixels and 1 %.

    24 pixels in 320x240, where a search costs little, 34 in 640x480, 41 in 1920x1080, 52 in 3840x2160: whoever films a
    crowd takes a large picture.
    """
    shorter = min(height, width)
    return min(14.0 + 0.041 * shorter, 30.0 + 0.01 * shorter)


def level_scales(shorter: float, min_face: float, base: float, step: float, last: float) -> list[float]:
    """Shrinking factors of an image pyramid, from the largest level down.

    Args:
        shorter: shorter side of the picture, pixels.
        min_face: the smallest face to find, pixels; the first level shows it `base` pixels large.
        step: ratio of neighbouring levels.
        last: wanted shorter side of the last level, pixels.
    Source: BB-FCN, section III-E: 13 levels of step 1.16 (7 of 1.35) for faces of 80 pixels in 640x480 with base and
        last level of 32 pixels.
    """
    first = base / min_face
    count = 1 + max(round(math.log(shorter * first / last) / math.log(step)), 0)
    return [first / step**level for level in range(count)]


class Detector:
    """Finds faces of any size in whole pictures. Calls from several threads wait for each other."""

    def __init__(
        self, card: ModelCard, scan: Backend, refine: Backend, settings: DetectorSettings | None = None
    ) -> None:
        """Take a card of codec kind "discs" and its two networks: "scan" for whole pictures, "refine" for crops."""
        if card.codec.get("kind") != "discs":
            raise CardError(f"{card.name}: cannot decode {card.codec.get('kind')!r}; wanted codec kind discs")
        self.card, self.settings = card, settings or DetectorSettings()
        self._scan, self._refine = scan, refine
        self._lock = threading.Lock()
        self._agreement = Agreement()

    def for_pictures(self) -> Detector:
        """The same networks, which wait for each other, for pictures: faces of half the size are worth their time."""
        other = copy.copy(self)
        other.settings = replace(self.settings, share=PICTURES)
        return other

    def detect(self, bgr: UInt8, *, small: bool = True) -> Proposals:
        """Faces of one (H, W, 3) uint8 picture, best first.

        Args:
            bgr: the picture.
            small: False leaves out the finest level of the pyramid, which takes three quarters of the time; faces of
                less than `sure_side` may then be missed.
        """
        with self._lock:
            candidates, chance = self.scan(bgr, small=small)
            worth = np.flatnonzero(chance >= self.card.calibration["second_look"])[: self.settings.most]
            if not len(worth):
                return Proposals.none()
            points, features = self.look_again(bgr, candidates.take(worth), chance[worth])
        score = logistic(features, self.card.calibration["refine"])
        fit = fit_views(points)
        order = suppress(fit.centre, fit.side, score)
        order = order[score[order] >= self.settings.threshold]
        return Proposals(fit.boxes[order], score[order], points[order])

    def sure_side(self, bgr: UInt8) -> float:
        """Longer side in pixels of the smallest face that a search without `small` shows the network large enough."""
        scales = self._scales(bgr, small=False)
        return float(self.card.codec["face_px"]) / scales[0]

    def scan(self, bgr: UInt8, *, small: bool = True) -> tuple[Candidates, Float32]:
        """Candidates in the whole picture and their chance of being faces, best first, by the backbone alone."""
        sizes = self._sizes(bgr, small=small)
        answers = run_levels(self._scan, _levels(bgr, sizes))
        every = Candidates.joined([self._faces_in(m, s, bgr.shape) for m, s in zip(answers, sizes, strict=True)])
        chance = logistic(scan_features(every), self.card.calibration["scan"])
        order = suppress(every.centre, every.side, chance)
        return every.take(order), chance[order]

    def _sizes(self, bgr: UInt8, *, small: bool) -> list[tuple[int, int]]:
        """Of the pyramid's levels, (h, w)."""
        height, width = bgr.shape[:2]
        scales = self._scales(bgr, small=small)
        return [(max(round(height * scale), 1), max(round(width * scale), 1)) for scale in scales]

    def _scales(self, bgr: UInt8, *, small: bool) -> list[float]:
        height, width = bgr.shape[:2]
        smallest = self.settings.min_face or self.settings.share * adaptive_min_face(height, width)
        base = self.card.codec["face_px"]
        scales = level_scales(min(height, width), smallest, base, self.settings.step, LAST_LEVEL)
        return scales if small else scales[1:] or scales

    def _faces_in(self, maps: Float32, size: tuple[int, int], frame: tuple[int, ...]) -> Candidates:
        """What the answers (5, h, w) to a level of this size say, in pixels of the frame."""
        kind, xy, response = find_peaks(maps, self.card.codec["peak"], MOST_PEAKS)
        return agree(kind, xy, response, self._agreement).enlarged((frame[1] / size[1], frame[0] / size[0]), MARGIN)

    def look_again(self, bgr: UInt8, candidates: Candidates, chance: Float32) -> tuple[Float32, Float32]:
        """Show each candidate upright and large to backbone and branches.

        Returns:
            points: (C, 5, 2) refined, frame pixels. features: (C, 12) for the score.
        """
        crops = [self._crop(candidates, i) for i in range(len(candidates))]
        in_crops, features = read_crops(*self._refine.run(np.stack([crop.crop(bgr) for crop in crops])))
        points = np.stack([crop.to_frame(xy) for crop, xy in zip(crops, in_crops, strict=True)])
        return points, np.column_stack((features, np.log(chance / (1 - chance)))).astype(np.float32)

    def _crop(self, candidates: Candidates, i: int) -> CropTransform:
        x, y = (float(v) for v in candidates.centre[i])
        size = self.card.size[0]
        side = float(candidates.side[i]) * self.card.box_scale
        return CropTransform.around((x, y), side, size, angle=float(candidates.roll[i]))


def _levels(bgr: UInt8, sizes: list[tuple[int, int]]) -> Iterator[UInt8]:
    """A pyramid of these sizes, each level shrunk from the one before, framed in grey."""
    for height, width in sizes:
        way = cv2.INTER_AREA if width < bgr.shape[1] else cv2.INTER_LINEAR
        bgr = np.asarray(cv2.resize(bgr, (width, height), interpolation=way), np.uint8)
        framed = np.full((_fours(height + 2 * MARGIN), _fours(width + 2 * MARGIN), 3), GREY, np.uint8)
        framed[MARGIN : MARGIN + height, MARGIN : MARGIN + width] = bgr
        yield framed


def scan_features(candidates: Candidates) -> Float32:
    """What tells a face from a chance agreement, (C, 8): sorted responses of eyes, nose, mouth; misfit; count."""
    heights = np.clip(candidates.heights, 0.0, 1.2)
    return np.column_stack(
        (
            np.sort(heights[:, :2], 1),
            heights[:, 2],
            np.sort(heights[:, 3:], 1),
            candidates.residual * 10,
            (heights > 0).sum(1),
            np.minimum(heights.sum(1) - 3.0, 0.0),
        )
    ).astype(np.float32)


def read_crops(coarse: Float32, fine: Float32, corner: Float32) -> tuple[Float32, Float32]:
    """Decode what the whole network says about face crops.

    Args:
        coarse: (F, 5, 32, 32) responses of the backbone.
        fine: (F, 5, 24, 24) responses of the branches in their windows. corner: (F, 5, 2) where those lie.
    Returns:
        points: (F, 5, 2) pixels of the 64-pixel crop, the mean place of the 13 highest fine responses. features:
            (F, 11) for the score.
    """
    _, loud = mean_of_highest(coarse, DISC)
    places, sharp = mean_of_highest(fine, DISC)
    points = places + corner
    residual = fit_views(points).residual
    loud, sharp = np.clip(loud, 0.0, 1.2), np.clip(sharp, 0.0, 1.2)
    columns = [np.column_stack((np.sort(h[:, :2], 1), h[:, 2], np.sort(h[:, 3:], 1))) for h in (loud, sharp)]
    return points, np.column_stack((*columns, residual * 10)).astype(np.float32)


def logistic(features: Float32, weights: list[float]) -> Float32:
    """Chance by logistic regression; the last weight is the constant."""
    z = features @ np.asarray(weights[:-1], np.float32) + np.float32(weights[-1])
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -15, 15))), np.float32)


def _fours(length: int) -> int:
    return -(-length // 4) * 4
