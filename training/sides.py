"""Check before a run that the network takes crops of the configured sides."""

from __future__ import annotations

import torch

from ..engines import nets
from ..tracker.errors import ConfigError
from .config import Schedule

STEP, REACH = 8, 128  # pixels: step and range of the search for a larger side that would work


def check_crop_sides(net: nets.FromBytes, schedule: Schedule) -> None:
    """Check that a network takes crops of every side in the schedule; its weights and statistics do not change.

    Raises:
        ConfigError: it does not; names the side, and the next larger one that it takes.
    """
    for side in sorted({side for _, side in schedule.sizes}):
        error = _refusal(net, side)
        if error is None:
            continue
        larger = range(side // STEP * STEP + STEP, side + REACH + 1, STEP)
        fits = next((other for other in larger if _refusal(net, other) is None), None)
        told = f"the next larger side that it takes is {fits}" if fits else f"nor up to {side + REACH}"
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"schedule.sizes: the network takes no crops of {side} pixels; {told} ({reason})") from error


@torch.inference_mode()
def _refusal(net: nets.FromBytes, side: int) -> RuntimeError | ValueError | None:
    """The error that a network raises on a black crop of this side, if any."""
    training = net.training
    net.eval()
    try:
        net(torch.zeros(1, side, side, 3, dtype=torch.uint8, device=next(net.parameters()).device))
    except (RuntimeError, ValueError) as error:
        return error
    finally:
        net.train(training)
    return None
