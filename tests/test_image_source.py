"""Pictures: order, names, formats, and broken ones among them."""

from __future__ import annotations

import logging
from fractions import Fraction
from glob import glob
from pathlib import Path, PureWindowsPath
from typing import Any

import av
import cv2
import numpy as np
import pytest
from fakes import (
    jpeg_with_orientation,
    quadrants,
)

from facetrack.pipeline.image_source import expand_glob, glob_root, natural_key
from facetrack.pipeline.sidecar import identify_input
from facetrack.pipeline.sources import open_source
from facetrack.tracker.errors import ConfigError, SourceError


def write_images(folder: Path, *names: str) -> None:
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), np.full((8 + value, 12, 3), 10 * value, np.uint8))


def test_a_folder_gives_its_pictures_in_natural_order_with_their_names(tmp_path: Path) -> None:
    shots = tmp_path / "shots"
    write_images(shots, "img10.png", "img2.png", "IMG1.PNG", "b.bmp")
    (shots / "notes.txt").write_text("no picture")
    (shots / "._img2.png").write_text("left by a Macintosh")
    with open_source(shots) as source:
        assert (source.name, source.kind, source.live) == ("shots", "images", False)
        assert (source.frames, source.size, source.rate) == (4, None, None)
        frames = list(source)
    assert [frame.name for frame in frames] == ["b.bmp", "IMG1.PNG", "img2.png", "img10.png"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.time_s for frame in frames] == [0, 1, 2, 3]
    assert [frame.size for frame in frames] == [(11, 12), (10, 12), (9, 12), (8, 12)]


def test_frames_with_a_frame_rate_keep_their_times_and_indices_despite_bad_ones(tmp_path: Path) -> None:
    for name, size in (("f2.png", (8, 12)), ("f10.png", (8, 12)), ("f3.png", (12, 8)), ("f11.png", (8, 12))):
        assert cv2.imwrite(str(tmp_path / name), np.zeros((*size, 3), np.uint8))
    (tmp_path / "f4.png").write_text("no picture")
    for spec in (tmp_path, f"{tmp_path}/f*.png"):
        with open_source(spec, frame_rate=30000 / 1001) as source:
            assert (source.kind, source.live, source.size, source.frames) == ("video", False, (8, 12), 5)
            assert source.rate == Fraction(30000, 1001)
            frames = list(source)
        assert [(frame.name, frame.index) for frame in frames] == [("f2.png", 0), ("f10.png", 3), ("f11.png", 4)]
        assert [frame.time_s for frame in frames] == pytest.approx([0, 3 * 1001 / 30000, 4 * 1001 / 30000])
        assert source.failed == [
            ("f3.png", "is 8x12, but the first frame of the video is 12x8"),
            ("f4.png", "is not a complete picture in a format that can be decoded; save it as PNG or JPEG"),
        ]


def test_frame_folder_without_a_readable_frame_raises_on_open(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(SourceError, match=r"1\.png: is not a complete picture .*, nor can the other$"):
        open_source(tmp_path, frame_rate=25)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e-9, 10**400, "25"])
def test_invalid_frame_rate_raises(rate: Any, tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    with pytest.raises(ConfigError, match=r"^frame_rate: wanted frames per second, at most 1,000,000, got "):
        open_source(tmp_path, frame_rate=rate)


def test_frame_rate_may_be_a_numpy_number(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    for kind in (np.float32, np.float64, np.int32):
        with open_source(tmp_path, frame_rate=kind(25)) as source:
            assert source.rate == 25


@pytest.mark.parametrize("name", ["a.png", "clip.mp4", "0", "rtsp://me:secret@host/path"])
def test_frame_rate_raises_for_anything_but_a_folder_or_glob_of_pictures(name: str, tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    spec = str(tmp_path / "a.png") if name == "a.png" else name
    with pytest.raises(ConfigError, match="is neither a folder nor a glob of pictures") as refused:
        open_source(spec, frame_rate=25)
    assert "secret" not in str(refused.value)


def test_files_left_out_of_a_folder_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, "a.png")
    for name in ("b.HEIC", "c.gif", "d.heic", "README", ".hidden"):
        (tmp_path / name).touch()
    for name in ("one", "two", ".three"):
        (tmp_path / name).mkdir()
    with caplog.at_level(logging.WARNING, "facetrack"), open_source(tmp_path) as source:
        assert len(list(source)) == 1
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}: left out: 4 other files (.gif, .heic, without a suffix), "
        f'2 folders (a glob such as "{tmp_path}/**/*.jpg" includes them)'
    ]


def test_glob_follows_linked_but_not_hidden_folders_and_the_sidecar_agrees(
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "day", "a/p.png", ".thumbs/q.png")
    write_images(tmp_path / "real", "r.png")
    (tmp_path / "day/link").symlink_to(tmp_path / "real", target_is_directory=True)
    pattern = str(tmp_path / "day/**/*.png")
    with open_source(pattern) as source:
        assert [frame.name for frame in source] == ["a/p.png", "link/r.png"]
    assert identify_input(pattern)["files"] == 2


def test_symlink_to_a_parent_folder_yields_no_picture_twice(tmp_path: Path) -> None:
    write_images(tmp_path / "day", "a/p.png", "b.png")
    (tmp_path / "day/a/latest").symlink_to(tmp_path / "day", target_is_directory=True)
    (tmp_path / "day/0.png").symlink_to(tmp_path / "day/b.png")
    pattern = str(tmp_path / "day/**/*.png")
    with open_source(pattern) as source:
        assert [frame.name for frame in source] == ["0.png", "a/p.png", "b.png"]  # a linked file is a name of its own
    assert identify_input(pattern)["files"] == 3


@pytest.mark.parametrize(
    "pattern", ["**/*.png", "**", "a/**", "*/**/*.png", "**/.c/*.png", "**/c/**/*.png", "*", "[ab]/*"]
)
def test_glob_without_links_matches_python_glob(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "a/p.png", "a/c/q.png", "a/.c/r.png", "b/c/d/s.png", ".e/t.png", "u.png", "[a]/v.png")
    for where in (Path(), tmp_path):
        monkeypatch.chdir(tmp_path)
        wanted = {Path(match) for match in glob(str(where / pattern), recursive=True)}  # noqa: PTH207 - the oracle
        assert expand_glob(str(where / pattern)) == sorted(wanted, key=str)


def test_a_glob_takes_the_name_of_its_folder_and_names_pictures_relative_to_it(tmp_path: Path) -> None:
    write_images(tmp_path / "day", "one/a1.png", "two/a1.png", "two/b1.png", "two/a1.jpg")
    with open_source(str(tmp_path / "day" / "*" / "a*.png")) as source:
        assert source.name == "day"
        assert [frame.name for frame in source] == ["one/a1.png", "two/a1.png"]
    with open_source(str(tmp_path / "day" / "**" / "*.jpg")) as source:
        assert [frame.name for frame in source] == ["two/a1.jpg"]


@pytest.mark.parametrize(
    ("glob", "fixed"),
    [
        (r"\\?\C:\videos\*.mp4", r"\\?\C:\videos"),
        (r"C:\videos\**\a.mp4", r"C:\videos"),
        (r"\\host\share\?.mp4", "\\\\host\\share\\"),
        ("*.mp4", "."),
        (r"videos\a.mp4", r"videos\a.mp4"),
    ],
)
def test_fixed_part_of_a_windows_glob_keeps_long_path_and_share_prefixes(glob: str, fixed: str) -> None:
    assert glob_root(PureWindowsPath(glob)) == PureWindowsPath(fixed)  # type: ignore[arg-type]


def test_broken_picture_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png", "c.png", "d.jpg")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    with open_source(tmp_path) as source:
        assert [(frame.index, frame.name) for frame in source] == [(0, "a.png"), (1, "c.png"), (2, "d.jpg")]
    assert [name for name, _ in source.failed] == ["b.png"]
    assert "not a complete picture" in source.failed[0][1]


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".PNG"])
def test_ignored_pages_of_multi_page_pictures_are_reported_once(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pages = [np.full((48, 64, 3), value, np.uint8) for value in (10, 100, 200)]
    write_images(tmp_path, "0.tif", "1.png", "2.webp")
    for name in ("a", "b"):
        file = tmp_path / f"{name}{suffix}"
        if suffix == ".tif":
            assert cv2.imwritemulti(str(file), pages)
        else:
            with av.open(file, "w", format="webp" if suffix == ".webp" else "apng") as container:
                stream = container.add_stream("libwebp_anim" if suffix == ".webp" else "apng", rate=5)
                stream.width, stream.height = 64, 48
                stream.pix_fmt = "bgra" if suffix == ".webp" else "rgb24"
                for page in pages:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(page, "bgr24")))
                container.mux(stream.encode(None))
    with caplog.at_level(logging.WARNING, "facetrack"), open_source(tmp_path) as source:
        assert len(list(source)) == 5
    wanted = "has 3 pages, of which only the first is used; the same goes for 1 other picture"
    assert [record.getMessage() for record in caplog.records] == [f"a{suffix}: {wanted}"]


def test_pages_of_files_with_non_ascii_paths_are_not_counted_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, "größe/a.png", "b.png")
    counted: list[str] = []
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(cv2, "imcount", lambda name: counted.append(name) or 1)
    for name in ("größe/a.png", "b.png"):
        with open_source(tmp_path / name) as source:
            assert len(list(source)) == 1
    assert counted == [str(tmp_path / "b.png")]


def test_folder_of_only_broken_pictures_raises(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"nothing")
    with open_source(tmp_path) as source, pytest.raises(SourceError, match=r"^a\.png: .* nor can the other$"):
        list(source)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_grey_and_alpha_pictures_become_bgr(tmp_path: Path, suffix: str, channels: int) -> None:
    deep = np.full((8, 8, channels), (np.array([2000, 30_000, 65_535, 9000])[:channels]), np.uint16)
    assert cv2.imwrite(str(tmp_path / f"a{suffix}"), deep)
    with open_source(tmp_path / f"a{suffix}") as source:
        (frame,) = source
    wanted = (deep[..., :3] / 257).repeat(3 if channels == 1 else 1, -1)
    np.testing.assert_allclose(frame.bgr, wanted, atol=1)
    assert not frame.bgr.flags.writeable


def test_exif_orientation_of_a_jpeg_is_applied(tmp_path: Path) -> None:
    stored = quadrants()
    (tmp_path / "a.jpg").write_bytes(jpeg_with_orientation(stored, 6))  # turn clockwise to show
    with open_source(tmp_path / "a.jpg") as source:
        (frame,) = source
    assert frame.size == (96, 64)
    assert np.abs(frame.bgr.astype(int) - np.rot90(stored, -1)).mean() < 3  # JPEG smears a little at the edges


def test_closing_the_source_stops_its_iteration(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    source, given = open_source(tmp_path), []
    for frame in source:
        given.append(frame.index)
        source.close()
    assert given == [0]


def test_natural_order_compares_numbers_as_numbers() -> None:
    wanted = ["1", "2a", "2b", "10", "a1b2", "a1b10", "a01b11", "B3", "img", "img-1"]
    assert sorted(sorted(wanted), key=natural_key) == wanted
