"""The threads of runs in progress, and how they end: with their run, with its engines, or with the program.

They are daemons, so that a camera that hangs in its driver does not keep a process alive. But at the end of a program
Python stops daemons when they next ask for the interpreter, before 3.14 by unwinding their stack. Inside ONNX Runtime
or OpenCV, whose C++ does not allow that, this aborts the process. So their work is ended before then.

An unreachable run may be found by the garbage collector, which can interrupt a thread anywhere, even where it holds
what one of the run's threads waits for, such as a network's lock. In that case nobody waits for the run's threads: they
are asked to stop, and whoever closes the engines, or the end of the program, waits for their remaining work.

A forked process has none of these threads, but everything that they were in the middle of. LLVM in the middle of
compiling a kernel would abort the process when it ends, so a fork waits for the compilation.
"""

from __future__ import annotations

import atexit
import gc
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from numba.core.compiler_lock import global_compiler_lock

from ..engines.backend import CLOSED
from ..tracker.errors import BackendError
from .channel import Channel

log = logging.getLogger(__name__)
CAPTURE_PATIENCE_S = 1.0  # how long the end of a run waits for a camera that gives no frame
POLL_S = 0.005
EXIT_PATIENCE_S = 10.0  # how long the program's end waits for the stages if a network hangs

Permits = SimpleQueue[None]  # a semaphore whose operations no signal can leave half done


class ProgramEnds(BackendError):  # noqa: N818 - an end, not a fault
    """The run ended because the program is ending."""


@dataclass(eq=False, slots=True)
class RunThreads:
    """The threads of one run, the source's first, and the channel that each of them writes to.

    Attributes:
        aligner: the one that the run uses; closing it ends the run.
        permits: those that the detect stage may be waiting for.
        left: the results are no longer wanted.
        done: the threads that have ended. Python 3.11's `is_alive` is not enough: after an interrupt in `join` it
            reports a working thread as dead.
    """

    aligner: object
    permits: Permits | None
    threads: list[threading.Thread] = field(default_factory=list)
    links: list[Channel[Any]] = field(default_factory=list)
    left: bool = False
    done: set[threading.Thread] = field(default_factory=set)

    def add(self, name: str, outbox: Channel[Any], target: Callable[..., None], *arguments: object) -> None:
        """Add the next stage; it runs from `start` on."""
        work = (target, *arguments)
        self.threads.append(threading.Thread(target=self._work, args=work, name=f"facetrack-{name}", daemon=True))
        self.links.append(outbox)

    def _work(self, target: Callable[..., None], *arguments: object) -> None:
        try:
            target(*arguments)
        finally:
            self.done.add(threading.current_thread())

    def start(self) -> None:
        """Start all stages."""
        _under_way.difference_update([run for run in _under_way.copy() if run.left and not run.is_alive()])
        _under_way.add(self)
        for thread in reversed(self.threads):  # once the first one works, whoever ends the run finds all of them
            thread.start()

    def end(self) -> None:
        """Stop because the results are no longer wanted; wait as `join` does, except during a garbage collection."""
        if self not in _under_way:
            return  # the program's end has stopped it, or the threads are those of the process that forked this one
        self.left = True
        for link in self.links:
            link.abandon()
        self._let_detect_go()
        if not _collection.under_way:
            self.join()
            _under_way.discard(self)  # only now: if an interrupt ends the wait, the program's end waits again

    def is_alive(self) -> bool:
        """Whether any of the threads is still working."""
        return any(map(self._is_at_work, self.threads))

    def _is_at_work(self, thread: threading.Thread) -> bool:
        return thread.ident is not None and thread not in self.done

    def cut(self, error: BaseException) -> None:
        """Stop; the reader gets this error after the results that are there, unless they were the last."""
        if not self.is_alive():
            return
        self.links[-1].end(error)  # first: a stage whose inbox is gone ends its outbox as if it had finished
        for link in self.links[:-1]:
            link.abandon()
        self._let_detect_go()

    def join(self, until_s: float | None = None) -> None:
        """Wait for the stages to finish their current work, and for the source a limited time.

        Args:
            until_s: when to stop waiting, by `time.monotonic`; None waits for the stages as long as they need.
        """
        for thread in self.threads:
            if thread is threading.current_thread():  # it called this
                continue
            last_s = math.inf if until_s is None else until_s
            if thread is self.threads[0]:
                last_s = min(last_s, time.monotonic() + CAPTURE_PATIENCE_S)
            while self._is_at_work(thread) and (left_s := last_s - time.monotonic()) > 0:
                if thread.is_alive():
                    thread.join(None if math.isinf(left_s) else left_s)
                else:  # reported dead wrongly, see `done`
                    time.sleep(min(left_s, POLL_S))
        if self._is_at_work(self.threads[0]):
            log.info("the source is silent: its thread ends with its next frame, or when the source is closed")

    def _let_detect_go(self) -> None:
        if self.permits is not None:
            self.permits.put(None)


class _Collection(threading.local):
    """Whether the current thread is collecting garbage."""

    under_way = False


_collection = _Collection()
_under_way: set[RunThreads] = set()  # without a lock: a garbage collection may end a run in a thread that holds it


def end_runs(aligner: object) -> None:
    """End all runs that use this aligner before it is closed; their callers' loops raise a `BackendError`."""
    _cut([run for run in _under_way.copy() if run.aligner is aligner], lambda: BackendError(CLOSED), None)


def stay_if_daemon() -> None:
    """Block forever in any thread but the main one: only daemons are left when the program ends.

    Python would stop the thread soon anyway, perhaps in the middle of something: if it were printing an error, it would
    keep the lock of stderr, which makes Python abort.
    """
    if threading.current_thread() is not threading.main_thread():
        threading.Event().wait()


def _end_all() -> None:
    """Called when all threads except daemons have ended, before Python stops the daemons."""
    runs, until_s = _under_way.copy(), time.monotonic() + EXIT_PATIENCE_S
    _under_way.clear()
    try:
        _cut(runs, _program_ends, until_s)
    except BaseException:  # an interrupt; another one may end the process at once
        _cut(runs, _program_ends, until_s)
        raise


def _program_ends() -> BaseException:
    return ProgramEnds("the program is ending, and all runs with it")


def _cut(runs: Collection[RunThreads], error: Callable[[], BaseException], until_s: float | None) -> None:
    for run in runs:
        run.cut(error())
    for run in runs:
        run.join(until_s)


def _note_collection(phase: str, _: object) -> None:
    _collection.under_way = phase == "start"


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_under_way.clear)  # of whose threads, which may have held locks, it has none
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
gc.callbacks.append(_note_collection)
atexit.register(_end_all)
