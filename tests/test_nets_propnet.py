"""PropNet against the paper's parameters and operations, and what its anti-aliasing and attention promise."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the networks need the `train` extra")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from facetrack.engines import nets  # noqa: E402
from facetrack.engines.nets.hourglass import Blur, Hourglass, MaxBlur, with_coordinates  # noqa: E402
from facetrack.engines.nets.propnet import Propagation, PropNet  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def on_meta(landmarks=98, **options):
    with torch.device("meta"):
        return nets.build("propnet", landmarks, **options)


def picture(size=256):
    return torch.empty(1, 3, size, size, device="meta")


def thop_gflops(net):
    """Operations as `thop` counts them: multiplications, one per bias, two per normalised value."""
    total = 0

    def count(layer, _, output):
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output.numel() * (layer.weight[0].numel() + (layer.bias is not None))
        elif isinstance(layer, nn.BatchNorm2d):
            total += 2 * output.numel()

    for layer in net.modules():
        layer.register_forward_hook(count)
        layer.training &= not isinstance(layer, nn.BatchNorm2d)  # on "meta" its own statistics take most of the time
    with torch.inference_mode():
        net(picture())
    return total / 1e9


@pytest.mark.parametrize(("landmarks", "count"), [(98, 36_139_892), (68, 35_997_812), (29, 35_813_108)])
def test_parameter_counts_are_within_half_a_percent_of_the_paper(landmarks, count):
    assert nets.parameters(on_meta(landmarks)) == count
    assert landmarks != 98 or count == pytest.approx(36.30e6, rel=0.005)


def test_network_without_our_additions_matches_awing_in_size_and_operations():
    """24.15 M and 26.79 G in the paper's Table 8; AWing's maps are 98 landmarks and one boundary.

    AWing feeds two more coordinate channels, gated by the boundary, to each stack but the first.
    """
    net = on_meta(99, propagation=False, antialias=False)
    gated = 3 * 2 * 256
    assert nets.parameters(net) + gated == 24_153_036
    assert thop_gflops(net) + gated * 64**2 / 1e9 == pytest.approx(26.79, abs=0.01)


def test_the_deployed_network_leaves_the_last_propagation_out():
    net = on_meta().eval()
    last = net.propagations[-1]
    assert nets.parameters(net) - nets.parameters(last) == nets.deployed_parameters(net, (256, 256)) == 33_142_345
    ran = []
    for propagation in net.propagations:
        propagation.register_forward_hook(lambda layer, *_: ran.append(layer))
    assert [m.shape for m in net(picture())] == [(1, 98, 64, 64)]
    assert ran == list(net.propagations[:-1])
    assert nets.gmac(net, (256, 256)) == pytest.approx(39.15, rel=0.01)


def test_the_last_propagation_changes_no_landmark():
    torch.manual_seed(0)
    net, x = PropNet(5, stacks=2, width=8).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        deployed = net(x)[0]
        net.training = True  # the answer of training with the statistics of deployment
        supervised = net(x).landmarks[-1]
    assert torch.equal(deployed, supervised)


def test_training_gives_landmarks_and_boundaries_of_every_stack():
    output = PropNet(98, width=8)(torch.zeros(1, 3, 256, 256))
    assert [m.shape for m in output.landmarks] == [(1, 98, 64, 64)] * 4
    assert [m.shape for m in output.boundaries] == [(1, 15, 64, 64)] * 4


def test_compact_propnet_gives_maps_and_logits_for_a_smaller_picture():
    net = on_meta(68, stacks=2, width=64, face_score=True).eval()
    maps, logits = net(torch.empty(2, 3, 128, 128, device="meta"))
    assert (maps.shape, logits.shape) == ((2, 68, 32, 32), (2, 2))


def test_two_stacks_are_the_lite_variant_of_the_reconstruction():
    net = on_meta(stacks=2).eval()
    assert nets.parameters(net) - nets.parameters(net.propagations[-1]) == pytest.approx(15.27e6, rel=1e-3)
    assert nets.gmac(net, (256, 256)) == pytest.approx(19.5, rel=0.01)


def test_attention_has_the_features_shape_and_lies_between_0_and_1():
    torch.manual_seed(0)
    module = Propagation(5, 8, blur=3).eval()
    attention = module.attend(torch.randn(2, 8, 16, 16), torch.randn(2, 15, 16, 16))
    assert attention.shape == (2, 8, 16, 16)
    assert ((attention > 0) & (attention < 1)).all()
    with torch.device("meta"):
        full = Propagation(98, 256, blur=3)
    assert nets.parameters(full) == 2_997_547


def test_a_propagation_can_sum_the_landmarks_of_a_line():
    module = Propagation(5, 8, blur=3).eval()
    first, _, _, second = module.boundaries
    for layer in (first, second):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    first.weight.data[2, [0, 3, 4], 3, 3] = 1  # line 2 joins landmarks 0, 3 and 4
    second.weight.data[2, 2, 3, 3] = 1
    maps = torch.rand(1, 5, 16, 16)
    lines = module(torch.randn(1, 8, 16, 16), maps)[1]
    torch.testing.assert_close(lines[:, 2], maps[:, [0, 3, 4]].sum(1), rtol=1e-4, atol=1e-5)  # BN's epsilon
    assert (lines[:, [0, 1, 3, 14]] == 0).all()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_filter_of_table_6_keeps_parameters_sizes_and_constants(size):
    assert (
        nets.parameters(on_meta(blur=size)) == nets.parameters(on_meta()) == nets.parameters(on_meta(antialias=False))
    )
    assert [m.shape for m in on_meta(blur=size).eval()(picture())] == [(1, 98, 64, 64)]
    row = torch.tensor([float(math.comb(size - 1, k)) for k in range(size)]) / 2 ** (size - 1)
    torch.testing.assert_close(Blur(3, size).kernel, torch.outer(row, row).expand(3, 1, size, size))
    assert (MaxBlur(2, size)(torch.ones(1, 2, 8, 8)) == 1).all()


def test_a_filter_that_table_6_has_not_is_refused():
    with pytest.raises(ValueError, match="blur: wanted a filter of 2, 3, 5 cells, got 4"):
        on_meta(blur=4)


def test_a_shift_by_two_cells_shifts_the_pooled_map_by_one():
    torch.manual_seed(0)
    x, pool = torch.randn(1, 3, 16, 16), MaxBlur(3)
    shifted = pool(x.roll((2, 2), (2, 3)))
    torch.testing.assert_close(shifted[..., 2:-1, 2:-1], pool(x)[..., 1:-2, 1:-2])


def test_a_shift_by_one_cell_changes_a_blurred_pool_less_than_a_plain_one():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    moved = x.roll(1, 3)
    blurred, plain = MaxBlur(3), nn.MaxPool2d(2)
    inner = slice(2, -2)

    def change(pool):
        return (pool(moved) - pool(x))[..., inner, inner].abs().mean()

    assert change(blurred) < 0.7 * change(plain)


def test_a_blurred_pool_keeps_constants_and_the_alignment_of_a_plain_pool():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    assert (MaxBlur(1)(torch.ones(1, 1, 8, 8)) == 1).all()
    wanted = F.max_pool2d(ramp, 2)  # cells 1, 3, 5, ...: the blur is centred on the first of each pair
    torch.testing.assert_close(MaxBlur(1)(ramp)[..., 1:-1], wanted[..., 1:-1])


def test_coordinates_run_from_corner_to_corner():
    x, y, r = with_coordinates(torch.zeros(1, 2, 5, 9))[0, 2:]
    assert x[0].tolist() == pytest.approx([-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1])
    assert y[:, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert r[2, 4] == 0
    assert r[0, 0].item() == r.max().item() == pytest.approx(1)


def test_hourglass_returns_its_sums_finest_first_and_refuses_indivisible_sizes():
    hourglass = Hourglass(4, 3, lambda a, b: nn.Conv2d(a, b, 1), lambda _: nn.MaxPool2d(2))
    assert len([m for m in hourglass.modules() if isinstance(m, nn.Conv2d)]) == 10
    assert [s.shape[2] for s in hourglass(torch.zeros(1, 4, 16, 16))] == [16, 8, 4]
    with pytest.raises(ValueError, match="multiples of 8 cells"):
        hourglass(torch.zeros(1, 4, 12, 16))
