"""PropNet: hourglasses whose landmark maps are propagated to boundaries, which say where the next one should look.

Source: Huang et al., "PropagationNet: Propagate Points to Curve to Learn Structure Information", CVPRW 2020. The
backbone is that of AWing (Wang et al., ICCV 2019), whose published 24.15 M parameters our blocks meet exactly; the
division of the remaining 12 M into four modules with a two-level hourglass each follows from the paper's parameters
and operations together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .blocks import FaceScore
from .hourglass import HPM, Blur, Hourglass, MaxBlur, Supervision, conv_bn_relu, with_coordinates

BOUNDARY_MAPS = 15  # section 3.1


def _pooling(blur: int) -> Callable[[int], nn.Module]:
    """Build the layer that halves the size: max pooling with a blur of this many cells, or, for 0, average pooling."""
    return partial(MaxBlur, size=blur) if blur else lambda _: nn.AvgPool2d(2)


class Stem(nn.Module):
    """Picture 3 x s x s -> w x s/4 x s/4; before every subsampling a filter of `blur` cells, 0 for none."""

    def __init__(self, width: int, blur: int) -> None:
        super().__init__()
        a, b = width // 4, width // 2
        self.conv = nn.Sequential(*conv_bn_relu(6, a, 7, 1 if blur else 2))
        self.blur = Blur(a, blur) if blur else nn.Identity()
        self.layers = nn.Sequential(HPM(a, b), _pooling(blur)(b), HPM(b, b), HPM(b, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blur(self.conv(with_coordinates(x)))  # w/4 x s/2 x s/2
        features: Tensor = self.layers(x)
        return features


class Stack(nn.Module):
    """One multi-view hourglass with coordinates: w x h x w -> features of the same size and the coarsest sums."""

    def __init__(self, width: int, blur: int) -> None:
        super().__init__()
        self.locate = nn.Conv2d(width + 3, width, 1)
        self.hourglass = Hourglass(width, 4, HPM, _pooling(blur))
        self.top = nn.Sequential(HPM(width, width), *conv_bn_relu(width, width, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sums = self.hourglass(self.locate(with_coordinates(x)))
        return self.top(sums[0]), sums[-1]


def _head(width: int, landmarks: int, hidden: int | None) -> nn.Module:
    """w x h x w -> one linear map per landmark, through a layer of `hidden` channels if asked."""
    if hidden is None:
        return nn.Conv2d(width, landmarks, 1)
    return nn.Sequential(*conv_bn_relu(width, hidden, 1), nn.Conv2d(hidden, landmarks, 1))


class Propagation(nn.Module):
    """Landmark maps -> boundary maps; from these an attention map in (0, 1) by which the features are multiplied.

    The paper's "two-stage hourglass" is one hourglass of two levels: two of one level each would cost 14 % more
    parameters and 80 % more operations, for which the paper's counts leave no room.
    """

    def __init__(self, landmarks: int, width: int, blur: int) -> None:
        super().__init__()
        self.boundaries = nn.Sequential(
            *conv_bn_relu(landmarks, BOUNDARY_MAPS, 7), nn.Conv2d(BOUNDARY_MAPS, BOUNDARY_MAPS, 7, padding=3)
        )
        self.join = nn.Conv2d(width + BOUNDARY_MAPS, width, 1)
        self.hourglass = Hourglass(width, 2, HPM, _pooling(blur))

    def forward(self, features: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        boundaries = self.boundaries(maps)  # 15 x s/4 x s/4
        attention = self.attend(features, boundaries)
        return features * attention, boundaries

    def attend(self, features: Tensor, boundaries: Tensor) -> Tensor:
        """The attention map, w x s/4 x s/4."""
        return torch.sigmoid(self.hourglass(self.join(torch.cat((features, boundaries), 1)))[0])


class PropNet(nn.Module):
    """Picture (F, 3, s, s), s a multiple of 64 -> landmark maps (F, N, s/4, s/4).

    36,139,892 parameters with 98 landmarks (paper: 36.30 M). The last propagation is there for its supervision
    alone: it changes no landmark, and the deployed network leaves it out. `propagation` and `antialias` can be turned
    off for the ablations of the paper's Tables 4 and 6; `blur` is the size of Table 6's filters, 2, 3 or 5. A narrow
    network has fewer features than landmarks; `head` gives it the channels that so many different maps need.
    """

    def __init__(
        self,
        landmarks: int = 68,
        stacks: int = 4,
        width: int = 256,
        *,
        propagation: bool = True,
        antialias: bool = True,
        blur: int = 3,
        head: int | None = None,
        face_score: bool = False,
    ) -> None:
        super().__init__()
        blur = blur if antialias else 0
        self.stem = Stem(width, blur)
        self.stacks = nn.ModuleList(Stack(width, blur) for _ in range(stacks))
        self.heads = nn.ModuleList(_head(width, landmarks, head) for _ in range(stacks))
        self.propagations = nn.ModuleList(
            Propagation(landmarks, width, blur) for _ in range(stacks if propagation else 0)
        )
        self.from_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.from_maps = nn.ModuleList(nn.Conv2d(landmarks, width, 1) for _ in range(stacks - 1))
        self.score = FaceScore(width) if face_score else None

    def forward(self, x: Tensor) -> Supervision | tuple[Tensor, ...]:
        x = self.stem(x)  # w x s/4 x s/4
        landmarks: list[Tensor] = []
        boundaries: list[Tensor] = []
        for i, (stack, head) in enumerate(zip(self.stacks, self.heads, strict=True)):
            last = i == len(self.stacks) - 1
            features, coarsest = stack(x)
            landmarks.append(head(features))  # N x s/4 x s/4, linear
            if self.propagations and (self.training or not last):
                features, lines = self.propagations[i](features, landmarks[-1])
                boundaries.append(lines)
            if not last:
                x = x + self.from_features[i](features) + self.from_maps[i](landmarks[-1])
        logits = None if self.score is None else self.score(coarsest)
        if self.training:
            return Supervision(tuple(landmarks), tuple(boundaries), logits=logits)
        return (landmarks[-1],) if logits is None else (landmarks[-1], logits)
