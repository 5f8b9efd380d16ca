"""Jobs side by side: each in one of several processes, whose death costs that job alone.

A worker is spawned, for threads and networks do not survive a fork. It opens its work once, then does one job after the
other, and tells through a pipe of its own how far it has got. Nothing is shared, so no death leaves a lock behind.
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
from .progress import Reporter, Task

log = logging.getLogger(__name__)

EVERY_S = 0.1  # how often a worker tells how far it has got
GRACE_S = 10.0  # in which a worker that was told to end keeps what it has
_INTERRUPTED = 130

Job = TypeVar("Job")
Answer = TypeVar("Answer")
AnyJob = TypeVar("AnyJob", contravariant=True)
AnyAnswer = TypeVar("AnyAnswer", covariant=True)


class Work(Protocol[AnyJob, AnyAnswer]):
    """What is done with each job; workers get a pickled copy."""

    def open(self) -> AbstractContextManager[Callable[[AnyJob, Reporter], AnyAnswer]]:
        """Make ready what all jobs need, once in each process; gives what does a job."""

    def lost(self, job: AnyJob, reason: str, reporter: Reporter) -> AnyAnswer:
        """The answer for a job whose worker died."""


def do_all(jobs: Sequence[Job], work: Work[Job, Answer], reporter: Reporter, workers: int = 1) -> list[Answer]:
    """Do jobs in their order, several at a time; the answers are in the order of the jobs.

    Args:
        jobs: can be pickled, as can their answers and the work.
        work: see there. What it raises ends everything.
        reporter: hears of the jobs, also of those in other processes; these log through the loggers of this one.
        workers: processes; a single one is this process.
    Raises:
        BackendError: no worker lives long enough to open its work.
        KeyboardInterrupt: after the workers have heard of it as a KeyboardInterrupt of their own, and ended.
    """
    workers = min(workers, len(jobs))
    if workers > 1:
        return _Crew(jobs, work, reporter, workers).do_all()
    with work.open() as do:
        return [do(job, reporter) for job in jobs]


class _TracebackInWorker(Exception):  # noqa: N818 - stands behind the error that it belongs to
    """Where in a worker something was raised."""


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker as its parent sees it; without a job it is still opening its work."""

    process: SpawnProcess
    pipe: Connection
    job: int | None = None

    def hear(self) -> tuple[Any, ...] | None:
        """What it tells; None if it has died."""
        try:
            message: tuple[Any, ...] = self.pipe.recv()
        except (EOFError, OSError):
            return None
        return message

    def cause_of_death(self) -> str:
        """In words."""
        self.process.join()
        code = self.process.exitcode or 0
        return f"killed by {_signal_name(-code)}" if code < 0 else f"it ended with exit code {code}"


def _signal_name(number: int) -> str:
    """SIGKILL, or what can be said of one of the real-time signals, most of which Python has no names for."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Crew(Generic[Job, Answer]):
    """The workers, and what is still to be done."""

    def __init__(self, jobs: Sequence[Job], work: Work[Job, Answer], reporter: Reporter, workers: int) -> None:
        self._jobs, self._work, self._reporter, self._wanted = jobs, work, reporter, workers
        self._waiting = deque(range(len(jobs)))
        self._answers: dict[int, Answer] = {}
        self._workers: list[_Worker] = []
        self._processes: list[SpawnProcess] = []

    def do_all(self) -> list[Answer]:
        try:
            self._hire()  # alone: what hinders it hinders all, and what Numba compiles for it is there for the others
            while self._workers:
                for worker in self._who_tells():
                    self._answer(worker, worker.hear())
        except BaseException:
            self._stop()
            raise
        self._see_off(time.monotonic() + GRACE_S)
        return [self._answers[job] for job in range(len(self._jobs))]

    def _hire(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        level = logging.getLogger("facetrack").level
        process = context.Process(target=_live, args=(theirs, self._work, level), name="facetrack-worker", daemon=True)
        with _deaf_to_ctrl_c():
            process.start()
        theirs.close()  # so that the pipe ends with the worker
        self._workers.append(_Worker(process, ours))
        self._processes.append(process)

    def _who_tells(self, timeout_s: float | None = None) -> list[_Worker]:
        ready = wait([worker.pipe for worker in self._workers], timeout_s)
        return [worker for worker in self._workers if worker.pipe in ready]

    def _answer(self, worker: _Worker, message: tuple[Any, ...] | None) -> None:
        match message:
            case None:
                self._workers.remove(worker)
                self._bury(worker)
            case ("opened",):
                self._give_job(worker)
                for _ in range(min(self._wanted - 1, len(self._waiting))):
                    self._hire()
                self._wanted = 1  # all are hired; the dead are replaced one by one
            case ("done", answer):
                assert worker.job is not None
                self._answers[worker.job] = answer
                self._give_job(worker)
            case ("raised", error, told):
                if worker.job is not None:
                    raise error from _TracebackInWorker(told)
                self._workers.remove(worker)
                self._do_without(error)
            case _:
                self._pass_on(message)

    def _give_job(self, worker: _Worker) -> None:
        if not self._waiting:
            self._workers.remove(worker)
            worker.pipe.close()  # at which it ends
            return
        worker.job = self._waiting.popleft()
        with contextlib.suppress(OSError):  # it has just died, which is heard next
            worker.pipe.send(self._jobs[worker.job])

    def _bury(self, worker: _Worker) -> None:
        cause = worker.cause_of_death()
        if worker.job is None:
            self._do_without(
                BackendError(
                    f"a worker process died while it opened the networks ({cause}), perhaps for want of memory; give "
                    "fewer --workers"
                )
            )
            return
        reason = (
            f"the process that worked on it died ({cause}): a library crashed on this file, or memory ran out; try it "
            "again alone"
        )
        self._answers[worker.job] = self._work.lost(self._jobs[worker.job], reason, self._reporter)
        if self._waiting:
            self._hire()

    def _do_without(self, error: Exception) -> None:
        """Go on with the workers that there are, as long as there are any."""
        if self._waiting and not self._workers:
            raise error
        if self._waiting:
            left = len(self._workers)
            log.warning("going on with %d worker process%s: %s", left, "es" if left > 1 else "", error)

    def _pass_on(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("began", task, frames):
                self._reporter.began(task, frames)
            case ("advanced", task, frames):
                self._reporter.advanced(task, frames)
            case ("ended", task, line):
                self._reporter.ended(task, line)
            case ("log", record):
                logging.getLogger(record.name).handle(record)

    def _stop(self) -> None:
        """Have all workers end as after Ctrl-C, and pass on their last words."""
        end_s = time.monotonic() + GRACE_S
        try:
            if os.name == "posix":  # elsewhere Ctrl-C reaches every process of the console
                for process in self._processes:
                    process.terminate()
            while self._workers and time.monotonic() < end_s:
                for worker in self._who_tells(end_s - time.monotonic()):
                    message = worker.hear()
                    if message is None:
                        self._workers.remove(worker)
                    elif message[0] in ("ended", "log"):
                        self._pass_on(message)
        finally:
            self._see_off(end_s)

    def _see_off(self, end_s: float) -> None:
        """Wait for the processes to end, no longer than until then."""
        try:
            for process in self._processes:
                process.join(max(0.0, end_s - time.monotonic()))
        finally:
            for process in self._processes:
                process.kill()


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """A process that is started within never hears Ctrl-C, not even while it starts: its parent answers that."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else the start does it, and unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# in the worker


def _live(pipe: Connection, work: Work[Any, Any], level: int) -> None:
    """All that a worker does from its start to its end."""
    post = _Post(pipe)
    _on_told_to_end(post.interrupt)
    package = logging.getLogger("facetrack")
    package.handlers = [_LogPost(post)]
    package.setLevel(level)
    try:
        _do_jobs(pipe, work, post)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    finally:
        _on_told_to_end(signal.SIG_IGN)


def _do_jobs(pipe: Connection, work: Work[Any, Any], post: _Post) -> None:
    try:
        with work.open() as do:
            post.send("opened")
            for job in _jobs(pipe):
                post.send("done", do(job, post))
    except Exception as error:  # noqa: BLE001 - errors cross over to the parent
        post.send("raised", _portable(error), traceback.format_exc())


def _on_told_to_end(answer: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; under nohup it is ignored and stays so
        told = getattr(signal, name, None)
        if told is not None and not (name == "SIGHUP" and signal.getsignal(told) == signal.SIG_IGN):
            signal.signal(told, answer)


def _jobs(pipe: Connection) -> Iterator[Any]:
    with contextlib.suppress(EOFError, OSError):  # the parent has no more, or has gone
        while True:
            yield pipe.recv()


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Post:
    """A reporter that tells the parent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()  # several threads may log
        self._busy = self._late = False
        self._frames, self._told_s = 0, 0.0

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Take the parent's signal for a KeyboardInterrupt, once: what keeps the rows must not be interrupted again.

        Raises:
            KeyboardInterrupt: now, or in the middle of a message at its end.
        """
        del number, frame
        _on_told_to_end(signal.SIG_IGN)
        if not self._busy:
            raise KeyboardInterrupt
        self._late = True

    def send(self, *message: Any) -> None:
        """Tell something; nobody hears it if the parent has gone."""
        in_main = threading.current_thread() is threading.main_thread()  # where interruptions arrive
        self._busy |= in_main
        with self._lock:
            try:
                if not self._pipe.closed:
                    self._pipe.send(message)
            except OSError:
                self._pipe.close()
        if in_main:
            self._busy = False
            if self._late:
                self._late = False
                raise KeyboardInterrupt

    def began(self, task: Task, frames: int | None) -> None:
        """See `Reporter`."""
        self._frames = 0
        self.send("began", task, frames)

    def advanced(self, task: Task, frames: int = 1) -> None:
        """Sums up what follows quickly.

        Raises:
            KeyboardInterrupt: the parent has gone.
        """
        self._frames += frames
        if time.monotonic() - self._told_s >= EVERY_S:
            self._told_s = time.monotonic()
            self._tell_frames(task)
            if self._pipe.closed:
                raise KeyboardInterrupt

    def ended(self, task: Task, line: str) -> None:
        """See `Reporter`."""
        self._tell_frames(task)
        self.send("ended", task, line)

    def _tell_frames(self, task: Task) -> None:
        if self._frames:
            self.send("advanced", task, self._frames)
        self._frames = 0


class _LogPost(logging.handlers.QueueHandler):
    """Hands log records over to the parent."""

    def __init__(self, post: _Post) -> None:
        super().__init__(SimpleQueue())  # nothing is put into it
        self._post = post

    def enqueue(self, record: logging.LogRecord) -> None:
        """Instead of putting it into a queue."""
        self._post.send("log", record)
