"""Open Sound Control over a real socket, read back by python-osc's own parser."""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import PaintedSource, make_face, make_result
from fakes_pipeline import PaintedEngines, paint_video
from pythonosc.osc_bundle import OscBundle
from pythonosc.osc_packet import OscPacket

from facetrack.cli import main
from facetrack.pipeline.osc_sink import OscSink, datagrams, parse_address
from facetrack.tracker.errors import SinkError
from facetrack.tracker.pose import eye_aspect_ratio, head_pose
from facetrack.tracker.types import State

IMMEDIATELY = b"\0\0\0\0\0\0\0\1"  # OSC 1.0: 63 zero bits and a one


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        yield receiver


def received(listener: socket.socket) -> dict[str, list[Any]]:
    """The next datagram: address -> arguments."""
    packet = OscPacket(listener.recv(65535))
    return {timed.message.address: list(timed.message.params) for timed in packet.messages}


def parsed(datagram: bytes) -> dict[str, list[Any]]:
    return {message.address: list(message.params) for message in OscBundle(datagram)}


def test_a_face_arrives_as_it_was_tracked(listener: socket.socket) -> None:
    face = make_face(track=7)
    sink = OscSink(*listener.getsockname())
    sink.write(make_result(face, index=4, time_s=1.25))
    sink.close(complete=True)
    bundle = received(listener)
    assert list(bundle) == [
        "/facetrack/frame",
        "/facetrack/faces",
        "/facetrack/7/confidence",
        "/facetrack/7/success",
        "/facetrack/7/pose",
        "/facetrack/7/eye_left",
        "/facetrack/7/eye_right",
        "/facetrack/7/landmarks",
    ]
    assert bundle["/facetrack/frame"] == [5, 1.25, 160, 120]
    assert bundle["/facetrack/faces"] == [7]
    assert bundle["/facetrack/7/confidence"] == pytest.approx([0.98765])
    assert bundle["/facetrack/7/success"] == [1]
    pose = head_pose(face.smoothed, (120, 160))
    assert pose is not None
    assert bundle["/facetrack/7/pose"] == pytest.approx([*pose.translation_mm, *pose.rotation_rad], rel=1e-5)
    eyes = bundle["/facetrack/7/eye_left"] + bundle["/facetrack/7/eye_right"]
    assert eyes == pytest.approx(list(eye_aspect_ratio(face.smoothed)))
    np.testing.assert_array_equal(np.reshape(bundle["/facetrack/7/landmarks"], (68, 2)), face.smoothed)


def test_frame_without_a_face_sends_an_empty_list_of_faces(listener: socket.socket) -> None:
    sink = OscSink(*listener.getsockname())
    sink.write(make_result(index=9))
    assert received(listener) == {"/facetrack/frame": [10, pytest.approx(0.3), 160, 120], "/facetrack/faces": []}
    sink.close(complete=True)


def test_each_face_has_a_bundle_that_names_all_of_them() -> None:
    result = make_result(make_face(track=3), make_face(track=5, state=State.COASTING))
    first, second = (parsed(datagram) for datagram in datagrams(result))
    assert first["/facetrack/faces"] == second["/facetrack/faces"] == [3, 5]
    assert first["/facetrack/frame"] == second["/facetrack/frame"]
    assert (first["/facetrack/3/success"], second["/facetrack/5/success"]) == ([1], [0])
    assert not any(address.startswith("/facetrack/5/") for address in first)


@pytest.mark.parametrize(("points", "faces"), [(68, 85), (98, 32)])
def test_datagram_fits_into_one_ethernet_frame(points: int, faces: int) -> None:
    xy = np.random.default_rng(0).normal(100, 30, (points, 2)).astype(np.float32)
    sent = list(datagrams(make_result(*(make_face(xy, track=1_000_000 + i) for i in range(faces)))))
    assert len(sent) == faces
    assert max(map(len, sent)) <= 1500 - 20 - 8  # a frame of Ethernet less the headers of IPv4 and UDP


def test_bundle_is_timestamped_immediately() -> None:
    (datagram,) = datagrams(make_result())
    assert datagram[:16] == b"#bundle\0" + IMMEDIATELY


def test_what_a_markup_does_not_tell_is_left_out() -> None:
    (datagram,) = datagrams(make_result(make_face(np.arange(10.0).reshape(5, 2))))
    addresses = {address.rpartition("/")[2] for address in parsed(datagram)}
    assert "landmarks" in addresses
    assert not {"pose", "eye_left", "eye_right"} & addresses


def test_eye_without_width_is_omitted_and_the_other_is_sent() -> None:
    xy = make_face().smoothed.copy()
    xy[36:42, 0] = xy[36, 0]  # ibug68's right eye
    left, right = eye_aspect_ratio(xy)
    assert np.isnan(right)
    (bundle,) = map(parsed, datagrams(make_result(make_face(xy))))
    assert bundle["/facetrack/0/eye_left"] == pytest.approx([left])
    assert "/facetrack/0/eye_right" not in bundle


def test_receiver_that_reads_nothing_does_not_block_the_sink(listener: socket.socket) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sink = OscSink(*listener.getsockname())
    for index in range(40):
        sink.write(make_result(make_face(), index=index))
    sink.close(complete=True)
    assert received(listener)["/facetrack/frame"][0] == 1


def test_nobody_listening_is_no_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        address = gone.getsockname()
    sink = OscSink(*address)
    for index in range(3):
        sink.write(make_result(index=index))
    sink.close(complete=True)


def test_lost_datagrams_are_warned_of_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    sink = OscSink("127.0.0.1", 0)  # nothing can be sent to port 0
    with caplog.at_level(logging.WARNING, "facetrack"):
        for index in range(3):
            sink.write(make_result(index=index))
        sink.close(complete=False)
        sink.close(complete=True)
    first, last = (record.getMessage() for record in caplog.records)
    assert "OSC to 127.0.0.1 port 0: a datagram was lost" in first
    assert "3 datagrams were lost" in last


def test_ipv4_address_is_preferred_over_ipv6(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of "localhost", Windows and macOS give ::1 first."""
    (old,) = socket.getaddrinfo(*listener.getsockname(), type=socket.SOCK_DGRAM)
    new = (socket.AF_INET6, *old[1:4], ("::1", *old[4][1:], 0, 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [new, old])
    sink = OscSink("localhost", 0)
    sink.write(make_result())
    sink.close(complete=True)
    assert received(listener)["/facetrack/frame"][0] == 1


def test_unknown_host_raises_with_a_hint() -> None:
    with pytest.raises(SinkError, match=r"OSC to .* port 9000: .*; check the host's name"):
        OscSink("no such host", 9000)


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pythonosc.osc_bundle_builder", None)
    with pytest.raises(SinkError, match=r'run: pip install "facetrack\[osc\]"'):
        OscSink("127.0.0.1", 9000)


def test_addresses_are_a_host_and_a_port() -> None:
    assert parse_address("127.0.0.1:9000") == ("127.0.0.1", 9000)
    assert parse_address("studio.local:39539") == ("studio.local", 39539)
    assert parse_address("[::1]:9000") == ("::1", 9000)


@pytest.mark.parametrize(
    "text", ["", "9000", "localhost", ":9000", "a:0", "a:65536", "a:b", "a:1/x", "u@a:1", "::1:9000", "10.0..5:9000"]
)
def test_invalid_address_is_bad_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="wanted HOST:PORT"):
        parse_address(text)
    assert main(["live", "--camera", "0", "--osc", text]) == 2
    assert "wanted HOST:PORT, such as 127.0.0.1:9000" in capsys.readouterr().err


def test_live_sends_over_osc_what_it_writes_as_json_lines(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    video = paint_video(tmp_path / "clip.mp4", PaintedSource(count=6))
    host, port = listener.getsockname()
    words = ["live", "--camera", str(video), "--no-window", "--jsonl", "--osc", f"{host}:{port}"]
    assert main(words, PaintedEngines()) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines
    for line in lines:  # live, some of the six may have been dropped
        bundle = received(listener)
        (shown,) = line["faces"]
        assert bundle["/facetrack/frame"] == [line["frame"], pytest.approx(line["timestamp"], abs=1e-6), 320, 240]
        assert bundle["/facetrack/0/pose"] == pytest.approx([*shown["pose_T"], *shown["pose_R"]], abs=0.006)
        landmarks = np.reshape(bundle["/facetrack/0/landmarks"], (68, 2))
        np.testing.assert_allclose(landmarks, shown["xy"], atol=0.0051)
