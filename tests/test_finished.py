"""What a run has made is published as what it is: by the settings that it was begun with, and on any machine."""

from __future__ import annotations

import re
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes_fit import Fit, config  # noqa: E402 - torch may be missing
from fakes_training import write_faces  # noqa: E402

from facetrack.tracker.errors import ConfigError  # noqa: E402
from facetrack.training import publish  # noqa: E402
from facetrack.training.augment import Geometry  # noqa: E402
from facetrack.training.config import Config, Corpus, Discs, Maps, Network, Publication, Vectors  # noqa: E402
from facetrack.training.detection import mining  # noqa: E402
from facetrack.training.finished import ADVICE, check_own_settings, load_average  # noqa: E402
from facetrack.training.objectives import open_objective  # noqa: E402
from facetrack.training.train import Run  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def made_on_a_gpu(path: Path) -> None:
    """Let a file say that its tensors were on a GPU when they were saved."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:7"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network": Network("gv", 29)}, "network.landmarks 68, now 29;"),
        ({"network": Network(options={"width": 8})}, 'network.options {}, now {"width": 8};'),
        ({"vectors": Vectors(sigma=2.0, peak=1.0)}, "vectors.sigma 1.2, now 2.0; vectors.peak 3.0, now 1.0;"),
        ({"maps": Maps(reach=3)}, "maps.reach 0, now 3;"),
        ({"geometry": Geometry(box_scale=2.0)}, "geometry.box_scale"),
        ({"schedule": config(sizes=((0.0, 64),)).schedule}, "the last of schedule.sizes 128, now 64;"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_differ_from_those_in_the_checkpoint_raise(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    began = replace(config(), validation="held")
    Run(began, Fit(), tmp_path).train(1)
    changed = replace(began, **changes)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=rf"checkpoint\.pt: .* other settings: {re.escape(told)}.*{re.escape(ADVICE)}"
    ):
        check_own_settings(changed, tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    check_own_settings(changed, tmp_path)  # nothing is known


def test_changed_training_settings_do_not_raise(tmp_path: Path) -> None:
    began = replace(config(sizes=((0.0, 64), (0.5, 128))), validation="held")
    Run(began, Fit(), tmp_path).train(1)
    now = replace(
        config(steps=99, seed=3, learning_rate=1.0, sizes=((0.0, 128),)),
        validation="others",
        corpora=(Corpus("more", weight=0.1),),
        start="gv",
        geometry=Geometry(roll_deg=1.0),
        vectors=Vectors(mse=3.0, coordinate=0.1),
        card=Publication("another name"),
    )
    check_own_settings(now, tmp_path)
    own_crops = replace(now, geometry=Geometry(box_scale=2.0), card=Publication(box_scale=1.3))
    check_own_settings(own_crops, tmp_path)  # the card does not ask for those of the run


def test_detector_settings_must_match_the_run_only_in_the_network(tmp_path: Path) -> None:
    began = replace(config(), network=Network("bbfcn", 5))
    Run(began, Fit(), tmp_path).train(1)
    sizes = config(sizes=((0.0, 40),)).schedule
    check_own_settings(replace(began, schedule=sizes, geometry=Geometry(box_scale=2.0), discs=Discs(cut=0.5)), tmp_path)
    with pytest.raises(ConfigError, match=r"network\.name \"bbfcn\", now \"bbfcn-backbone\";"):
        check_own_settings(replace(began, network=Network("bbfcn-backbone", 5)), tmp_path)


def test_average_saved_on_a_gpu_loads_without_one(tmp_path: Path) -> None:
    run = Run(config(), Fit(), tmp_path)
    run.train(12)
    for name in ("best.pt", "checkpoint.pt"):
        made_on_a_gpu(tmp_path / name)
        net = Fit().build()
        load_average(net, tmp_path / name)
        assert all(torch.equal(value, run.average.state_dict()[key]) for key, value in net.state_dict().items())


def test_backbone_saved_on_a_gpu_loads_into_the_branches_without_one(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", 30)
    write_faces(tmp_path / "grass", 30)
    settings = Config(Network("bbfcn-backbone", 5), corpora=(Corpus("faces"),), negatives=("grass",))
    backbone = open_objective(settings, tmp_path, tmp_path).build()
    torch.save({"average": backbone.state_dict()}, tmp_path / "backbone.pt")
    made_on_a_gpu(tmp_path / "backbone.pt")
    branches = open_objective(replace(settings, network=Network("bbfcn", 5)), tmp_path, tmp_path).build()
    kept = branches.net.backbone.state_dict()
    assert all(torch.equal(kept[name.removeprefix("net.")], value) for name, value in backbone.state_dict().items())


def test_branches_raise_for_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    settings = Config(Network("bbfcn", 5), negative_share=0.0)
    Run(config(), Fit(), tmp_path).train(12)
    (tmp_path / "best.pt").rename(tmp_path / "backbone.pt")
    with pytest.raises(ConfigError, match=r"backbone\.pt: belongs to another network than the configuration's"):
        open_objective(settings, tmp_path, tmp_path)


@pytest.mark.parametrize("content", [b"no file of torch", b".", b"G", b""])
def test_corrupt_backbone_file_raises_a_config_error(content: bytes, tmp_path: Path) -> None:
    """The second one's stack is empty, the third one's number is cut short."""
    (tmp_path / "backbone.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"backbone\.pt: wanted a file of a run of `facetrack train`, got: "):
        open_objective(Config(Network("bbfcn", 5)), tmp_path, tmp_path)


def test_load_average_raises_for_another_network_and_a_corrupt_or_missing_file(tmp_path: Path) -> None:
    Run(config(), Fit(width=5), tmp_path).train(12)
    with pytest.raises(
        ConfigError, match=rf"best\.pt: belongs to another network .* other sizes of .*; {re.escape(ADVICE)}"
    ):
        load_average(Fit().build(), tmp_path / "best.pt")
    (tmp_path / "best.pt").write_bytes(b"PK")
    for name in ("best.pt", "none.pt"):
        with pytest.raises(ConfigError, match=rf"{name}: wanted a file of a run of `facetrack train`, got: "):
            load_average(Fit().build(), tmp_path / name)


@pytest.mark.parametrize("module", [publish, mining])
def test_publishing_and_mining_apply_set_overrides(
    module: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Config] = []
    monkeypatch.setattr(publish, "publish", lambda config, *_: used.append(config))
    monkeypatch.setattr(mining, "mine_for_run", lambda config, *_: used.append(config))
    (tmp_path / "run.toml").write_text("[vectors]\nsigma = 2.0\npeak = 5.0\n")
    words = [str(tmp_path / "run.toml"), str(tmp_path), "--data", str(tmp_path)]
    words += ["--out", str(tmp_path)] if module is publish else []
    words += ["--set", "vectors.sigma=1.5", "--set", "network.options={ width = 8 }"]
    monkeypatch.setattr("sys.argv", ["it", *words])
    module.main()
    assert used == [Config(Network(options={"width": 8}), vectors=Vectors(sigma=1.5, peak=5.0))]
