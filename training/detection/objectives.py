"""Training items, losses and validation of BB-FCN's backbone and branches."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...engines import nets
from ...engines.codec import DISC
from ...engines.nets.bbfcn import BBFCN, cut_windows
from ...tracker.codecs import mean_of_highest
from ...tracker.errors import SourceError
from ...tracker.geometry import CropTransform
from ...tracker.types import Float32, UInt8
from ..augment import crop_over_background, disturb, thumbnail, written_on
from ..config import Config
from ..datasets import IMAGE_SUFFIXES, TURNED, Sample, read_faces
from ..negatives import faceless
from ..ranges import LARGEST_FACE
from .chips import Chip, cut_chips, doubled, draw_targets, mirrored, place_box
from .discs import UNKNOWN, selective_l2
from .hidden import cover, cut, veil

Picture = tuple[UInt8, UInt8]
Item = tuple[UInt8, UInt8, np.bool_]


def held_out(sample: Sample) -> bool:
    """True for the tenth of the pictures, by the checksum of their names, held out for validation, and turned copies.

    The name of a copy by `training.turned` contains its photograph's without the suffix: it is held out if a photograph
    of that name with any suffix would be.
    """
    stem, turned, _ = sample.path.stem.partition(TURNED)
    names = [stem + suffix for suffix in IMAGE_SUFFIXES] if turned else [sample.path.name]
    return any(zlib.crc32(name.encode()) % 10 == 0 for name in names)


def _require_some(found: Sequence[object], what: str) -> None:
    if not found:
        raise SourceError(
            f"wanted {what}, got none; a tenth of all pictures, chosen by name, is used only for validation"
        )


class Windows:
    """Random windows on faces and on everything else, with their disc maps."""

    def __init__(self, config: Config, data: Path, hard: Sequence[UInt8] = ()) -> None:
        self.config, self.hard = config, hard
        faces = [list(read_faces(data / c.path, c.layout, config.broken)) for c in config.corpora]
        chip_px = config.discs.chip_px
        self.corpora = [cut_chips((s for s in samples if not held_out(s)), chip_px) for samples in faces]
        weights = np.array([c.weight for c in config.corpora])
        self.share = weights / weights.sum()
        self.held_faces = cut_chips(chain.from_iterable(filter(held_out, samples) for samples in faces), chip_px)
        pictures = faceless(config, data)
        self.backgrounds = [s.bgr() for s in pictures if not held_out(s)]
        self.held_backgrounds = [s.bgr() for s in pictures if held_out(s)]
        for corpus, chips in zip(config.corpora, self.corpora, strict=True):
            _require_some(chips, f"faces in {corpus.path}")
        _require_some(self.held_faces, "faces to validate with")
        _require_some(self.backgrounds, "pictures without faces")
        self.patches = [thumbnail(bgr) for bgr in self.backgrounds[::5]]

    def item(self, index: int, size: int) -> Picture:
        """Training picture number `index`: crop (size, size, 3) and its disc maps (5, size, size)."""
        rng = np.random.default_rng((self.config.schedule.seed, index))
        if rng.random() < self.config.discs.positives:
            return self.on_face(self._draw(rng), size, rng, disturbed=True)
        return self._on_nothing(size, rng)

    def _draw(self, rng: np.random.Generator) -> Chip:
        chips = self.corpora[int(rng.choice(len(self.share), p=self.share))]
        return chips[int(rng.integers(len(chips)))]

    def on_face(self, chip: Chip, size: int, rng: np.random.Generator, *, disturbed: bool) -> Picture:
        """A turned, scaled and shifted window that contains the chip's first face."""
        return self._finish(*self._placed(chip, size, rng), rng, disturbed=disturbed)

    def measured_face(self, chip: Chip, size: int, rng: np.random.Generator) -> tuple[UInt8, Float32]:
        """An undisturbed window with the chip's first face, and its annotated points.

        Returns:
            Crop (size, size, 3), and points (5, 2), crop pixels; NaN for a point that is not annotated or not in the
            window.
        """
        chip, transform = self._placed(chip, size, rng)
        crop, _ = self._finish(chip, transform, rng, disturbed=False)
        xy = transform.to_crop(chip.points[0])
        inside = np.all((xy > -0.5) & (xy < size - 0.5), axis=1, keepdims=True)
        return crop, np.where(inside, xy, np.float32(np.nan))

    def _placed(self, chip: Chip, size: int, rng: np.random.Generator) -> tuple[Chip, CropTransform]:
        """The chip, perhaps mirrored, and a window on its first face."""
        discs, geometry = self.config.discs, self.config.geometry
        largest = min(discs.face_px[1], LARGEST_FACE * size)
        face = float(np.exp(rng.uniform(np.log(discs.face_px[0]), np.log(largest))))
        wide = rng.random() < geometry.wide_share
        roll = rng.uniform(-1, 1) * geometry.wide_roll_deg if wide else rng.normal(0, geometry.roll_deg)
        reach = min(discs.shift * face, max(size / 2 - 0.35 * face, 0.1 * face))
        transform = place_box(chip.boxes[0], face, np.deg2rad(roll), rng.uniform(-reach, reach, 2), size)
        if rng.random() < geometry.flip:
            chip, transform = mirrored(chip, transform)
        return chip, transform

    def on_background(self, bgr: UInt8, size: int, rng: np.random.Generator, *, disturbed: bool) -> Picture:
        """A randomly scaled piece of a picture without faces."""
        height, width = bgr.shape[:2]
        middle = np.array([rng.uniform(0, width), rng.uniform(0, height), min(height, width)], np.float32)
        shown = size * float(np.exp(rng.uniform(0, 1.6)))
        transform = place_box(middle, shown, np.deg2rad(rng.normal(0, 15)), np.zeros(2), size)
        return self._finish(Chip.without_faces(bgr), transform, rng, disturbed=disturbed)

    def _on_nothing(self, size: int, rng: np.random.Generator) -> Picture:
        """A mined false alarm, a piece of a picture without faces, writing, or a piece of a face far too large."""
        kind = rng.random()
        if self.hard and kind < self.config.discs.hard_share:
            return self._on_false_alarm(self.hard[int(rng.integers(len(self.hard)))], size, rng)
        if kind > 0.92:
            return self._on_letters(size, rng)
        if kind < 0.85:
            bgr = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
            return self.on_background(bgr, size, rng, disturbed=rng.random() < 0.7)
        chip, face = self._draw(rng), size * rng.uniform(1.6, 4.0)
        away = face * rng.uniform(-0.5, 0.5, 2)
        transform = place_box(chip.boxes[0], face, np.deg2rad(rng.normal(0, 15)), away, size)
        crop, maps = self._finish(chip, transform, rng, disturbed=True)
        return crop, np.zeros_like(maps)

    def _on_letters(self, size: int, rng: np.random.Generator) -> Picture:
        """Writing on any background: small networks take round letters side by side for eyes."""
        bgr = self.patches[int(rng.integers(len(self.patches)))]
        chip = Chip.without_faces(written_on(bgr, rng))
        middle = np.array([(bgr.shape[1] - 1) / 2, (bgr.shape[0] - 1) / 2, bgr.shape[0]], np.float32)
        shown = size * float(np.exp(rng.uniform(0, 0.8)))
        transform = place_box(middle, shown, np.deg2rad(rng.normal(0, 10)), rng.uniform(-0.2, 0.2, 2) * size, size)
        return self._finish(chip, transform, rng, disturbed=rng.random() < 0.5)

    def _on_false_alarm(self, crop: UInt8, size: int, rng: np.random.Generator) -> Picture:
        """A mined crop, scaled so that its middle third, which was taken for a face, has the usual size of a face."""
        side = len(crop)
        middle = np.array([(side - 1) / 2, (side - 1) / 2, side], np.float32)
        usual = float(np.sqrt(self.config.discs.face_px[0] * self.config.discs.face_px[1]))
        shown = 3 * usual * float(np.exp(rng.uniform(-0.2, 0.2)))
        reach = min(self.config.discs.shift, 0.4) * usual
        chip = Chip.without_faces(crop)
        transform = place_box(middle, shown, np.deg2rad(rng.normal(0, 10)), rng.uniform(-reach, reach, 2), size)
        if rng.random() < 0.5:
            chip, transform = mirrored(chip, transform)
        return self._finish(chip, transform, rng, disturbed=rng.random() < 0.6)

    def _finish(self, chip: Chip, transform: CropTransform, rng: np.random.Generator, *, disturbed: bool) -> Picture:
        """Draw at twice the size, disturb the picture, then halve it: cameras blur before the picture is shrunk."""
        background = self.patches[int(rng.integers(len(self.patches)))]
        bgr = crop_over_background(chip.bgr, doubled(transform), background, rng)
        size = transform.size[0]
        maps = draw_targets(chip, transform, size, self.config.discs)
        if disturbed:
            bgr, maps = self._disturbed(chip, doubled(transform), bgr, maps, rng)
        small = cv2.resize(bgr, (size, size), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8), maps

    def _disturbed(
        self, chip: Chip, transform: CropTransform, bgr: UInt8, maps: UInt8, rng: np.random.Generator
    ) -> Picture:
        """Disturb what a transform shows of a chip, and hide its faces as often as configured.

        No random number is drawn for what is configured never to happen.
        """
        discs, faces = self.config.discs, len(chip.boxes)
        if discs.covered and faces and rng.random() < discs.covered:
            eyes, mouths = transform.to_crop(chip.points[:, :2]), transform.to_crop(chip.mouths)
            bgr = cover(bgr, eyes, mouths, self.patches, rng)
        bgr = disturb(bgr, self.patches, rng, self.config.disturbances)
        if discs.veiled and rng.random() < discs.veiled:
            bgr = veil(bgr, rng)
        if discs.cut and faces and rng.random() < discs.cut:  # last, so that the border that it leaves is not disturbed
            centre, side = transform.to_crop(chip.boxes[0, :2]), chip.boxes[0, 2] * transform.scale
            bgr, maps = cut(bgr, maps, np.array([*centre, side], np.float32), rng)
        return bgr, maps


class BackboneDetection:
    """The backbone's objective: discs on faces of every allowed size and roll, 0 on everything else."""

    def __init__(self, config: Config, data: Path, hard: Sequence[UInt8] = ()) -> None:
        self.config, self.windows = config, Windows(config, data, hard)
        _require_some(self.windows.held_backgrounds, "pictures without faces to validate with")
        rng, size = np.random.default_rng(1), 48
        chips, others = self.windows.held_faces, self.windows.held_backgrounds * 5
        self._faces = np.stack([self.windows.on_face(c, size, rng, disturbed=False)[0] for c in chips])
        self._others = np.stack([self.windows.on_background(b, size, rng, disturbed=False)[0] for b in others])

    def build(self) -> nn.Module:
        """The untrained backbone with its preprocessing."""
        return nets.FromBytes(nets.build(self.config.network.name, self.config.network.landmarks))

    def item(self, index: int, progress: float) -> Item:
        """Crop (s, s, 3), its disc maps (5, s, s), and whether the highest responses are taken as negatives."""
        size = self.config.schedule.size(progress)
        return *self.windows.item(index, size), np.bool_(progress >= self.config.discs.random_share)

    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Selective L2; negatives are random early in the run and the highest responses later."""
        crops, targets, loudest = batch
        loss = selective_l2(net(crops), targets, hardest=bool(loudest.any()))
        return loss, {"l2": loss.item()}

    def picture(self, net: nn.Module) -> None:
        """See `train.Objective`: responses to windows of so few pixels show nothing."""
        del net

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Per cent of held-out face windows below the response that 0.1 % and 1 % of the faceless windows exceed."""
        faces, others = _loudness(net, self._faces), _loudness(net, self._others)
        shares = {"miss_0.1%": 0.999, "miss_1%": 0.99}
        return {k: float((faces < np.quantile(others, s)).mean() * 100) for k, s in shares.items()}


def _loudness(net: nn.Module, windows: UInt8) -> Float32:
    """Each window's highest response, mean over the landmark types."""
    device = next(net.parameters()).device
    with torch.inference_mode():
        maps = (net(torch.from_numpy(windows[i : i + 64]).to(device)) for i in range(0, len(windows), 64))
        return np.concatenate([F.max_pool2d(m, m.shape[-1]).mean((1, 2, 3)).cpu().numpy() for m in maps])


class BranchRefinement:
    """The branches' objective: exact discs in windows round what the finished, frozen backbone found."""

    def __init__(self, config: Config, data: Path, hard: Sequence[UInt8], backbone: dict[str, Tensor]) -> None:
        """Take the state of a trained `FromBytes(Backbone)`."""
        self.config, self.windows, self.backbone = config, Windows(config, data, hard), backbone
        rng, size = np.random.default_rng(1), config.schedule.sizes[-1][1]
        pictures = [self.windows.measured_face(c, size, rng) for c in self.windows.held_faces]
        self._crops = np.stack([crop for crop, _ in pictures])
        self._truth = np.stack([xy for _, xy in pictures])

    def build(self) -> nn.Module:
        """Backbone and branches with their preprocessing; only the branches are trained."""
        net = BBFCN(self.config.network.landmarks)
        net.backbone.load_state_dict({k.removeprefix("net."): v for k, v in self.backbone.items()})
        net.backbone.requires_grad_(False)
        return nets.FromBytes(net)

    def item(self, index: int, progress: float) -> Item:
        """Crop (64, 64, 3), its disc maps (5, 64, 64), and whether the highest responses are taken as negatives."""
        size = self.config.schedule.sizes[-1][1]
        return *self.windows.item(index, size), np.bool_(progress >= self.config.discs.random_share)

    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Selective L2 within the branches' windows."""
        crops, targets, loudest = batch
        _, fine, corner = net(crops)
        loss = selective_l2(fine, _seen_through(targets, corner), hardest=bool(loudest.any()))
        return loss, {"l2": loss.item()}

    def picture(self, net: nn.Module) -> None:
        """See `train.Objective`: responses to windows of so few pixels show nothing."""
        del net

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Mean five-point error over the eye distance in percent, of the whole network and of the backbone alone."""
        errors: dict[str, list[Float32]] = {"fine": [], "coarse": []}
        for i in range(0, len(self._crops), 64):
            with torch.inference_mode():
                crops = torch.from_numpy(self._crops[i : i + 64]).to(next(net.parameters()).device)
                coarse, fine, corner = (m.cpu().numpy() for m in net(crops))
            places = {
                "fine": mean_of_highest(fine, DISC)[0] + corner,
                "coarse": 2 * mean_of_highest(coarse, DISC)[0] + 0.5,
            }
            for name, xy in places.items():
                errors[name].append(_eye_errors(xy, self._truth[i : i + 64]))
        return {name: float(np.nanmean(np.concatenate(parts)) * 100) for name, parts in errors.items()}


def _seen_through(targets: Tensor, corner: Tensor) -> Tensor:
    """Disc maps (B, K, h, w) cut to the windows at `corner`; UNKNOWN where a window extends beyond the crop."""
    return cut_windows(targets[:, :, None], corner.long(), UNKNOWN)[:, :, 0]


def _eye_errors(xy: Float32, truth: Float32) -> Float32:
    """Distance of each point from the truth over the distance between the true eyes, (F, 5)."""
    eyes = np.linalg.norm(truth[:, 0] - truth[:, 1], axis=-1)
    return np.asarray(np.linalg.norm(xy - truth, axis=-1) / eyes[:, None], np.float32)
