"""Losses of each alignment network's output: GV's vectors; TAB's, PropNet's, SPAN's and SHN's maps.

Those of BB-FCN and its rival are in `selective`.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.nets import FromBytes
from ...engines.nets.hourglass import Supervision
from ...engines.nets.propnet import BOUNDARY_MAPS
from ...engines.nets.tab import TAB
from ...tracker import markup
from ...tracker.errors import ConfigError
from ...tracker.types import Float32
from ..config import Config
from . import span_loss
from .boundaries import boundary_mirror, curve_maps, segment_maps, with_union
from .losses import (
    TINY,
    as_distribution,
    divergence_of_maps,
    focal_wing,
    jensen_shannon,
    known_mean,
    map_centroid,
    soft_centroid,
)
from .maps import gaussian_maps, moved_points, to_cells
from .objective import Alignment, Labels, Terms
from .selective import CellAlignment, DiscAlignment
from .targets import gaussian_vectors, quasi_gaussian_vectors

STRIDE = 4  # crop pixels per cell of GV's vectors, TAB's and PropNet's maps
NEAR = 3  # cells; a landmark farther from its peak has no coordinate error, because the centroid could not reach it
SMOOTH = 0.3  # cells; the coordinate term is quadratic below


class VectorAlignment(Alignment):
    """GV's objective: vectors by MSE, places by their centroid."""

    def __init__(self, config: Config, data: Path) -> None:
        """See `Alignment`."""
        super().__init__(config, data)
        self.codec = {
            "kind": "vectors",
            "stride": STRIDE,
            "sigma": config.vectors.sigma,
            "peak": config.vectors.tau or config.vectors.peak,
        }

    def logits(self, answer: tuple[Tensor, ...]) -> Tensor | None:
        """See `Alignment`."""
        return answer[1] if len(answer) > 1 else None

    def wanted(self, xy: Float32, cells: int) -> Float32:
        """Target vectors of `cells` cells for points (F, N, 2) in crop pixels, (F, N, cells, 2)."""
        label = self.config.vectors
        if label.label == "quasi":
            return quasi_gaussian_vectors(xy, cells, STRIDE, label.sigma, label.peak - 1)
        return gaussian_vectors(xy, cells, STRIDE, label.sigma, label.peak)

    def landmark_terms(self, answer: tuple[Tensor, ...], labels: Labels) -> tuple[Tensor, Terms]:
        """See `Alignment`."""
        vectors, weights, xy = answer[0], self.config.vectors, labels.xy
        cells = to_cells(xy, STRIDE)
        gaussians = torch.from_numpy(self.wanted(xy.cpu().numpy(), vectors.shape[2])).to(xy.device)
        place, top = soft_centroid(vectors)
        # a centroid cannot leave its vector: a target outside would only deform the tail of the Gaussian
        reachable = ((cells - top).abs() <= NEAR) & (cells >= 0) & (cells <= vectors.shape[2] - 1)
        return _pixels(place, STRIDE), {
            "mse": (weights.mse, F.mse_loss(vectors, gaussians)),
            "coordinate": (weights.coordinate, _coordinate(place, cells, reachable)),
        }

    def divergence(self, alpha: tuple[Tensor, ...], beta: tuple[Tensor, ...], matrices: Tensor) -> Tensor:
        """See `Alignment`.

        Vectors cannot be rotated. Instead the first crop's landmarks are moved into the second crop, and Gaussians
        round them are the targets of its vectors. No gradient flows back through those places.
        """
        with torch.no_grad():
            place = _pixels(soft_centroid(alpha[0].float())[0], STRIDE)
            moved = moved_points(place, matrices, self.markup)
            cells = to_cells(moved, STRIDE)[:, :, None]  # F, N, 1, 2
            grid = torch.arange(beta[0].shape[2], device=moved.device)[:, None]
            gaussians = torch.exp(-0.5 * ((grid - cells) / self.config.vectors.sigma) ** 2)
        known = (cells >= 0) & (cells <= beta[0].shape[2] - 1)
        wanted, seen = (v.transpose(2, 3) for v in (gaussians, beta[0].float().clamp(min=0) + TINY))
        divergence = jensen_shannon(
            wanted / wanted.sum(-1, keepdim=True).clamp(min=TINY), seen / seen.sum(-1, keepdim=True)
        )
        return known_mean(divergence, known[:, :, 0])


class MapAlignment(Alignment):
    """Common part of TAB's and PropNet's objectives: landmark maps of stride 4."""

    def __init__(self, config: Config, data: Path) -> None:
        """See `Alignment`."""
        super().__init__(config, data)
        self.codec = {"kind": "heatmaps", "stride": STRIDE, "reach": config.maps.reach}

    def logits(self, answer: Supervision) -> Tensor | None:
        """See `Alignment`."""
        return answer.logits

    def gaussians(self, answer: Supervision, xy: Tensor) -> Tensor:
        """Target landmark maps, (F, N, h, w)."""
        return gaussian_maps(xy, _size(answer.landmarks[-1]), STRIDE, self.config.maps.sigma)

    def divergence(self, alpha: Supervision, beta: Supervision, matrices: Tensor) -> Tensor:
        """See `Alignment`: the positive part of every supervised stage's maps, as distributions."""
        points = torch.tensor(self.markup.mirror, device=matrices.device)
        lines = torch.tensor(boundary_mirror(self.markup), device=matrices.device)
        union = torch.tensor([len(lines)], device=lines.device)
        terms = []
        for first, second, mirror in (
            (alpha.landmarks, beta.landmarks, points),
            (alpha.boundaries, beta.boundaries, lines),
        ):
            for a, b in zip(first, second, strict=True):
                own = mirror if a.shape[1] == len(mirror) else torch.cat((mirror, union))
                calm, wild = as_distribution(a.float()), as_distribution(b.float())
                terms.append(divergence_of_maps(calm, wild, matrices, own, STRIDE))
        return torch.stack(terms).sum()

    def places(self, answer: Supervision, xy: Tensor) -> tuple[Tensor, Terms]:
        """Decoded places of the final maps, and the coordinate term."""
        cells = to_cells(xy, STRIDE)
        maps = answer.landmarks[-1].float()
        place, top = map_centroid(maps, max(self.config.maps.reach, 2))
        last = torch.tensor([maps.shape[3] - 1, maps.shape[2] - 1], device=xy.device)
        reachable = ((cells - top).abs() <= NEAR) & (cells >= 0) & (cells <= last)
        return _pixels(place, STRIDE), {
            "coordinate": (self.config.maps.coordinate, _coordinate(place, cells, reachable)),
        }


class BoundaryAlignment(MapAlignment):
    """TAB's objective: squared errors of every stack's boundary maps and of the landmark maps.

    Errors are summed over a map's cells and averaged over maps and faces, so that they do not depend on the maps' size.
    With `maps.frozen` this is the paper's second stage (section 4.3), otherwise both parts learn together. The first
    stage is a run with `maps.landmarks = 0`.
    """

    def build(self) -> FromBytes:
        """See `Alignment`."""
        net = super().build()
        if self.config.maps.frozen:
            assert isinstance(net.net, TAB)
            net.net.freeze_boundaries()
        return net

    def landmark_terms(self, answer: Supervision, labels: Labels) -> tuple[Tensor, Terms]:
        """See `Alignment`."""
        weights, xy = self.config.maps, labels.xy
        place, terms = self.places(answer, xy)
        terms["maps"] = (weights.landmarks, _squares(answer.landmarks[-1], self.gaussians(answer, xy)))
        lines = with_union(curve_maps(xy, self.markup, _size(answer.boundaries[-1]), STRIDE))
        errors = torch.stack([_squares(maps, lines) for maps in answer.boundaries])
        terms["boundaries"] = (0.0 if weights.frozen else weights.boundaries, errors.sum())
        return place, terms


class PropagationAlignment(MapAlignment):
    """PropNet's objective: Focal Wing on every stack's landmark and boundary maps (Eq. 4).

    Of the data sets only WFLW has attributes; with others, and in pairs (`consistency`), every face counts the same.
    """

    def landmark_terms(self, answer: Supervision, labels: Labels) -> tuple[Tensor, Terms]:
        """See `Alignment`."""
        weights, xy, factors = self.config.maps, labels.xy, labels.factors
        place, terms = self.places(answer, xy)
        gaussians = self.gaussians(answer, xy)
        lines = segment_maps(xy, self.markup, _size(gaussians), STRIDE)
        for name, weight, stages, wanted in (
            ("maps", weights.landmarks, answer.landmarks, gaussians),
            ("boundaries", weights.boundaries, answer.boundaries, lines),
        ):
            if stages:  # without propagation there are no boundary maps
                errors = torch.stack([focal_wing(maps.float(), wanted, factors) for maps in stages])
                terms[name] = (weight, errors.sum())
        return place, terms


class FieldAlignment(Alignment):
    """SPAN's supervised objective (Eq. 19), and that of its baseline without boundaries and field."""

    def __init__(self, config: Config, data: Path) -> None:
        """See `Alignment`."""
        super().__init__(config, data)
        options = config.network.options
        fields = self.markup.points if options.get("field_per_landmark", False) else len(self.markup.boundaries)
        self.codec = {
            "kind": "fields",
            "stride": span_loss.FINAL_STRIDE,
            "reach": span_loss.DECODE_REACH,
            "fields": fields,
        }
        if config.network.name == "shn" or not options.get("field", True):
            self.codec = {"kind": "heatmaps", "stride": span_loss.FINAL_STRIDE, "reach": span_loss.DECODE_REACH}

    def logits(self, answer: Supervision) -> Tensor | None:
        """See `Alignment`."""
        return answer.logits

    def landmark_terms(self, answer: Supervision, labels: Labels) -> tuple[Tensor, Terms]:
        """See `Alignment`."""
        terms, place = span_loss.supervised_terms(answer, labels.xy, self.markup)
        return _pixels(place, span_loss.FINAL_STRIDE), {name: (span_loss.WEIGHTS[name], t) for name, t in terms.items()}

    def divergence(self, alpha: Supervision, beta: Supervision, matrices: Tensor) -> Tensor:
        """See `Alignment`."""
        return span_loss.consistency(alpha, beta, matrices, self.markup)


ALIGNMENTS: dict[str, type[Alignment]] = {
    "gv": VectorAlignment,
    "tab": BoundaryAlignment,
    "propnet": PropagationAlignment,
    "span": FieldAlignment,
    "shn": FieldAlignment,
    "bbfcn": DiscAlignment,
    "bbfcn-regression": CellAlignment,
}
DRAWS_BOUNDARIES = ("tab", "propnet", "span")


def open_alignment(config: Config, data: Path) -> Alignment:
    """The objective of the configured alignment network.

    Raises:
        ConfigError: no objective trains this network, or something that it needs is not configured.
        MarkupError: no markup has this number of landmarks.
        SourceError: a folder of data is missing or broken.
    """
    name, marks = config.network.name, markup.for_points(config.network.landmarks)
    if name not in ALIGNMENTS:
        raise ConfigError(f"network.name: wanted one of {', '.join(ALIGNMENTS)}, got {name!r}")
    if name in DRAWS_BOUNDARIES and len(marks.boundaries) != BOUNDARY_MAPS:
        raise ConfigError(
            f"network: {name} needs a markup with {BOUNDARY_MAPS} boundary lines, {marks.name} has "
            f"{len(marks.boundaries)}; other networks accept it"
        )
    return ALIGNMENTS[name](config, data)


def _coordinate(place: Tensor, cells: Tensor, reachable: Tensor) -> Tensor:
    """Mean error over all coordinates, in cells; those whose decoded place cannot reach the target count as 0."""
    return (F.smooth_l1_loss(place, cells, reduction="none", beta=SMOOTH) * reachable).mean()


def _squares(maps: Tensor, wanted: Tensor) -> Tensor:
    """Squared error summed over cells, mean over maps and faces."""
    return (maps.float() - wanted).square().sum((2, 3)).mean()


def _pixels(cells: Tensor, stride: float) -> Tensor:
    return stride * (cells + 0.5) - 0.5


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[2], maps.shape[3]
