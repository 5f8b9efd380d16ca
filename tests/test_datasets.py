"""Readers: 1-based files come out 0-based, several faces stay together, a broken file is named."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from facetrack.tracker.errors import ConfigError, SourceError
from facetrack.training.datasets import (
    Sample,
    images_below,
    one_face_each,
    read_faces,
    read_images,
    read_pts,
    read_pts_folder,
)

PTS = "version: 1\nn_points: 3\n{\n1.0 1.0\n10.5 20.25\n-3 7\n}\n"
HUGE = struct.pack("<2s8x2I2i2H124x", b"BM", 54, 40, 65535, 65535, 1, 24)  # a BMP of 12 GB, says its head
ZERO_BASED = [[0.0, 0.0], [9.5, 19.25], [-4.0, 6.0]]


def write_picture(path: Path, colour: int = 128) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.full((12, 16, 3), colour, np.uint8))[1].tobytes())
    return path


def write_pts(path: Path, text: str = PTS) -> Path:
    path.write_bytes(text.encode())
    return path


def test_one_based_points_are_read_as_zero_based(tmp_path: Path) -> None:
    points = read_pts(write_pts(tmp_path / "a.pts"))
    assert points.tolist() == ZERO_BASED
    assert points.dtype == np.float32


@pytest.mark.parametrize(
    "text",
    [
        "version: 1.0\nn_points: 3\n{\n1.0 1.0\n10.5 20.25\n-3 7\n}",
        "version: 1\nn_points:3\n{\n1.0 1.0 \n10.5\t20.25  \n-3 7\n}\n\n",
        "version: 1\r\nn_points:  3\r\n{\r\n1.0 1.0\r\n10.5 20.25\r\n-3 7\r\n}\r\n",
        "n_points : 3\n{\n\n1.0 1.0\n\n10.5 20.25\n-3 7\n\n}\n",
        "version: 1\n{\n1.0 1.0\n10.5 20.25\n-3 7 }",
        "version: 1\nn_points: 3\n{ 1.0 1.0\n1.05e1 20.25\n-3 7\n}\nname: caf\xe9",
    ],
    ids=["no last newline", "blanks", "windows", "empty lines", "no count", "inline brace"],
)
def test_pts_variants_of_other_programs_are_accepted(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pts").write_bytes(text.encode("latin-1"))
    assert read_pts(tmp_path / "a.pts").tolist() == ZERO_BASED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no \{ ... \} block"),
        ("1 2\n3 4\n", r"no \{ ... \} block"),
        ("n_points: 1\n{\n1 2\n", r"no \{ ... \} block"),
        ("n_points: 4\n{\n1 2\n3 4\n}", "n_points says 4, the block holds 2"),
        ("n_points: 2\n{\n1 2\n3\n}", "not a .pts file"),
        ("n_points: 2\n{\n1 2 3\n3 4 5\n}", "wanted two numbers a line"),
        ("n_points: 1\n{\n1 two\n}", "could not convert"),
        ("n_points: 1\n{\n1 2" + "\0" * 999 + "\n}", r"could not convert string to float: '2[\\x0]{63}\.\.\.$"),
        ("n_points: 0\n{\n}", "wanted two numbers a line"),
        ("n_points: 2\n{\n1 2\n-inf 3\n}", "wanted coordinates up to 1048576 pixels, got inf"),
        ("n_points: 2\n{\n1 2\n3 1e39\n}", r"wanted coordinates up to 1048576 pixels, got 1e\+39"),
    ],
)
def test_a_broken_pts_file_is_named_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    path = write_pts(tmp_path / "broken.pts", text)
    with pytest.raises(SourceError, match=rf"broken\.pts: .*{message}"):
        read_pts(path)


def test_nan_in_a_pts_file_is_a_point_not_annotated(tmp_path: Path) -> None:
    points = read_pts(write_pts(tmp_path / "a.pts", "n_points: 2\n{\n1 2\nnan nan\n}"))
    np.testing.assert_array_equal(points, [[0, 1], [np.nan, np.nan]])


def test_points_and_boxes_beyond_any_picture_size_are_refused() -> None:
    near, far = np.ones((1, 4, 2), np.float32), np.float32([[0, 0, 9, np.inf]])
    Sample(Path("a.jpg"), near * np.nan, b"", boxes=far[:, :2].repeat(2, 1))
    with pytest.raises(SourceError, match=r"a\.jpg: wanted coordinates up to 1048576 pixels, got 1e\+20"):
        Sample(Path("a.jpg"), near * np.float32(-1e20), b"")
    with pytest.raises(SourceError, match=r"a\.jpg: wanted coordinates up to 1048576 pixels, got inf"):
        Sample(Path("a.jpg"), near, b"", boxes=far)


def test_a_missing_pts_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.pts: cannot be read: No such file"):
        read_pts(tmp_path / "none.pts")


def test_pts_folder_pairs_pictures_and_points_at_any_depth_in_order(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.jpg", "a/unlabelled.jpg", "top.JPG"):
        write_picture(tmp_path / name)
    for name in ("b/2.pts", "a/1.pts", "top.pts", "a/orphan.pts"):
        write_pts(tmp_path / name)
    samples = list(read_pts_folder(tmp_path))
    assert [sample.path.relative_to(tmp_path).as_posix() for sample in samples] == ["a/1.jpg", "b/2.png", "top.JPG"]
    for sample in samples:
        assert sample.points.tolist() == [ZERO_BASED]
        assert sample.bgr().shape == (12, 16, 3)
        assert sample.encoded == sample.path.read_bytes()


def test_macos_metadata_files_are_not_pictures(tmp_path: Path) -> None:
    for name in ("1.jpg", "a/2.jpg"):
        write_picture(tmp_path / name)
        write_pts((tmp_path / name).with_suffix(".pts"))
        for suffix in (".jpg", ".pts"):
            (tmp_path / name).with_name(f"._{Path(name).stem}{suffix}").write_bytes(b"\0\5\x16\7")
    assert [sample.path.name for sample in read_pts_folder(tmp_path)] == ["1.jpg", "2.jpg"]
    assert [path.name for path in images_below(tmp_path)] == ["1.jpg", "2.jpg"]


def test_folder_in_the_wrong_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no pictures found"):
        list(read_pts_folder(tmp_path / "none"))
    write_picture(tmp_path / "a.jpg")
    with pytest.raises(SourceError, match=r"no picture has a \.pts file"):
        list(read_pts_folder(tmp_path))
    with pytest.raises(SourceError, match=r"labels\.csv: cannot be read"):
        list(read_faces(tmp_path, "table"))


def write_table(folder: Path, *lines: str, header: str = "file,ax,ay,bx,by") -> Path:
    (folder / "labels.csv").write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
    return folder


def test_rows_of_one_picture_become_one_sample_with_several_faces(tmp_path: Path) -> None:
    write_picture(tmp_path / "group.png")
    write_picture(tmp_path / "deep/alone.png")
    write_table(tmp_path, "group.png,1,2,3,4", "deep/alone.png,5,6,7,8", "group.png,9.5,10,11,12")
    group, alone = read_faces(tmp_path, "table")
    assert group.points.tolist() == [[[1, 2], [3, 4]], [[9.5, 10], [11, 12]]]  # 0-based already
    assert alone.points.tolist() == [[[5, 6], [7, 8]]]
    assert alone.path == tmp_path / "deep/alone.png"


def test_empty_cell_is_an_unannotated_point_and_empty_line_is_skipped(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    write_table(tmp_path, "a.png,1,2,,", "", header="\ufefffile,ax,ay,bx,by")
    (sample,) = read_faces(tmp_path, "table")
    np.testing.assert_array_equal(sample.points, [[[1, 2], [np.nan, np.nan]]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png,1,2,3", "line 3: wanted 5 cells, got 4"),
        ("a.png,1,2,3,4,5", "line 3: wanted 5 cells, got 6"),
        ("a.png,1,2,three,4", "line 3: could not convert string to float: 'three'"),
        ("a.png,1,2," + "x" * 999 + ",4", r"line 3: could not convert string to float: 'x{64}\.\.\.$"),
        ("a.png,1,2,1e39,4", r"labels\.csv, line 3: wanted coordinates up to 1048576 pixels, got 1e\+39"),
        ("none.png,1,2,3,4", r"none\.png: cannot be read: No such file"),
        ("\0.png,1,2,3,4", r"\.png: cannot be read: embedded null"),
        ("a" * 131073, r"labels\.csv: cannot be read: field larger than field limit"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    write_picture(tmp_path / "a.png")
    write_table(tmp_path, "a.png,1,2,3,4", line)
    with pytest.raises(SourceError, match=message):
        list(read_faces(tmp_path, "table"))


@pytest.mark.parametrize("text", ["", "file,ax,ay\n", "a.png,1,2\n", "file,ax\na.png,1\n", "file,a,b,c\na.png,1,2,3\n"])
def test_a_table_without_head_or_faces_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SourceError, match=r"labels\.csv: wanted a first line `file` and x, y"):
        list(read_faces(tmp_path, "table"))


def test_pictures_without_faces_are_samples_with_zero_faces(tmp_path: Path) -> None:
    for name in ("b.png", "a/1.bmp", "notes.txt"):
        write_picture(tmp_path / name) if name != "notes.txt" else (tmp_path / name).write_text("no picture")
    samples = list(read_images(tmp_path))
    assert [sample.path.name for sample in samples] == ["1.bmp", "b.png"]
    assert samples[0].points.shape == (0, 0, 2)
    assert [path.name for path in images_below(tmp_path)] == ["1.bmp", "b.png"]


def test_several_faces_can_be_split_into_samples_of_one() -> None:
    points = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    group, nobody = Sample(Path("a"), points, b"x"), Sample(Path("b"), points[:0], b"y")
    single = one_face_each([group, nobody])
    assert [s.points.tolist() for s in single] == [[face] for face in points.tolist()]
    assert {s.encoded for s in single} == {b"x"}


@pytest.mark.parametrize("content", [b"", b"no picture", HUGE], ids=["empty", "text", "huge"])
def test_a_picture_that_cannot_be_decoded_is_named(content: bytes) -> None:
    broken = Sample(Path("broken.png"), np.empty((0, 5, 2), np.float32), content)
    for read in (broken.bgr, broken.check_decodable):
        with pytest.raises(SourceError, match=r"broken\.png: not a readable picture"):
            read()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg"])
def test_picture_one_pixel_high_is_accepted(suffix: str) -> None:
    encoded = cv2.imencode(suffix, np.zeros((1, 7, 3), np.uint8))[1].tobytes()
    Sample(Path("small"), np.empty((0, 5, 2), np.float32), encoded).check_decodable()


def test_grey_and_transparent_pictures_come_out_in_three_colours(tmp_path: Path) -> None:
    for name, shape in (("grey", (5, 6)), ("alpha", (5, 6, 4))):
        encoded = cv2.imencode(".png", np.full(shape, 200, np.uint8))[1].tobytes()
        picture = Sample(tmp_path / name, np.empty((0, 5, 2), np.float32), encoded).bgr()
        assert picture.shape == (5, 6, 3)
        assert (picture == 200).all()


def test_faces_are_read_in_the_layout_that_is_asked_for(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    write_pts(tmp_path / "a.pts")
    write_table(tmp_path, "a.png,1,2,3,4")
    assert next(read_faces(tmp_path, "pts")).points.shape == (1, 3, 2)
    assert next(read_faces(tmp_path, "table")).points.shape == (1, 2, 2)
    with pytest.raises(ConfigError, match=r"layout must be one of pts, table, 300w, .*, got 'coco'"):
        read_faces(tmp_path, "coco")


def test_pts_files_without_a_picture_are_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As .PTS, of a picture in a format that is not read, and alone."""
    for name in ("a.jpg", "b.jpg", "c.webp"):
        (tmp_path / name).write_bytes(b"a picture")
    text = "version: 1\nn_points: 2\n{\n1 1\n2 2\n}\n"
    for name in ("a.pts", "b.PTS", "c.pts", "d.pts", "._a.pts"):
        (tmp_path / name).write_text(text)
    assert [sample.path.name for sample in read_pts_folder(tmp_path)] == ["a.jpg", "b.jpg"]
    told = f"{tmp_path}: 2 .pts files have no picture (.bmp, .jpeg, .jpg, .png), as c"
    assert caplog.messages == [told]
