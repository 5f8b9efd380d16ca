"""The live window: the newest frame with its faces, how fast and how late it is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import ModuleType

from ..tracker.errors import SinkError
from ..tracker.types import Result
from .draw import DARK, draw_faces, draw_text, fit_scale, resized

LARGEST_SHARE = 0.85  # of the desktop that a window takes at first
TEXT_PX = 11  # height of the figures
SMOOTHING = 0.1  # share of the newest frame in the figures shown, so that they can be read
_SILENT_DRIVERS = ("offscreen", "dummy")  # SDL's, which show nothing; it takes one when it finds no display


class LiveWindow:
    """Shows results in a window that can be resized, on SDL by way of pygame-ce.

    q, Escape and the window's own button set `closed`; the loop that writes should then end. Everything here, the
    constructor too, belongs on the program's main thread: operating systems give windows to no other.

    Attributes:
        closed: the user wants no more.

    Args:
        title: of the window.
        clock: seconds, the one that `Frame.taken_s` was read from.
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
        """Show a frame and take in what the user did; without effect once `closed`.

        Raises:
            SinkError: the display went away.
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
        """Take in what the user did; for the time when no frames come."""
        pygame = self._pygame
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (
                event.type == pygame.KEYDOWN and event.key in (pygame.K_q, pygame.K_ESCAPE)
            ):
                self.closed = True

    def finish(self) -> None:
        """Nothing is left to do: every frame has been shown."""

    def close(self, *, complete: bool) -> None:  # noqa: ARG002 - a window is never complete
        """Take the window away."""
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
        canvas = draw_faces(picture, result.faces, scale=scale)  # after resizing, so that lines stay sharp
        draw_text(canvas, self._figures(result), (0, canvas.shape[0]), height=TEXT_PX, plate=DARK)
        shown = canvas.shape[1], canvas.shape[0]
        surface.fill((0, 0, 0))
        place = (width - shown[0]) // 2, (height - shown[1]) // 2
        surface.blit(pygame.image.frombuffer(canvas, shown, "BGR"), place)
        pygame.display.flip()

    def _figures(self, result: Result) -> str:
        """Frames a second and delay since the camera, evened out, and how many faces."""
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
    # SDL itself would take seconds to find out, and on some servers try the bare graphics card.
    asked = os.environ.get("SDL_VIDEODRIVER")
    if sys.platform.startswith("linux") and not (
        asked or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise SinkError(f"window: there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set); {_INSTEAD}")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it would print a greeting into the data on stdout
    import pygame

    try:
        pygame.display.init()
    except pygame.error as error:
        raise SinkError(f"window: the display cannot be opened: {error}; {_INSTEAD}") from error
    if not asked and pygame.display.get_driver() in _SILENT_DRIVERS:
        pygame.display.quit()
        raise SinkError(f"window: the display does not answer; {_INSTEAD}")
    return pygame


_INSTEAD = "use --no-window, or run it where there is a screen"
