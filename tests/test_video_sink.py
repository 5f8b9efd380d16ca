"""The annotated video is as long, as fast and as large as its source."""

from __future__ import annotations

import gc
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fakes import make_face, make_result, noise

from facetrack.pipeline.sources import open_source
from facetrack.pipeline.video_sink import VideoSink, _Unfailing, pad_to_even, ticks_per_second
from facetrack.tracker.errors import SinkError
from facetrack.tracker.types import Frame, Result


def write_annotated(path: Path, times_s: Sequence[float], rate: Fraction | None, size: tuple[int, int]) -> None:
    sink = VideoSink(path, rate=rate)
    for index, time_s in enumerate(times_s):
        sink.write(make_result(make_face(), index=index, time_s=time_s, size=size))
    sink.close(complete=True)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30), Fraction(24000, 1001), Fraction(30000, 1001)])
def test_the_video_is_as_long_and_as_fast_as_its_source(tmp_path: Path, rate: Fraction) -> None:
    times = [float(index / rate) for index in range(20)]
    write_annotated(tmp_path / "a.mp4", times, rate, (120, 160))
    with av.open(tmp_path / "a.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == rate
        assert (stream.duration or 0) * (stream.time_base or 0) == 20 / rate
        stamps = [frame.time for frame in container.decode(stream)]
    assert stamps == times


@pytest.mark.parametrize("start_s", [0.0, 12.5])
def test_variable_frame_rates_and_dropped_frames_keep_their_times(tmp_path: Path, start_s: float) -> None:
    times = [0, 0.033, 0.05, 0.4, 0.41, 1.2, 1.25]
    write_annotated(tmp_path / "a.mp4", [start_s + t for t in times], Fraction(30), (120, 160))
    with open_source(tmp_path / "a.mp4") as source:
        stamps = [frame.time_s for frame in source]
    np.testing.assert_allclose(stamps, times, atol=1e-4)


def test_the_times_after_a_long_pause_are_kept(tmp_path: Path) -> None:
    """The clock has a million ticks a second, and an mp4 loses its times 2^31 ticks after a frame."""
    times = [0, 0.05, 5000, 5000.05]
    write_annotated(tmp_path / "a.mp4", times, Fraction(2997003, 100000), (120, 160))
    with open_source(tmp_path / "a.mp4") as source:
        stamps = [frame.time_s for frame in source]
    assert stamps[:2] + stamps[-2:] == times
    assert len(stamps) == len(times) + 4  # the second frame again, every 18 minutes


@pytest.mark.parametrize("rate", [Fraction(1, 65_536), Fraction(1, 1_000_000), Fraction(3, 2_000_000_000)])
def test_rate_that_mp4_cannot_store_still_gives_a_video(rate: Fraction, tmp_path: Path) -> None:
    """As a damaged header, or a clock that was set meanwhile, has it."""
    times = [0, 0.04, 0.08]
    write_annotated(tmp_path / "a.mp4", times, rate, (120, 160))
    with open_source(tmp_path / "a.mp4") as source:
        np.testing.assert_allclose([frame.time_s for frame in source], times, atol=1e-4)


def boxes_of(path: Path) -> list[str]:
    """The kinds of an mp4's boxes."""
    data, place, kinds = path.read_bytes(), 0, list[str]()
    while place < len(data):
        kinds.append(data[place + 4 : place + 8].decode())
        place += int.from_bytes(data[place : place + 4], "big")
    return kinds


def test_part_file_of_a_killed_run_is_playable_and_a_finished_video_unfragmented(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "a.mp4", rate=Fraction(30))
    for index in range(150):
        sink.write(make_result(make_face(), index=index, time_s=index / 30))
    shutil.copy(tmp_path / "a.mp4.part", tmp_path / "killed.mp4")
    sink.close(complete=True)
    with av.open(tmp_path / "killed.mp4") as container:
        stamps = [frame.time for frame in container.decode(video=0)]
    assert len(stamps) >= 150 - 60  # all but two seconds at the most
    np.testing.assert_allclose(stamps, np.arange(len(stamps)) / 30, atol=1e-4)
    assert set(boxes_of(tmp_path / "a.mp4")) == {"ftyp", "free", "mdat", "moov"}  # no moof, a fragment's


def test_frames_at_the_same_instant_are_kept_apart(tmp_path: Path) -> None:
    write_annotated(tmp_path / "a.mp4", [0, 0, 0], None, (120, 160))
    with open_source(tmp_path / "a.mp4") as source:
        assert len(list(source)) == 3


@pytest.mark.parametrize(("size", "even"), [((121, 161), (122, 162)), ((120, 161), (120, 162)), ((33, 40), (34, 40))])
def test_odd_sizes_grow_by_a_doubled_row_or_column(
    tmp_path: Path, size: tuple[int, int], even: tuple[int, int]
) -> None:
    write_annotated(tmp_path / "a.mp4", [0, 0.1], None, size)
    with open_source(tmp_path / "a.mp4") as source:
        assert source.size == even
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    padded = pad_to_even(picture)
    np.testing.assert_array_equal(padded[: size[0], : size[1]], picture)
    np.testing.assert_array_equal(padded[-1, : size[1]], picture[-1])


def test_the_video_shows_the_frames_in_their_colours(tmp_path: Path) -> None:
    bgr = np.full((120, 160, 3), (30, 60, 200), np.uint8)
    sink = VideoSink(tmp_path / "a.mp4")
    sink.write(Result(Frame(0, 0.0, 0.0, bgr), ()))
    sink.close(complete=True)
    with open_source(tmp_path / "a.mp4") as source:
        (frame,) = source
    np.testing.assert_allclose(frame.bgr.reshape(-1, 3).mean(0), (30, 60, 200), atol=5)


def test_a_frame_of_another_size_is_fitted_into_the_first(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "a.mp4")
    sink.write(make_result(index=0, size=(120, 160)))
    sink.write(make_result(index=1, size=(300, 200)))
    sink.close(complete=True)
    with open_source(tmp_path / "a.mp4") as source:
        first, second = source
    assert second.size == first.size == (120, 160)
    assert second.bgr[60, 80].mean() == pytest.approx(90, abs=6)
    assert second.bgr[60, 5].mean() == pytest.approx(0, abs=6)


TOO_LARGE = r"^.*a\.mp4: cannot be written: wanted frames of at most 16384 pixels a side, .*, got 16386x64; leave the"


def test_frames_that_are_too_large_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=TOO_LARGE):
        VideoSink(tmp_path / "a.mp4", size=(64, 16_386))
    sink = VideoSink(tmp_path / "a.mp4")  # as of pictures, whose sizes nobody knows
    with pytest.raises(SinkError, match=TOO_LARGE):
        sink.write(Result(Frame(0, 0.0, 0.0, np.zeros((64, 16_386, 3), np.uint8)), ()))
    sink.close(complete=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(16, 16_383), (16_384, 16)])
def test_the_largest_frames_are_written(size: tuple[int, int], tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "a.mp4", size=size)
    sink.write(Result(Frame(0, 0.0, 0.0, np.zeros((*size, 3), np.uint8)), ()))
    sink.close(complete=True)
    assert (tmp_path / "a.mp4").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limits there")
@pytest.mark.parametrize("limit", [0, 100, 20_000, 1_000_000])
@pytest.mark.parametrize("frames", [3, 70])
def test_full_disk_raises_sink_error_and_prints_nothing(
    limit: int, frames: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of less than a second of video nothing is written before its end."""
    import resource

    sink = VideoSink(tmp_path / "a.mp4")

    def fill(sink: VideoSink) -> None:
        for index, picture in enumerate(noise(frames, 240, 320)):
            sink.write(Result(Frame(index, index / 30, 0.0, picture), ()))
        sink.close(complete=True)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(limit, 30_000) if frames < 10 else limit, before[1]))
    try:
        with pytest.raises(SinkError, match=r"a\.mp4\.part: cannot be written: File too large; make room"):
            fill(sink)
        sink.close(complete=False)
        del sink
        gc.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == (["a.mp4.part"] if limit else [])


def frame_of(index: int) -> Result:
    """A frame of noise; a second of them makes FFmpeg write a fragment."""
    return Result(Frame(index, index / 4, 0.0, noise(1, 240, 320)[0]), ())


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent to a thread there")
@pytest.mark.parametrize("calls", [1, 2, 3, 5])
@pytest.mark.parametrize("fails", [False, True])
def test_an_interrupt_while_ffmpeg_writes_is_heard_and_the_file_is_whole(
    calls: int, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in the function that FFmpeg calls; on the main thread PyAV would swallow it. An error comes later."""
    write, left, heard = _Unfailing.write, iter(range(calls)), threading.Event()

    def interrupted(self: _Unfailing, content: bytes) -> int:
        if next(left, None) == calls - 1:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            heard.wait(10)
            self.error = OSError(5, "broken disk") if fails else None
        return write(self, content)

    monkeypatch.setattr(_Unfailing, "write", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sink, written = VideoSink(tmp_path / "a.mp4"), list[int]()

    def fill() -> None:
        for index in range(200):
            written.append(index)
            sink.write(frame_of(index))

    try:
        with pytest.raises(KeyboardInterrupt):
            fill()
    finally:
        signal.signal(signal.SIGINT, before)
        heard.set()
    if fails:
        with pytest.raises(SinkError, match="broken disk"):
            sink.close(complete=True)
        return
    sink.close(complete=True)
    with av.open(tmp_path / "a.mp4") as container:
        assert len(list(container.decode(video=0))) == len(written)


def end_threads(before: set[threading.Thread]) -> None:
    """Wait for the threads that have been started since; each must end."""
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("complete", [True, False])
def test_the_thread_of_a_video_ends_with_it(complete: bool, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    sink = VideoSink(tmp_path / "a.mp4")
    sink.write(frame_of(0))
    assert set(threading.enumerate()) - before
    sink.close(complete=complete)
    end_threads(before)


def test_no_thread_is_left_if_ffmpeg_cannot_open_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no room for a container")

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(MemoryError, match="no room for a container"):
        VideoSink(tmp_path / "a.mp4")
    end_threads(before)


def test_a_video_can_be_written_from_another_thread(tmp_path: Path) -> None:
    """Also after the main thread has ended, when executors take no more work."""
    writing = threading.Thread(target=write_annotated, args=(tmp_path / "a.mp4", [0, 0.1], None, (120, 160)))
    writing.start()
    writing.join()
    with open_source(tmp_path / "a.mp4") as source:
        assert len(list(source)) == 2


@pytest.mark.parametrize(
    ("rate", "ticks"),
    [
        (Fraction(30), 15_360),
        (Fraction(24000, 1001), 24_000),
        (Fraction(519168, 19667), 519_168),
        (Fraction(10**9 + 7, 10**8), 10**6),
    ],
)
def test_the_clock_of_the_file_fits_the_rate(rate: Fraction, ticks: int) -> None:
    assert ticks_per_second(rate) == ticks
