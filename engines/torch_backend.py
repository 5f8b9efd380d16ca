"""Torch at run time, for research and as the reference: the network itself, rebuilt from its trained weights.

They cannot be recovered from ONNX files (the exporter folds normalisation into convolutions), so they are kept as
NAME.torch.npz beside NAME.onnx or in `$FACETRACK_HOME/weights`: plain arrays, never pickles, with the arguments that
build the network and the hash of the ONNX file that was exported from it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..tracker.errors import BackendError
from .backend import CLOSED, GPU_BATCH
from .card import Weights, home
from .files import replace_file
from .held import HeldSetting
from .packed import LARGEST_ATLAS

if TYPE_CHECKING:
    from torch import nn

    from ..tracker.types import UInt8
    from .backend import Outputs

INSTALL = 'pip install "facetrack[train]"'
RECIPE = "recipe"


def torch_file(onnx: Path) -> Path:
    """The file of an ONNX file's torch weights: beside it, else in the user's own folder."""
    beside = onnx.with_suffix(".torch.npz")
    return beside if beside.exists() else home() / "weights" / beside.name


def save_torch_weights(net: nn.Module, onnx: Path, network: str, landmarks: int, options: Mapping[str, Any]) -> Path:
    """Save the weights of a network for `TorchBackend`, beside the ONNX file that was exported from it.

    Args:
        net: in `nets.FromBytes`.
        onnx: the published file, whose hash is saved too.
        network: name, for `nets.build`.
        landmarks: number of them, for `nets.build`.
        options: for `nets.build`.
    Returns:
        The file's path.
    Raises:
        BackendError: it cannot be written.
    """
    sha256 = hashlib.sha256(onnx.read_bytes()).hexdigest()
    recipe = json.dumps({"network": network, "landmarks": landmarks, "options": dict(options), "onnx_sha256": sha256})
    path = onnx.with_suffix(".torch.npz")
    arrays: dict[str, Any] = {name: _stored(value.detach().cpu().numpy()) for name, value in net.state_dict().items()}
    arrays[RECIPE] = np.array(recipe)
    content = BytesIO()
    np.savez_compressed(content, **arrays)
    replace_file(path, content.getvalue())
    return path


def _stored(values: NDArray[Any]) -> NDArray[Any]:
    """Convert weights of layers to 16 bits, as in the ONNX file; leave biases and everything else unchanged."""
    return values.astype(np.float16) if values.dtype == np.float32 and values.ndim > 1 else values


def read_state(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read the arrays of a file of torch weights, in 32 bits, and the recipe that builds their network.

    Raises:
        OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile: the file is missing or not one of facetrack's.
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in archive.items()}
    return arrays, json.loads(str(arrays.pop(RECIPE)))


def open_torch(weights: Weights, device: str = "cpu", threads: int = 1) -> TorchBackend:
    """Rebuild the network of an ONNX file.

    Raises:
        BackendError: torch, its GPU or the torch weights are missing, or the weights belong to another ONNX file.
        CardError: the card's weights are missing or altered.
    """
    try:
        import torch
    except ImportError as error:
        raise BackendError(f"backend torch: {error}; run: {INSTALL}") from error
    weights.read()  # checks that the file is there and has the card's hash
    torch.set_num_threads(threads)
    return TorchBackend(load_net(torch_file(weights.path), weights.sha256), device)


def load_net(path: Path, onnx_sha256: str) -> nn.Module:
    """Build a network with its weights, in `nets.FromBytes` and in evaluation mode.

    Raises:
        BackendError: the file is missing, unreadable, or of another ONNX file.
    """
    import torch

    from . import nets

    try:
        arrays, recipe = read_state(path)
    except FileNotFoundError as error:
        raise BackendError(
            f"{path}: no torch weights of this network; they come from its training, wanted beside the ONNX file or in "
            f"{home() / 'weights'}; use --backend onnx"
        ) from error
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BackendError(f"{path}: not torch weights of facetrack: {error}") from error
    found = recipe["onnx_sha256"]
    if found != onnx_sha256:
        raise BackendError(
            f"{path}: belongs to another ONNX file: wanted sha256 {onnx_sha256[:16]}..., got {found[:16]}..."
        )
    net = nets.FromBytes(nets.build(recipe["network"], recipe["landmarks"], **recipe["options"]))
    net.load_state_dict({name: torch.from_numpy(values) for name, values in arrays.items()})
    return net.eval()


def _get_tf32() -> bool:
    from torch.backends import cudnn

    return bool(cudnn.allow_tf32)


def _set_tf32(allowed: bool) -> None:
    from torch.backends import cudnn

    cudnn.allow_tf32 = allowed


# TF32, cuDNN's default for the whole process, is off while a network of facetrack runs in torch
_without_tf32 = HeldSetting(_get_tf32, _set_tf32, False)


class TorchBackend:
    """`Backend` on a network in torch, in fp32."""

    precision = "fp32"
    shapes = None  # a module has none until it runs

    def __init__(self, net: nn.Module, device: str = "cpu") -> None:
        """Move a network to a device.

        Args:
            net: in `nets.FromBytes` and in evaluation mode.
            device: "cpu" or "cuda".
        Raises:
            BackendError: torch sees no GPU.
        """
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise BackendError(
                f"backend torch: torch {torch.__version__} sees no GPU; `facetrack doctor` says why, or install a CUDA "
                "build: https://pytorch.org/get-started/locally"
            )
        self._torch, self._device = torch, device
        self._net: Any = net.to(device)
        self.max_atlas = None if device == "cpu" else LARGEST_ATLAS
        self.preferred_batch = 1 if device == "cpu" else GPU_BATCH
        place = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        self.description = f"torch {torch.__version__}, {place}"

    def run(self, images: UInt8) -> Outputs:
        """See `Backend`."""
        if self._net is None:
            raise BackendError(CLOSED)
        with self._torch.inference_mode(), _without_tf32:
            outputs = self._net(self._torch.from_numpy(np.ascontiguousarray(images)).to(self._device))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(output.cpu().numpy() for output in outputs)

    def close(self) -> None:
        """See `Backend`."""
        self._net = None
