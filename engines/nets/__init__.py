"""The networks in torch, one readable file each; imported only for training, export and research."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .bbfcn import BBFCN, Backbone, RegressionBaseline
from .gv import GV
from .propnet import PropNet
from .span import SHN, SPAN
from .tab import TAB

NETWORKS: dict[str, type[nn.Module]] = {
    "bbfcn": BBFCN,
    "bbfcn-backbone": Backbone,
    "bbfcn-regression": RegressionBaseline,
    "gv": GV,
    "propnet": PropNet,
    "shn": SHN,
    "span": SPAN,
    "tab": TAB,
}


MEAN, STD = 127.5, 128.0  # `FromBytes` turns a byte into (byte - MEAN) / STD


class FromBytes(nn.Module):
    """A network behind its own preprocessing: uint8 BGR crops in, raw outputs out.

    Training, export and every runtime share these nodes, so none of them can scale or order colours differently.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, crops: Tensor) -> Any:
        """Run on (F, h, w, 3) uint8 BGR."""
        rgb = crops.permute(0, 3, 1, 2).float().flip(1)  # F, 3, h, w
        return self.net((rgb - MEAN) / STD)


def build(name: str, landmarks: int, **options: Any) -> nn.Module:
    """Build an untrained network by its name.

    Raises:
        ValueError: there is no such network.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network: wanted one of {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name](landmarks, **options)


def parameters(net: nn.Module) -> int:
    """Number of trainable values, including those that only training needs."""
    return sum(p.numel() for p in net.parameters())


def deployed_parameters(net: nn.Module, size: tuple[int, int]) -> int:
    """Number of trained values that a network (without `FromBytes`) uses for its deployed outputs.

    Parts such as PropNet's last propagation are for training only. Parameters that get a gradient are counted, from
    shapes alone, on one picture of (height, width).
    """
    deployed = copy.deepcopy(net).to("meta").eval().requires_grad_()
    answer = deployed(torch.empty(1, 3, *size, device="meta"))
    torch.stack([values.sum() for values in answer]).sum().backward()  # type: ignore[no-untyped-call]
    return sum(p.numel() for p in deployed.parameters() if p.grad is not None)


def gmac(net: nn.Module, size: tuple[int, int]) -> float:
    """Billions of multiplications that a network (without `FromBytes`) spends on one picture of (height, width).

    In training mode, outputs that are only supervised count, too. Convolutions and linear layers are counted, from
    shapes alone, whatever the network's size. Batch normalisations keep the shape and do not count; they are removed,
    because on "meta" they take most of the time.
    """
    shapes_only = copy.deepcopy(net).to("meta")
    for module in list(shapes_only.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        shapes_only(torch.empty(1, 3, *size, device="meta"))
    return float(counter.get_total_flops() / 2e9)


__all__ = ["MEAN", "STD", "FromBytes", "build", "deployed_parameters", "gmac", "parameters"]
