"""Boundary maps against SciPy's distance transform and OpenCV's lines, and what mirroring must not change."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from facetrack.tracker import markup
from facetrack.tracker.pose import MEAN_FACE_MM

torch = pytest.importorskip("torch", reason="targets are drawn in torch, which needs the `train` extra")
ndimage = pytest.importorskip("scipy.ndimage")

from facetrack.training.alignment.boundaries import (  # noqa: E402
    SAMPLES,
    boundary_curves,
    boundary_mirror,
    curve_maps,
    curve_weights,
    segment_maps,
    with_union,
)

pytestmark = pytest.mark.usefixtures("one_thread")

IBUG = markup.load("ibug68")
MARKUPS = ["ibug68", "wflw98", "cofw29", "aflw19"]


def face(side=256.0, tilt=0.2):
    """The mean face's 68 points in the middle of a crop, tilted so that nothing falls on whole cells, (1, 68, 2)."""
    xy = MEAN_FACE_MM[:, :2] - MEAN_FACE_MM[:, :2].mean(0)
    xy = xy / np.ptp(xy) * 0.8 * side @ np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    return torch.tensor(xy[None] + side / 2, dtype=torch.float64)


def scattered(marks, side=256):
    return torch.from_numpy(np.random.default_rng(0).uniform(40, side - 40, (2, marks.points, 2)))


def mirrored(xy, marks, side=256):
    flipped = xy[:, marks.mirror.tolist()].clone()
    flipped[..., 0] = side - 1 - flipped[..., 0]
    return flipped


@pytest.mark.parametrize("name", MARKUPS)
def test_curves_pass_through_their_landmarks(name):
    marks = markup.load(name)
    xy = scattered(marks)
    for row, line in enumerate(marks.boundaries.values()):
        n = len(line)
        steps = 12 * (n - 1) + 1 if n > 1 else 1
        curve = boundary_curves(xy, marks, steps)[:, row]
        torch.testing.assert_close(curve[:, ::12], xy[:, list(line)], rtol=1e-5, atol=1e-3)


def test_curve_weights_add_up_to_1():
    np.testing.assert_allclose(curve_weights("wflw98", 50).sum(2), 1, atol=1e-5)


@pytest.mark.parametrize(("sigma", "cut"), [(1.0, 3.0), (1.5, 2.0), (2.5, 2.0)])
def test_curve_maps_are_truncated_gaussians_of_the_distance_to_the_crossed_cells(sigma, cut):
    xy = face()
    got = curve_maps(xy, IBUG, (64, 64), 4, sigma, cut)[0].numpy()
    curves = (boundary_curves(xy, IBUG, SAMPLES)[0].numpy() + 0.5) / 4 - 0.5
    for row, curve in enumerate(curves):
        free = np.ones((104, 104), bool)  # a margin of 20 cells
        column, line = np.rint(curve).astype(int).T + 20
        free[line, column] = False
        distance = ndimage.distance_transform_edt(free)[20:-20, 20:-20]
        wanted = np.where(distance < cut * sigma - 1e-9, np.exp(-0.5 * (distance / sigma) ** 2), 0)
        np.testing.assert_allclose(got[row], wanted, atol=1e-6)


def test_curves_have_no_gaps():
    maps = curve_maps(face(), IBUG, (64, 64), 4)[0].numpy()
    for line in maps:
        assert ndimage.label(line == 1, np.ones((3, 3)))[1] == 1


@pytest.mark.parametrize("name", MARKUPS)
@pytest.mark.parametrize("draw", [curve_maps, segment_maps])
def test_every_line_of_every_markup_is_drawn_with_maximum_1(name, draw):
    marks = markup.load(name)
    maps = draw(scattered(marks), marks, (64, 64), 4)
    assert maps.shape == (2, 15, 64, 64)
    torch.testing.assert_close(maps.amax((2, 3)), torch.ones(2, 15, dtype=maps.dtype))
    assert maps.min() >= 0


@pytest.mark.parametrize("name", MARKUPS)
@pytest.mark.parametrize("draw", [curve_maps, segment_maps])
def test_mirrored_landmarks_draw_mirrored_maps_under_the_mirrored_lines(name, draw):
    marks = markup.load(name)
    xy = scattered(marks)
    maps = draw(xy, marks, (64, 64), 4)
    got = draw(mirrored(xy, marks), marks, (64, 64), 4)
    torch.testing.assert_close(got, maps[:, boundary_mirror(marks)].flip(3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MARKUPS)
def test_mirrored_lines_are_the_same_for_every_markup(name):
    assert boundary_mirror(markup.load(name)).tolist() == [0, 3, 4, 1, 2, 5, 6, 9, 10, 7, 8, 11, 12, 13, 14]


@pytest.mark.parametrize(("draw", "tolerance"), [(curve_maps, 1e-6), (segment_maps, 0.1)])
def test_the_border_cuts_lines_off_without_changing_the_rest(draw, tolerance):
    """PropNet's maps are divided by the highest value that is seen, which differs a little along a line."""
    xy = face()
    wide = draw(xy + 64, IBUG, (96, 96), 4)
    narrow = draw(xy - 24, IBUG, (32, 32), 4)  # the same face 88 pixels, 22 cells, further up and left
    seen = narrow.amax((2, 3)) > 0.9
    assert 0 < seen.sum() < 15
    torch.testing.assert_close(narrow[seen], wide[:, :, 22:54, 22:54][seen], rtol=0, atol=tolerance)


@pytest.mark.parametrize("draw", [curve_maps, segment_maps])
def test_a_line_with_an_unknown_landmark_is_empty_and_the_others_are_not(draw):
    xy = face()
    xy[0, 30] = torch.nan  # tip of the nose, on the bridge alone
    maps = draw(xy, IBUG, (64, 64), 4)
    assert (maps.amax((2, 3)) == 0).nonzero().tolist() == [[0, list(IBUG.boundaries).index("nose_bridge")]]
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize("draw", [curve_maps, segment_maps])
def test_face_outside_the_crop_gives_empty_maps(draw):
    assert (draw(face() + 1000, IBUG, (64, 64), 4) == 0).all()


def test_the_union_is_the_maximum_of_the_lines():
    maps = curve_maps(face(), IBUG, (64, 64), 4)
    union = with_union(maps)
    assert union.shape == (1, 16, 64, 64)
    assert torch.equal(union[:, :15], maps)
    assert torch.equal(union[:, 15], maps.max(1).values)


def test_segment_maps_are_blurred_straight_lines():
    """OpenCV draws a line 16 pixels thick at 16 times the size; the means of 16 x 16 pixels are an exact coverage."""
    xy = face()
    got = segment_maps(xy, IBUG, (64, 64), 4)[0].numpy()
    fine = ((xy[0].numpy() + 0.5) * 4 - 0.5)[list(IBUG.boundaries["contour"])]
    canvas = np.zeros((1024, 1024), np.float32)
    cv2.polylines(canvas, [np.rint(fine * 16).astype(np.int32)], False, 1.0, 16, cv2.LINE_8, 4)
    wanted = cv2.GaussianBlur(cv2.resize(canvas, (64, 64), interpolation=cv2.INTER_AREA), (7, 7), 1)
    assert np.corrcoef(got[0].ravel(), wanted.ravel())[0, 1] > 0.999
    scale = (got[0] * wanted).sum() / (wanted**2).sum()  # the maxima stand at different bends
    np.testing.assert_allclose(got[0], scale * wanted, atol=0.12)


def test_straight_segment_through_cell_centres_has_a_gaussian_profile():
    xy = torch.tensor([[[21.5, 33.5]] * 20 + [[101.5, 33.5]] + [[21.5, 33.5]] * 8], dtype=torch.float64)
    maps = segment_maps(xy, markup.load("cofw29"), (32, 32), 4)
    profile = maps[0, list(markup.load("cofw29").boundaries).index("nose_bridge"), :, 15]
    taps = np.exp(-0.5 * np.arange(-3, 4) ** 2.0)
    np.testing.assert_allclose(profile[5:12], taps, atol=1e-6)  # the line is row 8; a tent one cell wide hits it alone
