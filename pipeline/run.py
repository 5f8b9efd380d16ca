"""capture -> detect -> align -> smooth: who runs where, and how frames pass from thread to thread.

One thread per stage; the caller's own `for` loop is the fifth and writes. What a frame's answer depends on (the last
frame's landmarks) never leaves the align stage, so the threads change nothing but the speed: `Pipeline.serial` and
`Pipeline.run` give the same results for a file.

An error travels behind the frames before it: the stage that fails abandons its inbox, so that nobody waits for it,
and ends its outbox with a `_Fault`; the later stages pass that on, and the caller's loop raises what it carries.
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
from .intake import taken_in
from .search import FaceDetector
from .stages import AlignStage, DetectStage, Job, PipelineSettings, SmoothStage, Stage
from .threads import Permits, ProgramEnds, RunThreads, stay_if_daemon

FRAMES_IN_FLIGHT = 2  # live; full throughput at two thirds of the delay that one slot per hand-off would cost
# A search holds the detect stage up for as long as the align stage takes for several frames: so many lie ready (six
# take 5 % longer, twelve as long). Each waiting frame is a picture in memory, and the other stages keep pace with two.
BATCH_SLOTS = {"capture": 2, "detect": 9, "align": 2, "smooth": 2}
IDLE_S = 0.05  # a window that answers within 50 ms feels alive; Windows hears Ctrl-C between two waits alone


class Pipeline:
    """A detector, an aligner and a smoother over one video at a time.

    The engines belong to the caller, who opened them; each `run` or `serial` starts with an empty memory. What a
    verifier does not take for a face, too, is not taken in as one.
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
        """Frames that the present or last `run` dropped so far, because newer ones came before they were wanted."""
        return 0 if self._captured is None else self._captured.dropped

    def _stages(self) -> list[tuple[str, Stage]]:
        settings = self.settings
        return [
            ("detect", DetectStage(self.detector, settings)),
            ("align", AlignStage(self.aligner, self.detector, settings, self.verifier)),
            ("smooth", SmoothStage(settings, self.aligner.markup.points)),
        ]

    def serial(self, frames: Iterable[Frame]) -> Generator[Result, None, None]:
        """Everything on the caller's thread, frame by frame: the reference for `run`."""
        stages = self._stages()
        for job in _foreseen(_jobs(frames), self.aligner.preferred_batch):
            for name, work in stages:
                _do(name, work, job)
            yield _result(job)

    def run(
        self, frames: Iterable[Frame], *, live: bool = False, idle: Callable[[], bool] | None = None
    ) -> Generator[Result, None, None]:
        """Track on four threads; iterate to receive, leave the loop or close the iterator to stop.

        Args:
            frames: taken one after the other on the capture thread.
            live: False: every frame, in order. True: while the stages are busy only the newest frame waits, older
                ones are dropped and counted in `dropped`, and at most `FRAMES_IN_FLIGHT` are on their way.
            idle: called on the caller's thread every `IDLE_S` seconds in which no result comes, so that a window
                can answer its user while a camera is silent; False ends the run.
        Raises:
            Whatever the source or a stage raised, after all results of the frames before it, with a note naming
            stage and frame.
            ValueError: what came is no `Frame`.
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


class _Fault(Exception):  # noqa: N818 - not raised to anybody: a parcel for an error of any kind
    """An error on its way through the channels; none of them can mistake it for one of its own."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def _permits(count: int) -> Permits:
    permits: Permits = SimpleQueue()
    for _ in range(count):
        permits.put(None)
    return permits


def _arrivals(inbox: Channel[Job], idle: Callable[[], bool] | None) -> Iterator[Job]:
    """The jobs that come out of the last stage, and after them the error that stopped a stage."""
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
    """A job for each frame of a source; its errors learn which frame they followed."""
    last = "before the first frame"
    began = time.perf_counter()
    try:
        for frame in taken_in(frames):
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
    """Main function of a stage's thread: work on each job of the inbox, `lookahead` of them known; see `_foreseen`."""
    try:
        with inbox:
            for job in _foreseen(_permitted(inbox, gate), lookahead):
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


def _foreseen(jobs: Iterator[Job], lookahead: int) -> Iterator[Job]:
    """The jobs with the frames ahead of them: each as soon as `lookahead` jobs have come, itself included, or the last.

    An error of `jobs` is raised behind all that came before it.
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
    """Let a stage work on a job and note the time; its errors learn where they happened."""
    began = time.perf_counter()
    try:
        work(job)
    except BaseException as error:
        error.add_note(f"in stage {name} at frame {job.frame.index + 1}")
        raise
    job.spans_s[name] = time.perf_counter() - began


def _result(job: Job) -> Result:
    return Result(job.frame, job.faces, job.spans_s)
