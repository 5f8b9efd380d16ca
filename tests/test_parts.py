"""More than a runtime takes at once, run in parts, gives what it would give at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.engines.parts import HALO, run_in_batches, run_in_tiles
from facetrack.tracker.errors import BackendError
from facetrack.tracker.types import UInt8

SHIPPED = Path(__file__).parent.parent / "engines" / "weights" / "bbfcn-5-scan.onnx"


def pictures(count: int, height: int, width: int) -> UInt8:
    return np.random.default_rng(height * width).integers(0, 256, (count, height, width, 3), np.uint8)


def near_sums(images: UInt8) -> tuple[Any, ...]:
    """A network that sees as far as BB-FCN's: each pixel's sum with those `HALO` - 1 away, 0 beyond the edge."""
    planes, far = images.astype(np.float32).transpose(0, 3, 1, 2), HALO - 1
    seen = np.pad(planes, ((0, 0), (0, 0), (far, far), (far, far)))
    height, width = planes.shape[2:]
    corners = [(y, x) for y in (0, far, 2 * far) for x in (0, far, 2 * far)]
    return planes, sum(seen[:, :, y : y + height, x : x + width] for y, x in corners)


@pytest.mark.parametrize("size", [(96, 96), (100, 96), (96, 140), (116, 120), (124, 400), (500, 92), (388, 412)])
def test_tiled_run_is_bit_identical_to_the_whole_picture(size: tuple[int, int]) -> None:
    shapes = []

    def run(tile: UInt8) -> tuple[Any, ...]:
        shapes.append(tile.shape[1:3])
        return near_sums(tile)

    images = pictures(2, *size)
    for got, wanted in zip(run_in_tiles(run, images, (96, 108)), near_sums(images), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert max(shape[0] for shape in shapes) <= 96
    assert max(shape[1] for shape in shapes) <= 108


def test_input_that_fits_is_passed_on_without_a_copy() -> None:
    images, seen = pictures(1, 96, 108), []
    run_in_tiles(lambda tile: seen.append(tile) or near_sums(tile), images, (96, 108))  # type: ignore[func-returns-value]
    assert seen[0] is images
    run_in_batches(lambda batch: seen.append(batch) or near_sums(batch), images, 1)  # type: ignore[func-returns-value]
    assert seen[1] is images


def test_tiled_outputs_that_are_no_maps_raise() -> None:
    with pytest.raises(
        BackendError, match=r"wanted at most \(96, 96\); the outputs of this network's tiles cannot be joined"
    ):
        run_in_tiles(lambda tile: (tile[:, :1].astype(np.float32),), pictures(1, 96, 100), (96, 96))


@pytest.mark.parametrize("count", [1, 4, 5, 8, 11])
def test_split_batches_are_joined_even_if_parts_share_output_memory(count: int) -> None:
    memory = np.empty((4, 3, 8, 8), np.float32)

    def run(batch: UInt8) -> tuple[Any, ...]:
        memory[: len(batch)] = near_sums(batch)[0]
        return (memory[: len(batch)],)

    images = pictures(count, 8, 8)
    (got,) = run_in_batches(run, images, 4)
    np.testing.assert_array_equal(got, near_sums(images)[0])


def test_receptive_field_of_the_backbone_fits_in_the_halo() -> None:
    """The gradient of an answer is zero for every pixel that it does not depend on."""
    torch = pytest.importorskip("torch", reason="needs the train extra")
    from facetrack.engines import nets

    torch.manual_seed(0)
    net, middle, farthest = nets.build("bbfcn-backbone", 5).eval(), 80, 0
    for parameter in net.parameters():
        parameter.data.abs_()  # so that no rectifier hides a pixel
    for place in range(middle, middle + 4):  # every place in a cell of the pooling
        picture = torch.rand(1, 3, 2 * middle, 2 * middle, requires_grad=True)
        net(picture)[0, :, place, place].sum().backward()
        rows = picture.grad.abs().sum((0, 1, 3)).nonzero()
        farthest = max(farthest, *(abs(int(row) - place) for row in (rows.min(), rows.max())))
    assert HALO - 4 < farthest <= HALO


@pytest.mark.skipif(not SHIPPED.exists(), reason="the trained weights are not here")
def test_the_shipped_scan_gives_the_same_in_tiles() -> None:
    scan, images = OnnxBackend(SHIPPED.read_bytes()), pictures(1, 212, 300)
    (wanted,) = scan.run(images)
    (got,) = run_in_tiles(scan.run, images, (128, 144))
    np.testing.assert_allclose(got, wanted, atol=1e-4)
