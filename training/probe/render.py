"""Paint the frames of a scene: photographed faces on an artificial background, with the faults of a real camera."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from ...tracker.geometry import bounding_box, box_centre_side
from ...tracker.types import Float32, Float64, UInt8
from .scenes import HEIGHT, WIDTH, Path, Scene, homographies, mapped

MASK_RADII = 0.70, 0.78  # of the ellipse that cuts a head out of its photograph, in face sizes
FEATHER = 0.05  # width of the ellipse's soft edge, in face sizes
MOST_EXPOSURES = 9
OPAQUE = 0.5  # cover above which a point behind is hidden


@dataclass(frozen=True, slots=True)
class Cutout:
    """A photographed head.

    Attributes:
        bgr: (H, W, 3) uint8, the photograph.
        points: (68, 2) its landmarks.
    """

    bgr: UInt8
    points: Float32

    @property
    def place(self) -> tuple[tuple[float, float], float]:
        """Centre (x, y) and longer side of the landmarks' box."""
        return box_centre_side(bounding_box(self.points))

    def cover(self, xy: Float64) -> Float64:
        """How much of the background is hidden, in [0, 1], at points (N, 2) of the photograph."""
        centre, side = self.place
        away = (xy - centre) / side / MASK_RADII
        inside: Float64 = np.clip((1 - np.hypot(away[:, 0], away[:, 1])) / FEATHER * MASK_RADII[0], 0, 1)
        height, width = self.bgr.shape[:2]
        outside = ((xy < 0) | (xy > (width - 1, height - 1))).any(1)
        return np.where(outside, 0.0, inside)

    def layers(self) -> list[Float32]:
        """(H, W, 4) colour times cover, and cover in [0, 1]; then the same at half the size, and so on."""
        height, width = self.bgr.shape[:2]
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2).astype(np.float64)
        cover = self.cover(grid).reshape(height, width)
        layers = [np.dstack((self.bgr * cover[..., None], cover)).astype(np.float32)]
        while min(layers[-1].shape[:2]) > 64:
            half = layers[-1].shape[1] // 2, layers[-1].shape[0] // 2
            layers.append(np.asarray(cv2.resize(layers[-1], half, interpolation=cv2.INTER_AREA), np.float32))
        return layers


class Painter:
    """Paints one scene with the given heads."""

    def __init__(self, scene: Scene, heads: list[Cutout], rng: np.random.Generator) -> None:
        """Take as many heads as the scene has faces; the same generator state gives the same pictures."""
        self.scene, self.heads = scene, heads
        self._layers = [head.layers() for head in heads]
        self._rng = rng
        self._last: tuple[bytes, Float32] | None = None  # poses and picture, reused while a scene is at rest
        self._background = _cloth(rng, (HEIGHT, WIDTH), (60, 190))
        self._bar = _cloth(rng, (HEIGHT, WIDTH), (20, 120))

    def truth(self) -> Float32:
        """The landmarks (F, T, 68, 2) in the middle of each frame's exposure, frame pixels."""
        times = np.arange(self.scene.frames, dtype=np.float64)
        tracks = [
            np.stack([mapped(h, head.points.astype(np.float64)) for h in self._maps(head, path, times)])
            for head, path in zip(self.heads, self.scene.faces, strict=True)
        ]
        return np.array(tracks, np.float32).reshape(len(tracks), self.scene.frames, 68, 2)

    def visible(self, truth: Float32) -> Float32:
        """Shares (F, T) of the landmarks that are inside the frame and not covered."""
        times = np.arange(self.scene.frames, dtype=np.float64)
        hidden = np.asarray(((truth < 0) | (truth > (WIDTH - 1, HEIGHT - 1))).any(-1))
        for behind in range(len(self.heads)):
            for front in range(behind + 1, len(self.heads)):
                maps = self._maps(self.heads[front], self.scene.faces[front], times)
                for t, h in enumerate(maps):
                    there = mapped(np.linalg.inv(h), truth[behind, t].astype(np.float64))
                    hidden[behind, t] |= self.heads[front].cover(there) > OPAQUE
        if self.scene.occluder is not None:
            for t, (left, top, right, bottom) in enumerate(self._bars(times)):
                xy = truth[:, t]
                hidden[:, t] |= ((xy >= (left, top)) & (xy <= (right, bottom))).all(-1)
        shown: Float32 = (1 - hidden.mean(-1)).astype(np.float32)
        return shown

    def frames(self) -> Iterator[UInt8]:
        """Paint the frames one after the other, (HEIGHT, WIDTH, 3) uint8."""
        for t in range(self.scene.frames):
            light = self._exposed(float(t)) * self._light(t)
            light += self.scene.noise * self._rng.standard_normal(light.shape, np.float32)
            yield np.clip(np.rint(light), 0, 255).astype(np.uint8)

    def _exposed(self, t: float) -> Float32:
        """The mean of the pictures during an exposure around t."""
        ends = t + self.scene.shutter * np.array([-0.5, 0.5])
        moves = [np.ptp(path.pose(ends)[:, :2], axis=0) for path in self._paths()]
        longest = max((float(np.hypot(*move)) for move in moves), default=0.0)
        count = min(1 + math.ceil(longest), MOST_EXPOSURES)
        offsets = (np.arange(count) + 0.5) / count - 0.5
        pictures = [self._picture(t + self.scene.shutter * float(offset)) for offset in offsets]
        return np.asarray(sum(pictures[1:], start=pictures[0]) / count, np.float32)

    def _paths(self) -> list[Path]:
        bar = [] if self.scene.occluder is None else [self.scene.occluder.path]
        return [*self.scene.faces, *bar]

    def _picture(self, t: float) -> Float32:
        poses = b"".join(path.pose(np.array([t])).tobytes() for path in self._paths())
        if self._last is None or self._last[0] != poses:
            self._last = poses, self._composed(t)
        return self._last[1]

    def _composed(self, t: float) -> Float32:
        picture = self._background.copy()
        for head, layers, path in zip(self.heads, self._layers, self.scene.faces, strict=True):
            _lay_over(picture, layers, self._maps(head, path, np.array([t]))[0])
        if self.scene.occluder is not None:
            left, top, right, bottom = np.rint(self._bars(np.array([t]))[0]).astype(int)
            left, top, right, bottom = max(left, 0), max(top, 0), min(right + 1, WIDTH), min(bottom + 1, HEIGHT)
            if left < right and top < bottom:
                picture[top:bottom, left:right] = self._bar[top:bottom, : right - left]
        return picture

    def _maps(self, head: Cutout, path: Path, times: Float64) -> Float64:
        centre, side = head.place
        return homographies(path.pose(times), centre, side)

    def _bars(self, times: Float64) -> Float64:
        """(T, 4) boxes of the occluder."""
        assert self.scene.occluder is not None
        pose, height = self.scene.occluder.path.pose(times), self.scene.occluder.height
        half = np.column_stack((pose[:, 2] / 2, np.full(len(pose), height / 2)))
        return np.column_stack((pose[:, :2] - half, pose[:, :2] + half))

    def _light(self, t: int) -> Float32:
        """(HEIGHT, WIDTH, 1) brightness at a frame."""
        least, greatest = self.scene.gain
        gain = (least + greatest) / 2 + (greatest - least) / 2 * math.cos(2 * math.pi * t / 90)
        angle = 2 * math.pi * t / 150
        x, y = np.linspace(-0.5, 0.5, WIDTH), np.linspace(-0.5, 0.5, HEIGHT)
        across = x[None, :] * math.cos(angle) + y[:, None] * math.sin(angle)
        return np.asarray(gain * (1 - self.scene.shade * (0.5 + across)), np.float32)[..., None]


def _lay_over(picture: Float32, layers: list[Float32], homography: Float64) -> None:
    """Lay a cutout over a picture, in place; if it is shrunk, from a smaller copy, so that nothing flickers."""
    level = 0
    while level + 1 < len(layers) and _scale(homography) * 2**level < 0.6:
        level += 1
    reduction = layers[0].shape[1] / layers[level].shape[1], layers[0].shape[0] / layers[level].shape[0]
    enlarge = np.array(  # pixel centres are whole numbers on both sides
        [[reduction[0], 0, (reduction[0] - 1) / 2], [0, reduction[1], (reduction[1] - 1) / 2], [0, 0, 1]]
    )
    h, w = layers[level].shape[:2]
    corners = mapped(homography @ enlarge, np.array([[0, 0], [w, 0], [0, h], [w, h]], np.float64))
    left, top = np.maximum(np.floor(corners.min(0)).astype(int) - 2, 0)
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 3, picture.shape[1::-1])
    if left >= right or top >= bottom:
        return
    shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]])
    size = int(right - left), int(bottom - top)
    laid = cv2.warpPerspective(layers[level], shift @ homography @ enlarge, size, flags=cv2.INTER_CUBIC)
    part = picture[top:bottom, left:right]
    part *= 1 - np.clip(laid[..., 3:], 0, 1)
    part += laid[..., :3]


def _scale(homography: Float64) -> float:
    """Approximate frame pixels per photograph pixel."""
    normal = homography / homography[2, 2]
    return float(np.sqrt(abs(np.linalg.det(normal[:2, :2]))))


def _cloth(rng: np.random.Generator, size: tuple[int, int], levels: tuple[float, float]) -> Float32:
    """A patterned surface (H, W, 3) without any face: noise of several scales, each channel within `levels`."""
    height, width = size
    total = np.zeros((height, width, 3), np.float32)
    for cells in (3, 7, 17, 40, 100):
        grid = rng.normal(0, 1 / math.sqrt(cells), (cells * height // width + 2, cells + 2, 3)).astype(np.float32)
        total += np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    low, high = total.min((0, 1)), total.max((0, 1))
    return np.asarray(levels[0] + (total - low) / (high - low) * (levels[1] - levels[0]), np.float32)
