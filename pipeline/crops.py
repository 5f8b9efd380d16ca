"""Typical inputs of a network, to judge a backend or set 8-bit ranges: from the packaged portrait or a folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..engines.card import ModelCard
from ..engines.parity import Proof, proof_for
from ..tracker.errors import SourceError
from ..tracker.geometry import CropTransform
from ..tracker.types import UInt8
from .image_source import IMAGE_SUFFIXES, pictures_among, read_image
from .portrait import EYES, portrait

COUNT = 16
FACE_PX = 95.0  # longer side of the landmarks' box in the portrait
SCAN = (96, 96), 3.2  # size of the pictures for a network that scans, and their side over the face's


def portrait_crops(size: tuple[int, int], box_scale: float, count: int = COUNT) -> UInt8:
    """Crops (count, h, w, 3) of the portrait as they occur in use: shifted, rotated, mirrored, scaled, dark and bright.

    Every call returns the same ones.
    """
    picture, rng = portrait(), np.random.default_rng(0)
    centre = EYES.mean(0) + np.array([0.0, 0.2 * FACE_PX])  # the landmarks' middle lies below the eyes
    crops = []
    for index in range(count):
        shift, angle = rng.normal(0, 0.05 * FACE_PX, 2), float(rng.normal(0, 0.25))
        side = FACE_PX * box_scale * float(np.exp(rng.normal(0, 0.1)))
        where = float(centre[0] + shift[0]), float(centre[1] + shift[1])
        crop = CropTransform.around(where, side, size[0], angle=angle).crop(picture)
        crop = crop[:, ::-1] if index % 2 else crop
        crops.append(np.clip(crop * rng.uniform(0.6, 1.3), 0, 255).astype(np.uint8))
    return np.stack(crops)


def folder_crops(folder: Path, size: tuple[int, int]) -> UInt8:
    """All pictures of a folder, each one a face crop, resized to (h, w): (B, h, w, 3), sorted by name.

    Raises:
        SourceError: there is no picture, or one cannot be read.
    """
    paths = sorted(pictures_among(folder.glob("*")))
    if not paths:
        raise SourceError(f"{folder}: wanted pictures of faces ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
    crops = [cv2.resize(read_image(path), size[::-1], interpolation=cv2.INTER_AREA) for path in paths]
    return np.asarray(np.stack(crops), np.uint8)


def crops_for(card: ModelCard, role: str, folder: Path | None = None) -> UInt8:
    """Pictures for one of a card's networks, from a folder or else from the portrait."""
    size, scale = SCAN if role == "scan" else (card.size, card.box_scale)
    return folder_crops(folder, size) if folder else portrait_crops(size, scale)


def portrait_proof(card: ModelCard, role: str) -> Proof:
    """The proof that a new TensorRT plan of this network has to pass if the user gives no pictures."""
    return proof_for(card, role, crops_for(card, role))
