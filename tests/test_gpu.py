"""Engines on a real GPU. Without one, every test here is skipped with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from facetrack.engines import graph
from facetrack.engines.backend import open_backend
from facetrack.engines.card import ModelCard, find_card
from facetrack.engines.detector import Detector
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.engines.parity import LIMITS_PX, measure
from facetrack.engines.plan_cache import PlanCache
from facetrack.engines.tensorrt_build import LARGEST, PlanRequest
from facetrack.engines.tensorrt_open import Toolkit, find_toolkit, open_tensorrt
from facetrack.pipeline.crops import portrait_proof
from facetrack.pipeline.portrait import portrait
from facetrack.tracker.errors import FacetrackError

pytestmark = pytest.mark.gpu
pytest.importorskip("onnx", reason="needs the gpu extra")


@pytest.fixture(scope="module")
def toolkit() -> Toolkit:
    try:
        return find_toolkit()
    except FacetrackError as error:
        pytest.skip(f"no TensorRT on a GPU: {error}")


@pytest.fixture(scope="module")
def card() -> ModelCard:
    try:
        return find_card("gv", "align")
    except FacetrackError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all tests: a build takes minutes."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("plans")
        patch.setenv("FACETRACK_PLANS", str(folder))
        yield folder


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_tensorrt_landmarks_match_onnx_runtime_in_every_batch(
    toolkit: Toolkit, card: ModelCard, plans: Path, precision: str
) -> None:
    proof, weights = portrait_proof(card, "net"), card.weights["net"]
    request = PlanRequest(precision, (1, 4, 8))
    engine = open_tensorrt(weights, proof, request, toolkit, PlanCache(plans))
    reference = OnnxBackend(graph.as_fp32(weights.read()))
    for parity in measure(reference, engine, proof, (1, 2, 3, 4, 7, 8)):
        assert parity.mean_px <= LIMITS_PX[precision], parity
    engine.close()


def test_auto_takes_an_existing_plan_and_logs_it(
    toolkit: Toolkit, card: ModelCard, plans: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proof, weights = portrait_proof(card, "net"), card.weights["net"]
    open_tensorrt(weights, proof, None, toolkit, PlanCache(plans)).close()
    with caplog.at_level("INFO"):
        backend = open_backend(weights, "auto")
    assert backend.description.startswith("TensorRT ")
    assert "backend auto uses TensorRT" in caplog.text
    backend.close()


def test_scan_in_one_atlas_finds_the_same_face_as_level_by_level(toolkit: Toolkit, plans: Path) -> None:
    detect = find_card("bbfcn", "detect")
    engine = open_tensorrt(detect.weights["scan"], portrait_proof(detect, "scan"), None, toolkit, PlanCache(plans))
    detector = Detector(detect, engine, OnnxBackend(detect.weights["refine"]))
    assert engine.max_atlas == LARGEST
    packed = detector.detect(portrait())
    engine.max_atlas = None
    separate = detector.detect(portrait())
    assert len(packed) == len(separate) == 1
    np.testing.assert_allclose(packed.boxes, separate.boxes, atol=1.0)
    engine.close()


def test_torch_works_before_between_and_after(toolkit: Toolkit, card: ModelCard, plans: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    proof, weights = portrait_proof(card, "net"), card.weights["net"]
    ones = torch.ones(1000, device="cuda")
    engine = open_tensorrt(weights, proof, None, toolkit, PlanCache(plans))
    first = engine.run(proof.pictures[:1])[0].copy()
    assert float((ones * 2).sum()) == 2000
    np.testing.assert_array_equal(engine.run(proof.pictures[:1])[0], first)
    engine.close()
    assert float((ones * 3).sum()) == 3000


def test_repeated_opening_and_closing_does_not_leak_gpu_memory(toolkit: Toolkit, card: ModelCard, plans: Path) -> None:
    torch = pytest.importorskip("torch", reason="tells how much memory is free")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    proof, weights = portrait_proof(card, "net"), card.weights["net"]

    def free_after_a_run() -> int:
        engine = open_tensorrt(weights, proof, None, toolkit, PlanCache(plans))
        engine.run(proof.pictures[:8])
        engine.close()
        return int(torch.cuda.mem_get_info()[0])

    torch.cuda.init()
    first = free_after_a_run()
    assert all(abs(free_after_a_run() - first) < 64e6 for _ in range(5))
