"""capture -> detect -> align -> smooth: which thread runs what, and how frames pass between threads.

Each stage has its own thread; the caller's `for` loop is the fifth and writes. What a frame's result depends on (the
last frame's landmarks) never leaves the align stage, so threads change only the speed: `Pipeline.serial` and
`Pipeline.run` give the same results for a file.

An error travels behind the frames before it. The stage that fails abandons its inbox, so that nobody waits for it, and
ends its outbox with a `_Fault`. The later stages pass the fault on, and the caller's loop raises the error it carries.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from queue import SimpleQueue

from ..engines.aligner import Aligner
from ..tracker.types import Frame, Result
from .channel import Abandoned, Channel, Ended
from .intake import check_frames
from .search import FaceDetector
from .stages import AlignStage, DetectStage, Job, PipelineSettings, SmoothStage, Stage
from .threads import Permits, ProgramEnds, RunThreads, stay_if_daemon

FRAMES_IN_FLIGHT = 2  # live; full throughput at two thirds of the latency of one slot per hand-off
# A search occupies the detect stage for as long as the align stage takes for several frames, so nine wait between them
# (six slots take 5 % longer, twelve as long). Each waiting frame is a picture in memory; elsewhere two slots suffice.
BATCH_SLOTS = {"capture": 2, "detect": 9, "align": 2, "smooth": 2}
IDLE_S = 0.05  # a window that responds within 50 ms feels alive; Windows handles Ctrl-C only between two waits


class Pipeline:
    """A detector, an aligner and a smoother over one video at a time.

    The engines belong to the caller, who opened them. Each `run` or `serial` starts with an empty memory. With a
    verifier, a new face is accepted only if the verifier recognises it as well.
    """

    def __init__(
        self,
        detector: FaceDetector,
        aligner: Aligner,
        settings: PipelineSettings | None = None,
        verifier: Aligner | None = None,
    ) -> None:
        self.detector, self.aligner, self.verifier = detector, aligner, verifier
        self.settings = settings or PipelineSettings()
        self._captured: Channel[Job] | None = None

    @property
    def dropped(self) -> int:
        """Frames that the current or last `run` has dropped because a newer one arrived before they were processed."""
        return 0 if self._captured is None else self._captured.dropped

    def _stages(self) -> list[tuple[str, Stage]]:
        settings = self.settings
        return [
            ("detect", DetectStage(self.detector, settings)),
            ("align", AlignStage(self.aligner, self.detector, settings, self.verifier)),
            ("smooth", SmoothStage(settings, self.aligner.markup.points)),
        ]

    def serial(self, frames: Iterable[Frame]) -> Generator[Result, None, None]:
        """Track on the caller's thread, frame by frame: the reference for `run`."""
        stages = self._stages()
        for job in _with_lookahead(_jobs(frames), self.aligner.preferred_batch):
            for name, work in stages:
                _do(name, work, job)
            yield _result(job)

    def run(
        self, frames: Iterable[Frame], *, live: bool = False, idle: Callable[[], bool] | None = None
    ) -> Generator[Result, None, None]:
        """Track on four threads; iterate for the results, leave the loop or close the iterator to stop.

        Args:
            frames: taken one after the other on the capture thread.
            live: False: every frame, in order. True: while the stages are busy only the newest frame waits, older
                ones are dropped and counted in `dropped`, and at most `FRAMES_IN_FLIGHT` are being processed.
            idle: called on the caller's thread every `IDLE_S` seconds without a result, so that a window stays
                responsive while a camera is silent; returning False ends the run.
        Raises:
            Whatever the source or a stage raised, after all results of the frames before it, with a note naming
            stage and frame.
            ValueError: an item of `frames` is not a `Frame`.
            BackendError: the engines were closed meanwhile; see `threads`, also for how runs end with the program.
        """
        capture: Channel[Job] = Channel(1, "drop-oldest") if live else Channel(BATCH_SLOTS["capture"])
        permits = _permits(FRAMES_IN_FLIGHT) if live else None
        self._captured = inbox = capture
        threads = RunThreads(self.aligner, permits)
        threads.add("capture", capture, _capture, frames, capture)
        for name, work in self._stages():
            outbox: Channel[Job] = Channel(1 if live else BATCH_SLOTS[name])
            gate = permits if name == "detect" else None
            lookahead = self.aligner.preferred_batch if name == "align" and not live else 1
            threads.add(name, outbox, _stage, name, work, inbox, outbox, gate, lookahead)
            inbox = outbox
        try:
            threads.start()
            for job in _arrivals(inbox, idle):
                yield _result(job)
                if permits is not None:
                    permits.put(None)
        finally:
            threads.end()


class _Fault(Exception):  # noqa: N818 - never raised to a caller: a wrapper for any error
    """Carries an error through the channels, which cannot mistake it for one of their own."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def _permits(count: int) -> Permits:
    permits: Permits = SimpleQueue()
    for _ in range(count):
        permits.put(None)
    return permits


def _arrivals(inbox: Channel[Job], idle: Callable[[], bool] | None) -> Iterator[Job]:
    """Yield the jobs that leave the last stage, then raise the error that stopped a stage."""
    fault: BaseException | None = None
    while fault is None:
        try:
            job = inbox.get(IDLE_S)
        except TimeoutError:
            if idle is not None and not idle():
                return
            continue
        except Ended:
            return
        except _Fault as parcel:
            fault = parcel.error
        except ProgramEnds:
            stay_if_daemon()
            raise
        else:
            yield job
    raise fault


def _jobs(frames: Iterable[Frame]) -> Iterator[Job]:
    """A job for each frame of a source; an error gets a note that names the frame before it."""
    last = "before the first frame"
    began = time.perf_counter()
    try:
        for frame in check_frames(frames):
            yield Job(frame, spans_s={"capture": time.perf_counter() - began})
            last = f"after frame {frame.index + 1}"
            began = time.perf_counter()
    except BaseException as error:
        error.add_note(f"in stage capture {last}")
        raise


def _capture(frames: Iterable[Frame], outbox: Channel[Job]) -> None:
    """Main function of the capture thread."""
    try:
        for job in _jobs(frames):
            outbox.put(job)
    except Abandoned:
        return
    except BaseException as error:  # noqa: BLE001 - crosses the thread; the caller's loop raises it
        outbox.end(_Fault(error))
    else:
        outbox.end()


def _stage(
    name: str, work: Stage, inbox: Channel[Job], outbox: Channel[Job], gate: Permits | None, lookahead: int
) -> None:
    """Main function of a stage's thread: work on the inbox's jobs, `lookahead` of them known (`_with_lookahead`)."""
    try:
        with inbox:
            for job in _with_lookahead(_permitted(inbox, gate), lookahead):
                _do(name, work, job)
                outbox.put(job)
    except Abandoned:
        return
    except _Fault as fault:
        outbox.end(fault)
    except BaseException as error:  # noqa: BLE001 - crosses the thread; the caller's loop raises it
        outbox.end(_Fault(error))
    else:
        outbox.end()


def _permitted(inbox: Channel[Job], gate: Permits | None) -> Iterator[Job]:
    """The inbox's jobs, each taken only when the gate lets another frame in."""
    with suppress(Ended):
        while True:
            if gate is not None:
                gate.get()
            yield inbox.get()


def _with_lookahead(jobs: Iterator[Job], lookahead: int) -> Iterator[Job]:
    """The jobs with the frames ahead of them: each once `lookahead` jobs, itself included, or the last have arrived.

    An error of `jobs` is raised after all the jobs before it.
    """
    waiting: deque[Job] = deque()
    end: BaseException | None = None
    while True:
        while end is None and len(waiting) < lookahead:
            try:
                waiting.append(next(jobs))
            except BaseException as error:  # noqa: BLE001 - raised below
                end = error
        if not waiting:
            break
        job = waiting.popleft()
        job.ahead = tuple(other.frame for other in waiting)
        yield job
    if end is not None and not isinstance(end, StopIteration):
        raise end


def _do(name: str, work: Stage, job: Job) -> None:
    """Run a stage on a job and record the time; an error gets a note that says where it happened."""
    began = time.perf_counter()
    try:
        work(job)
    except BaseException as error:
        error.add_note(f"in stage {name} at frame {job.frame.index + 1}")
        raise
    job.spans_s[name] = time.perf_counter() - began


def _result(job: Job) -> Result:
    return Result(job.frame, job.faces, job.spans_s)
