"""BB-FCN's networks, labels and loss against the paper's numbers."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks need the `train` extra")

from facetrack.engines import nets  # noqa: E402
from facetrack.engines.nets.bbfcn import (  # noqa: E402
    BBFCN,
    Backbone,
    Branches,
    Doubling,
    RegressionBaseline,
    cut_windows,
    window_corners,
)
from facetrack.engines.nets.folded import FoldedBackbone  # noqa: E402
from facetrack.training.config import Discs  # noqa: E402
from facetrack.training.datasets import Sample  # noqa: E402
from facetrack.training.detection.chips import FIVE, Chip, draw_targets, mirrored, place_box  # noqa: E402
from facetrack.training.detection.discs import UNKNOWN, WITHOUT_LANDMARK, disc_maps, selective_l2  # noqa: E402
from facetrack.training.detection.objectives import held_out  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_turned_copies_of_a_held_out_photograph_are_held_out_too():
    def sample(name):
        return Sample(Path("set") / name, np.zeros((0, 5, 2), np.float32), b"")

    photographs = [f"image_{i:04d}{suffix}" for i in range(400) for suffix in (".jpg", ".png")]
    kept = [name for name in photographs if held_out(sample(name))]
    assert len(kept) == pytest.approx(len(photographs) / 10, rel=0.25)
    assert kept == [name for name in photographs if zlib.crc32(name.encode()) % 10 == 0]  # as they always were
    for name in kept:
        assert all(held_out(sample(f"{Path(name).stem}_turned{i}_yaw{35 * i:+03.0f}.jpg")) for i in range(3))
    copies = [f"{Path(name).stem}_turned0_yaw+35.jpg" for name in photographs[::2]]
    assert np.mean([not held_out(sample(name)) for name in copies]) > 0.5


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (Backbone(5), 148_435),
        (Branches(1), 2_401),
        (Branches(5), 12_005),
        (BBFCN(5), 160_440),
        (Backbone(29), 148_819),
        (BBFCN(29), 218_448),
        (Backbone(68), 149_443),
        (BBFCN(68), 312_711),
        (RegressionBaseline(5), 138_905),
    ],
)
def test_parameter_counts_match_the_paper(net, count):
    assert nets.parameters(net) == count


def test_the_backbone_has_eight_convolutions_and_two_deconvolutions():
    layers = [layer for layer in Backbone().modules() if isinstance(layer, (torch.nn.Conv2d, Doubling))]
    shapes = [(layer.out_channels, layer.kernel_size[0], layer.in_channels) for layer in layers]
    c, d = "C", "D"
    wanted = [(20, 5, 3), (20, 5, 20), (30, 5, 20), (30, 5, 30), (40, 5, 30), (40, 5, 40)]
    wanted += [(30, 2, 40), (30, 5, 30), (15, 2, 30), (5, 1, 15)]
    assert shapes == wanted
    assert [d if isinstance(layer, Doubling) else c for layer in layers] == list("CCCCCCDCDC")


@pytest.mark.parametrize("size", [(32, 32), (24, 64), (4, 8)])
def test_backbone_output_has_the_size_of_its_input(size):
    assert Backbone()(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


def test_baseline_output_has_a_quarter_of_the_input_size():
    (cells,) = RegressionBaseline()(torch.zeros(1, 3, 32, 32))
    assert cells.shape == (1, 15, 8, 8)


def test_backbone_gives_the_same_inside_a_large_picture_as_in_a_crop():
    torch.manual_seed(0)
    net, picture = Backbone().eval(), torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        whole, crop = net(picture), net(picture[:, :, 16:144, 16:144])
    inner = slice(40, 88)  # the receptive field reaches 38 pixels
    torch.testing.assert_close(whole[:, :, 56:104, 56:104], crop[:, :, inner, inner], atol=1e-6, rtol=1e-5)


def test_doubling_layer_matches_the_rectified_transposed_convolution():
    torch.manual_seed(0)
    layer, x = Doubling(6, 4), torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(layer(x), torch.relu(torch.nn.ConvTranspose2d.forward(layer, x)))


@pytest.mark.parametrize("size", [(32, 32), (24, 64), (4, 8)])
def test_folded_backbone_matches_the_backbone(size):
    torch.manual_seed(0)
    net, x = Backbone(7), torch.randn(2, 3, *size)
    for layer in net.parameters():
        layer.data.uniform_(-0.15, 0.15)  # biases, too
    maps = net(x)
    assert maps.std() > 0.01
    torch.testing.assert_close(FoldedBackbone(net)(x), maps, atol=1e-5, rtol=1e-4)


def test_folded_backbone_has_no_larger_kernels_than_it_needs():
    """With more, whose weights were zeros, it would answer the same and be the slower one."""
    folded = FoldedBackbone(Backbone())
    layers = [layer for layer in folded.modules() if isinstance(layer, torch.nn.Conv2d)]
    five = 3  # cells of 2x2 pixels do for 5x5 pixels
    at_full, at_half = [five, five], [2 * five, five]  # the first at half the size takes the cells' pixels one by one
    at_quarter, decoder = [5, 5, 1], [five, 1, 1]
    assert [layer.kernel_size[0] for layer in layers] == [*at_full, *at_half, *at_quarter, *decoder]


def test_a_folded_backbone_is_a_copy():
    net, x = Backbone(), torch.ones(1, 3, 8, 8)
    folded = FoldedBackbone(net)
    before = folded(x)
    for layer in net.parameters():
        layer.data.zero_()
    assert torch.equal(folded(x), before)


def test_grouped_branches_match_separate_branches():
    torch.manual_seed(0)
    together, planes = Branches(3), torch.randn(2, 3, 4, 24, 24)
    for k in range(3):
        alone = Branches(1)
        for mine, shared in zip(alone.parameters(), together.parameters(), strict=True):
            mine.data = shared.data.chunk(3)[k].clone()
        torch.testing.assert_close(alone(planes[:, k : k + 1])[:, 0], together(planes)[:, k])


def test_windows_are_cut_round_the_thirteen_highest_responses():
    coarse = torch.from_numpy(disc_maps(np.array([[[10.0, 7.0], [25.0, 28.0]]], np.float32), 32, radius=2)).float()
    corner = window_corners(coarse[None])
    assert corner[0].tolist() == [[2 * 10 + 1 - 12, 2 * 7 + 1 - 12], [2 * 25 + 1 - 12, 2 * 28 + 1 - 12]]


def test_cut_windows_are_the_pixels_at_the_corner_and_a_constant_beyond():
    planes = torch.arange(2 * 64 * 64, dtype=torch.float32).view(1, 2, 1, 64, 64)
    corner = torch.tensor([[[5, 9], [-11, 51]]])
    inside, edge = cut_windows(planes, corner, beyond=-1.0)[0, :, 0]
    assert torch.equal(inside, planes[0, 0, 0, 9:33, 5:29])
    assert torch.equal(edge[:13, 11:], planes[0, 1, 0, 51:64, 0:13])
    assert (edge[13:] == -1).all()
    assert (edge[:, :11] == -1).all()


def test_bbfcn_returns_coarse_maps_fine_maps_and_window_corners():
    coarse, fine, corner = nets.FromBytes(nets.build("bbfcn", 5))(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    assert coarse.shape == (2, 5, 32, 32)
    assert fine.shape == (2, 5, 24, 24)
    assert corner.shape == (2, 5, 2)


def test_a_branch_sees_its_window_of_the_picture_and_of_its_own_map():
    torch.manual_seed(0)
    net, crop = BBFCN(2).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        coarse, fine, corner = net(crop)
        x, y = (int(v) for v in corner[0, 1])
        own = torch.nn.functional.interpolate(coarse[:, 1:], scale_factor=2, mode="bilinear")
        planes = torch.nn.functional.pad(torch.cat((crop, own), 1), (12, 12, 12, 12))
        window = planes[:, :, y + 12 : y + 36, x + 12 : x + 36]
        both = torch.stack((window, window), 1)
        torch.testing.assert_close(net.branches(both)[:, 1], fine[:, 1])


def test_a_disc_of_radius_two_has_thirteen_pixels_whose_mean_is_the_landmark():
    plane = disc_maps(np.array([[[10.0, 7.0]]], np.float32), 32, radius=2)[0]
    assert plane.sum() == 13
    assert np.argwhere(plane).mean(0).tolist() == [7, 10]
    shifted = disc_maps(np.array([[[13.0, 8.0]]], np.float32), 32, radius=2)[0]
    assert np.array_equal(shifted[1:, 3:], plane[:-1, :-3])


def test_discs_are_clipped_at_the_border_and_unannotated_points_are_drawn_nowhere():
    points = np.array([[[0.0, 0.0], [np.nan, np.nan]]], np.float32)
    corner, nothing = disc_maps(points, 16, radius=2)
    assert corner.sum() == 6  # a quarter of the disc with its two half axes
    assert nothing.sum() == 0
    assert disc_maps(np.empty((0, 5, 2), np.float32), 16, radius=2).sum() == 0


def test_discs_of_two_faces_share_a_map_and_are_ringed_by_unknown_pixels():
    points = np.array([[[5.0, 5.0]], [[12.0, 12.0]]], np.float32)
    plane = disc_maps(points, 20, radius=2, ring=1)[0]
    assert (plane == 1).sum() == 26
    assert (plane == UNKNOWN).sum() == 2 * (29 - 13)  # a disc of radius 3 has 29 pixels


@pytest.mark.parametrize("hardest", [False, True])
def test_selective_loss_touches_as_many_background_as_landmark_pixels(hardest):
    torch.manual_seed(0)
    targets = torch.from_numpy(disc_maps(np.array([[[8.0, 8.0], [3.0, 4.0]]], np.float32), 16, radius=2))[None]
    targets[0, 1] = 0  # the second type is not in the picture
    maps = torch.randn(1, 2, 16, 16, requires_grad=True)
    selective_l2(maps, targets, hardest=hardest).backward()
    touched = maps.grad != 0
    assert touched[0, 0][targets[0, 0] == 1].all()
    assert touched[0, 0][targets[0, 0] == 0].sum() == 13
    assert touched[0, 1].sum() == WITHOUT_LANDMARK


def test_hardest_background_pixels_are_those_with_the_highest_response():
    targets = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    maps = torch.arange(64.0).view(1, 1, 8, 8).requires_grad_()
    selective_l2(maps, targets, hardest=True).backward()
    assert maps.grad.flatten().nonzero().flatten().tolist() == list(range(64 - WITHOUT_LANDMARK, 64))


def test_unknown_pixels_are_never_selected():
    targets = torch.full((1, 1, 8, 8), UNKNOWN, dtype=torch.uint8)
    targets[0, 0, 0, :5] = 0
    maps = torch.randn(1, 1, 8, 8, requires_grad=True)
    loss = selective_l2(maps, targets, hardest=True)
    loss.backward()
    assert torch.isfinite(loss)
    assert (maps.grad != 0).sum() == 5


def test_mirrored_chip_gives_the_mirrored_targets_of_its_window():
    rng = np.random.default_rng(3)
    five = np.array([[[34, 30], [50, 29], [43, 39], [36, 47], [49, 46]]], np.float32)
    chip = Chip(
        bgr=rng.integers(0, 256, (70, 90, 3), np.uint8),
        points=five,
        mouths=five[:, 3:].mean(1),
        boxes=np.array([[42.0, 38.0, 22.0]], np.float32),
    )
    window = place_box(chip.boxes[0], 22.0, 0.2, np.array([2.0, -1.0]), 48)
    flipped, back = mirrored(chip, window)
    assert (flipped.bgr == chip.bgr[:, ::-1]).all()
    maps, wanted = (draw_targets(c, w, 48, Discs()) for c, w in ((flipped, back), (chip, window)))
    assert wanted.any((1, 2)).all()
    np.testing.assert_array_equal(maps, wanted[FIVE.mirror][..., ::-1])
