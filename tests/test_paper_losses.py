"""The papers' losses against the numbers, limits and invariants that their equations imply."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from facetrack.tracker import markup
from facetrack.tracker.codecs import field_lines
from facetrack.tracker.pose import MEAN_FACE_MM

torch = pytest.importorskip("torch", reason="training needs the `train` extra")

from facetrack.engines.nets.hourglass import Supervision  # noqa: E402
from facetrack.training import processes  # noqa: E402
from facetrack.training.alignment import span_loss  # noqa: E402
from facetrack.training.alignment.boundaries import boundary_mirror, curve_maps  # noqa: E402
from facetrack.training.alignment.losses import (  # noqa: E402
    adaptive_wing,
    focal_factors,
    focal_wing,
    jensen_shannon,
    map_divergence,
)
from facetrack.training.alignment.maps import bali_fields, gaussian_maps, moved_points, warp_maps  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

IBUG = markup.load("ibug68")
MIRROR = IBUG.mirror.tolist()


def wing(error, target):
    """Loss of one pixel."""
    y = torch.full((1, 1, 1, 1), float(target), dtype=torch.float64)
    return adaptive_wing(y + error, y).item()


def face(side=128.0):
    xy = MEAN_FACE_MM[:, :2] - MEAN_FACE_MM[:, :2].mean(0)
    return torch.tensor(xy[None] / np.ptp(xy) * 0.6 * side + side / 2, dtype=torch.float32)


def about(side, angle=0.0, scale=1.0, flip=False):
    """(1, 2, 3) turn about the middle of a crop, after mirroring it."""
    middle = (side - 1) / 2
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if flip else 1.0, 1.0])
    shift = np.array([middle, middle]) - turn @ [middle, middle]
    return torch.tensor(np.column_stack((turn, shift))[None], dtype=torch.float32)


def logits_of(maps):
    """Logits whose spatial softmax is the map over its sum."""
    return (maps + 1e-8).log()


@pytest.mark.parametrize(
    ("target", "slope", "offset"), [(0.0, 11.1214, 2.6255), (0.5, 11.1127, 1.5651), (1.0, 9.7978, -0.4615)]
)
def test_adaptive_wing_is_linear_for_large_errors_with_the_tables_constants(target, slope, offset):
    for error in (0.6, 1.0, 5.0, -2.0):
        assert wing(error, target) == pytest.approx(slope * abs(error) - offset, abs=5e-4)  # the table's digits


@pytest.mark.parametrize("target", [0.0, 0.3, 0.5, 1.0])
def test_adaptive_wing_and_its_slope_are_continuous_where_the_curve_becomes_a_line(target):
    step = 1e-5
    below, at, above = (wing(0.5 + d, target) for d in (-step, 0, step))
    assert above - below < 50 * step
    assert (above - at) / step == pytest.approx((at - below) / step, rel=1e-3)


@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_adaptive_wing_vanishes_at_the_target_and_ignores_the_errors_sign(target):
    assert wing(0, target) == 0
    for error in (0.1, 0.3, 2.0):
        assert wing(error, target) == pytest.approx(wing(-error, target))
        assert wing(error, target) > 0


def test_adaptive_wing_has_finite_gradients_everywhere():
    targets = torch.rand(1, 2, 4, 4)
    maps = targets.clone()
    maps[0, 0] += 3
    maps.requires_grad_()
    adaptive_wing(maps, targets).sum().backward()
    assert torch.isfinite(maps.grad).all()
    assert (maps.grad[0, 1] == 0).all()


def test_focal_factors_raise_rare_attributes_and_leave_the_others():
    flags = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]], dtype=torch.bool)
    assert focal_factors(flags).tolist() == [[4, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_focal_factors_of_the_faces_with_an_attribute_sum_to_the_batch():
    flags = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < 0.4
    sums = (focal_factors(flags) * flags).sum(0)
    assert sums[flags.any(0)].tolist() == pytest.approx([8.0] * int(flags.any(0).sum()))


def test_without_attributes_focal_wing_is_adaptive_wing():
    maps, targets = torch.rand(2, 4, 3, 5, 5).unbind()
    plain = adaptive_wing(maps, targets).sum(1).mean()
    torch.testing.assert_close(focal_wing(maps, targets, focal_factors(torch.zeros(4, 6, dtype=torch.bool))), plain)
    torch.testing.assert_close(focal_wing(maps, targets), plain)
    assert focal_wing(maps, targets, focal_factors(torch.eye(4, 6, dtype=torch.bool))) > plain


class Together:
    """`torch.distributed` among as many threads as there are processes."""

    def __init__(self, world):
        self.told, self.all_are_here = [], threading.Barrier(world, timeout=60)

    def all_reduce(self, own):
        self.told.append(own.clone())
        self.all_are_here.wait()
        own.copy_(torch.stack(self.told).sum(0))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_focal_wing_does_not_depend_on_the_number_of_processes(world, monkeypatch):
    """DistributedDataParallel takes the mean of the processes' gradients."""
    flags = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < 0.4
    maps, targets = torch.rand(2, 8, 3, 5, 5).unbind()
    whole = focal_wing(maps, targets, focal_factors(flags))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setattr(processes, "dist", SimpleNamespace(all_reduce=Together(world).all_reduce))

    def share(rank):
        return focal_wing(maps[rank::world], targets[rank::world], focal_factors(flags[rank::world]))

    with ThreadPoolExecutor(world) as threads:
        shares = list(threads.map(share, range(world)))
    torch.testing.assert_close(torch.stack(shares).mean(), whole)


def test_jensen_shannon_is_symmetric_zero_for_equals_and_ln_2_for_disjoint_maps():
    p, q = torch.rand(2, 5, 30).softmax(-1).unbind()
    torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))
    assert (jensen_shannon(p, q) > 0).all()
    assert (jensen_shannon(p, p) == 0).all()
    here, there = torch.eye(4)[:2]
    assert jensen_shannon(here, there).item() == pytest.approx(math.log(2))


def test_map_divergence_and_its_gradient_match_jensen_shannon_of_the_softmax():
    seeded = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 6, generator=seeded, requires_grad=True)
    targets = torch.rand(2, 3, 5, 6, generator=seeded) ** 8
    targets[0, 0, :4] = 0
    wanted = targets.flatten(2) / targets.sum((2, 3))[..., None]
    plain = jensen_shannon(logits.flatten(2).softmax(2), wanted).mean()
    short = map_divergence(logits, targets * 30)
    torch.testing.assert_close(short, plain)
    torch.testing.assert_close(torch.autograd.grad(short, logits), torch.autograd.grad(plain, logits))


def test_a_map_divergence_ignores_the_targets_height_and_empty_targets():
    logits = torch.randn(1, 3, 8, 8)
    targets = gaussian_maps(torch.tensor([[[13.0, 13.0], [8.0, 20.0], [torch.nan, 0.0]]]), (8, 8), 4, 1.0)
    torch.testing.assert_close(map_divergence(logits, targets), map_divergence(logits, 3 * targets))
    torch.testing.assert_close(map_divergence(logits, targets), map_divergence(logits[:, :2], targets[:, :2]))
    assert map_divergence(logits_of(targets[:, :2]), targets[:, :2]) < 1e-5


def test_a_map_divergence_stays_finite_for_extreme_logits():
    logits = torch.zeros(1, 1, 8, 8)
    logits[0, 0, 0, 0] = 1e4
    logits.requires_grad_()
    loss = map_divergence(logits, gaussian_maps(torch.tensor([[[20.0, 20.0]]]), (8, 8), 4, 1.0))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4)
    assert torch.isfinite(logits.grad).all()


def perfect_answer(xy, marks=IBUG, side=128, stages=1, fields=68):
    """What a SPAN that knows the labels answers for a crop of `side` pixels."""
    landmarks, boundaries = [], []
    for stage in range(stages + 1):
        stride, sigma = (2, 1.5) if stage == stages else (4, 1.0)
        size = (side // stride, side // stride)
        landmarks.append(logits_of(gaussian_maps(xy, size, stride, sigma)))
        boundaries.append(logits_of(curve_maps(xy, marks, size, stride, sigma, 2.0)))
    field, _ = bali_fields(xy, field_lines(marks, fields), size, 2)
    return Supervision(tuple(landmarks), tuple(boundaries), field)


@pytest.mark.parametrize(("fields", "coordinate"), [(68, 1e-6), (15, 0.05)])
def test_a_perfect_span_has_next_to_no_loss(fields, coordinate):
    """But for fields of whole lines, whose heat points to neighbours too."""
    terms, _ = span_loss.supervised_terms(perfect_answer(face(), fields=fields), face(), IBUG)
    assert set(terms) == {"final", "stages", "field", "coordinate"}
    assert 0 <= terms.pop("coordinate") < coordinate
    assert all(0 <= term < 1e-3 for term in terms.values())


def test_every_term_of_spans_has_the_papers_weight():
    terms, _ = span_loss.supervised_terms(perfect_answer(face()), face(), IBUG)
    assert {name: span_loss.WEIGHTS[name] for name in terms} == {
        "final": 1.0,
        "stages": 4.0,
        "field": 16.0,
        "coordinate": 40.0,
    }


def test_every_output_of_span_is_supervised():
    output = perfect_answer(face())
    leaves = [*output.landmarks, *output.boundaries, output.field]
    leaves = [(leaf + 0.01 * torch.randn_like(leaf)).requires_grad_() for leaf in leaves]
    answer = Supervision(tuple(leaves[:2]), tuple(leaves[2:4]), leaves[4])
    terms, _ = span_loss.supervised_terms(answer, face(), IBUG)
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.isfinite(leaf.grad).all() and leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_field_divergence_ignores_a_constant_offset_and_the_field_term_does_not():
    xy = face()
    lines = field_lines(IBUG, 15)
    exact = perfect_answer(xy, fields=15).field
    assert span_loss.field_divergence(exact + 3, exact, xy, lines).item() == pytest.approx(0, abs=1e-6)
    assert span_loss.field_divergence(exact * 0.5, exact, xy, lines) > 0.01
    assert span_loss.field_term(exact, xy, lines) == 0
    assert span_loss.field_term(exact + 1, xy, lines).item() == pytest.approx(1 / 5, abs=1e-5)


def test_unknown_landmarks_do_not_count():
    xy = face()
    output = perfect_answer(xy)
    xy[0, [30, 57]] = torch.nan
    terms, _ = span_loss.supervised_terms(output, xy, IBUG)
    assert all(torch.isfinite(term) and term < 2e-3 for term in terms.values())


def test_the_coordinate_term_is_the_squared_error_in_crop_widths():
    place = torch.zeros(1, 4, 2)
    # Cell 0, 3 cells to the right, beyond the field's reach, and unknown: the last two do not count.
    xy = torch.tensor([[[0.5, 0.5], [6.5, 0.5], [40.5, 0.5], [torch.nan, torch.nan]]])
    assert span_loss.coordinate_error(place, place.long(), xy, 64).item() == pytest.approx((3 / 64) ** 2)


def test_a_turned_map_is_the_map_of_turned_landmarks():
    xy = torch.tensor([[[150.0, 110.0]]])
    matrix = about(256, math.radians(35))
    moved = warp_maps(gaussian_maps(xy, (64, 64), 4, 1.5), matrix, 4, torch.tensor([0]))
    place = (matrix[:, :, :2] @ xy[..., None])[..., 0] + matrix[:, :, 2]
    wanted = gaussian_maps(place, (64, 64), 4, 1.5)
    p, q = (m.flatten(2) / m.sum((2, 3))[..., None] for m in (moved, wanted))
    assert jensen_shannon(p, q).item() < 2e-3
    cells = torch.arange(64.0)
    centroid = torch.stack(((moved.sum(2) @ cells) / moved.sum((2, 3)), (moved.sum(3) @ cells) / moved.sum((2, 3))), -1)
    torch.testing.assert_close(centroid, (place + 0.5) / 4 - 0.5, rtol=0, atol=0.01)


def test_mirrored_map_with_swapped_channels_matches_that_of_mirrored_landmarks():
    xy = face()
    mirrored = xy[:, MIRROR].clone()
    mirrored[..., 0] = 127 - mirrored[..., 0]
    got = warp_maps(gaussian_maps(xy, (32, 32), 4, 1.0), about(128, flip=True), 4, torch.tensor(MIRROR))
    torch.testing.assert_close(got, gaussian_maps(mirrored, (32, 32), 4, 1.0), rtol=1e-3, atol=1e-4)
    lines = torch.tensor(boundary_mirror(IBUG))
    got = warp_maps(curve_maps(xy, IBUG, (32, 32), 4), about(128, flip=True), 4, lines)
    torch.testing.assert_close(got, curve_maps(mirrored, IBUG, (32, 32), 4), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_consistent_answers_cost_nothing_and_inconsistent_ones_do(flip):
    xy, matrix = face(), about(128, flip=flip)
    seen = xy[:, MIRROR] if flip else xy
    moved = (matrix[:, None, :, :2] @ seen[..., None])[..., 0] + matrix[:, None, :, 2]
    alpha, beta = perfect_answer(xy, stages=2), perfect_answer(moved, stages=2)
    assert span_loss.consistency(alpha, beta, matrix, IBUG) < 1e-4
    assert span_loss.consistency(alpha, perfect_answer(moved + 8, stages=2), matrix, IBUG) > 0.1


def test_what_a_disturbance_moves_out_of_the_crop_does_not_count():
    xy, away = face(), torch.tensor([[[1.0, 0, 500], [0, 1, 0]]])
    assert span_loss.consistency(perfect_answer(xy), perfect_answer(xy), away, IBUG) == 0


def test_right_answers_at_half_scale_cost_a_third_of_silent_ones():
    """The bells that D has shrunk are narrower than the others."""
    xy, half = face(256), about(256, scale=0.5)
    right = [perfect_answer(points, side=256, stages=3) for points in (xy, moved_points(xy, half, IBUG))]
    silent = [Supervision(*(tuple(map(torch.zeros_like, maps)) for maps in answer[:2])) for answer in right]
    costs = [span_loss.consistency(*answers, half, IBUG).item() for answers in (right, silent)]
    assert costs == pytest.approx([0.8, 2.28], abs=0.05)
