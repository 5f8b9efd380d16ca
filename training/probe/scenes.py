"""The scenes of the moving-face probe as data: the faces' motion, the light, the occluders.

Positions and sizes are in pixels of a frame of `WIDTH` x `HEIGHT`, times in frames at `RATE` per second, angles in
degrees. The size of a face is the longer side of the box round its landmarks in its photograph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...tracker.pose import rotation_matrix
from ...tracker.types import Float64

WIDTH, HEIGHT = 640, 480
RATE = 30
SIZE_PX = 150.0
CAMERA = 5.0  # face sizes between a face and the camera: 0.75 m for a head of 15 cm


@dataclass(frozen=True, slots=True)
class Swing:
    """A sine in one of the six numbers of a pose.

    Attributes:
        amplitude: pixels for "x" and "y", per cent for "size", degrees for "roll", "yaw" and "pitch".
        period: frames.
    """

    what: str
    amplitude: float
    period: float


@dataclass(frozen=True, slots=True)
class Path:
    """How a face moves: from key to key at constant speed, with swings added.

    Attributes:
        keys: (frame, x, y, size) in order of time; before the first and after the last the face rests. Put a jump
            between two exposures.
        swings: of the pose.
    """

    keys: tuple[tuple[float, float, float, float], ...]
    swings: tuple[Swing, ...] = ()

    def pose(self, frames: Float64) -> Float64:
        """(T, 6) x, y, size in px, and roll, yaw, pitch in radians at times (T,), which need not be whole numbers."""
        keys = np.array(self.keys, np.float64)
        pose = np.zeros((len(frames), 6))
        for i in range(3):
            pose[:, i] = np.interp(frames, keys[:, 0], keys[:, i + 1])
        for swing in self.swings:
            wave = swing.amplitude * np.sin(2 * np.pi * frames / swing.period)
            if swing.what == "size":
                pose[:, 2] *= 1 + wave / 100
            elif swing.what in ("x", "y"):
                pose[:, "xy".index(swing.what)] += wave
            else:
                pose[:, 3 + ("roll", "yaw", "pitch").index(swing.what)] += np.radians(wave)
        return pose


@dataclass(frozen=True, slots=True)
class Occluder:
    """An upright bar without a face on it that passes in front of everything.

    Attributes:
        path: of its centre; its size is its width.
        height: pixels.
    """

    path: Path
    height: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One clip.

    Attributes:
        name: of its folder.
        frames: length.
        faces: the later ones are nearer to the camera.
        occluder: in front of all faces, or None.
        noise: sigma of the sensor's noise, grey levels.
        shutter: exposure time as a share of the time between two frames.
        gain: (least, greatest) brightness, swinging between the two with a period of 90 frames.
        shade: how much darker one side of the frame is at most, as a share; the dark side turns once in 150 frames.
        crf: rate factor of the H.264 encoder; 23 is its default, higher loses more; at 8 the sensor's noise is kept.
    """

    name: str
    frames: int
    faces: tuple[Path, ...] = ()
    occluder: Occluder | None = None
    noise: float = 4.0
    shutter: float = 0.3
    gain: tuple[float, float] = (1.0, 1.0)
    shade: float = 0.0
    crf: int = 20


def _rest(size: float = SIZE_PX, swings: tuple[Swing, ...] = ()) -> Path:
    return Path(((0, 320.0, 240.0, size),), swings)


def _ride(px_per_frame: float) -> Path:
    """Rest for two seconds, move by half the frame's width, and rest again, with a sudden start and a sudden stop."""
    left, way = WIDTH / 4, WIDTH / 2
    return Path(((60, left, 240, SIZE_PX), (60 + way / px_per_frame, left + way, 240, SIZE_PX)))


def _across(start: float, x1: float, x2: float, px_per_frame: float, size: float = SIZE_PX, y: float = 240) -> Path:
    return Path(((start, x1, y, size), (start + abs(x2 - x1) / px_per_frame, x2, y, size)))


_SWAY = (Swing("x", 90, 75), Swing("y", 40, 50), Swing("roll", 15, 60), Swing("size", 12, 90))
_NOD = (Swing("roll", 30, 80), Swing("yaw", 25, 55), Swing("pitch", 15, 70))
_BREATHE = (Swing("x", 12, 60), Swing("y", 6, 45), Swing("roll", 3, 50))

SCENES: tuple[Scene, ...] = (
    Scene("still", 210, (_rest(),), crf=8),
    Scene("still-far", 210, (_rest(size=60),), crf=8),
    Scene("ride-2", 280, (_ride(2.0),)),
    Scene("ride-8", 160, (_ride(8.0),)),
    Scene("ride-16", 140, (_ride(16.0),), shutter=0.5),
    Scene("sway", 150, (_rest(swings=_SWAY),)),
    Scene("turn", 150, (_rest(swings=_NOD),)),
    Scene("near-and-far", 150, (Path(((0, 320, 240, 55), (75, 320, 240, 260), (149, 320, 240, 55)), _BREATHE),)),
    Scene("light", 150, (_rest(swings=_BREATHE),), gain=(0.35, 1.35), shade=0.5),
    Scene("dark", 150, (_rest(swings=_BREATHE),), gain=(0.3, 0.3), noise=8.0),
    Scene("blocks", 150, (_rest(swings=_SWAY),), crf=38),
    Scene("behind-a-bar", 150, (_rest(swings=_BREATHE),), Occluder(_across(20, -150, 790, 10, 260), 480)),
    Scene("behind-a-post", 180, (_rest(swings=_BREATHE),), Occluder(_across(20, 160, 480, 2.5, 50), 480)),
    Scene("cross", 180, (_across(30, 130, 510, 4), _across(30, 510, 130, 4))),
    Scene("cross-fast", 120, (_across(30, 130, 510, 10), _across(30, 510, 130, 10))),
    Scene("cross-near-and-far", 180, (_across(30, 130, 510, 4, 100, 200), _across(30, 510, 130, 4, 190, 260))),
    Scene(
        "leave", 170, (Path(((20, 320, 240, 150), (75, -230, 240, 150), (105, -230, 240, 150), (140, 320, 240, 150))),)
    ),
    Scene(
        "leave-and-swap",
        210,
        (
            Path(((20, 170, 240, 150), (70.4, -130, 240, 150), (70.6, 770, 240, 150), (121, 470, 240, 150))),
            Path(((20, 470, 240, 150), (70.4, 770, 240, 150), (70.6, -130, 240, 150), (121, 170, 240, 150))),
        ),
    ),
    Scene("nobody", 120, (), gain=(0.7, 1.2)),
)


def homographies(pose: Float64, centre: tuple[float, float], side: float) -> Float64:
    """The homographies from a photograph to the frame.

    The photograph is a flat picture in space that is moved and turned in front of a camera; the middle of its face is
    projected to x, y of the pose.

    Args:
        pose: (T, 6) as `Path.pose` returns it.
        centre: (x, y) of the face in the photograph.
        side: longer side of its box there.
    Returns:
        (T, 3, 3)
    """
    maps = np.empty((len(pose), 3, 3))
    to_plane = np.array([[1 / side, 0, -centre[0] / side], [0, 1 / side, -centre[1] / side], [0, 0, 1]])
    for t, (x, y, size, roll, yaw, pitch) in enumerate(pose):
        turn = rotation_matrix(np.array([pitch, yaw, roll]))
        place = np.column_stack((turn[:, :2], (0, 0, CAMERA)))
        camera = np.array([[size * CAMERA, 0, x], [0, size * CAMERA, y], [0, 0, 1]])
        maps[t] = camera @ place @ to_plane
    return maps


def mapped(homography: Float64, xy: Float64) -> Float64:
    """Apply a (3, 3) homography to points (N, 2)."""
    there = np.column_stack((xy, np.ones(len(xy)))) @ homography.T
    moved: Float64 = there[:, :2] / there[:, 2:]
    return moved
