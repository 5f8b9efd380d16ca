"""All levels of a pyramid in one atlas give what each of them gives alone, but for a little at their borders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes_gpu import OnnxRuntimeOnGpu, fake_toolkit
from fakes_onnx import scan_net, small_net, weights_of

from facetrack.engines import graph, packed
from facetrack.engines.card import ModelCard, find_card
from facetrack.engines.detector import LAST_LEVEL, Detector, adaptive_min_face, level_scales
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.engines.packed import FILL, GUTTER, pack_levels, run_levels
from facetrack.engines.parity import Proof
from facetrack.engines.parts import HALO
from facetrack.engines.plan_cache import PlanCache
from facetrack.engines.tensorrt_backend import TensorRTBackend
from facetrack.engines.tensorrt_build import LARGEST, PlanRequest, build_plan, make_logger
from facetrack.engines.tensorrt_open import open_tensorrt
from facetrack.pipeline.portrait import portrait
from facetrack.tracker.types import UInt8

SIZES = [(224, 296), (116, 152), (64, 80), (36, 44), (24, 28)]  # of the levels of 640x480
SHIPPED = Path(__file__).parent.parent / "engines" / "weights" / "bbfcn-5-scan.onnx"
needs_weights = pytest.mark.skipif(not SHIPPED.exists(), reason="the trained weights are not here")


class FarSums:
    """A network that sees as far as BB-FCN's, and for which `FILL` is what lies beyond a picture: nothing.

    Each answer is the sum of the pixels `HALO` - 1 away in each direction and of that between them.
    """

    description = "far sums"
    precision = None

    def __init__(self, atlas: tuple[int, int] | None) -> None:
        self.max_atlas, self.runs = atlas, 0

    def run(self, images: UInt8) -> tuple[Any, ...]:
        self.runs += 1
        far = HALO - 1
        planes = images.astype(np.float32).transpose(0, 3, 1, 2) - np.float32(FILL)
        seen = np.pad(planes, ((0, 0), (0, 0), (far, far), (far, far)))
        height, width = planes.shape[2:]
        places = [(y, x) for y in (0, far, 2 * far) for x in (0, far, 2 * far)]
        return (sum(seen[:, :, y : y + height, x : x + width] for y, x in places),)

    def close(self) -> None:
        pass


def noise(sizes: list[tuple[int, int]] = SIZES, seed: int = 0) -> list[UInt8]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def photograph(name: str) -> UInt8:
    if name == "portrait":
        return portrait()
    data = pytest.importorskip("skimage.data", reason="needs the dev extra")
    return np.ascontiguousarray(data.astronaut()[..., ::-1])


def pyramid(card: ModelCard, name: str) -> list[UInt8]:
    """The levels that a detector makes of a photograph in 640x480."""
    seen: list[UInt8] = []

    class Blind(FarSums):
        def run(self, images: UInt8) -> tuple[Any, ...]:
            seen.extend(images)
            return (np.zeros((1, 5, *images.shape[1:3]), np.float32),)

    Detector(card, Blind(None), Blind(None)).detect(resized(photograph(name), (480, 640)))
    assert [level.shape[:2] for level in seen] == SIZES
    return seen


def resized(picture: UInt8, size: tuple[int, int]) -> UInt8:
    return np.asarray(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def both(scan: Any, levels: list[UInt8]) -> tuple[list[Any], list[Any]]:
    """The answers to each level alone, and all in one atlas."""
    scan.max_atlas = None
    alone = [maps.copy() for maps in run_levels(scan, levels)]
    scan.max_atlas = LARGEST
    return alone, list(run_levels(scan, levels))


def differences(scan: Any, levels: list[UInt8]) -> Any:
    """Between these two, of all answers."""
    alone, packed = both(scan, levels)
    return np.concatenate([np.abs(got - wanted).ravel() for wanted, got in zip(alone, packed, strict=True)])


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return find_card("bbfcn", "detect")


@pytest.fixture
def scan(card: ModelCard) -> OnnxBackend:
    """The file that a GPU runs, on the CPU."""
    return OnnxBackend(card.weights["scan"])


def some_pyramids(count: int) -> list[list[tuple[int, int]]]:
    """Sizes of the levels of pictures of any shape, as a detector makes them."""
    rng, pyramids = np.random.default_rng(0), []
    for picture in np.exp(rng.uniform(0, np.log(4000), (count, 2))).astype(int):
        share = rng.choice([1.0, 0.5])
        scales = level_scales(min(picture), share * adaptive_min_face(*picture), 15.0, 2.0, LAST_LEVEL)
        pyramids.append([tuple(4 * int(np.ceil(side * scale / 4 + 2)) for side in picture) for scale in scales])
    return pyramids


def test_packed_levels_keep_their_gutters_stay_in_the_atlas_and_waste_little_of_it() -> None:
    for sizes in some_pyramids(500):
        layout = pack_levels(tuple(sizes))
        owner = np.zeros(layout.size, np.uint8)
        for (y, x), (height, width) in zip(layout.corners, sizes, strict=True):
            assert y % 4 == x % 4 == 0
            assert y + height <= layout.size[0]
            assert x + width <= layout.size[1]
            assert not owner[max(y - GUTTER, 0) : y + height + GUTTER, max(x - GUTTER, 0) : x + width + GUTTER].any()
            owner[y : y + height, x : x + width] = 1
        assert layout.area <= 1.1 * sum((height + GUTTER) * (width + GUTTER) for height, width in sizes)
        assert layout.area <= 2.2 * sum(height * width for height, width in sizes)


def test_a_level_that_is_alone_is_the_atlas() -> None:
    assert pack_levels(((36, 44),)) == packed.AtlasLayout((36, 44), ((0, 0),))


def test_the_smaller_levels_go_where_they_need_less_room() -> None:
    assert pack_levels(tuple(SIZES)) == packed.AtlasLayout(
        (396, 296), ((0, 0), (260, 0), (260, 188), (360, 188), (360, 268))
    )
    assert pack_levels(tuple(size[::-1] for size in SIZES)).size == (296, 396)


@pytest.mark.parametrize("sizes", [*some_pyramids(12), SIZES])
def test_packed_run_is_bit_identical_to_separate_runs_if_gutters_are_invisible(
    sizes: list[tuple[int, int]],
) -> None:
    levels, one, several = noise(sizes), FarSums((9999, 9999)), FarSums(None)
    for got, wanted in zip(run_levels(one, levels), run_levels(several, levels), strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.flags.c_contiguous  # what reads them is compiled for such
    assert (one.runs, several.runs) == (1, len(levels))


def test_levels_come_one_by_one_where_there_is_no_atlas() -> None:
    taken: list[int] = []
    network = FarSums(None)

    def levels() -> Any:
        for number, level in enumerate(noise()):
            taken.append(number)
            yield level

    for number, _ in enumerate(run_levels(network, levels()), 1):
        assert len(taken) == network.runs == number
    assert network.runs == len(noise())


@needs_weights
@pytest.mark.parametrize("name", ["portrait", "astronaut"])
def test_shipped_network_gives_the_same_packed_outputs_away_from_borders(
    card: ModelCard, scan: OnnxBackend, name: str
) -> None:
    levels = pyramid(card, name)
    alone, packed_ones = both(scan, levels)
    assert len(alone) == len(levels)
    for wanted, got in zip(alone, packed_ones, strict=True):
        assert got.shape == wanted.shape
        inner = (slice(None), slice(HALO, -HALO), slice(HALO, -HALO))
        np.testing.assert_allclose(got[inner], wanted[inner], atol=1e-5)


@needs_weights
def test_shipped_network_output_of_a_level_is_independent_of_the_other_levels(scan: OnnxBackend) -> None:
    scan.max_atlas = LARGEST
    first = list(run_levels(scan, noise()))
    for kept in (0, 1, 3):
        others = noise(seed=1)
        others[kept] = noise()[kept]
        np.testing.assert_allclose(list(run_levels(scan, others))[kept], first[kept], atol=1e-5)


@needs_weights
@pytest.mark.parametrize("name", ["portrait", "astronaut"])
def test_packed_outputs_differ_at_borders_by_less_than_a_peak(card: ModelCard, scan: OnnxBackend, name: str) -> None:
    """A landmark's answer is about 1."""
    found = differences(scan, pyramid(card, name))
    assert found.mean() < 0.015
    assert found.max() < 2 / 3 * card.codec["peak"]


def assert_same_faces(found: Any, wanted: Any) -> None:
    """The same faces in the same order; boxes within 1 % of their sides."""
    assert len(found) == len(wanted) > 0
    sides = (wanted.boxes[:, 2:] - wanted.boxes[:, :2]).max(1)
    assert (np.abs(found.boxes - wanted.boxes).max(1) < 0.03 * sides).all()
    assert np.abs(found.scores - wanted.scores).max() < 0.02


@needs_weights
@pytest.mark.parametrize("name", ["portrait", "astronaut"])
@pytest.mark.parametrize("size", [(480, 640), (720, 1280)])
@pytest.mark.parametrize("small", [True, False])
def test_packed_detection_finds_the_same_faces_as_separate_levels(
    card: ModelCard, scan: OnnxBackend, name: str, size: tuple[int, int], small: bool
) -> None:
    picture = resized(photograph(name), size)
    detector = Detector(card, scan, OnnxBackend(card.weights["refine"]))
    wanted = detector.detect(picture, small=small)
    scan.max_atlas = LARGEST
    assert_same_faces(detector.detect(picture, small=small), wanted)


@needs_weights
@pytest.mark.parametrize(("largest", "runs"), [((396, 296), 1), ((392, 296), 5)])
def test_tensorrt_scans_a_pyramid_in_one_run_if_its_plan_holds_the_atlas(
    card: ModelCard, scan: OnnxBackend, largest: tuple[int, int], runs: int
) -> None:
    toolkit, holds = fake_toolkit()
    request = PlanRequest("fp32", (1,), ((12, 12), (64, 64), largest))
    content = graph.for_tensorrt(card.weights["scan"].read(), "fp32")
    plan, _ = build_plan(toolkit.trt, make_logger(toolkit.trt), content, request)
    engine = TensorRTBackend(toolkit.trt, toolkit.open_cuda(), plan, graph.output_names(content), "fp32")
    picture, refine = resized(portrait(), (480, 640)), OnnxBackend(card.weights["refine"])
    found = Detector(card, engine, refine).detect(picture)
    assert holds[-1].calls.count("upload") == runs
    assert_same_faces(found, Detector(card, scan, refine).detect(picture))
    engine.close()


def test_a_tensorrt_plan_has_an_atlas_if_it_takes_pictures_of_any_size(tmp_path: Path) -> None:
    toolkit, _ = fake_toolkit()
    judge = Proof(noise([(16, 16)])[0][None], lambda outputs: outputs[0][:, :, :, :2].reshape(1, -1, 2))
    request = PlanRequest("fp32", (1,), ((12, 12), (16, 16), (96, 104)))
    for name, net, atlas in (("scan", scan_net(), (96, 104)), ("crops", small_net(size=(16, 16)), None)):
        engine = open_tensorrt(weights_of(net, tmp_path, name), judge, request, toolkit, PlanCache(tmp_path / "plans"))
        assert engine.max_atlas == atlas
        engine.close()


@pytest.mark.parametrize(
    ("provider", "name"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")]
)
def test_onnx_runtime_has_an_atlas_on_a_gpu_and_none_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, provider: str, name: str
) -> None:
    assert OnnxBackend(scan_net()).max_atlas is None
    monkeypatch.setitem(sys.modules, "onnxruntime", OnnxRuntimeOnGpu(name))
    assert OnnxBackend(scan_net(), provider=provider).max_atlas == LARGEST


def test_torch_has_an_atlas_on_a_gpu_and_none_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra")
    from facetrack.engines.torch_backend import TorchBackend

    class Anywhere(torch.nn.Identity):
        def to(self, device: str) -> Any:
            del device
            return self

    assert TorchBackend(Anywhere()).max_atlas is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert TorchBackend(Anywhere(), "cuda").max_atlas == LARGEST
