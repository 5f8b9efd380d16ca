"""Fixtures of several test modules."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads of a network so small only wait for each other; for `pytestmark = pytest.mark.usefixtures(...)`."""
    torch = pytest.importorskip("torch", reason="needs the train extra")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def as_talkative_as_before() -> Iterator[None]:
    """A command leaves the level and the handlers of the log for the tests after it as it found them."""
    log = logging.getLogger("facetrack")
    level, handlers = log.level, log.handlers
    yield
    log.setLevel(level)
    log.handlers = handlers


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """Python's own handler for Ctrl-C, also where the shell started the tests in the background, deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
