"""The house keeps its shape: who imports whom, what loads what, and what is in the box."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "onnxruntime", "tensorrt", "cv2", "numba", "av", "pygame", "rich", "scipy", "numpy")
LAYERS = ("tracker", "engines", "pipeline", "calibration", "training")
DATA_SUFFIXES = {".toml", ".onnx", ".npz", ".jpg", ".txt", ".typed"}


def _run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def _loaded_by(statement: str) -> set[str]:
    done = _run(sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_each_layer_imports_only_the_layers_below_it() -> None:
    pytest.importorskip("importlinter", reason="needs the dev extra")
    linter = Path(sys.executable).parent / "lint-imports"
    done = _run(str(linter), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_command_line_loads_no_heavy_library() -> None:
    assert _loaded_by("import facetrack.cli").isdisjoint(HEAVY)


def test_help_loads_no_heavy_library() -> None:
    modules = _loaded_by("from facetrack.cli import main\nassert main(['batch', '--help']) == 0")
    assert modules.isdisjoint(HEAVY)


def test_a_batch_loads_neither_torch_nor_filterpy_nor_a_window() -> None:
    modules = _loaded_by("import facetrack.pipeline.batch, facetrack.pipeline.open")
    assert modules.isdisjoint({"torch", "scipy.linalg", "matplotlib", "filterpy", "pygame", "rich"})


def _modules() -> list[Path]:
    files = [ROOT / "__init__.py", ROOT / "__main__.py", ROOT / "cli.py"]
    return files + [file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py"))]


def test_package_imports_itself_only_relatively() -> None:
    """No rule of ruff says so: TID251 takes relative ones for absolute where the checkout's folder is `facetrack`."""
    nodes = ((file, node) for file in _modules() for node in ast.walk(ast.parse(file.read_bytes())))
    for file, node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        absolute = [name for name in names if name.split(".")[0] in {"facetrack", "tests", *LAYERS}]
        assert not absolute, f"{file}, line {node.lineno}: {absolute}"


def test_every_folder_of_the_package_is_listed_for_the_wheel() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {file.parent.relative_to(ROOT) for file in _modules()}
    wanted = {".".join(("facetrack", *folder.parts)) for folder in folders}
    assert wanted == set(config["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("layer", LAYERS)
def test_every_module_is_listed_in_the_architecture_document(layer: str) -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    branches = dict(re.findall(r"^[├└]── (\w+)/(.*?)(?=^[├└]|\Z)", tree, re.MULTILINE | re.DOTALL))
    modules = {file.stem for file in _modules() if file.relative_to(ROOT).parts[0] == layer}
    assert modules - {"__init__", "commands", *re.findall(r"\w+", branches[layer])} == set()


def _content() -> set[str]:
    """What a distribution must hold: all code and all data of the package, as paths inside `facetrack`."""
    data = [
        file
        for layer in LAYERS
        for file in (ROOT / layer).rglob("*")
        if file.suffix in DATA_SUFFIXES and file.is_file()
    ]
    return {file.relative_to(ROOT).as_posix() for file in [*_modules(), *data, ROOT / "py.typed"]}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, int], set[str]]:
    """Names in the wheel, with the bytes that each takes there, and in the sdist.

    Both are built from a copy, for setuptools leaves its `build` folder behind.
    """
    copy, out = tmp_path_factory.mktemp("copy") / "tree", tmp_path_factory.mktemp("dist")
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "work")
    shutil.copytree(ROOT, copy, ignore=ignore)
    calls = f"b.build_wheel({str(out)!r}); b.build_sdist({str(out)!r})"
    done = _run(sys.executable, "-c", f"import setuptools.build_meta as b; {calls}", cwd=copy)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel, tarfile.open(next(out.glob("*.tar.gz"))) as sdist:
        return {entry.filename: entry.compress_size for entry in wheel.infolist()}, set(sdist.getnames())


def test_the_wheel_holds_the_whole_package_and_nothing_else(distributions: tuple[dict[str, int], set[str]]) -> None:
    package = {name for name in distributions[0] if ".dist-info/" not in name}
    assert package == {f"facetrack/{name}" for name in _content()}


def test_the_weights_take_less_than_40_megabytes_of_the_wheel(distributions: tuple[dict[str, int], set[str]]) -> None:
    """Of 10^6 bytes, packed as they are downloaded."""
    taken = [size for name, size in distributions[0].items() if name.startswith("facetrack/engines/weights/")]
    assert 0 < sum(taken) < 40e6


@pytest.mark.parametrize("licence", ["LICENSE", "engines/weights/LICENSE.txt"])
def test_the_wheel_holds_the_licences(distributions: tuple[dict[str, int], set[str]], licence: str) -> None:
    assert any(name.endswith(f".dist-info/licenses/{licence}") for name in distributions[0])


def test_source_distribution_holds_the_package_and_its_supporting_files(
    distributions: tuple[dict[str, int], set[str]],
) -> None:
    names = {name.partition("/")[2] for name in distributions[1]}
    extras = {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "tests/test_layers.py", "docs/csv.md"}
    assert names >= _content() | extras
