"""Cumulative error curves as pictures, drawn with matplotlib, which is imported when it is needed."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...tracker import metrics
from ...tracker.errors import BackendError
from ...tracker.types import Float64

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 400
STYLES = ("-", "--", ":", "-.")  # so that curves on top of each other stay visible


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: in the legend; the number of errors and the share under the limit are added to it.
        errors: (F >= 1,) fractions, of F faces or of one face in F frames; infinity for a lost face.
    """

    label: str
    errors: Float64


def require_matplotlib() -> None:
    """Check before the work that curves can be drawn.

    Raises:
        BackendError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendError('the curves need matplotlib; run: pip install "facetrack[eval]"')


def draw_curves(curves: Sequence[Curve], title: str, limit: float, counted: str = "faces") -> tuple[bytes, bytes]:
    """Draw the share of faces (or frames) under each error, up to a limit.

    Args:
        curves: at least one.
        title: above the plot.
        limit: largest error shown, a fraction.
        counted: what the errors belong to, in the plural.
    Returns:
        The plot as PNG and as SVG; the same curves give the same bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    errors = np.linspace(0, limit, STEPS)
    for i, curve in enumerate(curves):
        shares = 100 * metrics.ced(curve.errors, errors)
        label = f"{curve.label} ({len(curve.errors)}): {shares[-1]:.1f} %"
        axes.plot(100 * errors, shares, STYLES[i % len(STYLES)], label=label)
    axes.set(xlim=(0, 100 * limit), ylim=(0, 100), title=title)
    axes.set(xlabel="normalised mean error, %", ylabel=f"{counted} with at most this error, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", title=f"at {100 * limit:g} %")
    with mpl.rc_context({"svg.hashsalt": "facetrack", "svg.fonttype": "none"}):
        return _saved(figure, "png"), _saved(figure, "svg")


def _saved(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=144, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()
