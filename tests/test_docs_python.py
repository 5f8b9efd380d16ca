"""What docs/python.md and the README print for programs runs as it stands there."""

from __future__ import annotations

import ast
import gc
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import PaintedFace, PaintedSource
from fakes_pipeline import PaintedEngines, paint_pictures, paint_video

import facetrack
from facetrack import Choices, open_source
from facetrack.tracker.errors import BackendError, ConfigError, SourceError

ROOT = Path(__file__).parents[1]


def blocks(name: str) -> Iterator[str]:
    yield from re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_documented_programs_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paint_video(tmp_path / "clip.mp4", PaintedSource(count=3))
    paint_pictures(tmp_path, PaintedSource(count=1), ["group.jpg"])
    monkeypatch.chdir(tmp_path)
    for block in blocks(name):
        with monkeypatch.context() as patch:
            patch.setattr(
                "facetrack.pipeline.open.open_engines", lambda *chosen: PaintedEngines()(*chosen or [Choices()])
            )
            exec(compile(block, name, "exec"), {})  # each by itself
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0.0 0 [[")
    assert len([line for line in lines if " 0 [[" in line]) == 3


def test_module_getattr_is_hidden_from_type_checkers() -> None:
    """It takes a module that has a `__getattr__` to have every name."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    seen = [text for text in map(ast.unparse, tree.body) if not text.startswith("if not TYPE_CHECKING:")]
    assert not any("def __getattr__" in text for text in seen)


def test_package_exports_exactly_its_public_names() -> None:
    assert set(facetrack.__all__) == set(facetrack._HOME)
    assert set(facetrack.__all__) < set(dir(facetrack))
    assert all(getattr(facetrack, name).__name__ == name for name in facetrack.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pose'"):
        _ = facetrack.pose


def test_pictures_of_a_folder_are_tracked_independently(tmp_path: Path) -> None:
    paint_pictures(tmp_path / "p", PaintedSource(count=3), ["1.png", "2.png", "3.png"])
    with PaintedEngines()(Choices()) as engines, open_source(tmp_path / "p") as source:
        states = [face.state.value for result in engines.track(source) for face in result.faces]
    assert states == ["new"] * 3


def test_detect_matches_track_on_a_folder_of_the_same_pictures(tmp_path: Path) -> None:
    crowd = PaintedSource(count=3, faces=(PaintedFace((90, 110), (30, 10), 60), PaintedFace((230, 120), width=70)))
    paint_pictures(tmp_path / "p", crowd, ["1.png", "2.png", "3.png"])
    with PaintedEngines()(Choices()) as engines, open_source(tmp_path / "p") as source:
        in_folder = [repr(result.faces) for result in engines.track(source)]
        alone = [engines.detect(crowd.picture(index)) for index in range(3)]
        mirrored = engines.detect(crowd.picture(0)[:, ::-1][:, ::-1])
    assert [repr(faces) for faces in alone] == in_folder
    assert repr(mirrored) == in_folder[0]
    assert [[face.track for face in faces] for faces in alone] == [[0, 1]] * 3


def test_a_picture_of_one_pixel_has_no_faces() -> None:
    with PaintedEngines()(Choices()) as engines:
        assert engines.detect(np.zeros((1, 1, 3), np.uint8)) == ()


@pytest.mark.parametrize(
    ("picture", "got"),
    [
        (np.zeros((4, 5), np.uint8), r"\(4, 5\) of uint8"),
        (np.zeros((4, 5, 4), np.uint8), r"\(4, 5, 4\) of uint8"),
        (np.zeros((4, 5, 3), np.float32), r"\(4, 5, 3\) of float32"),
        (np.zeros((0, 5, 3), np.uint8), r"\(0, 5, 3\) of uint8"),
        (None, "NoneType"),
        ([[[0, 0, 0]]], "list"),
    ],
)
def test_invalid_picture_is_refused(picture: Any, got: str) -> None:
    with PaintedEngines()(Choices()) as engines, pytest.raises(ValueError, match=f"wanted .* as cv2.imread .*{got}"):
        engines.detect(picture)


def test_closed_engines_raise(tmp_path: Path) -> None:
    path = paint_video(tmp_path / "clip.mp4", PaintedSource(count=2))
    with facetrack.open_engines() as engines:
        pass
    with pytest.raises(BackendError, match=r"was closed: .* open them again"):
        engines.detect(PaintedSource().picture(0))
    with open_source(path) as source, pytest.raises(BackendError, match=r"was closed: .* open them again"):
        next(engines.track(source))


def test_rts_smoothed_points_differ_from_unsmoothed_ones(tmp_path: Path) -> None:
    path = paint_video(tmp_path / "clip.mp4", PaintedSource(count=30))
    seen = {}
    for smooth in ("rts", "none"):
        with PaintedEngines()(Choices(smooth=smooth)) as engines, open_source(path) as source:
            seen[smooth] = [face.smoothed.tolist() for result in engines.track(source) for face in result.faces]
    assert len(seen["rts"]) == len(seen["none"]) == 30
    assert seen["rts"] != seen["none"]


@pytest.mark.parametrize("name", ["clip.mp4", "p"])
@pytest.mark.parametrize("most", [1, 99])
def test_a_source_is_tracked_once(name: str, most: int, tmp_path: Path) -> None:
    paint_video(tmp_path / "clip.mp4", PaintedSource(count=6))
    paint_pictures(tmp_path / "p", PaintedSource(count=3), ["1.png", "2.png", "3.png"])
    with PaintedEngines()(Choices()) as engines, open_source(tmp_path / name) as source:
        assert len(list(islice(engines.track(source), most))) in (1, 3, 6)
        with pytest.raises(SourceError, match=r"was closed or read before, .*; open the source again"):
            next(engines.track(source))


@pytest.mark.parametrize("times", [1, 2])
def test_twice_the_default_focal_length_in_an_intrinsics_file_doubles_the_distance(tmp_path: Path, times: int) -> None:
    focal = f"fx = {500 * times}\nfy = {500 * times}\n"
    (tmp_path / "camera.toml").write_text(f"width = 640\nheight = 480\n{focal}cx = 320\ncy = 240\n")
    camera = facetrack.read_intrinsics(str(tmp_path / "camera.toml"))
    xy = PaintedSource().truth(0)[0]
    assumed = facetrack.head_pose(xy, (480, 640))
    seen = facetrack.head_pose(xy, (480, 640), camera)
    assert assumed is not None
    assert seen is not None
    assert seen.translation_mm[2] == pytest.approx(times * assumed.translation_mm[2], rel=0.1)


def test_rts_smoothing_of_a_live_source_is_refused(tmp_path: Path) -> None:
    path = paint_video(tmp_path / "clip.mp4", PaintedSource(count=3))
    with (
        PaintedEngines()(Choices(smooth="rts")) as engines,
        open_source(path, realtime=True) as source,
        pytest.raises(ConfigError, match="needs a recording"),
    ):
        list(engines.track(source))


@pytest.mark.parametrize(
    "bad",
    [
        {"smooth": "kalmann"},
        {"backend": "cuda"},
        {"detect_every": 0},
        {"threads": 0},
        {"threads": 257},
        {"max_faces": 0},
        {"min_face": -1.0},
        {"min_face": float("nan")},
        {"min_face": "40"},
        {"threads": "2"},
        {"threads": None},
        {"max_faces": 2.5},
        {"smooth": ["rts"]},
        {"model": None},
    ],
)
def test_choices_that_cannot_work_are_refused_by_name(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Choices(**bad)


def test_a_closed_source_is_not_tracked(tmp_path: Path) -> None:
    paint_video(tmp_path / "clip.mp4", PaintedSource(count=6))
    paint_pictures(tmp_path / "p", PaintedSource(count=3), ["1.png", "2.png", "3.png"])
    with PaintedEngines()(Choices()) as engines:
        for name in ("clip.mp4", "p"):
            with open_source(tmp_path / name) as source:
                pass
            with pytest.raises(SourceError, match=r"was closed or read before, .*; open the source again"):
                next(engines.track(source))


def test_pipeline_refuses_rts_smoothing() -> None:
    told = pytest.raises(ConfigError, match=r"use Engines\.track, or hindsight\.look_back")
    with PaintedEngines()(Choices(smooth="rts")) as engines, told:
        engines.pipeline(engines.choices)


@pytest.mark.parametrize("begin", ["pipeline", "pipeline_for_pictures"])
@pytest.mark.parametrize(
    "changed",
    [
        {"model": "tab"},
        {"backend": "torch"},
        {"threads": 2},
        {"min_face": 40.0},
    ],
)
def test_pipeline_refuses_choices_that_belong_to_the_engines(begin: str, changed: dict[str, Any]) -> None:
    with PaintedEngines()(Choices(max_faces=3)) as engines:
        assert getattr(engines, begin)(Choices(max_faces=1, detect_every=5)).settings.tracks.most_faces == 1
        ((name, value),) = changed.items()
        with pytest.raises(ConfigError, match=f"pipeline: {name}: wanted .* in the engines, got {value!r}; open"):
            getattr(engines, begin)(Choices(**changed))


@pytest.mark.parametrize("name", ["decoder", "frame_rate"])
def test_choices_reject_source_options(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        Choices(**{name: 25})


def test_model_name_in_place_of_choices_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"open_engines: wanted Choices, such as Choices\(model=.*\), got 'tab'"):
        facetrack.open_engines("tab").__enter__()  # type: ignore[arg-type]
    with PaintedEngines()(Choices()) as engines, pytest.raises(ConfigError, match=r"pipeline: wanted Choices, .*'tab'"):
        engines.pipeline("tab")  # type: ignore[arg-type]


def test_picture_source_that_yields_arrays_raises() -> None:
    class Arrays(list[Any]):
        kind = "images"
        failed: tuple[()] = ()

    told = pytest.raises(ValueError, match=r"frames: wanted Frame, got ndarray; make a Frame")
    with PaintedEngines()(Choices()) as engines, told:
        next(engines.track(Arrays([np.zeros((8, 8, 3), np.uint8)])))  # type: ignore[arg-type]


@pytest.mark.parametrize(("most", "name"), [(0, "clip.mp4"), (1, "clip.mp4"), (9, "clip.mp4"), (1, "p"), (9, "p")])
def test_closed_source_is_freed_without_garbage_collection(most: int, name: str, tmp_path: Path) -> None:
    paint_video(tmp_path / "clip.mp4", PaintedSource(count=6))
    paint_pictures(tmp_path / "p", PaintedSource(count=3), ["1.png", "2.png", "3.png"])
    gc.collect()
    gc.disable()
    try:
        with open_source(tmp_path / name) as source:
            list(islice(source, most))
        gone = weakref.ref(source)
        del source
        assert gone() is None
    finally:
        gc.enable()


def test_engines_are_hashable_and_compare_by_identity() -> None:
    with PaintedEngines()(Choices()) as engines:
        assert {engines: 1}[engines] == 1
        assert engines != replace(engines)


def test_list_in_place_of_a_source_is_refused_with_a_hint_at_pipeline() -> None:
    told = pytest.raises(ConfigError, match=r"wanted a source from open_source, got list; .*Engines\.pipeline")
    with PaintedEngines()(Choices()) as engines, told:
        next(engines.track([]))  # type: ignore[arg-type]
