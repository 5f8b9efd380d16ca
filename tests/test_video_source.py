"""Recordings, whole and broken, and cameras that come and go."""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.container import InputContainer
from av.video.reformatter import Colorspace, VideoReformatter
from fakes import (
    PaintedFace,
    PaintedSource,
    VideoRecipe,
    damage,
    feeding,
    grey,
    jpeg_with_orientation,
    noise,
    quadrants,
    read_landmarks,
    serving,
    two_in_one,
    write_no_frames,
    write_video,
)

from facetrack.pipeline.live_source import LiveSource, Retry
from facetrack.pipeline.pipe import BEHIND_S, HOLDS, LOOK_UP_S, Backlog, Pipe
from facetrack.pipeline.source import NOTED, Source
from facetrack.pipeline.sources import open_source
from facetrack.pipeline.video_clock import Pace
from facetrack.pipeline.video_reader import BAD_PACKETS
from facetrack.tracker.errors import ConfigError, SourceError
from facetrack.tracker.types import Frame

PATIENCE_S = 60.0  # only a failing test waits this long


def times(source: Source) -> list[float]:
    with source:
        return [frame.time_s for frame in source]


def test_a_video_gives_every_frame_with_its_number_time_and_picture(tmp_path: Path) -> None:
    painted = PaintedSource(count=10, faces=[PaintedFace((120, 100), (60, 30), 110, spin=0.5)])
    recipe = VideoRecipe("ffv1", "bgr0", options={})
    path = write_video(tmp_path / "walk.mkv", [frame.bgr for frame in painted], recipe)
    with open_source(path) as source:
        assert (source.name, source.kind, source.live, source.failed) == ("walk", "video", False, [])
        assert (source.size, source.rate, source.frames) == ((240, 320), Fraction(30), 10)
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(10))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(10) / 30, atol=6e-4)  # whole ms
    assert all(a.taken_s <= b.taken_s for a, b in pairwise(frames))
    for frame in frames:
        np.testing.assert_array_equal(frame.bgr, painted.picture(frame.index))
        np.testing.assert_allclose(read_landmarks(frame.bgr), painted.truth(frame.index)[0], atol=0.05)


def test_compressed_video_keeps_landmarks_in_place(tmp_path: Path) -> None:
    painted = PaintedSource(count=5, faces=[PaintedFace((120, 100), (60, 30), 110, spin=0.5)])
    path = write_video(tmp_path / "walk.mp4", [frame.bgr for frame in painted])
    with open_source(path) as source:
        frames = list(source)
    assert len(frames) == 5
    for frame in frames:
        found = read_landmarks(frame.bgr)
        # halved chroma and coarse rounding of colours: a few levels, each half a pixel of this chart
        np.testing.assert_allclose(found, painted.truth(frame.index)[0], atol=2.5)


def test_frames_are_contiguous_and_cannot_be_written_to(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(2, 50, 70))
    with open_source(path) as source:
        flags = [frame.bgr.flags for frame in source]
    assert [(flag.c_contiguous, flag.writeable) for flag in flags] == [(True, False)] * 2


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


def test_bogus_first_timestamp_does_not_shift_the_others(tmp_path: Path) -> None:
    recipe = VideoRecipe(times_s=[0.0, 95_000.0, 95_000.04, 95_000.08])
    path = write_video(tmp_path / "wild.mkv", noise(4), recipe)
    np.testing.assert_allclose(times(open_source(path)), [0.0, 0.04, 0.08, 0.12], atol=1.1e-3)


def test_concatenated_recording_lasts_as_long_as_both_parts(tmp_path: Path) -> None:
    path = write_video(tmp_path / "half.ts", noise(15))
    path.write_bytes(path.read_bytes() * 2)
    np.testing.assert_allclose(times(open_source(path)), np.arange(30) / 30, atol=1e-4)


@pytest.mark.parametrize("then", [(120, 160), (480, 640), (118, 158)])
def test_pictures_that_change_size_midway_are_scaled_to_the_first(tmp_path: Path, then: tuple[int, int]) -> None:
    """As of a call (WebRTC), whose line gets better or worse."""
    painted = PaintedSource(count=12, faces=[PaintedFace((120, 100), (60, 30), 110)])
    with open_source(two_in_one(tmp_path / "call.ts", (240, 320), then, painted)) as source:
        frames = list(source)
    assert [frame.size for frame in frames] == [(240, 320)] * 12
    assert source.failed == []
    for frame in frames:
        np.testing.assert_allclose(read_landmarks(frame.bgr), painted.truth(frame.index)[0], atol=2.5)


def test_pictures_of_another_aspect_ratio_are_fitted_into_the_first_and_reported(tmp_path: Path) -> None:
    painted = PaintedSource(count=12)
    with open_source(two_in_one(tmp_path / "turned.ts", (240, 320), (320, 240), painted)) as source:
        frames = list(source)
    assert [frame.size for frame in frames] == [(240, 320)] * 12
    assert [name[:7] for name, _ in source.failed] == ["frame 7"]
    assert source.failed[0][1] == "its size changes to 240x320, which is fitted into the first frame's 320x240"
    assert frames[6].bgr[:, :60].max() < 30  # black beside
    assert read_landmarks(frames[6].bgr) is not None


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


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize("suffix", [".avi", ".mov"])
def test_exif_orientation_of_motion_jpeg_is_applied(suffix: str, orientation: int, turns: int, tmp_path: Path) -> None:
    """As old cameras write Motion JPEG, with EXIF, which PyAV does not know."""
    stored = quadrants()
    path = tmp_path / f"camera{suffix}"
    with av.open(path, "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.height, stream.width, stream.pix_fmt = *stored.shape[:2], "yuvj420p"
        for index in range(3):
            packet = av.Packet(jpeg_with_orientation(stored, orientation))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 30)
            container.mux(packet)
    with open_source(path) as source:
        frames = list(source)
    assert len(frames) == 3
    shown = np.rot90(stored, turns)
    for frame in frames:
        assert frame.size == shown.shape[:2]
        assert np.abs(frame.bgr.astype(int) - shown).mean() < 5  # JPEG smears a little at the edges


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


def test_realtime_file_is_live_and_gives_no_frame_before_its_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(6), VideoRecipe(times_s=[0, 0.01, 0.02, 0.05, 0.06, 0.1]))
    opened_s = time.perf_counter()
    with open_source(path, realtime=True) as source:
        assert source.live
        frames = list(source)
    assert len(frames) == 6
    assert min(frame.taken_s - opened_s - frame.time_s for frame in frames) > 0


def test_recording_at_a_url_is_live_only_in_realtime(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", noise(6), VideoRecipe(times_s=[0, 0.01, 0.02, 0.05, 0.06, 0.1]))
    with serving(tmp_path) as address:
        for realtime in (True, False):
            with open_source(f"{address}/a.mkv", realtime=realtime) as source:
                assert source.live is realtime
                assert len(list(source)) == 6


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


def in_time(source: Source) -> list[Frame]:
    """The frames of a source that must not keep anybody waiting."""
    frames: list[Frame] = []
    thread = threading.Thread(target=lambda: frames.extend(source), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    return frames


@pytest.mark.parametrize("stamps", [[0.0, 0.04, 0.08, 3600.0, 3600.04], [3600.0, 3600.04, 7200.0, 7200.04]])
def test_realtime_source_does_not_wait_for_a_timestamp_leap(stamps: list[float], tmp_path: Path) -> None:
    path = write_video(tmp_path / "leap.mkv", noise(len(stamps)), VideoRecipe(times_s=stamps))
    with open_source(path, realtime=True) as source:
        frames = in_time(source)
    np.testing.assert_allclose([frame.time_s for frame in frames], np.array(stamps) - stamps[0], atol=1.1e-3)
    assert all(a.taken_s <= b.taken_s for a, b in pairwise(frames))


pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


@contextmanager
def waiting_pipe(pipe: Path, content: bytes) -> Iterator[Path]:
    """A named pipe into which a thread writes, and then nothing more, without closing it."""
    os.mkfifo(pipe)
    done = threading.Event()

    def write() -> None:
        with suppress(BrokenPipeError), pipe.open("wb", buffering=0) as out:
            out.write(content)
            done.wait(PATIENCE_S)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    yield pipe
    done.set()
    writer.join(PATIENCE_S)
    assert not writer.is_alive()


@pipes
def test_backlog_in_a_pipe_is_given_at_once(tmp_path: Path) -> None:
    recipe = VideoRecipe(times_s=[0.9 * i for i in range(100)])
    content = write_video(tmp_path / "clip.mkv", (grey(32, 48) for _ in range(100)), recipe).read_bytes()
    assert len(content) < HOLDS
    frames: list[Frame] = []
    with waiting_pipe(tmp_path / "pipe", content) as pipe, open_source(pipe, realtime=True) as source:
        for frame in source:
            frames.append(frame)
            if len(frames) == 95:  # the last ones wait for what follows them
                break
    assert frames[-1].taken_s - frames[0].taken_s < 0.9 * 94 / 2


@pipes
def test_pipe_written_faster_than_real_time_is_paced(tmp_path: Path) -> None:
    content = write_video(tmp_path / "clip.mkv", noise(24, 96, 128)).read_bytes()
    assert len(content) > 3 * HOLDS
    with feeding(tmp_path / "pipe", content) as pipe, open_source(pipe, realtime=True) as source:
        first, *_, last = list(source)
    assert last.taken_s - first.taken_s > 4 / 30  # two thirds may have been there already, and could be decoded in less


class Sender:
    """Writes a picture every 40 ms by its own clock, which may be fast or slow; who reads them is done at once."""

    def __init__(self, speed: float, *, piece: int = 1, ahead: bool = False) -> None:
        self.speed, self.piece, self.ahead = speed, piece, ahead
        self.now_s = 0.0

    def lags_s(self, count: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """How late each of so many pictures is given, after it, and those that are written with it, could have been."""
        monkeypatch.setattr("time.perf_counter", lambda: self.now_s)
        pipe = Pipe(Path("pipe"))
        pipe.taken, pipe.waits = (HOLDS + 1, 0) if self.ahead else (1000, 1)
        pace, lags = Pace(backlog=Backlog(pipe)), list[float]()
        for number in range(count):
            written_s = (number + self.piece - 1) // self.piece * self.piece * 0.04 / self.speed
            if written_s > self.now_s:
                self.now_s = written_s
                pipe.waits += 1
            pipe.taken += 1000
            self.now_s = max(self.now_s, pace.due_s(0.04 * number, 0.04))
            lags.append(self.now_s - written_s)
        return lags


HOUR = 25 * 3600  # pictures


@pytest.mark.parametrize("speed", [0.99, 1.0, 1.005, 1.02])
def test_pipe_whose_writer_has_a_faster_clock_accumulates_no_latency(
    speed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(Sender(speed).lags_s(HOUR, monkeypatch)) < 0.05 + BEHIND_S * max(speed - 1, 0)


def test_pipe_written_in_segments_is_paced_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as of 6 s, where all but the newest of a piece would be dropped."""
    sender = Sender(1.0, piece=150)
    given_s = np.array(sender.lags_s(HOUR, monkeypatch))[1:-149].reshape(-1, 150)
    np.testing.assert_allclose(np.diff(given_s[1:], axis=1), 0.04, atol=1e-6)


def test_recording_written_into_a_pipe_is_paced_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Sender(1000.0, ahead=True)
    sender.lags_s(HOUR, monkeypatch)
    assert sender.now_s == pytest.approx((HOUR - 1) * 0.04)


@pipes
def test_pipe_read_sleeps_while_waiting_and_counts_waits_after_the_first_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # so that nobody has to wait for the other end
    pipe, waited_ms = Pipe(tmp_path / "pipe"), list[float]()
    pipe.open()

    class Clockwork:
        """A poll that takes no time, and writes when it is asked for the third time in a read."""

        def register(self, descriptor: int, events: int) -> None:
            del descriptor, events

        def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
            waited_ms.append(timeout_ms)
            if len(waited_ms) % 3:
                return []
            os.write(writer, b"abc")
            return [(0, 1)]

    monkeypatch.setattr("select.poll", Clockwork, raising=False)
    counts = [(pipe.read(9), pipe.waits) for _ in range(3)]
    pipe.close()
    os.close(writer)
    assert counts == [(b"abc", 0), (b"abc", 1), (b"abc", 2)]
    assert waited_ms == [0, 1000 * LOOK_UP_S, 1000 * LOOK_UP_S] * 3


@pipes
@pytest.mark.parametrize(("name", "realtime"), [("clip.mkv", False), ("clip.mjpeg", True)])
def test_pipe_whose_writer_falls_silent_can_be_closed(name: str, tmp_path: Path, *, realtime: bool) -> None:
    recipe = VideoRecipe("mjpeg", "yuvj420p", options={}) if name == "clip.mjpeg" else VideoRecipe()
    content = write_video(tmp_path / name, noise(200, 160, 240), recipe).read_bytes()
    assert len(content) > 1 << 20  # before, FFmpeg does not tell what raw pictures are
    os.mkfifo(tmp_path / "pipe")
    silent, done = threading.Event(), threading.Event()

    def write() -> None:
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
            pipe.write(content[:-9])
            silent.set()
            done.wait(PATIENCE_S)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    source = open_source(tmp_path / "pipe", realtime=realtime)
    first, frames = threading.Event(), list[Frame]()

    def read() -> None:
        for frame in source:
            frames.append(frame)
            first.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert first.wait(PATIENCE_S)
    assert silent.wait(PATIENCE_S)
    source.close()
    for thread in (reader, writer):
        done.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pipes
@pytest.mark.usefixtures("ctrl_c_interrupts")
@pytest.mark.parametrize("opened", [False, True])
def test_ctrl_c_ends_the_wait_for_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, opened: bool) -> None:
    """Whether another program has opened it and says nothing, or none has yet."""
    os.mkfifo(tmp_path / "pipe")
    waiting, done = threading.Event(), threading.Event()
    open_pipe = Pipe.open

    def tell_and_open(pipe: Pipe) -> None:
        waiting.set()
        open_pipe(pipe)

    def interrupt() -> None:
        assert waiting.wait(PATIENCE_S)
        writer = os.open(tmp_path / "pipe", os.O_WRONLY) if opened else None
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        done.wait(PATIENCE_S)
        if writer is not None:
            os.close(writer)

    monkeypatch.setattr(Pipe, "open", tell_and_open)
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        open_source(tmp_path / "pipe", realtime=True)
    done.set()
    if not opened:
        os.close(os.open(tmp_path / "pipe", os.O_WRONLY))  # who still waits for the pipe's other end goes, too
    for each in (thread, *(t for t in threading.enumerate() if t.name == "facetrack-open")):
        each.join(PATIENCE_S)
        assert not each.is_alive()


@pytest.mark.skipif(os.name == "nt", reason="no signal reaches a thread there")
@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_ends_the_wait_for_an_address_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def interrupt() -> None:
            with server.accept()[0]:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                done.wait(PATIENCE_S)

        done = threading.Event()
        thread = threading.Thread(target=interrupt, daemon=True)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            open_source(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        done.set()  # who still waits for bytes goes, too
        for each in (thread, *(t for t in threading.enumerate() if t.name == "facetrack-open")):
            each.join(PATIENCE_S)
            assert not each.is_alive()


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
def test_truncated_video_gives_its_frames_and_then_raises(tmp_path: Path, suffix: str, recipe: VideoRecipe) -> None:
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


def test_mp4_truncated_before_its_index_raises_saying_so(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", noise(20))
    told = r"cut\.mp4: it was cut off before its index: it should be \d+ bytes .*; copy or record it again"
    with pytest.raises(SourceError, match=told):
        open_source(cut_copy(whole, 0.6))


@pytest.mark.parametrize(
    ("aspect", "stored", "shown"),
    [
        (Fraction(64, 45), (576, 720), (576, 1024)),  # PAL, 16:9
        (Fraction(8, 9), (480, 720), (540, 720)),  # NTSC, 4:3
        (Fraction(3416, 3417), (240, 320), (240, 320)),  # meant to be square
        (Fraction(1, 100), (240, 320), (240, 320)),  # nonsense
    ],
)
def test_pixels_are_square(tmp_path: Path, aspect: Fraction, stored: tuple[int, int], shown: tuple[int, int]) -> None:
    height, width = stored
    picture = np.zeros((height, width, 3), np.uint8)
    picture[height // 4 : height // 2, width // 4 : width // 2] = 255
    path = write_video(tmp_path / "a.mkv", [picture] * 2, VideoRecipe(tags={"sample_aspect_ratio": aspect}))
    with open_source(path) as source:
        assert source.size == shown
        bgr = next(iter(source)).bgr
    rows, columns = (np.flatnonzero(bgr[..., 1].max(1 - axis) > 128) for axis in (0, 1))
    np.testing.assert_allclose((rows[0], rows[-1] + 1), (shown[0] / 4, shown[0] / 2), atol=1.5)
    np.testing.assert_allclose((columns[0], columns[-1] + 1), (shown[1] / 4, shown[1] / 2), atol=1.5)


def test_damage_in_the_middle_is_noted_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", noise(10), VideoRecipe("png", "rgb24", options={}))
    damage(path, 4)
    with open_source(path) as source:
        frames = list(source)
    assert len(frames) == 9
    np.testing.assert_allclose([f.time_s for f in frames], np.delete(np.arange(10) / 30, 4), atol=1e-4)
    assert len(source.failed) == 1


@pytest.mark.parametrize("realtime", [False, True])
def test_damage_reports_of_a_live_source_are_limited(tmp_path: Path, *, realtime: bool) -> None:
    recipe = VideoRecipe("png", "rgb24", options={}, rate=Fraction(1000))
    path = write_video(tmp_path / "a.mov", noise(2 * NOTED + 21, 16, 16), recipe)
    damage(path, *range(1, 2 * NOTED + 21, 2))
    with open_source(path, realtime=realtime) as source:
        assert len(list(source)) == NOTED + 11
    assert len(source.failed) == (NOTED + 1 if realtime else NOTED + 10)
    assert source.failed[-1][1].endswith("; 9 others before it not listed") is realtime


def test_partly_decoded_pictures_are_given_and_reported(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(20), VideoRecipe(options={"crf": "20", "g": "5"}))
    damage(path, 12, part=slice(33, 50), byte=b"\x55")
    with open_source(path) as source:
        assert len(list(source)) == 20
    *damaged, (after, why) = source.failed
    assert damaged
    assert all("damaged" in reason and name.startswith("frame 1") for name, reason in damaged)
    assert after == "frames 14 to 16 (0.433 to 0.500 s)"  # the 13th and the 17th are key frames
    assert why == "follow damage without a key frame, may show what was there before"


@pytest.mark.parametrize(("keys", "last"), [(100, 9), (4, 3)])
def test_pictures_that_build_on_a_lost_one_are_named_up_to_the_next_key_frame(
    keys: int, last: int, tmp_path: Path
) -> None:
    """Where decoders run ahead, from one or two before it."""
    options = {"crf": "20", "g": str(keys), "bf": "0", "sc_threshold": "0", "refs": "1"}
    path = write_video(tmp_path / "a.mp4", noise(10), VideoRecipe(options=options))
    damage(path, 2)
    with open_source(path) as source:
        frames = list(source)
    assert len(frames) == 9
    packet, *_, (after, _) = source.failed
    assert packet[0].startswith("packet after frame ")
    assert re.match(rf"frames [1-3] to {last} \(", after)


def test_damage_at_the_end_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", noise(10), VideoRecipe("png", "rgb24", options={}))
    damage(path, -1)
    with open_source(path) as source, pytest.raises(SourceError, match=r"breaks off after frame 9 \(0\.267 s\)"):
        list(source)


def test_recording_that_is_undecodable_after_damage_raises(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", noise(50), VideoRecipe(rate=Fraction(25)))
    data = bytearray(path.read_bytes())
    begin = len(data) * 3 // 10
    data[begin : begin + 2000] = np.random.default_rng(0).bytes(2000)
    path.write_bytes(data)  # what follows cannot be decoded without the key frame before
    frames: list[Frame] = []
    told = r"a\.mkv: breaks off after frame 15 \(0\.560 s\): .* and should be 2\.0 s .* copy or record it again"
    with open_source(path) as source, pytest.raises(SourceError, match=told):
        frames.extend(source)
    assert len(frames) == 15


@pytest.mark.parametrize("pictures", [1, 2, 9])
def test_buffered_pictures_are_given_before_persistent_damage_raises(pictures: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(BAD_PACKETS + 20), VideoRecipe(mux={"movflags": "faststart"}))
    damage(path, *range(pictures, BAD_PACKETS + 20))
    told = rf"breaks off after frame {pictures} \(.*\): Invalid data"
    with open_source(path) as source, pytest.raises(SourceError, match=told):
        list(source)


@pytest.mark.parametrize("pictures", [1, 2, 9])
def test_unfinished_download_raises_after_the_pictures_that_came(pictures: int, tmp_path: Path) -> None:
    """It has its full size, and zeros for what has not come. The decoder keeps the first few pictures to its end."""
    recipe = VideoRecipe(rate=Fraction(25), mux={"movflags": "faststart"})
    path = write_video(tmp_path / "a.mp4", noise(50), recipe)
    damage(path, *range(pictures, 50))
    told = rf"a\.mp4: breaks off after frame {pictures} \(.*\): it is damaged, and should be 2\.0 s long"
    with open_source(path) as source, pytest.raises(SourceError, match=told):
        list(source)


def test_pause_in_a_recording_is_not_reported_as_damage(tmp_path: Path) -> None:
    recipe = VideoRecipe(options={"g": "1"}, times_s=[0.0, 0.1, 5.0, 5.1])
    with open_source(write_video(tmp_path / "a.mkv", noise(4), recipe)) as source:
        assert (sum(1 for _ in source), source.failed) == (4, [])


def test_playlist_reports_missing_segments_and_raises_if_the_last_ones_are_missing(tmp_path: Path) -> None:
    options = {"g": "10", "sc_threshold": "0", "bf": "0"}
    recipe = VideoRecipe(rate=Fraction(10), options=options, mux={"hls_time": "1", "hls_playlist_type": "vod"})
    path = write_video(tmp_path / "list.m3u8", noise(40), recipe)
    with open_source(path) as source:
        assert (sum(1 for _ in source), source.failed) == (40, [])
    (tmp_path / "list1.ts").unlink()
    with open_source(path) as source:
        assert sum(1 for _ in source) == 30
    told = "nothing came from 1.000 s to here, segments of the playlist may be missing"
    assert source.failed == [("frame 11 (2.000 s)", told)]
    (tmp_path / "list2.ts").unlink()
    (tmp_path / "list3.ts").unlink()
    broken = pytest.raises(SourceError, match=r"breaks off after frame 10 \(0\.900 s\): its playlist is 4\.0 s long")
    with open_source(path) as source, broken:
        list(source)


def test_a_length_alone_is_no_damage(tmp_path: Path) -> None:
    recipe = VideoRecipe(rate=Fraction(25), times_s=[0.0, 0.04, 0.08, 5.0])
    whole = write_video(tmp_path / "a.mkv", noise(4), recipe).read_bytes()
    shorter = whole.replace(b"00:00:05.0", b"00:00:09.0")  # as of a last picture that stands still
    assert shorter != whole
    (tmp_path / "still.mkv").write_bytes(shorter)
    (tmp_path / "longer.mkv").write_bytes(whole + bytes(len(whole)))
    assert len(times(open_source(tmp_path / "still.mkv"))) == len(times(open_source(tmp_path / "longer.mkv"))) == 4


# --- cameras and streams ----------------------------------------------------------------------------------------------

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


def live(plugs: Plugs, retry: Retry | None = PROMPT, *, by_stamps: bool = False) -> LiveSource:
    names = {"label": "camera 0", "name": "camera0"}
    return LiveSource(plugs.open(), plugs.open, **names, kind="camera", retry=retry, by_stamps=by_stamps)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mkv", noise(4), VideoRecipe("ffv1", "bgr0", options={}))


def test_live_graph_numbers_frames_and_takes_times_from_the_clock() -> None:
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


def test_live_times_rise_where_the_monotonic_clock_has_coarse_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows before Python 3.13."""
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    with open_source("lavfi:testsrc=size=64x48:rate=30:duration=0.2") as source:
        frames = list(source)
    assert len(frames) == 6
    assert all(a.time_s < b.time_s and a.taken_s < b.taken_s for a, b in pairwise(frames))


def test_segmented_live_source_is_paced_and_timed_by_its_timestamps(tmp_path: Path) -> None:
    stamps = [0.0, 0.01, 0.02, 0.05, 0.06, 0.1]
    clip = write_video(tmp_path / "a.mkv", noise(6), VideoRecipe(times_s=stamps))
    other = write_video(tmp_path / "b.mkv", noise(6), VideoRecipe(times_s=[9 + stamp for stamp in stamps]))
    frames: list[Frame] = []
    opened_s = time.perf_counter()
    with live(Plugs(clip, other), by_stamps=True) as source, pytest.raises(SourceError):
        frames.extend(source)
    first, second = frames[:6], frames[6:]
    for part, before_s in ((first, opened_s), (second, first[-1].taken_s)):
        np.testing.assert_allclose([frame.time_s - part[0].time_s for frame in part], stamps, atol=1.1e-3)
        assert min(frame.taken_s - before_s - (frame.time_s - part[0].time_s) for frame in part) > 0
    assert first[-1].time_s < second[0].time_s
    assert second[0].time_s - first[-1].time_s <= second[0].taken_s - first[-1].taken_s


def test_reopened_playlist_continues_after_the_pictures_already_given(tmp_path: Path) -> None:
    stamps = [n / 25 for n in range(9)]
    clips = [(0, 6), (3, 6), (3, 9)]  # the second time its encoder has written nothing more
    paths = [
        write_video(tmp_path / f"{first}-{end}.mkv", noise(9)[first:end], VideoRecipe(times_s=stamps[first:end]))
        for first, end in clips
    ]
    frames: list[Frame] = []
    told = pytest.raises(SourceError, match=r"lost after frame 9 \(0\.320 s\): .*; tried 3 times")
    with live(Plugs(*paths), by_stamps=True) as source, told:
        frames.extend(source)
    np.testing.assert_allclose([frame.time_s for frame in frames], stamps, atol=1.1e-3)
    assert len(source.failed) == 1


def test_playlist_without_new_segments_raises_after_the_retries(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "a.mkv", noise(6))
    frames: list[Frame] = []
    told = pytest.raises(SourceError, match="nothing newer came; tried 3 times")
    with live(Plugs(*[clip] * 9), by_stamps=True) as source, told:
        frames.extend(source)
    assert len(frames) == 6


def test_realtime_graph_is_paced_and_timed_by_its_timestamps() -> None:
    opened_s = time.perf_counter()
    with open_source("lavfi:testsrc=size=64x48:rate=50:duration=0.2", realtime=True) as source:
        frames = list(source)
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(10) / 50, atol=1e-6)
    assert frames[-1].taken_s - opened_s > 9 / 50


def test_losses_and_damage_of_a_camera_are_reported_up_to_a_limit(clip: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", noise(10), VideoRecipe("png", "rgb24", options={}))
    damage(path, 4, 7)
    with live(Plugs(clip, path)) as source, pytest.raises(SourceError):
        list(source)
    places = [place.partition(" (")[0] for place, _ in source.failed]
    assert places == ["after frame 4", "packet after frame 8", "packet after frame 10"]
    assert source.failed[0][1].startswith("lost, it ended; opened again, nothing came for ")
    with live(Plugs(*[clip] * (NOTED + 5))) as source, pytest.raises(SourceError):
        list(source)
    assert len(source.failed) == NOTED + 1
    assert source.failed[-1][0].startswith(f"after frame {4 * (NOTED + 4)} (")
    assert source.failed[-1][1].endswith("; 3 others before it not listed")


@pytest.mark.parametrize(("size", "noted"), [((32, 48), 0), ((96, 64), 1)])
def test_camera_that_returns_with_another_size_keeps_the_first_size(
    clip: Path, size: tuple[int, int], noted: int, tmp_path: Path
) -> None:
    other = write_video(tmp_path / "other.mkv", noise(4, *size), VideoRecipe("ffv1", "bgr0", options={}))
    frames: list[Frame] = []
    with live(Plugs(clip, other)) as source, pytest.raises(SourceError, match="lost after frame 8"):
        frames.extend(source)
    assert [frame.size for frame in frames] == [(64, 96)] * 8
    assert [name[:7] for name, _ in source.failed] == ["after f"] + ["frame 5"] * noted


@pytest.mark.parametrize("fail", [0, 2])
def test_lost_camera_is_reopened_and_frame_numbers_continue(clip: Path, fail: int) -> None:
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


def test_retries_are_limited_and_reset_after_a_frame(clip: Path) -> None:
    with live(Plugs(clip, clip, fail=3)) as source, pytest.raises(SourceError, match="lost after frame 4 "):
        list(source)
    with live(Plugs(clip, clip, clip, fail=2)) as source, pytest.raises(SourceError, match="lost after frame 12 "):
        list(source)


def test_the_waits_for_a_lost_camera_double_up_to_a_minute() -> None:
    waits_s = [Retry().wait_s(attempt) for attempt in range(10)]
    assert waits_s == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert Retry().wait_s(1_000_000) == 60
    assert Retry(first_wait_s=300).wait_s(2) == 300


@pytest.mark.parametrize(
    "wrong", [{"attempts": -1}, {"attempts": 0.5}, {"attempts": "3"}, {"first_wait_s": -1}, {"first_wait_s": math.nan}]
)
def test_invalid_retry_settings_raise(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^retry: wanted .*, 0 or more, got "):
        Retry(**wrong)


def test_a_camera_that_comes_back_without_a_picture_counts_as_lost(clip: Path, tmp_path: Path) -> None:
    write_no_frames(tmp_path / "dark.avi")
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
