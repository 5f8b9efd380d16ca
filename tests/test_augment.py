"""Augmentation: points follow the pixels, the same number draws the same crop, and borders betray nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from fakes import placed

from facetrack.tracker.geometry import CropTransform, bounding_box, box_centre_side
from facetrack.tracker.types import Float32, UInt8
from facetrack.training.augment import (
    DISTURBANCES,
    Geometry,
    blur,
    crop_over_background,
    disguise,
    disguise_as_published,
    disturb,
    occlude,
    random_crop,
    relight,
    resize_bicubic,
    written_on,
)

PLAIN = Geometry(roll_deg=0, wide_share=0, log_scale=0, shift=0, stretch=0, flip=0)
BACKGROUND = np.full((128, 128, 3), 90, np.uint8)
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255))


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng((11, seed))


def dotted(side: int, seed: int = 0) -> tuple[UInt8, Float32]:
    """A dark picture with six blobs of different colours, and their centres (6, 2)."""
    points = np.random.default_rng(seed).uniform(0.3, 0.7, (6, 2)) * side
    points[:2] = [[0.25 * side, 0.3 * side], [0.75 * side, 0.7 * side]]
    y, x = np.mgrid[:side, :side]
    picture = np.zeros((side, side, 3))
    for (px, py), colour in zip(points, COLOURS, strict=True):
        picture += np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (0.02 * side) ** 2))[..., None] * colour
    return picture.clip(0, 255).astype(np.uint8), points.astype(np.float32)


def centroid(crop: UInt8, colour: tuple[int, int, int]) -> Float32:
    """Where the blob of this colour is in a crop: the centroid of what only it can have painted."""
    values = crop.astype(np.float64)
    on, off = [c for c in range(3) if colour[c]], [c for c in range(3) if not colour[c]]
    weight = np.maximum(values[..., on].min(-1) - 2 * values[..., off].max(-1), 0) ** 2
    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()], np.float32) / weight.sum()


@pytest.mark.parametrize("side", [60, 160, 400, 800], ids=["enlarged", "as it is", "shrunk", "shrunk much"])
def test_points_follow_the_pixels(side: int) -> None:
    wild = Geometry(roll_deg=25, wide_share=0.5, log_scale=0.15, shift=0.02, stretch=0.15)
    picture, points = dotted(side)
    for seed in range(12):
        transform = random_crop(points, 128, wild, generator(seed))
        crop = crop_over_background(picture, transform, np.zeros_like(BACKGROUND), generator(seed))
        moved = transform.to_crop(points)
        for point, colour in list(zip(moved, COLOURS, strict=True))[:2]:  # the two that nothing overlaps
            if (point > 12).all() and (point < 115).all():
                assert np.abs(centroid(crop, colour) - point).max() < 0.35


def test_without_jitter_the_crop_is_the_enlarged_bounding_box() -> None:
    _, points = dotted(200)
    transform = random_crop(points, 96, PLAIN, generator(0))
    (cx, cy), side = box_centre_side(bounding_box(points))
    wanted = CropTransform.around((cx, cy), side * PLAIN.box_scale, 96)
    np.testing.assert_allclose(transform.matrix, wanted.matrix, atol=1e-9)
    assert transform.size == (96, 96)


def test_the_crop_of_five_points_shows_the_whole_face() -> None:
    five = placed(0, (120.0, 90.0), 64.0, 0.0).astype(np.float32)
    transform = random_crop(five, 96, PLAIN, generator(0))
    wanted = CropTransform.around((120.0, 90.0), 64 * PLAIN.box_scale, 96)
    np.testing.assert_allclose(transform.matrix, wanted.matrix, atol=1e-3)


def test_unannotated_points_do_not_affect_the_crop() -> None:
    _, points = dotted(200)
    holed = np.vstack((points, [[np.nan, np.nan]])).astype(np.float32)
    for seed in range(5):
        a, b = (random_crop(p, 96, Geometry(), generator(seed)) for p in (points, holed))
        np.testing.assert_array_equal(a.matrix, b.matrix)


def spread_of(geometry: Geometry, measure: Callable[[CropTransform], float], count: int = 800) -> np.ndarray:
    points = np.array([[0, 0], [100, 100]], np.float32)
    return np.array([measure(random_crop(points, 128, geometry, generator(seed))) for seed in range(count)])


def roll_deg(transform: CropTransform) -> float:
    return float(np.rad2deg(np.arctan2(transform.matrix[0, 1], transform.matrix[0, 0])))


def test_roll_is_normal_with_a_share_that_is_uniform_up_to_the_wide_angle() -> None:
    usual = spread_of(replace(PLAIN, roll_deg=10), roll_deg)
    assert usual.std() == pytest.approx(10, rel=0.08)
    assert np.abs(usual).max() <= 25 + 1e-9
    wide = spread_of(replace(PLAIN, wide_share=1.0, wide_roll_deg=60), roll_deg)
    assert wide.std() == pytest.approx(60 / np.sqrt(3), rel=0.08)
    assert 55 < np.abs(wide).max() <= 60
    mixed = spread_of(replace(PLAIN, wide_share=0.25, wide_roll_deg=60), roll_deg)
    assert (mixed != 0).mean() == pytest.approx(0.25, abs=0.05)


def test_scale_shift_and_stretch_have_their_spread() -> None:
    scale = np.log(spread_of(replace(PLAIN, log_scale=0.2), lambda t: t.scale))
    assert scale.std() == pytest.approx(0.2, rel=0.08)
    shift = spread_of(replace(PLAIN, shift=0.1), lambda t: float(t.to_crop(np.float32([50, 50]))[0]) / 128)
    assert shift.std() == pytest.approx(0.1, rel=0.08)
    aspect = np.log(spread_of(replace(PLAIN, stretch=0.1), lambda t: t.matrix[0, 0] / t.matrix[1, 1]))
    assert aspect.std() == pytest.approx(0.1, rel=0.08)
    area = spread_of(replace(PLAIN, stretch=0.1), lambda t: t.scale, count=50)
    assert np.ptp(area) < 1e-9  # a stretch changes no area
    middle = spread_of(replace(PLAIN, stretch=0.1), lambda t: float(t.to_crop(np.float32([50, 50]))[1]), count=50)
    assert np.ptp(middle) < 1e-4


def test_the_same_seed_draws_the_same_crop_and_another_seed_another() -> None:
    picture, points = dotted(300)

    def draw(seed: int) -> UInt8:
        rng = generator(seed)
        transform = random_crop(points, 96, Geometry(), rng)
        return disturb(crop_over_background(picture, transform, BACKGROUND, rng), [BACKGROUND], rng)

    first = [draw(seed) for seed in range(20)]
    np.testing.assert_array_equal(first, [draw(seed) for seed in range(20)])
    assert len({crop.tobytes() for crop in first}) == 20


@pytest.mark.parametrize("side", [100, 500])
def test_inside_the_picture_the_background_never_shows(side: int) -> None:
    picture, _ = dotted(side)
    transform = CropTransform.around((side / 2, side / 2), side * 0.6, 96, angle=0.3)
    for seed in range(20):
        crop = crop_over_background(picture, transform, BACKGROUND, generator(seed))
        assert np.abs(crop.astype(int) - transform.crop(picture)).mean() < 0.5
        assert crop.dtype == np.uint8


@pytest.mark.parametrize("side", [100, 500])
def test_area_outside_the_picture_is_mirrored_background_or_black_in_fixed_shares(side: int) -> None:
    white = np.full((side, side, 3), 255, np.uint8)
    transform = CropTransform.around((0.0, side / 2), side, 96)  # the left half is outside
    corners = [crop_over_background(white, transform, BACKGROUND, generator(s))[48, 5] for s in range(200)]
    mirrored = np.mean([(c == 255).all() for c in corners])
    background = np.mean([(c == 90).all() for c in corners])
    black = np.mean([(c == 0).all() for c in corners])
    assert mirrored == pytest.approx(0.3, abs=0.1)
    if side == 100:
        assert (background, black) == pytest.approx((0.4, 0.15), abs=0.1)
    else:
        assert background == pytest.approx(0.7, abs=0.1)  # shrunk pictures have no border of one colour


def test_crop_far_outside_or_much_larger_than_a_tiny_picture_keeps_its_size() -> None:
    tiny = np.full((2, 3, 3), 200, np.uint8)
    for centre, side in (((500.0, 500.0), 20.0), ((1.0, 1.0), 1000.0)):
        for seed in range(8):
            transform = CropTransform.around(centre, side, 64)
            assert crop_over_background(tiny, transform, BACKGROUND, generator(seed)).shape == (64, 64, 3)


def test_each_disturbance_alone_changes_some_crops_and_none_changes_nothing() -> None:
    picture, _ = dotted(96)
    rng = generator(0)
    np.testing.assert_array_equal(disturb(picture, [BACKGROUND], rng, ()), picture)
    assert rng.random() == generator(0).random()  # nothing was drawn
    for kind in DISTURBANCES:
        seen = [disturb(picture, [BACKGROUND], generator(seed), (kind,)) for seed in range(40)]
        changed = [crop for crop in seen if (crop != picture).any()]
        assert 0 < len(changed) < 40, kind
        assert (kind == "grey") == all(np.ptp(crop, axis=2).max() == 0 for crop in changed), kind
    for seed in range(10):
        every = disturb(picture, [BACKGROUND], generator(seed), DISTURBANCES)
        np.testing.assert_array_equal(every, disturb(picture, [BACKGROUND], generator(seed)))


def test_disturb_keeps_shape_and_dtype_and_does_not_modify_its_input() -> None:
    picture, _ = dotted(96)
    before = picture.copy()
    seen = [disturb(picture, [BACKGROUND], generator(seed)) for seed in range(150)]
    for result in seen:
        assert result.shape == picture.shape
        assert result.dtype == np.uint8
    np.testing.assert_array_equal(picture, before)
    assert any((result[..., 0] == result[..., 1]).all() for result in seen)  # some grey
    assert any((result == picture).all() for result in seen)  # some untouched


def test_blur_and_light_leave_every_blob_in_its_place() -> None:
    picture, points = dotted(128)
    for seed in range(30):
        for spoil in (blur, relight):
            result = spoil(picture, generator(seed))
            for point, colour in list(zip(points, COLOURS, strict=True))[:2]:
                assert np.abs(centroid(result, colour) - point).max() < 0.8


def test_relighting_is_monotonic_in_every_channel_for_most_seeds() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    even = 0
    for seed in range(20):
        lit = relight(ramp, generator(seed)).astype(int)
        even += bool((np.diff(lit, axis=1) >= 0).all())
    assert even >= 12  # three in four have no ramp of light


def test_occluders_cover_under_a_quarter_on_average_and_never_half() -> None:
    picture = np.full((100, 100, 3), 77, np.uint8)
    covered = [float((occlude(picture, [BACKGROUND], generator(seed)) != 77).any(-1).mean()) for seed in range(100)]
    assert 0 < np.mean(covered) < 0.25
    assert max(covered) < 0.5
    without = occlude(picture, [], generator(1))
    assert without.shape == picture.shape


def test_the_shrunk_picture_is_averaged_and_not_aliased() -> None:
    board = np.indices((400, 400)).sum(0) % 2 * 255
    picture = np.repeat(board[..., None], 3, 2).astype(np.uint8)
    transform = CropTransform.around((200.0, 200.0), 300.0, 75)
    crop = crop_over_background(picture, transform, BACKGROUND, generator(0))
    assert crop.astype(float).std() < 4
    assert crop.mean() == pytest.approx(127.5, abs=2)
    assert cv2.warpAffine(picture, transform.matrix, (75, 75)).max() == 0  # bilinear hits the black squares alone


def test_text_is_written_on_a_copy_in_few_colours_or_shades_and_is_reproducible() -> None:
    plain, changed, shaded = np.full((160, 160, 3), 90, np.uint8), 0, 0
    for seed in range(40):
        written = written_on(plain, generator(seed))
        np.testing.assert_array_equal(written, written_on(plain, generator(seed)))
        assert written.dtype == np.uint8
        colours, counts = np.unique(written.reshape(-1, 3), axis=0, return_counts=True)
        assert counts.max() > 0.1 * counts.sum()  # the ground, or a letter as large as the picture
        changed += len(colours) > 1
        shaded += len({tuple(row) for row in written[:, ::4].reshape(-1, 3)}) > 100
    assert changed >= 36  # a word may lie outside
    assert shaded >= 5
    assert (plain == 90).all()


def tiles(side: int = 128) -> UInt8:
    """A picture without black whose pixels say where they are, column and row in blue and green; red a chess-board."""
    row, column = np.mgrid[:side, :side] + 100
    return np.stack((column, row, 190 + 20 * ((row + column) % 2)), -1).astype(np.uint8)


def occlusions(picture: UInt8) -> list[tuple[UInt8, np.ndarray]]:
    """Pictures that SPAN's occlusion alone has changed, and where."""
    seen = [disguise_as_published(picture, generator(seed)) for seed in range(400)]
    pairs = [(after, (after != picture).any(-1)) for after in seen]
    return [(after, changed) for after, changed in pairs if changed.any() and not (after == 255).any()]


def test_spans_occluders_are_black_or_a_part_of_the_picture_itself() -> None:
    """Section IV-A. A part keeps its neighbours: its pixels say that they are all from one shift away."""
    picture = tiles()
    black = 0
    own = 0
    for after, changed in occlusions(picture):
        inside = after[changed].astype(int)
        black += not inside.any()
        if np.isin(inside[:, 2], (190, 210)).all():  # neither blurred nor noisy
            shifts = np.unique(inside[:, :2] - picture[changed][:, :2], axis=0)
            assert len(shifts) <= 2  # of one or two occluders
            own += 1
    assert black > 5
    assert own > 5


def test_span_augmentation_keeps_the_lighting_and_ours_changes_it() -> None:
    """Where there is no noise, every pixel of a plain picture is as it was, black, or salt."""
    plain = np.full((64, 64, 3), 120, np.uint8)
    theirs = [np.isin(disguise_as_published(plain, generator(seed)), (0, 120, 255)).all() for seed in range(60)]
    ours = [np.isin(disguise(plain, [plain], generator(seed)), (0, 120, 255)).all() for seed in range(60)]
    assert sum(theirs) > 20
    assert sum(ours) == 0


def test_spans_blur_is_bicubic_through_one_of_four_sizes() -> None:
    board = np.random.default_rng(0).integers(1, 255, (256, 256, 3), np.uint8)
    degraded = [
        resize_bicubic(resize_bicubic(board, (side, side)), (256, 256)).astype(int) for side in (128, 64, 32, 16)
    ]
    found = set()
    for seed in range(200):
        after = disguise_as_published(board, generator(seed)).astype(int)
        found |= {i for i, low in enumerate(degraded) if (after == low).all()}
    assert found == {0, 1, 2, 3}


@pytest.mark.parametrize("size", [(128, 128), (16, 16), (300, 200)])
def test_bicubic_resize_matches_torch(size: tuple[int, int]) -> None:
    """With `antialias`, which has Keys' a = -0.5 and leaves out what lies beyond the border, as we do."""
    torch = pytest.importorskip("torch", reason="the second implementation")
    picture = np.random.default_rng(1).integers(0, 256, (256, 240, 3), np.uint8)
    planes = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    got = resize_bicubic(picture, size).astype(int)
    assert np.abs(got - wanted.round().clamp(0, 255).numpy()).max() <= 1  # a half may be rounded either way
