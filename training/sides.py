"""Whether a network takes crops of the configured sides, before a run begins."""

from __future__ import annotations

import torch

from ..engines import nets
from ..tracker.errors import ConfigError
from .config import Schedule

STEP, REACH = 8, 128  # pixels: how finely and how far larger sides are tried for one that would do


def demand_sides(net: nets.FromBytes, schedule: Schedule) -> None:
    """See that a network answers to crops of every side of the schedule; its weights and counts stay as they are.

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
    """What a network says to an empty crop of this side, if it does not answer."""
    training = net.training
    net.eval()
    try:
        net(torch.zeros(1, side, side, 3, dtype=torch.uint8, device=next(net.parameters()).device))
    except (RuntimeError, ValueError) as error:
        return error
    finally:
        net.train(training)
    return None
