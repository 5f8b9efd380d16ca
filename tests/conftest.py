"""Fixtures of several test modules."""

from __future__ import annotations

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
