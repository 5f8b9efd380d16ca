"""BB-FCN in use: scan a pyramid with the backbone, refine every candidate with backbone and branches."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..tracker.codecs import mean_of_highest
from ..tracker.errors import CardError
from ..tracker.geometry import CropTransform
from ..tracker.proposals import Candidates, find_peaks, group_peaks, suppress
from ..tracker.types import Float32, Proposals, UInt8, checked_picture
from ..tracker.views import fit_views
from .backend import Backend
from .card import CALIBRATION, ModelCard
from .codec import DISC, check_codec_keys
from .packed import run_levels

MARGIN = 4  # grey pixels round every level, so that the network has context around faces at the picture's edge
GREY = 127
LAST_LEVEL = 16.0  # pixels of the shorter side, so that a face twice as large as the picture still fits
MOST_PEAKS = 64  # per landmark type and level
STILL_SHARE = 0.5  # smallest face in a single picture, which is searched once, over that in a video frame
MOST_RESPONSE = 1.2  # responses are clipped here; a landmark's is about 1
FAINT_PEAK, FAINT_CHANCE = 0.2, 0.001  # replace the card's and the settings' values where faint responses count


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """What is searched for, and how thoroughly.

    Attributes:
        min_face: longer side of the smallest face's landmark box, frame pixels; 0 means `share` times
            `adaptive_min_face`.
        share: factor on the adaptive size.
        step: ratio of the sizes of neighbouring pyramid levels.
        threshold: lowest probability of a proposal.
        most: largest number of candidates that are refined, the most probable ones.
    """

    min_face: float = 0.0
    share: float = 1.0
    step: float = 2.0
    threshold: float = 0.5
    most: int = 24


def adaptive_min_face(height: int, width: int) -> float:
    """Longer side of the smallest face that is searched for in a frame of this size, pixels.

    14 + 0.041 s for a shorter side s, or 30 + 0.01 s where that is less, from s = 516 on: 24 in 320x240, where a search
    costs little, 34 in 640x480, 41 in 1920x1080, 52 in 3840x2160, because crowds are filmed in high resolution.
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
    Returns:
        Level pixels per frame pixel, descending; one at least.
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
        """Take a card and its networks.

        Args:
            card: of codec kind "discs".
            scan: its network for whole pictures.
            refine: its network for crops of faces.
            settings: default: for frames of a video.
        Raises:
            CardError: the card has another codec kind, or a number of codec or calibration is missing or unknown.
        """
        if card.codec.get("kind") != "discs":
            raise CardError(f"{card.name}: cannot decode {card.codec.get('kind')!r}; wanted codec kind discs")
        check_codec_keys(card.codec, ("face_px", "peak"), card.name)
        missing = [name for name in CALIBRATION["detect"] if name not in card.calibration]
        if missing:
            raise CardError(f"{card.name}: the calibration lacks {', '.join(missing)}; complete the card")
        self.card, self.settings = card, settings or DetectorSettings()
        self._scan_backend, self._refine_backend = scan, refine
        self._lock = threading.Lock()

    def for_pictures(self) -> Detector:
        """A detector for single pictures, which finds faces of half the size, with the same networks and lock."""
        other = copy.copy(self)
        other.settings = replace(self.settings, share=STILL_SHARE)
        return other

    def detect(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> Proposals:
        """Faces of one (H, W, 3) uint8 picture, best first.

        Args:
            bgr: the picture.
            small: False leaves out the finest level of the pyramid, which takes three quarters of the time; faces
                smaller than `min_reliable_face` may then be missed.
            faint: also return faint responses, however improbable; ten times as many, of which hardly one is a face.
        Returns:
            Tight boxes, probabilities and five5 points, in frame pixels.
        Raises:
            ValueError: bgr is not such an array.
        """
        checked_picture(bgr, "detect")
        second_look, threshold = self.card.calibration["second_look"], self.settings.threshold
        if faint:
            second_look = threshold = FAINT_CHANCE
        with self._lock:
            candidates, probability = self.scan(bgr, small=small, faint=faint)
            likely = np.flatnonzero(probability >= second_look)[: self.settings.most]
            if not len(likely):
                return Proposals.none()
            points, features = self.refine(bgr, candidates.take(likely), probability[likely])
        score = logistic(features, self.card.calibration["refine"])
        fit = fit_views(points)
        order = suppress(fit.centre, fit.side, score)
        order = order[score[order] >= threshold]
        return Proposals(fit.boxes[order], score[order], points[order])

    def min_reliable_face(self, bgr: UInt8) -> float:
        """Longer side of the smallest face that is reliably found without `small`, pixels of this (H, W, 3) frame."""
        scales = self._scales(bgr, small=False)
        return float(self.card.codec["face_px"]) / scales[0]

    def scan(self, bgr: UInt8, *, small: bool = True, faint: bool = False) -> tuple[Candidates, Float32]:
        """Find candidates in the whole picture with the backbone alone.

        Args:
            bgr: (H, W, 3) uint8 picture.
            small, faint: see `detect`.
        Returns:
            C candidates in frame pixels and their probabilities (C,) float32 of being faces, descending.
        """
        sizes = self._level_sizes(bgr, small=small)
        responses = run_levels(self._scan_backend, _pyramid(bgr, sizes))
        levels = zip(responses, sizes, strict=True)
        peak = FAINT_PEAK if faint else self.card.codec["peak"]
        found = Candidates.joined([_candidates(maps, peak, size, bgr.shape) for maps, size in levels])
        probability = logistic(scan_features(found), self.card.calibration["scan"])
        order = suppress(found.centre, found.side, probability)
        return found.take(order), probability[order]

    def levels(self, bgr: UInt8) -> list[tuple[tuple[int, int], UInt8, Float32]]:
        """The pyramid as the backbone sees it, and its responses, the largest level first: for inspection only.

        Args:
            bgr: (H, W, 3) uint8 picture.
        Returns:
            For each level its size (h, w) without margins, the level with them, (h', w', 3) uint8, and the responses
            (5, h', w') float32 to it.
        """
        sizes = self._level_sizes(bgr, small=True)
        pictures = list(_pyramid(bgr, sizes))
        answers = [maps.copy() for maps in run_levels(self._scan_backend, pictures)]
        return list(zip(sizes, pictures, answers, strict=True))

    def _level_sizes(self, bgr: UInt8, *, small: bool) -> list[tuple[int, int]]:
        """(h, w) of the pyramid's levels, without their margins, the largest first."""
        height, width = bgr.shape[:2]
        scales = self._scales(bgr, small=small)
        return [(max(round(height * scale), 1), max(round(width * scale), 1)) for scale in scales]

    def _scales(self, bgr: UInt8, *, small: bool) -> list[float]:
        height, width = bgr.shape[:2]
        smallest = self.settings.min_face or self.settings.share * adaptive_min_face(height, width)
        base = self.card.codec["face_px"]
        scales = level_scales(min(height, width), smallest, base, self.settings.step, LAST_LEVEL)
        return scales if small else scales[1:] or scales

    def refine(self, bgr: UInt8, candidates: Candidates, probability: Float32) -> tuple[Float32, Float32]:
        """Run backbone and branches on an upright crop of each candidate.

        Args:
            bgr: (H, W, 3) uint8 picture.
            candidates: C of them, at least one, in frame pixels.
            probability: (C,) float32 from `scan`.
        Returns:
            points: (C, 5, 2) float32 refined five5 points, frame pixels.
            features: (C, 12) float32 for the score.
        """
        crops = [self._crop(candidates, i) for i in range(len(candidates))]
        in_crops, features = decode_crops(*self._refine_backend.run(np.stack([crop.crop(bgr) for crop in crops])))
        points = np.stack([crop.to_frame(xy) for crop, xy in zip(crops, in_crops, strict=True)])
        logit = np.log(probability / (1 - probability))
        return points, np.column_stack((features, logit)).astype(np.float32)

    def _crop(self, candidates: Candidates, i: int) -> CropTransform:
        x, y = (float(v) for v in candidates.centre[i])
        size = self.card.size[0]
        side = float(candidates.side[i]) * self.card.box_scale
        return CropTransform.around((x, y), side, size, angle=float(candidates.roll[i]))


def _pyramid(bgr: UInt8, sizes: list[tuple[int, int]]) -> Iterator[UInt8]:
    """Levels of these sizes (h, w), each shrunk from the one before, with grey margins to sides divisible by 4."""
    for height, width in sizes:
        interpolation = cv2.INTER_AREA if width < bgr.shape[1] else cv2.INTER_LINEAR
        bgr = np.asarray(cv2.resize(bgr, (width, height), interpolation=interpolation), np.uint8)
        padded = np.full((_round_up_to_4(height + 2 * MARGIN), _round_up_to_4(width + 2 * MARGIN), 3), GREY, np.uint8)
        padded[MARGIN : MARGIN + height, MARGIN : MARGIN + width] = bgr
        yield padded


def _candidates(maps: Float32, peak: float, size: tuple[int, int], frame: tuple[int, ...]) -> Candidates:
    """Decode the response maps (5, h, w) of a level of this size (without margins), in pixels of the frame."""
    found = group_peaks(*find_peaks(maps, peak, MOST_PEAKS))
    return found.to_frame((frame[1] / size[1], frame[0] / size[0]), MARGIN)


def scan_features(candidates: Candidates) -> Float32:
    """Features that distinguish a face from peaks that fit together by accident.

    Returns:
        (C, 8) float32: responses as in `_response_features` (5), misfit, inliers, min(sum of the responses - 3, 0).
    """
    clipped = np.clip(candidates.responses, 0.0, MOST_RESPONSE)
    misfit, inliers = candidates.residual * 10, (clipped > 0).sum(1)
    lack = np.minimum(clipped.sum(1) - 3.0, 0.0)
    return np.column_stack((_response_features(candidates.responses), misfit, inliers, lack)).astype(np.float32)


def decode_crops(coarse: Float32, fine: Float32, corner: Float32) -> tuple[Float32, Float32]:
    """Decode the outputs of backbone and branches for face crops of 64x64 pixels.

    Args:
        coarse: (F, 5, 32, 32) float32 responses of the backbone.
        fine: (F, 5, 24, 24) float32 responses of the branches in their windows.
        corner: (F, 5, 2) float32 crop pixel of each window's first pixel, x and y.
    Returns:
        points: (F, 5, 2) float32 crop pixels, the mean place of the 13 highest fine responses.
        features: (F, 11) float32: responses of backbone and branches, five each, and misfit.
    Source: BB-FCN, section III-E.
    """
    _, coarse_response = mean_of_highest(coarse, DISC)
    in_windows, fine_response = mean_of_highest(fine, DISC)
    points = in_windows + corner
    responses = [_response_features(response) for response in (coarse_response, fine_response)]
    return points, np.column_stack((*responses, fit_views(points).residual * 10)).astype(np.float32)


def _response_features(responses: Float32) -> Float32:
    """Five5 responses (F, 5), clipped; eyes and mouth corners are sorted, so that left and right do not matter."""
    eyes, nose, mouth = np.split(np.clip(responses, 0.0, MOST_RESPONSE), (2, 3), axis=1)
    return np.column_stack((np.sort(eyes, 1), nose, np.sort(mouth, 1)))


def logistic(features: Float32, weights: list[float]) -> Float32:
    """Probability by logistic regression.

    Args:
        features: (F, n) float32.
        weights: n + 1; the last one is the constant.
    Returns:
        (F,) float32 in (0, 1).
    """
    # clipped so that no probability is rounded to 0 or 1, of which `Detector.refine` could not compute the logit
    z = features @ np.asarray(weights[:-1], np.float32) + np.float32(weights[-1])
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -15, 15))), np.float32)


def _round_up_to_4(length: int) -> int:
    return -(-length // 4) * 4
