"""The figures on a card: of every one of its files, the same on every machine; nothing else of the card changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from fakes_training import write_faces

from facetrack.engines.aligner import Aligner
from facetrack.engines.card import SHIPPED, Weights, read_card
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.tracker.errors import CardError
from facetrack.tracker.geometry import bounding_box, box_centre_side
from facetrack.tracker.metrics import nme
from facetrack.training import publish
from facetrack.training.config import Config, Publication
from facetrack.training.datasets import read_pts_folder
from facetrack.training.evaluation.card_figures import with_table

NAME = "gv-mobilenetv3-68"
shipped = pytest.mark.skipif(
    not (SHIPPED / "weights" / f"{NAME}.onnx").exists(), reason="the trained weights are not here"
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with the default card and its files."""
    for kind in ("cards", "weights"):
        (tmp_path / "out" / kind).mkdir(parents=True)
        for path in (SHIPPED / kind).glob(f"{NAME}*"):
            shutil.copy(path, tmp_path / "out" / kind)
    return tmp_path / "out"


def error_of(weights: Weights, data: Path, angle: float) -> float:
    """Inter-ocular NME in percent, by itself."""
    aligner = Aligner(read_card(SHIPPED / "cards" / f"{NAME}.toml"), OnnxBackend(weights))
    errors = []
    for sample in read_pts_folder(data):
        crop = aligner.crop_around(*box_centre_side(bounding_box(sample.points[0])), angle)
        found = aligner.align(sample.bgr(), [crop])[0].xy
        errors.append(100 * nme(found[None], sample.points[:1], aligner.markup, "io")[0])
    return float(np.mean(errors))


@shipped
@pytest.mark.parametrize("byte_products", [True, False])
def test_measure_again_records_figures_of_the_full_and_8_bit_file_on_any_cpu(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, byte_products: bool
) -> None:
    monkeypatch.setattr("facetrack.engines.backend.has_int8_dot_product", lambda: byte_products)
    write_faces(tmp_path / "held", 2)
    before = (out / "cards" / f"{NAME}.toml").read_text(encoding="utf-8")
    path = publish.measure_again(Config(card=Publication(NAME), validation="held"), tmp_path, out)
    card, old = read_card(path), read_card(SHIPPED / "cards" / f"{NAME}.toml")
    own, small = card.weights["net"], card.weights["net"].cpu
    assert small is not None
    expected = {
        f"NME io %, held{turned}{ending}": pytest.approx(error_of(weights, tmp_path / "held", angle), abs=2e-3)
        for ending, weights in (("", own), (", 8 bits on a CPU", small))
        for turned, angle in (("", 0.0), (", crop turned 30 degrees", np.pi / 6))
    }
    assert card.measured == {**old.measured, **expected}
    text = path.read_text(encoding="utf-8")
    for part in (before.partition("[measured]")[0], before[before.index("[calibration]") :]):
        assert part in text


@shipped
def test_measuring_again_keeps_the_names_of_the_shipped_cards_figures(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_faces(tmp_path / "lfpw/testset", 1)
    config = tmp_path / "config.toml"
    config.write_text(f'validation = "lfpw/testset"\n[card]\nname = "{NAME}"\n', encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["publish", str(config), "--data", str(tmp_path), "--out", str(out)])
    publish.main()
    path = out / "cards" / f"{NAME}.toml"
    assert capsys.readouterr().out.strip() == str(path)
    assert [*read_card(path).measured] == [*read_card(SHIPPED / "cards" / f"{NAME}.toml").measured]


def test_a_card_that_is_not_there_cannot_be_measured_again(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"nobody\.toml: cannot read the model card"):
        publish.measure_again(Config(card=Publication("nobody")), tmp_path, tmp_path)


def test_toml_table_is_replaced_in_place_and_the_comment_behind_it_is_kept() -> None:
    head = 'name = "x" # so\n\n[measured]\n'
    old = head + '"a" = 1\n# of b\n"b" = 2\n\n# of the fit\n[calibration]\nscan = [1]\n'
    new = '[measured]\n"a" = 3\n\n[calibration]\nscan = [2, 3]\n'
    measured = head + '"a" = 3\n\n# of the fit\n[calibration]\nscan = [1]\n'
    assert with_table(old, new, "measured") == measured
    assert with_table(measured, new, "calibration") == measured.replace("[1]", "[2, 3]")
    assert with_table('name = "x"', new, "measured") == 'name = "x"\n\n[measured]\n"a" = 3\n'
