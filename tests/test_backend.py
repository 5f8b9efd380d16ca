"""The seam to the runtimes, on a graph of two nodes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from fakes_gpu import OnnxRuntimeOnGpu

from facetrack.engines.backend import has_int8_dot_product, open_backend
from facetrack.engines.card import Weights
from facetrack.engines.cuda_probe import find_gpu
from facetrack.engines.onnx_backend import PROVIDERS, OnnxBackend
from facetrack.tracker.errors import BackendError, CardError

onnx = pytest.importorskip("onnx", reason="needs the train extra")
pytest.importorskip("onnxruntime")


def tiny_weights(folder: Path, content: bytes | None = None) -> Weights:
    """A network whose two outputs are the pictures as floats and their means over all pixels."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["bgr"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values"], ["means"], axes=[1, 2], keepdims=0),
    ]
    shape = ["batch", 4, 5, 3]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("bgr", TensorProto.UINT8, shape)],
        [
            helper.make_tensor_value_info("values", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("means", TensorProto.FLOAT, ["batch", 3]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content = model.SerializeToString() if content is None else content
    path = folder / "tiny.onnx"
    path.write_bytes(content)
    return Weights(path, hashlib.sha256(content).hexdigest(), "fp32")


@pytest.mark.parametrize("kind", ["auto", "onnx"])
@pytest.mark.parametrize("batch", [1, 3])
def test_backend_returns_all_outputs_in_order(tmp_path: Path, kind: str, batch: int) -> None:
    backend = open_backend(tiny_weights(tmp_path), kind)
    images = np.random.default_rng(0).integers(0, 256, (batch, 4, 5, 3), np.uint8)
    values, means = backend.run(images)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, images.astype(np.float32))
    np.testing.assert_allclose(means, images.mean((1, 2)), rtol=1e-6)
    backend.close()


def test_the_description_names_runtime_and_threads(tmp_path: Path) -> None:
    weights = tiny_weights(tmp_path)
    assert open_backend(weights).description.startswith("ONNX Runtime ")
    assert "CPU, 1 thread" in OnnxBackend(weights).description
    assert "2 threads" in OnnxBackend(weights, threads=2).description


FORKED = """
import os, signal, sys
from pathlib import Path
from facetrack.engines.onnx_backend import OnnxBackend

backend = OnnxBackend(Path(sys.argv[1]).read_bytes(), threads=2)
if not (child := os.fork()):
    signal.alarm(20)  # ends a child that hangs
    exec(sys.argv[2])
    sys.exit(7)
backend.close()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked there")
@pytest.mark.parametrize("leave", ["pass", "backend.close()", "del backend"])
def test_forked_process_exits_although_the_networks_threads_stayed_in_its_parent(leave: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(tiny_weights(tmp_path).path), leave]
    assert subprocess.run(command, capture_output=True, check=True, text=True, timeout=100).stdout == "7\n"


def test_altered_weights_are_not_loaded(tmp_path: Path) -> None:
    weights = tiny_weights(tmp_path)
    weights.path.write_bytes(weights.path.read_bytes() + b"\x00")
    with pytest.raises(CardError, match="not the weights of the card"):
        open_backend(weights)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"none\.onnx: cannot read"):
        open_backend(Weights(tmp_path / "none.onnx", "0" * 64, "fp32"))


@pytest.mark.parametrize("content", [b"", b"no network at all"])
def test_unloadable_network_is_reported_with_its_file_and_reason(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BackendError, match=r"tiny\.onnx: ONNX Runtime cannot load this network: ."):
        open_backend(tiny_weights(tmp_path, content))


def test_an_unknown_backend_lists_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"unknown backend: wanted one of auto, onnx, .*, got 'cuda'"):
        open_backend(tiny_weights(tmp_path), "cuda")


def test_auto_logs_which_backend_it_chooses_and_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("this machine has TensorRT")
    with caplog.at_level("INFO"):
        open_backend(tiny_weights(tmp_path), "auto")
    assert "backend auto uses ONNX Runtime" in caplog.text
    assert "(the package tensorrt is not installed)" in caplog.text


@pytest.mark.parametrize(
    ("cpu", "features", "multiplies"),
    [
        ("apple-m1", {}, True),  # LLVM tells no feature on macOS
        ("apple-m4", None, True),  # or that it cannot tell
        ("generic", None, False),
        ("znver2", {"avx2": True, "avx512vnni": False}, False),
        ("alderlake", {"avx2": True, "avxvnni": True}, True),
    ],
)
def test_cpus_with_an_int8_dot_product_are_recognised(
    cpu: str, features: dict[str, bool] | None, multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> dict[str, bool]:
        if features is None:
            raise RuntimeError("failed to get host cpu features")
        return features

    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", told)
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_name", lambda: cpu)
    assert has_int8_dot_product.__wrapped__() is multiplies


def test_auto_logs_the_weights_file_it_chooses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facetrack.engines.backend.has_int8_dot_product", lambda: True)
    monkeypatch.setattr("facetrack.engines.backend._cached_plan", lambda _: (None, ""))
    weights = tiny_weights(tmp_path)
    cpu = replace(weights, path=weights.path.with_name("for-cpus.onnx"))
    cpu.path.write_bytes(weights.path.read_bytes())
    with caplog.at_level("INFO"):
        open_backend(replace(weights, cpu=cpu), "auto")
    assert "for-cpus.onnx: backend auto uses" in caplog.text


@pytest.mark.parametrize("kind", ["onnx:cuda", "onnx:tensorrt"])
def test_missing_execution_provider_error_names_its_package(tmp_path: Path, kind: str) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the providers")
    with pytest.raises(BackendError, match=r"wanted \w+ExecutionProvider, got .*pip install onnxruntime-gpu"):
        open_backend(tiny_weights(tmp_path), kind)


@pytest.mark.parametrize(
    ("raised", "platform", "remedy"),
    [
        ("ModuleNotFoundError", "win32", "pip install onnxruntime$"),
        ("ImportError", "win32", r"install the Microsoft Visual C\+\+ Redistributable"),
        ("ImportError", "linux", "pip install --force-reinstall onnxruntime$"),
    ],
)
def test_onnx_runtime_import_error_names_its_remedy(
    raised: str, platform: str, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text(f"raise {raised}('DLL load failed')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr("sys.platform", platform)
    with pytest.raises(BackendError, match=f"^ONNX Runtime cannot be imported: DLL load failed; to fix it: {remedy}"):
        OnnxBackend(tiny_weights(tmp_path))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("older", [False, True])
def test_cuda_libraries_from_pip_are_preloaded_before_a_network_is_opened(
    provider: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, *, older: bool
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", OnnxRuntimeOnGpu(PROVIDERS[provider], older=older))
    for _ in range(2):
        backend = OnnxBackend(tiny_weights(tmp_path), provider=provider)
        assert backend.description.endswith(PROVIDERS[provider])
    assert capsys.readouterr().out == ""  # where tables and JSON may go


@pytest.mark.parametrize(("provider", "options"), [("cpu", {}), ("cuda", {"use_tf32": "0"}), ("tensorrt", {})])
def test_onnx_runtime_disables_tf32_on_cuda(
    provider: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = OnnxRuntimeOnGpu(PROVIDERS[provider])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    OnnxBackend(tiny_weights(tmp_path), provider=provider)
    assert runtime.options == options


def test_opening_a_network_turns_off_onnx_runtime_telemetry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = OnnxRuntimeOnGpu(PROVIDERS["cuda"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    OnnxBackend(tiny_weights(tmp_path))
    assert not runtime.telemetry


def test_tensorrt_without_a_driver_raises_instead_of_ending_the_process(tmp_path: Path) -> None:
    with suppress(BackendError):
        find_gpu()
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match=r"no NVIDIA driver: .* install the driver|NVIDIA driver: cuInit gives"):
        open_backend(tiny_weights(tmp_path), "tensorrt")


def test_torch_backend_without_weights_names_the_file_it_wants(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    with pytest.raises(BackendError, match=r"tiny\.torch\.npz: no torch weights of this network"):
        open_backend(tiny_weights(tmp_path), "torch")
