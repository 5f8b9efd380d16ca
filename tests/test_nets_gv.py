"""GV as the paper and `torchvision` count it: parameters, shapes, what band pooling is."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import torch.nn.functional as F  # noqa: E402 - torch may be missing
from torch import Tensor, nn  # noqa: E402

from facetrack.engines import nets  # noqa: E402
from facetrack.engines.nets.blocks import (  # noqa: E402
    BandPooling,
    InvertedResidual,
    SqueezeExcite,
    conv_bn,
    round_channels,
)
from facetrack.engines.nets.gv import GV  # noqa: E402
from facetrack.tracker.types import UInt8  # noqa: E402

# torchvision 0.21's mobilenet_v3_large and _small have 5,483,032 and 2,542,856 parameters; without the classifier and
# the last 1x1 convolution, which GV does without, these are left.
MOBILENET_LARGE = 5_483_032 - (960 * 1280 + 1280 + 1280 * 1000 + 1000) - (160 * 960 + 2 * 960)
MOBILENET_SMALL = 2_542_856 - (576 * 1024 + 1024 + 1024 * 1000 + 1000) - (96 * 576 + 2 * 576)


pytestmark = pytest.mark.usefixtures("one_thread")


def pyramid(channels: tuple[int, ...], width: int) -> int:
    """Parameters of 1x1 laterals and one 3x3, all with biases."""
    return sum(c * width + width for c in channels) + 9 * width * width + width


@pytest.mark.parametrize(
    ("encoder", "width", "total"),
    [
        ("mobilenetv3-large", 64, 2_879_540),
        ("mobilenetv3-large", 128, 3_016_308),
        ("mobilenetv3-small", 64, 923_940),
    ],
)
def test_parameters_are_torchvisions_encoder_a_pyramid_and_a_head(encoder: str, width: int, total: int) -> None:
    """The specification's 2.878 and 3.015 M round the 18 channels of one squeeze layer to 16: 1,160 parameters fewer.

    Where rounding to a multiple of 8 would lose more than a tenth, MobileNetV3 takes the next one, 24.
    """
    net = GV(68, encoder, width)
    large = encoder == "mobilenetv3-large"
    channels = (24, 40, 112, 160) if large else (16, 24, 48, 96)
    assert nets.parameters(net.encoder) == (MOBILENET_LARGE if large else MOBILENET_SMALL)
    assert nets.parameters(net.decoder) == pyramid(channels, width)
    assert nets.parameters(net.head) == width * 68 + 68
    assert nets.parameters(net.pool) == 0
    assert nets.parameters(net) == total
    if large:
        fewer = total - (24 - 16) * (72 + 1 + 72)
        assert f"{fewer / 1e6:.3f}" == {64: "2.878", 128: "3.015"}[width]


def test_the_face_score_costs_what_its_two_layers_cost() -> None:
    with_score = GV(68, face_score=True)
    assert nets.parameters(with_score) - 2_879_540 == 160 * 64 + 64 + 64 * 2 + 2


@pytest.mark.parametrize(
    ("encoder", "channels"), [("mobilenetv3-large", (24, 40, 112, 160)), ("mobilenetv3-small", (16, 24, 48, 96))]
)
def test_encoder_features_have_strides_4_to_32(encoder: str, channels: tuple[int, ...]) -> None:
    net = GV(68, encoder).eval()
    with torch.inference_mode():
        features = net.encoder(torch.zeros(1, 3, 96, 96))
    assert [tuple(f.shape) for f in features] == [
        (1, c, 96 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize(
    ("channels", "wanted"), [(16, 16), (18, 24), (30, 32), (168, 168), (240, 240), (4, 8), (132, 136)]
)
def test_channels_are_rounded_to_eights_and_lose_at_most_a_tenth(channels: int, wanted: int) -> None:
    assert round_channels(channels) == wanted
    assert wanted >= 0.9 * channels


def test_squeeze_excite_rounds_its_channels_and_gates_between_0_and_1() -> None:
    gate = SqueezeExcite(72)
    assert gate.fc1.out_channels == 24  # 72 / 4 = 18 would lose more than a tenth at 16
    x = torch.randn(2, 72, 6, 6) + 1
    ratio = (gate(x) / x)[:, :, 0, 0]
    assert ((ratio >= 0) & (ratio <= 1)).all()


def test_depthwise_convolutions_stay_in_float32_under_autocast() -> None:
    depthwise, dense, x = conv_bn(8, 8, 3, groups=8)[0], conv_bn(8, 8, 3)[0], torch.randn(2, 8, 6, 6)
    exact = F.conv2d(x, depthwise.weight, padding=1, groups=8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(depthwise(x), exact)
        assert dense(x).dtype == torch.bfloat16
        assert depthwise(dense(x)).dtype == torch.float32
    assert torch.equal(depthwise(x), exact)


def test_a_unit_has_a_skip_only_where_shapes_agree() -> None:
    same = InvertedResidual(24, 3, 72, 24, excite=False, hard_swish=False, stride=1)
    assert same.skip
    assert not InvertedResidual(24, 3, 72, 40, excite=False, hard_swish=False, stride=1).skip
    assert not InvertedResidual(24, 3, 72, 24, excite=False, hard_swish=False, stride=2).skip
    nn.init.zeros_(same.block[-1][1].weight)
    x = torch.randn(1, 24, 5, 5)
    torch.testing.assert_close(same.eval()(x), x)


@pytest.mark.parametrize("side", [64, 128])
def test_vectors_have_a_cell_per_four_pixels_and_a_column_per_axis(side: int) -> None:
    net = GV(68, "mobilenetv3-small").eval()
    with torch.inference_mode():
        (vectors,) = net(torch.randn(2, 3, side, side))
    assert vectors.shape == (2, 68, side // 4, 2)


def test_face_score_adds_two_logits() -> None:
    net = GV(19, "mobilenetv3-small", face_score=True).eval()
    with torch.inference_mode():
        vectors, logits = net(torch.randn(3, 3, 64, 64))
    assert vectors.shape == (3, 19, 16, 2)
    assert logits.shape == (3, 2)


def test_an_unknown_encoder_or_network_lists_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"wanted one of mobilenetv3-large, .*got 'vgg'"):
        GV(68, "vgg")
    with pytest.raises(ValueError, match=r"wanted one of .*gv.*got 'gw'"):
        nets.build("gw", 68)


def test_build_gives_the_named_network_with_its_options() -> None:
    net = nets.build("gv", 68, encoder="mobilenetv3-small", face_score=True)
    assert isinstance(net, GV)
    assert net.score is not None


def test_state_dict_keys_stay_compatible_with_earlier_checkpoints() -> None:
    """The names under which weights are stored are a contract with every checkpoint and card."""
    keys = set(nets.FromBytes(GV(68, face_score=True)).state_dict())
    assert {
        "net.encoder.stem.0.weight",
        "net.encoder.stem.1.running_mean",
        "net.encoder.units.0.block.0.0.weight",
        "net.encoder.units.3.block.2.fc1.weight",
        "net.encoder.units.14.block.3.1.bias",
        "net.decoder.laterals.3.weight",
        "net.decoder.smooth.bias",
        "net.head.weight",
        "net.score.hidden.weight",
        "net.score.logits.bias",
    } <= keys
    assert len(keys) == 318
    assert not any(key.startswith("net.pool") for key in keys)


# band pooling: what follows from its equations


def maps(seed: int = 0, side: int = 16) -> Tensor:
    return torch.randn(2, 5, side, side, generator=torch.Generator().manual_seed(seed))


def bands(heatmaps: Tensor, width: int) -> Tensor:
    """Eq. 4 as written: the mean over a band as high as the map, padding counted, and the same lying down."""
    side = heatmaps.shape[-1]
    x = F.avg_pool2d(heatmaps, (side, width), 1, (0, width // 2))[:, :, 0]
    y = F.avg_pool2d(heatmaps, (width, side), 1, (width // 2, 0))[..., 0]
    return torch.stack((x, y), -1)


@pytest.mark.parametrize("width", [1, 3, 5, 7])
def test_band_pooling_is_average_pooling_over_bands(width: int) -> None:
    pool = BandPooling((width, width))
    torch.testing.assert_close(pool(maps()), bands(maps(), width), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_two_bandwidths_are_mixed_with_alpha(alpha: float) -> None:
    mixed = alpha * bands(maps(), 3) + (1 - alpha) * bands(maps(), 5)
    torch.testing.assert_close(BandPooling((3, 5), alpha)(maps()), mixed, atol=1e-6, rtol=1e-5)


def test_default_kernel_averages_bandwidths_3_and_5() -> None:
    assert BandPooling().kernel.flatten().tolist() == pytest.approx([0.1, 0.26667, 0.26667, 0.26667, 0.1], abs=1e-4)


def test_bandwidth_1_gives_column_and_row_means() -> None:
    pooled = BandPooling((1, 1))(maps())
    torch.testing.assert_close(pooled[..., 0], maps().mean(2))
    torch.testing.assert_close(pooled[..., 1], maps().mean(3))


def test_band_pooling_is_linear() -> None:
    pool, a, b = BandPooling(), maps(1), maps(2)
    torch.testing.assert_close(pool(2 * a - 3 * b), 2 * pool(a) - 3 * pool(b), atol=1e-5, rtol=1e-5)


def test_transposing_the_maps_swaps_x_and_y() -> None:
    pool = BandPooling()
    torch.testing.assert_close(pool(maps().transpose(2, 3)), pool(maps()).flip(-1))


def test_mirroring_the_maps_reverses_x_alone() -> None:
    pool = BandPooling()
    mirrored, straight = pool(maps().flip(3)), pool(maps())
    torch.testing.assert_close(mirrored[..., 0], straight[..., 0].flip(2))
    torch.testing.assert_close(mirrored[..., 1], straight[..., 1])


def test_a_peak_in_the_map_is_a_peak_at_its_column_and_row() -> None:
    heatmaps = torch.zeros(1, 1, 16, 16)
    heatmaps[0, 0, 4, 11] = 16.0
    x, y = BandPooling()(heatmaps)[0, 0].unbind(-1)
    assert x.nonzero().flatten().tolist() == [9, 10, 11, 12, 13]
    assert y.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    assert x.sum() == pytest.approx(1.0)


def test_even_bandwidth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"odd bandwidths.*got \(3, 4\)"):
        BandPooling((3, 4))


# preprocessing


class Echo(nn.Module):
    """Gives back what it got."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def byte_pictures() -> UInt8:
    return np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)


def test_bgr_bytes_become_scaled_rgb_planes() -> None:
    pictures = byte_pictures()
    planes = nets.FromBytes(Echo())(torch.from_numpy(pictures))
    wanted = (pictures[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 128.0
    np.testing.assert_array_equal(planes.numpy(), wanted)
    assert planes.dtype == torch.float32
