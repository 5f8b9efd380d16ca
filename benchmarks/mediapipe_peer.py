"""Time that MediaPipe's face mesh takes for a video: the reference of `benchmarks/pipeline.py --peer`.

    python benchmarks/mediapipe_peer.py VIDEO FACES

prints JSON: the number of frames, of frames with a face, milliseconds per frame after the first (decoding by OpenCV
included), and milliseconds from the start of this file to the first result. The file imports nothing from facetrack:
MediaPipe 0.10.21 needs NumPy 1. Run it in an environment of its own, made by `pip install mediapipe==0.10.21`.
"""

from __future__ import annotations

import time

BEGAN = time.monotonic()

import json  # noqa: E402 - the imports count
import sys  # noqa: E402

import cv2  # noqa: E402
import mediapipe  # noqa: E402


def main() -> None:
    """Track the video and print the figures."""
    video = cv2.VideoCapture(sys.argv[1])
    mesh = mediapipe.solutions.face_mesh.FaceMesh(max_num_faces=int(sys.argv[2]))
    frames = with_face = 0
    first = BEGAN
    while True:
        more, bgr = video.read()
        if not more:
            break
        found = mesh.process(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)).multi_face_landmarks
        if not frames:
            first = time.monotonic()
        frames += 1
        with_face += bool(found)
    if frames < 2:
        raise SystemExit(f"{sys.argv[1]}: wanted a video of two frames or more, got {frames}")
    wall_ms = 1000 * (time.monotonic() - first) / (frames - 1)
    figures = {"frames": frames, "with_face": with_face, "wall_ms": wall_ms, "first_ms": 1000 * (first - BEGAN)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
