"""COFW(-68), AFLW, AFLW2000-3D and 300W-LP: small files in their published layouts, of both kinds of MATLAB file."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes_benchmarks import SIZE, face_number, picture_of, write_image
from fakes_nineteen import OF_68, NineteenBackend, nineteen_card
from fakes_pipeline import PaintedEngines

from facetrack.engines.aligner import Aligner
from facetrack.pipeline.open import Choices
from facetrack.pipeline.progress import NoProgress
from facetrack.tracker.errors import SourceError
from facetrack.training.datasets import matlab_layouts, read_entries, read_faces
from facetrack.training.datasets.matlab_file import MatlabFile
from facetrack.training.datasets.matlab_layouts import list_aflw, list_aflw2000, list_aflw_train, list_cofw
from facetrack.training.evaluation.pictures import EvaluationSettings, evaluate

h5py = pytest.importorskip("h5py", reason="needs the eval extra")
scipy_io = pytest.importorskip("scipy.io", reason="needs the eval extra")

HEAD = b"MATLAB 5.0 MAT-file".ljust(124, b" ") + b"\x00\x01IM"
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (10, 14, 3), np.uint8)  # (H, W, RGB)
GREY = RNG.integers(0, 256, (9, 13), np.uint8)


def write_mat73(path: Path, **variables: Any) -> None:
    """Write as MATLAB's -v7.3 does: a 512-byte header, axes in reverse order, cells as references."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            if isinstance(value, list):
                references = [file.create_dataset(f"#refs#/{name}{i}", data=cell.T).ref for i, cell in enumerate(value)]
                file.create_dataset(name, data=np.array([references], h5py.ref_dtype))
            else:
                file.create_dataset(name, data=np.asarray(value, np.float64).T)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b" "))


def write_mat5(path: Path, **variables: Any) -> None:
    """Write as MATLAB's -v7 does; lists become cell arrays with a row per cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = {name: value for name, value in variables.items() if isinstance(value, list)}
    for name, values in cells.items():
        variables[name] = np.empty((len(values), 1), object)
        variables[name][:, 0] = values
    scipy_io.savemat(path, variables, do_compression=True)


WRITERS = pytest.mark.parametrize("write", [write_mat73, write_mat5], ids=["7.3", "7"])


# COFW


def cofw_shapes(count: int) -> np.ndarray:
    """29 x, 29 y, 29 flags a row, 1-based."""
    return np.hstack([RNG.uniform(1, 10, (count, 58)), RNG.integers(0, 2, (count, 29))])


@WRITERS
@pytest.mark.parametrize(
    ("part", "name", "end"), [("test", "deep/down/COFW_test_color.mat", "T"), ("train", "COFW_train.mat", "Tr")]
)
def test_cofw_holds_pictures_points_flags_and_boxes(tmp_path: Path, write: Any, part: str, name: str, end: str) -> None:
    shapes, boxes = cofw_shapes(2), np.array([[3, 4, 5, 6], [1, 1, 8, 9]])
    write(tmp_path / name, **{f"Is{end}": [COLOUR, GREY], f"phis{end}": shapes, f"bboxes{end}": boxes})
    layout = "cofw" if part == "test" else "cofw-train"
    colour, grey = read_faces(tmp_path, layout)
    np.testing.assert_array_equal(colour.bgr(), COLOUR[..., ::-1])
    np.testing.assert_array_equal(grey.bgr(), np.repeat(GREY[..., None], 3, 2))
    for sample, shape in zip((colour, grey), shapes, strict=True):
        np.testing.assert_allclose(sample.points[0, :, 0], shape[:29] - 1, rtol=1e-6)
        np.testing.assert_allclose(sample.points[0, :, 1], shape[29:58] - 1, rtol=1e-6)
        np.testing.assert_array_equal(sample.hidden, shape[None, 58:] > 0)
        assert sample.subsets == (part,)
    assert colour.boxes is not None
    assert colour.boxes.tolist() == [[2, 3, 7, 9]]


def test_cofw_file_with_mismatched_parts_raises(tmp_path: Path) -> None:
    write_mat73(tmp_path / "COFW_test_color.mat", IsT=[COLOUR], phisT=cofw_shapes(2), bboxesT=np.ones((2, 4)))
    with pytest.raises(SourceError, match=r"wanted \(1, 87\) shapes and \(1, 4\) boxes .* got \(2, 87\) and \(2, 4\)"):
        list_cofw(tmp_path)


@pytest.mark.parametrize("shape", [(0, 0), (0, 4, 3), (3, 4, 2)])
def test_cofw_picture_without_pixels_or_with_two_channels_raises_naming_it(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    pictures = [COLOUR, np.zeros(shape, np.uint8)]
    write_mat5(tmp_path / "COFW_test_color.mat", IsT=pictures, phisT=cofw_shapes(2), bboxesT=np.ones((2, 4)))
    with pytest.raises(SourceError, match=r"color\.mat: wanted picture 2 as uint8 \(H, W\) or \(H, W, 3\), got"):
        list(read_entries(list_cofw(tmp_path)))


@pytest.mark.parametrize("far", ["shapes", "boxes"])
def test_cofw_face_with_absurd_coordinates_raises_naming_its_number(tmp_path: Path, far: str) -> None:
    shapes, boxes = cofw_shapes(2), np.ones((2, 4))
    {"shapes": shapes, "boxes": boxes}[far][1, 3] = 1e39
    write_mat5(tmp_path / "COFW_test_color.mat", IsT=[COLOUR, GREY], phisT=shapes, bboxesT=boxes)
    with pytest.raises(SourceError, match=r"color\.mat, picture 2: wanted coordinates up to 1048576.* got 1e\+39"):
        list(read_entries(list_cofw(tmp_path)))


# COFW-68


def write_cofw68(folder: Path, pictures: list[np.ndarray], faces: list[np.ndarray]) -> None:
    """COFW's own test file, and beside it a file of 68 points (0-based here) for each; every third is hidden."""
    shapes, boxes = cofw_shapes(len(pictures)), np.ones((len(pictures), 4))
    write_mat73(folder / "COFW_test_color.mat", IsT=pictures, phisT=shapes, bboxesT=boxes)
    for i, xy in enumerate(faces, start=1):
        hidden = np.arange(68)[:, None] % 3 == 0
        write_mat5(folder / f"COFW68_Data/test_annotations/{i}_points.mat", Points=xy + 1.0, Occ=hidden.astype(float))


def test_cofw68_has_68_points_for_each_of_cofws_test_pictures(tmp_path: Path) -> None:
    faces = [RNG.uniform(0, 9, (68, 2)) for _ in range(2)]
    write_cofw68(tmp_path, [COLOUR, GREY], faces)
    samples = list(read_faces(tmp_path, "cofw68"))
    np.testing.assert_array_equal(samples[0].bgr(), COLOUR[..., ::-1])
    np.testing.assert_array_equal(samples[1].bgr(), np.repeat(GREY[..., None], 3, 2))
    for sample, xy in zip(samples, faces, strict=True):
        np.testing.assert_allclose(sample.points, xy[None], atol=1e-5)
        assert sample.hidden is not None
        assert np.flatnonzero(sample.hidden).tolist() == list(range(0, 68, 3))
        assert (sample.boxes, sample.subsets) == (None, ("test",))  # errors are divided by the points' tight box


def test_cofw68_with_missing_or_wrong_points_raises(tmp_path: Path) -> None:
    write_cofw68(tmp_path, [COLOUR, GREY], [np.ones((29, 2))])
    with pytest.raises(
        SourceError, match=r"1_points\.mat: wanted Points \(68, 2\) and 68 of Occ, got \(29, 2\) and 68"
    ):
        list(read_faces(tmp_path, "cofw68"))
    write_cofw68(tmp_path, [COLOUR, GREY], [np.ones((68, 2))])
    with pytest.raises(SourceError, match=r"2_points\.mat: cannot be read"):
        list(read_faces(tmp_path, "cofw68"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "COFW_test_color.mat").rename(tmp_path / "elsewhere/COFW_test_color.mat")
    with pytest.raises(SourceError, match="wanted COFW68_Data/test_annotations or test_annotations in it"):
        read_faces(tmp_path / "elsewhere", "cofw68")


def test_cofw68_is_found_in_its_archive_beside_cofw_and_two_copies_raise(tmp_path: Path) -> None:
    write_cofw68(tmp_path, [COLOUR], [np.ones((68, 2))])
    for part, wrap in (("COFW68_Data", "cofw68-benchmark"), ("COFW_test_color.mat", "common_xpburgos/documents")):
        (tmp_path / wrap).mkdir(parents=True)
        (tmp_path / part).rename(tmp_path / wrap / part)
    assert len(list(read_faces(tmp_path, "cofw68"))) == 1
    (tmp_path / "old/test_annotations").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"got cofw68-benchmark/COFW68_Data/test_annotations, old/test_annotations"):
        read_faces(tmp_path, "cofw68")


def test_cofw_prefers_the_colour_file_and_raises_for_two_of_them(tmp_path: Path) -> None:
    for name in ("COFW_test.mat", "a/COFW_test_color.mat"):
        write_mat73(tmp_path / name, IsT=[COLOUR], phisT=cofw_shapes(1), bboxesT=np.ones((1, 4)))
    assert [entry.name for entry in list_cofw(tmp_path)] == ["COFW_test_color#1"]
    (tmp_path / "b").mkdir()
    (tmp_path / "COFW_test.mat").rename(tmp_path / "b/COFW_test_color.mat")
    with pytest.raises(SourceError, match=r"got a/COFW_test_color\.mat, b/COFW_test_color\.mat; remove all but one"):
        list_cofw(tmp_path)


def test_cofw68_evaluation_lists_our_error_above_those_of_the_papers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the eval extra")
    faces = [face_number(i) for i in range(2)]
    pictures = [np.ascontiguousarray(picture_of(face)[..., ::-1]) for face in faces]
    write_cofw68(tmp_path / "data", pictures, [face.landmarks(0) for face in faces])
    with PaintedEngines()(Choices()) as opened:
        settings = EvaluationSettings("cofw68", tmp_path / "data", tmp_path / "out")
        table = evaluate(settings, opened, NoProgress())
    ours, *theirs = [line.split() for line in table.partition("NME box")[2].splitlines()]
    assert float(ours[-1]) < 1.0
    assert theirs[:3] == [["TAB", "2.43"], ["SPAN", "2.47"], ["SPAN*", "2.38"]]


# AFLW


def write_aflw(folder: Path, visible: np.ndarray, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Six faces on three pictures; the order `ra` is 4, 2, 6, 1, 3, 5."""
    names = [f"{i % 2}/image{i // 2:05}.jpg" for i in range(6)]
    for i in range(6):
        write_image(folder / f"data/flickr/{i % 2}/image{i // 2:05}.jpg", COLOUR)
    points, boxes = RNG.uniform(0, 10, (6, 38)), np.tile([1, 9, 2, 8], (6, 1)) + np.arange(6)[:, None]
    variables = {
        "nameList": names,
        "ra": np.array([[4, 2, 6, 1, 3, 5]]),
        "data": points,
        "bbox": boxes,
        "mask_new": visible,
    }
    write_mat5(folder / "AFLWinfo_release.mat", **(variables | changes))
    return points, boxes


def test_aflw_is_split_by_its_own_order_and_fully_visible_faces_are_frontal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matlab_layouts, "AFLW_TRAIN", 3)
    visible = np.ones((6, 19))
    visible[2, 5] = 0
    points, boxes = write_aflw(tmp_path, visible)
    samples = list(read_entries(list_aflw(tmp_path)))
    assert [sample.path.relative_to(tmp_path).as_posix() for sample in samples] == [
        "data/flickr/0/image00000.jpg",
        "data/flickr/0/image00001.jpg",
        "data/flickr/0/image00002.jpg",
    ]
    assert [sample.subsets for sample in samples] == [("full", "frontal"), ("full",), ("full", "frontal")]
    for sample, i in zip(samples, (0, 2, 4), strict=True):
        np.testing.assert_allclose(sample.points[0], np.stack([points[i, :19], points[i, 19:]], 1), rtol=1e-6)
        left, right, top, bottom = boxes[i]
        assert sample.boxes is not None
        assert sample.boxes.tolist() == [[left, top, right, bottom]]
    assert samples[1].hidden is not None
    assert np.flatnonzero(samples[1].hidden).tolist() == [5]
    assert [entry.name for entry in list_aflw_train(tmp_path)] == [
        "1/image00001.jpg#4",
        "1/image00000.jpg#2",
        "1/image00002.jpg#6",
    ]


def test_aflw_is_found_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab_layouts, "AFLW_TRAIN", 3)
    write_aflw(tmp_path / "aflw/release", np.ones((6, 19)))
    assert len(list(read_faces(tmp_path, "aflw"))) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ra": np.array([[1, 1, 2, 3, 4, 5]])}, "ra is not an order of its 6 names"),
        ({"ra": np.array([[np.nan, 2, 6, 1, 3, 5]])}, "ra is not an order of its 6 names"),
        ({"data": np.ones((6, 21))}, r"data, bbox and mask_new .* do not fit its 6 names"),
        ({}, "the first 20000 of ra are for training; none is left"),
    ],
)
def test_inconsistent_aflw_file_raises(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_aflw(tmp_path, np.ones((6, 19)), **changes)
    with pytest.raises(SourceError, match=message):
        list_aflw(tmp_path)


@pytest.mark.parametrize("change", [{"data": np.full((6, 38), 1e39)}, {"bbox": np.full((6, 4), -1e39)}])
def test_aflw_face_with_absurd_coordinates_raises_naming_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(matlab_layouts, "AFLW_TRAIN", 3)
    write_aflw(tmp_path, np.ones((6, 19)), **change)
    with pytest.raises(SourceError, match=r"release\.mat, face 1: wanted coordinates up to 1048576.* got 1e\+39"):
        list(read_entries(list_aflw(tmp_path)))


def test_aflw_errors_are_normalised_by_the_annotated_face_and_by_the_points_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="needs the eval extra")
    monkeypatch.setattr(matlab_layouts, "AFLW_TRAIN", 5)
    points = face_number(1).landmarks(0)[OF_68] + np.float32([3, 4])
    write_aflw(tmp_path / "data", np.ones((6, 19)), data=np.tile(points.T.ravel(), (6, 1)))  # boxes of 8 by 6 pixels
    write_image(tmp_path / "data/data/flickr/0/image00002.jpg", picture_of(face_number(1)))
    with PaintedEngines(NineteenBackend())(Choices()) as opened:
        engines = replace(opened, aligner=Aligner(nineteen_card(), NineteenBackend()), cards=(nineteen_card(),))
        settings = EvaluationSettings("aflw", tmp_path / "data", tmp_path / "out")
        evaluate(settings, engines, NoProgress())
    figures = json.loads((tmp_path / "out/aflw-gt.json").read_text(encoding="utf-8"))["figures_percent"]
    width, height = np.ptp(points, 0)
    assert {name: of["full"] for name, of in figures.items() if name.startswith("NME")} == {
        "NME face": pytest.approx(500 / np.sqrt(8 * 6), rel=0.1),
        "NME diag": pytest.approx(500 / np.hypot(width, height), rel=0.1),
        "NME box": pytest.approx(500 / np.sqrt(width * height), rel=0.1),
    }


# AFLW2000-3D and 300W-LP


def write_aflw2000(folder: Path, yaws_degrees: list[float]) -> list[np.ndarray]:
    """Painted faces; the third coordinate of the points is depth."""
    truths = []
    for i, yaw in enumerate(yaws_degrees):
        xy = face_number(i).landmarks(0)
        write_image(folder / f"image{i + 2:05}.jpg", picture_of(face_number(i)))
        points = np.column_stack([xy + 1, np.full(68, 7.0)]).T
        pose = np.array([[0.1, np.radians(yaw), 0.0, 1, 2, 3, 4]])
        write_mat5(folder / f"image{i + 2:05}.mat", pt3d_68=points, Pose_Para=pose, pt2d=-np.ones((2, 21)))
        truths.append(xy)
    return truths


def test_aflw2000_faces_get_the_subset_of_their_yaw(tmp_path: Path) -> None:
    truths = write_aflw2000(tmp_path, [-12.0, 30.0, 45.0, -75.0, 95.0])
    samples = list(read_faces(tmp_path, "aflw2000"))
    bins = ["0-30", "0-30", "30-60", "60-90", "60-90"]
    assert [sample.subsets for sample in samples] == [(name, "all") for name in bins]
    for sample, truth in zip(samples, truths, strict=True):
        np.testing.assert_allclose(sample.points[0], truth, atol=1e-4)


@pytest.mark.parametrize("yaw", [np.nan, np.inf])
def test_aflw2000_face_with_a_non_finite_yaw_raises_naming_it(tmp_path: Path, yaw: float) -> None:
    write_aflw2000(tmp_path, [yaw])
    with pytest.raises(SourceError, match=r"image00002\.mat: Pose_Para: wanted an angle of yaw, got"):
        list(read_entries(list_aflw2000(tmp_path)))


@pytest.mark.parametrize("home", ["AFLW2000", "AFLW2000-3D", "AFLW2000-3D/AFLW2000", "AFLW2000/AFLW2000"])
def test_aflw2000_is_found_at_any_depth(tmp_path: Path, home: str) -> None:
    write_aflw2000(tmp_path / home, [0.0])
    (sample,) = read_faces(tmp_path, "aflw2000")
    assert sample.path == tmp_path / home / "image00002.jpg"


def test_two_copies_of_aflw2000_raise_naming_both(tmp_path: Path) -> None:
    for copy in ("new", "old"):
        write_aflw2000(tmp_path / copy / "AFLW2000", [0.0])
    with pytest.raises(SourceError, match="got new/AFLW2000, old/AFLW2000; remove all but one"):
        list_aflw2000(tmp_path)


def test_aflw2000_annotation_without_its_picture_raises_and_other_mat_files_are_ignored(tmp_path: Path) -> None:
    write_aflw2000(tmp_path, [0.0, 45.0])
    (tmp_path / "image00003.jpg").unlink()
    write_mat5(tmp_path / "Model_Shape.mat", w=np.ones((2, 2)))
    entries = list_aflw2000(tmp_path)
    assert [entry.name for entry in entries] == ["image00002.jpg", "image00003.mat"]
    with pytest.raises(SourceError, match=r"image00003\.mat: wanted a picture .* of its name beside it"):
        list(read_entries(entries))
    assert len(list(read_entries(entries, "skip"))) == 1


def test_aflw2000_annotation_with_two_pictures_raises(tmp_path: Path) -> None:
    write_aflw2000(tmp_path, [0.0])
    write_image(tmp_path / "image00002.png", COLOUR)
    with pytest.raises(SourceError, match=r"image00002\.mat: .* got image00002\.jpg and image00002\.png; keep one"):
        list(read_faces(tmp_path, "aflw2000"))


def test_300w_lp_annotation_without_its_picture_raises(tmp_path: Path) -> None:
    for name in ("AFW/AFW_1_2", "AFW/AFW_2_3"):
        write_mat5(tmp_path / f"{name}.mat", pt2d=np.ones((2, 68)))
    write_image(tmp_path / "AFW/AFW_1_2.jpg", COLOUR)
    with pytest.raises(SourceError, match=r"AFW_2_3\.mat: wanted a picture"):
        list(read_faces(tmp_path, "300w-lp"))


def test_300w_lp_is_read_from_all_its_folders(tmp_path: Path) -> None:
    xy = face_number(1).landmarks(0)
    for name in ("AFW/AFW_1_2", "IBUG_Flip/IBUG_image_003_1_0", "Code/sample"):
        write_image(tmp_path / f"{name}.jpg", COLOUR)
        write_mat5(tmp_path / f"{name}.mat", pt2d=xy.T + 1, Pose_Para=np.zeros((1, 7)))
    samples = list(read_faces(tmp_path, "300w-lp"))
    assert [sample.path.stem for sample in samples] == ["AFW_1_2", "IBUG_image_003_1_0"]
    np.testing.assert_allclose(samples[0].points[0], xy, atol=1e-4)


def test_aflw2000_is_evaluated_by_bins_of_yaw_and_their_mean(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the eval extra")
    write_aflw2000(tmp_path / "data", [0.0, 10.0, 45.0, 80.0])
    with PaintedEngines()(Choices()) as opened:
        settings = EvaluationSettings("aflw2000", tmp_path / "data", tmp_path / "out")
        table = evaluate(settings, opened, NoProgress())
    lines = {line.split("  ")[0]: line.split() for line in table.splitlines() if line}
    assert table.splitlines()[3].split() == ["0-30", "30-60", "60-90", "all", "mean"]
    values = [float(cell) for cell in lines["NME box %"][3:]]
    assert values[4] == pytest.approx(np.mean(values[:3]), abs=0.01)
    assert max(values) < 1.0


# broken files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a MATLAB file that can be read"),
        (b"Dear diary", "not a MATLAB file that can be read"),
        (HEAD + b"\xff" * 64, "not a MATLAB file"),
        (HEAD[:60], "not a MATLAB file"),
        (HEAD + struct.pack("<12I16x", 14, 56, 6, 8, 0, 0, 5, 8, 1, 1, 65537, 120), "not a MATLAB file"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "wanted a variable pt3d_68"),
    ],
    ids=["empty", "text", "cut", "cut head", "no class", "cut HDF5"],
)
def test_corrupt_matlab_file_raises_naming_it(tmp_path: Path, content: bytes, message: str) -> None:
    write_aflw2000(tmp_path, [0.0])
    (tmp_path / "image00002.mat").write_bytes(content)
    with pytest.raises(SourceError, match=rf"image00002\.mat: {message}"):
        list(read_entries(list_aflw2000(tmp_path)))


def test_missing_matlab_variable_raises_naming_it(tmp_path: Path) -> None:
    for write in (write_mat73, write_mat5):
        write(tmp_path / "a.mat", other=np.ones((2, 2)))
        file = MatlabFile(tmp_path / "a.mat")
        for ask in (lambda f: f.numbers("phisT"), lambda f: f.count("phisT"), lambda f: f.cell("phisT", 0)):
            with pytest.raises(SourceError, match=r"a\.mat: wanted a variable phisT in it"):
                ask(file)


def test_empty_circular_or_oversized_matlab_variable_raises_naming_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["empty"], file["endless"] = h5py.Empty("f"), h5py.SoftLink("/endless")
        vast = file.create_dataset("vast", shape=(10**7, 10**7), dtype="f8", chunks=(100, 100))  # 728 TiB
        file["cells"] = np.array([[vast.ref]], h5py.ref_dtype)
    read = MatlabFile(tmp_path / "a.mat")
    for name, ask in {
        "empty": read.count,
        "endless": read.numbers,
        "vast": read.numbers,
        "cells": lambda name: read.cell(name, 0),
    }.items():
        with pytest.raises(SourceError, match=rf"a\.mat: wanted a variable {name} in it"):
            ask(name)


@pytest.mark.parametrize(
    "name", [np.array([[-5]]), np.array([[0x110000]]), np.array([[np.nan]]), np.array([["a"]], object), {"a": 1}]
)
def test_cell_that_is_no_string_raises_naming_its_variable(tmp_path: Path, name: Any) -> None:
    write_mat5(tmp_path / "a.mat", nameList=["1.jpg", name])
    with pytest.raises(SourceError, match=r"a\.mat: wanted a variable nameList in it"):
        MatlabFile(tmp_path / "a.mat").strings("nameList")


def test_strings_are_read_from_character_codes_as_well(tmp_path: Path) -> None:
    write_mat73(tmp_path / "a.mat", nameList=[np.array([[*map(ord, name)]], np.uint16) for name in ("1.jpg", "ä.jpg")])
    assert MatlabFile(tmp_path / "a.mat").strings("nameList") == ["1.jpg", "ä.jpg"]


def test_folder_without_annotations_raises(tmp_path: Path) -> None:
    write_image(tmp_path / "image00002.jpg", np.zeros((*SIZE, 3), np.uint8))
    for layout in ("aflw2000", "300w-lp"):
        with pytest.raises(SourceError, match=r"no picture has a \.mat file of its name beside it"):
            read_faces(tmp_path, layout)
    with pytest.raises(SourceError, match=r"wanted COFW_test_color\.mat or COFW_test\.mat"):
        read_faces(tmp_path, "cofw")
