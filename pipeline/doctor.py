"""Checks what works on this machine; for what does not, gives the reason and the command that fixes it."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import __version__
from ..engines.backend import has_int8_dot_product
from ..engines.card import SHIPPED, all_cards, broken_cards, home
from ..engines.fit import can_track, check_files_fit
from ..engines.onnx_backend import import_remedy
from ..tracker.errors import FacetrackError
from ..tracker.kernel_cache import KEEP, NOT_KEPT, is_temporary
from ..tracker.smooth import Smoother, SmootherSettings
from ..tracker.types import Frame
from .check import Check
from .doctor_gpu import examine_gpu
from .machine import describe_machine, packages_of, version_of

if TYPE_CHECKING:
    from .open import OpenEngines

ONNX_RUNTIME = ("onnxruntime", "onnxruntime-gpu")  # either has the module `onnxruntime`
OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
EXTRAS = {"train": "training", "eval": "evaluation", "osc": "open sound control"}  # GPUs have checks of their own
EYE_ERROR_PX = 4.0  # a tenth of the interocular distance: a working tracker is more accurate
REINSTALL = "in the checkout that facetrack was installed from: pip install --force-reinstall --no-deps ."
NO_SCORE = "cannot track because it does not score faces; `facetrack evaluate` measures it in given boxes"
SCORE = "to track with it, train it with network.options.face_score = true"
SMOOTHER_PX = 1e-3  # the two implementations compute in float64, their results are float32


def examine(open_engines: OpenEngines) -> Iterator[Check]:
    """Run all checks in turn; the last ones run the smoother and, on a packaged picture, the whole program.

    Args:
        open_engines: opens the engines of the whole program.
    """
    machine = describe_machine()
    memory = f"{machine['memory_gb']} GB" if machine["memory_gb"] else "memory unknown"
    where = f"{machine['processor']}, {machine['cores']} cores, {memory}, {machine['system']}"
    yield Check("machine", "ok", where)
    yield Check("facetrack", "ok", f"{__version__}, Python {platform.python_version()}")
    yield from _packages()
    yield _compiled_code()
    yield _own_models()
    yield _backend()
    yield from examine_gpu()
    yield _guarded("video", _video)
    yield from _models()
    yield _guarded("window", _window)
    yield _cameras()
    yield _guarded("smoother", _smoother)
    yield _guarded("whole program", lambda: _whole_program(open_engines))


def _guarded(subject: str, check: Callable[[], Check]) -> Check:
    """Run a check; an error of any kind makes it fail, with the error's message."""
    try:
        return check()
    except (FacetrackError, ImportError) as error:
        return Check(subject, "failed", str(error))
    except Exception as error:  # noqa: BLE001 - whatever is broken is to be reported
        return Check(subject, "failed", f"{type(error).__name__}: {error}", "report this as a bug")


def _packages() -> Iterator[Check]:
    needed = [package for package in packages_of() if package not in ONNX_RUNTIME + OPENCV]
    if not needed:
        yield Check("packages", "absent", "facetrack itself is not installed, so its requirements are unknown")
    for package in needed:
        version = version_of(package)
        if version:
            yield Check(package, "ok", version)
        else:
            yield Check(package, "failed", "not installed", f"pip install {package}")
    yield _onnx_runtime()
    yield _opencv()
    for extra, subject in EXTRAS.items():
        yield _extra(extra, subject)


def _extra(extra: str, subject: str) -> Check:
    """Whether all packages of an extra of this distribution are installed."""
    versions = {package: version_of(package) for package in packages_of(extra)}
    missing = [package for package, version in versions.items() if not version]
    if missing:
        return Check(subject, "absent", f"{', '.join(missing)} not installed", f'pip install "facetrack[{extra}]"')
    if not versions:
        return Check(subject, "absent", f"facetrack itself is not installed, so the packages of [{extra}] are unknown")
    return Check(subject, "ok", ", ".join(f"{package} {version}" for package, version in versions.items()))


def _onnx_runtime() -> Check:
    """Whether exactly one of ONNX Runtime's distributions is installed; `_backend` checks whether it works."""
    found = [f"{package} {version}" for package in ONNX_RUNTIME if (version := version_of(package))]
    if not found:
        return Check("onnxruntime", "failed", "not installed", f"pip install {ONNX_RUNTIME[0]}")
    if len(found) == 1:
        return Check("onnxruntime", "ok", found[0])
    remedy = f"pip uninstall -y {' '.join(ONNX_RUNTIME)} && pip install {ONNX_RUNTIME[1]}"
    return Check("onnxruntime", "absent", f"{' and '.join(found)} overwrite each other's files", remedy)


def _opencv() -> Check:
    """Whether cv2 works, whichever distribution installed it, and whether only one did."""
    found = [f"{package} {version}" for package in OPENCV if (version := version_of(package))]
    remedy = f"pip uninstall -y {' '.join(OPENCV)} && pip install {OPENCV[0]}"
    fault = _fault_of_cv2()
    if fault:
        return Check("opencv", "failed", f"{' and '.join(found) or 'not installed'}: {fault}", remedy)
    if len(found) == 1:
        return Check("opencv", "ok", found[0])
    if not found:
        return Check("opencv", "ok", "cv2 works; the package that it belongs to is unknown")
    return Check("opencv", "absent", f"{' and '.join(found)} overwrite each other's files; cv2 works so far", remedy)


def _fault_of_cv2() -> str:
    """Why the module cv2 cannot be used; "" if it can resize, encode and decode a small picture."""
    try:
        import cv2

        grey = np.asarray(cv2.resize(np.full((4, 4, 3), 90, np.uint8), (2, 2), interpolation=cv2.INTER_AREA), np.uint8)
        read = cv2.imdecode(cv2.imencode(".png", grey)[1], cv2.IMREAD_COLOR)
    except Exception as error:  # noqa: BLE001 - files of several versions side by side may fail in any way
        return f"{type(error).__name__}: {error}"
    return "" if read is not None and np.array_equal(read, grey) else "cv2 decodes another picture than it has encoded"


def _compiled_code() -> Check:
    """Whether what Numba compiles is kept for the next start."""
    cache, anew = os.environ.get("NUMBA_CACHE_DIR", ""), "every start compiles again, which takes half a minute"
    if is_temporary():
        return Check("compiled code", "absent", f"{NOT_KEPT}: {anew}", KEEP)
    try:
        Path(cache).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=cache):
            pass
    except OSError as error:
        return Check("compiled code", "absent", f"{cache} cannot be written ({error.strerror}): {anew}", KEEP)
    return Check("compiled code", "ok", cache)


def _own_models() -> Check:
    """Whether the folder of the user's models exists; that of FACETRACK_HOME must, else it is mistyped."""
    if home().is_dir():
        return Check("your models", "ok", str(home()))
    if os.environ.get("FACETRACK_HOME"):
        detail = f"FACETRACK_HOME is {home()}, which does not exist"
        return Check("your models", "absent", detail, "correct it, or create that folder")
    return Check("your models", "ok", f"{home()} (does not exist: no models of your own)")


def _backend() -> Check:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return Check("backend onnx", "failed", str(error), import_remedy(error))
    width = "8 bits" if has_int8_dot_product() else "32 bits because it has no instruction to multiply bytes (VNNI)"
    return Check("backend onnx", "ok", f"ONNX Runtime {ort.__version__}; this CPU computes in {width}")


def _video() -> Check:
    import av

    missing = [name for name in ("h264", "hevc", "vp9", "av1") if not _has_codec(name, "r")]
    missing += [name for name in ("libx264",) if not _has_codec(name, "w")]
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    if missing:
        remedy = "pip install --force-reinstall --only-binary av av"
        return Check("video", "failed", f"FFmpeg's libavcodec {version} lacks {', '.join(missing)}", remedy)
    return Check("video", "ok", f"libavcodec {version}: reads H.264, HEVC, VP9, AV1; writes H.264")


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    import av

    try:
        av.Codec(name, mode)
    except ValueError:
        return False
    return True


def _models() -> Iterator[Check]:
    """Check for each task that there is a card, and for each card that its weights are there and fit."""
    cards, has_runtime = all_cards(), _backend().status == "ok"
    for task in ("align", "detect"):
        if not any(card.task == task for card in cards):
            yield Check("models", "failed", f"there is none for the task {task}", REINSTALL)
    for name, error in broken_cards().items():
        yield Check(name, "failed", str(error), "correct or remove that card, or reinstall what it came with")
    for card in cards:
        try:
            size = sum(len(weights.read()) for weights in card.files.values())
            tracks = True
            if has_runtime:  # else the check "backend onnx" has failed
                check_files_fit(card)
                tracks = can_track(card)
        except FacetrackError as error:
            own = not next(iter(card.files.values())).path.is_relative_to(SHIPPED)
            yield Check(
                card.name, "failed", str(error), "write that model again, or remove its card" if own else REINSTALL
            )
        else:
            detail = f"{card.network}, {size / 1e6:.1f} MB, sha256 matches its card"
            yield (
                Check(card.name, "ok", detail) if tracks else Check(card.name, "absent", f"{detail}; {NO_SCORE}", SCORE)
            )


def _window() -> Check:
    from .window import LiveWindow

    try:
        LiveWindow("facetrack doctor").close(complete=True)
    except FacetrackError as error:
        return Check("window", "absent", str(error).removeprefix("window: "))
    return Check("window", "ok", "a display is available")


def _cameras() -> Check:
    """Whether cameras can be opened; checked only on Linux, where that does not switch them on."""
    if not sys.platform.startswith("linux"):
        return Check("cameras", "ok", "not checked; try: facetrack --camera 0")
    devices = sorted(Path("/dev").glob("video*"))
    if not devices:
        return Check("cameras", "absent", "there is no /dev/video*", "plug one in, or pass it into the container")
    closed = [device for device in devices if not os.access(device, os.R_OK | os.W_OK)]
    if closed:
        remedy = "sudo usermod -aG video $USER, then log in again"
        return Check("cameras", "failed", f"{', '.join(map(str, closed))}: permission denied", remedy)
    return Check("cameras", "ok", ", ".join(map(str, devices)))


def _smoother() -> Check:
    worst = smoother_against_filterpy()
    detail = f"agrees with filterpy to {worst:.1e} px"
    if worst <= SMOOTHER_PX:
        return Check("smoother", "ok", detail)
    return Check("smoother", "failed", f"{detail}, wanted {SMOOTHER_PX} px", "empty the folder of compiled code")


def smoother_against_filterpy() -> float:
    """Largest difference in pixels between the smoother and filterpy's Kalman filter.

    If all points move alike and nothing counts as a maneuver, the smoother is one constant-velocity filter for the
    whole face, which filterpy can compute too.
    """
    points, size_px, dt = 68, 100.0, 1 / 30
    settings = SmootherSettings(maneuver=math.inf, noisiest=1.0)
    oracle, smoother = _filterpy_filter(settings, points, size_px, dt), Smoother(settings, points)
    rng = np.random.default_rng(5)
    face = rng.uniform(0, size_px, (points, 2)).astype(np.float32)
    path = np.cumsum(rng.normal(0, 0.2, 40)).astype(np.float32)
    oracle.x, worst = np.array([[path[0]], [0.0]]), 0.0
    for index, shift in enumerate(path):
        xy, _ = smoother.update(index * dt, face + shift, np.ones(points, np.float32), size_px)
        if index:
            oracle.predict()
            oracle.update(float(shift))
        worst = max(worst, float(np.abs(xy - face - oracle.x[0, 0]).max()))
    return worst


def _filterpy_filter(settings: SmootherSettings, points: int, size_px: float, dt: float) -> Any:
    """filterpy's filter for the mean position of a face of this size, which has not moved yet.

    Args:
        settings: of the smoother that it should equal.
        points: of the face.
        size_px: of the face.
        dt: seconds between frames.
    """
    from filterpy.common import Q_discrete_white_noise
    from filterpy.kalman import KalmanFilter

    noise, shared = (settings.noise * size_px) ** 2, (settings.shared_noise * size_px) ** 2
    kalman = KalmanFilter(dim_x=2, dim_z=1)
    kalman.F, kalman.H = np.array([[1, dt], [0, 1]]), np.array([[1.0, 0.0]])
    kalman.Q = Q_discrete_white_noise(2, dt, (settings.rest_shared * size_px) ** 2)
    kalman.R = shared + 3 * noise / points
    kalman.P = np.diag([shared + noise / points, (settings.first_speed * size_px) ** 2])
    return kalman


def _whole_program(open_engines: OpenEngines) -> Check:
    """Find the only face of the packaged portrait, and its eyes."""
    from .open import Choices
    from .portrait import EYES, portrait

    choices = Choices()
    with open_engines(choices) as engines:
        frames = [Frame(i, i / 30, i / 30, portrait()) for i in range(3)]
        results = list(engines.pipeline(choices).run(frames))
        markup, backend = engines.aligner.markup, engines.backend
    counts = [len(result.faces) for result in results]
    if counts != [1, 1, 1]:
        return Check(
            "whole program", "failed", f"found {counts} faces in three frames of a portrait, wanted one in each"
        )
    eyes = markup.subset("five5", results[-1].faces[0].smoothed)[:2]
    error_px = float(np.linalg.norm(eyes - EYES, axis=1).max())
    detail = f"finds the eyes of a portrait to {error_px:.1f} px ({backend})"
    return Check("whole program", "ok" if error_px <= EYE_ERROR_PX else "failed", detail)
