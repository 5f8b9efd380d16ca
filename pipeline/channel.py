"""The one hand-off between threads: bounded, ordered, with an end that can carry an error.

A producer puts, a consumer iterates. Three things can happen besides:

    end()        the producer has no more; the consumer gets what is left, then stops
    end(error)   the producer failed; the consumer gets what is left, then the error is raised in its thread
    abandon()    the consumer has gone; what is left is thrown away and every put raises Abandoned

A waiting thread sleeps on a condition and is woken by the event that it waits for; nothing polls.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

T = TypeVar("T")

Policy = Literal["block", "drop-oldest"]


class Abandoned(Exception):  # noqa: N818 - a stop signal for producers, not a fault
    """The consumer has gone: the producer should stop, quietly."""


class Ended(Exception):  # noqa: N818 - an end, not a fault
    """The channel has ended and everything in it has been taken."""


class Channel(Generic[T]):
    """A bounded queue between one producing and one consuming thread.

    With the policy "block" a put waits for room, so that nothing is lost and the producer keeps the
    consumer's pace. With "drop-oldest" a put never waits: the item that has waited longest makes room and is
    counted.

    Used by its consumer as a context manager, the channel is abandoned when the block is left in any way, so that no
    producer keeps waiting for a consumer that has died.

    Raises:
        ValueError: the capacity is not positive or the policy is unknown.
    """

    def __init__(self, capacity: int, policy: Policy = "block") -> None:
        if capacity < 1:
            raise ValueError(f"Channel: wanted a capacity of at least 1, got {capacity}")
        if policy not in ("block", "drop-oldest"):
            raise ValueError(f'Channel: wanted the policy "block" or "drop-oldest", got {policy!r}')
        self._capacity = capacity
        self._drops = policy == "drop-oldest"
        self._items: deque[T] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._abandoned = False
        self._dropped = 0
        # Acquired directly, not through a condition: a signal may interrupt a condition between acquiring its lock and
        # the block that releases it, and all threads would wait forever.
        # Reentrant: a garbage collection in here may find that the run is unreachable, and abandon this very channel.
        self._lock = threading.RLock()
        self._readable = threading.Condition(self._lock)  # an item has come, or the end
        self._writable = threading.Condition(self._lock)  # a place is free, or the consumer has gone

    @property
    def dropped(self) -> int:
        """How many items made room for newer ones; always 0 with the policy "block"."""
        return self._dropped

    def __len__(self) -> int:
        """How many items wait now."""
        return len(self._items)

    def put(self, item: T) -> None:
        """Hand an item over, waiting for room where the policy says so.

        Raises:
            Abandoned: the consumer has gone, before or during the wait.
            RuntimeError: the channel has been ended.
        """
        with self._lock:
            while not self._drops and len(self._items) >= self._capacity and not self._closed:
                self._writable.wait()
            if self._abandoned:
                raise Abandoned
            if self._ended:
                raise RuntimeError("Channel: put after end")
            if len(self._items) >= self._capacity:
                self._items.popleft()
                self._dropped += 1
            self._items.append(item)
            self._readable.notify()

    def get(self, timeout_s: float | None = None) -> T:
        """Take the oldest item, waiting for one.

        Args:
            timeout_s: how long to wait; None waits until there is an item or the end. A loop that feeds a
                window passes one, so that the window stays responsive while the camera is silent.
        Raises:
            Ended: the channel was ended, or abandoned, and is empty.
            TimeoutError: nothing came in time.
            BaseException: the error that the channel was ended with, once the items before it are taken.
        """
        with self._lock:
            if not self._readable.wait_for(lambda: self._items or self._closed, timeout_s):
                raise TimeoutError(f"Channel: nothing came in {timeout_s} s")
            if self._items:
                item = self._items.popleft()
                self._writable.notify()
                return item
            if self._error is not None and not self._abandoned:
                raise self._error
            raise Ended

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more will come, and why if it is an error; only the first call counts."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._error = error
            self._wake_all()

    def abandon(self) -> None:
        """Say that nobody takes items any more: waiting producers stop, and what is left is discarded."""
        with self._lock:
            self._abandoned = True
            self._items.clear()
            self._wake_all()

    @property
    def _closed(self) -> bool:
        return self._ended or self._abandoned

    def _wake_all(self) -> None:
        self._readable.notify_all()
        self._writable.notify_all()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            return self.get()
        except Ended:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()
