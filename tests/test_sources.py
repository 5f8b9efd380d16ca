"""What a user may write for a source, and the plain sentence for what is none."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from glob import glob
from itertools import cycle, islice, pairwise
from pathlib import Path
from traceback import format_exception
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from fakes import (
    VideoRecipe,
    feeding,
    noise,
    quadrants,
    serving,
    write_no_frames,
    write_video,
)
from fakes_stream import served_once

from facetrack import Retry
from facetrack.pipeline.address import NON_BLOCK, PYAV_FOR_GPU, accelerator
from facetrack.pipeline.camera_mode import CameraMode
from facetrack.pipeline.image_source import holds_pictures
from facetrack.pipeline.sidecar import where
from facetrack.pipeline.source import Source, is_same_file, is_url, without_credentials
from facetrack.pipeline.sources import open_source
from facetrack.tracker.errors import ConfigError, SourceError
from facetrack.tracker.types import Frame

CLIPS = Path(os.environ.get("FACETRACK_CLIPS", "no-clips"))


def _audio(path: Path, *, cover: bool = False) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=44_100)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame(64, 64, "yuvj420p")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 44_100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _recordings(folder: Path, *names: str) -> None:
    folder.mkdir()
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("gone.mp4", str, "gone.mp4: not found"),
        ("empty.mp4", lambda path: path.touch(), "empty.mp4: the file is empty; copy or record it again"),
        (
            "text.mp4",
            lambda path: path.write_text("Dear diary\n" * 99),
            "); it contains text; name the video itself",
        ),
        ("notes.txt", lambda path: path.write_text("Dear diary\n" * 99), "; name a video or a picture"),
        (
            "noise.mp4",
            lambda path: path.write_bytes(np.random.default_rng(1).bytes(9999)),
            "); copy or record it again",
        ),
        (
            "noise.x",
            lambda path: path.write_bytes(np.random.default_rng(1).bytes(9999)),
            "again, or convert it to .mp4",
        ),
        ("days", lambda path: (path / "1").mkdir(parents=True), 'days/**/*.jpg" for those in its subfolders'),
        ("sound.mp4", _audio, "sound.mp4: holds no video stream, only audio"),
        ("still.avi", write_no_frames, "still.avi: no frame can be decoded: its video stream is empty"),
        ("bare.mp4", write_no_frames, "bare.mp4: holds no video stream"),
        ("song.mp4", lambda path: _audio(path, cover=True), "song.mp4: holds no video, only a cover picture; name"),
        ("folder", lambda path: path.mkdir(), "folder: a folder without pictures"),
        (
            "shots",
            lambda path: _recordings(path, "1.HEIC", "2"),
            "pictures (its files: .heic, without a suffix); wanted",
        ),
        ("clip", lambda path: _recordings(path, "1.MP4"), 'clip: holds 1 video and no picture; name it, e.g. "'),
        ("s1", lambda path: _recordings(path, "1.avi", "2.mov", "3.mov"), "s1: holds 3 videos and no picture; name"),
        ("*.jpg", str, "*.jpg: matches no file"),
        ("*.mp4", lambda path: (path.parent / "1.mp4").touch(), "*.mp4: matches no picture"),
        ("broken.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "broken.png: is not a complete picture"),
        ("empty.png", lambda path: path.touch(), "empty.png: the file is empty; copy or record it again"),
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


@pytest.mark.parametrize(
    ("spec", "got"), [("", "an empty name"), (None, "NoneType"), (b"a.mp4", "bytes"), (2.0, "float")]
)
def test_source_without_a_valid_name_is_refused(spec: Any, got: str) -> None:
    with pytest.raises(SourceError, match=rf"^source: wanted a video, .* a camera's index, got {got}$"):
        open_source(spec)


def test_folders_globs_and_pictures_hold_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _recordings(Path("shots"), "1.PNG", "a[1].mp4")
    held = ("shots", "shots/1.PNG", "shots/*.png")
    others = ("shots/a[1].mp4", "gone.mp4", "http://host/1.png", "http://host/*.png?a")
    assert [holds_pictures(spec) for spec in (*held, *others)] == [True] * 3 + [False] * 4


def test_glob_suggested_for_a_folder_of_videos_matches_its_videos(tmp_path: Path) -> None:
    _recordings(tmp_path / "[s1]", "1.mp4", "2.mp4")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "[s1]")
    named = str(caught.value).split('"')[1]  # quotes that shells and Windows' command prompt know
    assert sorted(glob(named)) == sorted(map(str, (tmp_path / "[s1]").iterdir()))  # noqa: PTH207 - as a batch does


def test_windows_drive_is_not_taken_for_a_url() -> None:
    with pytest.raises(SourceError, match=r"^C://none\.mp4: not found"):
        open_source("C://none.mp4")
    assert holds_pictures("C://none/*.png")
    assert where("C://none.mp4") == os.path.realpath("C:/none.mp4")
    assert [is_url(spec) for spec in ("C://a.mp4", "rtsp://host", "srt://:9")] == [False, True, True]


def test_a_glob_on_a_drive_that_is_not_there_matches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: False)  # of Z:/none/*.jpg on Windows not even Z:/
    with pytest.raises(SourceError, match=r"^/none/\*\.jpg: matches no file$"):
        open_source("/none/*.jpg")


def test_same_file_is_recognised_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "GX01.MP4").touch()
    (tmp_path / "other.mp4").touch()
    os.link(tmp_path / "GX01.MP4", tmp_path / "gx01.mp4")  # what Windows and macOS do without
    for name, same in {"GX01.MP4": True, "gx01.mp4": True, "other.mp4": False, "none.mp4": False}.items():
        assert is_same_file(str(tmp_path / "GX01.MP4"), tmp_path / name) is same


def test_mac_screens_are_not_counted_as_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    """AVFoundation lists both, cameras first, and takes either number."""
    seen = [("FaceTime HD Camera", "video"), ("Capture screen 0", "video"), ("MacBook Pro Microphone", "audio")]
    devices = [SimpleNamespace(description=name, media_types=[kind]) for name, kind in seen]
    asked: list[str] = []

    def refuse(location: str, *_: object, **__: object) -> None:
        asked.append(location)
        raise av.FFmpegError(5, "Input/output error")

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("av.enumerate_input_devices", {"avfoundation": devices}.__getitem__)
    monkeypatch.setattr("av.open", refuse)
    with pytest.raises(SourceError, match=r"^camera 1: not found; macOS lists 1 camera, counted from 0; plug one in, "):
        open_source("1")
    for index in ("0", "2"):
        with pytest.raises(SourceError, match=r"cannot be opened: .* allow it in the system's privacy settings"):
            open_source(index)
    assert asked == ["0:none", "2:none"]


MODE = CameraMode((720, 1280), 60, "mjpeg")


@pytest.mark.parametrize(
    ("platform", "mode", "options"),
    [
        ("linux", MODE, {"video_size": "1280x720", "framerate": "60", "input_format": "mjpeg"}),
        ("darwin", CameraMode((480, 640), format="nv12"), {"video_size": "640x480", "pixel_format": "nv12"}),
        ("darwin", CameraMode(rate=29.97), {"framerate": "29.97"}),
        ("win32", CameraMode(None, 30, "yuyv422"), {"framerate": "30", "pixel_format": "yuyv422"}),
        ("linux", CameraMode(), {}),
    ],
)
def test_camera_mode_is_passed_in_the_options_of_each_system(
    platform: str, mode: CameraMode, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, str]] = []

    def refuse(*_: object, container_options: dict[str, str], **__: object) -> None:
        asked.append(container_options)
        raise av.FFmpegError(22, "Invalid argument")

    monkeypatch.setattr("sys.platform", platform)
    devices = [SimpleNamespace(description="Camera", name="Camera", media_types=["video"])]
    monkeypatch.setattr("av.enumerate_input_devices", lambda _: devices)
    monkeypatch.setattr("av.open", refuse)
    told = "it was asked for .*leave out --camera-size" if mode != CameraMode() else "Invalid argument; plug one in"
    with pytest.raises(SourceError, match=f"^camera 0: cannot be opened: .*{told}"):
        open_source(0, camera_mode=mode)
    default = {"framerate": "30"} if platform == "darwin" else {}
    assert asked == [default | options]


def test_camera_format_error_explains_that_the_system_offers_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("av.enumerate_input_devices", lambda _: [SimpleNamespace(name="Camera", media_types=["video"])])
    with pytest.raises(SourceError, match=r"FFmpeg decides by size and rate whether to use mjpeg"):
        open_source(0, camera_mode=MODE)


def test_missing_windows_camera_hints_at_a_missing_microphone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise av.error.OSError(5, "I/O error")

    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("av.enumerate_input_devices", lambda _: [SimpleNamespace(name="Mic", media_types=["audio"])])
    with pytest.raises(SourceError, match=r"^camera 0: not found; Windows lists 0 cameras, .* 0; plug one in"):
        open_source(0)
    monkeypatch.setattr("av.enumerate_input_devices", refuse)
    with pytest.raises(
        SourceError, match=r"^camera 0: not found; Windows cannot list cameras .* no microphone; plug one"
    ):
        open_source(0)


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_unresponsive_camera_driver_times_out(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("av.enumerate_input_devices", lambda _: [])
    monkeypatch.setattr("av.open", lambda *_, **__: released.wait())
    monkeypatch.setattr("facetrack.pipeline.address.CAMERA_TIMEOUT_S", 0.0)
    monkeypatch.setattr("facetrack.pipeline.pipe.FAREWELL_S", 0.0)
    try:
        with pytest.raises(SourceError, match=r"^camera 0: cannot be opened: nothing came in 0 s; plug one in, close"):
            open_source(0)
    finally:
        released.set()


def test_windows_camera_is_opened_non_blocking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container = av.open(write_video(tmp_path / "a.mkv", noise(2)))
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("av.enumerate_input_devices", lambda _: [SimpleNamespace(name="Camera", media_types=["video"])])
    monkeypatch.setattr("av.open", lambda *_, **__: container)
    with open_source(0):
        assert container.flags & NON_BLOCK


def test_a_camera_that_gives_another_size_than_it_was_asked_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = av.open(write_video(tmp_path / "a.mkv", noise(2)))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("av.open", lambda *_, **__: container)
    with pytest.raises(SourceError, match=r"^camera 0: wanted 1280x720 at 60 frames/s in .*, got 96x64"):
        open_source(0, camera_mode=MODE)


def test_camera_mode_is_refused_for_other_sources(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", noise(2))
    for spec in (path, "http://host/a.ts", "lavfi:testsrc", tmp_path):
        with pytest.raises(
            SourceError, match="is not a camera, so it cannot be asked for 1280x720 at 60 frames/s in mjp"
        ):
            open_source(spec, camera_mode=MODE)
    with open_source(path, camera_mode=CameraMode()) as source:
        assert source.size == (64, 96)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"size": size} for size in [(0, 9), (480.0, 640), (480.5, 640), (480,), ("a", "b"), "ab", 480]),
        *({"rate": rate} for rate in [0, float("nan"), float("inf"), 10**400, "30"]),
        *({"format": name} for name in ["M JPEG", None]),
    ],
)
def test_a_mode_that_no_camera_can_have_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^camera mode: wanted "):
        CameraMode(**wrong)


@pytest.mark.parametrize("size", [[480, 640], np.array([480, 640])], ids=["list", "array"])
def test_camera_modes_are_equal_whatever_the_types_of_their_numbers(size: Any) -> None:
    mode = CameraMode(size, Fraction(30000, 1001))  # type: ignore[arg-type]
    assert mode == CameraMode((480, 640), 30000 / 1001)
    assert mode.options("v4l2") == {"video_size": "640x480", "framerate": "29.97"}


def test_a_missing_camera_is_one_clear_line() -> None:
    with pytest.raises(SourceError, match=r"^camera 97: .*plug one in") as caught:
        open_source("97")
    assert "\n" not in str(caught.value)


def test_a_missing_device_is_told_by_the_name_that_was_given() -> None:
    with pytest.raises(SourceError, match=r"^/dev/video97: cannot be opened: .*, or name a video instead$"):
        open_source("/dev/video97", realtime=True)


def test_number_names_an_existing_path_first_unless_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("097").mkdir()
    assert cv2.imwrite("097/a.png", quadrants())
    with open_source("097") as source:
        assert (source.name, source.kind) == ("097", "images")
    with pytest.raises(SourceError, match=r"^camera 98: .*there is no file or folder 98 here$"):
        open_source("98")
    Path("97").mkdir()
    for live in (lambda: open_source("97", realtime=True), lambda: open_source(97)):
        with pytest.raises(SourceError, match=r"^camera 97: .*write \./97 for the file"):
            live()


def test_a_folder_whose_name_looks_like_a_glob_is_told_to_be_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _recordings(Path("br[1]x"), "1.mp4")
    with pytest.raises(SourceError, match="matches no file; for the folder ") as caught:
        open_source("br[1]x/*.mp4")
    assert glob(str(caught.value).split('"')[1]) == [os.path.join("br[1]x", "1.mp4")]  # noqa: PTH118, PTH207
    with pytest.raises(SourceError, match=r"matches no file$"):
        open_source("br[1]x/*.avi")


def test_unreachable_address_error_hides_the_password() -> None:
    with pytest.raises(SourceError, match=r"rtsp://127\.0\.0\.1:9/live: cannot be opened: ") as caught:
        open_source("rtsp://user:secret@127.0.0.1:9/live")
    assert "secret" not in str(caught.value)


def test_a_protocol_that_this_ffmpeg_lacks_is_named() -> None:
    with pytest.raises(
        SourceError, match=r"does not support juggle: have a program that does pipe it in: \.\.\. \| facetrack li"
    ):
        open_source("juggle://127.0.0.1:9")


def test_listening_sender_is_suggested_if_standard_input_has_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facetrack.pipeline.source.STDIN", tmp_path / "none")
    for spec, said in (
        ("-", "^-: standard input cannot be read on this system"),
        ("juggle://host", "does not support juggle"),
    ):
        with pytest.raises(
            SourceError, match=rf'{said}.* send it: .*mpegts "tcp://.*:9000\?listen=1"; and name tcp://'
        ):
            open_source(spec)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://user:secret@host:554/x", "rtsp://host:554/x"),
        ("rtsp://user@host/x", "rtsp://host/x"),
        ("rtsp://user:s@cret@host", "rtsp://host"),
        # signs that should have been escaped
        ("rtsp://user:sec/ret@host/x", "rtsp://host/x"),
        ("rtsp://user:sec#ret?@host/x", "rtsp://host/x"),
        # as pathlib writes a URL
        ("rtsp:/user:secret@host/x", "rtsp:/host/x"),
        # in the query
        ("http://host/x?user=me&PWD=secret&a=1#b", "http://host/x?user=me&PWD=&a=1#b"),
        ("srt://host:9?passphrase=secret", "srt://host:9?passphrase="),
        ("https://host/y.m3u8?a=1&access_token=secret", "https://host/y.m3u8?a=1&access_token="),
        # several
        ("concat:http://u:secret@host/a|http://u:secret@host/b", "concat:http://host/a|http://host/b"),
        # no password
        ("http://host/@user/a:b@c", "http://host/@user/a:b@c"),
        ("http://host:80/a:b@c", "http://host:80/a:b@c"),
        ("http://[fe80::1]/a@b", "http://[fe80::1]/a@b"),
        ("http://host/x?surpass=1&tokens=2", "http://host/x?surpass=1&tokens=2"),
        ("C:/me@home/a:b.mp4", "C:/me@home/a:b.mp4"),
        ("videos/me@home.mp4", "videos/me@home.mp4"),
    ],
)
def test_an_address_is_shown_without_passwords_and_tokens(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


def test_no_traceback_shows_a_password() -> None:
    with pytest.raises(SourceError) as caught:
        open_source("rtsp://user:secret@127.0.0.1:9/live")
    assert "secret@" not in "".join(format_exception(caught.value.__cause__))


@pytest.mark.parametrize("url", ["http://[foo", "http://user:secret@[foo/a.mp4"])
def test_malformed_address_error_hides_the_password(url: str) -> None:
    with pytest.raises(SourceError, match=r"^http://\[foo.*: is not a valid address: .*wanted one such as") as caught:
        open_source(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("cover", [False, True])
def test_a_second_video_stream_is_told_and_a_cover_picture_is_none(
    cover: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with av.open(tmp_path / "two.mp4", "w") as container:
        streams = [container.add_stream(codec, rate=25) for codec in ("libx264", "mjpeg" if cover else "libx264")]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if stream.name == "mjpeg" else "yuv420p"
        if cover:
            streams[1].disposition = Disposition.attached_pic
        for stream in streams:
            container.mux(stream.encode(av.VideoFrame(64, 48, stream.pix_fmt)))
            container.mux(stream.encode(None))
    with open_source(tmp_path / "two.mp4") as source:
        assert len(list(source)) == 1
    told = [f"{tmp_path / 'two.mp4'}: 2 video streams, the first is tracked"]
    assert [record.getMessage() for record in caplog.records] == ([] if cover else told)


def test_a_file_whose_name_looks_like_a_glob_is_still_a_file(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a[1].png"), quadrants())
    with open_source(tmp_path / "a[1].png") as source:
        assert source.name == "a[1]"
        assert [frame.name for frame in source] == ["a[1].png"]


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_a_video_whose_tags_are_in_another_code_page_is_read(suffix: str, tmp_path: Path) -> None:
    """As titles in AVI, which has Windows' own; here it is the name of the program that wrote the file."""
    path = write_video(tmp_path / f"clip{suffix}", noise(4))
    path.write_bytes(path.read_bytes().replace(b"Lavf", b"L\xe4vf"))
    with open_source(path) as source:
        assert len(list(source)) == 4


def test_a_video_whose_name_holds_a_colon_is_still_a_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "plain.mkv", noise(2)).rename(tmp_path / "http:12:30 %02d.mkv")
    with open_source(path) as source:
        assert len(list(source)) == 2


recent_pyav = pytest.mark.skipif(
    int(av.__version__.partition(".")[0]) < PYAV_FOR_GPU, reason="this PyAV is refused whatever the video"
)


@recent_pyav
def test_a_gpu_decodes_the_same_pictures_or_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    path = write_video(tmp_path / "plain.mp4", noise(3))
    with open_source(path) as source:
        wanted = [frame.bgr for frame in source]
    try:
        source = open_source(path, decoder="cuda")
    except SourceError as error:
        refusal = str(error)
    else:
        with source:
            found = [frame.bgr for frame in source]
        np.testing.assert_allclose(np.stack(found).astype(int), np.stack(wanted), atol=2)
        return
    assert refusal.startswith(f"{path}: cannot be decoded with cuda here")
    assert "\n" not in refusal


@recent_pyav
@pytest.mark.parametrize(("codec", "pix_fmt"), [("ffv1", "bgr0"), ("prores_ks", "yuv422p10le"), ("dnxhd", "yuv422p")])
def test_codecs_that_a_gpu_does_not_know_are_refused_and_not_decoded_on_the_cpu(
    codec: str, pix_fmt: str, tmp_path: Path
) -> None:
    size, options = (720, 1280) if codec == "dnxhd" else (64, 64), {"b": "90M"} if codec == "dnxhd" else {}
    path = tmp_path / ("clip.mkv" if codec == "ffv1" else "clip.mov")
    write_video(path, noise(2, *size), VideoRecipe(codec, pix_fmt, options=options))
    with pytest.raises(SourceError, match=r"clip\.m\w+: cannot be decoded with cuda here") as caught:
        open_source(path, decoder="cuda")
    assert "a codec that it decodes" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["17.0.0", "17.1.0"])
def test_outdated_pyav_is_refused_for_gpu_decoding(version: str) -> None:
    assert accelerator("cpu", version) is None
    assert accelerator("cuda", "18.0.0") is not None
    with pytest.raises(SourceError, match=rf'PyAV {version} .*wanted 18; run: pip install "av==18[.][*]"$'):
        accelerator("cuda", version)


def test_what_no_decoder_can_read_is_not_blamed_on_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video", encoding="utf-8")
    with pytest.raises(SourceError, match="it is not a readable video"):
        open_source(tmp_path / "text.mp4", decoder="cuda")


def pixels(source: Source) -> list[bytes]:
    with source:
        return [frame.bgr.tobytes() for frame in source]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
@pytest.mark.parametrize("realtime", [False, True])
def test_a_pipe_gives_every_frame_of_the_video_that_is_written_into_it(
    suffix: str, tmp_path: Path, *, realtime: bool
) -> None:
    file = write_video(tmp_path / f"clip{suffix}", noise(8))
    with feeding(tmp_path / "pipe", file.read_bytes()) as pipe:
        source = open_source(pipe, realtime=realtime)
        assert (source.name, source.kind, source.live) == ("pipe", "stream", realtime)
        assert pixels(source) == pixels(open_source(file))


MJPEG = VideoRecipe("mjpeg", "yuvj420p", options={})
HEVC = VideoRecipe("libx265", options={"x265-params": "log-level=none"})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize(("name", "recipe"), [("clip.h264", VideoRecipe()), ("clip.mjpeg", MJPEG)])
def test_live_pipe_without_timestamps_is_timed_by_the_clock(
    name: str, recipe: VideoRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_video(tmp_path / name, noise(8), recipe)
    with feeding(tmp_path / "pipe", file.read_bytes()) as pipe, open_source(pipe, realtime=True) as source:
        assert (source.name, source.kind, source.live) == ("pipe", "stream", True)
        frames = list(source)
    assert caplog.records == []
    assert [frame.time_s for frame in frames] == [frame.taken_s - frames[0].taken_s for frame in frames]
    assert [frame.bgr.tobytes() for frame in frames] == pixels(open_source(file))


@pytest.mark.parametrize(
    ("name", "recipe", "rate"), [("clip.h264", VideoRecipe(), 30), ("clip.hevc", HEVC, 30), ("clip.mjpeg", MJPEG, None)]
)
def test_recording_without_timestamps_uses_its_codecs_rate_or_warns_of_an_assumed_one(
    name: str, recipe: VideoRecipe, rate: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_source(write_video(tmp_path / name, noise(8), recipe)) as source:
        times_s = [frame.time_s for frame in source]
    assert source.rate == rate
    np.testing.assert_allclose(times_s, np.arange(8) / (rate or 25), atol=1e-6)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (rate is None)
    assert all("25 frames/s are assumed" in text and "ffmpeg -framerate" in text for text in told)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["clip.mp4", "text.txt"])
def test_pipe_that_needs_seeking_or_holds_no_video_suggests_other_formats(name: str, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", noise(8, 480, 640))  # more than FFmpeg remembers
    (tmp_path / "text.txt").write_text("Dear diary", encoding="utf-8")
    told = pytest.raises(
        SourceError, match=r"pipe: no .*; a pipe can only be read from front to back: write MPEG-TS or Matroska"
    )
    with feeding(tmp_path / "pipe", (tmp_path / name).read_bytes()) as pipe, told:
        open_source(pipe)


@pytest.mark.parametrize(("name", "waits_s"), [("list.m3u8", [30.0]), ("list.php", [5.0, 30.0])])
def test_live_playlist_has_a_timeout_for_segments_and_uses_their_timestamps(
    name: str, waits_s: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "clip.ts", noise(20) * 10)
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:7", "#EXTINF:6.667,", "clip.ts"]
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    waited_s: list[float] = []
    opening = av.open

    def note(*arguments: Any, timeout: tuple[float, float], **options: Any) -> Any:
        waited_s.append(timeout[1])
        return opening(*arguments, timeout=timeout, **options)

    monkeypatch.setattr("av.open", note)
    with serving(tmp_path) as address, open_source(f"{address}/{name}") as source:
        times = [frame.time_s for _, frame in zip(range(4), source, strict=False)]
    assert waited_s == waits_s
    np.testing.assert_allclose(times, np.arange(4) / 30, atol=1e-4)


@pytest.mark.parametrize("realtime", [False, True])
def test_live_playlist_ends_once_it_is_completed(tmp_path: Path, *, realtime: bool) -> None:
    write_video(tmp_path / "clip.ts", noise(20) * 10, VideoRecipe(rate=Fraction(200)))
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:0.1,", "clip.ts"]  # it is looked at again so often
    (tmp_path / "list.m3u8").write_text("\n".join(lines), encoding="utf-8")
    with serving(tmp_path) as address:
        source = open_source(f"{address}/list.m3u8", realtime=realtime, retry=Retry(1, first_wait_s=0))
        (tmp_path / "list.m3u8").write_text("\n".join([*lines, "#EXT-X-ENDLIST"]), encoding="utf-8")
        with source:
            assert sum(1 for _ in source) == 200
    assert source.failed == []


def test_recording_on_a_server_is_finite_even_without_a_stated_duration(tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.ts", noise(8))
    with serving(tmp_path) as address:
        source = open_source(f"{address}/clip.ts")
        assert (source.name, source.kind, source.live) == ("127.0.0.1_clip.ts", "stream", False)
        assert pixels(source) == pixels(open_source(file))


@pytest.mark.parametrize("wrong", [{"retry": 3}, {"camera_mode": (720, 1280)}])
def test_invalid_retry_or_camera_mode_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"wanted facetrack\.\w+, such as \w+\(.*\), got "):
        open_source("rtsp://host/path", **wrong)


@pytest.mark.parametrize("attempts", [0, 1, 2])
def test_a_stream_that_is_lost_is_opened_again_as_often_as_is_wanted(attempts: int, tmp_path: Path) -> None:
    address = served_once(write_video(tmp_path / "clip.ts", noise(8)).read_bytes())
    frames: list[Frame] = []
    tried = f"; tried {attempts} times? to open it again" if attempts else "it ended$"
    with open_source(address, retry=Retry(attempts, first_wait_s=0)) as source, pytest.raises(SourceError, match=tried):
        frames.extend(source)
    assert source.live
    assert len(frames) == 8


@pytest.mark.parametrize("ended", [False, True])
def test_playlist_is_live_unless_it_has_an_end_mark(tmp_path: Path, *, ended: bool) -> None:
    write_video(tmp_path / "clip.ts", noise(20) * 10)  # as much as FFmpeg wants to see of a list that may grow
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:7", "#EXTINF:6.667,", "clip.ts", *["#EXT-X-ENDLIST"] * ended]
    (tmp_path / "list.m3u8").write_text("\n".join(lines), encoding="utf-8")
    with serving(tmp_path) as address, open_source(f"{address}/list.m3u8") as source:
        assert source.live is not ended


def test_saved_playlist_without_an_end_mark_is_refused(tmp_path: Path) -> None:
    """As of a recorder that was stopped: FFmpeg would wait for more, and Ctrl-C not be heard."""
    write_video(tmp_path / "clip.ts", noise(20) * 10)
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:7", "#EXTINF:6.667,", "clip.ts\n"]
    file = tmp_path / "list.m3u8"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SourceError, match=r"list\.m3u8: .* add a line #EXT-X-ENDLIST .*, or name its segments$"):
        open_source(file)
    file.write_text("\n".join([*lines, "#EXT-X-ENDLIST"]), encoding="utf-8")
    with open_source(file) as source:
        assert len(list(source)) == 200


@contextmanager
def sending(pictures: list[Any]) -> Iterator[str]:
    """Somebody who sends them by RTP, again and again; gives what an .sdp file says of it."""
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    over = threading.Event()

    def send() -> None:
        with av.open(f"rtp://127.0.0.1:{port}", "w", format="rtp") as container:
            stream = container.add_stream("libx264", rate=100, options={"tune": "zerolatency", "g": "1"})
            stream.height, stream.width = pictures[0].shape[:2]
            for picture in cycle(pictures):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "bgr24")))
                if over.wait(0.01):
                    return

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    lines = ("v=0", "c=IN IP4 127.0.0.1", f"m=video {port} RTP/AVP 96", "a=rtpmap:96 H264/90000")
    yield "\n".join(lines)
    over.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("served", [False, True])
def test_sdp_file_opens_a_live_rtp_stream(tmp_path: Path, *, served: bool) -> None:
    with sending(noise(3)) as description, serving(tmp_path) as address:
        (tmp_path / "camera.sdp").write_text(description, encoding="utf-8")
        with open_source(f"{address}/camera.sdp" if served else tmp_path / "camera.sdp") as source:
            assert source.live
            assert sum(1 for _ in islice(source, 3)) == 3


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


@pytest.mark.parametrize(
    ("name", "mux", "live"),
    [
        ("fragments.mp4", FRAGMENTS, True),
        ("unknown.flv", {"flvflags": "no_duration_filesize"}, True),
        ("zero.flv", {}, True),
        ("live.mkv", {"live": "1"}, True),
        ("clip.ts", {}, True),
        ("whole.mp4", {"movflags": "faststart"}, False),
        ("whole.flv", {}, False),
        ("whole.mkv", {}, False),
    ],
)
def test_stream_without_a_size_is_live_unless_its_header_states_a_length(
    name: str, mux: dict[str, str], tmp_path: Path, *, live: bool
) -> None:
    file = write_video(tmp_path / name, noise(40), VideoRecipe(options={"g": "10"}, mux=mux))
    if name == "zero.flv":  # as servers of live FLV write it
        data = file.read_bytes()
        place = data.index(b"duration\0") + 9
        file.write_bytes(data[:place] + bytes(8) + data[place + 8 :])
    with serving(tmp_path, sizes=False) as address, open_source(f"{address}/{name}") as source:
        assert source.live is live
    with serving(tmp_path) as address, open_source(f"{address}/{name}") as source:
        assert not source.live


def test_recording_is_complete_if_the_server_ends_it_by_closing_the_connection(tmp_path: Path) -> None:
    recipe = VideoRecipe(options={"bf": "2"}, mux={"movflags": "faststart"})
    file = write_video(tmp_path / "whole.mp4", noise(40, 120, 160), recipe)
    with serving(tmp_path, sizes=False) as address:
        assert pixels(open_source(f"{address}/whole.mp4")) == pixels(open_source(file))


@pytest.mark.parametrize("mux", [{"movflags": "frag_keyframe"}, {"movflags": "faststart"}])
def test_broken_connection_is_reported_and_not_taken_for_the_end(mux: dict[str, str], tmp_path: Path) -> None:
    """Of fragments the header declares the first one's length alone, which has come long before."""
    file = write_video(tmp_path / "clip.mp4", noise(40), VideoRecipe(options={"g": "10"}, mux=mux))
    data = file.read_bytes()
    fragments = data.split(b"moof")
    file.write_bytes(b"moof".join(fragments[:3])[:-4] if len(fragments) > 1 else data[: len(data) * 3 // 4])
    told = pytest.raises(SourceError, match="breaks off after frame")
    with serving(tmp_path, sizes=False) as address, open_source(f"{address}/clip.mp4") as source, told:
        list(source)


@pytest.mark.parametrize("kind", ["folder", "missing", "glob"])
def test_only_an_existing_file_is_taken_for_an_sdp_description(kind: str, tmp_path: Path) -> None:
    name = "*.sdp" if kind == "glob" else "shots.sdp"
    if kind == "folder":
        (tmp_path / name).mkdir()
    with pytest.raises(SourceError) as told:
        open_source(tmp_path / name)
    assert "check the address" not in str(told.value)


def test_audio_on_a_server_is_refused(tmp_path: Path) -> None:
    _audio(tmp_path / "sound.mp4")
    told = pytest.raises(SourceError, match=r"sound\.mp4: holds no video stream, only audio; name a video$")
    with serving(tmp_path) as address, told:
        open_source(f"{address}/sound.mp4")


def test_index_at_the_end_without_range_requests_is_reported(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", noise(8, 480, 640))
    with serving(tmp_path) as address, pytest.raises(SourceError, match="the server must allow ranges"):
        open_source(f"{address}/clip.mp4")


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


def test_os_error_on_opening_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"^a+: cannot be read: \w"):
        open_source("a" * 300)

    def locked(self: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", locked)  # root may enter every folder
    with pytest.raises(SourceError, match=r"cannot be read: Permission denied$"):
        open_source(tmp_path)


@pytest.mark.parametrize("decoder", ["gpu", None])
def test_a_decoder_that_does_not_exist_is_refused(decoder: Any) -> None:
    with pytest.raises(ConfigError, match=r"^decoder: wanted one of cpu, cuda, got"):
        open_source("clip.mp4", decoder=decoder)
