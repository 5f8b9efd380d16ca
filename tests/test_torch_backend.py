"""Torch beside ONNX Runtime: the same network, the same answers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facetrack.engines.backend import open_backend
from facetrack.engines.card import Weights
from facetrack.engines.torch_backend import TorchBackend, open_torch, save_torch_weights, torch_file
from facetrack.tracker.errors import BackendError, CardError

torch = pytest.importorskip("torch", reason="needs the train extra")

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)


def backbone() -> Any:
    """BB-FCN's backbone with random weights."""
    from facetrack.engines import nets

    torch.manual_seed(0)
    return nets.FromBytes(nets.build("bbfcn-backbone", 5)).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A stand-in for its ONNX file, which torch does not read, and its torch weights."""
    path = tmp_path_factory.mktemp("torch") / "net.onnx"
    path.write_bytes(b"the exported network")
    save_torch_weights(backbone(), path, "bbfcn-backbone", 5, {})
    return Weights(path, hashlib.sha256(path.read_bytes()).hexdigest(), "fp32")


def test_rebuilt_network_matches_the_trained_one(exported: Weights) -> None:
    backend = open_backend(exported, "torch")
    with torch.inference_mode():
        wanted = backbone()(torch.from_numpy(PICTURES)).numpy()
    (maps,) = backend.run(PICTURES)
    np.testing.assert_allclose(maps, wanted, atol=2e-4)  # large weights are stored in 16 bits
    assert backend.description.startswith("torch 2.")
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        backend.run(PICTURES)


@pytest.mark.parametrize("before", [True, False])
def test_cudnn_disables_tf32_while_networks_run_and_restores_it_afterwards(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second network's run begins within the first one's, and ends before it; an error ends a run, too."""
    cudnn, seen = torch.backends.cudnn, []
    others = ("enabled", "benchmark", "deterministic")
    monkeypatch.setattr(cudnn, "allow_tf32", before)
    kept = [getattr(cudnn, name) for name in others]

    class Net(torch.nn.Module):
        def __init__(self, within: TorchBackend | None) -> None:
            super().__init__()
            self.within = within

        def forward(self, pictures: Any) -> Any:
            if self.within:
                with pytest.raises(ZeroDivisionError):
                    self.within.run(PICTURES)
            seen.append((cudnn.allow_tf32, *(getattr(cudnn, name) for name in others)))
            return pictures if self.within else 1 / 0

    TorchBackend(Net(TorchBackend(Net(None)))).run(PICTURES)
    assert seen == [(False, *kept)] * 2
    assert [cudnn.allow_tf32, *(getattr(cudnn, name) for name in others)] == [before, *kept]


@pytest.mark.slow  # torch's exporter alone takes most of a minute on two cores
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about torch
def test_torch_and_onnx_runtime_agree(tmp_path: Path) -> None:
    from facetrack.engines.export import check_parity, export_onnx

    path = tmp_path / "net.onnx"
    export_onnx(backbone(), path, PICTURES[:2], ("maps",))
    check_parity(backbone(), path, PICTURES, 1e-5)
    save_torch_weights(backbone(), path, "bbfcn-backbone", 5, {})
    weights = Weights(path, hashlib.sha256(path.read_bytes()).hexdigest(), "fp32")
    one, other = open_backend(weights, "torch"), open_backend(weights, "onnx")
    for got, wanted in zip(one.run(PICTURES), other.run(PICTURES), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-4)


def test_weight_file_holds_only_the_weights_and_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy 2.0 knows no `allow_pickle` where it writes: whatever is given by name is stored."""
    stored: dict[str, Any] = {}
    monkeypatch.setattr(np, "savez_compressed", lambda _, **arrays: stored.update(arrays))
    (tmp_path / "net.onnx").write_bytes(b"the exported network")
    save_torch_weights(backbone(), tmp_path / "net.onnx", "bbfcn-backbone", 5, {})
    assert {*stored} == {*backbone().state_dict(), "recipe"}


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.onnx").write_bytes(b"the exported network")
    path = save_torch_weights(backbone(), tmp_path / "net.onnx", "bbfcn-backbone", 5, {})
    old = path.read_bytes()

    def break_off(file: Any, **_: Any) -> None:
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", break_off)
    with pytest.raises(KeyboardInterrupt):
        save_torch_weights(backbone(), tmp_path / "net.onnx", "bbfcn-backbone", 5, {})
    assert path.read_bytes() == old
    assert {file.name for file in tmp_path.iterdir()} == {"net.onnx", "net.torch.npz"}


def test_weights_of_another_onnx_file_raise(exported: Weights, tmp_path: Path) -> None:
    other = tmp_path / "net.onnx"
    other.write_bytes(exported.path.read_bytes() + b"\x00")
    other.with_suffix(".torch.npz").write_bytes(torch_file(exported.path).read_bytes())
    with pytest.raises(BackendError, match="belongs to another ONNX file"):
        open_torch(Weights(other, hashlib.sha256(other.read_bytes()).hexdigest(), "fp32"))


def test_altered_onnx_file_raises_although_it_is_not_run(exported: Weights) -> None:
    with pytest.raises(CardError, match="not the weights of the card"):
        open_torch(Weights(exported.path, "0" * 64, "fp32"))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_corrupt_weight_file_raises(exported: Weights, tmp_path: Path, content: bytes) -> None:
    copy = tmp_path / "net.onnx"
    copy.write_bytes(exported.path.read_bytes())
    copy.with_suffix(".torch.npz").write_bytes(content)
    with pytest.raises(BackendError, match="not torch weights of facetrack"):
        open_torch(Weights(copy, exported.sha256, "fp32"))


def test_pickled_arrays_are_not_read(exported: Weights, tmp_path: Path) -> None:
    copy = tmp_path / "net.onnx"
    copy.write_bytes(exported.path.read_bytes())
    with copy.with_suffix(".torch.npz").open("wb") as file:
        np.savez(file, recipe=np.array({"network": "bbfcn"}, dtype=object))
    with pytest.raises(BackendError, match="not torch weights of facetrack"):
        open_torch(Weights(copy, exported.sha256, "fp32"))


def test_torch_weights_are_looked_up_in_the_users_own_folder(
    exported: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    assert torch_file(tmp_path / "elsewhere" / "net.onnx") == tmp_path / "weights" / "net.torch.npz"
    assert torch_file(exported.path).parent == exported.path.parent


def test_torch_cuda_raises_without_a_gpu(exported: Weights) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    with pytest.raises(BackendError, match="sees no GPU"):
        open_backend(exported, "torch:cuda")
