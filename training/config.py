"""The trainer's settings: frozen dataclasses as the schema, TOML files, unknown keys refused.

Every default works; a TOML file contains only what its run changes.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..tracker.errors import ConfigError
from ..tracker.metrics import Normaliser
from .augment import DISTURBANCES, Geometry
from .config_file import read_as
from .ranges import refuse_out_of_range

CONFIGS = "configs"  # the folder beside this file
DETECTORS = ("bbfcn-backbone", "bbfcn")  # BB-FCN's two runs
NORMALISERS = typing.get_args(Normaliser)


@dataclass(frozen=True, slots=True)
class Network:
    """The arguments of `engines.nets.build`."""

    name: str = "gv"
    landmarks: int = 68
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Corpus:
    """One folder of the training mixture.

    Attributes:
        path: folder below the data root.
        layout: one of `datasets.LAYOUTS`: "pts" for pictures with a .pts file each, "wflw-train", ...
        weight: share of the mixture at the start of the run, relative to the other corpora.
        late_weight: the same at the end; weights change linearly over the run. Negative: as at the start.
        held_out: whether a detector is also measured on the pictures of this corpus that its training holds out
            (`detection.score.load_held_out`); false for machine-made labels.
    """

    path: str
    layout: str = "pts"
    weight: float = 1.0
    late_weight: float = -1.0
    held_out: bool = True


@dataclass(frozen=True, slots=True)
class Expressions:
    """Expressions that photographs seldom show (`training.expressions`), for alignment networks of markups with lids.

    In training with pairs (`Consistency`) the shares are those of the labelled faces.

    Attributes:
        closed: share of the faces that are drawn from the faces of a corpus with a closed or nearly closed eye, if it
            has any.
        blinks: share of the faces whose open eyes are closed by drawing.
        grimaces: share of the faces whose mouth, eyes and brows are stretched by drawing.
        gap: weight of the error in how far eyes and mouth are open: the error of the offset from each point of an
            upper lid, or of the upper lip's inner edge, to the point below it, in crop pixels.
    """

    closed: float = 0.0
    blinks: float = 0.0
    grimaces: float = 0.0
    gap: float = 0.0


@dataclass(frozen=True, slots=True)
class Vectors:
    """Labels and losses of GV.

    Attributes:
        label: "bell", a whole Gaussian at the exact place, or "quasi", the paper's Eq. 2: a Gaussian of height 1 on the
            nearest cell, where the label itself is `peak`.
        sigma: width of the Gaussian, cells.
        peak: height of the label.
        tau: if a vector has its maximum at an end and below this height, the landmark is taken to lie beyond that end;
            0: `peak`.
        mse, coordinate: weights of the two landmark terms.
    """

    label: str = "bell"
    sigma: float = 1.2
    peak: float = 3.0
    tau: float = 0.0
    mse: float = 10.0
    coordinate: float = 1.0

    def __post_init__(self) -> None:
        if self.label not in ("bell", "quasi"):
            raise ConfigError(f"vectors.label: wanted 'bell' or 'quasi', got {self.label!r}")


@dataclass(frozen=True, slots=True)
class Maps:
    """Labels and losses of the heat-map networks TAB, PropNet and SPAN; BB-FCN uses `frozen` alone.

    Attributes:
        sigma: width of the landmarks' Gaussians, cells; SPAN's own are in `training.alignment.span_loss`.
        landmarks, boundaries, coordinate: weights of the terms; 0 leaves one out. The coordinate term is the error
            of the decoded place. Small maps need it; the papers of TAB and PropNet have none.
        frozen: true for the second of TAB's and BB-FCN's two runs: TAB's boundary network or BB-FCN's backbone keeps
            the weights it started with.
        reach: of the decoding, cells; 0 for PropNet's quarter-cell shift.
    """

    sigma: float = 1.0
    landmarks: float = 1.0
    boundaries: float = 1.0
    coordinate: float = 0.0
    frozen: bool = False
    reach: int = 0


@dataclass(frozen=True, slots=True)
class Consistency:
    """SPAN's self-calibration for any alignment network: a picture and its disturbed copy must get the same answer.

    Attributes:
        weight: of the divergence between the two answers, the paper's eta in Eq. 19, where the terms with labels are
            summed over both crops of a face. It means the same for every `share`. It also weighs the pairs without
            labels, which Eq. 20 prints without it. 0 trains on labels alone.
        labels: share of the annotated pictures whose annotation is used; of the others only the face's place is.
        unlabelled: further pictures; of their points, too, only the face's place is used (`training.relabel`).
        share: of the items, drawn from pictures without labels; below 1.
        roll_deg, scale, flip: the disturbed picture's largest turn relative to the other one (uniform in both
            directions), its smallest scale, and how often it is mirrored.
        texture: how its pixels are disturbed: "varied", with occluders of every kind, other faces among them, and
            always in another light, or "paper", SPAN's four alone (`augment.disguise`,
            `augment.disguise_as_published`).
        stop_gradient: no gradient flows into the undisturbed picture's answer; only the other one learns.
        teacher: which network's answer to the undisturbed picture is used: "itself", the network's own (the paper), or
            "average", that of its average over the steps (`schedule.ema`; the mean teacher of Tarvainen and Valpola,
            NIPS 2017). The average's landmarks are the labels of the disturbed pictures that have none; with `weight` 1
            such a label counts as much as an annotator's. Pairs with labels are then not compared, and `stop_gradient`
            has no effect.
    """

    weight: float = 0.0
    labels: float = 1.0
    unlabelled: tuple[Corpus, ...] = ()
    share: float = 0.5
    roll_deg: float = 60.0
    scale: float = 0.5
    flip: float = 0.5
    texture: str = "varied"
    stop_gradient: bool = False
    teacher: str = "itself"

    def __post_init__(self) -> None:
        if self.teacher not in ("itself", "average"):
            raise ConfigError(f"consistency.teacher: wanted 'itself' or 'average', got {self.teacher!r}")
        if self.texture not in ("varied", "paper"):
            raise ConfigError(f"consistency.texture: wanted 'varied' or 'paper', got {self.texture!r}")
        if self.teacher == "average" and self.weight and not self.share:
            raise ConfigError(
                "consistency.share: wanted above 0 with consistency.teacher 'average', which labels only the "
                "pictures without labels, got 0"
            )


@dataclass(frozen=True, slots=True)
class Discs:
    """Labels and negatives of BB-FCN as a detector; `random_share` applies to BB-FCN and its rival as aligners, too.

    Attributes:
        face_px: smallest and largest side of a face's landmark box that the backbone must respond to, pixels; they must
            fit into the crops of `Schedule.sizes`.
        radius: of the discs, pixels.
        ring: width of the band round a disc that is left out of the loss, pixels.
        random_share: during this first share of the run negative pixels are drawn at random; later those with the
            highest responses are taken.
        chip_px: the faces in memory are shrunk to boxes of this side, pixels.
        shift: how far a face's centre may be from the window's, over the face's side; large: anywhere in the window.
        positives: share of the pictures that show a face.
        hard_share: share of the negative pictures that come from mined false alarms, once there are any.
        covered, veiled, cut: shares of the disturbed pictures with a covered face, with little contrast, and with a
            face cut by the picture's edge (`detection.hidden`).
    """

    face_px: tuple[float, float] = (14.0, 32.0)
    radius: float = 2.0
    ring: float = 1.0
    random_share: float = 0.12
    chip_px: float = 40.0
    shift: float = 10.0
    positives: float = 0.5
    hard_share: float = 0.5
    covered: float = 0.0
    veiled: float = 0.0
    cut: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length, optimiser and learning rate of a run.

    Attributes:
        steps: optimiser steps of the whole run.
        batch: pictures per step over all processes.
        optimiser: "adamw", or "sgd" with a momentum of 0.9.
        learning_rate: peak of the learning rate; linear warm-up, then a cosine to zero.
        drops: (share of the run, divisor) pairs: as in the papers, the rate falls in steps instead of as a cosine.
        weight_decay: for everything but biases and normalisation; 0 makes AdamW Adam.
        warm_up: steps until the peak.
        ema: share of itself that the averaged network keeps in a step.
        clip: largest norm of the gradient; inf for no limit.
        sizes: (share of the run below 1, crop side): crops grow during training, because small ones are cheap.
        validate_every: steps between two validations, each of which writes a line to the log. If it is above 20, there
            is one after 20 steps, too: it selects no weights, but shows early if validation fails.
        keep: which average is stored in best.pt and published: "best", that of the lowest validation error, or "last",
            the newest. Use "last" if validation is on the test pictures: choosing the best would be choosing on them. A
            run that resumes with "best" after "last" keeps the last average until a better one comes.
        checkpoint_every: steps between two checkpoints, the most that are lost if the run is killed.
        workers: processes that draw items, for each training process; 0 draws them in the training process.
        bf16: compute layers in bfloat16 (autocast): on CPUs with bfloat16 multiplication (AMX) twice as fast for wide
            dense networks and a third faster for MobileNetV3; slower on other CPUs.
        only: prefix of the names of the parameters to train: "net.score" for the face score alone, "" for the whole
            network. All other parameters, and the statistics of their normalisation layers, stay as they are.
        seed: of the weights and of every item.
    """

    steps: int = 10_000
    batch: int = 64
    optimiser: str = "adamw"
    learning_rate: float = 2e-3
    drops: tuple[tuple[float, float], ...] = ()
    weight_decay: float = 1e-2
    warm_up: int = 300
    ema: float = 0.999
    clip: float = 5.0
    sizes: tuple[tuple[float, int], ...] = ((0.0, 128),)
    validate_every: int = 500
    keep: str = "best"
    checkpoint_every: int = 200
    workers: int = 1
    bf16: bool = False
    only: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.sizes]
        if not starts or starts[0] != 0.0 or starts != sorted(starts):
            raise ConfigError(f"schedule.sizes: wanted shares of the run that rise from 0.0, got {self.sizes}")
        if self.optimiser not in ("adamw", "sgd"):
            raise ConfigError(f"schedule.optimiser: wanted 'adamw' or 'sgd', got {self.optimiser!r}")
        if self.keep not in ("best", "last"):
            raise ConfigError(f"schedule.keep: wanted 'best' or 'last', got {self.keep!r}")

    def size(self, progress: float) -> int:
        """Side of the crops in pixels after this share of the run."""
        return next(side for start, side in reversed(self.sizes) if progress >= start)


@dataclass(frozen=True, slots=True)
class Publication:
    """What the card of the trained network will say; see `engines.card.ModelCard`.

    Attributes:
        name, data, licence: the card's.
        box_scale: scale of the crops at inference, if another one than `geometry.box_scale` works better; 0: that one.
        shape: how far a point of outline or brows may lie from where the other points predict it, as a share of the
            face's side (`engines.shape`); 0: no limit.
        published: what the paper reports for this network on this data: figure -> value, for comparison.
    """

    name: str = "unnamed"
    data: tuple[str, ...] = ()
    licence: str = ""
    box_scale: float = 0.0
    shape: float = 0.0
    published: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Config:
    """One training run.

    Attributes:
        network: the network to train.
        start: what to begin from instead of random weights: best.pt of an earlier run of this network, a file of
            published weights NAME.torch.npz, or the name of a model whose weights are published; "" for none.
        start_parts: (part, file) pairs, loaded after `start`: the weights whose names begin with `part` ("net.scbe.")
            are taken from the file, which is one of those that `start` takes, a checkpoint.pt, or torchvision's
            published weights of an encoder (`engines.nets.imagenet`).
        corpora: annotated pictures.
        negatives: folders of pictures without faces, below the data root; backgrounds and occluders are taken from
            them, too.
        people: "folder/name" of pictures among the negatives that show people; they are left out.
        negative_share: share of an alignment network's training pictures that show no face.
        validation: folder below the data root; "" for objectives that hold out pictures themselves.
        validation_layout: its layout, as for a corpus.
        normaliser: what errors are divided by, in validation and where the face score learns which landmarks are right:
            "io", "ip", "box", "diag", "edge" or "face" (`tracker.metrics`); in training crops "face" means "box".
        geometry: how far training crops stray from the face's box.
        skip_broken: report broken files of corpora, negatives and validation and leave them out, instead of stopping;
            for an alignment network faces that lack points, too. If nothing is left the run stops all the same.
        disturbances: what may be done to the pixels of training crops, see `augment.disturb`; [] for nothing.
        expressions: how often eyes are closed and faces stretched.
        consistency: learning without labels.
        vectors, maps, discs: settings of the three kinds of labels; only the network's own kind is used.
        schedule: length, optimiser and learning rate.
        card: what the card will say.
    """

    network: Network = field(default_factory=Network)
    start: str = ""
    start_parts: tuple[tuple[str, str], ...] = ()
    corpora: tuple[Corpus, ...] = ()
    negatives: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    negative_share: float = 0.14
    validation: str = ""
    validation_layout: str = "pts"
    normaliser: str = "io"
    skip_broken: bool = False
    geometry: Geometry = field(default_factory=Geometry)
    disturbances: tuple[str, ...] = DISTURBANCES
    expressions: Expressions = field(default_factory=Expressions)
    consistency: Consistency = field(default_factory=Consistency)
    vectors: Vectors = field(default_factory=Vectors)
    maps: Maps = field(default_factory=Maps)
    discs: Discs = field(default_factory=Discs)
    schedule: Schedule = field(default_factory=Schedule)
    card: Publication = field(default_factory=Publication)

    def __post_init__(self) -> None:
        if unknown := set(self.disturbances) - set(DISTURBANCES):
            raise ConfigError(
                f"disturbances: wanted some of {', '.join(DISTURBANCES)}, got {', '.join(sorted(unknown))}"
            )
        if self.maps.frozen and not (self.start or self.start_parts):
            raise ConfigError(
                "maps.frozen: frozen weights keep their first values: wanted start or start_parts, got neither"
            )
        if self.normaliser not in NORMALISERS:
            raise ConfigError(f"normaliser: wanted one of {', '.join(NORMALISERS)}, got {self.normaliser!r}")
        refuse_out_of_range(self)

    @property
    def detects(self) -> bool:
        """True for BB-FCN as a detector, which holds out pictures itself; as an aligner it has a validation set."""
        return self.network.name in DETECTORS and not self.validation

    @property
    def broken(self) -> Literal["refuse", "skip"]:
        """How the readers of `datasets` should treat broken files."""
        return "skip" if self.skip_broken else "refuse"

    @property
    def box_scale(self) -> float:
        """Side of the crops at inference over the longer side of the landmarks' box."""
        return self.card.box_scale or self.geometry.box_scale


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply overrides, see `config_file.read_as`.

    If configs/NAME.toml does not exist, the file of that name in the package is read.

    Raises:
        ConfigError: unreadable file, unknown key (names the nearest known one) or a value of the wrong type.
    """
    shipped = Path(__file__).parent / path
    if not path.exists() and path.parts[:1] == (CONFIGS,) and shipped.exists():
        path = shipped
    return read_as(Config, path, overrides)
