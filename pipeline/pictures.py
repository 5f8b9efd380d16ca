"""Pictures that are not frames of one video."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..tracker.errors import FacetrackError, describe_error
from ..tracker.types import Frame, Result
from .intake import check_frame
from .run import Pipeline

log = logging.getLogger(__name__)


def track_independently(pipeline: Pipeline, frames: Iterable[Frame], failed: list[tuple[str, str]]) -> Iterator[Result]:
    """Track each picture with a fresh state, so that its result does not depend on the others.

    Args:
        pipeline: for pictures.
        frames: the pictures.
        failed: receives (name, reason) of each picture for which a stage raised an error; it has no result.
    Raises:
        FacetrackError: an error that does not concern a single picture, such as that of a backend.
        ValueError: an item of `frames` is not a `Frame`.
    """
    pictures, began_s = iter(frames), time.perf_counter()
    for frame in pictures:
        check_frame(frame)
        capture_s = time.perf_counter() - began_s
        try:
            (result,) = pipeline.serial((frame,))
        except FacetrackError:
            raise
        except Exception as error:
            log.debug("%s failed", frame.name, exc_info=True)
            failed.append((frame.name, describe_error(error)))
        else:
            yield replace(result, spans_s={**result.spans_s, "capture": capture_s})
        began_s = time.perf_counter()
