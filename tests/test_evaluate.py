"""Evaluation of pictures: the numbers against a computation of the test's own, files whole or not there."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes_benchmarks import NOBODY, SIZE, eye_distance, face_number, picture_of, write_300w, write_image
from fakes_pipeline import PaintedBackend, PaintedEngines, painted_card

from facetrack.cli import main
from facetrack.engines.aligner import Aligner
from facetrack.engines.card import Weights
from facetrack.pipeline.open import Choices
from facetrack.pipeline.progress import NoProgress
from facetrack.pipeline.sidecar import describe_models
from facetrack.tracker import markup
from facetrack.tracker.errors import MarkupError, SinkError, SourceError
from facetrack.tracker.types import Float32
from facetrack.training.evaluation import pictures
from facetrack.training.evaluation.benchmarks import find_benchmark
from facetrack.training.evaluation.locate import GivenBoxLocator, common_points
from facetrack.training.evaluation.pictures import EvaluationSettings, check, evaluate

pytest.importorskip("matplotlib", reason="needs the eval extra")

SHIFT = 3.0, 4.0
NAMES = [f"lfpw/testset/image_{i:04}.png" for i in range(4)] + [f"ibug/image_{i:03}_1.png" for i in range(3)]
READING_PX = 0.35  # how exactly painted faces are read back


def run(settings: EvaluationSettings, engines: PaintedEngines | None = None) -> str:
    with (engines or PaintedEngines())(Choices()) as opened:
        return evaluate(settings, opened, NoProgress())


def summary(out: Path, stem: str = "300w-gt") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / f"{stem}.json").read_text(encoding="utf-8"))
    return content


def row(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(name)]
    return line.removeprefix(name).split()


@dataclass(frozen=True)
class Measured:
    """An evaluation in given boxes: the annotations, where the data and the results are, and the table."""

    truths: list[Float32]
    data: Path
    out: Path
    table: str


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("results") / "out"
    truths = write_300w(data, NAMES, SHIFT)
    return Measured(truths, data, out, run(EvaluationSettings("300w", data, out)))


# numbers


def test_annotations_off_by_five_pixels_have_errors_of_five_over_the_eye_distance(measured: Measured) -> None:
    out, table = measured.out, measured.table
    eyes = np.array([eye_distance(xy) for xy in measured.truths])
    tolerance = 100 * READING_PX / eyes.min()
    for column, part in (("common", eyes[:4]), ("challenging", eyes[4:]), ("full", eyes)):
        expected = 100 * np.mean(5 / part)
        assert summary(out)["figures_percent"]["NME io"][column] == pytest.approx(expected, abs=tolerance)
    with (out / "300w-gt.csv").open(encoding="utf-8") as file:
        faces = list(csv.DictReader(file))
    assert [face["face"] for face in faces] == NAMES
    assert [float(face["nme_io_percent"]) for face in faces] == pytest.approx((500 / eyes).tolist(), abs=tolerance)
    assert row(table, "faces") == ["4", "of", "554", "3", "of", "135", "7", "of", "689"]
    assert "not all faces of common, challenging, full were measured" in table


def test_the_summary_follows_from_the_table_of_faces(tmp_path: Path) -> None:
    write_300w(tmp_path / "data", NAMES, SHIFT)
    write_image(tmp_path / "data/ibug/image_001_1.png", NOBODY.picture(0))  # annotated, but nobody is there
    table = run(EvaluationSettings("300w", tmp_path / "data", tmp_path / "out", boxes="detector"))
    with (tmp_path / "out/300w-detector.csv").open(encoding="utf-8") as file:
        faces = list(csv.DictReader(file))
    errors = np.array([float(face["nme_io_percent"]) for face in faces])
    assert [face["found"] for face in faces] == list("1111101")
    assert np.isinf(errors[5])
    content = summary(tmp_path / "out", "300w-detector")
    full = {name: values["full"] for name, values in content["figures_percent"].items()}
    assert full["NME io"] == pytest.approx(np.delete(errors, 5).mean(), abs=1e-3)
    assert full["FR8 io"] == pytest.approx(100 * np.mean(errors > 8))
    assert full["AUC10 io"] == pytest.approx(100 * np.mean(np.clip(1 - errors / 10, 0, None)), abs=1e-3)
    assert content["missed"] == 1
    assert content["subsets"]["challenging"] == {
        "faces": 3,
        "published": 135,
        "comparable": False,
        "found_percent": pytest.approx(200 / 3),
    }
    assert row(table, "missed %") == ["0.00", "33.33", "14.29"]
    assert "a missed face counts as a failure" in table


def test_detected_faces_have_about_the_nme_of_given_boxes(measured: Measured, tmp_path: Path) -> None:
    run(EvaluationSettings("300w", measured.data, tmp_path, boxes="detector"))
    given, own = (
        summary(out, f"300w-{boxes}")["figures_percent"]["NME io"]["full"]
        for out, boxes in ((measured.out, "gt"), (tmp_path, "detector"))
    )
    assert own == pytest.approx(given, abs=0.5)


def test_of_two_faces_the_annotated_one_is_measured(tmp_path: Path) -> None:
    (truth,) = write_300w(tmp_path / "data", NAMES[:1])
    picture = np.full((SIZE[0], 2 * SIZE[1], 3), NOBODY.picture(0)[0, 0], np.uint8)
    picture[:, : SIZE[1]], picture[:, SIZE[1] :] = picture_of(face_number(0)), picture_of(face_number(3))
    write_image(tmp_path / "data" / NAMES[0], picture)
    run(EvaluationSettings("300w", tmp_path / "data", tmp_path / "out", boxes="detector"))
    nme = summary(tmp_path / "out", "300w-detector")["figures_percent"]["NME io"]["common"]
    assert nme < 100 * READING_PX / eye_distance(truth)


# markups


def test_common_points_of_model_and_data_set_are_a_shared_subset() -> None:
    ibug, wflw, five = (markup.load(name) for name in ("ibug68", "wflw98", "five5"))
    same = common_points(ibug, ibug)
    assert (same.name, same.count, same.whole) == ("ibug68", 68, True)
    mixed = common_points(ibug, wflw)
    assert not mixed.whole
    assert mixed.of_model(np.zeros((68, 2), np.float32)).shape == mixed.of_data(np.zeros((98, 2), np.float32)).shape
    assert common_points(five, ibug).name == "five5"


def test_markups_without_a_common_subset_are_refused() -> None:
    ibug = markup.load("ibug68")
    odd = markup.Markup("odd7", 7, {}, {}, np.arange(7), {}, {})
    with pytest.raises(MarkupError, match="a model of odd7 cannot be measured on ibug68: they share no subset"):
        common_points(odd, ibug)


def test_comparison_in_a_subset_is_noted_and_omits_the_papers_rows(tmp_path: Path) -> None:
    write_300w(tmp_path / "data", NAMES[:2])
    with PaintedEngines()(Choices()) as opened:
        table = evaluate(EvaluationSettings("300w", tmp_path / "data", tmp_path / "out"), opened, NoProgress())
        assert "TAB" in table
        assert "TAB" in {paper["method"] for paper in summary(tmp_path / "out")["papers_percent"]}
    face, wflw = face_number(0), markup.load("wflw98")
    truth = np.zeros((98, 2), np.float32)
    xy = face.landmarks(0)
    truth[:33] = np.stack([np.interp(np.arange(33) / 2, np.arange(17), xy[:17, axis]) for axis in (0, 1)], 1)
    truth[33:] = xy[30]
    truth[[60, 72]], truth[[96, 97]] = xy[[36, 45]], np.stack([xy[36:42].mean(0), xy[42:48].mean(0)])
    truth[[54, 76, 82]] = xy[[30, 48, 54]]
    lines = [*(f"{v:.5f}" for v in truth.ravel()), *"0000", *"000000", "a.png"]
    table_file = tmp_path / "wflw/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt"
    table_file.parent.mkdir(parents=True)
    table_file.write_text(" ".join(lines) + "\n", encoding="utf-8")
    write_image(tmp_path / "wflw/WFLW_images/a.png", picture_of(face))
    table = run(EvaluationSettings("wflw", tmp_path / "wflw", tmp_path / "out"))
    shared = common_points(markup.load("ibug68"), wflw)
    assert f"compared in {shared.name}, which ibug68 and wflw98 share" in table
    assert "TAB" not in table
    assert summary(tmp_path / "out", "wflw-gt")["papers_percent"] == []


def test_subset_is_comparable_only_where_all_its_faces_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_300w(tmp_path / "data", NAMES)
    benchmark = find_benchmark("300w")
    four = replace(benchmark, subsets={**benchmark.subsets, "common": 4})
    monkeypatch.setattr(pictures, "find_benchmark", lambda name: four)  # noqa: ARG005 - as it is called
    run(EvaluationSettings("300w", tmp_path / "data", tmp_path / "out"))
    subsets = summary(tmp_path / "out")["subsets"]
    assert {name: subset["comparable"] for name, subset in subsets.items()} == {
        "common": True,
        "challenging": False,
        "full": False,
    }


def test_without_an_outline_the_box_is_guessed_from_five_points() -> None:
    face, cofw = face_number(1), markup.load("cofw29")
    truth = np.zeros((29, 2), np.float32)
    five = markup.load("ibug68").subset("five5", face.landmarks(0))
    for point, groups in zip(five, cofw.subsets["five5"], strict=True):
        truth[list(groups)] = point
    found = GivenBoxLocator(Aligner(painted_card(), PaintedBackend()), cofw)(picture_of(face), truth)
    assert found is not None
    assert np.abs(found.xy - face.landmarks(0)).max() < 2 * READING_PX


# files


def test_the_report_is_a_table_json_curves_and_a_contact_sheet(measured: Measured) -> None:
    out = measured.out
    names = {"300w-gt.csv", "300w-gt.json", "300w-gt-ced.png", "300w-gt-ced.svg", "300w-gt-worst.jpg"}
    assert {file.name for file in out.iterdir()} == names
    plot = cv2.imread(str(out / "300w-gt-ced.png"))
    assert plot is not None
    assert plot.std() > 10
    curves = (out / "300w-gt-ced.svg").read_text(encoding="utf-8")
    assert "challenging (3)" in curves
    assert "faces with at most this error, %" in curves
    sheet = cv2.imread(str(out / "300w-gt-worst.jpg"))
    assert sheet is not None
    assert sheet.shape == (2 * 240, 6 * 240, 3)
    content = summary(out)
    ran = {"file": {"net": "painted.onnx"}, "sha256": {"net": "0" * 64}, "precision": {"net": "fp32"}}
    assert content["models"] == [{"name": "painted-68", "task": "align", **ran}]
    assert content["settings"]["model"] == "gv"


def test_summary_lists_only_settings_that_can_affect_its_figures(measured: Measured, tmp_path: Path) -> None:
    run(EvaluationSettings("300w", measured.data, tmp_path, boxes="detector"))
    everywhere = {"model", "backend", "threads"}
    assert summary(measured.out)["settings"].keys() == everywhere
    assert summary(tmp_path, "300w-detector")["settings"].keys() == everywhere | {"min_face", "max_faces"}


@pytest.mark.parametrize("byte_products", [True, False])
def test_summary_names_the_weights_that_ran_and_no_detector_in_given_boxes(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, byte_products: bool
) -> None:
    monkeypatch.setattr("facetrack.engines.backend.has_int8_dot_product", lambda: byte_products)
    cpu = Weights(Path("painted-int8.onnx"), "1" * 64, "int8")
    card = replace(painted_card(), weights={"net": Weights(Path("painted.onnx"), "0" * 64, "fp32", cpu)})
    named = {}
    for boxes in ("gt", "detector"):
        with PaintedEngines()(Choices()) as opened:
            both = replace(opened, cards=(card, painted_card("finder", "detect")))
            settings = EvaluationSettings("300w", measured.data, tmp_path, boxes=boxes)  # type: ignore[arg-type]
            evaluate(settings, both, NoProgress())
            assert summary(tmp_path, f"300w-{boxes}")["models"][0] == describe_models(both)[0]
        named[boxes] = [model["file"]["net"] for model in summary(tmp_path, f"300w-{boxes}")["models"]]
    ran = "painted-int8.onnx" if byte_products else "painted.onnx"
    assert named == {"gt": [ran], "detector": [ran, "painted.onnx"]}


def test_the_same_evaluation_gives_the_same_plots(measured: Measured, tmp_path: Path) -> None:
    run(EvaluationSettings("300w", measured.data, tmp_path))
    for name in ("300w-gt-ced.png", "300w-gt-ced.svg", "300w-gt.csv", "300w-gt-worst.jpg"):
        assert (measured.out / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_existing_results_are_replaced_only_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "300w-gt.json").write_text("dear", encoding="utf-8")
    check(EvaluationSettings("300w", tmp_path, tmp_path, overwrite=True))
    check(EvaluationSettings("300w", tmp_path, tmp_path, boxes="detector"))
    with pytest.raises(SinkError, match=r"300w-gt\.json: exists already; add --overwrite, or choose another --out"):
        check(EvaluationSettings("300w", tmp_path, tmp_path))


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_unwritable_output_folder_is_refused_before_measuring(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_300w(tmp_path / "data", NAMES)
    (tmp_path / "file").touch()
    backend = PaintedBackend()
    words = ["evaluate", "300w", str(tmp_path / "data"), "--out", str(tmp_path / name)]
    assert main(words, PaintedEngines(backend)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"facetrack: {tmp_path / name}: cannot be created")
    assert backend.calls == 0


def test_a_check_leaves_no_folder_behind(tmp_path: Path) -> None:
    check(EvaluationSettings("300w", tmp_path, tmp_path / "a" / "b"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the network broke")])
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    write_300w(tmp_path / "data", NAMES)
    engines = PaintedEngines(PaintedBackend(failing={3: error}))
    with pytest.raises(type(error)):
        run(EvaluationSettings("300w", tmp_path / "data", tmp_path / "out"), engines)
    assert not (tmp_path / "out").exists()


def test_broken_files_are_refused_or_named_and_left_out(tmp_path: Path) -> None:
    write_300w(tmp_path / "data", NAMES)
    (tmp_path / "data" / NAMES[1]).write_bytes(b"no picture")
    (tmp_path / "data/ibug/image_000_1.pts").write_text("n_points: 1\n{\n1 1\n}\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"image_0001\.png: not a readable picture"):
        run(EvaluationSettings("300w", tmp_path / "data", tmp_path / "out"))
    table = run(EvaluationSettings("300w", tmp_path / "data", tmp_path / "out", broken="skip"))
    assert "2 broken files were left out" in table
    left_out = summary(tmp_path / "out")["left_out"]
    assert [item["name"] for item in left_out] == [NAMES[1], NAMES[4]]
    assert "wanted one face of 68 points, got (1, 1, 2)" in left_out[1]["reason"]


@pytest.mark.parametrize("boxes", ["gt", "detector"])
@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("nan nan", r"image_0001\.pts: wanted all 68 points annotated, got 67"),
        ("inf 3", r"image_0001\.pts: wanted coordinates up to 1048576 pixels, got inf"),
        ("3 -1e20", r"image_0001\.pts: wanted coordinates up to 1048576 pixels, got 1e\+20"),
    ],
)
def test_invalid_annotated_point_raises_or_its_picture_is_skipped(
    tmp_path: Path, cells: str, message: str, boxes: Any
) -> None:
    write_300w(tmp_path / "data", NAMES[:3])
    annotation = (tmp_path / "data" / NAMES[1]).with_suffix(".pts")
    lines = annotation.read_text(encoding="utf-8").splitlines()
    annotation.write_text("\n".join([*lines[:20], cells, *lines[21:]]), encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        run(EvaluationSettings("300w", tmp_path / "data", tmp_path / "out", boxes))
    run(EvaluationSettings("300w", tmp_path / "data", tmp_path / "out", boxes, broken="skip"))
    (left_out,) = summary(tmp_path / "out", f"300w-{boxes}")["left_out"]
    assert left_out["name"] == NAMES[1]


def test_evaluation_without_a_measurable_face_raises_and_writes_nothing(tmp_path: Path) -> None:
    write_300w(tmp_path / "data", NAMES[:1])
    (tmp_path / "data" / NAMES[0]).write_bytes(b"no picture")
    with pytest.raises(SourceError, match="no face could be measured"):
        run(EvaluationSettings("300w", tmp_path / "data", tmp_path / "out", broken="skip"))
    assert not (tmp_path / "out").exists()


# command


def test_the_command_prints_the_table_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_300w(tmp_path / "data", NAMES)
    words = ["evaluate", "300w", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main(words, PaintedEngines()) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("300-W: painted-68, 68 points, ground-truth boxes\n")
    assert "7 faces in" in captured.err
    assert main(words, PaintedEngines()) == 1
    assert "others: exist already; add --overwrite" in capsys.readouterr().err


def test_an_interrupted_command_exits_with_130(tmp_path: Path) -> None:
    write_300w(tmp_path / "data", NAMES)
    words = ["evaluate", "300w", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main(words, PaintedEngines(PaintedBackend(failing={2: KeyboardInterrupt()}))) == 130
    assert not (tmp_path / "out").exists()


def test_folder_in_the_wrong_layout_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    assert main(["evaluate", "wflw", str(tmp_path / "data"), "--out", str(tmp_path / "out")], PaintedEngines()) == 1
    assert "wanted WFLW_annotations/" in capsys.readouterr().err
