"""SPAN (SCPAN): hourglasses with a pose attention mask; landmark heat maps, boundaries and an offset field.

Source: Wan et al., "Robust and Precise Facial Landmark Detection by Self-Calibrated Pose Attention Network", IEEE
Transactions on Cybernetics. Four stages, unshared weights, bottlenecks of 256 channels and about 17 of them per stage
are certain; the depth of the hourglass, RB2's second residual and the width of the last deconvolution are our choices,
which meet the paper's three parameter counts to 0.6 %.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import FaceScore
from .hourglass import Hourglass, Residual, Supervision, conv_bn_relu

BOUNDARY_MAPS = 15


def _max_pool(_: int) -> nn.Module:
    return nn.MaxPool2d(2)


def _hourglass(width: int) -> Hourglass:
    return Hourglass(width, 5, Residual, _max_pool)


def _top(width: int) -> nn.Sequential:
    return nn.Sequential(Residual(width, width), *conv_bn_relu(width, width, 1))


def _stem(width: int) -> nn.Sequential:
    """Picture 3 x s x s -> w x s/4 x s/4."""
    a, b = width // 4, width // 2
    return nn.Sequential(*conv_bn_relu(3, a, 7, 2), Residual(a, b), nn.MaxPool2d(2), Residual(b, b), Residual(b, width))


def _final_head(width: int, outputs: int, middle: int | None = None) -> nn.Sequential:
    """w x s/4 x s/4 -> outputs x s/2 x s/2."""
    middle = middle or width // 2
    return nn.Sequential(
        nn.ConvTranspose2d(width, middle, 4, 2, padding=1),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, outputs, 1),
    )


def spatial_softmax(logits: Tensor) -> Tensor:
    """Turn each map of (F, K, h, w) into a probability over its cells."""
    return logits.flatten(2).softmax(2).view_as(logits)


class SCPA(nn.Module):
    """An hourglass whose own landmark and boundary maps say where the next stage should look (Eqs. 9 and 10)."""

    def __init__(self, landmarks: int, width: int, *, attention: bool = True) -> None:
        super().__init__()
        maps = landmarks + BOUNDARY_MAPS
        self.hourglass = _hourglass(width)
        self.rb1 = nn.Sequential(_top(width), nn.Conv2d(width, maps, 1))
        self.rb2 = nn.Sequential(Residual(maps, width), Residual(width, width)) if attention else None

    def forward(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next stage's input (F, w, h, w) and logits (F, N + 15, h, w)."""
        q = self.hourglass(p)[0]
        logits = self.rb1(q)
        return q if self.rb2 is None else torch.sigmoid(self.rb2(logits)) * q + q, logits


class SPAN(nn.Module):
    """Picture (F, 3, s, s), s a multiple of 128 -> heat maps (F, N, s/2, s/2) and field (F, 15, 2, s/2, s/2).

    In eval mode each heat map is a probability over its cells, as Eq. 5 needs it; in training mode it is the logits
    of one. 17,093,212 parameters with 68 landmarks (paper: 16.99 M), 8,767,850 with two stacks (8.73 M). With 19
    landmarks they are 16,992,370 and 8,730,022, the paper's figures to the last printed digit.

    The field points to "the closest landmark in this boundary", as the paper says. Where neighbours are closer to each
    other than the reach of Eq. 5 (dense markups, small maps), part of the heat round a landmark then points to another
    one. `field_per_landmark` gives each landmark its own field, (F, N, 2, s/2, s/2), instead: 17,106,886 parameters.
    `head` is the width of the last deconvolution; by default it is half of `width`, which is little for a narrow
    network's maps. `attention` and `field` can be turned off for the ablations of the paper's Table I: without
    attention no stage says where the next one should look (M = 0 in Eq. 10), and without the offset field the heat maps
    (F, N, s/2, s/2) are the only output.
    """

    def __init__(
        self,
        landmarks: int = 68,
        stacks: int = 4,
        width: int = 256,
        *,
        attention: bool = True,
        field: bool = True,
        field_per_landmark: bool = False,
        head: int | None = None,
        face_score: bool = False,
    ) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.fields = 0 if not field else landmarks if field_per_landmark else BOUNDARY_MAPS
        self.stem = _stem(width)
        self.stages = nn.ModuleList(SCPA(landmarks, width, attention=attention) for _ in range(stacks - 1))
        self.hourglass = _hourglass(width)
        self.top = _top(width)
        self.head = _final_head(width, landmarks + BOUNDARY_MAPS + 2 * self.fields, head)
        self.score = FaceScore(width) if face_score else None

    def forward(self, x: Tensor) -> Supervision | tuple[Tensor, ...]:
        x = self.stem(x)  # w x s/4 x s/4
        logits: list[Tensor] = []
        for stage in self.stages:
            x, maps = stage(x)
            logits.append(maps)  # N + 15 x s/4 x s/4
        sums = self.hourglass(x)
        final = self.head(self.top(sums[0]))  # N + 15 + 2 B x s/2 x s/2
        n = self.landmarks
        field = final[:, n + BOUNDARY_MAPS :].unflatten(1, (self.fields, 2)) if self.fields else None
        face = None if self.score is None else self.score(sums[-1])
        if self.training:
            logits.append(final[:, : n + BOUNDARY_MAPS])
            return Supervision(tuple(m[:, :n] for m in logits), tuple(m[:, n:] for m in logits), field, face)
        return tuple(part for part in (spatial_softmax(final[:, :n]), field, face) if part is not None)


class SHN(nn.Module):
    """The paper's baseline: the same stem, hourglasses and head, landmark maps alone, no attention.

    16,042,000 parameters with 68 landmarks and four stacks (paper: 16.05 M). Its outputs are SPAN's without the field.
    """

    def __init__(self, landmarks: int = 68, stacks: int = 4, width: int = 256, *, face_score: bool = False) -> None:
        super().__init__()
        self.stem = _stem(width)
        self.hourglasses = nn.ModuleList(_hourglass(width) for _ in range(stacks))
        self.tops = nn.ModuleList(_top(width) for _ in range(stacks))
        self.heads = nn.ModuleList(nn.Conv2d(width, landmarks, 1) for _ in range(stacks - 1))
        self.from_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.from_maps = nn.ModuleList(nn.Conv2d(landmarks, width, 1) for _ in range(stacks - 1))
        self.head = _final_head(width, landmarks)
        self.score = FaceScore(width) if face_score else None

    def forward(self, x: Tensor) -> Supervision | tuple[Tensor, ...]:
        x = self.stem(x)  # w x s/4 x s/4
        logits: list[Tensor] = []
        for i, hourglass in enumerate(self.hourglasses):
            sums = hourglass(x)
            top = self.tops[i](sums[0])
            if i < len(self.hourglasses) - 1:
                logits.append(self.heads[i](top))  # N x s/4 x s/4
                x = x + self.from_features[i](top) + self.from_maps[i](logits[-1])
        logits.append(self.head(top))  # N x s/2 x s/2
        face = None if self.score is None else self.score(sums[-1])
        if self.training:
            return Supervision(tuple(logits), (), logits=face)
        maps = spatial_softmax(logits[-1])
        return (maps,) if face is None else (maps, face)
