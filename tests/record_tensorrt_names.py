"""Write down what the classes of the installed TensorRT bindings are called, for `test_tensorrt_names.py`.

    python tests/record_tensorrt_names.py tests/data/tensorrt_names.json

adds the names of the release that this interpreter imports. No GPU is needed: the bindings of releases from 10 on
(`tensorrt_cu13_bindings` on PyPI) import against empty libraries with these C entry points, built in the folder where
the bindings' own loader looks; the release of 8.6 on PyPI is whole.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "ICudaEngine",
    "IBuilderConfig",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "ITensor",
    "ITimingCache",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "TacticSource",
    "TensorIOMode",
)


def bindings() -> ModuleType:
    """The bindings alone, without the package that loads NVIDIA's libraries."""
    try:
        return importlib.import_module("tensorrt_bindings.tensorrt")
    except ModuleNotFoundError:
        return importlib.import_module("tensorrt")


def main() -> None:
    """Add this release to the file."""
    path, trt = Path(sys.argv[1]), bindings()
    names = {name: [n for n in dir(getattr(trt, name)) if not n.startswith("__")] for name in CLASSES}
    names["module"] = [name for name in dir(trt) if not name.startswith("_")]
    distribution = next(Path(str(trt.__file__)).parent.parent.glob("tensorrt*.dist-info")).stem
    version = distribution.partition("-")[2]
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[version] = names
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
