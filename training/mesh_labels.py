"""Landmark labels from face meshes: learn the map from mesh to 68 points on annotated pictures, apply it to others.

    python training/face_mesh.py DATA meshes.npz FOLDER... (in MediaPipe's own environment, see there)
    python -m facetrack.training.mesh_labels DATA meshes.npz OUT --annotated FOLDER... [--model M]

MediaPipe's mesh follows lips, lids and turned heads closely, but its points are not those of the markup. One linear map
from the whole mesh, normalised to a frame of its own, translates them. It is learnt from the pictures of the
--annotated folders, separately for pictures and mirror pictures, because annotators are not mirror-symmetric
(`Geometry.asymmetry`).

OUT gets every picture whose label can be trusted, in the 300-W layout. If there is an annotation the label is the mean
of annotation and mesh; otherwise it is the mesh mixed with what the network M finds, if the two agree. With --hard OUT
gets the pictures that are refused otherwise because mesh and network disagree somewhat more. Most are profiles, which
the network can only learn by seeing them. Their labels are good enough for learning to find such faces, and better than
none for learning their landmarks.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from ..engines.aligner import Aligner
from ..pipeline.open import Choices, open_engines
from ..tracker.errors import ConfigError
from ..tracker.geometry import bounding_box, box_centre_side
from ..tracker.markup import Markup
from ..tracker.metrics import nme
from ..tracker.pose import lids
from ..tracker.types import Float32, Float64
from .augment import mirror_points
from .command_line import errors_in_one_line
from .datasets import Sample
from .datasets.point_files import read_pts, write_pts
from .datasets.samples import read_bytes
from .relabel import align_augmented

COMPONENTS = 150  # principal components of the meshes; with 300 the labels of LFPW test are no better
RIDGE = 0.1
ROUNDS = 4  # of reweighting by the inverse of a picture's residual, so that poor annotations count little
EYES = (33, 263)  # the mesh's outer eye corners
NETWORK_SHARE = 0.35  # network's share of a label without annotation; lids are the mesh's, which knows closed ones
ANNOTATION_SHARE = 0.5  # annotation's share of a label with one
NO_FACES = np.zeros((0, 0, 2), np.float32)


@dataclass(frozen=True, slots=True)
class Limits:
    """How far the sources of a label may disagree: mean distance of the points, over the face's side.

    Attributes:
        gap: between the labels of a picture and of its mirror picture.
        disagreement: between mesh and network.
        correction: between mesh and annotation.
    """

    gap: float = 0.04
    disagreement: float = 0.035
    correction: float = 0.05


STRICT = Limits()
HARD = Limits(gap=0.08, disagreement=0.1)  # 179 of AFLW2000's 1,680 meshes are between the two, nearly all profiles


@dataclass(frozen=True, slots=True)
class Similarity:
    """Similarities from the frames of P meshes to pixels: centre (P, 2), unit length (P,), rotation (P, 2, 2)."""

    centre: Float64
    unit: Float64
    turn: Float64

    @classmethod
    def of(cls, meshes: Float64) -> Similarity:
        """The similarity of meshes (P, 478, 3) by their mean, their size and the line through the eyes."""
        flat = meshes[..., :2]
        centre = flat.mean(1)
        unit = np.sqrt(np.square(flat - centre[:, None]).sum(-1).mean(-1))
        right = flat[:, EYES[1]] - flat[:, EYES[0]]
        right /= np.linalg.norm(right, axis=-1, keepdims=True)
        turn = np.stack([right, np.stack([-right[:, 1], right[:, 0]], -1)], -1)
        return cls(centre, unit, turn)

    def to_frame(self, xy: Float64) -> Float64:
        """Pixels (P, K, 2) in the meshes' own frames."""
        return np.asarray((xy - self.centre[:, None]) @ self.turn / self.unit[:, None, None])

    def to_pixels(self, xy: Float64) -> Float64:
        """The inverse of `to_frame`."""
        return np.asarray(xy * self.unit[:, None, None] @ self.turn.swapaxes(1, 2) + self.centre[:, None])


@dataclass(frozen=True, slots=True)
class MeshRegression:
    """Linear map from meshes to a markup's points.

    Attributes:
        mean: (F,) mean mesh in its frame, flattened.
        basis: (F, C) principal components of the meshes.
        weights: (1 + C, 2 N).
    """

    mean: Float64
    basis: Float64
    weights: Float64

    @classmethod
    def learn(cls, meshes: Float64, xy: Float64) -> MeshRegression:
        """Ridge regression on principal components, robust to single poor annotations.

        Args:
            meshes: (P, M, 3) pixels.
            xy: (P, N, 2) annotations, pixels.
        """
        similarity = Similarity.of(meshes)
        features = _features(meshes, similarity)
        wanted = similarity.to_frame(xy).reshape(len(xy), -1)
        mean = np.asarray(features.mean(0), np.float64)
        basis = np.linalg.svd(features - mean, full_matrices=False)[2][:COMPONENTS].T
        design = _design(features, mean, basis)
        trust = np.ones(len(design))
        for _ in range(ROUNDS):
            normal = (design * trust[:, None]).T
            weights = np.linalg.solve(normal @ design + RIDGE * np.eye(design.shape[1]), normal @ wanted)
            residual = (design @ weights - wanted).reshape(len(wanted), -1, 2)
            distance = np.linalg.norm(residual, axis=-1).mean(-1)
            trust = np.median(distance) / np.maximum(distance, np.median(distance))
        return cls(mean, basis, np.asarray(weights, np.float64))

    def points(self, meshes: Float64) -> Float64:
        """The markup's points (P, N, 2), pixels, for meshes (P, M, 3)."""
        similarity = Similarity.of(meshes)
        found = _design(_features(meshes, similarity), self.mean, self.basis) @ self.weights
        return similarity.to_pixels(found.reshape(len(found), -1, 2))


def _features(meshes: Float64, similarity: Similarity) -> Float64:
    depth = meshes[..., 2:] / similarity.unit[:, None, None]
    return np.concatenate([similarity.to_frame(meshes[..., :2]), depth], -1).reshape(len(meshes), -1)


def _design(features: Float64, mean: Float64, basis: Float64) -> Float64:
    return np.concatenate([np.ones((len(features), 1)), (features - mean) @ basis], 1)


@dataclass(frozen=True, slots=True)
class MirroredRegression:
    """The translations for pictures and for mirror pictures.

    Attributes:
        plain, mirrored: each learnt from its own kind of pictures.
        markup: of the points.
    """

    plain: MeshRegression
    mirrored: MeshRegression
    markup: Markup

    @classmethod
    def learn(cls, meshes: Float64, xy: Float64, widths: Float64, markup: Markup) -> MirroredRegression:
        """Learn from P annotated pictures.

        Args:
            meshes: (P, 2, M, 3) of the pictures and their mirror pictures.
            xy: (P, N, 2) annotations.
            widths: (P,) of the pictures, pixels.
            markup: of the annotations.
        """
        return cls(
            MeshRegression.learn(meshes[:, 0], xy),
            MeshRegression.learn(meshes[:, 1], _mirrored(xy, widths, markup)),
            markup,
        )

    def points(self, meshes: Float64, widths: Float64) -> tuple[Float64, Float64]:
        """Points (P, N, 2), the mean of both translations, and how far those are apart (P,), over the face's side."""
        plain = self.plain.points(meshes[:, 0])
        back = _mirrored(self.mirrored.points(meshes[:, 1]), widths, self.markup)
        mean = (plain + back) / 2
        return mean, np.array([distance(a, b) for a, b in zip(plain, back, strict=True)])


def _mirrored(xy: Float64, widths: Float64, markup: Markup) -> Float64:
    return np.stack([mirror_points(points, markup, int(width)) for points, width in zip(xy, widths, strict=True)])


def distance(first: Float32 | Float64, second: Float32 | Float64) -> float:
    """Mean distance of the points (N, 2) of two labels, over the longer side of the first one's tight box."""
    side = box_centre_side(bounding_box(np.asarray(first, np.float32)))[1]
    return float(np.linalg.norm(first - second, axis=-1).mean() / max(side, 1.0))


@dataclass(frozen=True, slots=True)
class Label:
    """The label of a picture, and how far its sources are apart.

    Attributes:
        xy: (N, 2) pixels.
        gap: between picture and mirror picture, as in `Limits`.
        apart: between the mesh and the annotation, or between mesh and network if there is no annotation.
        annotated: whether there is an annotation.
    """

    xy: Float32
    gap: float
    apart: float
    annotated: bool

    @classmethod
    def of(cls, aligner: Aligner, sample: Sample, mesh: Float64, gap: float, annotation: Float32 | None) -> Label:
        """Combine the sources.

        Args:
            aligner: the network that is used if there is no annotation.
            sample: the picture.
            mesh: (N, 2) the mesh's points.
            gap: between picture and mirror picture.
            annotation: (N, 2), or None.
        """
        if annotation is not None:
            other, share = annotation, np.full(len(mesh), ANNOTATION_SHARE)
            apart = distance(annotation, mesh)
        else:
            around = aligner.crop_around(*box_centre_side(bounding_box(mesh.astype(np.float32))))
            other, share = align_augmented(aligner, sample.bgr(), around).xy, np.full(len(mesh), NETWORK_SHARE)
            share[np.concatenate([*chain.from_iterable(lids(len(mesh)))])] = 0
            apart = distance(mesh, other)
        share = share[:, None]
        return cls((share * other + (1 - share) * mesh).astype(np.float32), gap, apart, annotation is not None)

    def within(self, limits: Limits) -> bool:
        """Whether the sources agree within these limits."""
        return self.gap <= limits.gap and self.apart <= (limits.correction if self.annotated else limits.disagreement)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures with their meshes.

    Attributes:
        samples: P pictures.
        names: their P paths below the root of the data.
        meshes: (P, 2, M, 3) of each picture and of its mirror picture.
        widths: (P,) pixels.
    """

    samples: list[Sample]
    names: list[str]
    meshes: Float64
    widths: Float64

    @classmethod
    def read(cls, data: Path, meshes: Path) -> Pictures:
        """Read the meshes that `face_mesh` has written, and their pictures below `data`.

        Raises:
            SourceError: a picture is broken or missing.
        """
        with np.load(meshes) as stored:
            names, found = [str(name) for name in stored["names"]], stored["meshes"].astype(np.float64)
        samples = [Sample(data / name, NO_FACES, read_bytes(data / name)) for name in names]
        return cls(samples, names, found, np.array([sample.bgr().shape[1] for sample in samples], np.float64))

    def annotations(self, folders: list[str]) -> dict[int, Float32]:
        """The annotations (N, 2) of the pictures below some folders, by picture number.

        Raises:
            ConfigError: no picture is below them.
            SourceError: a picture has no .pts file, or a broken one.
        """
        chosen = [i for i, name in enumerate(self.names) if any(Path(name).is_relative_to(f) for f in folders)]
        if not chosen:
            raise ConfigError(
                f"wanted meshes of pictures in {', '.join(folders)}, got none; run face_mesh on these folders too"
            )
        return {i: read_pts(self.samples[i].path.with_suffix(".pts")) for i in chosen}


def learn(pictures: Pictures, annotations: dict[int, Float32], markup: Markup) -> MirroredRegression:
    """Learn the translation from the pictures that have annotations (N, 2) of a markup."""
    chosen = [*annotations]
    xy = np.stack([*annotations.values()]).astype(np.float64)
    return MirroredRegression.learn(pictures.meshes[chosen], xy, pictures.widths[chosen], markup)


def asymmetry(pictures: Pictures, annotations: dict[int, Float32], markup: Markup) -> float:
    """How far annotations lie to the right of where a mirror-symmetric observer puts them, see `augment.Geometry`.

    That observer is one translation, learnt from pictures and mirror pictures together and applied to both.
    """
    chosen = [*annotations]
    xy = np.stack([*annotations.values()]).astype(np.float64)
    meshes, widths = pictures.meshes[chosen], pictures.widths[chosen]
    pooled = np.concatenate([meshes[:, 0], meshes[:, 1]])
    both = MeshRegression.learn(pooled, np.concatenate([xy, _mirrored(xy, widths, markup)]))
    symmetric, _ = MirroredRegression(both, both, markup).points(meshes, widths)
    sides = np.ptp(xy, axis=1).max(-1)
    return float(np.median((xy - symmetric)[..., 0].mean(-1) / sides))


def error(pictures: Pictures, annotations: dict[int, Float32], translation: MirroredRegression) -> tuple[float, int]:
    """Mean inter-ocular NME in percent of the meshes' points where both looks agree, and the number of pictures."""
    chosen = [*annotations]
    found, gap = translation.points(pictures.meshes[chosen], pictures.widths[chosen])
    xy, found = np.stack([*annotations.values()])[gap <= STRICT.gap], found[gap <= STRICT.gap]
    return float(nme(found.astype(np.float32), xy, translation.markup, "io").mean() * 100), len(xy)


def write_labels(
    pictures: Pictures,
    annotations: dict[int, Float32],
    translation: MirroredRegression,
    aligner: Aligner,
    out: Path,
    *,
    hard: bool = False,
) -> Counter[str]:
    """Write the pictures whose label can be trusted, with the same relative paths below `out`.

    Args:
        pictures: with their meshes.
        annotations: (N, 2) by picture number, of those that have one.
        translation: from meshes to points.
        aligner: see `Label.of`.
        out: a folder.
        hard: write instead the pictures that are within `HARD` and not within `STRICT`.
    Returns:
        Number of pictures by folder.
    """
    written: Counter[str] = Counter()
    labels = zip(*translation.points(pictures.meshes, pictures.widths), strict=True)
    for i, (points, gap) in enumerate(labels):
        sample, name = pictures.samples[i], pictures.names[i]
        if gap > HARD.gap:
            continue  # refused with and without `hard`
        found = Label.of(aligner, sample, points, float(gap), annotations.get(i))
        strict = found.within(STRICT)
        if found.within(HARD) and not strict if hard else strict:
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(sample.encoded)
            write_pts(target.with_suffix(".pts"), found.xy)
            written[Path(name).parent.as_posix()] += 1
    return written


def main() -> None:
    """Read the arguments and write the labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("meshes", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--annotated", nargs="+", required=True, help="folders below DATA to learn from")
    parser.add_argument("--held-out", nargs="+", help="instead of writing labels, print their error in these folders")
    parser.add_argument("--hard", action="store_true", help="write the pictures whose sources disagree somewhat")
    parser.add_argument("--model", default=Choices().model)
    with errors_in_one_line("mesh_labels"):
        _run(parser.parse_args())


def _run(arguments: argparse.Namespace) -> None:
    pictures = Pictures.read(arguments.data, arguments.meshes)
    annotations = pictures.annotations(arguments.annotated)
    with open_engines(Choices(model=arguments.model)) as engines:
        translation = learn(pictures, annotations, engines.aligner.markup)
        share = asymmetry(pictures, annotations, engines.aligner.markup)
        print(f"annotations lie {100 * share:.2f} % of the face's side to the right of the symmetric place")
        if arguments.held_out:
            held_out = pictures.annotations(arguments.held_out)
            off, count = error(pictures, held_out, translation)
            print(f"{off:.2f} % inter-ocular NME in the {count} of {len(held_out)} pictures whose two looks agree")
            return
        written = write_labels(pictures, annotations, translation, engines.aligner, arguments.out, hard=arguments.hard)
    for folder, count in written.items():
        print(f"{count:6} pictures labelled in {arguments.out / folder}")


if __name__ == "__main__":
    main()
