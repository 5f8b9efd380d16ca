"""The training loop on a network of a few numbers: resuming, averaging, rates, what is written and when."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes_fit import Clockwork, Fit, Killed, config  # noqa: E402 - torch may be missing
from fakes_training import write_faces  # noqa: E402
from filelock import FileLock  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from facetrack.engines.card import ModelCard, Weights, all_cards  # noqa: E402
from facetrack.engines.card_text import card_text  # noqa: E402
from facetrack.engines.torch_backend import save_torch_weights  # noqa: E402
from facetrack.tracker.errors import ConfigError, SinkError, SourceError  # noqa: E402
from facetrack.training import processes, step_log  # noqa: E402
from facetrack.training import train as loop  # noqa: E402
from facetrack.training.config import Config, Corpus, Network, Publication, Schedule  # noqa: E402
from facetrack.training.datasets import Sample  # noqa: E402
from facetrack.training.objectives import open_objective, run_config  # noqa: E402
from facetrack.training.processes import set_up_device  # noqa: E402
from facetrack.training.start import start_file  # noqa: E402
from facetrack.training.train import Run, batches, learning_rate  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def parameters_after(folder: Path, objective: Fit, settings: Config | None = None) -> dict[str, Tensor]:
    run = Run(settings or config(), objective, folder)
    run.train()
    return {**run.net.state_dict(), **{f"average.{k}": v for k, v in run.average.state_dict().items()}}


@pytest.mark.parametrize("kill_at", [1, 3, 7, 10, 11])
def test_killed_run_resumes_to_the_same_parameters(tmp_path: Path, kill_at: int) -> None:
    whole = parameters_after(tmp_path / "whole", Fit())
    with pytest.raises(Killed):
        parameters_after(tmp_path / "killed", Fit(kill_at=kill_at))
    torch.manual_seed(99)  # another process has another state
    again = parameters_after(tmp_path / "killed", Fit())
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name


def test_run_trained_in_parts_ends_with_the_same_parameters(tmp_path: Path) -> None:
    whole = parameters_after(tmp_path / "whole", Fit())
    for until in (4, 5, 40):
        Run(config(), Fit(), tmp_path / "parts").train(until)
    parts = Run(config(), Fit(), tmp_path / "parts")
    assert parts.step == 12
    assert all(torch.equal(value, whole[name]) for name, value in parts.net.state_dict().items())


def test_pace_is_that_of_the_steps_alone_and_writes_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Clockwork()
    monkeypatch.setattr(loop, "time", objective)
    run = Run(config(validate_every=1, checkpoint_every=1), objective, tmp_path)
    assert run.pace(10, skip=4) == pytest.approx(2.0)
    assert run.step == 10
    assert not (tmp_path / "checkpoint.pt").exists()


def test_run_logs_its_progress_every_half_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first four steps last 30 seconds each, the others half a second."""
    objective = Clockwork()
    for module in (loop, step_log):
        monkeypatch.setattr(module, "time", objective)
    with caplog.at_level("INFO", "facetrack"):
        Run(config(steps=83, validate_every=83), objective, tmp_path).train()
    assert [message for message in caplog.messages if message.startswith("step")] == [
        "step 1 of 83, 0.2 pictures a second, 41.0 minutes left",
        "step 2 of 83, 0.2 pictures a second, 40.5 minutes left",
        "step 3 of 83, 0.2 pictures a second, 40.0 minutes left",
        "step 4 of 83, 0.2 pictures a second, 39.5 minutes left",
        "step 80 of 83, 12.0 pictures a second, 0.0 minutes left",  # 30 seconds after the validation of step 20
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_stop_at_the_step_in_which_the_time_of_the_first_is_up(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The second one's own clock is far ahead. The first one alone says how far they are."""
    told = []

    def broadcast(over: Tensor, source: int) -> None:
        assert source == 0
        if rank == 0:
            told.append(bool(over))
        else:
            over.fill_(len(told) == 4)
            told.append(bool(over))

    objective = Clockwork()
    for module in (loop, processes):
        monkeypatch.setattr(module, "time", objective)

    def all_gather(steps: list[Tensor], own: Tensor) -> None:
        for step in steps:
            step.copy_(own)

    together = SimpleNamespace(broadcast=broadcast, barrier=lambda: None, all_gather=all_gather)
    monkeypatch.setattr(loop, "dist", together)
    monkeypatch.setattr(processes, "dist", together)
    monkeypatch.setattr(loop, "DistributedDataParallel", lambda net, **_: net)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    run = Run(config(validate_every=100), objective, tmp_path)
    with caplog.at_level("INFO", "facetrack"):
        run.train(seconds=120.25 if rank == 0 else 0.0)  # four steps of 30 seconds, and half of another
    assert len([message for message in caplog.messages if message.startswith("step")]) == (4 if rank == 0 else 0)
    assert told == [False] * 4 + [True]
    assert run.step == 5


@pytest.mark.parametrize("rank", [0, 1])
def test_hosts_with_different_checkpoints_raise_before_training(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one has the checkpoint of step 3; the other begins."""

    def all_gather(steps: list[Tensor], own: Tensor) -> None:
        assert int(own) == (3, 0)[rank]
        for step, found in zip(steps, (3, 0), strict=True):
            step.fill_(found)

    if rank == 0:
        Run(config(), Fit(), tmp_path).train(3)
    monkeypatch.setattr(loop, "dist", SimpleNamespace(barrier=lambda: None))
    monkeypatch.setattr(processes, "dist", SimpleNamespace(all_gather=all_gather))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    run = Run(config(), Fit(), tmp_path)
    with pytest.raises(ConfigError, match=r"got those of steps 3, 0; --out must be one folder that all hosts share"):
        run.train()


def test_gpu_setup_enables_cudnn_benchmark_and_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    cudnn, matmul = SimpleNamespace(), SimpleNamespace()
    cuda = SimpleNamespace(is_available=lambda: True, set_device=chosen.append)
    backends = SimpleNamespace(cudnn=cudnn, cuda=SimpleNamespace(matmul=matmul))
    monkeypatch.setattr(processes, "torch", SimpleNamespace(cuda=cuda, backends=backends, device=torch.device))
    monkeypatch.setenv("LOCAL_RANK", "3")
    set_up_device()
    assert chosen == [torch.device("cuda", 3)]
    assert vars(cudnn) == {"benchmark": True, "allow_tf32": True}
    assert vars(matmul) == {"allow_tf32": True}


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    parameters_after(tmp_path, Fit())
    objective = Fit()
    Run(config(), objective, tmp_path).train()
    assert objective.losses == 0
    assert objective.drawn == []


def test_a_resumed_run_draws_the_items_that_the_killed_one_would_have(tmp_path: Path) -> None:
    first, second = Fit(kill_at=7), Fit()
    with pytest.raises(Killed):
        parameters_after(tmp_path, first)
    parameters_after(tmp_path, second)
    assert [index for index, _ in second.drawn] == list(range(6 * 6, 12 * 6))  # the checkpoint of step 6
    assert second.drawn[0] == (36, 6 / 12)
    assert [progress for index, progress in second.drawn if index == 71] == [11 / 12]


def test_processes_draw_disjoint_equal_shares_of_all_items(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, shares = config().schedule, []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        objective = Fit()
        assert len(list(batches(objective, schedule, 2, 5))) == 3
        shares.append([index for index, _ in objective.drawn])
    assert shares[0] == [12, 15, 18, 21, 24, 27]
    assert sorted(chain(*shares)) == list(range(2 * 6, 5 * 6))


@pytest.mark.parametrize(("processes", "batch"), [(4, 8), (7, 7)])
def test_batch_not_divisible_by_the_processes_raises_before_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, batch: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    told = f"schedule.batch: wanted a multiple of .*, got 6 for {processes}; set schedule.batch={batch}"
    with pytest.raises(ConfigError, match=told):
        Run(config(), Fit(), tmp_path)
    (tmp_path / "run.toml").write_text("[schedule]\nbatch = 6\n")
    with pytest.raises(ConfigError, match=told):  # before any data is read
        run_config(tmp_path / "run.toml", tmp_path / "no data", tmp_path / "out")


def test_batches_are_drawn_by_worker_processes_too() -> None:
    here = [batch[0] for batch in batches(Fit(), config().schedule, 0, 3)]
    there = [batch[0] for batch in batches(Fit(), config(workers=1).schedule, 0, 3)]
    assert len(here) == 3
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_item_error_is_raised_unchanged_from_workers_too(workers: int) -> None:
    class Broken(Fit):
        def item(self, index: int, progress: float) -> tuple[Any, ...]:
            if index == 8:
                raise SourceError("a.jpg: not a readable picture; remove it or fix it")
            return super().item(index, progress)

    drawn = batches(Broken(), config(workers=workers).schedule, 0, 3)
    next(drawn)
    with pytest.raises(SourceError) as caught:
        next(drawn)
    assert str(caught.value) == "a.jpg: not a readable picture; remove it or fix it"


def test_the_learning_rate_warms_up_linearly_and_falls_by_half_a_cosine() -> None:
    schedule = Schedule(steps=110, warm_up=10, learning_rate=0.4)
    assert [learning_rate(step, schedule) for step in (0, 4, 9)] == pytest.approx([0.04, 0.2, 0.4])
    assert learning_rate(10, schedule) == pytest.approx(0.4)
    assert learning_rate(35, schedule) == pytest.approx(0.4 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(60, schedule) == pytest.approx(0.2)
    assert learning_rate(110, schedule) == pytest.approx(0.0)
    assert learning_rate(500, schedule) == pytest.approx(0.0)
    assert learning_rate(0, Schedule(warm_up=0, learning_rate=0.4)) == pytest.approx(0.4)


def test_learning_rate_drops_in_steps_as_in_the_paper() -> None:
    schedule = Schedule(steps=200_000, learning_rate=2.5e-4, warm_up=0, drops=((0.05, 5), (0.2, 2), (0.5, 2)))
    rates = [learning_rate(step, schedule) for step in (0, 9_999, 10_000, 40_000, 100_000, 199_999)]
    assert rates == pytest.approx([2.5e-4, 2.5e-4, 5e-5, 2.5e-5, 1.25e-5, 1.25e-5])  # SPAN, section IV-A


def test_the_optimiser_runs_at_the_rate_of_its_step_and_decays_no_bias(tmp_path: Path) -> None:
    run = Run(config(weight_decay=0.3), Fit(), tmp_path)
    run.train(2)
    decayed, plain = run.optimiser.param_groups
    assert decayed["lr"] == plain["lr"] == learning_rate(1, run.config.schedule)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in plain["params"])


def test_average_follows_the_ema_rule_and_copies_the_batch_statistics(tmp_path: Path) -> None:
    """keep = min(ema, (1 + step) / (10 + step)), step counted from 1."""
    ema = 0.5
    run = Run(config(ema=ema, checkpoint_every=1), Fit(), tmp_path)
    expected = [p.detach().clone() for p in run.net.parameters()]
    for step in range(1, 9):
        run.train(step)
        keep = min(ema, (1 + step) / (10 + step))
        expected = [keep * a + (1 - keep) * p.detach() for a, p in zip(expected, run.net.parameters(), strict=True)]
        for a, b in zip(expected, run.average.parameters(), strict=True):
            torch.testing.assert_close(a, b.detach())
        for a, b in zip(run.net.buffers(), run.average.buffers(), strict=True):
            assert torch.equal(a, b)


def test_frozen_layers_stay_bit_identical(tmp_path: Path) -> None:
    before = Run(config(), Fit(), tmp_path / "before").net.state_dict()
    after = parameters_after(tmp_path / "after", Fit(), config(only="3."))  # the last layer
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert same == {name for name in before if not name.startswith("3.")}
    assert {name for name in same if "running" in name or "tracked" in name}  # the statistics are among them


def test_unknown_parameter_prefix_raises_listing_the_parameters(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no parameter begins with 'net'; there are 0\.bias, 0\.weight, 1"):
        Run(config(only="net"), Fit(), tmp_path)


def test_large_gradients_are_clipped(tmp_path: Path) -> None:
    run = Run(config(clip=1e-3), Fit(), tmp_path)
    run.train(1)
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in run.net.parameters() if p.grad is not None))
    assert norm <= 1e-3 + 1e-7


def test_nan_loss_ends_the_run_before_it_reaches_the_parameters(tmp_path: Path) -> None:
    class Broken(Fit):
        def loss(self, net: nn.Module, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
            loss, terms = super().loss(net, batch)
            return loss * (math.nan if self.losses == 5 else 1.0), terms

    run = Run(config(), Broken(), tmp_path)
    told = r"step 4: the gradient is not finite, the run diverges; start again in another folder with .*_rate \(0\.05\)"
    with pytest.raises(ConfigError, match=told):
        run.train()
    assert all(torch.isfinite(p).all() for p in run.net.parameters())
    assert run.step == 4


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_log_has_means_of_every_interval_including_a_short_last_one(tmp_path: Path) -> None:
    parameters_after(tmp_path, Fit())
    log = lines(tmp_path)
    assert [line["step"] for line in log] == [5, 10, 12]
    for line in log:
        assert line["one"] == 1.0
        assert line["rate"] > 0
        assert line["left_min"] >= 0
        assert set(line["val"]) == {"first", "second"}


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("rate", "left_min")} for line in lines(folder)]


@pytest.mark.parametrize("kill_at", [4, 5, 7, 9, 10, 11])
def test_killed_and_resumed_run_has_the_same_log_and_curves(tmp_path: Path, kill_at: int) -> None:
    for name in ("whole", "killed"):
        settings = config(validate_every=4, checkpoint_every=6)
        if name == "killed":
            with pytest.raises(Killed):
                Run(settings, Fit(kill_at=kill_at), tmp_path / name).train()
        Run(settings, Fit(), tmp_path / name).train()
    assert untimed(tmp_path / "killed") == untimed(tmp_path / "whole")
    whole, killed = (EventAccumulator(str(tmp_path / n / "tensorboard")).Reload() for n in ("whole", "killed"))
    for name in ("loss/error", "validation/first"):  # files of one second come in any order
        assert {e.step: e.value for e in killed.Scalars(name)} == {e.step: e.value for e in whole.Scalars(name)}
        assert len(killed.Scalars(name)) == 3


def test_tensorboard_purges_repeated_steps_once_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    purged = []

    class Writer(loop.SummaryWriter):
        def __init__(self, folder: str, purge_step: int | None) -> None:
            purged.append(purge_step)
            super().__init__(folder, purge_step=purge_step)

    monkeypatch.setattr(loop, "SummaryWriter", Writer)
    with pytest.raises(Killed):
        Run(config(), Fit(kill_at=7), tmp_path).train()
    Run(config(), Fit(), tmp_path).train()
    assert purged == [None, 7, None]  # of steps 5, 10 and 12; the checkpoint was that of step 6


def test_resume_drops_log_lines_beyond_the_checkpoint(tmp_path: Path) -> None:
    """As releases wrote them that saved after the validation alone; and half a line."""
    Run(config(), Fit(), tmp_path / "whole").train()
    Run(config(), Fit(), tmp_path / "again").train(5)
    with (tmp_path / "again/log.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 7, "val": {"first": 1}}\n{"step": 8, "va')
    Run(config(), Fit(), tmp_path / "again").train()
    assert untimed(tmp_path / "again") == untimed(tmp_path / "whole")


def test_failed_validation_loses_no_step_and_is_repeated_on_resume(tmp_path: Path) -> None:
    class Failing(Fit):
        def validate(self, net: nn.Module) -> dict[str, float]:
            if self.losses == 12:
                raise SourceError("a.jpg: not a readable picture")
            return super().validate(net)

    Run(config(), Fit(), tmp_path / "whole").train()
    with pytest.raises(SourceError):
        Run(config(checkpoint_every=100), Failing(), tmp_path / "failed").train()
    again = Fit()
    Run(config(), again, tmp_path / "failed").train()
    assert again.losses == 0
    assert untimed(tmp_path / "failed") == untimed(tmp_path / "whole")
    for name in ("whole", "failed"):
        assert torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["step"] == 12
    assert (tmp_path / "failed/best.pt").is_file()


def test_failing_validation_is_noticed_after_20_steps(tmp_path: Path) -> None:
    class Failing(Fit):
        def validate(self, net: nn.Module) -> dict[str, float]:  # noqa: ARG002 - as the seam has it
            raise SourceError("a.jpg: not a readable picture")

    settings = config(steps=60, validate_every=50, checkpoint_every=100)
    with pytest.raises(SourceError):
        Run(settings, Failing(), tmp_path).train()
    again = Fit()
    Run(settings, again, tmp_path).train()
    assert again.losses == 60 - 20
    assert [line["step"] for line in lines(tmp_path)] == [20, 50, 60]


@pytest.mark.parametrize(
    ("every", "steps", "validated"),
    [(7, 30, [7, 14, 21, 28, 30]), (20, 30, [20, 30]), (100, 20, [20]), (100, 19, [19]), (30, 45, [20, 30, 45])],
)
def test_an_early_validation_comes_only_where_the_first_one_would_be_late(
    tmp_path: Path, every: int, steps: int, validated: list[int]
) -> None:
    parameters_after(tmp_path, Fit(), config(steps=steps, validate_every=every))
    assert [line["step"] for line in lines(tmp_path)] == validated
    assert (tmp_path / "best.pt").is_file()


@pytest.mark.parametrize("keep", ["best", "last"])
def test_an_early_validation_changes_neither_the_weights_nor_which_are_kept(tmp_path: Path, keep: str) -> None:
    """Were it to choose, its network would be the best."""
    whole = parameters_after(
        tmp_path, Fit(validations=(0.1, 3.0, 2.0, 5.0)), config(steps=40, validate_every=25, keep=keep)
    )
    assert [line["step"] for line in lines(tmp_path)] == [20, 25, 40]
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert (best["step"], best["val"]["first"]) == (40, 2.0)
    without = parameters_after(tmp_path / "without", Fit(), config(steps=40, validate_every=20, keep=keep))
    assert all(torch.equal(value, without[name]) for name, value in whole.items())


def test_tensorboard_gets_every_validation_and_a_picture_in_its_colours(tmp_path: Path) -> None:
    parameters_after(tmp_path, Fit())
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("validation/first")] == [5, 10, 12]
    assert [e.value for e in events.Scalars("loss/one")] == [1.0] * 3
    png = np.frombuffer(events.Images("validation")[-1].encoded_image_string, np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(png, cv2.IMREAD_COLOR)[0, 0], [255, 0, 0])


def test_a_run_begins_from_the_average_of_another_and_refuses_other_files(tmp_path: Path) -> None:
    first = parameters_after(tmp_path / "first", Fit())
    start = replace(config(), start=str(tmp_path / "first" / "best.pt"))
    best = torch.load(tmp_path / "first" / "best.pt", weights_only=True)["average"]
    run = Run(start, Fit(), tmp_path / "second")
    assert all(torch.equal(run.net.state_dict()[key], value) for key, value in best.items())
    assert first.keys() >= best.keys()
    with pytest.raises(ConfigError, match=r"start: .*best\.pt is not a best\.pt or \.torch\.npz of this network"):
        Run(start, Fit(width=5), tmp_path / "third")
    with pytest.raises(ConfigError, match=r"start: .*none\.npz"):
        Run(replace(start, start=str(tmp_path / "none.npz")), Fit(), tmp_path / "third")


def test_run_starts_from_the_published_weights_of_a_model_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the package, or the user's own folder of models, is."""
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for folder in ("cards", "weights"):
        (tmp_path / folder).mkdir()
    onnx = tmp_path / "weights/pebble.onnx"
    onnx.write_bytes(b"sand")
    weights = {"net": Weights(onnx, "", "fp32")}
    sizes = {"size": (128, 128), "box_scale": 1.2, "codec": {"kind": "none"}, "parameters": 1, "gmac": 0.1}
    told = {"data": (), "licence": "none", "measured": {}, "calibration": {}}
    card = ModelCard("pebble", "tab", "align", "ibug68", weights=weights, **sizes, **told)
    (tmp_path / "cards/pebble.toml").write_text(card_text(card), encoding="utf-8")
    net = Fit().build()
    save_torch_weights(net, onnx, "tab", 68, {})
    run = Run(replace(config(), start="pebble"), Fit(), tmp_path / "run")
    for name, value in net.state_dict().items():
        torch.testing.assert_close(run.net.state_dict()[name], value, rtol=1e-3, atol=1e-3)  # stored in 16 bits
    with pytest.raises(ConfigError, match=r"start: wanted a best\.pt, .* or a model's name: no model 'rock'"):
        start_file("rock")


@pytest.mark.parametrize("network", ["span", "tab", "propnet", "gv"])
def test_start_file_exists_for_every_shipped_network(
    network: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path))
    if network not in {card.network for card in all_cards()}:
        pytest.skip(f"no weights of {network} are shipped with this checkout")
    assert start_file(network).is_file()


def test_best_average_by_the_first_figure_is_kept_across_a_resume(tmp_path: Path) -> None:
    settings = config(steps=20, checkpoint_every=5)
    Run(settings, Fit(validations=(3.0, 1.0)), tmp_path).train(10)
    run = Run(settings, Fit(validations=(2.0, 1.5)), tmp_path)
    assert run.best == 1.0
    run.train()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert (best["step"], best["val"]["first"]) == (10, 1.0)
    assert best["average"].keys() == run.average.state_dict().keys()


def test_keep_last_stores_the_last_average_whatever_its_validation(tmp_path: Path) -> None:
    run = Run(config(keep="last", ema=0.5), Fit(validations=(1.0, 3.0, 2.0)), tmp_path)
    run.train()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert (best["step"], best["val"]["first"]) == (12, 2.0)
    assert all(torch.equal(value, run.average.state_dict()[name]) for name, value in best["average"].items())


def test_switching_from_keep_last_to_best_compares_with_the_last_figure(tmp_path: Path) -> None:
    """The last was worse than one before it, which is gone: what is better than the last is the best that there is."""
    Run(config(steps=20, keep="last"), Fit(validations=(3.0, 5.0)), tmp_path).train(10)
    run = Run(config(steps=20), Fit(validations=(4.0, 4.5)), tmp_path)
    assert run.best == 5.0
    run.train()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert (best["step"], best["val"]["first"]) == (15, 4.0)


def test_any_figure_beats_a_last_one_that_is_nan(tmp_path: Path) -> None:
    Run(config(keep="last"), Fit(validations=(1.0, math.nan)), tmp_path).train(10)
    Run(config(), Fit(validations=(2.0,)), tmp_path).train()
    assert torch.load(tmp_path / "best.pt", weights_only=True)["val"]["first"] == 2.0


def test_nan_validation_is_not_the_best(tmp_path: Path) -> None:
    run = Run(config(), Fit(validations=(1.0, math.nan, 2.0)), tmp_path)
    run.train()
    assert run.best == 1.0
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 5


def test_a_kill_while_the_checkpoint_is_written_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(config(), Fit(), tmp_path)
    run.train(3)

    def half(_state: dict[str, Any], path: Path) -> None:
        path.write_bytes(b"half a checkpoint")
        raise Killed

    monkeypatch.setattr(loop.torch, "save", half)
    with pytest.raises(Killed):
        run.train(6)
    monkeypatch.undo()
    assert Run(config(), Fit(), tmp_path).step == 3


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0: c10::Thrown"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_full_disk_ends_the_run_with_one_line_and_keeps_only_the_last_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two ways in which torch tells of it."""
    run = Run(config(), Fit(), tmp_path)
    run.train(3)

    def full(_state: dict[str, Any], path: Path) -> None:
        path.write_bytes(b"half a checkpoint")
        raise error

    with monkeypatch.context() as during:
        during.setattr(loop.torch, "save", full)
        with pytest.raises(SinkError) as caught:
            run.train(6)
    assert re.fullmatch(
        r".*checkpoint\.part: cannot be written: .*; make room, or choose another folder", str(caught.value)
    )
    assert not list(tmp_path.glob("*.part"))
    assert Run(config(), Fit(), tmp_path).step == 3


def test_checkpoint_of_another_network_raises(tmp_path: Path) -> None:
    Run(config(), Fit(), tmp_path).train(3)
    with pytest.raises(ConfigError, match=r"checkpoint\.pt: belongs to another network than the configuration's"):
        Run(config(), Fit(width=5), tmp_path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (config(seed=1), "schedule.seed 0, now 1;"),
        (config(steps=13, batch=7), "schedule.steps 12, now 13; schedule.batch 6, now 7;"),
        (replace(config(), network=Network(options={"width": 3})), 'network.options {}, now {"width": 3};'),
        (replace(config(), corpora=(Corpus("more"),)), 'corpora [], now [{"path": "more", '),
        (replace(config(), validation="others"), 'validation "", now "others";'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_resume_with_changed_settings_raises_naming_them(tmp_path: Path, changed: Config, told: str) -> None:
    Run(config(), Fit(), tmp_path).train(3)
    with pytest.raises(ConfigError, match=rf"checkpoint\.pt: .* with other settings: {re.escape(told)}"):
        Run(changed, Fit(), tmp_path)


def test_settings_that_do_not_affect_training_may_change_on_resume(tmp_path: Path) -> None:
    whole = parameters_after(tmp_path / "whole", Fit())
    Run(replace(config(), corpora=(Corpus("a"),)), Fit(), tmp_path / "parts").train(3)
    other = replace(
        config(validate_every=2, checkpoint_every=7, workers=1, keep="last"),
        card=Publication("another name"),
        corpora=(Corpus("a", held_out=False),),
    )
    parts = parameters_after(tmp_path / "parts", Fit(), other)
    assert parts.keys() == whole.keys() != set()
    assert all(torch.equal(value, whole[name]) for name, value in parts.items())


def test_setting_known_to_only_one_side_counts_as_changed(tmp_path: Path) -> None:
    Run(config(), Fit(), tmp_path).train(3)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    ema = state["settings"].pop("schedule.ema")
    torch.save({**state, "settings": {**state["settings"], "schedule.moon": "full"}}, path)
    told = f'schedule.moon "full", now null; schedule.ema null, now {ema};'
    with pytest.raises(ConfigError, match=rf"other settings: {re.escape(told)}"):
        Run(config(), Fit(), tmp_path)


@pytest.mark.parametrize("lacking", ["net", "tally", "owed", "settings", "its end"])
def test_broken_checkpoint_raises_a_config_error(lacking: str, tmp_path: Path) -> None:
    Run(config(), Fit(), tmp_path).train(3)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    if lacking in state:
        torch.save({name: value for name, value in state.items() if name != lacking}, path)
    else:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"checkpoint\.pt: wanted a checkpoint of `facetrack train`, got: "):
        Run(config(), Fit(), tmp_path)


def test_training_in_a_locked_folder_raises_and_changes_nothing(tmp_path: Path) -> None:
    Run(config(), Fit(), tmp_path).train(3)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    second = Run(config(), Fit(), tmp_path)
    with FileLock(tmp_path / "lock"), pytest.raises(ConfigError, match="another process is training here"):
        second.train()
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
    second.train()
    assert second.step == 12


def test_run_continues_from_a_checkpoint_written_after_its_creation(tmp_path: Path) -> None:
    whole = parameters_after(tmp_path / "whole", Fit())
    Run(config(), Fit(), tmp_path / "parts").train(2)
    early, objective = Run(config(), Fit(), tmp_path / "parts"), Fit()
    Run(config(), Fit(), tmp_path / "parts").train(8)
    late = Run(config(), objective, tmp_path / "parts")
    early.train(9)
    late.train()
    assert [index // 6 for index, _ in objective.drawn[::6]] == [9, 10, 11]
    assert all(torch.equal(value, whole[name]) for name, value in late.net.state_dict().items())
    assert [line["step"] for line in lines(tmp_path / "parts")] == [2, 5, 8, 9, 10, 12]


def test_locked_folder_raises_before_any_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('validation = "faces"\nnegative_share = 0.0\n[[corpora]]\npath = "faces"\n')
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "lock"), pytest.raises(ConfigError, match="another process is training here"):
        run_config(tmp_path / "run.toml", tmp_path / "no data", tmp_path / "out")


def test_two_runs_of_one_seed_are_the_same_and_of_two_seeds_are_not(tmp_path: Path) -> None:
    a, b = (parameters_after(tmp_path / name, Fit()) for name in "ab")
    c = parameters_after(tmp_path / "c", Fit(), config(seed=1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["0.weight"], c["0.weight"])


def test_untrainable_network_raises_listing_the_trainable_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="there is no training for 'perceptron'; wanted one of gv, tab, propnet, span, shn, bbfcn, "
    ):
        open_objective(Config(Network("perceptron")), tmp_path, tmp_path)


def test_branches_without_a_finished_backbone_raise(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.pt: not found; wanted the best\.pt of a finished run"):
        open_objective(Config(Network("bbfcn", 5)), tmp_path, tmp_path)


def test_a_configuration_file_is_trained_with_its_overrides(tmp_path: Path) -> None:
    """Two steps of the smallest GV on a corpus of painted faces, from the file to the checkpoint."""
    write_faces(tmp_path / "data" / "faces", 2)
    write_faces(tmp_path / "data" / "grass", 1)
    (tmp_path / "run.toml").write_text(
        """
negatives = ["grass"]
validation = "faces"
[network]
options = { encoder = "mobilenetv3-small", width = 8, face_score = true }
[[corpora]]
path = "faces"
[schedule]
steps = 50
batch = 2
workers = 0
sizes = [[0.0, 64]]
"""
    )
    out = tmp_path / "out"
    run_config(tmp_path / "run.toml", tmp_path / "data", out, ["schedule.steps=2", "schedule.validate_every=1"])
    assert [line["step"] for line in lines(out)] == [1, 2]
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 2
    assert (out / "best.pt").is_file()


@pytest.mark.parametrize("broken", ["faces", "grass", "test"])
def test_broken_picture_raises_before_the_first_step_or_is_skipped(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    for folder, first in (("faces", 0), ("grass", 2), ("test", 4)):
        write_faces(tmp_path / folder, 2, first)
    picture = max((tmp_path / broken).glob("*.png"))
    picture.write_bytes(picture.read_bytes()[:500])
    settings = Config(corpora=(Corpus("faces"),), negatives=("grass",), validation="test", schedule=config().schedule)
    with pytest.raises(SourceError, match=rf"^{re.escape(str(picture))}: not a readable picture; remove it or fix it$"):
        open_objective(settings, tmp_path, tmp_path)
    objective: Any = open_objective(replace(settings, skip_broken=True), tmp_path, tmp_path)
    assert sorted(map(len, (objective.corpora[0], objective.negatives, objective.validation))) == [1, 2, 2]
    assert f"{picture}: not a readable picture; remove it or fix it; left out" in caplog.messages


@pytest.mark.parametrize("broken", ["faces", "grass", "test"])
def test_folder_of_only_broken_pictures_raises_before_the_first_step(tmp_path: Path, broken: str) -> None:
    for folder, first in (("faces", 0), ("grass", 2), ("test", 4)):
        write_faces(tmp_path / folder, 2, first)
    for picture in (tmp_path / broken).glob("*.png"):
        picture.write_bytes(b"no picture")
    settings = Config(corpora=(Corpus("faces"),), negatives=("grass",), validation="test", skip_broken=True)
    with pytest.raises(SourceError, match=rf"{broken}.*: not a readable picture; .*; nothing is left"):
        open_objective(settings, tmp_path, tmp_path)


@pytest.mark.parametrize("body", ["nan nan\n" * 68, "1 2\n" * 66, "1 2\n" * 68], ids=["nowhere", "66", "in one place"])
@pytest.mark.parametrize("folder", ["faces", "test"])
def test_face_that_lacks_points_raises_or_is_skipped_like_a_broken_file(
    folder: str, body: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_faces(tmp_path / "faces", 2)
    write_faces(tmp_path / "test", 2, first=2)
    annotation = max((tmp_path / folder).glob("*.pts"))
    annotation.write_text(f"version: 1\n{{\n{body}}}\n")
    settings = Config(corpora=(Corpus("faces"),), negative_share=0.0, validation="test")
    with pytest.raises(ConfigError) as told:
        open_objective(settings, tmp_path, tmp_path)
    assert str(annotation) in str(told.value)
    objective: Any = open_objective(replace(settings, skip_broken=True), tmp_path, tmp_path)
    assert sorted(map(len, (objective.corpora[0], objective.validation))) == [1, 2]
    assert f"{told.value}; left out" in caplog.messages


def test_corpus_with_only_wrong_point_counts_raises_despite_skip_broken(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", 2)
    settings = Config(Network(landmarks=98), corpora=(Corpus("faces"),), negative_share=0.0, validation="faces")
    with pytest.raises(ConfigError, match=r"wanted all 98 points of wflw98"):
        open_objective(replace(settings, skip_broken=True), tmp_path, tmp_path)


@pytest.mark.parametrize("skip_broken", [False, True])
def test_every_picture_is_decoded_once_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip_broken: bool
) -> None:
    for folder, first in (("faces", 0), ("test", 1)):
        write_faces(tmp_path / folder, 1, first)
    decoded: list[Path] = []
    monkeypatch.setattr(Sample, "check_decodable", lambda sample: decoded.append(sample.path))
    settings = Config(corpora=(Corpus("faces"),), negative_share=0.0, validation="test", skip_broken=skip_broken)
    open_objective(settings, tmp_path, tmp_path)
    assert sorted(decoded) == sorted(tmp_path.rglob("*.png"))
    assert len(decoded) == 2
