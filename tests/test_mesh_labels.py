"""Labels from meshes, from looks at a picture and its mirror picture, and pictures cut from photographs."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import PaintedFace
from fakes_annotator import Annotator

from facetrack.tracker import markup
from facetrack.tracker.geometry import CropTransform
from facetrack.tracker.types import Float64, UInt8
from facetrack.training.augment import annotators_shift, mirror_points
from facetrack.training.cut_faces import cut_faces
from facetrack.training.datasets import Sample
from facetrack.training.mesh_labels import (
    NETWORK_SHARE,
    STRICT,
    Label,
    MeshRegression,
    MirroredRegression,
    Pictures,
    Similarity,
    asymmetry,
    distance,
)
from facetrack.training.relabel import ASYMMETRY, align_augmented

IBUG = markup.load("ibug68")


def meshes_of(count: int, seed: int = 0) -> Float64:
    """Random solids of 478 points that vary in six ways, turned, enlarged and shifted: (count, 478, 3) pixels."""
    rng = np.random.default_rng(seed)
    shapes = np.random.default_rng(7).normal(size=(7, 478, 3))
    shapes[0, 33], shapes[0, 263] = (-2, 0, 0), (2, 0, 0)
    solid = shapes[0] + 0.1 * np.einsum("pk,kmd->pmd", rng.normal(size=(count, 6)), shapes[1:])
    angle, size = rng.uniform(-1, 1, count), rng.uniform(10, 60, count)
    turn = np.stack([np.stack([np.cos(angle), np.sin(angle)], -1), np.stack([-np.sin(angle), np.cos(angle)], -1)], 1)
    solid[..., :2] = solid[..., :2] @ turn
    return np.asarray(solid * size[:, None, None] + rng.uniform(0, 300, (count, 1, 3)) * [1, 1, 0])


def points_of(meshes: Float64) -> Float64:
    """Points that are fixed mixtures of a mesh's points: (P, 68, 2), so they follow every similarity of the plane."""
    mixture = np.random.default_rng(3).dirichlet(np.full(478, 0.05), 68)
    return np.asarray(np.einsum("nm,pmd->pnd", mixture, meshes[..., :2]))


def test_mesh_frame_round_trips_and_is_centred_with_level_eyes() -> None:
    meshes = meshes_of(5)
    similarity = Similarity.of(meshes)
    own = similarity.to_frame(meshes[..., :2])
    np.testing.assert_allclose(similarity.to_pixels(own), meshes[..., :2], atol=1e-9)
    np.testing.assert_allclose(own.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(own[:, 33, 1], own[:, 263, 1], atol=1e-9)  # the eyes lie level


def test_translation_learns_points_that_are_mixtures_of_mesh_points() -> None:
    known, unknown = meshes_of(200), meshes_of(40, seed=1)
    translation = MeshRegression.learn(known, points_of(known))
    np.testing.assert_allclose(translation.points(unknown), points_of(unknown), atol=0.3)  # the ridge shrinks a little


def test_translation_is_robust_to_a_tenth_of_poor_annotations() -> None:
    known, unknown = meshes_of(300), meshes_of(40, seed=1)
    poor = points_of(known)
    poor[::10] += np.random.default_rng(5).normal(0, 30, poor[::10].shape)
    error = np.abs(MeshRegression.learn(known, poor).points(unknown) - points_of(unknown)).mean()
    assert error < 0.25 * np.abs(poor - points_of(known)).mean()


def test_both_ways_report_a_gap_only_for_a_mesh_that_is_not_mirror_symmetric() -> None:
    widths = np.full(240, 400.0)
    plain = meshes_of(240)
    mirrored = plain.copy()
    mirrored[..., 0] = 399 - mirrored[..., 0]
    mirrored[:, [33, 263]] = mirrored[:, [263, 33]]  # the corner that is on the picture's left is number 33
    translation = MirroredRegression.learn(np.stack([plain, mirrored], 1), points_of(plain), widths, IBUG)
    seen = np.stack([plain, mirrored], 1)[:20]
    seen[3, 1] += [60, 0, 0]
    xy, gap = translation.points(seen, widths[:20])
    assert (np.delete(gap, 3) < 0.01).all()
    assert gap[3] > STRICT.gap
    np.testing.assert_allclose(np.delete(xy, 3, 0), np.delete(points_of(plain)[:20], 3, 0), atol=0.3)


def mirrored(meshes: Float64, width: float) -> Float64:
    """Meshes in the mirror picture; point i takes the place of point 296 - i, so 33 and 263 change places."""
    other = meshes[:, (296 - np.arange(478)) % 478].copy()
    other[..., 0] = width - 1 - other[..., 0]
    return np.asarray(other)


def test_asymmetry_measures_a_rightward_bias_of_the_annotators() -> None:
    one = meshes_of(150)
    plain = np.concatenate([one, mirrored(one, 400)])  # nothing tells pictures from mirror pictures
    mixture = np.random.default_rng(3).dirichlet(np.full(478, 0.05), 68)
    mixture = (mixture + mixture[IBUG.mirror][:, (296 - np.arange(478)) % 478]) / 2
    fair = np.einsum("nm,pmd->pnd", mixture, plain[..., :2])
    skewed = fair + 0.02 * np.ptp(fair, axis=1).max(-1)[:, None, None] * [1, 0]
    pictures = Pictures([], [], np.stack([plain, mirrored(plain, 400)], 1), np.full(len(plain), 400.0))
    for marks, wanted in ((fair, 0.0), (skewed, 0.02)):
        found = asymmetry(pictures, {i: xy.astype(np.float32) for i, xy in enumerate(marks)}, IBUG)
        assert found == pytest.approx(wanted, abs=0.002)


def test_distance_is_in_sides_of_the_first_labels_box() -> None:
    square = np.array([[0, 0], [100, 0], [100, 50], [0, 50]], np.float64)
    assert distance(square, square + np.array([3, 4])) == pytest.approx(0.05)


def painted() -> UInt8:
    canvas = np.full((160, 200, 3), 120, np.uint8)
    PaintedFace((90.0, 80.0), width=80.0).paint(canvas, 0.0)
    return canvas


def test_eyelids_come_from_the_mesh_alone_if_there_is_no_annotation(tmp_path: Path) -> None:
    """A network that leaves closed eyes open would teach the next one to do so."""
    bgr, annotator = painted(), Annotator(0.0)
    sample = Sample(tmp_path / "a.png", np.zeros((0, 0, 2), np.float32), cv2.imencode(".png", bgr)[1].tobytes())
    network = annotator.annotate(bgr)
    mesh = network.astype(np.float64) + np.array([0, 2.0])
    label = Label.of(annotator, sample, mesh, 0.0, None).xy  # type: ignore[arg-type]
    moved = (label - network)[:, 1]
    assert moved[36:48] == pytest.approx(2.0, abs=0.02)
    assert np.delete(moved, range(36, 48)) == pytest.approx(2.0 * (1 - NETWORK_SHARE), abs=0.02)
    annotated = Label.of(annotator, sample, mesh, 0.0, network).xy  # type: ignore[arg-type]
    assert (annotated - network)[:, 1] == pytest.approx(1.0, abs=0.01)


def test_look_often_matches_the_annotator_despite_its_asymmetry() -> None:
    bgr, annotator = painted(), Annotator(ASYMMETRY)
    label = align_augmented(annotator, bgr, annotator.crop_around((90, 80), 80))  # type: ignore[arg-type]
    np.testing.assert_allclose(label.xy, annotator.annotate(bgr), atol=0.05)
    assert label.sure


@pytest.mark.parametrize("angle", [0.0, 0.5, -1.0])
def test_mirrored_and_shifted_annotation_matches_that_of_the_mirror_picture(angle: float) -> None:
    bgr, asymmetry = painted(), 0.05
    annotation = Annotator(asymmetry).annotate(bgr)
    transform = CropTransform.around((90, 80), 110, 128, angle=angle)
    xy = mirror_points(transform.to_crop(annotation), IBUG, 128)
    shifted = xy + annotators_shift(xy, transform, asymmetry)

    mirrored = np.ascontiguousarray(bgr[:, ::-1])
    wanted = Annotator(asymmetry).annotate(mirrored)
    back = mirror_points(transform.to_frame(mirror_points(shifted, IBUG, 128)), IBUG, bgr.shape[1])
    np.testing.assert_allclose(back, wanted, atol=0.5)  # of 8 pixels; the tight box of a turned face is another
    assert np.abs(transform.to_frame(mirror_points(xy, IBUG, 128)) - annotation).max() < 1e-3  # nothing else moved it


def test_cut_faces_cuts_out_large_faces_and_skips_tiny_ones(tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "two.png"), photograph)
    large = np.array([[100, 80], [130, 80], [115, 95], [115, 110]], np.float64)
    rows = [["file", *"abcdefgh"], ["two.png", *large.ravel()], ["two.png", *(large / 10 + 20).ravel()]]
    with (tmp_path / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    assert cut_faces(tmp_path, tmp_path / "out", "table") == 1
    (piece,) = (cv2.imread(str(path)) for path in (tmp_path / "out").iterdir())
    assert piece is not None
    assert piece.shape == (126, 126, 3)
    (tmp_path / "full" / "two_0.jpg").mkdir(parents=True)  # stands for a disk that takes nothing
    with pytest.raises(IsADirectoryError):
        cut_faces(tmp_path, tmp_path / "full", "table")
    grey, whole = piece.mean(-1), photograph[32:158, 52:178].mean(-1)
    assert np.abs(grey - whole).mean() < 25  # noise survives JPEG poorly; another place would differ by 50


def test_cut_faces_skips_unannotated_faces_and_those_outside_the_picture(tmp_path: Path) -> None:
    """One without points, one far away, one just beside it, whose square would show only what is next to it."""
    cv2.imwrite(str(tmp_path / "one.png"), np.zeros((200, 300, 3), np.uint8))
    face = np.array([[100, 80], [130, 80], [115, 95], [115, 110]], np.float64)
    rows = [",".join(["file", *"abcdefgh"]), "one.png" + 8 * ","]
    rows += [",".join(["one.png", *map(str, (face + away).ravel())]) for away in (9000.0, [-140.0, 0.0], 0.0)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    assert cut_faces(tmp_path, tmp_path / "out", "table") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one_3.jpg"]
