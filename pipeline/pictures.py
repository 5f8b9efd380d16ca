"""Pictures that have nothing to do with each other."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..tracker.errors import FacetrackError, told
from ..tracker.types import Frame, Result
from .run import Pipeline

log = logging.getLogger(__name__)


def each_alone(pipeline: Pipeline, frames: Iterable[Frame], failed: list[tuple[str, str]]) -> Iterator[Result]:
    """Track each picture with an empty memory, so that its answer depends on nothing else.

    Args:
        pipeline: for pictures.
        frames: the pictures.
        failed: (name, reason) of each picture that a stage breaks on, which is left out, are added here.
    Raises:
        FacetrackError: what the pictures have no part in.
    """
    pictures, began_s = iter(frames), time.perf_counter()
    for frame in pictures:
        capture_s = time.perf_counter() - began_s
        try:
            (result,) = pipeline.serial((frame,))
        except FacetrackError:
            raise
        except Exception as error:
            log.debug("%s failed", frame.name, exc_info=True)
            failed.append((frame.name, told(error)))
        else:
            yield replace(result, spans_s={**result.spans_s, "capture": capture_s})
        began_s = time.perf_counter()
