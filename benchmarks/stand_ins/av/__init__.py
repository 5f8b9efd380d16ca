"""In place of PyAV on a GPU machine where it cannot be installed: it can be imported, and opens no video."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

SUBMODULES = "buffer codec codec.hwaccel container packet stream video video.frame video.reformatter video.stream"


class _Module(ModuleType):
    """Whatever is asked of it is a class, which serves for annotations and in `except`."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


sys.modules[__name__].__class__ = _Module
for _name in SUBMODULES.split():
    _module = _Module(f"{__name__}.{_name}")
    _module.__spec__ = ModuleSpec(_module.__name__, None, is_package=True)
    _module.__path__ = []
    sys.modules[_module.__name__] = _module
