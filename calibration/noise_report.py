"""The outputs of a calibration: the card's own table, a plot and a report in text."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from ..engines.card import ModelCard, read_card
from ..engines.card_text import card_path, card_text, refuse_files_of_others, write_card
from ..engines.files import replace_file
from ..tracker.errors import SinkError
from ..training.evaluation.card_figures import with_table
from ..training.evaluation.files import replace_all
from .noise import Calibration


def write_calibration(card: ModelCard, calibration: Calibration, out: Path) -> Path:
    """Write OUT/cards/NAME.toml with the new [calibration] table, and its weights to OUT/weights.

    An existing card keeps everything else as it is, including comments, and its weights.

    Raises:
        CardError: the weights are missing or altered, or the existing card cannot be read.
        SinkError: a file cannot be written or belongs to another card, or the existing card has other weights.
    """
    refuse_other_weights(card, out)
    path = card_path(card.name, out)
    card = replace(card, calibration={**card.calibration, **calibration.table()})
    text = card_text(card)
    contents, is_new = {weights.path.name: weights.read() for weights in card.files.values()}, not path.exists()
    if is_new:
        refuse_files_of_others(out, card.name, {Path(name).stem: content for name, content in contents.items()})
    for name, content in contents.items():
        copy = out / "weights" / name
        if not copy.exists() or (is_new and copy.read_bytes() != content):
            replace_file(copy, content, SinkError)
    if not is_new:
        text = with_table(path.read_text(encoding="utf-8"), text, "calibration")
    write_card(card, out, text)
    return path


def refuse_other_weights(card: ModelCard, out: Path) -> None:
    """Check that an existing card of this name in OUT has the weights that are measured; files for CPUs do not count.

    Raises:
        CardError: it cannot be read.
        SinkError: it has other weights.
    """
    path = card_path(card.name, out)
    if not path.exists():
        return
    there = read_card(path).weights
    for role, weights in card.weights.items():
        if there[role].sha256 != weights.sha256:
            raise SinkError(
                f"{path}: belongs to other weights than the measured ones: wanted sha256 {weights.sha256[:16]}..., "
                f"that of {weights.path}, got {there[role].sha256[:16]}...; choose another --out, or set "
                f"FACETRACK_HOME to {out} to measure the card there"
            )


def as_text(calibration: Calibration) -> str:
    """Format what was learned as lines of text."""
    slope, offset = calibration.confidence
    lines = [f"confidence = sigmoid({slope:.3f} logit {offset:+.3f})"]
    for name, error in calibration.errors.items():
        lines.append(f"expected calibration error, {name}: {error:.4f} (before: {calibration.before[name]:.4f})")
    lines.append(f"{'confidence':>12}{'crops':>8}{'said':>8}{'right':>8}")
    lines += [f"{edge:12.1f}{count:8d}{said:8.3f}{right:8.3f}" for edge, count, said, right in calibration.reliability]
    noise = calibration.noise
    lines.append(f"noise: {noise.own:.5f} face sizes x score ** -{noise.power:.2f}, {noise.shared:.5f} in common")
    lines.append(f"{'score':>12}{'sigma':>10}{'fitted':>10}")
    lines += [f"{score:12.3f}{sigma:10.5f}{noise.sigma(score):10.5f}" for score, sigma in noise.bins]
    return "\n".join(lines)


def plot(calibration: Calibration, path: Path) -> None:
    """Draw the reliability and the noise over the score.

    Args:
        calibration: what was learned.
        path: of a .png or .svg file, which is replaced if it exists.
    Raises:
        ImportError: matplotlib is not installed.
        SinkError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _, counts, said, was_right = zip(*calibration.reliability, strict=True)
    left.plot([0, 1], [0, 1], "--", color="grey")
    left.plot(said, was_right, "o-")
    for count, x, y in zip(counts, said, was_right, strict=True):
        left.annotate(str(count), (x, y), textcoords="offset points", xytext=(4, -10), fontsize=7)
    left.set(xlabel="confidence", ylabel="share with an NME under 8 %", title="reliability, held-out photographs")
    scores, sigmas = zip(*calibration.noise.bins, strict=True)
    right.plot(scores, sigmas, "o", label="measured")
    right.plot(scores, [calibration.noise.sigma(score) for score in scores], "-", label="fitted")
    right.set(xlabel="score of a landmark", ylabel="sigma, face sizes", title="noise", yscale="log", xscale="log")
    right.legend()
    content = io.BytesIO()
    figure.savefig(content, format=path.name[-3:].lower())
    replace_all({path: content.getvalue()})
