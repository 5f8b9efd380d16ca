"""SPAN-style self-calibration for every alignment network: labels where there are some, agreement everywhere.

The network sees each face twice, in a calm crop and in a disturbed one, which is turned, shrunk and mirrored and whose
pixels are disturbed. Drawn expressions are in both crops, and on labelled faces alone, because drawing a blink needs
the lids. The calm crop's answer, moved as the pixels moved, must equal the disturbed crop's (Eq. 20); both must fit the
label if there is one (Eq. 19). Alternatively the average of the network over its steps looks at the calm crop, and its
landmarks, moved into the disturbed crop, are the labels there (`Consistency.teacher`).

Source: Wan et al. (SPAN), sections III-D and III-E; Tarvainen and Valpola, "Mean teachers are better role models",
NIPS 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..engines import nets
from ..tracker.errors import ConfigError
from ..tracker.geometry import CropTransform, box_centre_side
from ..tracker.types import Float32, Float64, UInt8
from ..tracker.views import face_box
from .alignment.maps import moved_points
from .alignment.networks import open_alignment
from .alignment.objective import Labels, Terms, mapped, part, weighted
from .augment import (
    BACKGROUND,
    Geometry,
    annotators_shift,
    crop_over_background,
    disguise,
    disguise_as_published,
    mirror,
    random_crop,
)
from .config import Config
from .datasets import Sample

NOTHING, UNLABELLED, LABELLED = 0, 1, 2
COVERING = 200  # faces that may occlude others; 10 MB of memory
CALM = Geometry(wide_share=0.0, roll_deg=8.0, log_scale=0.06, shift=0.02)  # how far the calm crop strays
Pair = tuple[UInt8, UInt8, Float32, Float32, Float32, np.int64]


@dataclass(frozen=True, slots=True)
class Seen:
    """One face in one crop: its pixels (s, s, 3), its points (N, 2) and the matrix (2, 3) from picture to crop."""

    crop: UInt8
    xy: Float32
    matrix: Float64


class SelfConsistency:
    """An alignment network's own objective on labelled pairs, and agreement of every pair; see `train.Objective`.

    Attributes:
        teacher: with the configured teacher "average", the average of the trained network, in evaluation mode.
        occluders: pictures (BACKGROUND, BACKGROUND, 3) that cover a face with texture "varied": the pictures without
            faces that also serve as backgrounds, and other faces.
    """

    teacher: nn.Module

    def __init__(self, config: Config, data: Path) -> None:
        """Read the pictures; see `Alignment`.

        Raises:
            ConfigError: no pictures without labels are left, or something that `Alignment` needs is not configured.
            SourceError: a folder is missing or broken.
        """
        self.config, self.inner = config, open_alignment(config, data)
        rules = config.consistency
        divided = [_divided(corpus, rules.labels, number) for number, corpus in enumerate(self.inner.corpora)]
        self.inner.set_corpora([labelled for labelled, _ in divided])
        self.unlabelled: list[Sample] = [sample for _, others in divided for sample in others]
        for extra in rules.unlabelled:
            self.unlabelled += self.inner.faces(data / extra.path, extra.layout)
        if rules.share > 0 and not self.unlabelled:
            raise ConfigError("consistency.share: wanted pictures without labels, got none; name some, or set it to 0")
        self.occluders = self.inner.patches + (self._some_faces() if rules.texture == "varied" else [])

    def _some_faces(self) -> list[UInt8]:
        """Faces of the training pictures, (BACKGROUND, BACKGROUND, 3) each, chosen by the seed."""
        faces = [*chain.from_iterable(self.inner.corpora), *self.unlabelled]
        order = np.random.default_rng(self.config.schedule.seed).permutation(len(faces))
        return [_face_alone(faces[i]) for i in order[:COVERING]]

    def build(self) -> nets.FromBytes:
        """See `Alignment`."""
        return self.inner.build()

    def validate(self, net: nn.Module) -> dict[str, float]:
        """See `Alignment`."""
        return self.inner.validate(net)

    def picture(self, net: nn.Module) -> UInt8:
        """See `Alignment`."""
        return self.inner.picture(net)

    def item(self, index: int, progress: float) -> Pair:
        """Pair number `index`.

        Returns:
            calm and disturbed crop (s, s, 3); the points in both (N, 2), crop pixels; the matrix (2, 3) from the calm
            crop's pixels to the disturbed one's; NOTHING, UNLABELLED or LABELLED.
        """
        seed = self.config.schedule.seed
        rng = np.random.default_rng((seed, index))
        rules = self.config.consistency
        size = self.config.schedule.size(progress)
        if rng.random() < self.config.negative_share:
            crop, nothing, _ = self.inner.negative(size, progress, rng)
            return crop, crop, nothing, nothing, np.eye(2, 3, dtype=np.float32), np.int64(NOTHING)
        known = not rng.random() < rules.share
        sample = self.inner.draw(progress, rng) if known else self.unlabelled[int(rng.integers(len(self.unlabelled)))]
        bgr, points = self.inner.expressive(sample, rng) if known else (sample.bgr(), sample.points[0])
        calm, other = self._two_crops(bgr, points, size, rng)
        if rules.texture == "paper":
            spoilt = disguise_as_published(other.crop, rng)
        else:
            spoilt = disguise(other.crop, self.occluders, rng)
        way = _then(_inverse(calm.matrix), other.matrix)
        return calm.crop, spoilt, calm.xy, other.xy, way.astype(np.float32), np.int64(LABELLED if known else UNLABELLED)

    def _two_crops(self, bgr: UInt8, points: Float32, size: int, rng: np.random.Generator) -> tuple[Seen, Seen]:
        """A picture's face in a calm crop, and in one where it is turned, shrunk and perhaps mirrored."""
        geometry, rules = self.config.geometry, self.config.consistency
        gentle = replace(CALM, box_scale=geometry.box_scale, stretch=geometry.stretch)
        calm = self._seen(bgr, points, random_crop(points, size, gentle, rng), flip=False, rng=rng)
        wild = replace(
            geometry,
            wide_share=1.0,
            wide_roll_deg=rules.roll_deg,
            log_scale=0.0,
            box_scale=geometry.box_scale / rng.uniform(rules.scale, 1.0),
        )
        transform = random_crop(points, size, wild, rng)
        return calm, self._seen(bgr, points, transform, flip=rng.random() < rules.flip, rng=rng)

    def _seen(
        self, bgr: UInt8, points: Float32, transform: CropTransform, *, flip: bool, rng: np.random.Generator
    ) -> Seen:
        background = self.inner.patches[int(rng.integers(len(self.inner.patches)))]
        crop = crop_over_background(bgr, transform, background, rng)
        xy, matrix = transform.to_crop(points), transform.matrix.copy()
        if flip:
            crop, xy = mirror(crop, xy, self.inner.markup)
            matrix[0] *= -1
            matrix[0, 2] += crop.shape[1] - 1
            shift = annotators_shift(xy, transform, self.config.geometry.asymmetry)
            xy += shift
            matrix[:, 2] += shift
        return Seen(crop, xy, matrix)

    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum of the terms and each of them by name."""
        order = torch.argsort(batch[5], descending=True, stable=True)  # labelled, unlabelled, no face
        pairs = [values[order] for values in batch]
        known, faces = int((pairs[5] == LABELLED).sum()), int((pairs[5] != NOTHING).sum())
        taught = self.config.consistency.teacher == "average"
        return weighted((self._teacher_terms if taught else self._consistency_terms)(net, pairs, known, faces))

    def _teacher_terms(self, net: nn.Module, pairs: list[Tensor], known: int, faces: int) -> Terms:
        """The terms with labels, over both crops of the first `known` faces and the disturbed crops of the others.

        The errors of all crops are summed and divided by the 2N crops of N labelled faces. The mean over the M crops
        that the teacher has labelled therefore has the weight M / 2N, which is share / (2 (1 - share)) on average.
        """
        calm, wild, xy_calm, xy_wild, matrices, _ = pairs
        crops = torch.cat((calm[:known], wild[:faces], calm[faces:]))
        is_face = torch.zeros(len(crops), device=crops.device)
        is_face[: known + faces] = 1
        answer = net(crops)
        terms = self.inner.terms(answer, Labels(torch.cat((xy_calm[:known], xy_wild[:known]))), is_face)
        if faces > known:
            labels = Labels(self._teachers_points(calm[known:faces], matrices[known:faces]))
            _, own = self.inner.landmark_terms(part(answer, 2 * known, known + faces), labels)
            rules = self.config.consistency
            share = (faces - known) / faces / (2 * (1 - rules.share))
            terms |= {f"taught {name}": (rules.weight * share * weight, term) for name, (weight, term) in own.items()}
        return terms

    def _teachers_points(self, calm: Tensor, matrices: Tensor) -> Tensor:
        """The teacher's landmarks in the calm crops (F, s, s, 3), moved into the disturbed ones, (F, N, 2)."""
        with torch.no_grad():
            place = torch.from_numpy(self.inner.decoded(self.teacher(calm))).to(matrices)
        return moved_points(place, matrices, self.inner.markup)

    def _consistency_terms(self, net: nn.Module, pairs: list[Tensor], known: int, faces: int) -> Terms:
        """The terms with labels, and "consistency", the mean over all pairs of faces.

        Terms with labels are means over two crops of each of N faces, 1 / 2N of the sums in Eq. 19. The divergences of
        N pairs with labels and M without, which Eqs. 19 and 20 sum, are therefore divided by 2N, too: their mean has
        the weight eta (N + M) / 2N. eta is that of Eq. 19; Eq. 20 prints the M divergences without it. For (N + M) / N
        its expected value 1 / (1 - share) is used, because the N of a small batch may be 0.
        """
        calm, wild, xy_calm, xy_wild, matrices, _ = pairs
        blank = faces - known
        crops = torch.cat((calm[:known], wild[:known], calm[known:faces], wild[known:faces], calm[faces:]))
        is_face = torch.zeros(len(crops), device=crops.device)
        is_face[: 2 * faces] = 1
        answer = net(crops)
        terms = self.inner.terms(answer, Labels(torch.cat((xy_calm[:known], xy_wild[:known]))), is_face)
        total, count = crops.new_zeros((), dtype=torch.float32), max(faces, 1)
        for start, length, first in ((0, known, 0), (2 * known, blank, known)):
            if length:
                alpha, beta = (part(answer, begin, begin + length) for begin in (start, start + length))
                if self.config.consistency.stop_gradient:
                    alpha = mapped(alpha, torch.Tensor.detach)
                moved = matrices[first : first + length]
                total = total + self.inner.divergence(alpha, beta, moved) * (length / count)
        rules = self.config.consistency
        terms["consistency"] = (rules.weight / (2 * (1 - rules.share)), total)
        return terms


def _divided(corpus: Sequence[Sample], labels: float, number: int) -> tuple[list[Sample], list[Sample]]:
    """A corpus's pictures divided into labelled and unlabelled ones, always in the same way."""
    order = np.random.default_rng((7, number)).permutation(len(corpus))
    known = set(order[: max(1, round(labels * len(corpus)))].tolist())
    with_labels = [sample for i, sample in enumerate(corpus) if i in known]
    return with_labels, [sample for i, sample in enumerate(corpus) if i not in known]


def _face_alone(sample: Sample) -> UInt8:
    """The box of a sample's face, cut out at the size of an occluder."""
    centre, side = box_centre_side(face_box(sample.points[0]))
    return CropTransform.around(centre, side, BACKGROUND).crop(sample.bgr())


def _inverse(matrix: Float64) -> Float64:
    back = np.linalg.inv(matrix[:, :2])
    return np.concatenate((back, -back @ matrix[:, 2:]), 1)


def _then(first: Float64, second: Float64) -> Float64:
    """The affine map (2, 3) that applies `first`, then `second`."""
    joined: Float64 = second[:, :2] @ first
    joined[:, 2] += second[:, 2]
    return joined
