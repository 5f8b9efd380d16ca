"""The machine that a figure was measured on: processor, cores, memory, system and versions of the libraries."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from .. import __version__

DISTRIBUTION = "facetrack"
PACKAGE = Path(__file__).parent.parent
COMPUTING = ("numpy", "numba", "av", "opencv-python-headless", "opencv-python", "onnxruntime", "onnxruntime-gpu")


def version_of(package: str) -> str | None:
    """The installed version of a distribution, without importing it; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def packages_of(extra: str = "") -> list[str]:
    """The packages that this distribution, or one of its extras, requires by its metadata; [] if that is missing."""
    try:
        wanted = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    of_extra = rf"""([\w.-]+).*;.*\bextra *== *["']{re.escape(extra)}["']"""
    own = re.compile(of_extra if extra else r"([\w.-]+)(?!.*\bextra *==)")
    # OpenCV is listed twice: macOS requires another version
    return list(dict.fromkeys(match[1] for match in map(own.match, wanted) if match))


def source_commit(package: Path = PACKAGE) -> str:
    """The commit of the running sources, with "-dirty" at its end if changed since; for a release, its version.

    A release has no `.git` of its own, and must not be taken for part of a repository that it is installed in.
    """
    if not (package / ".git").exists():
        return __version__
    words = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(words, cwd=package, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return __version__
    return done.stdout.strip() or __version__


def describe_machine() -> dict[str, object]:
    """Describe this machine in JSON's types, for sidecars, benchmarks and bug reports."""
    versions = {package: version_of(package) for package in COMPUTING}
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "memory_gb": memory_gb(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: version for package, version in versions.items() if version},
    }


def processor_name() -> str:
    """The processor's trade name if the system gives it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def usable_cores() -> int:
    """How many cores this process may use, which a container can set below the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gb() -> float | None:
    """Main memory in 10^9 bytes; None if the system does not give it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None
