"""Every name of TensorRT that the code uses exists in every release that it is meant for.

`data/tensorrt_names.json` was read off the real bindings by `record_tensorrt_names.py`, which needs no GPU.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

ENGINES = Path(__file__).parent.parent / "engines"
NAMES: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parent / "data" / "tensorrt_names.json").read_text(encoding="utf-8")
)
# What the code calls an object, and what it is.
OBJECTS = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "picture": "ITensor",
    "profile": "IOptimizationProfile",
    "_runtime": "Runtime",
    "get_error": "ParserError",
    "get_timing_cache": "ITimingCache",
    "_trt": "module",
    "trt": "module",
}
DUNDER = "__version__"


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def used_names() -> set[tuple[str, str]]:
    """(class, attribute) for every use in the modules that talk to TensorRT."""
    found = set()
    for file in ("tensorrt_build.py", "tensorrt_backend.py"):
        for node in ast.walk(ast.parse((ENGINES / file).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            owner = _last_name(node.value)
            if owner in OBJECTS and node.attr != DUNDER and not node.attr.startswith("_"):
                found.add((OBJECTS[owner], node.attr))
            elif owner in NAMES["8.6.0"] and not node.attr.startswith("_"):
                found.add((owner, node.attr))
    return found


def test_used_names_include_known_uses_of_tensorrt() -> None:
    used = used_names()
    assert len(used) > 30
    assert {
        ("IExecutionContext", "execute_async_v3"),
        ("BuilderFlag", "TF32"),
        ("ParserError", "desc"),
        ("Builder", "build_serialized_network"),
        ("ITimingCache", "serialize"),
    } <= used


@pytest.mark.parametrize("version", sorted(NAMES))
def test_every_name_exists_in_this_release(version: str) -> None:
    missing = [(owner, name) for owner, name in used_names() if name not in NAMES[version][owner]]
    assert not missing


def test_release_specific_names_are_looked_up_as_strings_and_not_as_attributes() -> None:
    text = (ENGINES / "tensorrt_build.py").read_text(encoding="utf-8")
    flags = {version: set(names["NetworkDefinitionCreationFlag"]) for version, names in NAMES.items()}
    assert "EXPLICIT_BATCH" in flags["8.6.0"] - flags["11.4.0.106"]
    assert "STRONGLY_TYPED" in flags["11.4.0.106"] - flags["8.6.0"]
    assert {"FP16", "INT8"} <= set(NAMES["8.6.0"]["BuilderFlag"]) - set(NAMES["11.4.0.106"]["BuilderFlag"])
    # the bindings of 11.4.0 have no PROFILE_SHARING_0806 any more, those of 8.6.1 and 10.16.1 do
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED", "FP16", "INT8", "PROFILE_SHARING_0806"):
        assert f'"{name}"' in text
        assert f".{name}" not in text


def test_the_edge_mask_tactics_exist_everywhere() -> None:
    for names in NAMES.values():
        assert {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"} <= set(names["TacticSource"])
