"""Every kind of source gives upright BGR frames with true times, and every broken one a plain sentence."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.container import InputContainer
from av.video.reformatter import Colorspace, VideoReformatter
from fakes import PaintedFace, PaintedSource, VideoRecipe, read_landmarks, write_video

from facetrack.pipeline.declared_size import declared_size
from facetrack.pipeline.image_source import natural_key
from facetrack.pipeline.sources import Retry, Source, open_source
from facetrack.pipeline.video_reader import CAMERA_NAPS, MediaClock, Reader
from facetrack.pipeline.video_source import LiveSource, VideoSource
from facetrack.tracker.errors import SourceError
from facetrack.tracker.types import Frame, UInt8

PATIENCE_S = 20.0  # only a failing test waits this long
CLIPS = Path(os.environ.get("FACETRACK_CLIPS", "no-clips"))


def times(source: Source) -> list[float]:
    with source:
        return [frame.time_s for frame in source]


def quadrants(height: int = 64, width: int = 96) -> UInt8:
    """Red, green over blue, white."""
    bgr = np.zeros((height, width, 3), np.uint8)
    half_y, half_x = height // 2, width // 2
    bgr[:half_y, :half_x], bgr[:half_y, half_x:] = (0, 0, 255), (0, 255, 0)
    bgr[half_y:, :half_x], bgr[half_y:, half_x:] = (255, 0, 0), (255, 255, 255)
    return bgr


def noise(count: int, height: int = 64, width: int = 96) -> list[UInt8]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


# --- recordings -------------------------------------------------------------------------------------------------


def test_a_video_gives_every_frame_with_its_number_time_and_picture(tmp_path: Path) -> None:
    painted = PaintedSource(count=20, faces=[PaintedFace((120, 100), (60, 30), 110, spin=0.5)])
    recipe = VideoRecipe("ffv1", "bgr0", options={})
    path = write_video(tmp_path / "walk.mkv", [frame.bgr for frame in painted], recipe)
    with open_source(path) as source:
        assert (source.name, source.kind, source.live, source.failed) == ("walk", "video", False, [])
        assert (source.size, source.rate, source.frames) == ((240, 320), Fraction(30), 20)
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(20))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(20) / 30, atol=6e-4)  # whole ms
    assert all(a.taken_s <= b.taken_s for a, b in pairwise(frames))
    for frame in frames:
        np.testing.assert_array_equal(frame.bgr, painted.picture(frame.index))
        np.testing.assert_allclose(read_landmarks(frame.bgr), painted.truth(frame.index)[0], atol=0.05)


def test_a_compressed_video_shows_things_in_their_places(tmp_path: Path) -> None:
    painted = PaintedSource(count=5, faces=[PaintedFace((120, 100), (60, 30), 110, spin=0.5)])
    path = write_video(tmp_path / "walk.mp4", [frame.bgr for frame in painted])
    with open_source(path) as source:
        for frame in source:
            found = read_landmarks(frame.bgr)
            # halved chroma and coarse rounding of colours: a few levels, each half a pixel of this chart
            np.testing.assert_allclose(found, painted.truth(frame.index)[0], atol=2.5)


def test_frames_are_contiguous_and_cannot_be_written_to(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(2, 50, 70))
    with open_source(path) as source:
        for frame in source:
            assert frame.bgr.flags.c_contiguous
            assert not frame.bgr.flags.writeable


def test_a_frame_keeps_its_pixels_while_later_ones_are_decoded(tmp_path: Path) -> None:
    pictures = noise(12)
    path = write_video(tmp_path / "a.mkv", pictures, VideoRecipe("ffv1", "bgr0", options={}))
    with open_source(path) as source:
        kept = [frame.bgr for frame in source]
    for got, wanted in zip(kept, pictures, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("start_s", [0.0, 3.0])
def test_variable_frame_rate_keeps_each_time_stamp_relative_to_the_start(tmp_path: Path, start_s: float) -> None:
    stamps = [0.0, 0.033, 0.05, 0.4, 0.41, 1.2, 1.25]
    recipe = VideoRecipe(times_s=[start_s + t for t in stamps])
    path = write_video(tmp_path / "vfr.mkv", noise(len(stamps)), recipe)
    np.testing.assert_allclose(times(open_source(path)), stamps, atol=1.1e-3)  # Matroska counts milliseconds


def test_frames_without_time_stamps_follow_each_other_by_the_frame_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", noise(6), VideoRecipe(options={"tune": "zerolatency"}))
    np.testing.assert_allclose(times(open_source(path)), np.arange(6) / 25, atol=1e-6)  # raw H.264: FFmpeg assumes 25


class _Stamped:
    """What the clock asks of a picture and of a stream."""

    time_base = Fraction(1, 1000)
    average_rate = guessed_rate = Fraction(25)

    def __init__(self, pts: int | None = None, start_time: int | None = None) -> None:
        self.pts, self.start_time = pts, start_time


@pytest.mark.parametrize(
    ("stamps_ms", "wanted_s"),
    [
        # even steps
        ([0, 40, 80], [0, 0.04, 0.08]),
        # a stamp twice: the second moves one tick behind, the rest stays
        ([0, 40, 40, 80], [0, 0.04, 0.041, 0.08]),
        # a small step back
        ([0, 40, 30, 80], [0, 0.04, 0.041, 0.08]),
        # no stamp: one period on
        ([0, None, None, 120], [0, 0.04, 0.08, 0.12]),
        # no stamp at first
        ([None, None, 500, 540], [0, 0.04, 0.08, 0.12]),
        # a new clock: goes on where the old one stopped
        ([90_000, 90_040, 0, 40], [0, 0.04, 0.08, 0.12]),
        # a long pause is the truth
        ([0, 40, 60_000], [0, 0.04, 60]),
    ],
)
def test_the_media_clock_rises_whatever_the_stamps_do(stamps_ms: list[int | None], wanted_s: list[float]) -> None:
    clock = MediaClock(_Stamped())  # type: ignore[arg-type]
    np.testing.assert_allclose([clock.time_of(_Stamped(pts)) for pts in stamps_ms], wanted_s, atol=1e-9)  # type: ignore[arg-type]


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirror_x", [False, True])
@pytest.mark.parametrize("mirror_y", [False, True])
def test_the_display_matrix_is_applied(tmp_path: Path, degrees: int, mirror_x: bool, mirror_y: bool) -> None:
    stored = quadrants()
    path = write_video(tmp_path / "turned.mp4", [stored], VideoRecipe(turn=(degrees, mirror_x, mirror_y)))
    shown = np.rot90(stored, degrees // 90)  # both counter-clockwise
    shown = shown[:, ::-1] if mirror_x else shown
    shown = shown[::-1] if mirror_y else shown
    with open_source(path) as source:
        (frame,) = source
    assert source.size == frame.size == shown.shape[:2]
    height, width = frame.size
    for y in (height // 4, 3 * height // 4):
        for x in (width // 4, 3 * width // 4):
            np.testing.assert_allclose(frame.bgr[y, x], shown[y, x], atol=12)


@pytest.mark.parametrize(("height", "width"), [(63, 95), (37, 50), (2, 2), (241, 17)])
def test_odd_sizes_keep_every_row_and_column(tmp_path: Path, height: int, width: int) -> None:
    (picture,) = noise(1, height, width)
    path = write_video(tmp_path / "odd.mkv", [picture], VideoRecipe("ffv1", "bgr0", options={}))
    with open_source(path) as source:
        (frame,) = source
    np.testing.assert_array_equal(frame.bgr, picture)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("ffv1", "gray", ".mkv"),
        ("ffv1", "gray10le", ".mkv"),
        ("ffv1", "bgra", ".mkv"),
        ("ffv1", "yuva420p", ".mkv"),
        ("ffv1", "yuv420p10le", ".mkv"),
        ("libx264", "yuv420p10le", ".mp4"),
        ("ffv1", "yuv422p", ".mkv"),
        ("prores_ks", "yuva444p10le", ".mov"),
        ("mjpeg", "yuvj420p", ".avi"),
        ("png", "rgb48be", ".mov"),
        ("qtrle", "argb", ".mov"),
        ("rawvideo", "bgr24", ".avi"),
    ],
)
def test_every_pixel_format_becomes_bgr(tmp_path: Path, codec: str, pix_fmt: str, suffix: str) -> None:
    grey = np.full((64, 96, 3), 150, np.uint8)
    grey[:32] = 60
    path = write_video(tmp_path / f"a{suffix}", [grey], VideoRecipe(codec, pix_fmt, options={}))
    with open_source(path) as source:
        (frame,) = source
    assert frame.bgr.shape == (64, 96, 3)
    np.testing.assert_allclose(frame.bgr[4:28], 60, atol=4)
    np.testing.assert_allclose(frame.bgr[36:60], 150, atol=4)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", [Colorspace.ITU709, Colorspace.ITU601, None])
def test_colours_follow_the_matrix_and_range_that_the_stream_names(
    tmp_path: Path, matrix: Colorspace | None, full_range: bool
) -> None:
    red = np.full((64, 96, 3), (30, 60, 200), np.uint8)  # the other matrix would be off by 10 or more
    colour_range = 2 if full_range else 1
    yuv = VideoReformatter().reformat(
        av.VideoFrame.from_ndarray(red, "bgr24"),
        format="yuv420p",
        dst_colorspace=matrix,
        dst_color_range=colour_range,
    )
    tag = {Colorspace.ITU709: 1, Colorspace.ITU601: 6, None: 2}[matrix]
    tags = {"colorspace": tag, "color_range": colour_range}
    path = write_video(tmp_path / "red.mp4", [yuv], VideoRecipe(tags=tags, options={"crf": "1"}))
    with open_source(path) as source:
        (frame,) = source
    np.testing.assert_allclose(frame.bgr.reshape(-1, 3).mean(0), (30, 60, 200), atol=5)


def test_a_file_paced_by_its_clock_is_live_and_gives_no_frame_before_its_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(6), VideoRecipe(times_s=[0, 0.01, 0.02, 0.05, 0.06, 0.1]))
    with open_source(path, realtime=True) as source:
        assert source.live
        frames = list(source)
    late = [frame.taken_s - frames[0].taken_s - frame.time_s for frame in frames]
    assert len(frames) == 6
    assert min(late) > -0.005


def test_closing_from_another_thread_ends_the_iteration_without_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(40), VideoRecipe(times_s=[i * 100.0 for i in range(40)]))
    source = open_source(path, realtime=True)  # the second frame is due in 100 s
    frames: list[Frame] = []
    first = threading.Event()

    def read() -> None:
        for frame in source:
            frames.append(frame)
            first.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert first.wait(PATIENCE_S)
    source.close()
    source.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert len(frames) == 1


# --- recordings that are broken ---------------------------------------------------------------------------------


def cut_copy(path: Path, share: float) -> Path:
    data = path.read_bytes()
    cut = path.with_name(f"cut{path.suffix}")
    cut.write_bytes(data[: int(len(data) * share)])
    return cut


@pytest.mark.parametrize(
    ("suffix", "recipe"),
    [
        (".mp4", VideoRecipe(mux={"movflags": "faststart"})),
        (".mp4", VideoRecipe(mux={"movflags": "frag_keyframe+empty_moov", "frag_duration": "200000"})),
        (".mkv", VideoRecipe()),
        (".webm", VideoRecipe("libvpx", options={"deadline": "realtime", "cpu-used": "8"})),
        (".avi", VideoRecipe("mpeg4", options={})),
    ],
)
def test_a_video_that_was_cut_off_gives_its_frames_and_then_says_so(
    tmp_path: Path, suffix: str, recipe: VideoRecipe
) -> None:
    whole = write_video(tmp_path / f"whole{suffix}", noise(40), recipe)
    with open_source(whole) as source:
        wanted = list(source)
    assert len(wanted) == 40
    got: list[Frame] = []
    with open_source(cut_copy(whole, 0.6)) as source, pytest.raises(SourceError) as caught:
        got.extend(source)
    assert 15 < len(got) < 30
    for a, b in zip(got, wanted, strict=False):
        assert a.time_s == pytest.approx(b.time_s, abs=1e-9)
        np.testing.assert_array_equal(a.bgr, b.bgr)  # the half frame at the break is not among them
    message = str(caught.value)
    assert f"breaks off after frame {len(got)} ({got[-1].time_s:.3f} s)" in message
    assert "\n" not in message


def test_an_mp4_cut_off_before_its_index_says_that(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", noise(20))
    with pytest.raises(SourceError, match=r"cut\.mp4: it was cut off before its index: it should be \d+ bytes"):
        open_source(cut_copy(whole, 0.6))


def test_damage_in_the_middle_is_noted_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", noise(10), VideoRecipe("png", "rgb24", options={}))
    with av.open(path) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    place, size = packets[4]
    data[place or 0 : (place or 0) + size] = bytes(size)
    path.write_bytes(data)
    with open_source(path) as source:
        frames = list(source)
    assert len(frames) == 9
    np.testing.assert_allclose([f.time_s for f in frames], np.delete(np.arange(10) / 30, 4), atol=1e-4)
    assert len(source.failed) == 1


def test_damage_at_the_end_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", noise(10), VideoRecipe("png", "rgb24", options={}))
    with av.open(path) as container:
        place, size = [(p.pos, p.size) for p in container.demux(video=0) if p.size][-1]
    data = bytearray(path.read_bytes())
    data[place or 0 : (place or 0) + size] = bytes(size)
    path.write_bytes(data)
    with open_source(path) as source, pytest.raises(SourceError, match=r"breaks off after frame 9 \(0\.267 s\)"):
        list(source)


def _audio(path: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 44_100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _no_frames(path: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("gone.mp4", str, "gone.mp4: not found"),
        ("empty.mp4", lambda path: path.touch(), "empty.mp4: the file is empty"),
        ("text.mp4", lambda path: path.write_text("Dear diary\n" * 99), "it is not a video that can be read"),
        ("notes.txt", lambda path: path.write_text("Dear diary\n" * 99), "it is a text, not a video"),
        ("noise.mp4", lambda path: path.write_bytes(np.random.default_rng(1).bytes(9999)), "it is not a video"),
        ("sound.mp4", _audio, "sound.mp4: holds no video stream, only audio"),
        ("still.avi", _no_frames, "still.avi: no frame can be decoded: its video stream is empty"),
        ("bare.mp4", _no_frames, "bare.mp4: holds no video stream"),
        ("folder", lambda path: path.mkdir(), "folder: a folder without pictures"),
        ("*.jpg", str, "matches no picture"),
        ("broken.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "broken.png: is not a whole picture"),
        ("empty.png", lambda path: path.touch(), "empty.png: the file is empty"),
    ],
)
def test_what_cannot_be_a_source_is_refused_in_one_clear_line(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(SourceError) as caught, open_source(tmp_path / name) as source:
        list(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_camera_is_one_clear_line() -> None:
    with pytest.raises(SourceError, match=r"^camera 97: .*plug one in") as caught:
        open_source("97")
    assert "\n" not in str(caught.value)


def test_an_address_that_nobody_answers_is_one_clear_line_without_the_password() -> None:
    with pytest.raises(SourceError, match=r"rtsp://127\.0\.0\.1:9/live: cannot be opened: ") as caught:
        open_source("rtsp://user:secret@127.0.0.1:9/live")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        # mp4: two boxes, the second longer than the file
        (struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4s", 1000, b"mdat"), 1016),
        # mp4: a 64-bit length
        (struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4sQ", 1, b"mdat", 5_000_000_000), 5_000_000_016),
        # mp4: the last box reaches to the end, whatever that is
        (struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4s", 0, b"mdat"), None),
        # AVI: 4 bytes of form type + 96
        (b"RIFF" + struct.pack("<I", 100) + b"AVI ", 108),
        # Matroska: a head of 2 bytes, a segment of 16 bytes (one-byte length), then of unknown length
        (b"\x1a\x45\xdf\xa3\x82xx\x18\x53\x80\x67\x90", 28),
        (b"\x1a\x45\xdf\xa3\x82xx\x18\x53\x80\x67\xff", None),
        # eight-byte length, as muxers write it
        (b"\x1a\x45\xdf\xa3\x82xx\x18\x53\x80\x67\x01" + (1000).to_bytes(7, "big"), 1019),
        (b"\x1a\x45\xdf\xa3\x82xx\x18\x53\x80\x67\x01" + b"\xff" * 7, None),
        # something else, nothing, a stub
        (b"\x47" * 188, None),
        (b"", None),
        (b"\x1a\x45\xdf\xa3", None),
    ],
)
def test_the_declared_size_is_read_from_the_outermost_elements(
    tmp_path: Path, content: bytes, size: int | None
) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    assert declared_size(path) == size


# --- pictures ---------------------------------------------------------------------------------------------------


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


def test_a_glob_takes_the_name_of_its_folder_and_names_pictures_relative_to_it(tmp_path: Path) -> None:
    write_images(tmp_path / "day", "one/a1.png", "two/a1.png", "two/b1.png", "two/a1.jpg")
    with open_source(str(tmp_path / "day" / "*" / "a*.png")) as source:
        assert source.name == "day"
        assert [frame.name for frame in source] == ["one/a1.png", "two/a1.png"]
    with open_source(str(tmp_path / "day" / "**" / "*.jpg")) as source:
        assert [frame.name for frame in source] == ["two/a1.jpg"]


def test_a_file_whose_name_looks_like_a_glob_is_still_a_file(tmp_path: Path) -> None:
    write_images(tmp_path, "a[1].png")
    with open_source(tmp_path / "a[1].png") as source:
        assert source.name == "a[1]"
        assert [frame.name for frame in source] == ["a[1].png"]


def test_a_video_whose_name_holds_a_colon_is_still_a_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "plain.mkv", noise(2)).rename(tmp_path / "http:12:30 %02d.mkv")
    assert len(times(open_source(path))) == 2


def test_a_broken_picture_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png", "c.png", "d.jpg")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    with open_source(tmp_path) as source:
        assert [(frame.index, frame.name) for frame in source] == [(0, "a.png"), (1, "c.png"), (2, "d.jpg")]
    assert [name for name, _ in source.failed] == ["b.png"]
    assert "not a whole picture" in source.failed[0][1]


def test_a_folder_of_nothing_but_broken_pictures_is_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"nothing")
    with open_source(tmp_path) as source, pytest.raises(SourceError, match=r"^a\.png: .* nor can the 1 others"):
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


def test_the_cameras_orientation_of_a_jpeg_is_applied(tmp_path: Path) -> None:
    stored = quadrants()
    jpeg = cv2.imencode(".jpg", stored)[1].tobytes()
    tiff = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, 6) + bytes(4)  # 6: turn clockwise to show
    exif = b"Exif\0\0" + tiff
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    with open_source(tmp_path / "a.jpg") as source:
        (frame,) = source
    assert frame.size == (96, 64)
    assert np.abs(frame.bgr.astype(int) - np.rot90(stored, -1)).mean() < 3  # JPEG smears a little at the edges


def test_closing_stops_a_folder(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    source = open_source(tmp_path)
    for frame in source:
        assert frame.index == 0
        source.close()


def test_natural_order_compares_numbers_as_numbers() -> None:
    wanted = ["1", "2a", "2b", "10", "a1b2", "a1b10", "a01b11", "B3", "img", "img-1"]
    assert sorted(sorted(wanted), key=natural_key) == wanted


# --- cameras and streams ----------------------------------------------------------------------------------------

PROMPT = Retry(attempts=3, first_wait_s=0.0)


class Plugs:
    """A camera that is unplugged after each clip; then it is gone."""

    def __init__(self, *clips: Path, fail: int = 0) -> None:
        self.clips = list(clips)
        self.fail = fail  # times that opening fails between two clips
        self.left = fail
        self.opened = 0

    def open(self) -> InputContainer:
        if self.opened and self.left:
            self.left -= 1
            raise av.error.ConnectionRefusedError(111, "Connection refused")
        if not self.clips:
            raise av.error.FileNotFoundError(2, "No such device")
        self.opened += 1
        self.left = self.fail
        return av.open(self.clips.pop(0))


def live(plugs: Plugs, retry: Retry | None = PROMPT) -> LiveSource:
    return LiveSource(plugs.open(), plugs.open, label="camera 0", name="camera0", kind="camera", retry=retry)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mkv", noise(4), VideoRecipe("ffv1", "bgr0", options={}))


def test_a_live_graph_counts_frames_and_takes_its_time_from_the_clock() -> None:
    with open_source("lavfi:testsrc=size=64x48:rate=30:duration=0.5") as source:
        assert (source.kind, source.live, source.frames, source.size) == ("stream", True, None, (48, 64))
        assert source.rate == 30
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(15))
    assert frames[0].time_s == 0
    began_s = frames[0].taken_s
    for frame in frames:
        assert frame.time_s == pytest.approx(frame.taken_s - began_s)
    assert all(a.time_s < b.time_s for a, b in pairwise(frames))


@pytest.mark.parametrize("fail", [0, 2])
def test_a_lost_camera_is_opened_again_and_frames_count_on(clip: Path, fail: int) -> None:
    plugs = Plugs(clip, clip, clip, fail=fail)
    frames: list[Frame] = []
    with live(plugs) as source, pytest.raises(SourceError) as caught:
        frames.extend(source)
    assert plugs.opened == 3
    assert [frame.index for frame in frames] == list(range(12))
    assert all(a.time_s < b.time_s for a, b in pairwise(frames))
    message = str(caught.value)
    assert message.startswith("camera 0: lost after frame 12 (")
    assert "3 times" in message
    assert "\n" not in message


def test_the_number_of_attempts_is_bounded_and_begins_anew_after_a_frame(clip: Path) -> None:
    with live(Plugs(clip, clip, fail=3)) as source, pytest.raises(SourceError, match="lost after frame 4 "):
        list(source)
    with live(Plugs(clip, clip, clip, fail=2)) as source, pytest.raises(SourceError, match="lost after frame 12 "):
        list(source)


def test_a_camera_that_comes_back_without_a_picture_counts_as_lost(clip: Path, tmp_path: Path) -> None:
    _no_frames(tmp_path / "dark.avi")
    frames: list[Frame] = []
    with live(Plugs(clip, tmp_path / "dark.avi", clip)) as source, pytest.raises(SourceError):
        frames.extend(source)
    assert len(frames) == 8


def test_closing_during_the_wait_for_a_lost_camera_ends_it_at_once(clip: Path) -> None:
    plugs = Plugs(clip, fail=0)
    source = live(plugs, Retry(attempts=1, first_wait_s=10 * PATIENCE_S))
    frames: list[Frame] = []
    fourth = threading.Event()

    def read() -> None:
        for frame in source:
            frames.append(frame)
            if len(frames) == 4:
                fourth.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert fourth.wait(PATIENCE_S)
    source.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


class Drowsy:
    """A container whose camera has nothing ready at first, as those of macOS say it."""

    def __init__(self, container: InputContainer, naps: int) -> None:
        self._container, self.naps = container, naps
        self.streams = container.streams

    def demux(self, stream: object) -> Iterator[object]:
        if self.naps:
            self.naps -= 1
            raise av.error.BlockingIOError(35, "Resource temporarily unavailable")
        return self._container.demux(stream)

    def close(self) -> None:
        self._container.close()


def test_a_camera_that_is_not_ready_is_asked_again(clip: Path) -> None:
    reader = Reader(Drowsy(av.open(clip), 3), "camera 0", live=True)  # type: ignore[arg-type]
    count = 0
    picture = reader.first
    while picture is not None:
        count += 1
        picture = reader.read()
    reader.close()
    assert count == 4


def test_a_camera_that_is_never_ready_is_given_up(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facetrack.pipeline.video_reader.CAMERA_NAP_S", 0.0)
    container = Drowsy(av.open(clip), CAMERA_NAPS + 1)
    with pytest.raises(av.error.BlockingIOError):
        Reader(container, "camera 0", live=True)  # type: ignore[arg-type]


def test_a_stream_that_gives_only_damage_is_given_up(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", noise(310, 8, 8), VideoRecipe("png", "rgb24", options={}))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x89PNG", b"XXXX"))
    with pytest.raises(SourceError, match="no frame can be read"):
        VideoSource(av.open(path), label="a", name="a")


# --- real clips -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CLIPS.is_dir(), reason="set FACETRACK_CLIPS to the folder of real clips")
@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("portrait-phone.mp4", (1280, 720), 352),
        ("lost-and-found.mov", (540, 960), 169),
        ("no-face.mp4", (540, 960), 95),
    ],
)
def test_real_clips_give_all_their_frames(name: str, size: tuple[int, int], count: int) -> None:
    with open_source(CLIPS / name) as source:
        assert source.size == size
        stamps = [frame.time_s for frame in source]
    assert len(stamps) == count
    assert stamps[0] == 0
    assert all(a < b for a, b in pairwise(stamps))
