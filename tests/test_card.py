"""Model cards: read, found, and nothing run that is not what the card describes."""

from __future__ import annotations

import errno
import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from record_goldens import shipped_cards

from facetrack.engines import card as cards
from facetrack.engines import card_text
from facetrack.engines.card import ModelCard, all_cards, broken_cards, find_card, home, read_card
from facetrack.tracker.errors import CardError, SinkError

CARD = """
name = "{name}"
network = "{network}"
task = "{task}"
markup = "ibug68"
parameters = 1234
gmac = 0.1
data = ["paint"]
licence = "research only"
[input]
size = [128, 96]
box_scale = 1.25
[codec]
kind = "vectors"
stride = 4
[weights.{role}]
file = "{name}.onnx"
sha256 = "{sha256}"
precision = "fp32"
"""
CONTENT = b"these are the weights"


def write_card(folder: Path, name: str, network: str = "gv", task: str = "align", text: str = CARD) -> Path:
    """A card in `folder`/cards and its weights in `folder`/weights."""
    for part in ("cards", "weights"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "weights" / f"{name}.onnx").write_bytes(CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    path = folder / "cards" / f"{name}.toml"
    first, *more = cards.ROLES[task]
    text += "".join(text[text.index("[weights") :].replace("{role}", role) for role in more)
    path.write_text(text.format(name=name, network=network, task=task, role=first, sha256=sha256), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a user's folder of its own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("FACETRACK_HOME", str(folder))
    return folder


def test_card_reads_every_field_of_its_file(tmp_path: Path) -> None:
    card = read_card(write_card(tmp_path, "mine"))
    assert (card.name, card.network, card.task, card.markup) == ("mine", "gv", "align", "ibug68")
    assert card.size == (128, 96)
    assert card.box_scale == 1.25
    assert card.codec == {"kind": "vectors", "stride": 4}
    assert card.data == ("paint",)
    assert (card.parameters, card.gmac, card.licence) == (1234, 0.1, "research only")
    assert card.measured == {}
    assert card.calibration == {}
    assert card.weights["net"].path == tmp_path / "weights" / "mine.onnx"
    assert card.weights["net"].precision == "fp32"
    assert card.weights["net"].read() == CONTENT


def test_weights_that_were_altered_by_one_bit_are_refused(tmp_path: Path) -> None:
    weights = read_card(write_card(tmp_path, "mine")).weights["net"]
    weights.path.write_bytes(bytes([CONTENT[0] ^ 1]) + CONTENT[1:])
    with pytest.raises(CardError, match=r"mine\.onnx: .*wanted sha256 [0-9a-f]{16}.*, got [0-9a-f]{16}.*reinstall"):
        weights.read()


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    weights = read_card(write_card(tmp_path, "mine")).weights["net"]
    weights.path.write_bytes(CONTENT[:-1])
    with pytest.raises(CardError, match="damaged"):
        weights.read()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    weights = read_card(write_card(tmp_path, "mine")).weights["net"]
    weights.path.unlink()
    with pytest.raises(CardError, match=r"mine\.onnx: cannot read the weights \(No such file"):
        weights.read()


def test_a_card_whose_weights_are_missing_can_still_be_listed(own_home: Path) -> None:
    write_card(own_home, "mine")
    (own_home / "weights" / "mine.onnx").unlink()
    assert "mine" in [card.name for card in all_cards()]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('licence = "research only"\n', "", "'licence' is missing"),
        ("size = [128, 96]\n", "", "'size' is missing"),
        ('sha256 = "{sha256}"\n', "", "'sha256' is missing"),
        ("size = [128, 96]", "size = [128]", r"input\.size: wanted 2 numbers, got \[128\]"),
        ("size = [128, 96]", "size = 128", r"input\.size: wanted 2 numbers, got 128"),
        ("size = [128, 96]", "size = [inf, 96]", r"input\.size: wanted 2 numbers, got \[inf, 96\]"),
        ("box_scale = 1.25", "box_scale = 0", r"input\.box_scale: wanted a number above 0, got 0"),
        ("stride = 4", "stride = nan", r"codec\.stride: wanted a number above 0, got nan"),
        ("gmac = 0.1", "gmac = 1" + "0" * 400, "gmac: wanted a number, got 1000"),
        ("[codec]", '[measured]\n"my figure" = "3"\n[codec]', r"measured\.my figure: wanted a number, got '3'"),
        ("[codec]", "[calibration]\nshape = [1]\n[codec]", r"calibration\.shape: wanted a number, got \[1\]"),
        ("[codec]", "[calibration]\nnoise = [1, 2]\n[codec]", r"calibration\.noise: wanted 3 numbers, got \[1, 2\]"),
        ("[codec]", "[calibration]\nconfidence = [1, inf]\n[codec]", r"calibration\.confidence: wanted 2 numbers"),
        ("[codec]", "[calibration]\nconfidence = [true, 1]\n[codec]", r"calibration\.confidence: wanted 2 numbers"),
        ('data = ["paint"]', 'data = ["paint", 1]', "data: wanted str, got 1"),
        ('name = "{name}"', 'name = "a\\nb"', r"name: wanted text in one line, got 'a\\nb'"),
        ('file = "{name}.onnx"', 'file = "\\u0000"', r"file: wanted text in one line, got '\\x00'"),
        ("gmac = 0.1", "gmac = " + "[" * 5000, "recursion"),
        ("parameters = 1234", 'parameters = "many"', "parameters: wanted int, got 'many'"),
        ('task = "{task}"', 'task = "guess"', "task: wanted one of align, detect, got 'guess'"),
        ("[weights.{role}]", "[weights]", "wanted dict, got"),
        ("[codec]", "[codec", "Expected"),
        ("[codec]", "[calibratoin]\nnoise = 1\n[codec]", "unknown key calibratoin; did you mean 'calibration'"),
        ("[codec]", "[calibration]\nconfidance = 1\n[codec]", r"unknown key calibration\.confidance; .* 'confidence'"),
        (
            "[codec]",
            "[calibration]\nscan = 1\n[codec]",
            r"unknown key calibration\.scan; wanted one of confidence, noise",
        ),
        ("box_scale", "box_scael", r"unknown key input\.box_scael; did you mean 'box_scale'"),
        ("precision", "precison", r"unknown key weights\.net\.precison; did you mean 'precision'"),
        (CARD[CARD.index("[weights") :], "[weights]\n", r"'weights\.net' is missing"),
        ("[weights.{role}]", "[weights.nett]", r"unknown key weights\.nett; did you mean 'net'"),
        ("gmac = 0.1", "gmac = 0.1\nqqq = 2", "unknown key qqq; wanted one of name, network, task, markup"),
    ],
)
def test_a_broken_card_says_its_file_and_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CARD
    path = write_card(tmp_path, "mine", text=CARD.replace(old, new))
    with pytest.raises(CardError, match=f"mine\\.toml: not a usable model card: .*{message}"):
        read_card(path)


@pytest.mark.parametrize(("role", "missing"), [("scan", "refine"), ("refine", "scan")])
def test_detector_card_lacking_one_network_names_the_missing_one(tmp_path: Path, role: str, missing: str) -> None:
    path = write_card(tmp_path, "mine", network="bbfcn", text=CARD.replace("{task}", "detect").replace("{role}", role))
    with pytest.raises(CardError, match=rf"mine\.toml: not a usable model card: 'weights\.{missing}' is missing"):
        read_card(path)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ("scan = [1.0]", "scan: wanted 9 numbers"),
        (f"refine = [{'nan, ' * 13}]", "refine: wanted 13 numbers"),
        ("second_look = 'often'", "second_look: wanted a number, got 'often'"),
    ],
)
def test_detector_card_with_invalid_calibration_is_refused(tmp_path: Path, numbers: str, message: str) -> None:
    text = CARD.replace("[codec]", f"[calibration]\n{numbers}\n[codec]")
    path = write_card(tmp_path, "mine", "bbfcn", "detect", text)
    with pytest.raises(CardError, match=rf"mine\.toml: not a usable model card: calibration\.{message}"):
        read_card(path)


def test_measured_figures_may_have_any_name(tmp_path: Path) -> None:
    card = read_card(write_card(tmp_path, "mine", text=CARD + '[measured]\n"my own figure" = 3\n'))
    assert card.measured == {"my own figure": 3}


def test_binary_or_missing_card_is_refused(tmp_path: Path) -> None:
    path = write_card(tmp_path, "mine")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CardError, match="not a usable model card"):
        read_card(path)
    with pytest.raises(CardError, match="cannot read the model card: No such file"):
        read_card(tmp_path / "none.toml")


def test_user_cards_come_first_and_override_shipped_cards_of_the_same_name(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(cards, "SHIPPED", shipped)
    for name in ("first", "second"):
        write_card(shipped, name)
    mine = write_card(own_home, "second")
    write_card(own_home, "third")
    assert [card.name for card in all_cards()] == ["second", "third", "first"]
    assert find_card("second", "align").weights["net"].path.parent == mine.parent.parent / "weights"


def test_network_name_resolves_to_its_first_shipped_card_despite_other_user_cards(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(cards, "SHIPPED", shipped)
    write_card(shipped, "gv-b")
    write_card(shipped, "gv-a")
    write_card(shipped, "tab-a", network="tab")
    assert find_card("gv", "align").name == "gv-a"
    assert find_card("tab", "align").name == "tab-a"
    assert find_card("gv-b", "align").name == "gv-b"
    write_card(own_home, "a-gv-of-mine")
    assert find_card("gv", "align").name == "gv-a"
    assert find_card("a-gv-of-mine", "align").network == "gv"
    mine = write_card(own_home, "gv-a")
    assert find_card("gv", "align").weights["net"].path.parent == mine.parent.parent / "weights"


def test_unshipped_network_resolves_to_the_users_first_card(own_home: Path) -> None:
    for name in ("pebble-b", "pebble-a"):
        write_card(own_home, name, network="pebble")
    assert find_card("pebble", "align").name == "pebble-a"


def test_a_broken_card_is_an_error_only_where_it_is_asked_for(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cards, "SHIPPED", tmp_path / "shipped")
    write_card(tmp_path / "shipped", "gv-a")
    broken = write_card(own_home, "mine", text="name = ")
    with caplog.at_level(logging.WARNING, "facetrack"):
        assert find_card("gv", "align") == find_card("gv-a", "align") == all_cards()[0]
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once, however often cards are looked for
    assert str(broken) in caplog.text
    assert broken_cards().keys() == {"mine"}
    with pytest.raises(CardError, match=r"mine\.toml: not a usable model card"):
        find_card("mine", "align")
    with pytest.raises(CardError, match=r"no model 'gw' to align with; available: gv-a \(gv\);"):
        find_card("gw", "align")


def test_broken_user_card_that_overrides_a_shipped_one_raises(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "SHIPPED", tmp_path / "shipped")
    write_card(tmp_path / "shipped", "gv-a")
    write_card(own_home, "gv-a", text="name = ")
    for name in ("gv", "gv-a"):
        with pytest.raises(CardError, match=r"home/cards/gv-a\.toml: not a usable model card"):
            find_card(name, "align")


def test_exact_card_name_takes_precedence_over_a_network_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "SHIPPED", tmp_path)
    write_card(tmp_path, "a", network="gv")
    write_card(tmp_path, "gv", network="tab")
    assert find_card("gv", "align").network == "tab"


def test_an_unknown_model_lists_those_that_exist_for_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "SHIPPED", tmp_path)
    write_card(tmp_path, "gv-a")
    write_card(tmp_path, "bb", network="bbfcn", task="detect")
    with pytest.raises(CardError, match=r"no model 'gw' to align with; available: gv-a \(gv\);"):
        find_card("gw", "align")
    with pytest.raises(CardError, match=r"no model 'gv-a' to detect with; available: bb \(bbfcn\)"):
        find_card("gv-a", "detect")
    with pytest.raises(CardError, match="available: gv-a"):
        find_card("bb", "align")


def test_unknown_model_error_says_when_there_are_no_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "SHIPPED", tmp_path)
    with pytest.raises(CardError, match="available: none"):
        find_card("gv", "align")


def test_without_facetrack_home_the_platforms_data_folder_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FACETRACK_HOME")
    assert home().name == "facetrack"
    assert home().is_absolute()


@pytest.mark.parametrize("card", shipped_cards(), ids=lambda card: card.name)
def test_shipped_cards_have_readable_onnx_weights_data_and_a_licence(card: ModelCard) -> None:
    for weights in card.weights.values():
        assert weights.path.suffix == ".onnx"  # nothing is ever unpickled at run time
        assert weights.read()
    assert card.data
    assert card.licence


@pytest.mark.parametrize("card", shipped_cards(), ids=lambda card: card.name)
def test_written_card_reads_back_unchanged(card: ModelCard, tmp_path: Path) -> None:
    card_text.write_card(card, tmp_path)
    read = read_card(card_text.card_path(card.name, tmp_path))
    for role, weights in card.weights.items():
        assert read.weights[role].sha256 == weights.sha256
    assert replace(read, weights=card.weights) == card


def test_a_file_of_another_card_is_not_replaced(tmp_path: Path) -> None:
    write_card(tmp_path, "mine")
    card_text.refuse_files_of_others(tmp_path, "mine", {"mine": b"newer"})  # its own may be
    card_text.refuse_files_of_others(tmp_path, "other", {"mine": CONTENT, "other": b"newer"})
    with pytest.raises(SinkError, match=r"weights/mine\.onnx: belongs to the card mine, but other needs .*--out$"):
        card_text.refuse_files_of_others(tmp_path, "other", {"mine": b"newer"})
    assert (tmp_path / "weights" / "mine.onnx").read_bytes() == CONTENT


def test_a_card_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    mine = read_card(write_card(tmp_path, "mine"))
    assert card_text.write_card(mine, tmp_path / "out") is mine
    (path,) = (tmp_path / "out" / "cards").iterdir()
    assert path == card_text.card_path("mine", tmp_path / "out")
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(SinkError, match=r"mine\.toml: cannot be written \(No space left on device\)"):
        card_text.write_card(replace(mine, gmac=0.2), tmp_path / "out")
    assert [*path.parent.iterdir()] == [path]
    assert path.read_bytes() == before
