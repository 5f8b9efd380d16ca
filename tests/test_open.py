"""Engines are opened whole or not at all, also by two threads at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import cv2
import numpy as np
import pytest
from numba.core.caching import Cache
from numba.core.dispatcher import Dispatcher

from facetrack.engines.backend import Backend, open_backend
from facetrack.engines.card import Weights, find_card
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.pipeline import open as open_module
from facetrack.pipeline.open import Choices, open_engines
from facetrack.pipeline.portrait import portrait
from facetrack.tracker.errors import BackendError
from facetrack.tracker.types import Frame

KERNEL_MODULES = "appearance", "codecs", "geometry", "kalman", "proposals"


@dataclass
class Doorkeeper:
    """Opens networks as ever, and counts those that are open.

    Attributes:
        failing: number of the one, from 0, that cannot be opened.
        inside: what is open.
        opened: how many have been.
    """

    failing: int = -1
    inside: list[Backend] = field(default_factory=list)
    opened: int = 0

    def __call__(self, *arguments: Any) -> Backend:
        self.opened += 1
        if self.opened - 1 == self.failing:
            raise BackendError("no room")
        backend = open_backend(*arguments)
        close = backend.close

        def leave() -> None:
            self.inside.remove(backend)
            close()

        backend.close = leave  # type: ignore[method-assign]
        self.inside.append(backend)
        return backend


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_network_that_cannot_be_loaded_leaves_none_open(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    doorkeeper = Doorkeeper(failing)
    monkeypatch.setattr(open_module, "open_backend", doorkeeper)
    with pytest.raises(BackendError, match="no room"), open_engines():
        pytest.fail("opened")
    assert doorkeeper.opened > failing
    assert doorkeeper.inside == []


def fail(*_: object) -> None:
    raise ValueError("this one is odd")


def test_a_warm_up_that_fails_leaves_no_network_open(monkeypatch: pytest.MonkeyPatch) -> None:
    doorkeeper = Doorkeeper()
    monkeypatch.setattr(open_module, "open_backend", doorkeeper)
    monkeypatch.setattr(open_module, "_track_once", fail)
    with pytest.raises(ValueError, match="odd"), open_engines():
        pytest.fail("opened")
    assert (doorkeeper.opened, doorkeeper.inside) == (3, [])


def test_failed_optional_start_up_work_is_logged_and_engines_still_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    doorkeeper = Doorkeeper()
    monkeypatch.setattr(open_module, "open_backend", doorkeeper)
    caller = threading.current_thread()
    monkeypatch.setattr(open_module, "release_memory", lambda: threading.current_thread() is caller or fail())
    with caplog.at_level(logging.WARNING, "facetrack"), open_engines():
        assert len(doorkeeper.inside) == 3
    assert doorkeeper.inside == []
    assert {record.getMessage() for record in caplog.records} == {"while starting: ValueError: this one is odd"}


def in_threads(work: Callable[[], object], count: int) -> None:
    """Run `work` in several threads and wait for all."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_threads_can_open_engines_at_once_and_both_find_the_face() -> None:
    load, found, together = Cache.load_overload, [], threading.Barrier(2)

    def work() -> None:
        together.wait(60)
        with open_engines(Choices()) as engines:
            (result,) = engines.pipeline(engines.choices).serial([Frame(0, 0.0, 0.0, portrait())])
            found.append(len(result.faces))

    in_threads(work, 2)
    assert found == [1, 1]
    assert Cache.load_overload is load


@pytest.fixture
def three_threads() -> Iterator[None]:
    """OpenCV has three threads; afterwards what it had."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    yield
    cv2.setNumThreads(before)


@pytest.mark.usefixtures("three_threads")
def test_opencv_is_single_threaded_until_the_last_engines_close_and_then_restored() -> None:
    """The first ones to be opened are closed first, and opened again."""
    first, second = ExitStack(), ExitStack()
    seen = []
    for stack in (first, second, first):
        stack.enter_context(open_engines())
        seen.append(cv2.getNumThreads())
        if stack is second:
            first.close()
            seen.append(cv2.getNumThreads())
    second.close()
    seen.append(cv2.getNumThreads())
    first.close()
    assert seen == [1] * 5
    assert cv2.getNumThreads() == 3


@pytest.mark.usefixtures("three_threads")
def test_engines_that_cannot_be_opened_leave_opencv_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_module, "open_backend", Doorkeeper(0))
    with pytest.raises(BackendError, match="no room"), open_engines():
        pytest.fail("opened")
    assert cv2.getNumThreads() == 3


@pytest.mark.parametrize(("cores", "asked", "scanning"), [(1, 1, 1), (2, 1, 2), (64, 1, 4), (64, 6, 6)])
def test_scan_uses_free_cores_and_other_networks_the_requested_threads(
    cores: int, asked: int, scanning: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def note(weights: Weights, kind: str, of_one: int, proof: None) -> Backend:
        threads.append(of_one)
        return open_backend(weights, kind, 1, proof)

    monkeypatch.setattr(open_module, "usable_cores", lambda: cores)
    monkeypatch.setattr(open_module, "open_backend", note)
    with open_engines(Choices(threads=asked)):
        assert sorted(threads) == sorted([asked, scanning, asked])


@pytest.mark.parametrize("eight_bits", [False, True])
def test_a_scan_answers_the_same_on_any_number_of_threads(*, eight_bits: bool) -> None:
    own = find_card("bbfcn", "detect").weights["scan"]
    weights = own.cpu if eight_bits else own
    assert weights is not None
    answers = []
    for threads in (1, 2, 3, 4):
        with closing(OnnxBackend(weights, threads)) as backend:
            answers.append(backend.run(portrait()[None])[0].copy())
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def kernels() -> dict[str, Dispatcher]:
    modules = (import_module(f"facetrack.tracker.{name}") for name in KERNEL_MODULES)
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Dispatcher)
    }


def test_no_frame_triggers_kernel_compilation() -> None:
    """Whether its picture may be written to or not, and wherever it comes from: all kernels are there already."""
    picture = portrait()
    sealed = picture.copy()
    sealed.flags.writeable = False
    with open_engines() as engines:
        ready = {name: list(kernel.signatures) for name, kernel in kernels().items()}
        for seen in (picture, sealed, picture[::-1].copy()[::-1]):
            results = list(engines.pipeline(engines.choices).serial([Frame(i, i / 25, 0.0, seen) for i in range(3)]))
            assert [len(result.faces) for result in results] == [1, 1, 1]
        assert {name: list(kernel.signatures) for name, kernel in kernels().items()} == ready


def test_runs_end_with_the_engines() -> None:
    with open_engines() as engines:
        results = engines.pipeline(engines.choices).run(Frame(i, i / 25, 0.0, portrait()) for i in range(1000))
        assert len(next(results).faces) == 1
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("facetrack-")] == []
    with pytest.raises(BackendError, match="open them again"):
        list(results)


@pytest.mark.parametrize(("max_faces", "most"), [(1, 24), (32, 64), (200, 400)])
def test_detection_limit_is_twice_max_faces_but_at_least_24(max_faces: int, most: int) -> None:
    with open_engines(Choices(max_faces=max_faces)) as engines:
        assert engines.detector.settings.most == engines.picture_detector.settings.most == most
