"""Process-wide settings, such as a library's number of threads, held at a value while facetrack needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class HeldSetting(Generic[Value]):
    """Holds a setting at a value from the first entry to the last exit, then restores what it was before."""

    def __init__(self, read: Callable[[], Value], write: Callable[[Value], object], value: Value) -> None:
        """Take a function that reads the setting, one that writes it, and the value to hold."""
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
