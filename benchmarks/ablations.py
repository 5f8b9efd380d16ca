"""What the parts of the decoding are worth: every alternative applied to the same network outputs, on photographs.

    python benchmarks/ablations.py FOLDER [--card NAME ...]

FOLDER is in the 300-W layout (NAME.jpg beside NAME.pts). Every face is cropped by its annotated box, and by that box
shrunk to 0.9, 0.8 and 0.7 of its side, so that the crop cuts off some landmarks. The tables give the inter-ocular NME
in percent; the last column counts only the landmarks outside the smallest crops. To measure other networks than the
four default ones, name their cards, with one --card for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrack.engines.aligner import LARGEST_BATCH, Aligner
from facetrack.engines.backend import Outputs
from facetrack.engines.card import ModelCard, find_card
from facetrack.engines.codec import decoder
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.tracker import codecs, metrics
from facetrack.tracker.geometry import CropTransform, bounding_box, box_centre_side
from facetrack.tracker.types import Float32, Float64, Int64, UInt8
from facetrack.training.datasets import Sample, read_pts_folder

BOXES = (1.0, 0.9, 0.8, 0.7)  # shares of the crop that the card prescribes
TAUS = (0.25, 0.5, 0.75, 1.25)  # shares of a whole Gaussian's height; the paper has 0.25 to 0.625 of its 1 + theta = 4
REACHES = (1, 2, 3, 4)
Bool = NDArray[np.bool_]
Decode = Callable[[Outputs], Float32]


@dataclass(frozen=True, slots=True)
class View:
    """One network's outputs for all faces in boxes of one size.

    Attributes:
        crops: of the faces.
        outputs: of the network, in batches.
    """

    crops: list[CropTransform]
    outputs: list[Outputs]

    def errors(self, decode: Decode, samples: list[Sample], aligner: Aligner) -> tuple[Float64, Bool]:
        """Errors of all landmarks over the faces' inter-ocular distance, and whether each is outside its crop.

        Returns:
            (F, N) fractions and (F, N) booleans.
        """
        truth = np.concatenate([sample.points for sample in samples])
        in_crops = np.concatenate([decode(outputs) for outputs in self.outputs])
        found = np.stack([crop.to_frame(xy) for crop, xy in zip(self.crops, in_crops, strict=True)])
        lengths = metrics.normalising_lengths(truth, aligner.markup, "io")
        placed = np.stack([crop.to_crop(xy) for crop, xy in zip(self.crops, truth, strict=True)])
        outside = np.any((placed < -0.5) | (placed > aligner.card.size[0] - 0.5), -1)
        return np.linalg.norm(found - truth, axis=-1) / lengths[:, None], np.asarray(outside, np.bool_)


def views(samples: list[Sample], aligner: Aligner) -> list[View]:
    """The network's outputs for every box size; each picture is read once."""
    crops: list[list[CropTransform]] = [[] for _ in BOXES]
    pictures: list[list[UInt8]] = [[] for _ in BOXES]
    for sample in samples:
        centre, side = box_centre_side(bounding_box(sample.points[0]))
        bgr = sample.bgr()
        for i, share in enumerate(BOXES):
            crops[i].append(aligner.crop_around(centre, side * share))
            pictures[i].append(crops[i][-1].crop(bgr))
    return [View(c, list(_run(aligner, p))) for c, p in zip(crops, pictures, strict=True)]


def _run(aligner: Aligner, pictures: list[UInt8]) -> Iterator[Outputs]:
    for start in range(0, len(pictures), LARGEST_BATCH):
        outputs = aligner.backend.run(np.stack(pictures[start : start + LARGEST_BATCH]))
        yield tuple(output.copy() for output in outputs)


def place_in_vectors(vectors: Float32, reach: int, power: float) -> tuple[Float32, Float32, Int64]:
    """Where each vector has its maximum, in cells, never beyond its ends.

    Args:
        vectors: (F, N, w, 2).
        reach: -1 for the maximum itself, 0 for a shift by a quarter of a cell towards the higher neighbour (the paper's
            Eq. 5), above 0 for the centroid of the values ** `power` within this many cells.
        power: of the values.
    Returns:
        place, height and index of the maximum, each (F, N, 2).
    """
    cells = vectors.shape[2]
    top = vectors.argmax(2)
    height = np.maximum(np.take_along_axis(vectors, top[:, :, None], 2)[:, :, 0], codecs.LOWEST)
    if reach > 0:
        grid = np.arange(cells)[:, None]
        near = abs(grid - top[:, :, None]) <= reach
        weights = near * (np.maximum(vectors, 0.0) ** power + codecs.LOWEST)
        return (weights * grid).sum(2) / weights.sum(2), height, top
    place = top.astype(np.float32)
    if reach == 0:
        before, after = (
            np.take_along_axis(vectors, np.clip(top + step, 0, cells - 1)[:, :, None], 2)[:, :, 0] for step in (-1, 1)
        )
        inside = (top > 0) & (top < cells - 1)
        place += codecs.SHIFT * np.sign(after - before) * inside
    return place, height, top


def decode_vectors(
    outputs: Outputs, codec: dict[str, float], reach: int, power: float = 1.5, tau: float = 0.0
) -> Float32:
    """Landmarks (F, N, 2) in crop pixels from GV's vectors; tau 0 leaves out decoding beyond the box (Eqs. 6, 7)."""
    place, height, top = place_in_vectors(outputs[0], reach, power)
    if tau > 0:
        last = outputs[0].shape[2] - 1
        root = np.sqrt(-2.0 * np.log(np.minimum(height / tau, 1.0)))
        beyond = np.minimum(root, codecs.FARTHEST) * codec["sigma"]
        outside = ((top == 0) | (top == last)) & (height < tau)
        place = np.where(outside, np.where(top == 0, -beyond, last + beyond), place)
    return np.asarray(codec["stride"] * (place + 0.5) - 0.5, np.float32)


def decode_heatmaps(outputs: Outputs, stride: float, reach: int) -> Float32:
    """Landmarks from heat maps; reach -1 for the peak itself, otherwise as in `codecs.decode_heatmaps`."""
    maps = outputs[0]
    if reach >= 0:
        return codecs.decode_heatmaps(maps, stride, reach)[0]
    tops = maps.reshape(*maps.shape[:2], -1).argmax(2)
    cells = np.stack((tops % maps.shape[3], tops // maps.shape[3]), -1)
    return np.asarray(stride * (cells + 0.5) - 0.5, np.float32)


def decode_fields(outputs: Outputs, stride: float, lines: Int64, reach: int, share: float = 1.0) -> Float32:
    """Landmarks by SPAN's Eq. 5; with a share of 0 the field is left out."""
    field = outputs[1] if share == 1.0 else outputs[1] * np.float32(share)
    return codecs.decode_fields(outputs[0], field, lines, stride, reach)[0]


def alternatives(aligner: Aligner) -> dict[str, Decode]:
    """The ways to decode this card's outputs; the first one is the card's own."""
    codec, stride = dict(aligner.card.codec), float(aligner.card.codec["stride"])
    ours = decoder(codec, aligner.markup, aligner.card.name)
    ways: dict[str, Decode] = {"as shipped": lambda outputs: ours(outputs)[0]}
    if codec["kind"] == "vectors":
        peak, vectors = float(codec["peak"]), partial(decode_vectors, codec=codec)
        ways["as shipped, clipped to the box"] = partial(vectors, reach=codecs.REACH)
        ways["maximum"] = partial(vectors, reach=-1)
        ways["quarter shift"] = partial(vectors, reach=0)
        ways["quarter shift, beyond the box (the paper's)"] = partial(vectors, reach=0, tau=peak)
        for reach, power in ((2, 2.0), (2, 1.5), (4, 1.0), (6, 1.5)):
            name = f"centroid of power {power:g} within {reach}, beyond the box"
            ways[name] = partial(vectors, reach=reach, power=power, tau=peak)
        for share in TAUS:
            ways[f"as shipped, tau {share * peak:g} instead of {peak:g}"] = partial(
                vectors, reach=codecs.REACH, tau=share * peak
            )
        return ways
    ways["maximum"] = partial(decode_heatmaps, stride=stride, reach=-1)
    ways["quarter shift"] = partial(decode_heatmaps, stride=stride, reach=0)
    if codec["kind"] == "heatmaps":
        for reach in REACHES:
            ways[f"centroid within {reach}"] = partial(decode_heatmaps, stride=stride, reach=reach)
        return ways
    lines = codecs.lines_of_points(aligner.markup, int(codec["fields"]))
    fields = partial(decode_fields, stride=stride, lines=lines)
    ways["maximum and its field"] = partial(fields, reach=0)
    for reach in REACHES:
        ways[f"Eq. 5 within {reach}"] = partial(fields, reach=reach)
    ways["Eq. 5 within 3 without the field"] = partial(fields, reach=3, share=0.0)
    return ways


def table(card: ModelCard, samples: list[Sample]) -> str:
    """The table of one card in Markdown."""
    aligner = Aligner(card, OnnxBackend(card.weights["net"]))
    seen = views(samples, aligner)
    aligner.backend.close()
    names = [f"crop {share * card.box_scale:.2f} boxes wide" for share in BOXES]
    lines = [f"| {card.name} | {' | '.join(names)} | of these, outside |", "|---" * (len(BOXES) + 2) + "|"]
    for name, decode in alternatives(aligner).items():
        measured = [view.errors(decode, samples, aligner) for view in seen]
        errors, outside = measured[-1]
        figures = chain((e.mean() for e, _ in measured), [errors[outside].mean()])
        lines.append(f"| {name} | {' | '.join(f'{100 * float(figure):.2f}' for figure in figures)} |")
    share = 100 * float(measured[-1][1].mean())
    return "\n".join([*lines, f"\nOutside the smallest crops: {share:.1f} % of the landmarks."])


def main() -> None:
    """Read the arguments and print a table per card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--card", action="append", metavar="NAME", help="network or card; again for more")
    arguments = parser.parse_args()
    samples = list(read_pts_folder(arguments.folder))
    print(f"{len(samples)} faces of {arguments.folder.name}, inter-ocular NME in percent\n")
    for name in arguments.card or ["gv", "tab", "propnet", "span"]:
        print(table(find_card(name, "align"), samples), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
