"""TAB against the sizes in the paper, torchvision's names and the equations of its fusion."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the networks need the `train` extra")
import torch.nn.functional as F  # noqa: E402

from facetrack.engines import nets  # noqa: E402
from facetrack.engines.nets.tab import BALT, SCBE, TAB, ResNetStem, vgg_stem  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

MIB = 1024**2


def on_meta(landmarks=68, **options):
    with torch.device("meta"):
        return nets.build("tab", landmarks, **options)


def features(width, side):
    return [torch.randn(2, width, side // 2**i, side // 2**i) for i in range(4)]


@pytest.mark.parametrize(("stacks", "count", "mib"), [(2, 22_787_714, 86.9), (1, 16_957_554, 64.5)])
def test_parameters_meet_the_papers_two_model_sizes(stacks, count, mib):
    net = on_meta(landmarks=98, stacks=stacks)
    assert nets.parameters(net) == count
    assert 4 * count / MIB == pytest.approx(mib, abs=0.3)


def test_one_stack_has_the_parameters_of_the_published_hourglass():
    two, one = (nets.parameters(on_meta(landmarks=98, stacks=n)) for n in (2, 1))
    assert two - one == 5_830_160
    hourglass = on_meta(landmarks=98).scbe.hourglasses[0]
    assert nets.parameters(hourglass) == 5_283_200


@pytest.mark.parametrize("stem", ["vgg", "resnet", "hourglass"])
def test_every_stem_ends_in_a_quarter_of_the_picture(stem):
    net = on_meta(stem=stem)
    assert net.scbe.stem(torch.empty(1, 3, 256, 256, device="meta")).shape == (1, 256, 64, 64)


def test_vgg_stem_has_the_parameter_names_and_shapes_of_torchvision():
    convolutions = {
        0: (64, 3),
        3: (64, 64),
        7: (128, 64),
        10: (128, 128),
        14: (256, 128),
        17: (256, 256),
        20: (256, 256),
    }
    wanted = {}
    for index, (outputs, inputs) in convolutions.items():
        wanted |= {f"{index}.weight": (outputs, inputs, 3, 3), f"{index}.bias": (outputs,)}
        for name in ("weight", "bias", "running_mean", "running_var"):
            wanted[f"{index + 1}.{name}"] = (outputs,)
        wanted[f"{index + 1}.num_batches_tracked"] = ()
    with torch.device("meta"):
        stem = vgg_stem(256)
    assert {name: tuple(value.shape) for name, value in stem.state_dict().items()} == wanted
    assert nets.parameters(stem) == 1_737_792


def test_resnet_stem_has_the_parameter_names_and_shapes_of_torchvision():
    with torch.device("meta"):
        names = {name: tuple(value.shape) for name, value in ResNetStem(256).named_parameters()}
    assert names["conv1.weight"] == (64, 3, 7, 7)
    assert names["layer1.0.conv1.weight"] == (64, 64, 1, 1)
    assert names["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert names["layer1.0.downsample.1.bias"] == (256,)
    assert names["layer1.2.conv3.weight"] == (256, 64, 1, 1)
    assert sum(torch.Size(s).numel() for s in names.values()) == 225_344  # torchvision's resnet50 to layer1


def test_training_gives_every_stacks_boundaries_and_deployment_the_landmarks_alone():
    picture = torch.zeros(1, 3, 256, 256)
    net = TAB(98, width=8)
    output = net(picture)
    assert [m.shape for m in output.landmarks] == [(1, 98, 64, 64)]
    assert [m.shape for m in output.boundaries] == [(1, 16, 64, 64)] * 2
    assert [m.shape for m in net.eval()(picture)] == [(1, 98, 64, 64)]


def test_features_come_at_four_scales():
    with torch.device("meta"):
        scbe = SCBE(2, 256, "vgg")
    got = scbe(torch.empty(1, 3, 256, 256, device="meta"))[1]
    assert [b.shape for b in got] == [(1, 256, n, n) for n in (64, 32, 16, 8)]


def test_operations_match_the_reconstruction_plus_the_transitions_it_omits():
    """Its 24.90 GMAC count each transition once; in Eq. 4 finer features are transformed too, before their pooling."""
    net = on_meta(landmarks=98).eval()
    width, sizes = 256, (128, 256, 256)  # of the levels that hear one finer scale, at 64, 32 and 16 cells
    finer = sum(width * outputs * (64 // 2**i) ** 2 for i, outputs in enumerate(sizes))
    assert nets.gmac(net, (256, 256)) - finer / 1e9 == pytest.approx(24.90, abs=0.01)
    assert nets.gmac(net.scbe.stem, (256, 256)) == pytest.approx(12.19, abs=0.01)
    assert nets.gmac(net, (256, 256)) == pytest.approx(25.12, abs=0.01)


@pytest.mark.parametrize("fusion", [0, 1, 2, 3])
def test_fusion_follows_equations_3_to_5(fusion):
    torch.manual_seed(0)
    balt, maps, scales = BALT(5, 8, fusion).eval(), torch.randn(2, 16, 16, 16), features(8, 16)
    with torch.no_grad():
        encoded, fused = [balt.downs[0](maps)], []
        for i in range(1, 5):
            y = encoded[-1]
            for j in range(max(1, i - fusion + 1), i + 1) if fusion else ():
                heard = balt.transitions[i - 1](scales[j - 1])
                for _ in range(i - j):
                    heard = F.max_pool2d(heard, 2)
                y = y + heard
            fused.append(y)
            encoded.append((balt.downs[i] if i < 4 else balt.bottom)(F.max_pool2d(y, 2)))
        decoded = F.interpolate(encoded[-1], scale_factor=2, mode="bilinear")
        for k in range(1, 5):
            decoded = balt.ups[k - 1](torch.cat((fused[4 - k], decoded), 1))
            decoded = F.interpolate(decoded, scale_factor=2, mode="bilinear") if k < 4 else decoded
        torch.testing.assert_close(balt(maps, scales), balt.head(decoded))


def test_output_without_fusion_ignores_the_features():
    balt, maps = BALT(5, 8, 0).eval(), torch.randn(2, 16, 16, 16)
    assert torch.equal(balt(maps, features(8, 16)), balt(maps, features(8, 16)))


def test_neither_fusion_nor_the_scales_change_a_parameter():
    assert len({nets.parameters(on_meta(fusion=t)) for t in range(4)}) == 1
    assert len({nets.parameters(on_meta(scales=s)) for s in (1, 2, 3, 4)}) == 1


def test_single_scale_features_are_the_finest_alone():
    """The "ss" of section 4.9: what is not heard may be anything."""
    torch.manual_seed(0)
    balt, maps, scales = BALT(5, 8, 2, scales=1).eval(), torch.randn(2, 16, 16, 16), features(8, 16)
    with torch.no_grad():
        heard = balt(maps, scales)
        assert torch.equal(heard, balt(maps, [scales[0], *features(8, 16)[1:]]))
        assert not torch.equal(heard, balt(maps, [features(8, 16)[0], *scales[1:]]))


def test_zeroed_transitions_equal_no_fusion():
    torch.manual_seed(0)
    balt, maps, scales = BALT(5, 8, 2).eval(), torch.randn(2, 16, 16, 16), features(8, 16)
    for transition in balt.transitions:
        torch.nn.init.zeros_(transition.weight)
        torch.nn.init.zeros_(transition.bias)
    silent = balt(maps, scales)
    balt.fusion = 0
    assert torch.equal(silent, balt(maps, scales))


def test_frozen_boundaries_do_not_change_in_training():
    torch.manual_seed(0)
    net = TAB(5, stacks=2, width=8)
    net.freeze_boundaries()
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=1.0)
    net(torch.randn(2, 3, 64, 64)).landmarks[0].square().sum().backward()
    optimiser.step()
    moved = {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"balt"}


def test_hourglasses_start_with_small_weights_and_the_stem_does_not():
    torch.manual_seed(0)
    scbe = SCBE(1, 16, "vgg")
    assert scbe.hourglasses[0].bottom.conv1[2].weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert scbe.stem[0].weight.std() > 0.05


def test_compact_tab_gives_maps_and_logits_for_a_smaller_picture():
    net = on_meta(stacks=1, width=64, face_score=True).eval()
    maps, logits = net(torch.empty(2, 3, 128, 128, device="meta"))
    assert (maps.shape, logits.shape) == ((2, 68, 32, 32), (2, 2))
    assert nets.gmac(net, (128, 128)) < 0.4


def test_wrong_options_and_sizes_are_named():
    with pytest.raises(ValueError, match="stem"):
        on_meta(stem="vgg19")
    with pytest.raises(ValueError, match="fusion"):
        on_meta(fusion=4)
    with pytest.raises(ValueError, match="scales: wanted 1 to 4, got 0"):
        on_meta(scales=0)
    with pytest.raises(ValueError, match="multiples of 64 pixels"):
        on_meta()(torch.empty(1, 3, 96, 96, device="meta"))
