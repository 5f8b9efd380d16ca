"""The threads of runs that are under way, and how they end: with their run, with its engines, or with the program.

They are daemons, so that a camera that hangs in its driver keeps no process alive. But at the end of a program Python
stops daemons where they next ask for the interpreter, before 3.14 by unwinding their stack: inside ONNX Runtime or
OpenCV, whose C++ allows no such thing, that aborts the process. So none of them is at work any more by then.

A run that nobody can reach any more may be found by the garbage collector, which interrupts a thread anywhere: also
where it holds what one of the run's threads waits for, a network's lock for instance. There nobody waits for threads:
they are told to stop, and whoever closes the engines, or the program's end, sees to what they were still at.

A process that is forked has none of these threads, but all that they were in the middle of. LLVM, in the middle of a
kernel, would abort it when it ends: a fork waits for the kernel.
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
CAPTURE_PATIENCE_S = 1.0  # how long whoever ends a run waits for a camera that gives no frame
POLL_S = 0.005
EXIT_PATIENCE_S = 10.0  # how long the program's end waits for stages, should a network hang

Permits = SimpleQueue[None]  # a semaphore that no signal can interrupt half-way


class ProgramEnds(BackendError):  # noqa: N818 - an end, not a fault
    """The run has ended, for the program does."""


@dataclass(eq=False, slots=True)
class RunThreads:
    """The threads of one run, the source's first, and the channel behind each of them.

    Attributes:
        aligner: that the run works with; whoever closes it ends the run.
        permits: that the detect stage may be waiting for.
        left: nobody wants results any more.
        done: those of the threads that are at their end. Python 3.11's own word is not enough: an interrupt in `join`
            leaves a thread for dead that is at work.
    """

    aligner: object
    permits: Permits | None
    threads: list[threading.Thread] = field(default_factory=list)
    links: list[Channel[Any]] = field(default_factory=list)
    left: bool = False
    done: set[threading.Thread] = field(default_factory=set)

    def add(self, name: str, outbox: Channel[Any], target: Callable[..., None], *arguments: object) -> None:
        """Take in the next stage; it works from `start` on."""
        work = (target, *arguments)
        self.threads.append(threading.Thread(target=self._work, args=work, name=f"facetrack-{name}", daemon=True))
        self.links.append(outbox)

    def _work(self, target: Callable[..., None], *arguments: object) -> None:
        try:
            target(*arguments)
        finally:
            self.done.add(threading.current_thread())

    def start(self) -> None:
        """Let all stages begin."""
        _under_way.difference_update([run for run in _under_way.copy() if run.left and not run.is_alive()])
        _under_way.add(self)
        for thread in reversed(self.threads):  # when the first one works, all are there for whoever ends the run
            thread.start()

    def end(self) -> None:
        """Stop, for nobody wants results any more, and wait as `join` does, but not while garbage is collected."""
        if self not in _under_way:
            return  # the program's end has seen to it, or the threads are those of the process that forked this one
        self.left = True
        for link in self.links:
            link.abandon()
        self._let_detect_go()
        if not _collection.under_way:
            self.join()
            _under_way.discard(self)  # only now: an interrupt may have kept it from waiting

    def is_alive(self) -> bool:
        """Whether any of the threads is."""
        return any(map(self._is_at_work, self.threads))

    def _is_at_work(self, thread: threading.Thread) -> bool:
        return thread.ident is not None and thread not in self.done

    def cut(self, error: BaseException) -> None:
        """Stop; whoever takes the results finds this error behind those that are there, unless they were the last."""
        if not self.is_alive():
            return
        self.links[-1].end(error)  # first: a stage whose inbox is gone ends its outbox as if all had been done
        for link in self.links[:-1]:
            link.abandon()
        self._let_detect_go()

    def join(self, until_s: float | None = None) -> None:
        """Wait for the stages to finish what they are at, and a while for the source.

        Args:
            until_s: how long at most, by `time.monotonic`; None waits for the stages as long as they need.
        """
        for thread in self.threads:
            if thread is threading.current_thread():  # it asks for this
                continue
            last_s = math.inf if until_s is None else until_s
            if thread is self.threads[0]:
                last_s = min(last_s, time.monotonic() + CAPTURE_PATIENCE_S)
            while self._is_at_work(thread) and (left_s := last_s - time.monotonic()) > 0:
                if thread.is_alive():
                    thread.join(None if math.isinf(left_s) else left_s)
                else:  # or is said not to be
                    time.sleep(min(left_s, POLL_S))
        if self._is_at_work(self.threads[0]):
            log.info("the source is silent: its thread ends with its next frame, or when the source is closed")

    def _let_detect_go(self) -> None:
        if self.permits is not None:
            self.permits.put(None)


class _Collection(threading.local):
    """Whether the present thread is collecting garbage."""

    under_way = False


_collection = _Collection()
_under_way: set[RunThreads] = set()  # without a lock: a garbage collection may end a run while its thread held it


def end_runs(aligner: object) -> None:
    """End all runs that work with this aligner, for it will be closed; their callers' loops raise a `BackendError`."""
    _cut([run for run in _under_way.copy() if run.aligner is aligner], lambda: BackendError(CLOSED), None)


def stay_if_daemon() -> None:
    """Wait for ever, in another thread than the main one: only daemons are left when the program ends.

    Python would stop it at its next step anyway. What it did until then would be done by halves: if it told of an
    error, the lock of stderr would stay with it, at which Python aborts.
    """
    if threading.current_thread() is not threading.main_thread():
        threading.Event().wait()


def _end_all() -> None:
    """Called when all threads but daemons have ended, and before Python stops those."""
    runs, until_s = _under_way.copy(), time.monotonic() + EXIT_PATIENCE_S
    _under_way.clear()
    try:
        _cut(runs, _program_ends, until_s)
    except BaseException:  # an interrupt; the next one may end the process as it can
        _cut(runs, _program_ends, until_s)
        raise


def _program_ends() -> BaseException:
    return ProgramEnds("the program ends, and all runs with it")


def _cut(runs: Collection[RunThreads], error: Callable[[], BaseException], until_s: float | None) -> None:
    for run in runs:
        run.cut(error())
    for run in runs:
        run.join(until_s)


def _note_collection(phase: str, _: object) -> None:
    _collection.under_way = phase == "start"


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_under_way.clear)  # its threads may have held locks
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
gc.callbacks.append(_note_collection)
atexit.register(_end_all)
