"""TensorRT plans that were built on this machine, each with a sidecar file that holds its key and its parity.

A plan is valid for one graph, GPU, driver and TensorRT version. If any of them differs, it is built again, and the log
says what differs. A lock between processes keeps them from building the same plan twice.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tracker.errors import BackendError
from .files import replace_file

if TYPE_CHECKING:
    from .parity import Parity

log = logging.getLogger(__name__)

SCHEMA = 3
DIGITS = 16  # hexadecimal digits of a hash in a file name
INSTALL = "pip install filelock"


@dataclass(frozen=True, slots=True)
class PlanKey:
    """Everything that a plan depends on.

    Attributes:
        onnx_sha256: of the network's file, before `graph.for_tensorrt`.
        tensorrt: version.
        gpu, capability, driver, cuda: as in `cuda_probe.Gpu`.
        precision: of the graph.
        profile: batches and sizes, as text.
    """

    onnx_sha256: str
    tensorrt: str
    gpu: str
    capability: str
    driver: str
    cuda: str
    precision: str
    profile: str

    @property
    def digest(self) -> str:
        """Hexadecimal digits that name the file."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:DIGITS]


@dataclass(frozen=True, slots=True)
class Built:
    """A new plan, which has passed its parity check.

    Attributes:
        plan: its bytes.
        parity: distances between its landmarks and the reference's, at each batch size.
        build_s: duration of the build, seconds.
    """

    plan: bytes
    parity: tuple[Parity, ...]
    build_s: float


def plans_folder() -> Path:
    """The user's cache folder of plans: `$FACETRACK_PLANS`, else the platform's."""
    configured = os.environ.get("FACETRACK_PLANS")
    if configured:
        return Path(configured)
    from platformdirs import user_cache_path

    return user_cache_path("facetrack", appauthor=False) / "plans"


class PlanCache:
    """Plans in one folder, as NAME-DIGEST.plan with NAME-DIGEST.json beside it."""

    def __init__(self, folder: Path | None = None) -> None:
        """Use a folder; default: `plans_folder`."""
        self.folder = folder or plans_folder()

    def path(self, name: str, key: PlanKey) -> Path:
        """The file of a network's plan, whether there is one or not."""
        return self.folder / f"{name}-{key.digest}.plan"

    def find(self, name: str, key: PlanKey) -> tuple[bytes | None, str]:
        """The plan of a network for exactly this key and "", or None and the reason in words."""
        plan, sidecar = self.path(name, key), self._read_sidecar(self.path(name, key))
        if sidecar is None:
            return None, self._nearest(name, key)
        if sidecar.get("schema") != SCHEMA or sidecar.get("key") != asdict(key):
            return None, f"{plan.name}: its sidecar describes another plan"
        try:
            content = plan.read_bytes()
        except OSError as error:
            return None, f"{plan.name}: cannot be read ({error.strerror})"
        if hashlib.sha256(content).hexdigest() != sidecar.get("plan_sha256"):
            return None, f"{plan.name}: truncated or changed, {len(content)} bytes of {sidecar.get('plan_bytes')}"
        return content, ""

    def latest(self, name: str, key: PlanKey) -> PlanKey:
        """The key of the plan of this graph for this machine that was exported last; `key` itself if there is none.

        It may have another precision and profile: a backend splits inputs that are too large for its plan. Plans that
        were built for other reasons, such as measurements, do not count.
        """
        exported: dict[PlanKey, int] = {}
        for sidecar in self._files(name, ".json"):
            found, number = self._key_of(sidecar), self._export_of(sidecar)
            other = replace(key, precision=str(found.get("precision")), profile=str(found.get("profile")))
            if number and found == asdict(other) and self.find(name, other)[0] is not None:
                exported[other] = number
        return max(exported, key=exported.__getitem__, default=key)

    def mark_exported(self, name: str, key: PlanKey) -> None:
        """Record in the sidecar of an existing plan that it is the one of its network that was exported last.

        Exports are counted, because some clocks are too coarse to tell which was later.

        Raises:
            BackendError: the sidecar cannot be written.
        """
        plan = self.path(name, key)
        last = max(map(self._export_of, self._files(name, ".json")), default=0)
        self._write_sidecar(plan, (self._read_sidecar(plan) or {}) | {"exported": last + 1})

    def get_or_build(self, name: str, key: PlanKey, build: Callable[[], Built]) -> bytes:
        """The plan for this key, built and stored if there is none.

        Args:
            name: of the network's file.
            key: everything that the plan depends on.
            build: builds a plan and checks its parity; raises if it fails.
        Raises:
            BackendError: the folder cannot be written, or the build failed.
        """
        plan, reason = self.find(name, key)
        if plan is not None:
            return plan
        with self.lock(self.path(name, key).with_suffix(".lock")):
            plan, reason = self.find(name, key)  # another process may have built it meanwhile
            if plan is not None:
                return plan
            log.warning("%s: building a TensorRT plan, which takes minutes: %s", name, reason)
            built = build()
            self._store(name, key, built)
        return built.plan

    def parity(self, plan: Path) -> tuple[Parity, ...]:
        """The parity in a stored plan's sidecar, by batch size; () without one."""
        from .parity import Parity

        report = self._read_sidecar(plan) or {}
        return tuple(Parity(**entry) for entry in report.get("parity", ()))

    def timing_cache(self, key: PlanKey) -> Path:
        """The file of kernel timings measured on this GPU, which the builds of all networks share."""
        machine = hashlib.sha256(json.dumps([key.tensorrt, key.gpu, key.capability, key.driver]).encode())
        return self.folder / f"timings-{machine.hexdigest()[:DIGITS]}.cache"

    def lock(self, path: Path) -> Any:
        """A lock between processes, which the system releases if its holder exits.

        Raises:
            BackendError: the folder cannot be written, or filelock is missing.
        """
        try:
            import filelock
        except ImportError as error:
            raise BackendError(f"sharing plans between processes needs filelock; run: {INSTALL}") from error
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise BackendError(
                f"{self.folder}: plans cannot be stored here ({error.strerror}); set FACETRACK_PLANS to another folder"
            ) from error
        return filelock.FileLock(path)

    def _store(self, name: str, key: PlanKey, built: Built) -> None:
        """Write the plan, then its sidecar: a plan without one is ignored."""
        path = self.path(name, key)
        report = {
            "schema": SCHEMA,
            "key": asdict(key),
            "plan_sha256": hashlib.sha256(built.plan).hexdigest(),
            "plan_bytes": len(built.plan),
            "build_s": round(built.build_s, 1),
            "parity": [asdict(parity) for parity in built.parity],
        }
        path.with_suffix(".json").unlink(missing_ok=True)
        replace_file(path, built.plan)
        self._write_sidecar(path, report)

    def _write_sidecar(self, plan: Path, report: dict[str, Any]) -> None:
        replace_file(plan.with_suffix(".json"), (json.dumps(report, indent=2) + "\n").encode())

    def _files(self, name: str, suffix: str) -> list[Path]:
        """A network's files with this suffix, but not those of a network whose name begins with the same text."""
        return sorted(self.folder.glob(f"{glob.escape(name)}-{'[0-9a-f]' * DIGITS}{suffix}"))

    def _read_sidecar(self, plan: Path) -> dict[str, Any] | None:
        """The sidecar of a plan; None if there is none or it is not a JSON object."""
        try:
            report = json.loads(plan.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return report if isinstance(report, dict) else None

    def _key_of(self, plan: Path) -> dict[str, Any]:
        """The key in a plan's sidecar; {} if there is none or it is damaged."""
        key = (self._read_sidecar(plan) or {}).get("key")
        return key if isinstance(key, dict) else {}

    def _export_of(self, plan: Path) -> int:
        """The number of a plan's last export in its sidecar, counted from 1; 0 if it was not exported."""
        number = (self._read_sidecar(plan) or {}).get("exported")
        return number if isinstance(number, int) else 0

    def _nearest(self, name: str, key: PlanKey) -> str:
        """Why no plan has this key: how the most similar plan of this network differs."""
        wanted = asdict(key)
        differing: list[list[str]] = []
        for path in self._files(name, ".plan"):
            found = self._key_of(path)
            differing.append([f"{k} {found.get(k)}, here {wanted[k]}" for k in wanted if found.get(k) != wanted[k]])
        if not differing:
            return "there is none yet"
        nearest = min(differing, key=len)
        return f"the most similar plan is for {'; '.join(nearest)}"
