"""BB-FCN: a backbone finds all landmark types coarsely, one small branch per type places them finely.

Source: Liu et al., "Facial Landmark Localization in the Wild by Backbone-Branches Representation Learning",
sections III-A (backbone), III-B (branches), III-E (initialisation) and IV-C (the regression baseline).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec import COARSE, disc_pixels
from .blocks import FaceScore

WINDOW = 24  # pixels of the window that a branch looks at
ENCODED = 40  # output channels of the encoder


def _conv(inputs: int, outputs: int, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 5, padding=2, groups=groups), nn.ReLU(inplace=True)]


class Doubling(nn.ConvTranspose2d):
    """A 2x2 deconvolution of stride 2 and its ReLU, computed as four 1x1 convolutions laid out in space.

    It computes the same sums in an order that runtimes run fast and can quantise: no two outputs overlap.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert output_size is None
        return F.pixel_shuffle(F.relu(F.conv2d(x, *self.kernels())), 2)

    def kernels(self) -> tuple[Tensor, Tensor]:
        """Weights (4 outputs, inputs, 1, 1) and biases of the convolutions, in the order of `pixel_shuffle`."""
        assert self.bias is not None
        weights = self.weight.permute(1, 2, 3, 0).flatten(0, 2)[..., None, None]
        return weights, self.bias.repeat_interleave(4)


def _encoder() -> list[nn.Module]:
    """The six convolutions that the backbone and the regression baseline share; 40 x s/4 x s/4."""
    return [
        *_conv(3, 20),
        *_conv(20, 20),
        nn.MaxPool2d(2),
        *_conv(20, 30),
        *_conv(30, 30),
        nn.MaxPool2d(2),
        *_conv(30, ENCODED),
        *_conv(ENCODED, ENCODED),
    ]


def _start(net: nn.Module, std: float) -> None:
    """Set random weights of this deviation and zero biases; std 0 keeps the size of signals (He et al., ICCV 2015)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = module.weight.numel() / module.out_channels
            if isinstance(module, nn.ConvTranspose2d):
                fan_in = module.in_channels  # its 2x2 outputs do not overlap
            nn.init.normal_(module.weight, std=std or (2 / fan_in) ** 0.5)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


class Backbone(nn.Module):
    """Picture (B, 3, h, w), h and w divisible by 4 -> one response map per landmark type (B, K, h, w)."""

    def __init__(self, landmarks: int = 5) -> None:
        super().__init__()
        encoder = _encoder()
        self.encoder = len(encoder)  # layers
        self.layers = nn.Sequential(
            *encoder,
            Doubling(ENCODED, 30),  # 30 x s/2 x s/2
            nn.Identity(),  # takes the place of a former ReLU, so that stored weights keep their numbers
            *_conv(30, 30),
            Doubling(30, 15),  # 15 x s x s
            nn.Identity(),  # as above
            nn.Conv2d(15, landmarks, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.with_features(x)[1]

    def with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's features, (B, 40, h/4, w/4), and the maps."""
        features: Tensor = self.layers[: self.encoder](x)
        maps: Tensor = self.layers[self.encoder :](features)
        return features, maps


class Branches(nn.Module):
    """K branches as one grouped network: RGB and coarse map of each (B, K, 4, h, w) -> (B, K, h, w)."""

    def __init__(self, landmarks: int = 5) -> None:
        super().__init__()
        self.landmarks = landmarks
        layers = _conv(4 * landmarks, 5 * landmarks, landmarks)
        for _ in range(3):
            layers += _conv(5 * landmarks, 5 * landmarks, landmarks)
        self.layers = nn.Sequential(*layers, nn.Conv2d(5 * landmarks, landmarks, 1, groups=landmarks))

    def forward(self, planes: Tensor) -> Tensor:
        maps: Tensor = self.layers(planes.flatten(1, 2))
        return maps


class BBFCN(nn.Module):
    """Face crops (B, 3, s, s), s a multiple of 8 -> coarse maps, fine maps in windows, and where the windows lie.

    Returns coarse (B, K, s/2, s/2); fine (B, K, 24, 24), each branch's response in its window of the crop; corner
    (B, K, 2), x and y of the windows' first pixels in the crop; and, with `face_score`, logits (B, 2). Beyond the crop
    a window is grey. The paper's s is 64 for five landmarks; for more of them its backbone sees 64 pixels, half of
    128. No gradient flows from the branches into the backbone: the paper trains one after the other.

    Without `branches` it returns only the coarse maps and logits: the backbone by itself, for the first of the two
    training runs. `init_std` is the standard deviation of the initial weights: 0.01 in the paper, 0 for He's. From
    0.01, and from torch's own initial weights, SGD and AdamW make no progress for hundreds of steps.
    """

    def __init__(
        self, landmarks: int = 5, *, branches: bool = True, face_score: bool = False, init_std: float = 0.0
    ) -> None:
        super().__init__()
        self.backbone = Backbone(landmarks)
        self.branches = Branches(landmarks) if branches else None
        _start(self, init_std)
        self.score = FaceScore(ENCODED) if face_score else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features, coarse = self.backbone.with_features(F.avg_pool2d(x, 2))
        logits = () if self.score is None else (self.score(features),)
        if self.branches is None:
            return coarse, *logits
        seen = coarse.detach()
        enlarged = F.interpolate(seen, scale_factor=2.0, mode="bilinear", align_corners=False)
        corner = window_corners(seen)
        fine = self.branches(torch.cat((cut_windows(x[:, None], corner), cut_windows(enlarged[:, :, None], corner)), 2))
        return coarse, fine, corner.float(), *logits


def mean_of_highest(maps: Tensor, pixels: int) -> Tensor:
    """Mean place of the `pixels` highest responses of each map, Ave{M, n}: (B, K, h, w) -> (B, K, 2), x and y."""
    width = maps.shape[-1]
    highest = maps.flatten(2).topk(pixels, 2).indices
    return torch.stack((highest % width, highest // width), -1).float().mean(2)


def window_corners(coarse: Tensor) -> Tensor:
    """First pixels (B, K, 2) of the windows round the coarse places Ave{map, n}, in pixels of twice the size."""
    cell = mean_of_highest(coarse, disc_pixels(COARSE, coarse.shape[-1]))
    # pixel 2 cell + 0.5 is the middle of the window, WINDOW / 2 - 0.5 behind its corner
    return torch.round(2 * cell + 1 - WINDOW // 2).long()


def cut_windows(planes: Tensor, corner: Tensor, beyond: float = 0.0) -> Tensor:
    """Cut window k from planes k: (B, K, C, h, w) -> (B, K, C, 24, 24), `beyond` outside the planes.

    Planes (B, 1, C, h, w) are shared by all windows. Corners (B, K, 2) may be up to half a window outside.
    """
    width = planes.shape[-1] + WINDOW
    half = WINDOW // 2
    padded = F.pad(planes, (half, half, half, half), value=beyond).flatten(3)  # B, K, C, pixels
    padded = padded.expand(-1, corner.shape[1], -1, -1)
    steps = torch.arange(WINDOW, device=planes.device) + half
    rows, columns = corner[..., 1, None] + steps, corner[..., 0, None] + steps  # B, K, 24
    pixel = (rows[..., :, None] * width + columns[..., None, :]).flatten(2)  # B, K, 24 * 24
    cut = padded.gather(3, pixel[:, :, None].expand(-1, -1, planes.shape[2], -1))
    return cut.view(*cut.shape[:3], WINDOW, WINDOW)


class RegressionBaseline(nn.Module):
    """The paper's regression network, for comparison: (B, 3, h, w) -> (B, 3K, h/4, w/4).

    It returns, for each landmark type and each cell of 4 x 4 pixels, the probability that the landmark is there and its
    offset from the cell's centre, x and y in cells; with `face_score` also logits (B, 2).
    """

    def __init__(self, landmarks: int = 5, *, face_score: bool = False, init_std: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_encoder())
        self.head = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)),  # even kernels keep the size only with more padding on one side
            nn.Conv2d(ENCODED, 30, 2),
            nn.ReLU(inplace=True),
            nn.ZeroPad2d((1, 2, 1, 2)),
            nn.Conv2d(30, 30, 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(30, 3 * landmarks, 1),
        )
        _start(self, init_std)
        self.score = FaceScore(ENCODED) if face_score else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder(x)
        cells = self.head(features)
        return (cells,) if self.score is None else (cells, self.score(features))
