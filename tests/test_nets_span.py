"""SPAN against the paper's parameter counts and checkpoint sizes, and its attention against Eqs. 9 and 10."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the networks need the `train` extra")

from facetrack.engines import nets  # noqa: E402
from facetrack.engines.nets.span import SCPA, SPAN  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

MIB = 1024**2


def on_meta(name="span", landmarks=68, **options):
    with torch.device("meta"):
        return nets.build(name, landmarks, **options)


@pytest.mark.parametrize(
    ("name", "stacks", "count", "millions", "checkpoint"),
    [
        ("span", 4, 17_093_212, 16.99, 195),
        ("span", 2, 8_767_850, 8.73, 100),
        ("shn", 4, 16_042_000, 16.05, 184),
    ],
)
def test_parameter_counts_and_checkpoint_sizes_match_the_paper(name, stacks, count, millions, checkpoint):
    assert nets.parameters(on_meta(name, stacks=stacks)) == count
    assert count / 1e6 == pytest.approx(millions, rel=0.007)
    # The paper's "size" is a checkpoint with Adam's two moments: 12 bytes a parameter, in MiB.
    assert 12 * count / MIB == pytest.approx(checkpoint, rel=0.005)


@pytest.mark.parametrize(("stacks", "count", "printed"), [(4, 16_992_370, "16.99"), (2, 8_730_022, "8.73")])
def test_with_19_landmarks_the_counts_are_the_printed_digits(stacks, count, printed):
    assert nets.parameters(on_meta(landmarks=19, stacks=stacks)) == count
    assert f"{count / 1e6:.2f}" == printed


def test_field_per_landmark_has_the_expected_parameters_and_output_shape():
    assert nets.parameters(on_meta(field_per_landmark=True)) == 17_106_886
    net = SPAN(68, width=8, field_per_landmark=True).eval()
    assert net(torch.zeros(1, 3, 128, 128))[1].shape == (1, 68, 2, 64, 64)


def test_every_stage_has_its_own_weights():
    assert nets.parameters(on_meta().stages[0]) == 4_162_681
    assert nets.parameters(on_meta()) - nets.parameters(on_meta(stacks=3)) == 4_162_681


def test_training_gives_the_logits_of_every_stage_and_deployment_maps_and_field():
    net, picture = nets.build("span", 68, width=8), torch.zeros(1, 3, 256, 256)
    output = net(picture)
    assert [m.shape for m in output.landmarks] == [(1, 68, 64, 64)] * 3 + [(1, 68, 128, 128)]
    assert [m.shape for m in output.boundaries] == [(1, 15, 64, 64)] * 3 + [(1, 15, 128, 128)]
    assert output.field.shape == (1, 15, 2, 128, 128)
    assert [m.shape for m in net.eval()(picture)] == [(1, 68, 128, 128), (1, 15, 2, 128, 128)]


def test_operations_are_those_of_the_reconstruction():
    assert nets.gmac(on_meta().eval(), (256, 256)) == pytest.approx(21.66, abs=0.01)
    assert nets.gmac(on_meta(stacks=2).eval(), (256, 256)) == pytest.approx(12.23, abs=0.01)


def test_deployed_heatmaps_are_the_softmax_of_the_trained_logits():
    torch.manual_seed(0)
    net, x = SPAN(5, stacks=2, width=8).eval(), torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        maps, field = net(x)
        net.training = True  # the answer of training with the statistics of deployment
        output = net(x)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 5))
    torch.testing.assert_close(maps.flatten(2), output.landmarks[-1].flatten(2).softmax(2))
    assert torch.equal(field, output.field)


def test_the_attention_keeps_every_feature_at_least_once_and_at_most_twice():
    torch.manual_seed(0)
    stage, p = SCPA(5, 8).eval(), torch.randn(1, 8, 32, 32)
    with torch.no_grad():
        q, (features, logits) = stage.hourglass(p)[0], stage(p)
    ratio = features / q
    assert ((ratio > 1 - 1e-5) & (ratio < 2 + 1e-5)).all()
    assert logits.shape == (1, 20, 32, 32)


def test_a_closed_mask_passes_the_features_on_unchanged():
    torch.manual_seed(0)
    stage, p = SCPA(5, 8).eval(), torch.randn(1, 8, 32, 32)
    with torch.no_grad():
        stage.rb2[1].layers[2][2].bias.fill_(-1e9)
        assert torch.equal(stage(p)[0], stage.hourglass(p)[0])


def test_the_baseline_answers_like_span_without_a_field():
    net, picture = on_meta("shn", stacks=2, width=64, face_score=True), torch.empty(2, 3, 128, 128, device="meta")
    assert [m.shape for m in net(picture).landmarks] == [(2, 68, 32, 32), (2, 68, 64, 64)]
    assert [m.shape for m in net.eval()(picture)] == [(2, 68, 64, 64), (2, 2)]


def test_compact_span_has_the_same_outputs_on_a_smaller_picture():
    net = on_meta(stacks=1, width=64, face_score=True).eval()
    shapes = [m.shape for m in net(torch.empty(2, 3, 128, 128, device="meta"))]
    assert shapes == [(2, 68, 64, 64), (2, 15, 2, 64, 64), (2, 2)]


def test_without_attention_every_stage_passes_its_features_on_and_has_no_mask_to_learn():
    """Row SHN + BALI of Table I; RB2 is 428,070 parameters of each of three stages."""
    assert nets.parameters(on_meta()) - nets.parameters(on_meta(attention=False)) == 3 * 428_070
    torch.manual_seed(0)
    stage, p = SCPA(5, 8, attention=False).eval(), torch.randn(1, 8, 32, 32)
    with torch.no_grad():
        assert torch.equal(stage(p)[0], stage.hourglass(p)[0])


def test_without_a_field_span_outputs_landmark_maps_and_no_field():
    """Row SHN + SCPA of Table I; 30 maps of the last convolution, with 128 inputs and a bias each."""
    assert nets.parameters(on_meta()) - nets.parameters(on_meta(field=False)) == 30 * 129
    net, picture = on_meta(stacks=2, width=64, field=False, face_score=True), torch.empty(2, 3, 128, 128, device="meta")
    output = net(picture)
    assert output.field is None
    assert [m.shape for m in output.boundaries] == [(2, 15, 32, 32), (2, 15, 64, 64)]
    assert [m.shape for m in net.eval()(picture)] == [(2, 68, 64, 64), (2, 2)]
