"""The live window, on a display that shows nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from fakes import grey, make_face, make_result

from facetrack.pipeline.draw import draw_faces
from facetrack.pipeline.window import LiveWindow
from facetrack.tracker.errors import SinkError
from facetrack.tracker.types import Frame, Result, UInt8


class Clock:
    """A clock that goes on by a step at each look."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveWindow]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    shown = LiveWindow("test", clock=Clock(0.05))
    yield shown
    shown.close(complete=True)


def screen() -> UInt8:
    """What the window shows, (H, W, 3) BGR."""
    import pygame

    surface = pygame.display.get_surface()
    return pygame.surfarray.array3d(surface).transpose(1, 0, 2)[..., ::-1]


def test_window_shows_the_frame_with_its_faces_at_its_size(window: LiveWindow) -> None:
    shown = make_result(make_face(), size=(240, 320))
    window.write(shown)
    seen = screen()
    assert seen.shape == (240, 320, 3)
    wanted = draw_faces(shown.frame.bgr, shown.faces)
    np.testing.assert_array_equal(seen[:200], wanted[:200])
    assert (seen[225:, :150] != wanted[225:, :150]).any()  # the figures


def test_a_large_frame_opens_a_window_that_fits_the_desktop(window: LiveWindow) -> None:
    import pygame

    window.write(make_result(size=(2000, 3000)))
    width, height = pygame.display.get_desktop_sizes()[0]
    seen_height, seen_width = screen().shape[:2]
    assert seen_width <= width
    assert seen_height <= height
    assert seen_width / seen_height == pytest.approx(1.5, abs=0.01)


def test_a_resized_window_keeps_the_proportions(window: LiveWindow) -> None:
    import pygame

    window.write(make_result(size=(100, 100)))
    pygame.display.set_mode((300, 150), pygame.RESIZABLE)
    window.write(make_result(size=(100, 100)))
    seen = screen()
    assert seen.shape == (150, 300, 3)
    assert (seen[20, :75] == 0).all()
    assert (seen[20, 75:225] == 90).all()
    assert (seen[20, 225:] == 0).all()


@pytest.mark.parametrize("answer", ["q", "escape", "button"])
def test_q_escape_and_the_windows_button_close_it(window: LiveWindow, answer: str) -> None:
    import pygame

    window.write(make_result())
    assert not window.closed
    event = {
        "q": pygame.event.Event(pygame.KEYDOWN, key=pygame.K_q),
        "escape": pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE),
        "button": pygame.event.Event(pygame.QUIT),
    }[answer]
    pygame.event.post(event)
    window.pump()
    assert window.closed
    window.write(make_result())  # a frame that was still on its way


def test_other_keys_do_not_close_it(window: LiveWindow) -> None:
    import pygame

    window.write(make_result())
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_a))
    window.pump()
    assert not window.closed


def test_figures_are_frame_rate_latency_and_face_count(window: LiveWindow) -> None:
    # the clock goes on by 50 ms a look; each frame was taken 20 ms before it is shown
    texts = []
    for index in range(5):
        taken_s = (index + 1) * 0.05 - 0.02
        frame = Frame(index, 0.0, taken_s, grey())
        texts.append(window._figures(Result(frame, (make_face(),) * (index % 3))))
    assert texts[0] == "- fps   20 ms   0 faces"
    assert texts[1] == "20.0 fps   20 ms   1 face"
    assert texts[4] == "20.0 fps   20 ms   1 face"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
def test_missing_display_raises_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SinkError, match="there is no display") as caught:
        LiveWindow("test")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
def test_unresponsive_display_raises_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":987")
    with pytest.raises(SinkError, match="window: the display") as caught:
        LiveWindow("test")
    assert "\n" not in str(caught.value)
