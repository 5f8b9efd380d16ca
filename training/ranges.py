"""The values that the trainer's settings may have: one table, and one function that checks it."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from ..tracker.errors import ConfigError

if TYPE_CHECKING:
    from .config import Config


class Range(NamedTuple):
    """Which values a setting may have, in words and as a test. NaN passes none of the tests."""

    wanted: str
    holds: Callable[[float], bool]


ABOVE_0 = Range("a number above 0", lambda value: value > 0 and isfinite(value))
FROM_0 = Range("a number of at least 0", lambda value: value >= 0 and isfinite(value))
WHOLE = Range("at least 0", lambda value: value >= 0)
SEED = Range("0 to 4294967295", lambda value: 0 <= value < 2**32)  # times the steps it must fit torch's 64-bit seed
COUNT = Range("at least 1", lambda value: value >= 1)
SHARE = Range("0 to 1", lambda value: 0 <= value <= 1)
NOT_ALL = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
SOME = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
NORM = Range("a number above 0, or inf for no limit", lambda value: value > 0)
FINITE = Range("a number", isfinite)

LARGEST_FACE = 0.9  # of a crop's side: a detector is trained on no larger faces (`detection.objectives`)

RANGES = {
    "network.landmarks": COUNT,
    "negative_share": NOT_ALL,
    **dict.fromkeys(("geometry.box_scale", "vectors.sigma", "vectors.peak", "maps.sigma"), ABOVE_0),
    **dict.fromkeys((f"geometry.{n}" for n in ("roll_deg", "wide_roll_deg", "log_scale", "shift", "stretch")), FROM_0),
    **dict.fromkeys(("geometry.wide_share", "geometry.flip"), SHARE),
    "geometry.asymmetry": FINITE,
    **dict.fromkeys((f"expressions.{n}" for n in ("closed", "blinks", "grimaces")), SHARE),
    "expressions.gap": FROM_0,
    **dict.fromkeys((f"vectors.{n}" for n in ("tau", "mse", "coordinate")), FROM_0),
    **dict.fromkeys((f"maps.{n}" for n in ("landmarks", "boundaries", "coordinate")), FROM_0),
    "maps.reach": WHOLE,
    "consistency.weight": FROM_0,
    "consistency.labels": SOME,
    "consistency.share": NOT_ALL,
    "consistency.roll_deg": FROM_0,
    "consistency.scale": SOME,
    "consistency.flip": SHARE,
    **dict.fromkeys(("discs.radius", "discs.chip_px"), ABOVE_0),
    **dict.fromkeys(("discs.ring", "discs.shift"), FROM_0),
    **dict.fromkeys((f"discs.{n}" for n in ("random_share", "positives", "hard_share")), SHARE),
    **dict.fromkeys((f"discs.{n}" for n in ("covered", "veiled", "cut")), SHARE),
    **dict.fromkeys((f"schedule.{n}" for n in ("steps", "batch", "validate_every", "checkpoint_every")), COUNT),
    **dict.fromkeys((f"schedule.{n}" for n in ("warm_up", "workers")), WHOLE),
    "schedule.seed": SEED,
    "schedule.learning_rate": ABOVE_0,
    "schedule.weight_decay": FROM_0,
    "schedule.ema": SHARE,
    "schedule.clip": NORM,
    **dict.fromkeys(("card.box_scale", "card.shape"), FROM_0),
}


def refuse_out_of_range(config: Config) -> None:
    """Check that every number of a configuration is in its range.

    Raises:
        ConfigError: one is not; names the setting, its range and its value.
    """
    for name, allowed in RANGES.items():
        _check_range(allowed, attrgetter(name)(config), name)
    for number, corpus in enumerate(config.corpora):
        _check_range(FROM_0, corpus.weight, f"corpora.{number}.weight")
        _check_range(FINITE, corpus.late_weight, f"corpora.{number}.late_weight")
    if config.corpora and not any(corpus.weight for corpus in config.corpora):
        raise ConfigError("corpora: wanted a weight above 0 of at least one of them, got 0 of all")
    for number, (share, divisor) in enumerate(config.schedule.drops):
        _check_range(FROM_0, share, f"schedule.drops.{number}.0")
        _check_range(ABOVE_0, divisor, f"schedule.drops.{number}.1")
    for number, (share, side) in enumerate(config.schedule.sizes):
        _check_range(NOT_ALL, share, f"schedule.sizes.{number}.0")
        _check_range(COUNT, side, f"schedule.sizes.{number}.1")
    smallest, largest = config.discs.face_px
    if not (0 < smallest <= largest and isfinite(largest)):
        raise ConfigError(f"discs.face_px: wanted two sides above 0, the smaller one first, got {config.discs.face_px}")
    sides = [side for _, side in config.schedule.sizes]
    if config.detects and not (smallest <= LARGEST_FACE * min(sides) and largest <= max(sides)):
        raise ConfigError(
            f"discs.face_px: wanted faces that fit into the crops of schedule.sizes, the smallest one with some room "
            f"into {min(sides)} pixels and the largest one into {max(sides)}, got {config.discs.face_px}"
        )


def _check_range(allowed: Range, value: float, name: str) -> None:
    if not allowed.holds(value):
        raise ConfigError(f"{name}: wanted {allowed.wanted}, got {value}")
