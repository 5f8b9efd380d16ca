"""Settings of the whole process, such as how many threads a library takes, held while ours need them so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Held(Generic[Value]):
    """Holds a setting at a value until the last who entered has left; then it is what it was before the first."""

    def __init__(self, read: Callable[[], Value], write: Callable[[Value], object], value: Value) -> None:
        """Take what reads the setting and what writes it."""
        self._read, self._write, self._value = read, write, value
        self._lock, self._inside, self._before = threading.Lock(), 0, value

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = self._read()
            self._inside += 1
            self._write(self._value)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._write(self._before)
