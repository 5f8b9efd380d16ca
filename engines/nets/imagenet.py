"""Use encoders that torchvision publishes with ImageNet weights as stems behind facetrack's own preprocessing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from . import MEAN, STD

# torchvision turns a colour in [0, 1] into (colour - mean) / std; red, green, blue
COLOUR_MEAN, COLOUR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLACES = ("", "features.")  # prefixes in resnet50 and vgg16_bn of the layers of ResNetStem and vgg_stem


def layers_of(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The layers with these names in a published state dict, under either prefix; as many as there are."""
    return max(({n: state[p + n] for n in names if p + n in state} for p in PLACES), key=len)


def fold_normalisation(layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert layers for torchvision's normalised pictures to layers for the pictures of `FromBytes`.

    Torchvision's colour is gain * ours + shift. The gain goes into the first convolution. The convolution's response to
    the shift, which is the same everywhere, is added to its bias, or subtracted from the running mean of the
    normalisation behind it. The outputs are the same except near the picture's border: torchvision's padding there is
    the mean colour, ours is grey.

    Args:
        layers: in their order; the first convolution sees red, green and blue.
    Raises:
        ValueError: it does not.
    """
    folded = dict(layers)
    first = next((name for name, value in layers.items() if value.ndim == 4), "")
    if not first or layers[first].shape[1] != 3:
        raise ValueError("the first convolution does not see red, green and blue")
    mean, std = torch.tensor(COLOUR_MEAN), torch.tensor(COLOUR_STD)
    gain, shift = STD / (255 * std), (MEAN / 255 - mean) / std
    folded[first] = layers[first] * gain[:, None, None]
    constant = (layers[first].sum((2, 3)) * shift).sum(1)  # (O,)
    bias = first.removesuffix("weight") + "bias"
    if bias in layers:
        folded[bias] = layers[bias] + constant
    else:
        behind = next(name for name in layers if name.endswith("running_mean"))
        folded[behind] = layers[behind] - constant
    return folded
