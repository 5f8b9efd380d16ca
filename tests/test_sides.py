"""Crop sides that a network cannot take are refused before its run begins, with one that it can."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from facetrack.engines import nets  # noqa: E402 - torch may be missing
from facetrack.tracker.errors import ConfigError  # noqa: E402
from facetrack.training.config import Schedule  # noqa: E402
from facetrack.training.sides import check_crop_sides  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def gv() -> nets.FromBytes:
    torch.manual_seed(0)
    return nets.FromBytes(nets.build("gv", 68, encoder="mobilenetv3-small", width=8))


@pytest.mark.parametrize(("side", "larger"), [(16, 32), (70, 96), (112, 128)])
def test_unsuitable_crop_side_is_refused_with_the_next_larger_suitable_one(
    gv: nets.FromBytes, side: int, larger: int
) -> None:
    told = (
        rf"^schedule\.sizes: the network takes no crops of {side} pixels; the next larger side .* is {larger} \(.*\)$"
    )
    with pytest.raises(ConfigError, match=told):
        check_crop_sides(gv, Schedule(sizes=((0.0, 64), (0.5, side))))


def test_checking_sides_leaves_network_and_random_state_unchanged(gv: nets.FromBytes) -> None:
    before, state = {k: v.clone() for k, v in gv.state_dict().items()}, torch.get_rng_state()
    check_crop_sides(gv, Schedule(sizes=((0.0, 64), (0.5, 96))))
    assert all(torch.equal(v, before[k]) for k, v in gv.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert gv.training
