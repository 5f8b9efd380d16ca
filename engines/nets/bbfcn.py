"""BB-FCN: a backbone finds all landmark types coarsely, one small branch per type places them finely.

Source: Liu et al., "Facial Landmark Localization in the Wild by Backbone-Branches Representation Learning",
sections III-A (backbone), III-B (branches) and IV-C (the regression baseline).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec import DISC

WINDOW = 24  # pixels of the window that a branch looks at


def _conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups), nn.ReLU(inplace=True)]


class Doubling(nn.ConvTranspose2d):
    """A 2x2 deconvolution of stride 2 and its ReLU, computed as four 1x1 convolutions laid out in space.

    The same sums in an order that runtimes do fast and can quantise: no two outputs overlap.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert output_size is None
        assert self.bias is not None
        kernels = self.weight.permute(1, 2, 3, 0).flatten(0, 2)[..., None, None]  # 4 outputs x inputs x 1 x 1
        return F.pixel_shuffle(F.relu(F.conv2d(x, kernels, self.bias.repeat_interleave(4))), 2)


def _encoder() -> list[nn.Module]:
    """The six convolutions that the backbone and the regression baseline share; 40 x s/4 x s/4."""
    return [
        *_conv(3, 20, 5),
        *_conv(20, 20, 5),
        nn.MaxPool2d(2),
        *_conv(20, 30, 5),
        *_conv(30, 30, 5),
        nn.MaxPool2d(2),
        *_conv(30, 40, 5),
        *_conv(40, 40, 5),
    ]


class Backbone(nn.Module):
    """Picture (B, 3, h, w), h and w divisible by 4 -> one response map per landmark type (B, K, h, w)."""

    def __init__(self, landmarks: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_encoder(),
            Doubling(40, 30),  # 30 x s/2 x s/2
            nn.Identity(),
            *_conv(30, 30, 5),
            Doubling(30, 15),  # 15 x s x s
            nn.Identity(),
            nn.Conv2d(15, landmarks, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.layers(x)
        return maps


class Branches(nn.Module):
    """K branches as one grouped network: RGB and coarse map of each (B, K, 4, h, w) -> (B, K, h, w)."""

    def __init__(self, landmarks: int = 5) -> None:
        super().__init__()
        self.landmarks = landmarks
        layers = _conv(4 * landmarks, 5 * landmarks, 5, landmarks)
        for _ in range(3):
            layers += _conv(5 * landmarks, 5 * landmarks, 5, landmarks)
        self.layers = nn.Sequential(*layers, nn.Conv2d(5 * landmarks, landmarks, 1, groups=landmarks))

    def forward(self, planes: Tensor) -> Tensor:
        maps: Tensor = self.layers(planes.flatten(1, 2))
        return maps


class BBFCN(nn.Module):
    """Face crops (B, 3, 64, 64) -> coarse maps, fine maps in windows, and where the windows lie.

    Gives coarse (B, K, 32, 32); fine (B, K, 24, 24), each branch's answer on its window of the crop; corner
    (B, K, 2), x and y of the windows' first pixels in the crop. Beyond the crop a window is grey.
    """

    def __init__(self, landmarks: int = 5) -> None:
        super().__init__()
        self.backbone = Backbone(landmarks)
        self.branches = Branches(landmarks)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        coarse = self.backbone(F.avg_pool2d(x, 2))
        enlarged = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        corner = window_corners(coarse)
        rgb = x[:, None].expand(-1, coarse.shape[1], -1, -1, -1)
        fine = self.branches(cut_windows(torch.cat((rgb, enlarged[:, :, None]), 2), corner))
        return coarse, fine, corner.float()


def window_corners(coarse: Tensor) -> Tensor:
    """First pixels (B, K, 2) of the windows round the coarse places Ave{map, 13}, in pixels of twice the size."""
    width = coarse.shape[-1]
    highest = coarse.flatten(2).topk(DISC, 2).indices
    cell = torch.stack((highest % width, highest // width), -1).float().mean(2)
    # pixel 2 cell + 0.5 is the middle of the window, WINDOW / 2 - 0.5 behind its corner
    return torch.round(2 * cell + 1 - WINDOW // 2).long()


def cut_windows(planes: Tensor, corner: Tensor, beyond: float = 0.0) -> Tensor:
    """Cut window k from planes k: (B, K, C, h, w) -> (B, K, C, 24, 24), `beyond` outside the planes.

    Corners (B, K, 2) may be up to half a window outside.
    """
    width = planes.shape[-1] + WINDOW
    half = WINDOW // 2
    padded = F.pad(planes, (half, half, half, half), value=beyond).flatten(3)  # B, K, C, pixels
    steps = torch.arange(WINDOW, device=planes.device) + half
    rows, columns = corner[..., 1, None] + steps, corner[..., 0, None] + steps  # B, K, 24
    pixel = (rows[..., :, None] * width + columns[..., None, :]).flatten(2)  # B, K, 24 * 24
    cut = padded.gather(3, pixel[:, :, None].expand(-1, -1, planes.shape[2], -1))
    return cut.view(*cut.shape[:3], WINDOW, WINDOW)


class RegressionBaseline(nn.Module):
    """The paper's comparison: (B, 3, h, w) -> (B, 3K, h/4, w/4), a probability and an offset per type and cell."""

    def __init__(self, landmarks: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_encoder(),
            nn.ZeroPad2d((0, 1, 0, 1)),  # even kernels keep the size only with one side more
            nn.Conv2d(40, 30, 2),
            nn.ReLU(inplace=True),
            nn.ZeroPad2d((1, 2, 1, 2)),
            nn.Conv2d(30, 30, 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(30, 3 * landmarks, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        cells: Tensor = self.layers(x)
        return cells
