"""GV's large encoders against the published backbones and the counts of the reconstruction."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the networks need the `train` extra")

from facetrack.engines import nets  # noqa: E402
from facetrack.engines.nets.encoders import Exchange, HRNet, PreActivated, ResNetV2  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def on_meta(encoder, width=64, **options):
    with torch.device("meta"):
        return nets.build("gv", 68, encoder=encoder, width=width, **options)


@pytest.mark.parametrize(
    ("encoder", "width", "count", "gmac"),
    [
        ("resnet50v2", 256, 25_095_684, 8.33),
        ("hrnetv2-w32", 64, 29_570_084, 11.38),
        ("hrnetv2-w18", 64, 9_654_398, 4.66),
    ],
)
def test_parameters_and_operations_are_those_of_the_reconstruction(encoder, width, count, gmac):
    net = on_meta(encoder, width)
    assert nets.parameters(net) == count
    assert nets.gmac(net, (256, 256)) == pytest.approx(gmac, abs=0.01)


@pytest.mark.parametrize("encoder", ["resnet50v2", "hrnetv2-w18"])
def test_vectors_have_a_quarter_of_the_pictures_side(encoder):
    net = on_meta(encoder, face_score=True)
    vectors, logits = net(torch.empty(2, 3, 128, 128, device="meta"))
    assert (vectors.shape, logits.shape) == ((2, 68, 32, 2), (2, 2))


@pytest.mark.parametrize(
    ("encoder", "channels"), [(ResNetV2, [256, 512, 1024, 2048]), (lambda: HRNet(32), [32, 64, 128, 256])]
)
def test_encoders_give_strides_4_to_32(encoder, channels):
    with torch.device("meta"):
        net = encoder()
    features = net(torch.empty(1, 3, 256, 256, device="meta"))
    assert [f.shape for f in features] == [(1, c, n, n) for c, n in zip(channels, (64, 32, 16, 8), strict=True)]
    assert net.channels == channels


def test_resnet_has_the_parameter_count_of_the_published_backbone():
    """MXNet's resnet50_v2 without its classifier and its last normalisation: 23,496,384 and our four taps'."""
    with torch.device("meta"):
        net = ResNetV2()
    assert nets.parameters(net) - nets.parameters(net.taps) == 23_496_384


def test_a_pre_activated_unit_is_the_identity_when_its_branch_is_silent():
    unit = PreActivated(8, 8, 1).eval()
    torch.nn.init.zeros_(unit.conv3.weight)
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(unit(x), x)


def test_exchange_passes_information_from_every_resolution_to_every_other():
    torch.manual_seed(0)
    exchange = Exchange((4, 8, 16)).eval()
    features = [torch.rand(1, c, n, n, requires_grad=True) for c, n in ((4, 8), (8, 4), (16, 2))]
    for target in range(3):
        heard = torch.autograd.grad(exchange(features)[target].sum(), features, allow_unused=True)
        assert all(h is not None and h.abs().sum() > 0 for h in heard)


def test_hrnet_head_takes_the_channels_of_all_branches():
    net = on_meta("hrnetv2-w18")
    assert net.head.in_channels == 15 * 18


@pytest.mark.parametrize("bandwidth", [1, 3, 5, 7])
def test_single_bandwidth_gives_one_kernel_of_that_width(bandwidth):
    pool = on_meta("mobilenetv3-small", bandwidths=(bandwidth, bandwidth)).pool
    assert pool.kernel.shape == (1, 1, bandwidth)
