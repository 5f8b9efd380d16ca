"""The settings that a run's learning curve depends on, and whether those of two runs agree."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..tracker.errors import ConfigError
from .config import Config

OTHER_FOLDER = "set them back, or choose another folder (`start` may be this run's best.pt)"
# settings that may change when a run is resumed: its curve does not depend on them
FREE = ("schedule.validate_every", "schedule.keep", "schedule.checkpoint_every", "schedule.workers", "card.")


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that a run's curve depends on, by dotted name, in JSON types."""
    settings: dict[str, Any] = {}
    table = json.loads(json.dumps(asdict(config)))
    for corpus in (*table["corpora"], *table["consistency"]["unlabelled"]):
        del corpus["held_out"]  # decides which pictures the finished detector is measured on
    for name, value in table.items():
        settings |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in settings.items() if not name.startswith(FREE)}


def refuse_other_settings(path: Path, old: dict[str, Any], new: dict[str, Any], advice: str = OTHER_FOLDER) -> None:
    """Check that settings are those of a run.

    Args:
        path: of the run's checkpoint.
        old: the run's settings, see `settings_of`.
        new: the settings requested now.
        advice: what to do if they differ, for the error message.
    Raises:
        ConfigError: they differ; names the settings.
    """
    differing = [name for name in old | new if old.get(name) != new.get(name)]
    if differing:
        told = "; ".join(f"{name} {json.dumps(old.get(name))}, now {json.dumps(new.get(name))}" for name in differing)
        raise ConfigError(f"{path}: a run that was begun with other settings: {told}; {advice}")
