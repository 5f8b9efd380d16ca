"""The trainer's settings: what a file may say, what is refused, and how one setting goes before the file's."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from facetrack.tracker.errors import ConfigError
from facetrack.training import config
from facetrack.training.config import Config, Corpus, Schedule, Vectors, load
from facetrack.training.ranges import RANGES

CONFIGS = Path(config.__file__).parent / "configs"
ALIGNERS = {"gv", "tab", "propnet", "span", "shn", "bbfcn", "bbfcn-regression"}
BASES = {"negatives", "faces-68", "faces-68-taught", "300w", "wflw", "cofw", "aflw"}
SHIPPED = sorted(CONFIGS.rglob("*.toml"))


def load_text(folder: Path, text: str, *overrides: str) -> Config:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, overrides)


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_text(tmp_path, "") == Config()


def test_file_overrides_only_what_it_names(tmp_path: Path) -> None:
    text = """
negatives = ["a", "b"]
[network]
name = "gv"
options = { encoder = "mobilenetv3-small", width = 32 }
[[corpora]]
path = "helen"
[[corpora]]
path = "table"
layout = "table"
weight = 3
late_weight = 0.5
[schedule]
learning_rate = 1
sizes = [[0.0, 96], [0.6, 128]]
"""
    loaded = load_text(tmp_path, text)
    assert loaded.negatives == ("a", "b")
    assert loaded.network.options == {"encoder": "mobilenetv3-small", "width": 32}
    assert loaded.corpora == (Corpus("helen"), Corpus("table", "table", 3.0, 0.5))
    assert loaded.schedule == dataclasses.replace(Schedule(), learning_rate=1.0, sizes=((0.0, 96), (0.6, 128)))
    assert isinstance(loaded.schedule.learning_rate, float)
    assert loaded.geometry == Config().geometry


def test_a_file_changes_its_base_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "common.toml").write_text('negatives = ["a"]\n[card]\nname = "x"\nlicence = "free"\n')
    loaded = load_text(tmp_path, 'base = "common.toml"\nnegatives = ["b", "c"]\n[card]\nname = "y"')
    assert loaded.negatives == ("b", "c")
    assert (loaded.card.name, loaded.card.licence) == ("y", "free")


def test_a_base_that_cannot_be_read_is_named_with_the_file_that_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, 'base = "gone.toml"')
    gone, asker = tmp_path / "gone.toml", tmp_path / "run.toml"
    told = f"{gone}: cannot read the configuration, the base of {asker}: No such file or directory"
    assert str(caught.value) == told
    gone.write_text("a = ")
    with pytest.raises(ConfigError, match=r"gone\.toml: not a TOML file, the base of .*run\.toml: Invalid value"):
        load(asker)
    asker.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"run\.toml: not a TOML file: 'utf-8' codec"):
        load(asker)


def test_circular_base_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "run.toml"\n')
    a, run = tmp_path / "a.toml", tmp_path / "run.toml"
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, 'base = "a.toml"\n')
    assert str(caught.value) == (f"{run}: base: wanted a file that does not build on itself, got {run} -> {a} -> {run}")
    with pytest.raises(ConfigError, match=r"base: wanted a file that does not build on itself"):
        load(run, ["base=run.toml"])


@pytest.mark.parametrize("base", ["loop.toml", "\\u0000"])
def test_unresolvable_base_name_is_refused(tmp_path: Path, base: str) -> None:
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    with pytest.raises(ConfigError, match=r", the base of .*run\.toml"):
        load_text(tmp_path, f'base = "{base}"')


def test_overriding_the_base_keeps_the_precedence_of_overrides_and_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('negatives = ["a"]\n[network]\nname = "span"\noptions = { stacks = 2 }\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n[network]\nname = "tab"\noptions = { width = 3 }\n')
    text = 'base = "a.toml"\nstart = "x"\n'
    assert load_text(tmp_path, text).network.name == "span"
    loaded = load_text(tmp_path, text, "network.options={ head = 1 }", "base=b.toml")
    assert (loaded.network.name, loaded.network.options) == ("tab", {"head": 1})
    assert (loaded.start, loaded.negatives) == ("x", ("a",))


def test_shipped_configurations_are_found_from_any_folder_after_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(Path("configs/span-300vw.toml")).card.name == "span-300vw"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/span-300vw.toml").write_text('[card]\nname = "mine"\n')
    assert load(Path("configs/span-300vw.toml")).card.name == "mine"
    with pytest.raises(ConfigError, match=r"configs/none\.toml: cannot read the configuration: No such file"):
        load(Path("configs/none.toml"))


@pytest.mark.parametrize("name", ["tab-compact-68", "propnet-compact-68", "gv-mobilenetv3-68-taught"])
def test_the_video_recipe_takes_any_alignment_network(name: str) -> None:
    loaded, own = load(CONFIGS / "span-300vw.toml", [f"base={name}.toml"]), load(CONFIGS / f"{name}.toml")
    assert (loaded.network, loaded.maps, loaded.vectors) == (own.network, own.maps, own.vectors)
    assert loaded.consistency.unlabelled == (Corpus("frames/300vw-others"),)
    assert loaded.corpora[-1].path == "frames/300vw"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[schedule]\nstep = 3", "unknown setting schedule.step; did you mean 'steps'?"),
        ("negativs = []", "unknown setting negativs; did you mean 'negatives'?"),
        ("[[corpora]]\npath = 'a'\nweigth = 1.0", "unknown setting corpora.0.weigth; did you mean 'weight'?"),
        ("[[corpora]]\npath = 'a'\n[[corpora]]\nweight = 1.0", "corpora.1.path: is missing"),
        ("[vectors]\nqqqq = 1", "unknown setting vectors.qqqq; wanted one of label, sigma, peak, "),
        ("[schedule]\nsteps = 1.5", "schedule.steps: wanted int, got 1.5"),
        ("[schedule]\nsteps = true", "schedule.steps: wanted int, got True"),
        ("[schedule]\nlearning_rate = 'fast'", "schedule.learning_rate: wanted float, got 'fast'"),
        ("[schedule]\nlearning_rate = false", "schedule.learning_rate: wanted float, got False"),
        ("[network]\nname = 3", "network.name: wanted str, got 3"),
        ("[network]\noptions = [1]", "network.options: wanted dict, got [1]"),
        ("negatives = 'flowers'", "negatives: wanted a list, got 'flowers'"),
        ("negatives = ['flowers', 3]", "negatives.1: wanted str, got 3"),
        ("schedule = 4", "schedule: wanted a table, got 4"),
        ("corpora = ['helen']", "corpora.0: wanted a table, got 'helen'"),
        ("[schedule]\nsizes = [[0.0, 96, 1]]", "schedule.sizes.0: wanted 2 values, got [0.0, 96, 1]"),
        ("[schedule]\nsizes = [[0.0, 'large']]", "schedule.sizes.0.1: wanted int, got 'large'"),
        ("[schedule]\nsizes = []", "schedule.sizes: wanted shares of the run that rise from 0.0"),
        ("[schedule]\nsizes = [[0.5, 96]]", "schedule.sizes: wanted shares of the run that rise from 0.0"),
        ("[schedule]\nsizes = [[0.0, 96], [0.7, 112], [0.6, 128]]", "schedule.sizes: wanted shares"),
        (
            "disturbances = ['rain']",
            "disturbances: wanted some of occluders, lines, shade, colour, light, blur, noise, compression, grey, got",
        ),
        ("normaliser = 'nose'", "normaliser: wanted one of io, ip, box, diag, edge, face, got 'nose'"),
        ("start_parts = ['net.scbe.']", "start_parts.0: wanted a list, got 'net.scbe.'"),
        ("start_parts = [['net.scbe.']]", "start_parts.0: wanted 2 values, got ['net.scbe.']"),
        ("[schedule]\nkeep = 'all'", "schedule.keep: wanted 'best' or 'last', got 'all'"),
        ("[consistency]\nshare = 1.0", "consistency.share: wanted at least 0 and below 1, got 1.0"),
        ("[consistency]\ntexture = 'silk'", "consistency.texture: wanted 'varied' or 'paper', got 'silk'"),
        (
            "[maps]\nfrozen = true",
            "maps.frozen: frozen weights keep their first values: wanted start or start_parts",
        ),
        ("[vectors]\nlabel = 'spike'", "vectors.label: wanted 'bell' or 'quasi', got 'spike'"),
        ("[schedule]\nbatch = 0", "schedule.batch: wanted at least 1, got 0"),
        ("[schedule]\nvalidate_every = 0", "schedule.validate_every: wanted at least 1, got 0"),
    ],
)
def test_unknown_or_invalid_setting_is_refused_by_its_full_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    assert f"run.toml: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("schedule.steps=0", "schedule.steps: wanted at least 1, got 0"),
        ("schedule.learning_rate=-1", "schedule.learning_rate: wanted a number above 0, got -1.0"),
        ("schedule.learning_rate=nan", "schedule.learning_rate: wanted a number above 0, got nan"),
        ("schedule.learning_rate=inf", "schedule.learning_rate: wanted a number above 0, got inf"),
        ("schedule.workers=-1", "schedule.workers: wanted at least 0, got -1"),
        ("schedule.seed=-1", "schedule.seed: wanted 0 to 4294967295, got -1"),
        ("schedule.seed=4294967296", "schedule.seed: wanted 0 to 4294967295, got 4294967296"),
        ("schedule.steps=9223372036854775808", "schedule.steps: wanted a number of at most 64 bits, got one of 65"),
        (f"negative_share={'1' * 400}", "negative_share: wanted a number of at most 64 bits, got one of 1327"),
        (f"negative_share={'1' * 5000}", f"negative_share: wanted float, got '{'1' * 5000}'"),
        (f"negatives={'[' * 5000}", f"negatives: wanted a list, got '{'[' * 5000}'"),
        ("schedule.warm_up=-5", "schedule.warm_up: wanted at least 0, got -5"),
        ("schedule.ema=2", "schedule.ema: wanted 0 to 1, got 2.0"),
        ("schedule.drops=[[0.5, 5.0], [0.7, 0.0]]", "schedule.drops.1.1: wanted a number above 0, got 0.0"),
        ("schedule.sizes=[[0.0, -64]]", "schedule.sizes.0.1: wanted at least 1, got -64"),
        ("schedule.sizes=[[0.0, 64], [60, 96]]", "schedule.sizes.1.0: wanted at least 0 and below 1, got 60.0"),
        ("schedule.sizes=[[0.0, 64], [1.0, 96]]", "schedule.sizes.1.0: wanted at least 0 and below 1, got 1.0"),
        ("schedule.sizes=[[0.0, 64], [nan, 96]]", "schedule.sizes.1.0: wanted at least 0 and below 1, got nan"),
        ("schedule.clip=0", "schedule.clip: wanted a number above 0, or inf for no limit, got 0.0"),
        ("schedule.clip=-5", "schedule.clip: wanted a number above 0, or inf for no limit, got -5.0"),
        ("schedule.clip=nan", "schedule.clip: wanted a number above 0, or inf for no limit, got nan"),
        ("geometry.box_scale=0", "geometry.box_scale: wanted a number above 0, got 0.0"),
        ("geometry.box_scale=-1", "geometry.box_scale: wanted a number above 0, got -1.0"),
        ("geometry.flip=2", "geometry.flip: wanted 0 to 1, got 2.0"),
        ("geometry.wide_share=-0.1", "geometry.wide_share: wanted 0 to 1, got -0.1"),
        ("geometry.roll_deg=-5", "geometry.roll_deg: wanted a number of at least 0, got -5.0"),
        ("negative_share=1", "negative_share: wanted at least 0 and below 1, got 1.0"),
        ("vectors.peak=0", "vectors.peak: wanted a number above 0, got 0.0"),
        ("vectors.sigma=0", "vectors.sigma: wanted a number above 0, got 0.0"),
        ("maps.reach=-1", "maps.reach: wanted at least 0, got -1"),
        ("expressions.blinks=3", "expressions.blinks: wanted 0 to 1, got 3.0"),
        ("consistency.labels=0", "consistency.labels: wanted above 0 and at most 1, got 0.0"),
        ("consistency.scale=0", "consistency.scale: wanted above 0 and at most 1, got 0.0"),
        ("discs.face_px=[32, 14]", "discs.face_px: wanted two sides above 0, the smaller one first, got (32.0, 14.0)"),
        ("corpora=[{path='a'}, {path='b', weight=-1}]", "corpora.1.weight: wanted a number of at least 0, got -1.0"),
        ("corpora=[{path='a', weight=0}]", "corpora: wanted a weight above 0 of at least one of them, got 0 of all"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_its_full_name(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, "", override)
    assert str(caught.value).endswith(f"run.toml: {told}")


@pytest.mark.parametrize(("face_px", "sizes"), [("[20, 65]", "[[0.0, 64]]"), ("[38, 44]", "[[0.0, 40], [0.5, 64]]")])
def test_face_sizes_that_do_not_fit_the_crops_are_refused_for_a_detector_only(
    tmp_path: Path, face_px: str, sizes: str
) -> None:
    """The largest must fit into the last crops, the smallest with some room into the first."""
    overrides = (f"discs.face_px={face_px}", f"schedule.sizes={sizes}", "network.name=bbfcn")
    with pytest.raises(ConfigError, match=r"discs\.face_px: wanted faces that fit into the crops of schedule\.sizes"):
        load_text(tmp_path, "", *overrides)
    load_text(tmp_path, "", *overrides, "validation=held")
    load_text(tmp_path, "", "discs.face_px=[30, 60]", "schedule.sizes=[[0.0, 64]]", "network.name=bbfcn")


def test_every_number_has_a_range() -> None:
    """But for those in tuples and tables, which are looked at one by one."""
    sections = {f.name: getattr(Config(), f.name) for f in dataclasses.fields(Config)}
    numbers = {name for name, value in sections.items() if isinstance(value, float)}
    for name, section in sections.items():
        if dataclasses.is_dataclass(section):
            values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
            numbers |= {f"{name}.{key}" for key, v in values.items() if type(v) in (int, float)}
    assert set(RANGES) == numbers


def test_invalid_or_missing_toml_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.toml: not a TOML file: Expected"):
        load_text(tmp_path, "[schedule")
    with pytest.raises(ConfigError, match=r"run\.toml: not a TOML file: .*recursion"):
        load_text(tmp_path, "x = " + "[" * 5000)
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read the configuration"):
        load(tmp_path / "none.toml")


def test_overrides_take_precedence_over_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    text = "[schedule]\nsteps = 5\nbatch = 7"
    loaded = load_text(
        tmp_path,
        text,
        "schedule.steps=6",
        "schedule.steps=8",
        "network.options.width=32",
        "network.name=tab",
        "network.options.encoder = 'mobilenetv3-small'",
        "schedule.sizes=[[0.0, 64]]",
        "vectors.sigma=2",
    )
    assert (loaded.schedule.steps, loaded.schedule.batch) == (8, 7)
    assert loaded.network.options == {"width": 32, "encoder": "mobilenetv3-small"}
    assert loaded.network.name == "tab"
    assert loaded.schedule.sizes == ((0.0, 64),)
    assert loaded.vectors.sigma == 2.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.steps", "--set schedule.steps: wanted key.key=value"),
        ("negatives.0=flowers", "--set negatives.0=flowers: negatives is not a table"),
        ("schedule.stepz=4", "unknown setting schedule.stepz; did you mean 'steps'?"),
        ("schedule.steps=many", "schedule.steps: wanted int, got 'many'"),
    ],
)
def test_invalid_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, "negatives = ['a']", override)
    assert message in str(caught.value)


@pytest.mark.parametrize(("progress", "side"), [(0.0, 96), (0.3, 96), (0.599, 96), (0.6, 128), (0.9, 128), (1.0, 160)])
def test_crops_grow_with_the_progress(progress: float, side: int) -> None:
    assert Schedule(sizes=((0.0, 96), (0.6, 128), (1.0, 160))).size(progress) == side


def test_there_are_shipped_configurations() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_load_and_are_complete(path: Path) -> None:
    loaded = load(path)
    if loaded.network.name in ALIGNERS and not loaded.detects and path.stem not in BASES:
        assert loaded.corpora
        assert loaded.validation
        assert loaded.negatives or not loaded.negative_share
        assert path.stem.startswith(loaded.card.name)
        assert loaded.card.licence


# BB-FCN's backbone and its rival see 32 pixels, 64 for many landmarks; the branches twice that (sections III-B, IV-D).
SIDES = {"bbfcn-aflw": 64, "bbfcn-lfpw29": 128, "bbfcn-300w": 128, "bbfcn-regression-aflw": 32}


@pytest.mark.parametrize("path", sorted((CONFIGS / "papers").glob("*-*.toml")), ids=lambda path: path.stem)
def test_paper_configurations_name_an_nme_crop_size_and_learning_rate_drops(path: Path) -> None:
    loaded = load(path)
    assert any(key.startswith("NME") for key in loaded.card.published) or path.stem == "bbfcn-regression-aflw"
    assert loaded.schedule.sizes == ((0.0, SIDES.get(path.stem, 256)),)
    assert loaded.schedule.drops


@pytest.mark.parametrize("encoder", ["resnet50", "hrnet"])
@pytest.mark.parametrize(("pictures", "scale"), [("300w", 1.0), ("cofw", 1.1), ("wflw", 1.25)])
def test_gv_boxes_labels_and_disturbances_match_the_paper(encoder: str, pictures: str, scale: float) -> None:
    """Section 4.3 and Eq. 2 with theta = 3; tau as its ablation has it."""
    loaded = load(CONFIGS / "papers" / f"gv-{encoder}-{pictures}.toml")
    assert loaded.box_scale == loaded.geometry.box_scale == scale
    assert loaded.vectors == Vectors(label="quasi", sigma=2.0, peak=4.0, tau=2.0, coordinate=0.0)
    assert loaded.disturbances == ("occluders",)


@pytest.mark.parametrize("pictures", ["300w", "cofw", "wflw"])
def test_propnet_paper_runs_use_our_sigma_and_no_disturbances(pictures: str) -> None:
    loaded = load(CONFIGS / "papers" / f"propnet-{pictures}.toml")
    assert loaded.maps.sigma == load(CONFIGS / "propnet-68.toml").maps.sigma == 1.5
    assert loaded.disturbances == ()


PAPERS = sorted((CONFIGS / "papers").glob("*-*.toml"))

# What the papers print of their training: the first rate, and where it is divided by what, in epochs or steps of all;
# None where nothing is said. TAB, section 4.3; PropNet, section 4.3; SPAN, section IV-A; GV says "Adam" alone; BB-FCN,
# section III-E, of its branches and, where the rate rests, of its backbone.
PRINTED: dict[str, tuple[float | None, tuple[tuple[float, float], ...] | None]] = {
    "tab": (1e-4, ((80 / 140, 10), (120 / 140, 10))),
    "propnet": (1e-4, None),
    "span": (2.5e-4, ((10_000 / 200_000, 5), (40_000 / 200_000, 2), (100_000 / 200_000, 2))),
    "gv": (None, None),
    "bbfcn": (1e-4, ((30_000 / 50_000, 10),)),
    "bbfcn-regression": (1e-3, ((1.0, 1),)),
}
DECAYS = {"bbfcn": 5e-4, "bbfcn-regression": 5e-4}
FACES = {"300w": 3148, "wflw": 7500, "cofw": 1345, "aflw": 20_000, "aflw2000": 61_225}


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_learning_rates_drops_and_lengths_match_the_papers(path: Path) -> None:
    loaded = load(path)
    rate, drops = PRINTED[loaded.network.name]
    schedule = loaded.schedule
    assert rate is None or schedule.learning_rate == rate
    decay = DECAYS.get(loaded.network.name)
    assert (schedule.weight_decay, schedule.warm_up) == (decay or 0.0, 0)  # Adam or SGD, from the first rate on
    assert schedule.optimiser == ("sgd" if decay else "adamw")
    assert drops is None or [by for _, by in schedule.drops] == [by for _, by in drops]
    for (share, _), (printed, _) in zip(schedule.drops, drops or (), strict=drops is not None):
        assert share == pytest.approx(printed, abs=5e-4)
    steps = {"span": 200_000, "bbfcn": 50_000, "bbfcn-regression": 25_000}
    assert schedule.steps == steps.get(loaded.network.name, schedule.steps)
    if loaded.network.name == "tab":
        assert schedule.steps * schedule.batch == pytest.approx(140 * FACES[path.stem.split("-")[-1]], abs=16)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_loss_weights_and_network_options_match_the_papers(path: Path) -> None:
    """TAB: MSE of boundaries, then of landmarks with the boundary network frozen; PropNet: beta = 0.5 (section 4.3)."""
    loaded = load(path)
    maps, options = loaded.maps, loaded.network.options
    if loaded.network.name == "tab":
        assert (maps.frozen, maps.landmarks, maps.coordinate, maps.reach) == (True, 1.0, 0.0, 0)
        trained_on = "300w" if path.stem == "tab-300w" else "wflw"  # section 4.3
        assert loaded.start_parts == (("net.scbe.", f"runs/tab-{trained_on}-boundaries/best.pt"),)
        assert options == {}  # two stacks on vgg16_bn, features fused twice, at four scales
    elif loaded.network.name == "propnet":
        assert (maps.landmarks, maps.boundaries, maps.coordinate, maps.reach) == (1.0, 0.5, 0.0, 0)
        assert options == {}  # four stacks
    elif loaded.network.name == "span":
        assert options == {}  # T = 4
        rules = loaded.consistency
        assert (rules.weight, rules.roll_deg, rules.scale, rules.texture) == (4.0, 60.0, 0.5, "paper")  # eta
        assert not rules.stop_gradient
    elif loaded.network.name.startswith("bbfcn"):  # section III-E
        assert (options, loaded.schedule.batch, loaded.schedule.clip) == ({"init_std": 0.01}, 40, np.inf)
        own = path.stem.removeprefix("bbfcn-")
        start = (("net.backbone.", f"runs/bbfcn-{own}-backbone/best.pt"),)
        assert loaded.start_parts == (() if "regression" in own else start)
    share = {"bbfcn": 1 / 5, "bbfcn-regression": 1 / 2}  # 4 : 1 for the branches, 1 : 1 for the backbone
    assert loaded.negative_share == share.get(loaded.network.name, 0.0)


@pytest.mark.parametrize("path", [path for path in PAPERS if load(path).maps.frozen], ids=lambda path: path.stem)
def test_first_stage_overrides_in_the_header_give_an_unfrozen_run(path: Path) -> None:
    """TAB's boundaries, BB-FCN's backbone; where they come from another file's run, that one says it."""
    comments = (line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    told = re.findall(r"--set ('[^']*'|\S+)", " ".join(comments))
    if not told:
        assert path.stem in ("tab-aflw", "tab-aflw2000", "tab-cofw")
        return
    first = load(path, [setting.strip("'") for setting in told])
    assert not first.maps.frozen
    if first.network.name == "bbfcn":
        assert (first.network.options, first.start_parts) == ({"branches": False, "init_std": 0.01}, ())
        schedule = first.schedule
        assert (schedule.steps, schedule.learning_rate, schedule.drops) == (25_000, 1e-3, ((1.0, 1.0),))
        assert first.negative_share == 0.5


@pytest.mark.parametrize(
    ("stem", "learnt", "tested"),
    [("tab-aflw2000", "300w-lp", "aflw2000"), ("span-300w-all", "300w-all", "300w-test")],
)
def test_two_paper_runs_replace_the_training_and_test_sets_of_their_base(stem: str, learnt: str, tested: str) -> None:
    """TAB, section 4.1; SPAN, section IV-A."""
    loaded = load(CONFIGS / "papers" / f"{stem}.toml")
    assert ([corpus.layout for corpus in loaded.corpora], loaded.validation_layout) == ([learnt], tested)


def test_every_paper_has_its_files() -> None:
    assert {path.stem.split("-")[0] for path in PAPERS} == {name.split("-")[0] for name in PRINTED}


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_paper_runs_keep_the_last_checkpoint(path: Path) -> None:
    assert load(path).schedule.keep == "last"


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.parent == CONFIGS], ids=lambda path: path.stem)
def test_our_runs_keep_the_best_checkpoint_except_detectors_and_normalise_by_io(path: Path) -> None:
    loaded = load(path)
    keep = "last" if loaded.detects else "best"
    assert (loaded.schedule.keep, loaded.normaliser, loaded.start_parts) == (keep, "io", ())


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_normaliser_matches_that_of_the_published_figures(path: Path) -> None:
    loaded = load(path)
    figure = next(iter(loaded.card.published), "NME %").split()[1]
    assert figure == "%" or loaded.normaliser == figure  # PropNet's table for COFW does not say
    if path.stem == "propnet-cofw":
        assert loaded.normaliser == "ip"


PAIRED = [path for path in SHIPPED if load(path).consistency.weight > 0]
READ = {"box_scale", "shift", "stretch", "asymmetry"}  # by `SelfConsistency`; `consistency` says all else


@pytest.mark.parametrize("path", PAIRED, ids=lambda path: path.stem)
def test_runs_on_pairs_set_nothing_that_pairs_ignore(path: Path) -> None:
    own = tomllib.loads(path.read_text(encoding="utf-8"))
    assert set(own.get("geometry", {})) <= READ
    assert "disturbances" not in own  # what is no face alone is disturbed so


def test_span_video_recipe_has_the_papers_consistency_weight() -> None:
    loaded = load(CONFIGS / "span-300vw.toml").consistency
    assert (loaded.weight, loaded.share, loaded.roll_deg, loaded.scale) == (4.0, 0.5, 60.0, 0.5)
