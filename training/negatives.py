"""The pictures without faces that detectors and landmark networks are trained on."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from .config import Config
from .datasets import Sample, read_images, verify_pictures


def faceless(config: Config, data: Path) -> list[Sample]:
    """The configuration's negatives except those that show people, each decoded once as a check.

    Raises:
        SourceError: a folder is missing or empty, or a picture is broken, unless `Config.skip_broken` leaves it out.
    """
    read = chain.from_iterable(read_images(data / folder) for folder in config.negatives)
    empty = (sample for sample in read if f"{sample.path.parent.name}/{sample.path.name}" not in config.people)
    return verify_pictures(empty, config.broken)
