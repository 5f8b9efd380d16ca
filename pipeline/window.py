"""The live window: the newest frame with its faces, frame rate and latency."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import ModuleType

from ..tracker.errors import SinkError
from ..tracker.types import Result
from .draw import DARK, draw_faces, draw_text, fit_scale, resized

LARGEST_SHARE = 0.85  # of the desktop's sides that a new window may take
TEXT_PX = 11  # height of the text
SMOOTHING = 0.1  # weight of the newest frame in the exponential averages, which keeps them legible
_HEADLESS_DRIVERS = ("offscreen", "dummy")  # SDL chooses one of them if it finds no display
_REMEDY = "use --no-window, or run it where there is a screen"


class LiveWindow:
    """Shows results in a resizable window, on SDL through pygame-ce.

    q, Escape and the close button set `closed`; the loop that writes should then end. All methods, including the
    constructor, must be called on the program's main thread: operating systems allow windows on no other.

    Attributes:
        closed: whether the user has closed the window.

    Args:
        title: of the window.
        clock: gives seconds; the clock of `Frame.taken_s`.
    Raises:
        SinkError: there is no display.
    """

    def __init__(self, title: str, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.closed = False
        self._title = title
        self._clock = clock
        self._pygame = _open_display()
        self._shown = False
        self._last_s: float | None = None
        self._period_s = 0.0
        self._latency_s = 0.0

    def write(self, result: Result) -> None:
        """Show a frame and handle the user's input; no effect once `closed`.

        Raises:
            SinkError: the display is lost.
        """
        try:
            if not self._shown:
                self._show(result.frame.size)
            self.pump()
            if not self.closed:
                self._paint(result)
        except self._pygame.error as error:
            raise SinkError(f"window: the display cannot be used any more: {error}") from error

    def pump(self) -> None:
        """Handle the user's input; `write` does so too, so this is for times without frames."""
        pygame = self._pygame
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (
                event.type == pygame.KEYDOWN and event.key in (pygame.K_q, pygame.K_ESCAPE)
            ):
                self.closed = True

    def finish(self) -> None:
        """Nothing is left to do: every frame has been shown."""

    def close(self, *, complete: bool) -> None:  # noqa: ARG002 - a window is never complete
        """Close the window."""
        self.closed = True
        self._pygame.display.quit()

    def _show(self, size: tuple[int, int]) -> None:
        """Open the window as large as the frame, or as the desktop allows."""
        pygame = self._pygame
        width, height = pygame.display.get_desktop_sizes()[0]
        scale = min(1.0, fit_scale(size, (round(height * LARGEST_SHARE), round(width * LARGEST_SHARE))))
        pygame.display.set_mode((round(size[1] * scale), round(size[0] * scale)), pygame.RESIZABLE)
        pygame.display.set_caption(self._title)
        self._shown = True

    def _paint(self, result: Result) -> None:
        pygame = self._pygame
        surface = pygame.display.get_surface()
        width, height = surface.get_size()
        picture = resized(result.frame.bgr, (height, width))
        scale = picture.shape[1] / result.frame.bgr.shape[1]
        image = draw_faces(picture, result.faces, scale=scale)  # after resizing, so that lines stay sharp
        draw_text(image, self._figures(result), (0, image.shape[0]), height=TEXT_PX, plate=DARK)
        shown = image.shape[1], image.shape[0]
        surface.fill((0, 0, 0))
        place = (width - shown[0]) // 2, (height - shown[1]) // 2
        surface.blit(pygame.image.frombuffer(image, shown, "BGR"), place)
        pygame.display.flip()

    def _figures(self, result: Result) -> str:
        """Average frames per second, average milliseconds since capture, and the number of faces."""
        now_s = self._clock()
        latency_s = now_s - result.frame.taken_s
        if self._last_s is None:
            self._latency_s = latency_s
        else:
            period_s = now_s - self._last_s
            self._period_s += SMOOTHING * (period_s - self._period_s) if self._period_s else period_s
            self._latency_s += SMOOTHING * (latency_s - self._latency_s)
        self._last_s = now_s
        rate = f"{1 / self._period_s:.1f}" if self._period_s > 0 else "-"
        count = len(result.faces)
        return f"{rate} fps   {1000 * self._latency_s:.0f} ms   {count} face{'' if count == 1 else 's'}"


def _open_display() -> ModuleType:
    """Load pygame-ce and connect to the display.

    Raises:
        SinkError: there is none, or pygame-ce is missing.
    """
    # Without this check SDL takes seconds to fail, and on some servers tries the graphics card itself.
    asked = os.environ.get("SDL_VIDEODRIVER")
    if sys.platform.startswith("linux") and not (
        asked or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise SinkError(f"window: there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set); {_REMEDY}")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it would print a greeting into the data on stdout
    import pygame

    try:
        pygame.display.init()
    except pygame.error as error:
        raise SinkError(f"window: the display cannot be opened: {error}; {_REMEDY}") from error
    if not asked and pygame.display.get_driver() in _HEADLESS_DRIVERS:
        pygame.display.quit()
        raise SinkError(f"window: the display does not respond; {_REMEDY}")
    return pygame
