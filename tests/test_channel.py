"""The hand-off between threads: order, bounds, ends, errors, and nobody left waiting."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from facetrack.pipeline.channel import Abandoned, Channel, Ended

PATIENCE_S = 60.0  # only a failing test waits this long


@contextmanager
def running(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run `work` in a thread and insist that it comes to its end."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the thread was left waiting"


def produce(channel: Channel[int], count: int) -> None:
    for item in range(count):
        channel.put(item)
    channel.end()


def produce_until_abandoned(channel: Channel[int], stopped: list[bool]) -> None:
    try:
        produce(channel, 10)
    except Abandoned:
        stopped.append(True)


class Noticing(threading.Condition):
    """A condition that counts who goes to sleep on it."""

    def __init__(self, lock: threading.RLock) -> None:
        super().__init__(lock)
        self.gone_to_sleep = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.gone_to_sleep.release()
        return super().wait(timeout)


class Watched(Channel[int]):
    """A channel that can be asked whether a thread sleeps on it."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._readable, self._writable = Noticing(self._lock), Noticing(self._lock)

    def until_blocked(self, *, writing: bool) -> None:
        """Return once some thread sleeps on the channel."""
        condition = self._writable if writing else self._readable
        assert isinstance(condition, Noticing)
        while condition.gone_to_sleep.acquire(timeout=PATIENCE_S):
            with condition:  # which a thread that has noticed itself leaves when it sleeps
                if condition._waiters:  # type: ignore[attr-defined]
                    return
        raise AssertionError("nobody waits")


@pytest.mark.parametrize("capacity", [1, 2, 7, 1000])
def test_items_arrive_all_once_and_in_order(capacity: int) -> None:
    channel: Channel[int] = Channel(capacity)
    with running(lambda: produce(channel, 500)):
        assert list(channel) == list(range(500))
    assert channel.dropped == 0


def test_a_blocking_channel_never_holds_more_than_its_capacity() -> None:
    channel: Channel[int] = Channel(3)
    with running(lambda: produce(channel, 200)):
        lengths = [len(channel) for _ in channel]
    assert max(lengths) <= 3


def test_full_blocking_channel_blocks_the_producer_and_each_get_admits_one_put() -> None:
    channel = Watched(2)
    with running(lambda: produce(channel, 4)):
        channel.until_blocked(writing=True)
        assert len(channel) == 2
        assert channel.get() == 0
        channel.until_blocked(writing=True)
        assert len(channel) == 2
        assert list(channel) == [1, 2, 3]


def test_drop_oldest_keeps_the_newest_and_counts_the_rest() -> None:
    channel: Channel[int] = Channel(2, "drop-oldest")
    produce(channel, 10)
    assert channel.dropped == 8
    assert list(channel) == [8, 9]


def test_drop_oldest_delivers_or_counts_every_item_and_keeps_the_order() -> None:
    channel: Channel[int] = Channel(1, "drop-oldest")
    with running(lambda: produce(channel, 2000)):
        taken = list(channel)
    assert len(taken) + channel.dropped == 2000
    assert taken == sorted(taken)
    assert taken[-1] == 1999


@pytest.mark.parametrize(
    ("wake", "gives"), [(lambda channel: channel.put(7), 7), (Channel.end, None)], ids=["an item", "the end"]
)
def test_waiting_consumer_is_woken_by_an_item_or_the_end(
    wake: Callable[[Channel[int]], None], gives: int | None
) -> None:
    channel = Watched(1)
    taken: list[int | None] = []
    with running(lambda: taken.append(next(iter(channel), None))):
        channel.until_blocked(writing=False)
        wake(channel)
    assert taken == [gives]


def test_what_was_put_before_the_end_is_still_delivered() -> None:
    channel: Channel[int] = Channel(5)
    produce(channel, 3)
    assert list(channel) == [0, 1, 2]
    with pytest.raises(Ended):
        channel.get()


def test_error_is_raised_behind_the_items_as_the_same_object_and_again_on_later_reads() -> None:
    channel: Channel[int] = Channel(5)
    fault = OSError("the camera was unplugged")

    def fail() -> None:
        channel.put(1)
        channel.put(2)
        channel.end(fault)

    taken: list[int] = []
    with running(fail), pytest.raises(OSError, match="unplugged") as caught:
        taken.extend(channel.get() for _ in range(3))
    assert taken == [1, 2]
    assert caught.value is fault
    assert list_until_error(channel) == []


def list_until_error(channel: Channel[int]) -> list[int]:
    taken: list[int] = []
    with pytest.raises(OSError, match="unplugged"):
        taken.extend(channel)
    return taken


def test_an_error_wakes_a_waiting_consumer() -> None:
    channel = Watched(1)
    errors: list[BaseException] = []

    def consume() -> None:
        try:
            channel.get()
        except ZeroDivisionError as error:
            errors.append(error)

    fault = ZeroDivisionError("stage align, frame 12")
    with running(consume):
        channel.until_blocked(writing=False)
        channel.end(fault)
    assert errors == [fault]


def test_only_the_first_end_counts() -> None:
    channel: Channel[int] = Channel(1)
    channel.end(KeyError("first"))
    channel.end()
    channel.end(OSError("second"))
    with pytest.raises(KeyError, match="first"):
        channel.get()


def test_put_after_end_raises() -> None:
    channel: Channel[int] = Channel(1)
    channel.end()
    with pytest.raises(RuntimeError, match="after end"):
        channel.put(1)


def test_abandoning_stops_a_waiting_producer() -> None:
    channel = Watched(1)
    stopped: list[bool] = []
    with running(lambda: produce_until_abandoned(channel, stopped)):
        channel.until_blocked(writing=True)
        channel.abandon()
    assert stopped == [True]


@pytest.mark.parametrize("policy", ["block", "drop-oldest"])
def test_abandon_discards_the_items_and_makes_put_and_get_raise(policy: str) -> None:
    channel: Channel[int] = Channel(2, policy)  # type: ignore[arg-type]
    channel.put(1)
    channel.abandon()
    assert len(channel) == 0
    with pytest.raises(Abandoned):
        channel.put(2)
    with pytest.raises(Ended):
        channel.get()


def test_abandoning_wakes_several_waiting_producers_at_once() -> None:
    channel: Channel[int] = Channel(1)
    channel.put(0)
    stopped: list[int] = []

    def work(name: int) -> None:
        try:
            channel.put(name)
        except Abandoned:
            stopped.append(name)

    with running(lambda: work(1)), running(lambda: work(2)):
        channel.abandon()
    assert sorted(stopped) == [1, 2]


def test_abandoning_twice_and_ending_an_abandoned_channel_are_harmless() -> None:
    channel: Channel[int] = Channel(1)
    channel.abandon()
    channel.abandon()
    channel.end(OSError("nobody is there to hear this"))
    assert list(channel) == []


def test_finaliser_may_abandon_the_channel_while_its_own_thread_holds_the_lock() -> None:
    class Last:
        """An item with which the whole run goes."""

        def __del__(self) -> None:
            channel.abandon()

    channel: Channel[Last | int] = Channel(1, "drop-oldest")
    channel.put(Last())
    channel.put(1)  # the item makes room, inside the channel's lock
    with pytest.raises(Abandoned):
        channel.put(2)


def test_consumer_raising_inside_its_with_block_releases_the_producer() -> None:
    channel: Channel[int] = Channel(1)
    stopped: list[bool] = []

    def write_to_a_full_disk() -> None:
        with channel:
            for item in channel:
                if item == 2:
                    raise OSError("disk full")

    with running(lambda: produce_until_abandoned(channel, stopped)), pytest.raises(OSError, match="disk full"):
        write_to_a_full_disk()
    assert stopped == [True]


def test_leaving_the_with_block_after_the_end_raises_nothing() -> None:
    channel: Channel[int] = Channel(1)
    with running(lambda: produce(channel, 5)), channel:
        assert list(channel) == list(range(5))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows delivers Ctrl-C only after the wait")
@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_interrupts_a_waiting_consumer_and_releases_its_producer() -> None:
    channel = Watched(1)
    heard, gate = threading.Event(), threading.Event()
    stopped: list[bool] = []

    def interrupt_once(*_: object) -> None:
        if not heard.is_set():
            heard.set()
            raise KeyboardInterrupt

    def work() -> None:
        channel.until_blocked(writing=False)
        while not heard.is_set():  # one that comes just before the sleep itself is not heard until the next
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert gate.wait(PATIENCE_S)
        try:
            channel.put(1)
        except Abandoned:
            stopped.append(True)

    signal.signal(signal.SIGINT, interrupt_once)
    with running(work):
        with pytest.raises(KeyboardInterrupt), channel:
            channel.get()
        gate.set()
    assert stopped == [True]


def test_channel_still_works_after_a_get_timed_out() -> None:
    channel: Channel[int] = Channel(1)
    with pytest.raises(TimeoutError, match=r"0\.001 s"):
        channel.get(timeout_s=0.001)
    with running(lambda: produce(channel, 20)):
        assert list(channel) == list(range(20))


def test_error_in_a_chain_of_stages_reaches_the_last_and_stops_the_first() -> None:
    inbox: Channel[int] = Channel(1)
    outbox: Channel[int] = Channel(1)
    stopped: list[bool] = []

    def stage() -> None:
        try:
            with inbox:
                for item in inbox:
                    outbox.put(item // (5 - item))
            outbox.end()
        except ZeroDivisionError as error:
            outbox.end(error)

    taken: list[int] = []
    producer = running(lambda: produce_until_abandoned(inbox, stopped))
    with producer, running(stage), pytest.raises(ZeroDivisionError), outbox:
        taken.extend(iter(outbox))
    assert stopped == [True]


def test_many_short_lived_channels_lose_no_wake_up() -> None:
    for capacity in (1, 2):
        for _ in range(100):
            channel: Channel[int] = Channel(capacity)
            with running(lambda channel=channel: produce(channel, 20)):  # type: ignore[misc]
                assert sum(1 for _ in channel) == 20


@pytest.mark.parametrize(("capacity", "policy"), [(0, "block"), (-1, "drop-oldest"), (1, "drop-newest")])
def test_invalid_capacity_or_policy_raises(capacity: int, policy: str) -> None:
    with pytest.raises(ValueError, match="Channel: wanted"):
        Channel(capacity, policy)  # type: ignore[arg-type]
