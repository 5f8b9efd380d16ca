"""BB-FCN as an alignment network, and the regression network that its paper compares with.

Both learn from all pixels of a landmark and as many others, later in the run from those with the highest responses. For
pictures without a face all responses must be 0.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...engines.codec import COARSE, FINE, disc_pixels, disc_radius
from ...engines.nets import FromBytes
from ...engines.nets.bbfcn import BBFCN, WINDOW, mean_of_highest
from ..config import Config
from ..detection.discs import disc_maps, selective_l2
from .losses import as_distribution, divergence_of_maps, highest_cells
from .maps import to_cells
from .objective import Alignment, Item, Labels, Terms, part

HALF, CELL = 2, 4  # crop pixels per cell of BB-FCN's coarse maps and of the regression network's


class SelectiveAlignment(Alignment):
    """Common part of both objectives; a subclass defines the loss on faces.

    Attributes:
        stride: crop pixels per cell of the maps over the whole crop.
        hardest: whether the pixels with the highest responses are taken as negatives.
    """

    stride: int
    hardest = True  # in pairs (`consistency`), whose items do not set it

    def item(self, index: int, progress: float) -> Item:
        """See `Alignment`; the last value is whether the pixels with the highest responses are taken as negatives."""
        return *super().item(index, progress), np.array(progress >= self.config.discs.random_share)

    def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """See `Alignment`."""
        *pictures, hardest = batch
        self.hardest = bool(hardest.any())
        return super().loss(net, pictures)

    def logits(self, answer: tuple[Tensor, ...]) -> Tensor | None:
        """See `Alignment`."""
        return answer[-1] if answer[-1].ndim == 2 else None

    def terms(self, answer: Any, labels: Labels, is_face: Tensor) -> Terms:
        """See `Alignment`; a picture without a face (these come last) weighs as much as one with a face."""
        terms, faces = super().terms(answer, labels, is_face), int(is_face.sum())
        others = len(is_face) - faces
        if others:
            heard = self.responses(part(answer, faces, len(is_face)))
            terms["silence"] = (others / max(faces, 1), torch.stack([self.selected(m) for m in heard]).sum())
        return terms

    @abstractmethod
    def responses(self, answer: tuple[Tensor, ...]) -> list[Tensor]:
        """The maps (F, N, h, w) of an output that are 1 on landmarks, those over the whole crop first."""

    def selected(self, maps: Tensor, targets: Tensor | None = None) -> Tensor:
        """Selective L2 of maps (F, N, h, w) against targets of their size, or against 0."""
        wanted = torch.zeros_like(maps, dtype=torch.uint8) if targets is None else targets
        return selective_l2(maps.float(), wanted, hardest=self.hardest)

    def divergence(self, alpha: tuple[Tensor, ...], beta: tuple[Tensor, ...], matrices: Tensor) -> Tensor:
        """See `Alignment`: the positive part of the maps over the whole crop, as distributions."""
        calm, wild = (as_distribution(self.responses(answer)[0].float()) for answer in (alpha, beta))
        mirror = torch.tensor(self.markup.mirror, device=matrices.device)
        return divergence_of_maps(calm, wild, matrices, mirror, self.stride)


class DiscAlignment(SelectiveAlignment):
    """BB-FCN's objective: discs in the backbone's maps and, if it has branches, in theirs.

    With `maps.frozen` this is the paper's second run, of the branches alone. The first is a run without
    `network.options.branches`. In a run with branches and nothing frozen both learn together.
    """

    stride = HALF

    def __init__(self, config: Config, data: Path) -> None:
        """See `Alignment`."""
        super().__init__(config, data)
        side = config.schedule.sizes[-1][1]
        self.codec = {"kind": "discs-in-windows", "pixels": disc_pixels(FINE, side)}
        if not config.network.options.get("branches", True):
            self.codec = {"kind": "discs-in-maps", "stride": HALF, "pixels": disc_pixels(COARSE, side // HALF)}

    def build(self) -> FromBytes:
        """See `Alignment`."""
        net = super().build()
        if self.config.maps.frozen:
            assert isinstance(net.net, BBFCN)
            net.net.backbone.requires_grad_(False)
        return net

    def responses(self, answer: tuple[Tensor, ...]) -> list[Tensor]:
        """Coarse maps, and fine ones if there are branches."""
        return [maps for maps in answer[:2] if maps.ndim == 4]

    def landmark_terms(self, answer: tuple[Tensor, ...], labels: Labels) -> tuple[Tensor, Terms]:
        """See `Alignment`."""
        coarse, width = answer[0], answer[0].shape[-1]
        wanted = _discs(to_cells(labels.xy, HALF), width, disc_radius(COARSE, width))
        terms: Terms = {"coarse": (0.0 if self.config.maps.frozen else 1.0, self.selected(coarse, wanted))}
        if len(self.responses(answer)) == 1:
            return HALF * (mean_of_highest(coarse, disc_pixels(COARSE, width)) + 0.5) - 0.5, terms
        fine, corner = answer[1], answer[2]
        side = HALF * width
        terms["fine"] = (1.0, self.selected(fine, _discs(labels.xy - corner, WINDOW, disc_radius(FINE, side))))
        return mean_of_highest(fine, disc_pixels(FINE, side)) + corner, terms


class CellAlignment(SelectiveAlignment):
    """The regression network's objective: whether a landmark is in a cell, and where in it (section IV-C)."""

    stride = CELL

    def __init__(self, config: Config, data: Path) -> None:
        """See `Alignment`."""
        super().__init__(config, data)
        self.codec = {"kind": "cells", "stride": CELL}

    def responses(self, answer: tuple[Tensor, ...]) -> list[Tensor]:
        """The probability that each landmark is in each cell."""
        return [answer[0][:, ::3]]

    def landmark_terms(self, answer: tuple[Tensor, ...], labels: Labels) -> tuple[Tensor, Terms]:
        """See `Alignment`; a landmark's offset within its cell is trained in that cell alone."""
        (chance,), ways = self.responses(answer), torch.stack((answer[0][:, 1::3], answer[0][:, 2::3]), 2).float()
        exact = to_cells(labels.xy, CELL)
        cell = exact.round().long()
        size = torch.tensor([chance.shape[3], chance.shape[2]], device=cell.device)
        inside = ((cell >= 0) & (cell < size)).all(-1)  # F, N
        wanted = torch.zeros_like(chance, dtype=torch.uint8)
        wanted.flatten(2).scatter_(2, _flat(cell, size)[..., None], inside[..., None].byte())
        off = (_at(ways, _flat(cell, size)) - (exact - cell)).square().sum(-1)
        top = highest_cells(chance)
        place = top + _at(ways, _flat(top, size))
        return CELL * (place + 0.5) - 0.5, {
            "chance": (1.0, self.selected(chance, wanted)),
            "offset": (1.0, (off * inside).sum() / len(off)),
        }


def _discs(cells: Tensor, size: int, radius: int) -> Tensor:
    """Maps (F, N, size, size) with a disc round each place (F, N, 2)."""
    discs = [disc_maps(face[None], size, radius) for face in cells.cpu().numpy()]
    return torch.from_numpy(np.stack(discs)).to(cells.device)


def _flat(cells: Tensor, size: Tensor) -> Tensor:
    """Flat index of each cell (F, N, 2) of a map of size (w, h); for a cell beyond the map some index within."""
    x, y = cells.clamp(min=torch.zeros_like(size), max=size - 1).unbind(-1)
    return y * size[0] + x


def _at(ways: Tensor, number: Tensor) -> Tensor:
    """Values (F, N, 2) of maps (F, N, 2, h, w) in the cells with these flat indices (F, N)."""
    return ways.flatten(3).gather(3, number[..., None, None].expand(-1, -1, 2, 1))[..., 0]
