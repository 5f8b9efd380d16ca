"""Turn a user's choices into running engines: find the cards, load the networks, warm everything up."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, get_args

import cv2
import numpy as np
from numba.core import event
from numpy.typing import NDArray

from ..engines.aligner import Aligner
from ..engines.backend import Backend, open_backend
from ..engines.card import ModelCard, find_card
from ..engines.choices import KINDS, MAX_THREADS, MIN_FACE
from ..engines.detector import Detector, DetectorSettings
from ..engines.fit import check_fit
from ..engines.held import HeldSetting
from ..tracker import appearance, codecs, geometry, proposals, rts, smooth
from ..tracker.errors import ConfigError, FacetrackError, describe_error
from ..tracker.kernel_cache import KEEP, NOT_KEPT, is_temporary
from ..tracker.smooth import SmootherSettings, Smoothing
from ..tracker.track import TrackSettings
from ..tracker.types import Face, Frame, Result, checked_picture
from .crops import portrait_proof
from .hindsight import look_back
from .machine import usable_cores
from .memory import release_memory, without_compiler, without_linear_algebra
from .pictures import track_independently
from .portrait import portrait
from .run import Pipeline
from .search import FaceDetector
from .source import Source
from .stages import OnlineSmoothing, PipelineSettings
from .threads import end_runs

log = logging.getLogger(__name__)

SCAN_THREADS = 4  # on two cores, two scan in two thirds of the time of one, and the whole program takes 4 to 10 % less
PROPOSED = 0.05  # least probability by the detector, which doubts faces in patterned shade and behind fences
OF_THE_ENGINES = ("model", "backend", "threads", "min_face")  # no pipeline can change them
DETECTOR, VERIFIER = "bbfcn", "gv"  # GV is best at rejecting what is not a face: others have accepted lettering


@dataclass(frozen=True, slots=True)
class Choices:
    """Everything that tracking depends on besides the input.

    Attributes:
        model: name of the network for the landmarks, or of its card.
        backend: one of `engines.choices.KINDS`.
        threads: of each network, at most `MAX_THREADS`; the stages of the pipeline run in parallel anyway. The scan
            of whole pictures, which the others wait for, uses up to `SCAN_THREADS` if there are enough cores.
        detect_every: frames between two searches while every known face is tracked; below 25 frames per second, the
            time that they take at 25.
        min_face: the smallest face to search for, in pixels of its landmarks' box, 8 or more; smaller ones may be found
            by chance. 0 chooses by the frame's size, and half of that for pictures.
        max_faces: most faces tracked at the same time.
        smooth: how landmarks are smoothed over time; "rts" is for recordings, "none" leaves them as measured.
    """

    model: str = "gv"
    backend: str = "auto"
    threads: int = 1
    detect_every: int = PipelineSettings().detect_every
    min_face: float = DetectorSettings().min_face
    max_faces: int = TrackSettings().most_faces
    smooth: Smoothing = "kalman"

    def __post_init__(self) -> None:
        known = {"backend": KINDS, "smooth": get_args(Smoothing)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"{name}: wanted one of {', '.join(values)}, got {getattr(self, name)!r}")
        for name, most in (("threads", MAX_THREADS), ("detect_every", math.inf), ("max_faces", math.inf)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or not 1 <= int(value) <= most:
                wanted = f"from 1 to {most}" if most < math.inf else "1 or more"
                raise ConfigError(f"{name}: wanted a whole number, {wanted}, got {value!r}")
        if not isinstance(self.min_face, Real) or (self.min_face != 0 and not MIN_FACE <= self.min_face < math.inf):
            raise ConfigError(
                f"min_face: wanted {MIN_FACE} pixels or more, or 0 to choose by the frame, got {self.min_face!r}"
            )
        if not isinstance(self.model, str):
            raise ConfigError(f"model: wanted the name of a network or card, got {self.model!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Engines:
    """A detector and an aligner, ready to run. Several threads may use them: their runs wait for each other.

    Attributes:
        detector, aligner: as `Pipeline` takes them.
        cards: of the networks in use, the aligner's first.
        picture_detector: for unrelated pictures.
        choices: those that the engines were opened with.
        verifier: must also recognise each new face; None if the aligner has the same network.
    """

    detector: FaceDetector
    aligner: Aligner
    cards: tuple[ModelCard, ...]
    picture_detector: FaceDetector
    choices: Choices
    verifier: Aligner | None = None

    @property
    def backend(self) -> str:
        """What the networks run on, in words."""
        return self.aligner.backend.description

    def track(self, source: Source) -> Generator[Result, None, None]:
        """Find and track every face of one source, with the choices that the engines were opened with.

        Pictures are processed independently, recordings frame by frame. Of cameras, streams and recordings opened with
        `realtime`, frames that arrive too fast are dropped in favour of the newest. With `smooth` "rts" results come
        two seconds of video later, and their frames are black.

        Raises:
            CardError: the aligner's network does not score faces.
            ConfigError: smooth "rts" with a live source; or `source` is not a source.
            SourceError: the source broke off, after every result before the break. Or it has been read before, even in
                part: open it again.
        """
        if not hasattr(source, "kind"):
            raise ConfigError(
                f"track: wanted a source from open_source, got {type(source).__name__}; for frames of your own use "
                "Engines.pipeline(choices).run(frames)"
            )
        if source.kind == "images":
            yield from track_independently(self.pipeline_for_pictures(self.choices), source, source.failed)
        elif self.choices.smooth != "rts":
            yield from self.pipeline(self.choices).run(source, live=source.live)
        elif source.live:
            raise ConfigError(f"{source.name}: is live; smooth rts needs a recording, because it uses later frames")
        else:
            with closing(self.pipeline(replace(self.choices, smooth="none")).run(source)) as measured:
                yield from look_back(measured, smoother_settings(self.aligner.card))

    def detect(self, bgr: NDArray[Any]) -> tuple[Face, ...]:
        """Find every face of one still picture, exactly as `track` does in a picture of a folder.

        Args:
            bgr: (H, W, 3) uint8, blue first, of one pixel or more.
        Returns:
            The faces; each is new, and its landmarks are as measured.
        Raises:
            CardError: the aligner's network does not score faces.
            ValueError: `bgr` is not such an array.
        """
        picture = np.ascontiguousarray(checked_picture(bgr, "picture"))
        (result,) = self.pipeline_for_pictures(self.choices).serial([Frame(0, 0.0, time.perf_counter(), picture)])
        return result.faces

    def pipeline(self, choices: Choices) -> Pipeline:
        """A pipeline for videos.

        Args:
            choices: how it tracks: `detect_every`, `max_faces` and `smooth`; the others must be those of the engines.
        Raises:
            CardError: the aligner's network does not score faces.
            ConfigError: smooth "rts", which is applied to a pipeline's results, as `track` does; or choices that the
                engines were not opened with.
        """
        self._check_engine_choices(choices)
        if choices.smooth == "rts":
            raise ConfigError(
                "pipeline: smooth rts is applied to results: use Engines.track, or hindsight.look_back on the results "
                "of a pipeline with smooth none"
            )
        return Pipeline(self.detector, self.aligner, self._settings(choices, choices.smooth), self.verifier)

    def pipeline_for_pictures(self, choices: Choices) -> Pipeline:
        """A pipeline for unrelated pictures: it searches each one and smooths nothing.

        Args:
            choices: of those that it can change, only `max_faces` is used; the others must be those of the engines.
        Raises:
            CardError: the aligner's network does not score faces.
            ConfigError: choices that the engines were not opened with.
        """
        self._check_engine_choices(choices)
        settings = self._settings(replace(choices, detect_every=1), "none")
        return Pipeline(self.picture_detector, self.aligner, settings, self.verifier)

    def _check_engine_choices(self, choices: Choices) -> None:
        _check_choices(choices, "pipeline")
        for name in OF_THE_ENGINES:
            given, own = getattr(choices, name), getattr(self.choices, name)
            if given != own:
                raise ConfigError(
                    f"pipeline: {name}: wanted {own!r} as in the engines, got {given!r}; open engines with {given!r}"
                )

    def _settings(self, choices: Choices, smoothing: OnlineSmoothing) -> PipelineSettings:
        self.aligner.require_face_score()
        return PipelineSettings(
            detect_every=choices.detect_every,
            smooth=smoothing,
            tracks=TrackSettings(most_faces=choices.max_faces),
            smoother=smoother_settings(self.aligner.card),
        )


def _check_choices(choices: object, what: str) -> None:
    if not isinstance(choices, Choices):
        raise ConfigError(f'{what}: wanted Choices, such as Choices(model="tab"), got {choices!r}')


OpenEngines = Callable[[Choices], AbstractContextManager[Engines]]


def smoother_settings(card: ModelCard) -> SmootherSettings:
    """Settings of the smoother for this card's network, whose noise `facetrack calibrate noise` has measured."""
    if "noise" not in card.calibration:
        return SmootherSettings()
    own, shared, power = card.calibration["noise"]
    return SmootherSettings(noise=own, shared_noise=shared, score_power=power)


_one_opencv_thread = HeldSetting(cv2.getNumThreads, cv2.setNumThreads, 1)


@contextmanager
def open_engines(choices: Choices = Choices()) -> Iterator[Engines]:
    """Load the networks and warm everything up; on exit, end the runs in progress and close the networks.

    OpenCV is limited to one thread meanwhile: the stages run in parallel, and its threads would only slow them down.

    Raises:
        CardError: a card or its weights are missing, broken or altered, or do not fit each other.
        BackendError: the requested backend is not available.
        ConfigError: `choices` is not a `Choices`.
    """
    _check_choices(choices, "open_engines")
    detect_card, align_card = find_card(DETECTOR, "detect"), find_card(choices.model, "align")
    wanted = [(align_card, "net"), (detect_card, "scan"), (detect_card, "refine")]
    verifier_card = find_card(VERIFIER, "align")
    if verifier_card.name != align_card.name:
        wanted.append((verifier_card, "net"))
    with ExitStack() as opened:
        opened.enter_context(_one_opencv_thread)
        # Python code limits the start: another thread does the work that needs no Python while Numba starts.
        loader = opened.enter_context(ThreadPoolExecutor(1, thread_name_prefix="facetrack-load"))
        release_memory()  # that only the imports needed
        loading = [loader.submit(_open_network, card, role, choices) for card, role in wanted]
        for load in loading:  # first of all: whatever fails from here on, each loaded network is closed
            opened.callback(_close, load)
        _submit_optional(loader, release_memory)  # that only loading the networks and starting Numba needed
        with without_compiler(), without_linear_algebra(), event.install_listener("numba:compile", Compiling()):
            _compile_kernels(choices.smooth)
            net, scan, refine, *others = (load.result() for load in loading)
            detector = Detector(detect_card, scan, refine, _searching(choices))
            engines = Engines(
                detector=detector,
                aligner=Aligner(align_card, net),
                cards=(align_card, detect_card, verifier_card) if others else (align_card, detect_card),
                picture_detector=detector.for_pictures(),
                choices=choices,
                verifier=Aligner(verifier_card, *others) if others else None,
            )
            opened.callback(end_runs, engines.aligner)  # before the networks are closed
            if engines.aligner.scores_faces:  # others only measure faces in given boxes
                _track_once(engines.pipeline(replace(choices, smooth="none") if choices.smooth == "rts" else choices))
        _submit_optional(loader, release_memory)
        yield engines


def _searching(choices: Choices) -> DetectorSettings:
    """Detector settings that leave room among the candidates for the tracked faces, which a search finds again."""
    settings = DetectorSettings(min_face=choices.min_face, threshold=PROPOSED)
    return replace(settings, most=max(settings.most, 2 * choices.max_faces))


def _open_network(card: ModelCard, role: str, choices: Choices) -> Backend:
    proof = portrait_proof(card, role) if choices.backend == "tensorrt" else None
    threads = max(choices.threads, min(SCAN_THREADS, usable_cores())) if role == "scan" else choices.threads
    backend = open_backend(card.weights[role], choices.backend, threads, proof)
    try:
        check_fit(card, card.weights[role], backend)
    except FacetrackError:
        backend.close()
        raise
    return backend


def _close(load: Future[Backend]) -> None:
    """Close a network; cancel the loading of one that has not started to load."""
    if not load.cancel() and load.exception() is None:
        load.result().close()


def _submit_optional(loader: Executor, work: Callable[[], None]) -> None:
    """Have the loader do work that saves time or memory; log a failure, since tracking works without it."""
    loader.submit(work).add_done_callback(_log_failure)


def _log_failure(done: Future[None]) -> None:
    error = done.exception()
    if isinstance(error, Exception):
        log.warning("while starting: %s", describe_error(error))


class Compiling(event.Listener):  # type: ignore[misc] # Numba has no types
    """Logs once that Numba compiles for this processor what its cache lacks: at first every kernel, later new ones."""

    def __init__(self) -> None:
        self._has_warned = False

    def on_start(self, _: object) -> None:
        """Log the first kernel that is compiled."""
        if self._has_warned:
            return
        self._has_warned = True
        if is_temporary():
            log.warning("compiling for this processor, up to half a minute at every start: %s; %s", NOT_KEPT, KEEP)
        else:
            log.warning("compiling for this processor, up to half a minute; it is kept for later starts")

    def on_end(self, _: object) -> None:
        """Log nothing."""


def _compile_kernels(smoothing: Smoothing) -> None:
    """Compile the kernels, or load those that an earlier start compiled."""
    for module in (smooth, geometry, appearance, proposals, codecs):
        module.warm_up()
    if smoothing == "rts":
        rts.warm_up()


def _track_once(pipeline: Pipeline) -> None:
    """Track a real face once, small for speed, so that no frame of the user's pays for first-time work."""
    bgr = np.asarray(cv2.resize(portrait(), (128, 128), interpolation=cv2.INTER_AREA), np.uint8)
    for _ in pipeline.serial([Frame(index=0, time_s=0.0, taken_s=0.0, bgr=bgr)]):
        pass
