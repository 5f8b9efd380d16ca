"""Plans on disk: found only where they fit, whole or not at all, built once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facetrack.engines.parity import Parity
from facetrack.engines.plan_cache import Built, PlanCache, PlanKey, plans_folder
from facetrack.tracker.errors import BackendError

filelock = pytest.importorskip("filelock", reason="needs the gpu or the train extra")

KEY = PlanKey("a" * 64, "10.16.1", "NVIDIA H200", "9.0", "580.159.03", "13.0", "fp16", "batches (1, 8)")
BUILT = Built(b"plan " * 1000, (Parity(1, 0.01, 0.02, 0.03), Parity(8, 0.01, 0.02, 0.03)), 12.5)


def stored(tmp_path: Path, key: PlanKey = KEY) -> PlanCache:
    cache = PlanCache(tmp_path)
    assert cache.get_or_build("net", key, lambda: BUILT) == BUILT.plan
    return cache


def test_an_exact_match_is_found(tmp_path: Path) -> None:
    assert stored(tmp_path).find("net", KEY) == (BUILT.plan, "")


@pytest.mark.parametrize("field", PlanKey.__slots__)
def test_any_key_difference_gives_no_plan_and_is_named(tmp_path: Path, field: str) -> None:
    plan, reason = stored(tmp_path).find("net", replace(KEY, **{field: "another"}))
    assert plan is None
    assert reason == f"the most similar plan is for {field} {getattr(KEY, field)}, here another"


def exported(tmp_path: Path, key: PlanKey) -> PlanCache:
    cache = stored(tmp_path, key)
    cache.mark_exported("net", key)
    return cache


def test_the_latest_plan_may_differ_in_precision_and_profile(tmp_path: Path) -> None:
    other = replace(KEY, precision="fp32", profile="batches (1, 2)")
    cache = exported(tmp_path, other)
    assert cache.latest("net", KEY) == other
    for key in (KEY, other, other, KEY):
        assert exported(tmp_path, key).latest("net", KEY) == key
        assert cache.find("net", key) == (BUILT.plan, "")


def test_a_plan_that_was_built_without_being_exported_is_not_the_latest(tmp_path: Path) -> None:
    """It was measured."""
    cache = exported(tmp_path, KEY)
    measured = replace(KEY, precision="fp32")
    stored(tmp_path, measured)
    assert cache.latest("net", KEY) == KEY
    assert cache.latest("net", replace(KEY, profile="another")) == KEY
    assert cache.find("net", measured) == (BUILT.plan, "")


@pytest.mark.parametrize("field", sorted({*PlanKey.__slots__} - {"precision", "profile"}))
def test_a_plan_of_another_graph_or_machine_is_not_the_latest(tmp_path: Path, field: str) -> None:
    cache = exported(tmp_path, replace(KEY, precision="fp32", **{field: "another"}))
    assert cache.latest("net", KEY) == KEY


def test_a_damaged_plan_is_not_the_latest(tmp_path: Path) -> None:
    other = replace(KEY, precision="fp32")
    cache = exported(tmp_path, other)
    cache.path("net", other).write_bytes(BUILT.plan[:-1])
    cache.path("net", replace(KEY, precision="int8")).with_suffix(".json").write_text('{"key": []}', encoding="utf-8")
    assert cache.latest("net", KEY) == KEY


@pytest.mark.parametrize("key", ['"of iron"', '["iron"]', "7", "null"])
def test_sidecar_with_an_invalid_key_counts_as_damaged(tmp_path: Path, key: str) -> None:
    cache = stored(tmp_path)
    cache.path("net", KEY).with_suffix(".json").write_text(f'{{"key": {key}}}', encoding="utf-8")
    assert cache.latest("net", KEY) == KEY
    assert cache.find("net", replace(KEY, precision="int8"))[0] is None
    stored(tmp_path)
    assert cache.find("net", KEY)[0] == BUILT.plan


def test_plans_of_a_network_with_the_same_name_prefix_are_ignored(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    cache.get_or_build("net-int8", replace(KEY, onnx_sha256="b" * 64), lambda: BUILT)
    assert cache.find("net", KEY) == (None, "there is none yet")


def test_network_name_is_not_treated_as_a_glob_pattern(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    cache.get_or_build("net[1]", KEY, lambda: BUILT)
    cache.mark_exported("net[1]", KEY)
    other = replace(KEY, precision="int8")
    assert cache.latest("net[1]", other) == KEY
    assert cache.find("net[1]", other)[1] == "the most similar plan is for precision fp16, here int8"


def test_most_similar_of_several_plans_is_named(tmp_path: Path) -> None:
    stored(tmp_path, replace(KEY, gpu="A", driver="1", precision="fp32"))
    stored(tmp_path, replace(KEY, driver="1"))
    _, reason = PlanCache(tmp_path).find("net", KEY)
    assert reason == "the most similar plan is for driver 1, here 580.159.03"


def test_plans_of_other_networks_are_not_looked_at(tmp_path: Path) -> None:
    assert stored(tmp_path).find("other", KEY) == (None, "there is none yet")


def test_a_truncated_plan_is_built_again(tmp_path: Path) -> None:
    cache = stored(tmp_path)
    cache.path("net", KEY).write_bytes(BUILT.plan[:2000])
    plan, reason = cache.find("net", KEY)
    assert plan is None
    assert reason.endswith("truncated or changed, 2000 bytes of 5000")
    stored(tmp_path)
    assert cache.find("net", KEY)[0] == BUILT.plan


@pytest.mark.parametrize("sidecar", [None, "", "{", "[]", '{"schema": 0}', '{"schema": 1, "key": {}}'])
def test_plan_with_a_missing_or_invalid_sidecar_is_rebuilt(tmp_path: Path, sidecar: str | None) -> None:
    cache = stored(tmp_path)
    path = cache.path("net", KEY).with_suffix(".json")
    path.unlink() if sidecar is None else path.write_text(sidecar, encoding="utf-8")
    assert cache.find("net", KEY)[0] is None
    stored(tmp_path)
    assert cache.find("net", KEY)[0] == BUILT.plan


def test_plan_with_a_sidecar_of_another_schema_is_ignored(tmp_path: Path) -> None:
    """It may tell the parity in other words."""
    cache = stored(tmp_path)
    path = cache.path("net", KEY).with_suffix(".json")
    report = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(report | {"schema": report["schema"] - 1}), encoding="utf-8")
    assert cache.find("net", KEY)[0] is None


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def refuse() -> Built:
        raise BackendError("refused")

    with pytest.raises(BackendError, match="refused"):
        PlanCache(tmp_path).get_or_build("net", KEY, refuse)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


def test_concurrent_builds_are_locked_out_and_the_waiting_one_reuses_the_plan(tmp_path: Path) -> None:
    class Late(PlanCache):
        def lock(self, path: Path) -> Any:
            PlanCache(tmp_path).get_or_build("net", KEY, build)  # another process, which had its turn before this one
            return super().lock(path)

    def build() -> Built:
        lock = filelock.FileLock(PlanCache(tmp_path).path("net", KEY).with_suffix(".lock"))
        with pytest.raises(filelock.Timeout):
            lock.acquire(timeout=0)
        return BUILT

    assert Late(tmp_path).get_or_build("net", KEY, lambda: pytest.fail("built twice")) == BUILT.plan


def test_timing_cache_is_shared_across_networks_but_not_across_machines(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    shared = {"onnx_sha256", "precision", "profile", "cuda"}
    for field in PlanKey.__slots__:
        other = replace(KEY, **{field: "another"})
        assert (cache.timing_cache(other) == cache.timing_cache(KEY)) == (field in shared), field


def test_unwritable_plans_folder_raises_suggesting_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match="set FACETRACK_PLANS to another folder"):
        PlanCache(tmp_path / "file").get_or_build("net", KEY, lambda: BUILT)


def test_plans_folder_can_be_set_by_an_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACETRACK_PLANS", str(tmp_path))
    assert plans_folder() == tmp_path
    monkeypatch.delenv("FACETRACK_PLANS")
    assert plans_folder().name == "plans"
