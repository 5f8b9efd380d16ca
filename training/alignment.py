"""What an alignment network of vectors is trained on, judged by and validated with."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines import nets
from ..tracker import markup
from ..tracker.errors import ConfigError
from ..tracker.geometry import CropTransform, bounding_box, box_centre_side
from ..tracker.types import Float32, UInt8
from .augment import crop_over_background, disturb, random_crop
from .config import Config
from .datasets import Sample, one_face_each, read_images, read_point_table, read_pts_folder
from .losses import soft_centroid
from .targets import gaussian_vectors

GOOD_NME = 0.08  # landmarks under 8 % inter-ocular error count as right (the 300VW failure threshold)
STRIDE = 4
Item = tuple[UInt8, Float32, np.float32]


class VectorAlignment:
    """GV's objective: vectors by MSE, places by their centroid, and two logits for face and for quality."""

    def __init__(self, config: Config, data: Path) -> None:
        self.config = config
        self.markup = markup.load(markup.for_points(config.network.landmarks).name)
        self.corpora = [_faces(data / c.path, c.layout) for c in config.corpora]
        self.negatives = list(chain.from_iterable(read_images(data / n, 0) for n in config.negatives))
        self.validation = _faces(data / config.validation, "pts") if config.validation else []
        self.patches = [cv_small(s.bgr()) for s in self.negatives[::5]]

    def build(self) -> nn.Module:
        """The untrained network behind its preprocessing."""
        network = self.config.network
        return nets.FromBytes(nets.build(network.name, network.landmarks, **network.options))

    def size(self, progress: float) -> int:
        """Side of the crops when this share of the run is over."""
        return next(side for start, side in reversed(self.config.schedule.sizes) if progress >= start)

    def item(self, index: int, progress: float) -> Item:
        """Training picture number `index`: crop (s, s, 3), points (N, 2) crop pixels, 1.0 if it shows a face."""
        rng = np.random.default_rng((self.config.schedule.seed, index))
        size = self.size(progress)
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
        weights = np.array(
            [
                c.weight if c.late_weight < 0 else (1 - progress) * c.weight + progress * c.late_weight
                for c in self.config.corpora
            ]
        )
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
            (cx, cy), face = box_centre_side(bounding_box(sample.points[0]))
            if rng.random() < 0.5:
                side, away = face * rng.uniform(0.15, 0.35), rng.uniform(0.1, 0.5) * face
            else:
                side, away = face * rng.uniform(0.8, 1.6), face * rng.uniform(1.0, 1.4)
            turn = rng.uniform(0, 2 * np.pi)
            centre = cx + away * np.cos(turn), cy + away * np.sin(turn)
        transform = CropTransform.around(centre, side, size, angle=rng.uniform(-np.pi, np.pi) * 0.3)
        background = self.patches[int(rng.integers(len(self.patches)))]
        crop = crop_over_background(bgr, transform, background, rng)
        return disturb(crop, self.patches, rng), nothing, np.float32(0)

    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum of the terms and each of them by name."""
        crops, xy, is_face = batch
        vectors, logits = net(crops)
        weights = self.config.vectors
        faces = is_face > 0.5
        target = torch.from_numpy(
            gaussian_vectors(xy[faces].numpy(), vectors.shape[2], STRIDE, weights.sigma, weights.peak)
        )
        seen = vectors[faces]
        mse = F.mse_loss(seen, target)
        place, top = soft_centroid(seen)
        cells = (xy[faces] + 0.5) / STRIDE - 0.5
        inside = (cells - top).abs() <= 3  # a centroid round a wrong peak teaches nothing
        error = F.smooth_l1_loss(place, cells, reduction="none", beta=0.3)
        coordinate = (error * inside).mean()
        good, nme = self._quality(place.detach(), cells)
        face_loss = F.binary_cross_entropy_with_logits(logits[:, 0], is_face)
        quality = torch.zeros_like(is_face)
        quality[faces] = good
        quality_loss = F.binary_cross_entropy_with_logits(logits[:, 1], quality)
        total = weights.mse * mse + weights.coordinate * coordinate + 0.3 * face_loss + 0.15 * quality_loss
        return total, {
            "mse": mse.item(),
            "coordinate": coordinate.item(),
            "nme": nme.item(),
            "face": face_loss.item(),
            "quality": quality_loss.item(),
        }

    def _quality(self, place: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """1.0 where a face's own landmarks are under GOOD_NME, and the mean error."""
        a, b = (list(group) for group in self.markup.normalisers["io"])
        eyes = (cells[:, a].mean(1) - cells[:, b].mean(1)).norm(dim=-1)
        nme = (place - cells).norm(dim=-1).mean(1) / eyes
        return (nme < GOOD_NME).float(), nme.mean()

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Inter-ocular NME in percent with ground-truth boxes, plain and turned by 30 degrees."""
        size = self.config.schedule.sizes[-1][1]
        report = {}
        for name, angle in (("nme", 0.0), ("nme_roll30", np.pi / 6)):
            errors = self._errors(net, size, angle)
            report[name] = float(errors.mean() * 100)
        return report

    def _errors(self, net: nn.Module, size: int, angle: float) -> Float32:
        errors = []
        a, b = (list(group) for group in self.markup.normalisers["io"])
        for start in range(0, len(self.validation), 32):
            samples = self.validation[start : start + 32]
            crops, truths, transforms = [], [], []
            for sample in samples:
                centre, side = box_centre_side(bounding_box(sample.points[0]))
                side *= self.config.geometry.box_scale
                transform = CropTransform.around(centre, side, size, angle=angle)
                crops.append(transform.crop(sample.bgr()))
                truths.append(sample.points[0])
                transforms.append(transform)
            with torch.inference_mode():
                vectors = net(torch.from_numpy(np.stack(crops)))[0]
                places = soft_centroid(vectors)[0].numpy()
            for place, truth, transform in zip(places, truths, transforms, strict=True):
                xy = transform.to_frame(STRIDE * (place + 0.5) - 0.5)
                eyes = np.linalg.norm(truth[a].mean(0) - truth[b].mean(0))
                errors.append(np.linalg.norm(xy - truth, axis=-1).mean() / eyes)
        return np.asarray(errors, np.float32)


def mirror(crop: UInt8, xy: Float32, marks: markup.Markup) -> tuple[UInt8, Float32]:
    """The mirrored picture and its points, each under the index of its new side."""
    flipped = xy[marks.mirror].copy()
    flipped[:, 0] = crop.shape[1] - 1 - flipped[:, 0]
    return np.ascontiguousarray(crop[:, ::-1]), flipped


def cv_small(bgr: UInt8) -> UInt8:
    """A picture at 128 pixels, kept decoded as background and occluder."""
    import cv2

    return np.asarray(cv2.resize(bgr, (128, 128), interpolation=cv2.INTER_AREA), np.uint8)


def _faces(folder: Path, layout: str) -> list[Sample]:
    readers = {"pts": read_pts_folder, "table": read_point_table}
    if layout not in readers:
        raise ConfigError(f"corpus {folder}: layout must be one of {', '.join(readers)}, got {layout!r}")
    return one_face_each(readers[layout](folder))
