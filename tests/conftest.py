"""Fixtures shared by several test modules."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one torch thread: in small networks threads only wait for each other. For `pytest.mark.usefixtures(...)`."""
    torch = pytest.importorskip("torch", reason="needs the train extra")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def as_talkative_as_before() -> Iterator[None]:
    """Restore the log's level and handlers after each test, because commands change them."""
    log = logging.getLogger("facetrack")
    level, handlers = log.level, log.handlers
    yield
    log.setLevel(level)
    log.handlers = handlers


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """Install Python's own handler for Ctrl-C; a shell that runs the tests in the background makes them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
