"""Draw docs/face.jpg, the README's picture: Eileen Collins (NASA, public domain) as facetrack sees her.

pip install -e ".[dev]" && python docs/make_picture.py
"""

from pathlib import Path

import cv2
import numpy as np
from skimage.data import astronaut

from facetrack.pipeline.draw import draw_faces
from facetrack.pipeline.open import Choices, open_engines
from facetrack.tracker.types import Frame

ENLARGED = 3
CORNER, SIZE = (5, 125), (220, 200)  # the part that is shown, (y, x) and (height, width), before enlarging


def main() -> None:
    """Track the portrait for three frames and write the last one."""
    bgr = cv2.resize(astronaut()[..., ::-1], None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC)
    frames = [Frame(index, index / 30, index / 30, np.ascontiguousarray(bgr)) for index in range(3)]
    choices = Choices()
    with open_engines(choices) as engines:
        *_, last = engines.pipeline(choices).run(frames)
    (top, left), (height, width) = np.multiply(CORNER, ENLARGED), np.multiply(SIZE, ENLARGED)
    picture = draw_faces(last.frame.bgr, last.faces)[top : top + height, left : left + width]
    cv2.imwrite(str(Path(__file__).with_name("face.jpg")), picture, [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
