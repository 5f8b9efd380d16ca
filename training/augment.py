"""Augmentation on the CPU: random crops that move pixels and points together, and what cameras do to pixels.

Every function is given a `numpy.random.Generator`, so that item i of a run is the same whichever process draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import cv2
import numpy as np

from ..tracker.geometry import CropTransform, box_centre_side
from ..tracker.markup import Markup
from ..tracker.types import Float32, Float64, UInt8
from ..tracker.views import face_box
from .shade import cast_shade, colour_light, draw_lines

DISTURBANCES = ("occluders", "lines", "shade", "colour", "light", "blur", "noise", "compression", "grey")
BACKGROUND = 128  # side in pixels of the pictures that are kept decoded as backgrounds and occluders
_LETTERS = list("abcdeghmnopqsuvwxyzABCDEFGHKMNOPQRSUVWXYZ0123456789&%:;.-")
_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
)
Fill = Callable[[tuple[int, ...], np.random.Generator], UInt8]  # what an occluder of (h, w) pixels looks like


@dataclass(frozen=True, slots=True)
class Geometry:
    """How far a training crop may stray from the face's box.

    Attributes:
        box_scale: side of the square crop over the longer side of the face's box, see `views.face_box`.
        roll_deg: standard deviation of the usual roll.
        wide_roll_deg, wide_share: this share of the crops has a roll uniform within +- wide_roll_deg instead.
        log_scale: standard deviation of the logarithm of the scale, clipped at 2.5 standard deviations.
        shift: standard deviation of the shift over the crop's side, clipped likewise.
        stretch: standard deviation of the logarithm of the aspect ratio.
        flip: probability of a mirror picture.
        asymmetry: how far the annotations lie to the right of where a mirror-symmetric observer would put the points,
            over the longer side of their box (300-W: 0.006). Mirrored annotations are moved by twice as much, to
            where the same annotators would have marked them in the mirror picture.
    """

    box_scale: float = 1.25
    roll_deg: float = 14.0
    wide_roll_deg: float = 60.0
    wide_share: float = 0.2
    log_scale: float = 0.13
    shift: float = 0.05
    stretch: float = 0.05
    flip: float = 0.5
    asymmetry: float = 0.0


def random_crop(points: Float32, size: int, geometry: Geometry, rng: np.random.Generator) -> CropTransform:
    """Draw a random square crop round one face.

    Args:
        points: (N, 2) of the face, picture pixels; NaN where a point is not annotated.
        size: side of the crop, pixels.
        geometry: how far to stray.
        rng: the item's own.
    """
    (cx, cy), side = box_centre_side(face_box(points[~np.isnan(points).any(-1)]))
    side *= geometry.box_scale * np.exp(_clipped(rng, geometry.log_scale))
    if rng.random() < geometry.wide_share:
        roll = rng.uniform(-geometry.wide_roll_deg, geometry.wide_roll_deg)
    else:
        roll = _clipped(rng, geometry.roll_deg)
    centre = cx + side * _clipped(rng, geometry.shift), cy + side * _clipped(rng, geometry.shift)
    upright = CropTransform.around(centre, side, size, angle=float(np.deg2rad(roll)))
    stretch = float(np.exp(_clipped(rng, geometry.stretch) / 2))
    scale = np.array([[stretch], [1 / stretch]])
    matrix = upright.matrix * scale
    matrix[:, 2:] += (size - 1) / 2 * (1 - scale)  # the middle of the crop stays where it is
    return CropTransform(matrix, (size, size))


def _clipped(rng: np.random.Generator, sigma: float) -> float:
    """Draw a normal number, cut off at 2.5 sigma."""
    return float(np.clip(rng.normal(0.0, sigma), -2.5 * sigma, 2.5 * sigma)) if sigma > 0 else 0.0


def crop_over_background(bgr: UInt8, transform: CropTransform, background: UInt8, rng: np.random.Generator) -> UInt8:
    """Crop a picture and fill what lies outside it, so that the picture's edge does not reveal the face's box.

    Training pictures are often face crops themselves: without this a network learns to read the position of the black
    border. Three crops in ten are filled by reflection, three in ten with one colour (half of those with black), the
    rest with `background`. Pictures that must shrink below half their size are averaged over the area first; their
    crops are filled with `background` in place of a colour.

    Args:
        bgr: (H, W, 3) uint8.
        transform: from its pixels to the crop's.
        background: (h, w, 3) uint8 of any size.
        rng: the item's own.
    Returns:
        (*transform.size, 3) uint8.
    """
    kind = rng.random()
    size = (transform.size[1], transform.size[0])
    matrix = transform.matrix
    if transform.scale < 0.5:
        bgr, matrix = _shrunk(bgr, transform)
    elif 0.3 <= kind < 0.6:
        colour = tuple(int(v) for v in rng.integers(0, 256, 3)) if kind < 0.45 else (0, 0, 0)
        return _uint8(cv2.warpAffine(bgr, matrix, size, flags=cv2.INTER_LINEAR, borderValue=colour))
    if kind < 0.3:
        return _uint8(cv2.warpAffine(bgr, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))
    canvas = _uint8(cv2.resize(background, size, interpolation=cv2.INTER_LINEAR))
    cv2.warpAffine(bgr, matrix, size, dst=canvas, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT)
    return canvas


def thumbnail(bgr: UInt8) -> UInt8:
    """A picture (H, W, 3) at the size kept for backgrounds and occluders, (BACKGROUND, BACKGROUND, 3)."""
    return _uint8(cv2.resize(bgr, (BACKGROUND, BACKGROUND), interpolation=cv2.INTER_AREA))


def _shrunk(bgr: UInt8, transform: CropTransform) -> tuple[UInt8, Float64]:
    """The picture shrunk by a whole factor that brings the transform's scale above a half, and the matrix for it."""
    height, width = bgr.shape[:2]
    factor = min(int(1 / transform.scale), height, width)
    small = (width // factor, height // factor)
    whole = bgr[: small[1] * factor, : small[0] * factor]
    matrix = transform.matrix.copy()
    matrix[:, 2] += matrix[:, :2].sum(1) * (factor - 1) / 2  # pixel x = factor * (small x + 0.5) - 0.5
    matrix[:, :2] *= factor
    return _uint8(cv2.resize(whole, small, interpolation=cv2.INTER_AREA)), matrix


def _uint8(picture: Any) -> UInt8:
    return np.asarray(picture, np.uint8)


def disturb(bgr: UInt8, patches: list[UInt8], rng: np.random.Generator, kinds: Collection[str] = DISTURBANCES) -> UInt8:
    """Disturb a crop in the order of `DISTURBANCES`, each with its own probability.

    Args:
        bgr: (h, w, 3) uint8, not changed.
        patches: pieces of other pictures, for the occluders; may be empty.
        rng: the item's own.
        kinds: which of the `DISTURBANCES` may happen; for the others no random number is drawn.
    """
    if "occluders" in kinds and rng.random() < 0.35:
        bgr = occlude(bgr, patches, rng)
    if "lines" in kinds and rng.random() < 0.07:
        bgr = draw_lines(bgr, rng)
    if "shade" in kinds and rng.random() < 0.15:
        bgr = cast_shade(bgr, rng)
    if "colour" in kinds and rng.random() < 0.08:
        bgr = colour_light(bgr, rng)
    if "light" in kinds and rng.random() < 0.8:
        bgr = relight(bgr, rng)
    if "blur" in kinds and rng.random() < 0.25:
        bgr = blur(bgr, rng)
    if "noise" in kinds and rng.random() < 0.3:
        sigma = rng.uniform(2, 14)
        noise = rng.standard_normal(bgr.shape, np.float32) * sigma
        bgr = np.clip(bgr + noise, 0, 255).astype(np.uint8)
    if "compression" in kinds and rng.random() < 0.15:
        quality = int(rng.integers(15, 70))
        coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        bgr = _uint8(cv2.imdecode(coded, cv2.IMREAD_COLOR))
    if "grey" in kinds and rng.random() < 0.1:
        bgr = _uint8(cv2.cvtColor(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR))
    return bgr


def disguise(bgr: UInt8, patches: list[UInt8], rng: np.random.Generator) -> UInt8:
    """SPAN's texture disturbances and more: occluders of every kind, blur through its four sizes, and other light.

    Which of them happen, and how strongly, is drawn for each picture. Source: SPAN, section IV-A; the paper's own are
    in `disguise_as_published`.

    Args:
        bgr: (h, w, 3) uint8, not changed.
        patches: other pictures, faces among them; may be empty.
        rng: the item's own.
    """
    kinds = rng.random(4) < 0.4
    if kinds[0]:
        bgr = occlude(bgr, patches if rng.random() < 0.7 else [np.zeros((2, 2, 3), np.uint8)], rng)
    if kinds[1]:
        height, width = bgr.shape[:2]
        small = max(int(width / rng.choice((2, 4, 8, 16))), 4)  # of 256 pixels: 128, 64, 32, 16
        low = cv2.resize(bgr, (small, small), interpolation=cv2.INTER_AREA)
        bgr = _uint8(cv2.resize(low, (width, height), interpolation=cv2.INTER_LINEAR))
    return relight(_speckled(bgr, rng, gaussian=kinds[2], salt=kinds[3]), rng)


def disguise_as_published(bgr: UInt8, rng: np.random.Generator) -> UInt8:
    """SPAN's texture disturbances alone: occlusion by black or by a part of the picture, blur, noise and salt.

    Which of them happen, the occluders' sizes and the noise's strength are drawn for each picture; the paper does not
    state them.

    Args:
        bgr: (h, w, 3) uint8, not changed.
        rng: the item's own.
    Source: SPAN, section IV-A and figure 4.
    """
    kinds = rng.random(4) < 0.4
    if kinds[0]:
        fill = _black if rng.random() < 0.5 else partial(_piece, bgr)
        bgr = _covered(bgr, fill, rng)
    if kinds[1]:
        height, width = bgr.shape[:2]
        times = int(rng.choice((2, 4, 8, 16)))  # of 256 pixels: 128, 64, 32, 16
        low = resize_bicubic(bgr, (max(height // times, 4), max(width // times, 4)))
        bgr = resize_bicubic(low, (height, width))
    return _speckled(bgr, rng, gaussian=kinds[2], salt=kinds[3])


def _speckled(bgr: UInt8, rng: np.random.Generator, *, gaussian: bool, salt: bool) -> UInt8:
    if gaussian:
        noise = rng.standard_normal(bgr.shape, np.float32) * rng.uniform(4, 24)
        bgr = np.clip(bgr + noise, 0, 255).astype(np.uint8)
    if salt:
        bgr = bgr.copy()
        bgr[rng.random(bgr.shape[:2]) < rng.uniform(0.01, 0.08)] = 255
    return bgr


def resize_bicubic(bgr: UInt8, size: tuple[int, int]) -> UInt8:
    """Resize (h, w, 3) to (height, width) by antialiased bicubic interpolation, as super-resolution degrades pictures.

    OpenCV's bicubic interpolation uses 16 pixels however much it shrinks.
    """
    down, across = (_bicubic_weights(old, new) for old, new in zip(bgr.shape[:2], size, strict=True))
    resized = np.einsum("yh,hwc,xw->yxc", down, bgr.astype(np.float32), across, optimize=True)
    return _uint8(np.clip(np.rint(resized), 0, 255))


@cache
def _bicubic_weights(old: int, new: int) -> Float32:
    """Weight of each of `old` pixels of a row in each of `new` ones, (new, old).

    Source: Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -0.5; widened by the
    factor where the row shrinks.
    """
    scale = old / new
    place = (np.arange(new) + 0.5) * scale - 0.5
    d = np.abs(np.arange(old) - place[:, None]) / max(scale, 1.0)
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = np.where(d < 1, near, np.where(d < 2, far, 0.0))
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def relight(bgr: UInt8, rng: np.random.Generator) -> UInt8:
    """Change gain, offset, gamma and colour cast through one table, and sometimes add a ramp of light from one side."""
    levels = np.arange(256, dtype=np.float32) / 255
    gamma, gain, offset = np.exp(rng.normal(0, 0.3)), np.exp(rng.normal(0, 0.2)), rng.normal(0, 0.08)
    cast = np.exp(rng.normal(0, 0.06, 3))
    table = np.clip((levels[:, None] ** gamma * gain * cast + offset) * 255, 0, 255).astype(np.uint8)
    lit = _uint8(cv2.LUT(bgr, table[None]))
    if rng.random() < 0.25:
        height, width = lit.shape[:2]
        x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
        turn = rng.uniform(0, 2 * np.pi)
        ramp = 1 + rng.uniform(0.1, 0.6) * (np.cos(turn) * x[None, :] + np.sin(turn) * y[:, None])
        lit = np.clip(lit * ramp[..., None].astype(np.float32), 0, 255).astype(np.uint8)
    return lit


def blur(bgr: UInt8, rng: np.random.Generator) -> UInt8:
    """Defocus, motion or low resolution."""
    kind = rng.integers(0, 3)
    if kind == 0:
        return _uint8(cv2.GaussianBlur(bgr, (0, 0), rng.uniform(0.5, 2.0)))
    if kind == 1:
        length = int(rng.integers(3, 10))
        side = length | 1  # odd: the middle of an even kernel is no pixel, and would shift the picture off its points
        kernel = np.zeros((side, side), np.float32)
        middle, turn = (side - 1) / 2, rng.uniform(0, np.pi)
        step = (length - 1) / 2 * np.array([np.cos(turn), np.sin(turn)])
        a, b = np.rint(middle - step).astype(int), np.rint(middle + step).astype(int)
        cv2.line(kernel, (int(a[0]), int(a[1])), (int(b[0]), int(b[1])), 1.0)
        return _uint8(cv2.filter2D(bgr, -1, kernel / kernel.sum()))
    height, width = bgr.shape[:2]
    small = max(int(width * rng.uniform(0.25, 0.7)), 1)
    low = cv2.resize(bgr, (small, small), interpolation=cv2.INTER_AREA)
    return _uint8(cv2.resize(low, (width, height), interpolation=cv2.INTER_LINEAR))


def occlude(bgr: UInt8, patches: list[UInt8], rng: np.random.Generator) -> UInt8:
    """Cover one or two rectangles or ellipses with a colour, noise or a piece of another picture."""
    return _covered(bgr, lambda size, own: filling(size, patches, own), rng)


def _covered(bgr: UInt8, fill: Fill, rng: np.random.Generator) -> UInt8:
    """Cover one or two rectangles or ellipses with what `fill` gives."""
    bgr = bgr.copy()
    height, width = bgr.shape[:2]
    for _ in range(int(rng.integers(1, 3))):
        h, w = (int(v) for v in rng.uniform(0.1, 0.45, 2) * (height, width))
        y, x = int(rng.integers(-h // 2, height - h // 2)), int(rng.integers(-w // 2, width - w // 2))
        y1, x1, y2, x2 = max(y, 0), max(x, 0), min(y + h, height), min(x + w, width)
        if y2 - y1 < 2 or x2 - x1 < 2:
            continue
        filled = fill((y2 - y1, x2 - x1), rng)
        if rng.random() < 0.5:
            bgr[y1:y2, x1:x2] = filled
        else:
            mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
            cv2.ellipse(mask, ((x2 - x1) // 2, (y2 - y1) // 2), ((x2 - x1) // 2, (y2 - y1) // 2), 0, 0, 360, 1, -1)
            np.copyto(bgr[y1:y2, x1:x2], filled, where=mask[..., None].astype(bool))
    return bgr


def _black(size: tuple[int, ...], _: np.random.Generator) -> UInt8:
    return np.zeros((*size, 3), np.uint8)


def _piece(bgr: UInt8, size: tuple[int, ...], rng: np.random.Generator) -> UInt8:
    """A piece of (h, w) pixels from a random place in the picture."""
    y, x = (int(rng.integers(whole - part + 1)) for whole, part in zip(bgr.shape, size, strict=False))
    return bgr[y : y + size[0], x : x + size[1]]


def filling(size: tuple[int, ...], patches: list[UInt8], rng: np.random.Generator) -> UInt8:
    """What an occluder of (h, w) pixels looks like: one colour, noise, or a piece of another picture."""
    kind = rng.random()
    if kind < 0.3 or not patches:
        return np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (*size, 3)).copy()
    if kind < 0.4:
        return rng.integers(0, 256, (*size, 3), np.uint8)
    patch = patches[int(rng.integers(len(patches)))]
    return _uint8(cv2.resize(patch, (size[1], size[0]), interpolation=cv2.INTER_AREA))


def mirror(bgr: UInt8, xy: Float32, marks: Markup) -> tuple[UInt8, Float32]:
    """The mirror picture of (h, w, 3) and its points (..., N, 2) in it."""
    return np.ascontiguousarray(bgr[:, ::-1]), mirror_points(xy, marks, bgr.shape[1])


def annotators_shift(xy: Float32, transform: CropTransform, asymmetry: float) -> Float32:
    """What to add to a mirrored crop's points because annotators are not mirror-symmetric.

    Args:
        xy: (N, 2) pixels of the mirrored crop.
        transform: from the picture to the crop before it was mirrored.
        asymmetry: see `Geometry`.
    Returns:
        (2,) pixels of the mirrored crop.
    """
    right = transform.matrix[:, 0] / np.hypot(*transform.matrix[:, 0])  # of the picture, in the crop
    length = 2 * asymmetry * box_centre_side(face_box(xy))[1]
    return np.array([right[0], -right[1]], np.float32) * np.float32(length)


def mirror_points(xy: Float32, marks: Markup, width: int) -> Float32:
    """Points (..., N, 2) in the mirror picture, `width` pixels wide, each under the index of its new side."""
    mirrored = xy[..., marks.mirror, :].copy()
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return mirrored


def written_on(bgr: UInt8, rng: np.random.Generator) -> UInt8:
    """A copy with a few random words of letters and digits on it, over the picture or one colour.

    The letters are thin like handwriting or bold like a title's, often outlined, often shaded from top to bottom.
    """
    bgr = bgr.copy() if rng.random() < 0.5 else np.broadcast_to(rng.integers(0, 256, 3, np.uint8), bgr.shape).copy()
    height, width = bgr.shape[:2]
    for _ in range(int(rng.integers(1, 5))):
        word = "".join(rng.choice(_LETTERS, int(rng.integers(2, 9))))
        scale = float(np.exp(rng.uniform(-0.9, 1.4)))
        place = int(rng.uniform(-0.2, 0.6) * width), int(rng.uniform(0.15, 1.0) * height)
        ink = np.zeros((height, width), np.uint8)
        cv2.putText(ink, word, place, int(rng.choice(_FONTS)), scale, 255, int(rng.integers(1, 7)), cv2.LINE_AA)
        ink = _grown(ink, int(scale * rng.uniform(0, 2)))
        top, bottom, outer = rng.integers(0, 256, (3, 3)).astype(np.float32)
        if rng.random() < 0.5:
            bgr = _inked(bgr, _grown(ink, 1 + int(scale * rng.uniform(0, 2.5))), outer)
        shade = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
        bgr = _inked(bgr, ink, top + (bottom - top) * shade if rng.random() < 0.5 else top)
    return bgr


def _grown(ink: UInt8, by: int) -> UInt8:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    return np.asarray(cv2.dilate(ink, disc), np.uint8)


def _inked(bgr: UInt8, ink: UInt8, colour: Float32) -> UInt8:
    return np.asarray(bgr + (colour - bgr) * (ink[..., None] / np.float32(255)), np.uint8)
