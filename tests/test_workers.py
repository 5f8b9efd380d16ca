"""Workers: what comes out does not depend on them, and a worker's death costs one job."""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest
from fakes_workers import Errands

from facetrack.pipeline.progress import Ending
from facetrack.pipeline.workers import _handle_termination, _WorkerPool, run_jobs
from facetrack.tracker.errors import BackendError


@dataclass
class Notes:
    """A reporter that remembers; presses Ctrl-C when it first hears of a certain job's frames."""

    impatient_with: str = ""
    until: Path | None = None  # not before this file is there
    begun: list[str] = field(default_factory=list)
    frames: Counter[str] = field(default_factory=Counter)
    lines: dict[str, str] = field(default_factory=dict)
    endings: dict[str, Ending] = field(default_factory=dict)

    def began(self, task: str, frames: int | None) -> None:
        assert frames == 3
        self.begun.append(task)

    def advanced(self, task: str, frames: int = 1) -> None:
        self.frames[task] += frames
        if task == self.impatient_with and (self.until is None or self.until.exists()):
            raise KeyboardInterrupt

    def ended(self, task: str, line: str, how: Ending = "done") -> None:
        assert task not in self.lines
        self.lines[task], self.endings[task] = line, how


def openings(folder: Path) -> int:
    return len(list(folder.glob("opened-*")))


def test_answers_come_in_the_order_of_the_jobs_and_everything_is_reported(tmp_path: Path) -> None:
    jobs, notes = list("abcdefgh"), Notes()
    assert run_jobs(jobs, Errands(tmp_path), notes, 2) == list("ABCDEFGH")
    assert notes.begun[0] == "a"
    assert notes.frames == dict.fromkeys(jobs, 3)
    assert sorted(notes.lines) == jobs


def test_the_work_is_opened_once_in_each_process(tmp_path: Path) -> None:
    notes = Notes()
    run_jobs(list("abcdef"), Errands(tmp_path), notes, 2)
    assert {f"opened-{line.split()[-1]}" for line in notes.lines.values()} <= {file.name for file in tmp_path.iterdir()}
    assert openings(tmp_path) <= 2


def test_single_worker_gives_the_same_answers_and_opens_the_work_once(tmp_path: Path) -> None:
    work = Errands(tmp_path)
    assert run_jobs(["a", "b"], work, Notes(), 1) == run_jobs(["a", "b"], work, Notes(), 2)
    (tmp_path / "alone").mkdir()
    assert run_jobs(["a"], Errands(tmp_path / "alone"), Notes(), 8) == ["A"]
    assert openings(tmp_path / "alone") == 1


@pytest.mark.parametrize(
    ("platform", "wanted", "jobs", "got"),
    [
        ("win32", 64, 256, 60),
        ("win32", 60, 256, 60),
        ("win32", 64, 61, 60),
        ("win32", 64, 8, 8),
        ("linux", 64, 256, 64),
    ],
)
def test_number_of_workers_is_capped_on_windows_with_one_warning(
    platform: str, wanted: int, jobs: int, got: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[int] = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(_WorkerPool, "__init__", lambda *given: started.append(given[-1]))
    monkeypatch.setattr(_WorkerPool, "run", lambda _: [])
    run_jobs(["a"] * jobs, Errands(Path()), Notes(), wanted)
    assert started == [got]
    wanted = min(wanted, jobs)
    told = f"60 worker processes instead of {wanted}: Windows cannot wait for more at a time"
    assert caplog.messages == [told] * (got < wanted)


def test_a_worker_that_dies_costs_its_job_alone_and_is_replaced(tmp_path: Path) -> None:
    notes = Notes()
    answers = run_jobs(["a", "crash", "b", "crash again", "c", "d"], Errands(tmp_path), notes, 2)
    assert [answers[i] for i in (0, 2, 4, 5)] == ["A", "B", "C", "D"]
    assert "ended with exit code 3" in answers[1]
    assert "killed by SIGABRT" in answers[3]
    assert notes.lines["crash"] == notes.lines["crash again"] == "lost"
    assert 3 <= openings(tmp_path) <= 4


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no real-time signals")
def test_a_signal_without_a_name_costs_its_job_alone(tmp_path: Path) -> None:
    answers = run_jobs(["strange signal", "b"], Errands(tmp_path), Notes(), 2)
    assert f"killed by signal {signal.SIGRTMIN + 1}" in answers[0]
    assert answers[1] == "B"


def test_a_worker_ended_from_outside_is_reported_once_and_costs_its_job_alone(tmp_path: Path) -> None:
    notes = Notes()
    answers = run_jobs(["ended from outside", "b"], Errands(tmp_path), notes, 2)
    assert answers == ["the process that worked on it was ended from outside (SIGTERM); try it again", "B"]
    assert notes.lines["ended from outside"] == "lost"
    assert (tmp_path / "kept").exists()


def test_error_in_a_worker_is_raised_with_its_origin_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LookupError, match="nothing here") as caught:
        run_jobs(["a", "raise", "b"], Errands(tmp_path), Notes(), 2)
    assert "fakes_workers.py" in str(caught.value.__cause__)
    assert capfd.readouterr() == ("", "")


def test_unpicklable_error_is_still_reported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="CannotBePickled: a strange thing"):
        run_jobs(["a", "raise strangely"], Errands(tmp_path), Notes(), 2)


def test_where_no_worker_can_open_its_work_that_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"exit code 7.*fewer --workers"):
        run_jobs(["a", "b"], Errands(tmp_path, may_open=0), Notes(), 2)


@pytest.mark.skipif(os.name != "posix", reason="asks whether a process is still known")
def test_run_continues_without_workers_that_cannot_open_their_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run_jobs(["mourn", "a", "b"], Errands(tmp_path, may_open=1), Notes(), 2) == ["MOURN", "A", "B"]
    assert "continuing with 1 worker process: a worker process died while it opened" in caplog.text


def test_ctrl_c_interrupts_the_jobs_of_all_workers_and_keeps_partial_results(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    notes = Notes("endless")
    with pytest.raises(KeyboardInterrupt):
        run_jobs(["endless", *"abcdef"], Errands(tmp_path), notes, 2)
    assert (tmp_path / "kept").exists()
    assert (notes.lines["endless"], notes.endings["endless"]) == ("kept", "interrupted")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name != "posix", reason="blocks signals")
def test_ctrl_c_does_not_wait_for_a_worker_that_is_still_opening_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facetrack.pipeline.workers.GRACE_S", 1e6)  # who waits is ended by `faulthandler_timeout`
    with pytest.raises(KeyboardInterrupt):
        run_jobs(["endless", "a"], Errands(tmp_path, may_open=1, deaf=True), Notes("endless", tmp_path / "deaf"), 2)
    assert (tmp_path / "kept").exists()


@pytest.mark.skipif(os.name != "posix", reason="starts processes in another way")
def test_ctrl_c_while_a_worker_is_started_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spawn, started = util.spawnv_passfds, []

    def spawn_interrupted(path: bytes, arguments: list[Any], descriptors: Any) -> int:
        number: int = spawn(path, arguments, descriptors)
        if "--multiprocessing-fork" in arguments:  # a worker, which does not know yet what it is to do
            started.append(number)
            _thread.interrupt_main()
        return number

    monkeypatch.setattr(util, "spawnv_passfds", spawn_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(["a", "b"], Errands(tmp_path), Notes(), 2)
    with suppress(ChildProcessError):  # the pool has waited for it
        os.waitpid(started[0], 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name != "posix", reason="has no other signal to stand in")
def test_ctrl_break_is_handled_in_workers_like_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    try:
        _handle_termination(lambda number, _: heard.append(number))
        signal.raise_signal(signal.SIGUSR1)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert heard == [signal.SIGUSR1]


def test_what_a_worker_logs_is_logged_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "facetrack"):
        run_jobs(["warn", "a"], Errands(tmp_path), Notes(), 2)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("facetrack.fake", "warn is strange")]
