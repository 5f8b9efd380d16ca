"""The clock of a recording, and reading from devices that are not ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.container import InputContainer
from fakes import (
    VideoRecipe,
    make_face,
    noise,
    write_video,
)

from facetrack.pipeline.live_source import LiveSource
from facetrack.pipeline.video_clock import MediaClock, Pace, lasts_s
from facetrack.pipeline.video_reader import CAMERA_NAPS, Reader, require_gpu_decoding
from facetrack.pipeline.video_source import VideoSource
from facetrack.tracker.errors import SourceError
from facetrack.tracker.smooth import Smoother, SmootherSettings


class _Stamped:
    """What the clock asks of a picture and of a stream."""

    time_base = Fraction(1, 1000)
    average_rate = guessed_rate = Fraction(25)
    container = SimpleNamespace(format=SimpleNamespace(flags=0))

    def __init__(self, pts: int | None = None, start_time: int | None = None, dts: int | None = None) -> None:
        self.pts, self.start_time, self.dts = pts, start_time, dts


def after(pictures: list[_Stamped], index: int) -> Callable[[int], _Stamped | None]:
    """What the clock may ask for at a picture."""
    return lambda ahead: pictures[index + 1 + ahead] if index + 1 + ahead < len(pictures) else None


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
        # another new clock, of a recording too short to fall far
        ([0, 40, 80, 0, 40, 80, 0, 40], [0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28]),
        # a new clock with steps of its own
        ([0, 40, 80, 120, 0, 20, 50], [0, 0.04, 0.08, 0.12, 0.16, 0.18, 0.21]),
        # a new clock after the first picture
        ([90_000, 0, 40], [0, 0.04, 0.08]),
        # another new clock, ahead: half a day is no pause
        ([0, 40, 95_000_000, 95_000_040], [0, 0.04, 0.08, 0.12]),
        ([0, 40, 95_000_000, 95_000_040, 80, 120], [0, 0.04, 0.08, 0.12, 0.16, 0.2]),
        ([0, 40, 40_000_000, 40_000_040], [0, 0.04, 40_000, 40_000.04]),
        # stamps out of order cost no time
        ([0, 120, 40, 80, 160, 280, 200], [0, 0.12, 0.121, 0.122, 0.16, 0.28, 0.281]),
        # a single stamp of nowhere costs its own picture alone, behind as well as ahead
        ([0, 40, 80, 120, 20, 200, 240], [0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24]),
        ([0, 40, 8_000_000, 120, 160], [0, 0.04, 0.08, 0.12, 0.16]),
        # a long pause is the truth
        ([0, 40, 60_000], [0, 0.04, 60]),
        ([0, 40, 60_000, 60_040], [0, 0.04, 60, 60.04]),
        ([0, 40, 60_000, 59_990, 60_040], [0, 0.04, 60, 60.001, 60.04]),
        # unless it is taken back
        ([40, 80, 8_000_000, 160, 200], [0.0, 0.04, 0.08, 0.12, 0.16]),
        ([40, 80, 8_000_000, 100, 140], [0.0, 0.04, 0.08, 0.081, 0.1]),
        ([40, 80, 500, 160, 200], [0.0, 0.04, 0.08, 0.12, 0.16]),
        # a clock that stands still for a while and then goes on where it should be
        ([0, 40, 40, 40, 40, 200, 240], [0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24]),
        ([0, 40, 40, 40, 40, 180, 220], [0, 0.04, 0.075, 0.11, 0.145, 0.18, 0.22]),
        # a stamp for each burst of pictures
        ([0, 0, 0, 120, 120, 120, 240], [0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24]),
        # pictures that came too fast, and a pause behind such ones
        ([0, 40, 40, 40, 40, 80, 120], [0, 0.04, 0.041, 0.042, 0.043, 0.08, 0.12]),
        ([0, 40, 40, 60_000], [0, 0.04, 0.08, 60]),
        # a clock that has stopped
        ([40] * 40, [0.04 * i for i in range(40)]),
        # a first stamp of nowhere, ahead or behind
        ([0, 95_000_000, 95_000_040, 95_000_080], [0, 0.04, 0.08, 0.12]),
        ([95_000_000, 20, 40, 60], [0, 0.02, 0.04, 0.06]),
        # a long pause after the first picture
        ([0, 7_200_000, 7_200_040], [0, 7200, 7200.04]),
    ],
)
def test_media_clock_gives_rising_times_for_any_timestamps(stamps_ms: list[int | None], wanted_s: list[float]) -> None:
    clock, pictures = MediaClock(_Stamped()), [_Stamped(pts) for pts in stamps_ms]  # type: ignore[arg-type]
    found = [clock.time_of(picture, after(pictures, i)) for i, picture in enumerate(pictures)]  # type: ignore[arg-type]
    np.testing.assert_allclose(found, wanted_s, atol=1e-9)


def test_times_of_nanosecond_timestamps_rise_at_csv_precision() -> None:
    """A CSV time stamp has six decimals; some recorders count nanoseconds."""
    stamps_ns = (0, 40_000_000, 40_000_001, 40_000_002, 80_000_600, 80_001_200, 80_001_800)
    pictures = [_Stamped(pts) for pts in stamps_ns]
    for stamped in pictures:
        stamped.time_base = Fraction(1, 1_000_000_000)
    clock = MediaClock(pictures[0])  # type: ignore[arg-type]
    told = [f"{clock.time_of(picture, after(pictures, i)):.6f}" for i, picture in enumerate(pictures)]  # type: ignore[arg-type]
    assert len(set(told)) == len(told)
    assert told == sorted(told)


def test_pace_waits_for_a_long_picture_but_not_for_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a recorded screen, where nothing has changed meanwhile; what comes behind its end is one."""
    monkeypatch.setattr("time.perf_counter", lambda: 100.0)
    shown = SimpleNamespace(duration=5000, time_base=Fraction(1, 1000))
    length_s = lasts_s(shown, Fraction(25))  # type: ignore[arg-type]
    assert length_s == 5.0
    assert lasts_s(SimpleNamespace(duration=0, time_base=None), Fraction(25)) == 0.04  # type: ignore[arg-type]
    pace = Pace()
    assert [pace.due_s(0.0, length_s), pace.due_s(5.0, 0.04), pace.due_s(7.0, 0.04)] == pytest.approx(
        [100, 105, 105.04]
    )


@pytest.mark.parametrize("piece_s", [2, 6])
@pytest.mark.parametrize("paused", [False, True])
def test_pace_catches_up_after_a_delayed_playlist_segment(
    piece_s: int, monkeypatch: pytest.MonkeyPatch, *, paused: bool
) -> None:
    """And it does not halt for that, nor later; or where nothing was filmed meanwhile, which is no delay."""
    now_s = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now_s)
    pace, delays_s, lates_s = Pace(in_pieces=True), list[float](), list[float]()
    for time_s in np.arange(0, 300, 0.04):
        if paused and 60 <= time_s < 72:
            continue
        comes_s = time_s // piece_s * piece_s
        if 60 <= comes_s < 70:
            comes_s = 70.0
        now_s = max(now_s, comes_s)
        due_s = pace.due_s(time_s, 0.04)
        lates_s.append(now_s - (delays_s[-1] if delays_s else 0.0) - time_s)
        delays_s.append(due_s - time_s)
        now_s = max(now_s, due_s)
    assert max(delays_s) == pytest.approx(0 if paused else 10, abs=0.1)
    assert delays_s[-1] < 1
    assert sum(late_s > 0.05 for late_s in lates_s) == (0 if paused else 1)  # that piece


@pytest.mark.parametrize("start_time", [0, 20, 95_000_000])
def test_bogus_first_timestamp_is_not_the_start_of_the_stream(start_time: int) -> None:
    """FFmpeg has it from the first stamps that it sees, wrong ones among them."""
    for first, second in ((0, 95_000_000), (95_000_000, 20)):
        clock = MediaClock(_Stamped(start_time=start_time))  # type: ignore[arg-type]
        pictures = [_Stamped(pts) for pts in (first, second, second + 40)]
        found = [clock.time_of(picture, after(pictures, i)) for i, picture in enumerate(pictures)]  # type: ignore[arg-type]
        np.testing.assert_allclose(found, [0, 0.04, 0.08], atol=1e-9)


@pytest.mark.parametrize("frames", [4, 8])
def test_landmarks_do_not_jump_where_a_clock_stood_still(frames: int) -> None:
    """A chin that nods by 20 px, whose speed must not go on through the pause that the stamps pretend."""
    nod_px = 20 * np.sin(2 * np.pi * np.arange(60) / 10)
    stamps_ms = [40 * (20 if 20 <= i < 20 + frames else i) for i in range(60)]
    clock, pictures = MediaClock(_Stamped()), [_Stamped(pts) for pts in stamps_ms]  # type: ignore[arg-type]
    smoother = Smoother(SmootherSettings(), 68)
    for i, picture in enumerate(pictures):
        seen = make_face().smoothed.copy()
        seen[8, 1] += nod_px[i]
        time_s = clock.time_of(picture, after(pictures, i))  # type: ignore[arg-type]
        smoothed, _ = smoother.update(time_s, seen, np.full(68, 0.65, np.float32), 150.0)
        assert np.abs(smoothed - seen).max() < 1


def test_pictures_that_were_peeked_at_are_read_next(clip: Path) -> None:
    reader = Reader(av.open(clip), "clip")
    assert reader.peek() is reader.peek() is not None
    ahead = [reader.peek(1), reader.peek(0)]
    assert [reader.read(), reader.read()] == ahead[::-1]
    assert reader.peek(1) is None
    assert [reader.read() is None for _ in range(2)] == [False, True]
    assert reader.peek() is None
    reader.close()
    assert reader.peek() is None


def test_read_error_met_while_peeking_is_raised_by_the_next_read(clip: Path) -> None:
    reader = Reader(Unplugged(av.open(clip), 2), "clip")  # type: ignore[arg-type]
    assert reader.read() is not None
    assert reader.peek() is None
    with pytest.raises(av.error.OSError):
        reader.read()
    reader.close()


@pytest.mark.parametrize(("live", "given"), [(False, 6), (True, 4)])
def test_read_error_flushes_the_decoder_for_recordings_but_not_for_live_sources(
    tmp_path: Path, *, live: bool, given: int
) -> None:
    path = write_video(tmp_path / "clip.mp4", noise(9), VideoRecipe(options={"bf": "2", "b_strategy": "0"}))
    reader = Reader(Unplugged(av.open(path), 6), "clip", live=live)  # type: ignore[arg-type]
    frames = [reader.first, *(reader.read() for _ in range(given - 1))]
    assert None not in frames
    with pytest.raises(av.error.OSError):
        reader.read()
    reader.close()


def test_avi_files_are_timed_by_the_order_of_decoding() -> None:
    """As FFmpeg numbers the pictures of H.264 with B-frames in AVI, which has no presentation time stamps."""
    clock = MediaClock(_Stamped(start_time=0), "avi")  # type: ignore[arg-type]
    pictures = [_Stamped(pts, dts=dts) for pts, dts in ((40, 80), (120, 120), (80, 160), (240, 200), (200, 240))]
    times_s = [clock.time_of(p, lambda _: None) for p in pictures]  # type: ignore[arg-type]
    np.testing.assert_allclose(times_s, [0, 0.04, 0.08, 0.12, 0.16], atol=1e-9)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mkv", noise(4), VideoRecipe("ffv1", "bgr0", options={}))


def unreadable(path: Path, pictures: int) -> Path:
    """A video none of whose pictures can be decoded."""
    write_video(path, noise(pictures, 8, 8), VideoRecipe("png", "rgb24", options={}))
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"XXXX"))
    return path


def still_running(container: InputContainer, *, label: str, name: str) -> LiveSource:
    """A stream that is not opened again."""
    return LiveSource(container, lambda: container, label=label, name=name, kind="stream", retry=None)


class Unplugged:
    """A container that cannot be read further after so many packets."""

    def __init__(self, container: InputContainer, packets: int) -> None:
        self._container, self._packets = container, packets
        self.streams = container.streams

    def demux(self, stream: object) -> Iterator[object]:
        yield from islice(self._container.demux(stream), self._packets)
        raise av.error.OSError(5, "Input/output error")

    def close(self) -> None:
        self._container.close()


class Grown:
    """A container in which streams have come up while it was read: PyAV looks for them in its list at the end."""

    def __init__(self, container: InputContainer) -> None:
        self._container = container
        self.streams = container.streams

    def demux(self, stream: object) -> Iterator[object]:
        yield from self._container.demux(stream)
        raise IndexError("list index out of range")

    def close(self) -> None:
        self._container.close()


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


class OnGpu:
    """A container whose stream is to be decoded on a GPU, as it tells."""

    def __init__(self, container: InputContainer) -> None:
        self._container = container
        self._stream = container.streams.video[0]
        context = SimpleNamespace(name="h264", width=64, height=64, is_hwaccel=True)
        stream = SimpleNamespace(type="video", disposition=self._stream.disposition, codec_context=context)
        self.streams = SimpleNamespace(video=[stream])

    def demux(self, stream: object) -> Iterator[object]:
        assert stream is self.streams.video[0]
        return self._container.demux(self._stream)

    def close(self) -> None:
        self._container.close()


@pytest.mark.parametrize("pictures", [3, 310])  # fewer and more than the damage that is put up with
@pytest.mark.parametrize("source", [VideoSource, still_running])
def test_stream_that_the_gpu_cannot_decode_raises(tmp_path: Path, pictures: int, source: Any) -> None:
    """As FFmpeg refuses every packet of H.264 in 10 bits, where it must not turn to the CPU."""
    container = OnGpu(av.open(unreadable(tmp_path / "a.mov", pictures)))
    with pytest.raises(SourceError, match=r"^a: cannot be decoded with cuda here \(Invalid data .*leave --decoder out"):
        source(container, label="a", name="a")


def test_stream_that_the_cpu_would_decode_raises_if_a_gpu_was_requested(clip: Path) -> None:
    """PyAV is content if any stream of the file is decoded on the GPU."""
    container = av.open(clip)
    with pytest.raises(SourceError, match=r"^clip: cannot be decoded with cuda here \(.* ffv1\).*leave --decoder out"):
        require_gpu_decoding(container, "clip")
    with pytest.raises(AssertionError, match="not open"):
        next(container.demux())
    require_gpu_decoding(OnGpu(av.open(clip)), "clip")  # type: ignore[arg-type]


def test_a_camera_that_is_not_ready_is_asked_again(clip: Path) -> None:
    reader = Reader(Drowsy(av.open(clip), 3), "camera 0", live=True)  # type: ignore[arg-type]
    count = 0
    picture = reader.first
    while picture is not None:
        count += 1
        picture = reader.read()
    reader.close()
    assert count == 4


def test_camera_that_is_never_ready_raises(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facetrack.pipeline.video_reader.CAMERA_NAP_S", 0.0)
    container = Drowsy(av.open(clip), CAMERA_NAPS + 1)
    with pytest.raises(SourceError, match=r"^camera 0: no frame can be read: nothing came in time$"):
        Reader(container, "camera 0", live=True)  # type: ignore[arg-type]


def test_streams_that_come_up_later_do_not_end_a_recording_with_an_error(clip: Path) -> None:
    """As of a channel (MPEG-TS) that adds its sound."""
    reader = Reader(Grown(av.open(clip)), "clip")  # type: ignore[arg-type]
    assert [reader.read() is None for _ in range(4)] == [False, False, False, True]  # the first one was read at once
    reader.close()


def test_stream_of_only_damaged_packets_raises(tmp_path: Path) -> None:
    path = unreadable(tmp_path / "a.mov", 310)
    with pytest.raises(SourceError, match="no frame can be read"):
        VideoSource(av.open(path), label="a", name="a")
