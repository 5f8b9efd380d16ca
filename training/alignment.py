"""What an alignment network of vectors is trained on, judged by and validated with."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines import nets
from ..tracker import markup
from ..tracker.codecs import decode_vectors
from ..tracker.errors import ConfigError
from ..tracker.geometry import CropTransform, bounding_box, box_centre_side
from ..tracker.types import Float32, UInt8
from .augment import crop_over_background, disturb, random_crop
from .config import Config
from .datasets import Sample, one_face_each, read_faces, read_images
from .losses import soft_centroid
from .targets import gaussian_vectors

GOOD_NME = 0.08  # landmarks under 8 % inter-ocular error count as right (the 300VW failure threshold)
STRIDE = 4
NEAR = 3  # cells; the centroid round a peak that is farther off teaches nothing
BACKGROUND = 128  # side in pixels of the pictures that are kept decoded as backgrounds and occluders
Item = tuple[UInt8, Float32, np.float32]


class VectorAlignment:
    """GV's objective: vectors by MSE, places by their centroid, and two logits for face and for quality."""

    def __init__(self, config: Config, data: Path) -> None:
        """Read all pictures of the configuration below the folder `data` into memory, still compressed.

        Raises:
            ConfigError: something that is needed is not configured, or a corpus has other points.
            MarkupError: no markup has so many landmarks.
            SourceError: a folder is missing or broken.
        """
        if not (config.corpora and config.negatives and config.validation):
            raise ConfigError("alignment: wanted at least one of corpora, one of negatives, and validation")
        self.config = config
        self.markup = markup.for_points(config.network.landmarks)
        self.corpora = [self._faces(data / c.path, c.layout) for c in config.corpora]
        self.negatives = list(chain.from_iterable(read_images(data / n, 0) for n in config.negatives))
        self.validation = self._faces(data / config.validation, "pts")
        self.patches = [_thumbnail(sample.bgr()) for sample in self.negatives[::5]]

    def _faces(self, folder: Path, layout: str) -> list[Sample]:
        samples = one_face_each(read_faces(folder, layout))
        for sample in samples:
            if sample.points.shape[1] != self.markup.points or np.isnan(sample.points).any():
                raise ConfigError(f"{sample.path}: wanted all {self.markup.points} points of {self.markup.name}")
        return samples

    def build(self) -> nn.Module:
        """The untrained network behind its preprocessing.

        Raises:
            ConfigError: the network does not take these options.
        """
        network = self.config.network
        try:
            return nets.FromBytes(nets.build(network.name, network.landmarks, **network.options))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"network {network.name} with {network.options}: {error}") from error

    def item(self, index: int, progress: float) -> Item:
        """Training picture number `index`: crop (s, s, 3), points (N, 2) crop pixels, 1.0 if it shows a face."""
        rng = np.random.default_rng((self.config.schedule.seed, index))
        size = self.config.schedule.size(progress)
        if rng.random() < self.config.vectors.negatives:
            return self._negative(size, progress, rng)
        sample = self._draw(progress, rng)
        points = sample.points[0]
        transform = random_crop(points, size, self.config.geometry, rng)
        background = self.patches[int(rng.integers(len(self.patches)))]
        crop = crop_over_background(sample.bgr(), transform, background, rng)
        xy = transform.to_crop(points)
        if rng.random() < self.config.geometry.flip:
            crop, xy = mirror(crop, xy, self.markup)
        return disturb(crop, self.patches, rng), xy, np.float32(1)

    def _draw(self, progress: float, rng: np.random.Generator) -> Sample:
        early = np.array([c.weight for c in self.config.corpora])
        late = np.array([c.weight if c.late_weight < 0 else c.late_weight for c in self.config.corpora])
        weights = (1 - progress) * early + progress * late
        samples = self.corpora[int(rng.choice(len(weights), p=weights / weights.sum()))]
        return samples[int(rng.integers(len(samples)))]

    def _negative(self, size: int, progress: float, rng: np.random.Generator) -> Item:
        """No face: a piece of a picture without faces, or a face's picture cropped where the face is not."""
        nothing = np.full((self.config.network.landmarks, 2), np.nan, np.float32)
        if rng.random() < 0.8:
            bgr = self.negatives[int(rng.integers(len(self.negatives)))].bgr()
            height, width = bgr.shape[:2]
            side = min(height, width) * rng.uniform(0.25, 1.2)
            centre = rng.uniform(0, width), rng.uniform(0, height)
        else:
            sample = self._draw(progress, rng)
            bgr = sample.bgr()
            centre, side = _beside(sample.points[0], rng)
        transform = CropTransform.around(centre, side, size, angle=rng.uniform(-np.pi, np.pi) * 0.3)
        background = self.patches[int(rng.integers(len(self.patches)))]
        crop = crop_over_background(bgr, transform, background, rng)
        return disturb(crop, self.patches, rng), nothing, np.float32(0)

    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum of the terms and each of them by name.

        Args:
            net: the network.
            batch: crops (B, s, s, 3) uint8, points (B, N, 2), 1.0 where there is a face (B,).
        """
        crops, xy, is_face = batch
        vectors, logits = net(crops)
        weights = self.config.vectors
        faces = is_face > 0.5
        seen, cells = vectors[faces], (xy[faces] + 0.5) / STRIDE - 0.5
        bells = gaussian_vectors(xy[faces].numpy(), vectors.shape[2], STRIDE, weights.sigma, weights.peak)
        mse = _mean((seen - torch.from_numpy(bells)) ** 2)
        place, top = soft_centroid(seen)
        # a centroid cannot leave its vector: pulled at from outside it would only deform the tail of the bell
        reachable = ((cells - top).abs() <= NEAR) & (cells >= 0) & (cells <= vectors.shape[2] - 1)
        coordinate = _mean(F.smooth_l1_loss(place, cells, reduction="none", beta=0.3) * reachable)
        good, nme = self._quality(place.detach(), cells)
        quality = torch.zeros_like(is_face)
        quality[faces] = good
        face_loss = F.binary_cross_entropy_with_logits(logits[:, 0], is_face)
        quality_loss = F.binary_cross_entropy_with_logits(logits[:, 1], quality)
        total = weights.mse * mse + weights.coordinate * coordinate + 0.3 * face_loss + 0.15 * quality_loss
        terms = {"mse": mse, "coordinate": coordinate, "nme": nme, "face": face_loss, "quality": quality_loss}
        return total, {name: term.item() for name, term in terms.items()}

    def _quality(self, place: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """1.0 where a face's own landmarks are under GOOD_NME, and the mean error."""
        a, b = (list(group) for group in self.markup.normalisers["io"])
        eyes = (cells[:, a].mean(1) - cells[:, b].mean(1)).norm(dim=-1)
        nme = (place - cells).norm(dim=-1).mean(1) / eyes
        return (nme < GOOD_NME).float(), _mean(nme)

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Inter-ocular NME in percent with ground-truth boxes, plain and turned by 30 degrees."""
        plain, turned = self._errors(net, 0.0), self._errors(net, np.pi / 6)
        return {"nme": float(plain.mean() * 100), "nme_roll30": float(turned.mean() * 100)}

    def _errors(self, net: nn.Module, angle: float) -> Float32:
        """NME of every validation face, in crops of the last size turned by this angle."""
        errors = []
        for start in range(0, len(self.validation), 32):
            samples = self.validation[start : start + 32]
            transforms = [self._upright(sample.points[0], angle) for sample in samples]
            crops = np.stack([t.crop(s.bgr()) for t, s in zip(transforms, samples, strict=True)])
            with torch.inference_mode():
                vectors = net(torch.from_numpy(crops))[0].numpy()
            weights = self.config.vectors
            places, _ = decode_vectors(vectors, STRIDE, weights.sigma, weights.peak)
            for place, sample, transform in zip(places, samples, transforms, strict=True):
                errors.append(self._nme(transform.to_frame(place), sample.points[0]))
        return np.asarray(errors, np.float32)

    def _upright(self, points: Float32, angle: float) -> CropTransform:
        centre, side = box_centre_side(bounding_box(points))
        size = self.config.schedule.sizes[-1][1]
        return CropTransform.around(centre, side * self.config.geometry.box_scale, size, angle=angle)

    def _nme(self, xy: Float32, truth: Float32) -> float:
        a, b = (truth[list(group)].mean(0) for group in self.markup.normalisers["io"])
        return float(np.linalg.norm(xy - truth, axis=-1).mean() / np.linalg.norm(a - b))


def mirror(crop: UInt8, xy: Float32, marks: markup.Markup) -> tuple[UInt8, Float32]:
    """The mirrored picture (h, w, 3) and its points (N, 2), each under the index of its new side."""
    flipped = xy[marks.mirror].copy()
    flipped[:, 0] = crop.shape[1] - 1 - flipped[:, 0]
    return np.ascontiguousarray(crop[:, ::-1]), flipped


def _beside(points: Float32, rng: np.random.Generator) -> tuple[tuple[float, float], float]:
    """Centre and side of a square that shows a small piece of a face, or what is next to it."""
    (cx, cy), face = box_centre_side(bounding_box(points))
    if rng.random() < 0.5:
        side, away = face * rng.uniform(0.15, 0.35), rng.uniform(0.1, 0.5) * face
    else:
        side, away = face * rng.uniform(0.8, 1.6), face * rng.uniform(1.0, 1.4)
    turn = rng.uniform(0, 2 * np.pi)
    return (cx + away * np.cos(turn), cy + away * np.sin(turn)), side


def _thumbnail(bgr: UInt8) -> UInt8:
    return np.asarray(cv2.resize(bgr, (BACKGROUND, BACKGROUND), interpolation=cv2.INTER_AREA), np.uint8)


def _mean(values: Tensor) -> Tensor:
    """Mean, and 0 of nothing: a process may draw a batch without a single face."""
    return values.sum() / max(values.numel(), 1)
