"""Training items, face score and validation of all alignment networks; the losses of each are in `networks`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...engines import nets
from ...engines.codec import decoder
from ...tracker import markup, metrics
from ...tracker.errors import ConfigError, MarkupError, SourceError
from ...tracker.geometry import CropTransform, box_centre_side
from ...tracker.types import Float32, UInt8
from ...tracker.views import face_box
from ..augment import (
    BACKGROUND,
    annotators_shift,
    crop_over_background,
    disturb,
    mirror,
    random_crop,
    thumbnail,
    written_on,
)
from ..config import Config, Expressions
from ..datasets import ATTRIBUTES, Sample, one_face_each, read_faces, verify_pictures
from ..expressions import blink, facing_points, grimace, has_closed_eye
from ..negatives import faceless
from .losses import focal_factors

log = logging.getLogger(__name__)

FACE, QUALITY = 0.3, 0.15  # weights of the two scores' cross-entropies
WRITTEN = 0.25  # share of the pieces without faces with writing: small networks take round letters for eyes
GAP_SMOOTH = 0.3  # pixels; the error of an opening is quadratic below
BLACK = np.zeros((BACKGROUND, BACKGROUND, 3), np.uint8)
Terms = dict[str, tuple[float, Tensor]]  # name -> (weight, term)
Picture = tuple[UInt8, Float32, np.float32]
Item = tuple[UInt8, Float32, np.float32, *tuple[NDArray[np.bool_], ...]]


@dataclass(frozen=True, slots=True)
class Labels:
    """The annotations of F faces.

    Attributes:
        xy: (F, N, 2) crop pixels.
        factors: (F, C) how much a face counts for each of the corpora's attributes, see `losses.focal_factors`; None
            if no corpus has attributes.
    """

    xy: Tensor
    factors: Tensor | None = None


class Alignment(ABC):
    """Items, face score and validation of every alignment network; subclasses define the losses of the outputs.

    Attributes:
        codec: how the network's deployed outputs are decoded, in the form of a card.
        attributes: names of the attributes that the corpora give their faces; usually none.
    """

    codec: dict[str, Any]

    def __init__(self, config: Config, data: Path) -> None:
        """Read all pictures of the configuration below the folder `data` into memory, still compressed.

        Each is decoded once, so that none turns out to be broken in the middle of the run.

        Raises:
            ConfigError: a required setting is missing, a corpus has other points, or the configured normaliser does not
                fit the markup or a face.
            MarkupError: no markup has this number of landmarks.
            SourceError: a folder is missing or broken, or a file in it is, unless `Config.skip_broken` leaves it out.
        """
        if not (config.corpora and config.validation and (config.negatives or not config.negative_share)):
            raise ConfigError(
                "alignment: wanted at least one of corpora, validation, and one of negatives unless negative_share is 0"
            )
        self.config = config
        self.markup = markup.for_points(config.network.landmarks)
        self.facing = torch.from_numpy(facing_points(self.markup.points))
        if config.expressions != Expressions() and not len(self.facing):
            raise ConfigError(
                f"expressions: wanted a markup that distinguishes upper and lower lids, got {self.markup.name}"
            )
        self.normaliser = cast(metrics.Normaliser, config.normaliser)
        told = chain.from_iterable(ATTRIBUTES.get(c.layout, ()) for c in config.corpora)
        self.attributes = tuple(dict.fromkeys(told))
        self.set_corpora([self.faces(data / c.path, c.layout) for c in config.corpora])
        self.negatives = faceless(config, data)
        self.validation = self.faces(data / config.validation, config.validation_layout)
        others = (faces for c, faces in zip(config.corpora, self.corpora, strict=True) if c.path != config.validation)
        _check_disjoint(self.validation, chain.from_iterable(others))
        self.patches = [thumbnail(sample.bgr()) for sample in self.negatives[::5]] or [BLACK]

    def set_corpora(self, corpora: list[list[Sample]]) -> None:
        """Set the labelled faces of the configured corpora, in their order."""
        self.corpora = corpora
        self.closed = [[s for s in faces if has_closed_eye(s.points[0])] for faces in corpora]

    def faces(self, folder: Path, layout: str) -> list[Sample]:
        """All faces of a folder, one per sample; each must have all points of the markup and a normalising length.

        Raises:
            ConfigError: a face has not and must not be skipped, or no face has.
            SourceError: the folder is missing, broken or without faces.
        """
        read = read_faces(folder, layout, self.config.broken)
        pictures = read if self.config.skip_broken else verify_pictures(read)  # skipping has decoded them already
        samples = [in_markup(sample, self.markup) for sample in one_face_each(pictures)]
        faults = [fault_of(sample, self.markup, self.normaliser) for sample in samples]
        told = [fault for fault in faults if fault]
        if told and not (self.config.skip_broken and len(told) < len(samples)):  # all faces: not a broken file
            raise told[0]
        for fault in told:
            log.warning("%s; left out", fault)
        if not samples:
            raise SourceError(f"{folder}: wanted annotated faces, got none")
        log.info("%s: %d faces", folder, len(samples) - len(told))
        return [sample for sample, fault in zip(samples, faults, strict=True) if fault is None]

    def build(self) -> nets.FromBytes:
        """The untrained network behind its preprocessing.

        Raises:
            ConfigError: the network does not take these options.
        """
        network = self.config.network
        try:
            return nets.FromBytes(nets.build(network.name, network.landmarks, **network.options))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"network {network.name} with {network.options}: {error}") from error

    def item(self, index: int, progress: float) -> Item:
        """Training picture number `index`.

        Returns:
            crop (s, s, 3); points (N, 2), crop pixels; 1.0 if it shows a face; and, if the corpora have C attributes,
            (C,) bool, which of them it has.
        """
        rng = np.random.default_rng((self.config.schedule.seed, index))
        size = self.config.schedule.size(progress)
        if rng.random() < self.config.negative_share:
            crop, nothing, no_face = self.negative(size, progress, rng)
            return crop, nothing, no_face, *self._flags(())
        sample = self.draw(progress, rng)
        bgr, points = self.expressive(sample, rng)
        transform = random_crop(points, size, self.config.geometry, rng)
        background = self.patches[int(rng.integers(len(self.patches)))]
        crop = crop_over_background(bgr, transform, background, rng)
        xy = transform.to_crop(points)
        if rng.random() < self.config.geometry.flip:
            crop, xy = mirror(crop, xy, self.markup)
            xy += annotators_shift(xy, transform, self.config.geometry.asymmetry)
        return self._disturbed(crop, rng), xy, np.float32(1), *self._flags(sample.subsets)

    def expressive(self, sample: Sample, rng: np.random.Generator) -> tuple[UInt8, Float32]:
        """Picture and points of a face, with eyes closed and a grimace drawn as often as configured."""
        rules = self.config.expressions
        bgr, points = sample.bgr(), sample.points[0]
        if rules.grimaces and rng.random() < rules.grimaces:
            bgr, points = grimace(bgr, points, rng)
        if rules.blinks and rng.random() < rules.blinks:
            bgr, points = blink(bgr, points, rng)
        return bgr, points

    def _disturbed(self, crop: UInt8, rng: np.random.Generator) -> UInt8:
        return disturb(crop, self.patches, rng, self.config.disturbances)

    def _flags(self, subsets: tuple[str, ...]) -> tuple[NDArray[np.bool_], ...]:
        """Which attributes a face of these subsets has, (C,) bool; an empty tuple if the corpora have none."""
        return (np.array([name in subsets for name in self.attributes]),) if self.attributes else ()

    def draw(self, progress: float, rng: np.random.Generator) -> Sample:
        """One face of the mixture as it is after this share of the run."""
        early = np.array([c.weight for c in self.config.corpora])
        late = np.array([c.weight if c.late_weight < 0 else c.late_weight for c in self.config.corpora])
        weights = (1 - progress) * early + progress * late
        chosen = int(rng.choice(len(weights), p=weights / weights.sum()))
        samples = self.corpora[chosen]
        closed = self.config.expressions.closed
        if closed and rng.random() < closed:
            samples = self.closed[chosen] or samples
        return samples[int(rng.integers(len(samples)))]

    def negative(self, size: int, progress: float, rng: np.random.Generator) -> Picture:
        """A crop without a face: a piece of a picture without faces, or of the area beside or within a face.

        If disturbances are configured, some of the former have writing on them.
        """
        nothing = np.full((self.config.network.landmarks, 2), np.nan, np.float32)
        if rng.random() < 0.8:
            bgr = self.negatives[int(rng.integers(len(self.negatives)))].bgr()
            if self.config.disturbances and rng.random() < WRITTEN:
                bgr = written_on(bgr, rng)
            height, width = bgr.shape[:2]
            side = min(height, width) * rng.uniform(0.25, 1.2)
            centre = rng.uniform(0, width), rng.uniform(0, height)
        else:
            sample = self.draw(progress, rng)
            bgr = sample.bgr()
            centre, side = _beside(sample.points[0], rng)
        transform = CropTransform.around(centre, side, size, angle=rng.uniform(-np.pi, np.pi) * 0.3)
        background = self.patches[int(rng.integers(len(self.patches)))]
        crop = crop_over_background(bgr, transform, background, rng)
        return self._disturbed(crop, rng), nothing, np.float32(0)

    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum of the terms and each of them by name.

        Args:
            net: the network.
            batch: crops (B, s, s, 3) uint8, points (B, N, 2), 1.0 where there is a face (B,), and attributes (B, C)
                bool if the corpora have some.
        """
        order = torch.argsort(batch[2], descending=True, stable=True)  # faces first, so that their part is a view
        crops, xy, is_face, *flags = (values[order] for values in batch)
        faces = int(is_face.sum())
        labels = Labels(xy[:faces], *(focal_factors(values[:faces]) for values in flags))
        return weighted(self.terms(net(crops), labels, is_face))

    def terms(self, answer: Any, labels: Labels, is_face: Tensor) -> Terms:
        """The loss terms of the network's output.

        Args:
            answer: of the network to B pictures, the L with labels first.
            labels: of those L.
            is_face: (B,) 1.0 where there is a face. Faces without labels do not count in the quality term.
        """
        labelled = len(labels.xy)
        terms: Terms = {"nothing": (0.0, _total(answer))}  # gives every output a gradient
        quality = torch.zeros_like(is_face)
        if labelled:
            place, terms = self.landmark_terms(part(answer, 0, labelled), labels)
            if self.config.expressions.gap:
                terms["gap"] = (self.config.expressions.gap, self._gap_error(place, labels.xy))
            quality[:labelled], nme = self._quality(place.detach(), labels.xy)
            terms["nme"] = (0.0, nme)
        logits = self.logits(answer)
        if logits is not None:
            told = 1 - is_face
            told[:labelled] = 1
            right = F.binary_cross_entropy_with_logits(logits[:, 1].float(), quality, reduction="none")
            terms["face"] = (FACE, F.binary_cross_entropy_with_logits(logits[:, 0].float(), is_face))
            terms["quality"] = (QUALITY, (right * told).sum() / told.sum().clamp(min=1))
        return terms

    @abstractmethod
    def landmark_terms(self, answer: Any, labels: Labels) -> tuple[Tensor, Terms]:
        """The landmark terms of the network's output for F faces.

        Args:
            answer: of the network in training mode.
            labels: of the F faces.
        Returns:
            Decoded places (F, N, 2) in crop pixels, and name -> (weight, term).
        """

    @abstractmethod
    def divergence(self, alpha: Any, beta: Any, matrices: Tensor) -> Tensor:
        """How much the outputs for the same F faces in two crops differ, after moving the first into the second crop.

        Args:
            alpha, beta: outputs in training mode.
            matrices: (F, 2, 3) from the first crops' pixels to the second's; some mirror.
        """

    @abstractmethod
    def logits(self, answer: Any) -> Tensor | None:
        """The face score's logits (B, 2) in the network's output in training mode; None if it has none."""

    def _gap_error(self, place: Tensor, xy: Tensor) -> Tensor:
        """Mean error of the offsets (F, P, 2) across the openings of eyes and mouth, crop pixels."""
        upper, lower = self.facing.T.to(place.device)
        found, wanted = place[:, upper] - place[:, lower], xy[:, upper] - xy[:, lower]
        return F.smooth_l1_loss(found, wanted, beta=GAP_SMOOTH)

    def _quality(self, place: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
        """(F,) 1.0 for faces whose landmarks have an error under `metrics.GOOD_NME`, and the mean error."""
        lengths = metrics.normalising_lengths(xy.cpu().numpy(), self.markup, self.normaliser)
        nme = (place - xy).norm(dim=-1).mean(1) / torch.from_numpy(lengths).to(xy)
        return (nme < metrics.GOOD_NME).float(), nme.mean()

    def validate(self, net: nn.Module) -> dict[str, float]:
        """NME in percent with ground-truth boxes, upright and turned by 30 degrees; see `Config.normaliser`."""
        plain, turned = self._errors(net, 0.0), self._errors(net, np.pi / 6)
        return {"nme": float(plain.mean() * 100), "nme_roll30": float(turned.mean() * 100)}

    def picture(self, net: nn.Module) -> UInt8:
        """The first validation faces with the network's landmarks, six per row."""
        samples = self.validation[:18]
        crops, places = self._found(net, samples, [self._upright(s.points[0], 0.0) for s in samples])
        for crop, place in zip(crops, places, strict=True):
            for x, y in place:
                cv2.circle(crop, (round(float(x)), round(float(y))), 1, (0, 255, 0), -1)
        blank = np.zeros((-len(crops) % 6, *crops.shape[1:]), np.uint8)
        rows = np.concatenate((crops, blank)).reshape(-1, 6, *crops.shape[1:])
        return np.concatenate([np.concatenate(row, 1) for row in rows])

    def _errors(self, net: nn.Module, angle: float) -> Float32:
        """NME of every validation face, in crops of the last configured size, turned by this angle."""
        errors = []
        for start in range(0, len(self.validation), 32):
            samples = self.validation[start : start + 32]
            transforms = [self._upright(sample.points[0], angle) for sample in samples]
            _, places = self._found(net, samples, transforms)
            for place, sample, transform in zip(places, samples, transforms, strict=True):
                errors.append(self._nme(transform.to_frame(place), sample))
        return np.asarray(errors, np.float32)

    def _found(self, net: nn.Module, samples: list[Sample], transforms: list[CropTransform]) -> tuple[UInt8, Float32]:
        """The crops (B, s, s, 3) and the landmarks that the network finds in them, (B, N, 2) crop pixels."""
        crops = np.stack([t.crop(s.bgr()) for t, s in zip(transforms, samples, strict=True)])
        with torch.inference_mode():
            return crops, self.decoded(net(torch.from_numpy(crops).to(next(net.parameters()).device)))

    def decoded(self, outputs: tuple[Tensor, ...]) -> Float32:
        """The landmarks (B, N, 2), crop pixels, decoded from the network's outputs in evaluation mode."""
        decode = decoder(self.codec, self.markup, self.config.card.name)
        return decode(tuple(output.float().cpu().numpy() for output in outputs))[0]

    def _upright(self, points: Float32, angle: float) -> CropTransform:
        centre, side = box_centre_side(face_box(points))
        size = self.config.schedule.sizes[-1][1]
        return CropTransform.around(centre, side * self.config.box_scale, size, angle=angle)

    def _nme(self, xy: Float32, sample: Sample) -> float:
        return float(metrics.nme(xy[None], sample.points, self.markup, self.normaliser, sample.boxes)[0])


def in_markup(sample: Sample, marks: markup.Markup) -> Sample:
    """The sample in this markup's points, if its own markup has them as a subset (five5 of aflw19); else unchanged."""
    count = sample.points.shape[1]
    if count == marks.points:
        return sample
    try:
        xy = markup.for_points(count).subset(marks.name, sample.points)
    except MarkupError:
        return sample
    return replace(sample, points=xy, hidden=None)


def fault_of(face: Sample, marks: markup.Markup, normaliser: metrics.Normaliser) -> ConfigError | None:
    """Why one face cannot be trained on or measured: it lacks points, or a length to divide errors by; else None."""
    if face.points.shape[1] != marks.points or np.isnan(face.points).any():
        return ConfigError(f"{face.place}: wanted all {marks.points} points of {marks.name}")
    try:
        metrics.normalising_lengths(face.points, marks, normaliser, face.boxes)
    except ValueError as error:
        return ConfigError(f"normaliser, for {face.place}: {error}")
    return None


def _check_disjoint(validation: list[Sample], others: Iterable[Sample]) -> None:
    """Refuse a picture that is in both training and validation; naming one folder for both is allowed.

    Raises:
        ConfigError: there is one.
    """
    kept = {sample.encoded: sample.path for sample in validation}
    for sample in others:
        if sample.encoded in kept:
            raise ConfigError(f"{sample.path} is {kept[sample.encoded]} of the validation; take it out of the corpora")


def weighted(terms: Terms) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum, and each term for the log."""
    total = torch.stack([weight * term for weight, term in terms.values()]).sum()
    return total, {name: term.item() for name, (_, term) in terms.items() if name != "nothing"}


def _beside(points: Float32, rng: np.random.Generator) -> tuple[tuple[float, float], float]:
    """Centre and side of a square that shows a small piece of a face, or the area next to it."""
    (cx, cy), face = box_centre_side(face_box(points))
    if rng.random() < 0.5:
        side, away = face * rng.uniform(0.15, 0.35), rng.uniform(0.1, 0.5) * face
    else:
        side, away = face * rng.uniform(0.8, 1.6), face * rng.uniform(1.0, 1.4)
    turn = rng.uniform(0, 2 * np.pi)
    return (cx + away * np.cos(turn), cy + away * np.sin(turn)), side


def mapped(answer: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of a network's output, which is nested tuples of tensors."""
    if isinstance(answer, Tensor):
        return change(answer)
    if answer is None:
        return None
    parts = [mapped(value, change) for value in answer]
    return type(answer)(*parts) if hasattr(answer, "_fields") else tuple(parts)


def part(answer: Any, start: int, end: int) -> Any:
    """The part of a network's output for the pictures from `start` to `end`, exclusive."""
    return mapped(answer, lambda tensor: tensor[start:end])


def _total(answer: Any) -> Tensor:
    """The sum over all tensors of a network's output."""
    if isinstance(answer, Tensor):
        return answer.float().sum()
    return torch.stack([_total(value) for value in answer if value is not None and len(value)]).sum()
