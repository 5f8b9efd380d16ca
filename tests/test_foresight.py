"""Frames are measured together where guesses hold, and nothing but the number of runs changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from fakes import PaintedFace, PaintedSource
from fakes_pipeline import PaintedBackend, PaintedDetector, painted_card

from facetrack.engines.aligner import Aligner
from facetrack.engines.backend import Outputs
from facetrack.pipeline.run import Pipeline
from facetrack.pipeline.stages import REFINEMENTS, PipelineSettings
from facetrack.tracker.types import Frame, Result, UInt8

COUNT = 33
FIRST_FRAME = 1 + REFINEMENTS  # runs for a new face
QUANTUM = 0.05  # pixels by which what is read from a painted face depends on the crop
STILL = PaintedFace((90, 110), width=70)


class Shaken(PaintedSource):
    """A source whose faces jump to and fro so far that no guess can be right."""

    def picture(self, index: int) -> np.ndarray:
        return np.roll(super().picture(index), 12 * (index % 2), axis=1)


class LaterShaken(PaintedSource):
    """A source whose faces rest and then do so, by too little for a crop to be `Track.is_misplaced`."""

    def picture(self, index: int) -> np.ndarray:
        return np.roll(super().picture(index), 3 * (index % 2) * (index > 16), axis=1)


class Broken(PaintedSource):
    """A source that ends after eleven frames, with an error."""

    def __iter__(self) -> Iterator[Frame]:
        for frame in super().__iter__():
            if frame.index == 11:
                raise OSError("torn")
            yield frame


def source(*faces: PaintedFace, kind: type[PaintedSource] = PaintedSource) -> PaintedSource:
    return kind(count=COUNT, shape=(220, 320), faces=list(faces), rate=50)


def pipeline(together: int, failing: dict[int, BaseException] | None = None) -> tuple[Pipeline, PaintedBackend]:
    backend = PaintedBackend(preferred_batch=together, failing=failing or {})
    settings = PipelineSettings(detect_every=100, smooth="none")
    return Pipeline(PaintedDetector(), Aligner(painted_card(), backend), settings), backend


def tracked(together: int, seen: PaintedSource) -> tuple[list[Result], int]:
    """All results, and how often the network ran."""
    line, backend = pipeline(together)
    return list(line.serial(seen)), backend.calls


def furthest(one: list[Result], two: list[Result]) -> float:
    """The largest distance between the same landmarks, pixels, where the same faces are in the same states."""
    distances = [0.0]
    for a, b in zip(one, two, strict=True):
        assert [(f.track, f.state) for f in a.faces] == [(f.track, f.state) for f in b.faces]
        distances += [float(np.abs(f.smoothed - g.smoothed).max()) for f, g in zip(a.faces, b.faces, strict=True)]
    return max(distances)


def test_static_face_is_batched_up_to_8_frames_a_run_with_identical_landmarks() -> None:
    (alone, runs), (ahead, fewer) = tracked(1, source(STILL)), tracked(8, source(STILL))
    frames_a_run = [2, 4, 8, 8, 8, 2]
    assert sum(frames_a_run) == COUNT - 1  # the first frame's face is measured as it was proposed, and then as it is
    assert (runs, fewer) == (COUNT - 1 + FIRST_FRAME, len(frames_a_run) + FIRST_FRAME)
    assert furthest(alone, ahead) == 0


def test_steady_motion_needs_under_half_the_runs_with_the_same_landmarks() -> None:
    moving = PaintedFace((60, 60), velocity=(70, 40), width=60, spin=0.2), PaintedFace((250, 120), width=60)
    (alone, runs), (ahead, fewer) = tracked(1, source(*moving)), tracked(8, source(*moving))
    assert fewer < runs / 2
    assert furthest(alone, ahead) < QUANTUM


def test_unpredictable_motion_is_measured_frame_by_frame() -> None:
    (alone, runs), (ahead, as_many) = tracked(1, source(STILL, kind=Shaken)), tracked(8, source(STILL, kind=Shaken))
    assert furthest(alone, ahead) == 0
    assert as_many == runs


def test_look_ahead_halves_after_each_wrong_prediction_and_grows_again() -> None:
    line, backend = pipeline(8)
    sizes, run = [], backend.run

    def counted(images: UInt8) -> Outputs:
        sizes.append(len(images))
        return run(images)

    backend.run = counted  # type: ignore[method-assign]
    list(line.serial(source(STILL, kind=LaterShaken)))
    assert sizes[FIRST_FRAME:][:8] == [2, 4, 8, 8, 4, 2, 1, 2]


def test_faces_appear_and_vanish_in_the_right_frames_despite_look_ahead() -> None:
    faces = STILL, PaintedFace((240, 110), width=60, seen=range(9, 22))
    line, _ = pipeline(8)
    line.settings = PipelineSettings(detect_every=1, smooth="none")
    ahead = list(line.serial(source(*faces)))
    assert [len([f for f in result.faces if f.measured]) for result in ahead] == [1] * 9 + [2] * 13 + [1] * 11
    assert all(
        np.abs(face.measured.xy - truth).max() < 1
        for result in ahead
        for face, truth in zip(result.faces, source(*faces).truth(result.frame.index), strict=False)
        if face.measured is not None
    )


def test_crowd_that_fills_a_batch_disables_look_ahead() -> None:
    five = [PaintedFace((32 + 64 * i, 60 + 25 * i), width=36) for i in range(5)]
    assert tracked(8, source(*five))[1] == tracked(1, source(*five))[1]


@pytest.mark.parametrize("index", [lambda _: 0, lambda i: i // 2])
def test_frames_of_one_index_are_kept_apart(index: Callable[[int], int]) -> None:
    seen = source(PaintedFace((60, 60), velocity=(70, 40), width=60, spin=0.2))
    alike = [replace(frame, index=index(frame.index)) for frame in seen]
    line, _ = pipeline(8)
    assert furthest(list(line.serial(alike)), tracked(8, seen)[0]) == 0


def test_threaded_run_gives_the_same_results_as_serial() -> None:
    faces = PaintedFace((60, 60), velocity=(70, 40), width=60), PaintedFace((250, 120), width=60, seen=range(7, 20))
    line, _ = pipeline(8)
    assert furthest(list(line.serial(source(*faces))), list(line.run(source(*faces)))) == 0


def test_live_run_measures_each_frame_without_look_ahead() -> None:
    line, backend = pipeline(8)
    results = list(line.run(source(STILL), live=True))
    assert backend.calls == len(results) - 1 + FIRST_FRAME


@pytest.mark.parametrize("threaded", [False, True])
def test_source_error_is_raised_after_all_frames_read_before_it(*, threaded: bool) -> None:
    line, _ = pipeline(8)
    results = (line.run if threaded else line.serial)(source(STILL, kind=Broken))
    seen = []
    with pytest.raises(OSError, match="torn"):
        seen.extend(result.frame.index for result in results)
    assert seen == list(range(11))


def test_network_error_is_raised_after_the_frames_measured_before_it() -> None:
    # after the first frame's runs: frames 1 to 2, 3 to 6, 7 to 14, 15
    line, _ = pipeline(8, failing={FIRST_FRAME + 3: RuntimeError("out of memory")})
    seen = []
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        seen.extend(result.frame.index for result in line.run(source(STILL)))
    assert seen == list(range(15))
    assert "in stage align at frame 16" in caught.value.__notes__
