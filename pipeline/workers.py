"""A pool of worker processes, in which the crash of a worker fails only its own job.

Workers are spawned, as threads and networks do not survive a fork. A worker opens its work once, then does one job
after the other and reports its progress through a pipe of its own. Nothing is shared, so a crash leaves no lock held.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from ..tracker.errors import BackendError
from .pipe import run_in_thread
from .progress import Ending, Reporter, Task

log = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.1  # between a worker's messages about its progress
GRACE_S = 10.0  # for an interrupted worker to save its results
MOST_ON_WINDOWS = 60  # where `wait` takes 63 handles; `concurrent.futures` stops at 61
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells
_DIED_OPENING = (
    "a worker process died while it opened the networks ({}), perhaps because memory ran out; use fewer --workers"
)
_DIED_WORKING = (
    "the process that worked on it died ({}): a library crashed on this file, or memory ran out; try it again alone"
)
_ENDED = "ended from outside (SIGTERM)"
_ENDED_WORKING = "the process that worked on it was {}; try it again"

Job = TypeVar("Job")
Answer = TypeVar("Answer")
AnyJob = TypeVar("AnyJob", contravariant=True)
AnyAnswer = TypeVar("AnyAnswer", covariant=True)


class Work(Protocol[AnyJob, AnyAnswer]):
    """How jobs are done; each worker gets a pickled copy."""

    def open(self) -> AbstractContextManager[Callable[[AnyJob, Reporter], AnyAnswer]]:
        """Open what all jobs need, once in each process; gives the function that does a job."""

    def lost(self, job: AnyJob, reason: str, reporter: Reporter) -> AnyAnswer:
        """The answer for a job whose worker exited before it was done."""


def run_jobs(jobs: Sequence[Job], work: Work[Job, Answer], reporter: Reporter, workers: int) -> list[Answer]:
    """Do jobs in their order, several at a time; the answers are in the order of the jobs.

    Args:
        jobs: picklable, as are their answers and the work.
        work: how they are done. An error that a job raises ends the pool and is raised here.
        reporter: receives the progress of all jobs. Workers log through the loggers of this process.
        workers: number of processes; a single one is this process, and Windows has at most `MOST_ON_WINDOWS`.
    Raises:
        BackendError: every worker exited while it opened its work.
        KeyboardInterrupt: after it was raised in all workers too, and these have exited.
    """
    workers = min(workers, len(jobs))
    if sys.platform == "win32" and workers > MOST_ON_WINDOWS:
        log.warning(
            "%d worker processes instead of %d: Windows cannot wait for more at a time", MOST_ON_WINDOWS, workers
        )
        workers = MOST_ON_WINDOWS
    if workers > 1:
        return _WorkerPool(jobs, work, reporter, workers).run()
    with work.open() as do:
        return [do(job, reporter) for job in jobs]


class _WorkerTraceback(Exception):  # noqa: N818 - the cause of the error that it belongs to
    """The traceback of an error in a worker, as text."""


@dataclass(slots=True, eq=False)
class _Worker:
    """The parent's side of a worker; its job is None while it opens its work."""

    process: SpawnProcess
    pipe: Connection
    job: int | None = None

    def receive(self) -> tuple[Any, ...] | None:
        """Its next message; None if it has exited."""
        try:
            message: tuple[Any, ...] = self.pipe.recv()
        except (EOFError, OSError):
            return None
        return message

    def exit_reason(self) -> str:
        """Its exit code or signal, in words; waits for the exit."""
        self.process.join()
        code = self.process.exitcode or 0
        if code == _EXIT_INTERRUPTED:
            return _ENDED
        return f"killed by {_signal_name(-code)}" if code < 0 else f"it ended with exit code {code}"


def _signal_name(number: int) -> str:
    """A signal's name, such as "SIGKILL", or its number: Python has no names for most real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _WorkerPool(Generic[Job, Answer]):
    """Workers, waiting jobs and answers of one call of `run_jobs`."""

    def __init__(self, jobs: Sequence[Job], work: Work[Job, Answer], reporter: Reporter, workers: int) -> None:
        self._jobs, self._work, self._reporter = jobs, work, reporter
        self._to_start = workers
        self._waiting = deque(range(len(jobs)))
        self._answers: dict[int, Answer] = {}
        self._workers: list[_Worker] = []
        self._processes: list[SpawnProcess] = []

    def run(self) -> list[Answer]:
        """Do all jobs; the answers are in their order."""
        try:
            self._start_worker()  # one first: it fails early if all would, and fills Numba's cache for the others
            while self._workers:
                for worker in self._wait_for_messages():
                    self._handle(worker, worker.receive())
        except BaseException:
            self._interrupt_all()
            raise
        self._join_all(time.monotonic() + GRACE_S)
        return [self._answers[job] for job in range(len(self._jobs))]

    def _start_worker(self) -> None:
        """Start a process, on a thread: if a signal interrupted that, the process would lack what it is to do."""
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        level = logging.getLogger("facetrack").level
        process = context.Process(
            target=_run_worker, args=(theirs, self._work, level), name="facetrack-worker", daemon=True
        )

        def start() -> None:
            _block_sigint()
            process.start()
            theirs.close()  # so that the pipe ends with the worker
            self._processes.append(process)
            self._workers.append(_Worker(process, ours))

        run_in_thread(start, lambda: None)

    def _start_missing(self) -> None:
        """Start the other workers, once the first has opened its work; later ones are replaced one by one."""
        for _ in range(min(self._to_start - 1, len(self._waiting))):
            self._start_worker()
        self._to_start = 1

    def _wait_for_messages(self, timeout_s: float | None = None) -> list[_Worker]:
        """The workers that have sent a message or exited; none if the timeout comes first."""
        ready = wait([worker.pipe for worker in self._workers], timeout_s)
        return [worker for worker in self._workers if worker.pipe in ready]

    def _handle(self, worker: _Worker, message: tuple[Any, ...] | None) -> None:
        match message:
            case None:
                self._workers.remove(worker)
                self._handle_exit(worker)
            case ("opened",):
                self._send_job(worker)
                self._start_missing()
            case ("done", answer):
                assert worker.job is not None
                self._answers[worker.job] = answer
                self._send_job(worker)
            case ("raised", error, text):
                if worker.job is not None:
                    raise error from _WorkerTraceback(text)
                self._workers.remove(worker)
                self._continue_without(error)
            case ("ended", _, _, "interrupted"):
                pass  # only this worker, which will exit: `lost` reports it
            case _:
                self._forward(message)

    def _send_job(self, worker: _Worker) -> None:
        if not self._waiting:
            self._workers.remove(worker)
            worker.pipe.close()  # which ends it
            return
        worker.job = self._waiting.popleft()
        with contextlib.suppress(OSError):  # it has just exited, which is received next
            worker.pipe.send(self._jobs[worker.job])

    def _handle_exit(self, worker: _Worker) -> None:
        """Answer the job of a worker that exited before it was done, and replace the worker."""
        reason = worker.exit_reason()
        if worker.job is None:
            self._continue_without(BackendError(_DIED_OPENING.format(reason)))
            return
        job, text = self._jobs[worker.job], _ENDED_WORKING if reason == _ENDED else _DIED_WORKING
        self._answers[worker.job] = self._work.lost(job, text.format(reason), self._reporter)
        if self._waiting:
            self._start_worker()

    def _continue_without(self, error: Exception) -> None:
        """Go on with the other workers, or raise the error if there are none and jobs are waiting."""
        if self._waiting and not self._workers:
            raise error
        if self._waiting:
            left = len(self._workers)
            log.warning("continuing with %d worker process%s: %s", left, "es" if left > 1 else "", error)

    def _forward(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("began", task, frames):
                self._reporter.began(task, frames)
            case ("advanced", task, frames):
                self._reporter.advanced(task, frames)
            case ("ended", task, line, how):
                self._reporter.ended(task, line, how)
            case ("log", record):
                logging.getLogger(record.name).handle(record)

    def _interrupt_all(self) -> None:
        """Interrupt all workers as Ctrl-C does, and forward their last messages until they have exited."""
        end_s = time.monotonic() + GRACE_S
        try:
            for worker in self._workers:
                if worker.job is None:  # nothing to save; while Numba compiles, it would not notice an interrupt
                    worker.process.kill()
            if os.name == "posix":  # elsewhere Ctrl-C reaches every process of the console
                for process in self._processes:
                    process.terminate()
            while self._workers and time.monotonic() < end_s:
                for worker in self._wait_for_messages(end_s - time.monotonic()):
                    message = worker.receive()
                    if message is None:
                        self._workers.remove(worker)
                    elif message[0] in ("ended", "log"):
                        self._forward(message)
        finally:
            self._join_all(end_s)

    def _join_all(self, end_s: float) -> None:
        """Wait for all processes to exit, and kill those that have not by `end_s` (time.monotonic())."""
        try:
            for process in self._processes:
                process.join(max(0.0, end_s - time.monotonic()))
        finally:
            for process in self._processes:
                process.kill()


def _block_sigint() -> None:
    """Block SIGINT in this thread, so that processes that it starts never get it: their parent handles Ctrl-C."""
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # else the start of the process does it, and unblocks the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


# In the worker process


def _run_worker(pipe: Connection, work: Work[Any, Any], level: int) -> None:
    """Main function of a worker process."""
    reporter = _PipeReporter(pipe)
    _handle_termination(reporter.interrupt)
    package = logging.getLogger("facetrack")
    package.handlers = [_PipeLogHandler(reporter)]
    package.setLevel(level)
    try:
        _run_jobs(pipe, work, reporter)
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)
    finally:
        _handle_termination(signal.SIG_IGN)


def _run_jobs(pipe: Connection, work: Work[Any, Any], reporter: _PipeReporter) -> None:
    try:
        with work.open() as do:
            reporter.send("opened")
            for job in _received_jobs(pipe):
                reporter.send("done", do(job, reporter))
    except Exception as error:  # noqa: BLE001 - errors cross to the parent process
        reporter.send("raised", _picklable(error), traceback.format_exc())


def _handle_termination(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Set the handler of the signals that end a process."""
    # Windows has no SIGHUP, and only Windows has SIGBREAK; under nohup SIGHUP is ignored and stays so
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            signal.signal(number, handler)


def _received_jobs(pipe: Connection) -> Iterator[Any]:
    with contextlib.suppress(EOFError, OSError):  # the parent has no more jobs, or has exited
        while True:
            yield pipe.recv()


def _picklable(error: Exception) -> Exception:
    """The error, or a RuntimeError with its message where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - its class may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _PipeReporter:
    """A reporter that forwards everything to the parent process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()  # several threads may log
        self._busy = self._interrupted = False
        self._frames, self._sent_s = 0, 0.0

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle the parent's signal as a KeyboardInterrupt, once: saving the results must not be interrupted.

        Raises:
            KeyboardInterrupt: at once, or, if a message is being sent, when that is done.
        """
        del number, frame
        _handle_termination(signal.SIG_IGN)
        if not self._busy:
            raise KeyboardInterrupt
        self._interrupted = True

    def send(self, *message: Any) -> None:
        """Send a message; it is dropped if the parent has exited."""
        in_main = threading.current_thread() is threading.main_thread()  # where signals are handled
        self._busy |= in_main
        with self._lock:
            try:
                if not self._pipe.closed:
                    self._pipe.send(message)
            except OSError:
                self._pipe.close()
        if in_main:
            self._busy = False
            if self._interrupted:
                self._interrupted = False
                raise KeyboardInterrupt

    def began(self, task: Task, frames: int | None) -> None:
        """See `Reporter`."""
        self._frames = 0
        self.send("began", task, frames)

    def advanced(self, task: Task, frames: int = 1) -> None:
        """See `Reporter`; sends one message for all frames of a `REPORT_INTERVAL_S`.

        Raises:
            KeyboardInterrupt: the parent has exited.
        """
        self._frames += frames
        if time.monotonic() - self._sent_s >= REPORT_INTERVAL_S:
            self._sent_s = time.monotonic()
            self._send_frames(task)
            if self._pipe.closed:
                raise KeyboardInterrupt

    def ended(self, task: Task, line: str, how: Ending = "done") -> None:
        """See `Reporter`."""
        self._send_frames(task)
        self.send("ended", task, line, how)

    def _send_frames(self, task: Task) -> None:
        if self._frames:
            self.send("advanced", task, self._frames)
        self._frames = 0


class _PipeLogHandler(logging.handlers.QueueHandler):
    """Sends log records to the parent process."""

    def __init__(self, reporter: _PipeReporter) -> None:
        super().__init__(SimpleQueue())  # unused
        self._reporter = reporter

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record, already prepared for pickling, instead of putting it into a queue."""
        self._reporter.send("log", record)
