"""TAB: stacked hourglasses predict the facial boundaries, a U-Net turns boundary maps into landmark maps.

Source: the TAB paper, sections 3.1 (SCBE, self-calibrated boundary estimation) and 3.2 (BALT, boundary-aware
landmark transform). The paper states two model sizes and no widths: hourglasses and stem follow from the sizes and
the text, the widths of the U-Net are our choice, which meets both sizes to 0.3 %.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FaceScore
from .encoders import Bottleneck
from .hourglass import HPM, Hourglass, Supervision, conv_bn_relu

BOUNDARY_MAPS = 16  # 15 lines and their union
SCALES = 4  # of SCBE's features: of the boundary maps' size, and a half, a quarter and an eighth of it
Stem = Literal["vgg", "resnet", "hourglass"]


def vgg_stem(width: int) -> nn.Sequential:
    """VGG16-bn up to conv3_3; at width 256 the state dict is torchvision's `vgg16_bn().features[:23]`."""
    a, b = width // 4, width // 2
    return nn.Sequential(
        *conv_bn_relu(3, a, 3),
        *conv_bn_relu(a, a, 3),  # w/4 x s x s
        nn.MaxPool2d(2),
        *conv_bn_relu(a, b, 3),
        *conv_bn_relu(b, b, 3),  # w/2 x s/2 x s/2
        nn.MaxPool2d(2),
        *conv_bn_relu(b, width, 3),
        *conv_bn_relu(width, width, 3),
        *conv_bn_relu(width, width, 3),  # w x s/4 x s/4
    )


class ResNetStem(nn.Module):
    """ResNet-50 up to layer1, with torchvision's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 4, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 4)
        blocks = [Bottleneck(width // 4, width), Bottleneck(width, width), Bottleneck(width, width)]
        self.layer1 = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # w/4 x s/2 x s/2
        features: Tensor = self.layer1(F.max_pool2d(x, 3, 2, padding=1))  # w x s/4 x s/4
        return features


def hourglass_stem(width: int) -> nn.Sequential:
    """The original stem of stacked hourglasses of HPM blocks; the baseline of the paper's Table 8."""
    return nn.Sequential(
        *conv_bn_relu(3, width // 4, 7, 2),  # w/4 x s/2 x s/2
        HPM(width // 4, width // 2),
        nn.AvgPool2d(2),
        HPM(width // 2, width // 2),
        HPM(width // 2, width),  # w x s/4 x s/4
    )


class SCBE(nn.Module):
    """Picture (F, 3, s, s) -> boundary maps (F, 16, s/4, s/4) of every stack, and the last stack's features.

    The features are the block before the last prediction and the last hourglass's own sums at half, a quarter and
    an eighth of its size: w x s/4, w x s/8, w x s/16, w x s/32.
    """

    def __init__(self, stacks: int, width: int, stem: Stem) -> None:
        super().__init__()
        stems = {"vgg": vgg_stem, "resnet": ResNetStem, "hourglass": hourglass_stem}
        if stem not in stems:
            raise ValueError(f"unknown TAB stem: wanted one of {', '.join(stems)}, got {stem!r}")
        self.hourglasses = nn.ModuleList(Hourglass(width, 4, HPM, lambda _: nn.AvgPool2d(2)) for _ in range(stacks))
        self.tops = nn.ModuleList(
            nn.Sequential(HPM(width, width), *conv_bn_relu(width, width, 1)) for _ in range(stacks)
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, BOUNDARY_MAPS, 1) for _ in range(stacks))
        self.from_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.from_maps = nn.ModuleList(nn.Conv2d(BOUNDARY_MAPS, width, 1) for _ in range(stacks - 1))
        self.apply(_narrow_normal)  # not the stem, which is loaded or keeps torch's initial weights
        self.stem = stems[stem](width)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        x = self.stem(x)  # w x s/4 x s/4
        maps: list[Tensor] = []
        for i, hourglass in enumerate(self.hourglasses):
            sums = hourglass(x)
            top = self.tops[i](sums[0])
            maps.append(self.heads[i](top))  # 16 x s/4 x s/4, linear
            if i < len(self.hourglasses) - 1:
                x = x + self.from_features[i](top) + self.from_maps[i](maps[-1])
        return tuple(maps), [top, *sums[1:]]


def _narrow_normal(module: nn.Module) -> None:
    """Section 4.3: normal distribution with mean 0 and standard deviation 0.001 for the stacked hourglass."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.001)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn_relu(inputs, outputs, 3), *conv_bn_relu(outputs, outputs, 3))


class BALT(nn.Module):
    """Boundary maps (F, 16, h, w) and SCBE's features -> landmark maps (F, N, h, w), linear.

    `fusion` is the paper's t: each level of the encoder receives the features of its own size and of t - 1 finer ones;
    with 0, none. Eq. 4 adds max-pooled T(B_j) of finer levels to level i. The widths of the levels differ, so T must be
    level i's own layer, applied to every B_j and pooled i - j times: no layer depends on t, and the parameters meet the
    paper's model size; one T per pair of levels would add 1.2 %. Only the `scales` finest features are used: 1 is the
    paper's "ss" (Table 9), the block before the boundary maps alone; no layer depends on it either.

    `finest` widens the levels of full and half size, by default a quarter and a half of `width`: the landmark maps are
    linear combinations of the finest level's channels, of which a narrow network has too few for its landmarks.
    """

    def __init__(
        self, landmarks: int, width: int, fusion: int, finest: int | None = None, scales: int = SCALES
    ) -> None:
        super().__init__()
        if not 0 <= fusion <= 3:
            raise ValueError(f"TAB fusion: wanted 0, 1, 2 or 3, got {fusion}")
        if not 1 <= scales <= SCALES:
            raise ValueError(f"TAB scales: wanted 1 to {SCALES}, got {scales}")
        self.fusion, self.scales = fusion, scales
        a = finest or width // 4
        b = max(a, width // 2)
        self.downs = nn.ModuleList((_double(BOUNDARY_MAPS, a), _double(a, b), _double(b, width), _double(width, width)))
        self.transitions = nn.ModuleList(nn.Conv2d(width, c, 1) for c in (a, b, width, width))
        self.bottom = _double(width, 2 * width)
        self.ups = nn.ModuleList(
            (_double(3 * width, width), _double(2 * width, b), _double(2 * b, a), _double(2 * a, a))
        )
        self.head = nn.Conv2d(a, landmarks, 1)

    def forward(self, boundaries: Tensor, features: list[Tensor]) -> Tensor:
        fused = []
        x = boundaries
        for i, (down, transition) in enumerate(zip(self.downs, self.transitions, strict=True)):
            x = down(x if i == 0 else F.max_pool2d(x, 2))  # w/4 x h, w/2 x h/2, w x h/4, w x h/8
            for j in range(max(0, i - self.fusion + 1), min(i + 1, self.scales) if self.fusion else 0):
                heard = transition(features[j])
                x = x + (F.max_pool2d(heard, 2 ** (i - j)) if j < i else heard)
            fused.append(x)
        x = self.bottom(F.max_pool2d(x, 2))  # 2w x h/16
        for up, skip in zip(self.ups, reversed(fused), strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = up(torch.cat((skip, x), 1))  # w x h/8, w/2 x h/4, w/4 x h/2, w/4 x h
        maps: Tensor = self.head(x)
        return maps


class TAB(nn.Module):
    """Picture (F, 3, s, s), s a multiple of 64 -> landmark maps (F, N, s/4, s/4).

    22,787,714 parameters with 98 landmarks, 86.93 MiB (paper: 86.9 MB); 16,957,554 with one stack (64.69; 64.5).
    """

    def __init__(
        self,
        landmarks: int = 68,
        stacks: int = 2,
        width: int = 256,
        stem: Stem = "vgg",
        fusion: int = 2,
        *,
        scales: int = SCALES,
        finest: int | None = None,
        face_score: bool = False,
    ) -> None:
        super().__init__()
        self.scbe = SCBE(stacks, width, stem)
        self.balt = BALT(landmarks, width, fusion, finest, scales)
        self.score = FaceScore(width) if face_score else None
        self._frozen = False

    def freeze_boundaries(self) -> None:
        """Begin the paper's second stage: SCBE keeps its parameters and its batch statistics from here on."""
        self._frozen = True
        self.scbe.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> TAB:
        super().train(mode)
        if self._frozen:
            self.scbe.eval()
        return self

    def forward(self, x: Tensor) -> Supervision | tuple[Tensor, ...]:
        boundaries, features = self.scbe(x)
        maps = self.balt(boundaries[-1], features)  # N x s/4 x s/4
        logits = None if self.score is None else self.score(features[-1])
        if self.training:
            return Supervision((maps,), boundaries, logits=logits)
        return (maps,) if logits is None else (maps, logits)
