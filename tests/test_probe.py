"""The probe: its truth is exact, its clips are the same every time, and its scores are those worked out by hand."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from fakes import PaintedSource
from fakes_pipeline import PaintedBackend, PaintedEngines

from facetrack import __version__
from facetrack.cli import main
from facetrack.pipeline.open import Choices
from facetrack.pipeline.sidecar import describe_models
from facetrack.tracker.errors import ConfigError, SinkError, SourceError
from facetrack.tracker.pose import MEAN_FACE_MM
from facetrack.training.probe.clips import Clip, Recipe, encode, make_probe, read_clip, read_probe
from facetrack.training.probe.render import Cutout, Painter
from facetrack.training.probe.run import compile_report, measure_probe, read_table
from facetrack.training.probe.scenes import HEIGHT, SCENES, WIDTH, Occluder, Scene, Swing, homographies, mapped
from facetrack.training.probe.scenes import Path as Way
from facetrack.training.probe.score import TrackedClip, mota_idf1, score
from facetrack.training.probe.table import report_as_table

FACE = MEAN_FACE_MM[:, :2] / np.ptp(MEAN_FACE_MM[:, :2], 0).max() * 200 + [160, 170]
DOTS = [3, 8, 13, 19, 24, 30, 36, 45, 48, 54]


def photograph() -> np.ndarray:
    """Grey, with bright dots on landmarks far from each other."""
    bgr = np.full((320, 320, 3), 60, np.uint8)
    for x, y in FACE[DOTS]:
        cv2.circle(bgr, (round(x * 16), round(y * 16)), 4 * 16, (255, 255, 255), -1, cv2.LINE_AA, 4)
    return bgr


SHORT = [Scene("short", 5)]  # of nobody
A = Scene("a", 5, (Way(((0, 320, 240, 150),)),))
HEAD = Cutout(photograph(), FACE.astype(np.float32))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    lines = "\n".join(f"{x + 1:.3f} {y + 1:.3f}" for x, y in FACE)
    for name in ("one", "two", "three"):
        cv2.imwrite(str(folder / f"{name}.png"), photograph())
        (folder / f"{name}.pts").write_text(f"version: 1\nn_points: 68\n{{\n{lines}\n}}\n")
    return folder


def painter(scene: Scene) -> Painter:
    return Painter(scene, [HEAD] * len(scene.faces), np.random.default_rng(0))


# Geometry


def test_homography_of_an_upright_frontal_pose_only_moves_and_scales() -> None:
    pose = np.array([[300.0, 200.0, 100.0, 0, 0, 0]])
    there = mapped(homographies(pose, (160.0, 170.0), 200.0)[0], np.array([[160.0, 170.0], [260.0, 170.0]]))
    np.testing.assert_allclose(there, [[300, 200], [350, 200]], atol=1e-9)


def test_homography_of_a_yawed_pose_keeps_the_middle_and_shows_the_near_side_larger() -> None:
    pose = np.array([[300.0, 200.0, 100.0, 0, np.radians(30), 0]])
    ends = np.array([[60.0, 170.0], [160.0, 170.0], [260.0, 170.0]])
    left, middle, right = mapped(homographies(pose, (160.0, 170.0), 200.0)[0], ends)
    np.testing.assert_allclose(middle, [300, 200], atol=1e-9)
    assert 300 - left[0] < 0.95 * (right[0] - 300)  # the nose goes to the picture's left, so the right side is near
    assert right[0] - 300 < 50


def test_roll_turns_clockwise_on_screen() -> None:
    pose = np.array([[0.0, 0.0, 200.0, np.radians(90), 0, 0]])
    there = mapped(homographies(pose, (0.0, 0.0), 200.0)[0], np.array([[100.0, 0.0]]))
    np.testing.assert_allclose(there, [[0, 100]], atol=1e-9)


def test_path_moves_steadily_between_keyframes_and_swings_are_sines() -> None:
    way = Way(((10, 100, 50, 150), (20, 180, 50, 150)), (Swing("y", 8, 40), Swing("roll", 90, 4)))
    pose = way.pose(np.arange(30.0))
    np.testing.assert_allclose(np.diff(pose[10:21, 0]), 8)
    np.testing.assert_allclose(pose[:11, 0], 100)
    assert pose[10, 1] == pytest.approx(58)
    assert pose[1, 3] == pytest.approx(np.pi / 2)


# Pictures


@pytest.mark.parametrize("size", [60.0, 150.0, 260.0])
def test_the_landmarks_are_where_they_were_painted(size: float) -> None:
    swings = (Swing("x", 30.3, 7), Swing("roll", 20, 9), Swing("yaw", 20, 8))
    scene = Scene("x", 4, (Way(((0, 320, 240, size),), swings),), noise=0.0, shutter=0.0)
    paint = painter(scene)
    assert len(paint.truth()[0]) == 4
    for bgr, xy in zip(paint.frames(), paint.truth()[0], strict=True):
        light = bgr[..., 1].astype(float)
        for x, y in xy[DOTS]:
            r = round(size / 150 * 4)
            left, top = round(float(x)) - r, round(float(y)) - r
            patch = np.maximum(light[top : top + 2 * r + 1, left : left + 2 * r + 1] - 90, 0)
            rows, columns = np.mgrid[: len(patch), : len(patch)]
            found = np.array([(columns * patch).sum(), (rows * patch).sum()]) / patch.sum() + [left, top]
            assert np.abs(found - [x, y]).max() < 0.5


def test_motion_blurs_about_the_middle_of_the_exposure() -> None:
    way = Way(((0, 200, 240, 150), (10, 400, 240, 150)))
    sharp, blurred = (painter(Scene("x", 5, (way,), noise=0.0, shutter=shutter)) for shutter in (0.0, 0.5))
    for a, b in zip(sharp.frames(), blurred.frames(), strict=True):
        x = np.arange(WIDTH)
        centres = [
            (light * x).sum() / light.sum() for light in (a[240].astype(float).mean(-1), b[240].astype(float).mean(-1))
        ]
        assert centres[0] == pytest.approx(centres[1], abs=0.5)
        assert np.abs(np.diff(b[240].astype(int), axis=0)).max() < np.abs(np.diff(a[240].astype(int), axis=0)).max()


def test_noise_is_as_strong_as_asked_and_light_changes_as_asked() -> None:
    first, second = painter(Scene("x", 2, noise=4.0)).frames()
    assert np.std(first.astype(float) - second) == pytest.approx(4.0 * np.sqrt(2), rel=0.03)
    paint = painter(Scene("x", 46, noise=0.0, gain=(0.5, 1.0)))
    assert paint._light(0).mean() == pytest.approx(1.0)
    assert paint._light(45).mean() == pytest.approx(0.5)


def test_faces_outside_or_behind_a_bar_or_another_face_are_not_visible() -> None:
    still = Way(((0, 320, 240, 150),))
    assert painter(Scene("x", 1, (still,))).visible(painter(Scene("x", 1, (still,))).truth())[0, 0] == 1
    for scene, parts in (
        (Scene("x", 1, (Way(((0, -200, 240, 150),)),)), [0.0]),
        (Scene("x", 1, (still,), Occluder(Way(((0, 320, 240, 300),)), 480)), [0.0]),
        (Scene("x", 1, (still, still)), [0.0, 1.0]),
    ):
        paint = painter(scene)
        np.testing.assert_array_equal(paint.visible(paint.truth())[:, 0], parts)
    half = painter(Scene("x", 1, (still,), Occluder(Way(((0, 320 - 150, 240, 300),)), 480)))
    assert 0.4 < half.visible(half.truth())[0, 0] < 0.6


# Files


def test_a_probe_is_read_back_as_it_was_painted(photos: Path, tmp_path: Path) -> None:
    scene = Scene("pass", 9, (Way(((0, 320, 240, 150),)), Way(((0, 200, 240, 150), (8, 320, 240, 150)))))
    (made,) = make_probe(tmp_path / "probe", Recipe(photos), [scene])
    clip = read_clip(made)
    with av.open(str(clip.video)) as video:
        pictures = [frame.to_ndarray(format="bgr24") for frame in video.decode(video=0)]
    assert (len(pictures), pictures[0].shape) == (9, (HEIGHT, WIDTH, 3))
    assert clip.truth.shape == (2, 9, 68, 2)
    np.testing.assert_allclose(clip.truth, painter(scene).truth(), atol=1e-3)
    assert clip.visible[1].min() == 1
    assert clip.visible[0].min() < 0.2
    assert sorted(path.name for path in made.iterdir()) == ["annot", "annot-2", "probe.json", "vid.avi"]


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(photos: Path, tmp_path: Path) -> None:
    videos = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        list(make_probe(tmp_path / name, Recipe(photos, seed=seed), SHORT))
        videos.append((tmp_path / name / "short" / "vid.avi").read_bytes())
    assert videos[0] == videos[1]
    assert videos[0] != videos[2]


def test_a_clip_does_not_depend_on_which_others_are_made(photos: Path, tmp_path: Path) -> None:
    for name, scenes in (("alone", [A]), ("second", [*SHORT, A])):
        list(make_probe(tmp_path / name, Recipe(photos), scenes))
    alone, second = ((tmp_path / name / "a/vid.avi").read_bytes() for name in ("alone", "second"))
    assert alone == second


def test_scene_names_are_unique_and_chosen_scenes_keep_their_order(photos: Path) -> None:
    names = [scene.name for scene in SCENES]
    assert len(set(names)) == len(names)
    assert [scene.name for scene in Recipe(photos, ("turn", "still")).chosen()] == ["still", "turn"]


def test_unknown_scene_nonempty_folder_and_folder_without_clips_raise(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown scene 'dance'"):
        list(make_probe(tmp_path / "a", Recipe(photos, ("dance",))))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(SinkError, match="not empty"):
        list(make_probe(tmp_path / "full", Recipe(photos), SHORT))
    with pytest.raises(SourceError, match="no clips"):
        read_probe(tmp_path)


def test_clip_gets_its_name_only_when_it_is_complete(photos: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    class Interrupted(Way):
        def pose(self, frames: np.ndarray) -> np.ndarray:
            if len(frames) == 2 and frames.mean() > 1:  # the exposure of the third picture
                seen.extend(sorted(path.name for path in tmp_path.iterdir()))
                raise KeyboardInterrupt
            return super().pose(frames)

    scenes = [*SHORT, Scene("long", 9, (Interrupted(((0, 320, 240, 150),)),))]
    with pytest.raises(KeyboardInterrupt):
        list(make_probe(tmp_path, Recipe(photos), scenes))
    assert seen == ["long.part", "short"]
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


def test_make_probe_removes_partial_clips_of_a_killed_run_but_no_other_files(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "long.part/annot").mkdir(parents=True)
    (tmp_path / "long.part/vid.avi").touch()
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part/thesis").touch()
    with pytest.raises(SinkError, match="not empty"):
        list(make_probe(tmp_path, Recipe(photos), SHORT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.part", "mine.part"]
    (tmp_path / "mine.part/thesis").unlink()
    list(make_probe(tmp_path, Recipe(photos), SHORT))
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


def test_resumed_make_probe_makes_only_the_missing_clips(photos: Path, tmp_path: Path) -> None:
    probe, scenes = tmp_path / "probe", [A, replace(A, name="b")]
    next(make_probe(probe, Recipe(photos), scenes))
    (probe / "b.part/annot").mkdir(parents=True)
    kept = (probe / "a/vid.avi").stat()
    assert list(make_probe(probe, Recipe(photos), scenes, resume=True)) == [probe / "a", probe / "b"]
    assert sorted(path.name for path in probe.iterdir()) == ["a", "b"]
    assert (probe / "a/vid.avi").stat() == kept
    list(make_probe(tmp_path / "whole", Recipe(photos), scenes))
    for file in ("vid.avi", "probe.json", "annot/000005.pts"):
        assert (probe / "b" / file).read_bytes() == (tmp_path / "whole/b" / file).read_bytes()


ANOTHER = "a: is a clip of another seed"


@pytest.mark.parametrize(
    ("recipe", "scene", "message"),
    [
        ({"seed": 1}, {}, ANOTHER),
        ({}, {"noise": 3.0}, ANOTHER),
        ({"copies": 2}, {}, "is not empty, it holds a; "),
        ({}, {"name": "b"}, "is not empty, it holds a; "),
    ],
)
def test_resumed_make_probe_raises_for_a_clip_made_with_other_arguments(
    photos: Path, tmp_path: Path, recipe: dict[str, Any], scene: dict[str, Any], message: str
) -> None:
    list(make_probe(tmp_path, Recipe(photos), [A]))
    with pytest.raises(SinkError, match=message):
        list(make_probe(tmp_path, Recipe(photos, **recipe), [replace(A, **scene)], resume=True))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_resumed_make_probe_raises_for_a_clip_of_other_or_unknown_photographs(photos: Path, tmp_path: Path) -> None:
    probe, others = tmp_path / "probe", shutil.copytree(photos, tmp_path / "others")
    for picture in others.glob("*.png"):
        cv2.imwrite(str(picture), 255 - photograph())
    list(make_probe(probe, Recipe(photos), [A]))
    with pytest.raises(SinkError, match=ANOTHER):
        list(make_probe(probe, Recipe(others), [A], resume=True))
    for content in ("[]", "{}", "{"):
        (probe / "a/probe.json").write_text(content)
        with pytest.raises(SinkError, match=ANOTHER):
            list(make_probe(probe, Recipe(photos), [A], resume=True))


def test_probe_make_continues_only_with_resume(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", "make", str(tmp_path / "probe"), "--photos", str(photos), "--scene", "nobody"]
    assert main(words) == 0
    assert main(words) == 1
    assert "is not empty, it holds nobody; choose another folder" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert capsys.readouterr().err.strip() == str(tmp_path / "probe/nobody")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_unwritable_folder_raises_before_the_photographs_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match=f"{name}: cannot be created"):
        next(make_probe(tmp_path / name, Recipe(tmp_path / "nowhere"), SHORT))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["nan nan"] * 68, "wanted 68 points that are numbers, got 0"),
        (["1 2"] * 67 + ["inf 3"], "wanted coordinates up to 1048576 pixels, got inf"),
        (["1 2", "3 4"], "wanted 68 points, got 2"),
    ],
)
def test_broken_truth_raises_naming_its_file(photos: Path, tmp_path: Path, lines: list[str], message: str) -> None:
    still = Scene("still", 2, (Way(((0, 320, 240, 150),)),))
    list(make_probe(tmp_path / "probe", Recipe(photos), [still]))
    (tmp_path / "probe/still/annot/000002.pts").write_text("\n".join(["{", *lines, "}"]))
    with pytest.raises(SourceError, match=rf"still/annot/000002\.pts: .*{message}"):
        read_probe(tmp_path / "probe")


# Scores


def clip(frames: int = 60, faces: int = 1, step: float = 0.0) -> Clip:
    """Faces of 200 px side by side that ride to the right between frames 60 and 100."""
    way = np.clip(np.arange(frames) - 60, 0, 40) * step
    places = np.stack([FACE + np.array([400.0 * f, 0]) for f in range(faces)])
    truth = places[:, None] + np.stack((way, 0 * way), -1)[None, :, None]
    return Clip("c", Path("c"), 30.0, truth.astype(np.float32), np.ones((faces, frames), np.float32), seed=0)


def tracked(of: Clip, tracks: list[list[int]], offset: float = 0.0) -> TrackedClip:
    """What a tracker says that calls face f in frame t `tracks[f][t]`; -1: not tracked."""
    rows = [(t, tracks[f][t], of.truth[f, t] + offset) for t in range(of.truth.shape[1]) for f in range(len(of.truth))]
    rows = [row for row in rows if row[1] >= 0]
    xy = np.array([row[2] for row in rows], np.float32).reshape(-1, 68, 2)
    numbers = np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)
    return TrackedClip(numbers[:, 0], numbers[:, 1], np.ones(len(rows), bool), xy, xy, of.truth.shape[1])


def test_a_perfect_track_has_a_perfect_score() -> None:
    result = score(clip(), tracked(clip(), [[0] * 60]))
    counts = result.wanted_face_frames, result.lost_face_frames, result.switches, result.false_tracks
    assert counts == (60, 0, 0, 0)
    assert result.first_found_frames == [0]
    assert result.mean_nme == pytest.approx(0, abs=1e-6)
    assert result.smoothed.jitter_px == pytest.approx(0, abs=1e-4)


def test_nme_is_normalised_by_the_distance_between_the_outer_eye_corners() -> None:
    result = score(clip(), tracked(clip(), [[0] * 60], offset=3.0))
    eyes = np.linalg.norm(FACE[45] - FACE[36])
    assert result.mean_nme == pytest.approx(3 * np.sqrt(2) / eyes, rel=1e-4)


def test_score_counts_id_switches_lost_frames_and_delays() -> None:
    hidden = clip()
    hidden.visible[0, 20:30] = 0.0
    ids = [-1] * 2 + [0] * 21 + [-1] * 10 + [1] * 27  # found late, held on for 3 frames, found again after 3 more
    result = score(hidden, tracked(hidden, [ids]))
    assert (result.wanted_face_frames, result.lost_face_frames) == (50, 2 + 3)
    assert (result.first_found_frames, result.found_again_frames, result.held_on_frames) == ([2], [3], [3])
    assert result.switches == 1


def test_two_faces_that_swap_their_track_ids_are_two_switches() -> None:
    two = clip(faces=2)
    ids = [[0] * 30 + [1] * 30, [1] * 30 + [0] * 30]
    assert score(two, tracked(two, ids)).switches == 2


def test_track_on_no_face_counts_as_false() -> None:
    of = clip()
    right = tracked(of, [[0] * 60])
    far = np.concatenate((right.xy, right.xy[:20] + 500))
    both = TrackedClip(
        np.concatenate((right.frame, np.arange(20))),
        np.repeat([0, 7], [60, 20]),
        np.ones(80, bool),
        far,
        far,
        right.frames,
    )
    result = score(of, both)
    assert (result.false_tracks, result.false_rows, result.lost_face_frames) == (1, 20, 0)


def test_lag_and_overshoot_are_measured_relative_to_the_offset_at_rest() -> None:
    of = clip(160, step=8.0)
    right = tracked(of, [[0] * 160])
    late = right.xy + np.float32(2.0)  # a standing error
    late[61:101] -= np.array([1.5, 0], np.float32)  # behind while it rides
    late[101:104] += np.array([3.0, 0], np.float32)  # beyond the stop
    result = score(of, replace(right, xy=late))
    assert result.smoothed.lag_px == pytest.approx(1.5, abs=1e-3)
    assert result.smoothed.lag_ms == pytest.approx(1.5 / 8 / 30 * 1000, abs=1e-2)
    assert result.smoothed.overshoot_px == pytest.approx(3.0, abs=1e-3)
    assert result.raw.lag_px == pytest.approx(0, abs=1e-3)


def test_mota_and_idf1_match_hand_computed_values() -> None:
    pytest.importorskip("motmetrics", reason='MOTA and IDF1 need pip install "facetrack[eval]"')
    of = clip()
    assert mota_idf1([(of, tracked(of, [[0] * 60]))]) == (1.0, 1.0)
    mota, idf1 = mota_idf1([(of, tracked(of, [[0] * 30 + [1] * 20 + [-1] * 10]))])
    assert mota == pytest.approx(1 - (10 + 1) / 60)  # ten misses and a switch
    assert idf1 == pytest.approx(2 * 30 / (60 + 50))  # 30 frames under the best identity


# The whole


def test_measure_probe_writes_a_report_and_an_empty_table_for_a_clip_of_nobody(photos: Path, tmp_path: Path) -> None:
    list(make_probe(tmp_path / "probe", Recipe(photos), SHORT))
    with PaintedEngines()(Choices(smooth="rts")) as engines:
        report, failures = measure_probe(read_probe(tmp_path / "probe"), tmp_path / "out", engines)
    assert failures == report["failures"] == []
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    assert report["clips"][0]["false_tracks"] == report["total"]["false_tracks"] == 0
    assert len(read_table(tmp_path / "out/short.csv").frame) == 0


def test_report_records_models_backend_settings_and_clips(photos: Path, tmp_path: Path) -> None:
    list(make_probe(tmp_path / "probe", Recipe(photos, seed=7), SHORT))
    with PaintedEngines()(Choices(smooth="oneeuro", detect_every=3)) as engines:
        report, _ = measure_probe(read_probe(tmp_path / "probe"), None, engines)
        assert report["models"] == describe_models(engines)
        assert report["backend"] == engines.backend
    assert report["facetrack"] == __version__
    assert (report["settings"]["smooth"], report["settings"]["detect_every"]) == ("oneeuro", 3)
    assert report["machine"]["cores"] > 0
    assert report["folder"] == "probe"
    assert [(clip["name"], clip["seed"]) for clip in report["clips"]] == [("short", 7)]


def three_clips(photos: Path, folder: Path) -> Path:
    """Clips a, b and c of nobody; b is going to be broken."""
    list(make_probe(folder, Recipe(photos), [Scene(name, 5) for name in "abc"]))
    return folder


def without_end(clip: Path) -> None:
    path = clip / "vid.avi"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def longer(clip: Path) -> None:
    encode(clip / "vid.avi", painter(Scene("longer", 8)).frames(), 20)


def of_a_list(clip: Path) -> None:
    (clip / "probe.json").write_text("[]", encoding="utf-8")


def of_no_rate(clip: Path) -> None:
    (clip / "probe.json").write_text('{"frames": 5, "rate": null, "visible": []}', encoding="utf-8")


def unfinished(clip: Path) -> None:
    (clip / "probe.json").unlink()


def without_video(clip: Path) -> None:
    (clip / "probe.json").unlink()
    (clip / "vid.avi").unlink()
    (clip / "annot").mkdir()


def half_made(clip: Path) -> None:
    clip.rename(f"{clip}.part")


BREAK = [
    (half_made, "b.part: is not a complete clip, its making was interrupted; remove it, or make the probe again"),
    (without_end, "b/vid.avi: "),
    (longer, "b/vid.avi: wanted 5 frames, as its ground truth has, got 8; make the probe again"),
    (of_a_list, "b/probe.json: wanted a JSON object, got a list; make the probe again"),
    (of_no_rate, "b/probe.json: cannot be read: "),
    (unfinished, "b: is not a complete clip, there is no probe.json; remove it, or make the probe again"),
    (without_video, "b: is not a complete clip, there is no probe.json; remove it, or make the probe again"),
]


@pytest.mark.parametrize(("spoil", "message"), BREAK)
def test_unmeasurable_clip_is_reported_and_the_others_are_measured(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], message: str
) -> None:
    probe = three_clips(photos, tmp_path / "probe")
    spoil(probe / "b")
    assert main(["probe", "run", str(probe), "--out", str(tmp_path / "out")], PaintedEngines()) == 3
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "failed" in line]
    assert line.startswith(f"facetrack: failed: {probe}/{message}")
    assert [row.split()[0] for row in said.out.splitlines()[2:4]] == ["a", "c"]
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert [clip["name"] for clip in report["clips"]] == ["a", "c"]
    assert [f"facetrack: failed: {clip['reason']}" for clip in report["failures"]] == [line]
    assert report["failures"][0]["clip"] in ("b", "b.part")


@pytest.mark.parametrize("spoil", [spoil for spoil, _ in BREAK])
def test_probe_without_a_measurable_clip_fails_with_one_line_and_no_report(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None]
) -> None:
    list(make_probe(tmp_path / "probe", Recipe(photos), SHORT))
    spoil(tmp_path / "probe/short")
    assert main(["probe", "run", str(tmp_path / "probe"), "--out", str(tmp_path / "out")], PaintedEngines()) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("facetrack: ")]
    assert re.match(r"facetrack: no clip could be (read|measured); the first: .*probe/short", line)
    assert not (tmp_path / "out/report.json").exists()


def test_existing_results_raise_unless_they_may_be_overwritten(photos: Path, tmp_path: Path) -> None:
    list(make_probe(tmp_path / "probe", Recipe(photos), SHORT))
    probe, out = read_probe(tmp_path / "probe"), tmp_path / "out"
    with PaintedEngines()(Choices()) as engines:
        for left in ("report.json", "short.csv", "short.json"):
            out.mkdir(exist_ok=True)
            (out / left).write_text("somebody's", encoding="utf-8")
            with pytest.raises(SinkError, match=rf"{left}: exists already; add --overwrite or --resume, or choose"):
                measure_probe(probe, out, engines)
            assert [file.name for file in out.iterdir()] == [left]
            measure_probe(probe, out, engines, "overwrite")
            assert (out / left).read_text(encoding="utf-8") != "somebody's"
            for file in out.iterdir():
                file.unlink()


@pytest.fixture
def with_faces(photos: Path, tmp_path: Path) -> Path:
    """Clips a, b and c, each with a painted face that its truth does not know."""
    probe, source = three_clips(photos, tmp_path / "probe"), PaintedSource(count=5, shape=(HEIGHT, WIDTH))
    for name in "abc":
        encode(probe / name / "vid.avi", (source.picture(index) for index in range(5)), 18)
    return probe


def crops(probe: Path, out: Path, *words: str, interrupted: int | None = None) -> int:
    """How many crops were measured by a run, which is interrupted at that crop."""
    backend = PaintedBackend(failing={} if interrupted is None else {interrupted: KeyboardInterrupt()})
    code = main(["probe", "run", str(probe), "--out", str(out), *words], PaintedEngines(backend))
    assert code == (0 if interrupted is None else 130)
    return backend.calls


def test_resumed_run_measures_only_the_missing_clips(with_faces: Path, tmp_path: Path) -> None:
    a_clip, odd = divmod(crops(with_faces, tmp_path / "whole"), 3)
    assert a_clip > 1
    assert not odd
    crops(with_faces, tmp_path / "out", interrupted=a_clip + 1)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"a.csv", "a.json"}
    assert crops(with_faces, tmp_path / "out", "--resume") == 2 * a_clip
    reports = [(tmp_path / name / "report.json").read_text(encoding="utf-8") for name in ("whole", "out")]
    assert reports[0] == reports[1]
    assert crops(with_faces, tmp_path / "out", "--resume", "--smooth", "none") == 3 * a_clip


def test_interrupted_overwrite_leaves_no_outdated_report(with_faces: Path, tmp_path: Path) -> None:
    a_clip = crops(with_faces, tmp_path / "out") // 3
    crops(with_faces, tmp_path / "out", "--overwrite", "--smooth", "none", interrupted=a_clip + 1)
    assert not (tmp_path / "out/report.json").exists()


@pytest.mark.parametrize("content", ["mine", "[]", '{"total": 3}'])
def test_resumed_run_does_not_replace_a_foreign_report(photos: Path, tmp_path: Path, content: str) -> None:
    list(make_probe(tmp_path / "probe", Recipe(photos), SHORT))
    report = tmp_path / "out/report.json"
    report.parent.mkdir()
    report.write_text(content, encoding="utf-8")
    with PaintedEngines()(Choices()) as engines, pytest.raises(SinkError, match="so --resume does not replace it"):
        measure_probe(read_probe(tmp_path / "probe"), tmp_path / "out", engines, "resume")
    assert report.read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--resume",), "--resume continues in the folder of --out"), (("--resume", "--overwrite"), "give one of them")],
)
def test_resume_without_out_or_with_overwrite_is_a_usage_error(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "run", "probe", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_unremovable_report_raises_before_any_work(photos: Path, tmp_path: Path) -> None:
    list(make_probe(tmp_path / "probe", Recipe(photos), SHORT))
    (tmp_path / "out/report.json").mkdir(parents=True)
    with PaintedEngines()(Choices()) as engines, pytest.raises(SinkError, match=r"report\.json: cannot be removed"):
        measure_probe(read_probe(tmp_path / "probe"), tmp_path / "out", engines, "overwrite")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.json"]


def test_report_table_shows_lost_frames_and_faces_never_found() -> None:
    of = clip(faces=2)
    table = report_as_table(compile_report([(of, tracked(of, [[0] * 60, [-1] * 60]))], {}))
    assert "60/120" in table
    assert "never" in table
    assert "60 of 120 face-frames lost, 0 switches, 0 false tracks, 0 false rows" in table


def test_report_table_distinguishes_clips_without_faces_from_a_missing_library() -> None:
    nobody = replace(clip(), visible=np.zeros((1, 60), np.float32))
    empty = report_as_table(compile_report([(nobody, tracked(nobody, [[-1] * 60]))], {}))
    assert empty.endswith("0 false rows; no face is clearly visible, so there is no MOTA")
    of = clip()
    report = compile_report([(of, tracked(of, [[0] * 60]))], {})
    report["total"] |= {"mota": None, "idf1": None}  # as without py-motmetrics
    assert report_as_table(report).endswith('; for MOTA and IDF1: pip install "facetrack[eval]"')


def test_the_reports_errors_are_per_cent_as_its_tables_are() -> None:
    of = clip()
    report = compile_report([(of, tracked(of, [[0] * 59 + [-1]], offset=3.0))], {})
    expected = 100 * 3 * np.sqrt(2) / np.linalg.norm(FACE[45] - FACE[36])
    assert report["clips"][0]["mean_nme_percent"] == pytest.approx(expected, rel=1e-4)
    assert report["clips"][0]["nme_percent"][0][:59] == pytest.approx([expected] * 59, rel=1e-4)
    assert report["clips"][0]["nme_percent"][0][59] is None
    assert f"  {expected:.2f}  " in report_as_table(report)


def test_every_column_of_the_table_has_its_unit_below_its_name() -> None:
    of = clip()
    names, units, *_ = report_as_table(compile_report([(of, tracked(of, [[0] * 60]))], {})).splitlines()
    columns = list(zip(re.split(r"  +", names), ["", *units.split()], strict=True))
    assert {unit for _, unit in columns[1:]} <= {"%", "px", "ms", "frames", "times", "tracks", "rows"}
    assert {("overshoot", "px"), ("held on", "frames"), ("false", "tracks"), ("false", "rows")} <= set(columns)
