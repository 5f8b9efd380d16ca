"""The papers' networks at their published sizes, for comparison: what `facetrack models --published` shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from . import build, gmac, parameters


@dataclass(frozen=True, slots=True)
class Published:
    """One network of a paper.

    Attributes:
        title: as the paper calls it.
        name, landmarks, options: the arguments of `build`.
        side: of its square input, pixels; 0 if the cost depends on how many candidates are refined.
        paper: what the paper says about its size and cost, in the paper's units; "" if it says nothing.
    """

    title: str
    name: str
    landmarks: int
    side: int
    paper: str
    options: dict[str, Any] = field(default_factory=dict)

    def measured(self) -> tuple[int, float, float]:
        """Parameters, billions of multiplications for one picture, MiB of fp32 weights; computed from shapes alone.

        Everything that is trained counts, because the papers' counts include what only training needs.
        """
        with torch.device("meta"):
            net = build(self.name, self.landmarks, **self.options)
        count = parameters(net)
        cost = gmac(net, (self.side, self.side)) if self.side else float("nan")
        return count, cost, count * 4 / 2**20


PUBLISHED = (
    Published("BB-FCN backbone", "bbfcn-backbone", 5, 32, ""),
    Published("BB-FCN", "bbfcn", 5, 0, ""),
    Published("BB-FCN", "bbfcn", 29, 0, ""),
    Published("BB-FCN", "bbfcn", 68, 0, ""),
    Published("BB-FCN's regression network", "bbfcn-regression", 5, 32, ""),
    Published("TAB, 1 hourglass", "tab", 98, 256, "64.5 MB", {"stacks": 1}),
    Published("TAB, 2 hourglasses", "tab", 98, 256, "86.9 MB", {"stacks": 2}),
    Published("PropNet", "propnet", 98, 256, "36.30 M, 42.83 GFLOPs"),
    Published("GV, ResNet50-V2", "gv", 68, 256, "", {"encoder": "resnet50v2", "width": 256}),
    Published("GV, HRNetV2-W32", "gv", 68, 256, "", {"encoder": "hrnetv2-w32"}),
    Published("GV, MobileNetV3", "gv", 68, 256, "", {"encoder": "mobilenetv3-large"}),
    Published("SPAN baseline", "shn", 68, 256, "16.05 M"),
    Published("SPAN, 1 SCPA", "span", 68, 256, "8.73 M", {"stacks": 2}),
    Published("SPAN, 3 SCPA", "span", 68, 256, "16.99 M", {"stacks": 4}),
)


def rows() -> list[list[str]]:
    """A table of all of them, the header first."""
    head = ["NETWORK", "LANDMARKS", "INPUT", "PARAMETERS", "GMAC", "MiB", "PAPER"]
    table = [head]
    for net in PUBLISHED:
        count, multiplications, size = net.measured()
        cost = [f"{net.side}", f"{multiplications:.3f}"] if net.side else ["any", ""]
        counts = [f"{count:,}", cost[1], f"{size:.2f}"]
        table.append([net.title, f"{net.landmarks}", cost[0], *counts, net.paper])
    return table
