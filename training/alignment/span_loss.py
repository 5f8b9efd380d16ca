"""SPAN's objective: the supervised terms of Eq. 19 and the self-calibrated term, which needs no labels.

Source: Wan et al. (SPAN), sections III-C to III-E. Terms are means over faces and over channels or squares; only the
coordinate term is a sum over landmarks, as printed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...engines.nets.hourglass import Supervision
from ...engines.nets.span import spatial_softmax
from ...tracker.codecs import field_lines, lines_of_points
from ...tracker.markup import Markup
from .boundaries import boundary_mirror, curve_maps
from .losses import (
    divergence_of_maps,
    highest_cells,
    jensen_shannon,
    known_mean,
    map_centroid,
    map_divergence,
    windows,
)
from .maps import FIELD_REACH, bali_fields, gaussian_maps, to_cells

STAGE_STRIDE, FINAL_STRIDE = 4, 2  # crop pixels per cell of the SCPA stages and of the last stage
STAGE_SIGMA, FINAL_SIGMA = 1.0, 1.5  # cells; not stated in the paper, and nearly the same width in pixels
CUT = 2.0  # sigmas; Eq. 3
DECODE_REACH = 3  # 7 x 7 cells (section IV-A)

WEIGHTS = {"final": 1.0, "stages": 4.0, "field": 16.0, "coordinate": 40.0}  # lambda_1, eta, lambda_2, gamma (IV-A)

Lines = Sequence[Sequence[int]]


def supervised_terms(output: Supervision, xy: Tensor, marks: Markup) -> tuple[dict[str, Tensor], Tensor]:
    """The supervised terms of Eq. 19, unweighted, by the names of `WEIGHTS`; and the decoded landmarks.

    Args:
        output: of SPAN or its baseline in training mode; missing parts, such as a field, have no term.
        xy: (F, N, 2) crop pixels; NaN where a landmark is not known.
        marks: the markup of the N points.
    Returns:
        The terms, and the decoded landmarks (F, N, 2) in cells of the last stage.
    """
    landmarks = [maps.float().contiguous() for maps in output.landmarks]  # once here, or every use would copy them
    divergences = []
    for i, maps in enumerate(landmarks):
        last = i == len(landmarks) - 1
        stride, sigma = (FINAL_STRIDE, FINAL_SIGMA) if last else (STAGE_STRIDE, STAGE_SIGMA)
        h, w = maps.shape[2:]
        divergence = map_divergence(maps, gaussian_maps(xy, (h, w), stride, sigma))
        if output.boundaries:
            drawn = curve_maps(xy, marks, (h, w), stride, sigma, CUT)
            divergence = divergence + map_divergence(output.boundaries[i], drawn)
        divergences.append(divergence)
    terms = {"final": divergences[-1], "stages": xy.new_zeros(()) + sum(divergences[:-1])}
    heat = spatial_softmax(landmarks[-1])
    if output.field is None:
        place, top = map_centroid(heat, DECODE_REACH)
    else:
        field = output.field.float().contiguous()
        members = torch.from_numpy(lines_of_points(marks, field.shape[1])).to(xy.device)
        place, top = field_centroid(heat, field, members)
        terms["field"] = field_term(field, xy, field_lines(marks, field.shape[1]))
    terms["coordinate"] = coordinate_error(place, top, xy, heat.shape[3])
    return terms, place


def field_centroid(heatmaps: Tensor, field: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 5, differentiable: the heat-weighted mean of where the cells round each maximum point; r is `DECODE_REACH`.

    The same arithmetic as `tracker.codecs.decode_fields`.

    Args:
        heatmaps: (F, N, h, w), not negative.
        field: (F, B, 2, h, w) offsets in cells.
        members: (N, M) the lines of each landmark, -1 where it has fewer than M.
    Returns:
        place: (F, N, 2) cells, fractional, (x, y). top: (F, N, 2) cell of the maximum.
    """
    tops = highest_cells(heatmaps)
    heat, cells, inside = windows(heatmaps, tops, DECODE_REACH)
    heat = heat * inside
    belongs = (members >= 0).to(field.dtype)  # N, M
    share = belongs / belongs.sum(1, keepdim=True).clamp(min=1)
    pointed = cells.to(field.dtype)
    flat = field.flatten(1, 2)  # F, 2 B, h, w
    for column in range(members.shape[1]):
        line = members[:, column].clamp(min=0)
        way = torch.stack([windows(flat, tops, DECODE_REACH, 2 * line + axis)[0] for axis in (0, 1)], -1)
        pointed = pointed + share[:, column, None, None] * way
    return (heat[..., None] * pointed).sum(2) / heat.sum(2).clamp(min=1e-12)[..., None], tops


def coordinate_error(place: Tensor, top: Tensor, xy: Tensor, width: int) -> Tensor:
    """Squared errors of the decoded landmarks in widths of the crop, summed over landmarks (Eq. 18).

    A landmark does not count if its heat map has its maximum where its field is not defined (Eq. 2): there the field
    could only learn to point across the face.

    Args:
        place, top: (F, N, 2) cells of maps with FINAL_STRIDE, as `field_centroid` returns them.
        xy: (F, N, 2) crop pixels.
        width: of the maps, cells.
    """
    wanted = to_cells(xy, FINAL_STRIDE)
    near = ((top - wanted).abs() <= FIELD_REACH).all(-1)  # False for NaN
    error = ((place - wanted.nan_to_num(nan=0.0)) / width).square().sum(-1)
    return (error * near).sum(1).mean()


def field_term(field: Tensor, xy: Tensor, lines: Lines) -> Tensor:
    """Error of the field in the squares where it is defined: the paper's divergence plus our absolute error.

    JS(SE(B)) of Eq. 16 compares the squares round the landmarks as distributions. Offsets have signs, so a softmax
    turns a square into a distribution; it ignores a constant added to the field. The absolute error, divided by the
    reach of a square, does not.

    Args:
        field: (F, B, 2, h, w) cells.
        xy: (F, N, 2) crop pixels; NaN where a landmark is not known.
        lines: landmarks of each of the B lines.
    """
    h, w = field.shape[3:]
    wanted, mask = bali_fields(xy, lines, (h, w), FINAL_STRIDE)
    error = known_mean((field - wanted).abs().mean(2) / FIELD_REACH, mask)
    return field_divergence(field, wanted, xy, lines) + error


def field_divergence(field: Tensor, wanted: Tensor, xy: Tensor, lines: Lines) -> Tensor:
    """JS(SE(B)) of Eq. 16, the mean over squares and over x and y.

    Args:
        field: (F, B, 2, h, w). wanted: the same, as `bali_fields` draws it.
        xy: (F, N, 2) crop pixels. lines: landmarks of each of the B lines.
    """
    pairs = torch.tensor([(point, b) for b, line in enumerate(lines) for point in line], device=xy.device)
    point_of, line_of = pairs.unbind(1)  # P squares: every landmark on every line that it is on
    cells = to_cells(xy[:, point_of], FINAL_STRIDE)  # F, P, 2
    known = torch.isfinite(cells).all(-1)
    near = cells.nan_to_num(nan=0.0).round().long()
    divergence = field.new_zeros(known.shape)
    for axis in (0, 1):
        channels = 2 * line_of + axis
        squares = [windows(f.flatten(1, 2), near, FIELD_REACH, channels) for f in (field, wanted)]
        inside = squares[0][2]
        known = known & inside.any(2)
        hidden = ~inside & known[..., None]  # not for squares wholly outside, which would be no distribution
        p, q = (values.masked_fill(hidden, -torch.inf).softmax(2) for values, _, _ in squares)
        divergence = divergence + jensen_shannon(p, q) / 2
    return known_mean(divergence, known)


def consistency(alpha: Supervision, beta: Supervision, matrices: Tensor, marks: Markup) -> Tensor:
    """The self-calibrated loss: outputs for a picture and its disturbed version must agree in every stage but the last.

    Eq. 17 prints D on both sides for the boundaries and sums to T; Eqs. 7, 12 and 20 show that D belongs to alpha
    alone, and Eqs. 19 and 20 sum to T - 1, as here.

    Args:
        alpha: SPAN's output for the pictures. beta: for their disturbed versions.
        matrices: (F, 2, 3) from the first crops' pixels to the second's.
        marks: the markup.
    """
    points = torch.tensor(marks.mirror, device=matrices.device)
    lines = torch.tensor(boundary_mirror(marks), device=matrices.device)
    terms = [
        divergence_of_maps(spatial_softmax(a.float()), spatial_softmax(b.float()), matrices, mirror, STAGE_STRIDE)
        for first, second, mirror in (
            (alpha.landmarks[:-1], beta.landmarks[:-1], points),
            (alpha.boundaries[:-1], beta.boundaries[:-1], lines),
        )
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(terms).sum() if terms else matrices.new_zeros(())
