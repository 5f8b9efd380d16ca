"""Report of an evaluation on 300VW: all protocols side by side, as a table and in files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.batch import Failure
from ...pipeline.machine import describe_machine
from ...pipeline.tables import columns
from ...tracker import metrics
from ...tracker.metrics import Normaliser
from ...tracker.types import Float64
from .benchmarks import Figure
from .error_curves import Curve, draw_curves
from .files import ReportFiles, replace_all
from .locate import Boxes
from .measure_video import LOST, VideoErrors
from .report import BOXES, cell
from .video_benchmark import published_split, ranges_of

CURVE_END = 0.08
Pooled = Mapping[tuple[Normaliser, int], Float64]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        protocol: "A" mean of videos (FHR, SPAN), "B" all frames (SBR), "C" the challenge, "D" long-term tracking.
        figure: what is computed.
        points: 68 or 49.
        by_video: take the mean over the videos' own values, instead of over all frames.
    """

    protocol: str
    figure: Figure
    points: int
    by_video: bool = False

    @property
    def label(self) -> str:
        """The row's name in the table and in JSON."""
        mean = ", mean of videos" if self.by_video else ""
        return f"{self.protocol}  {self.figure} %, {self.points} points{mean}"

    def of(self, videos: Sequence[Pooled]) -> float:
        """The value in per cent; NaN if there is none."""
        measure = self.figure.normaliser, self.points
        if self.by_video:
            values = [self.figure.of(errors[measure]) for errors in videos]
            found = [value for value in values if not math.isnan(value)]
            return float(np.mean(found)) if found else math.nan
        return self.figure.of(np.concatenate([errors[measure] for errors in videos]))


def _row(protocol: str, figure: str, points: int, *, by_video: bool = False) -> Row:
    return Row(protocol, Figure.parse(figure), points, by_video)


ROWS = (
    _row("A", "NME io", 68, by_video=True),
    _row("A", "NME ip", 68, by_video=True),
    _row("A", "NME io", 49, by_video=True),
    _row("A", "NME ip", 49, by_video=True),
    *(_row("B", figure, 68) for figure in ("NME io", "NME ip", "AUC7 io", "AUC8 io", "FR7 io", "FR8 io")),
    *(_row("C", figure, points) for points in (68, 49) for figure in ("NME io", "AUC8 io", "FR8 io")),
    *(_row("D", figure, 68) for figure in ("NME edge", "AUC8 edge", "FR8 edge")),
)
PAPERS_ROW = ROWS[0]


@dataclass(frozen=True, slots=True)
class VideoEvaluation:
    """A finished evaluation.

    Attributes:
        videos: their errors, at least one.
        excluded: number -> frames that do not count.
        excluded_by: source of the excluded frames, in words; None if all frames count.
        failures: videos that could not be measured, and why.
        boxes: where the face boxes came from.
        wall_s: how long it took.
    """

    videos: tuple[VideoErrors, ...]
    excluded: Mapping[str, frozenset[int]]
    excluded_by: str | None
    failures: tuple[Failure, ...]
    boxes: Boxes
    wall_s: float

    def scored(self, video: VideoErrors) -> Pooled:
        """A video's errors without the excluded frames."""
        return video.scored(self.excluded.get(video.number, frozenset()))

    def scenarios(self) -> dict[int, list[Pooled]]:
        """Scenario -> the scored errors of each of its videos; scenarios and videos without any are left out."""
        found: dict[int, list[Pooled]] = {}
        for video in sorted(self.videos, key=lambda video: video.scenario):
            errors = self.scored(video)
            if len(errors["io", 68]):
                found.setdefault(video.scenario, []).append(errors)
        return found


class VideoReportFiles(ReportFiles):
    """The files of an evaluation on videos: a table with a row per video, and each video's errors in DIR/STEM/."""

    __slots__ = ()

    @property
    def frames(self) -> Path:
        """The folder with each video's file of errors."""
        return self.folder / self.stem

    @property
    def of_all_videos(self) -> tuple[Path, ...]:
        """The files that are computed from those in the folder."""
        return tuple(super().all())

    def all(self) -> list[Path]:
        """See `ReportFiles`."""
        return [*self.of_all_videos, self.frames]


def write_video_report(evaluation: VideoEvaluation, files: VideoReportFiles) -> None:
    """Write all files of the summary, or none.

    Raises:
        SinkError: one of them cannot be written.
    """
    png, svg = draw_curves(_curves(evaluation), _title(evaluation), CURVE_END, "frames")
    content = json.dumps(as_json(evaluation), indent=2, ensure_ascii=False) + "\n"
    replace_all(
        {
            files.table: videos_as_csv(evaluation).encode(),
            files.curves[0]: png,
            files.curves[1]: svg,
            files.summary: content.encode(),
        }
    )


def _model(evaluation: VideoEvaluation) -> str:
    return str(evaluation.videos[0].origin["models"][0]["name"])


def _title(evaluation: VideoEvaluation) -> str:
    return f"300VW, NME io, frames pooled\n{_model(evaluation)}, {BOXES[evaluation.boxes]}"


def _curves(evaluation: VideoEvaluation) -> list[Curve]:
    return [
        Curve(f"scenario {scenario}, {points} points", np.concatenate([errors["io", points] for errors in videos]))
        for points in (68, 49)
        for scenario, videos in evaluation.scenarios().items()
    ]


def as_table(evaluation: VideoEvaluation) -> str:
    """All protocols in per cent, with a column per scenario."""
    scenarios, split = evaluation.scenarios(), published_split()
    rows = [["", *(f"scenario {scenario}" for scenario in scenarios)]]
    rows.append(["videos", *(_of(len(v), len(split.scenarios[s])) for s, v in scenarios.items())])
    rows.append(["frames", *(_of(_frames(v), split.scored_frames[s]) for s, v in scenarios.items())])
    for row in ROWS:
        rows.append([row.label, *(cell(row.of(videos)) for videos in scenarios.values())])
        if row is PAPERS_ROW:
            rows += [
                [f"       {method}", *(cell(values[scenario - 1]) for scenario in scenarios)]
                for method, values in split.papers.items()
            ]
    if evaluation.boxes == "detector":
        rows.append(["lost frames %", *(cell(100 * _lost(videos)) for videos in scenarios.values())])
    return "\n".join([*_head(evaluation), "", columns(rows, numbers_from=1)])


def _head(evaluation: VideoEvaluation) -> list[str]:
    lines = [f"300VW: {_model(evaluation)}, {BOXES[evaluation.boxes]}"]
    if evaluation.boxes == "detector":
        lines.append("NME is the mean of the frames in which the face was found; a lost frame counts as a failure")
    if not all(_comparable(scenario, videos) for scenario, videos in evaluation.scenarios().items()):
        lines.append("not exactly the published frames were scored: not comparable with the papers' numbers")
    never = [video.number for video in evaluation.videos if (video.tracks == LOST).all()]
    if never:
        lines.append(f"not found in any frame, and so in no NME: {', '.join(never)}")
    if evaluation.failures:
        lines.append(f"{len(evaluation.failures)} videos could not be measured and are left out")
    return lines


def _comparable(scenario: int, videos: Sequence[Pooled]) -> bool:
    """Whether the number of scored frames is that of the papers."""
    return _frames(videos) == published_split().scored_frames[scenario]


def _of(count: int, published: int) -> str:
    return str(count) if count == published else f"{count} of {published}"


def _frames(videos: Sequence[Pooled]) -> int:
    return sum(len(errors["io", 68]) for errors in videos)


def _lost(videos: Sequence[Pooled]) -> float:
    return metrics.mean_of_found(np.concatenate([errors["io", 68] for errors in videos]))[1]


def videos_as_csv(evaluation: VideoEvaluation) -> str:
    """A row per video: its frames, lost frames, number of tracks on the face, figures in per cent."""
    text = io.StringIO()
    figures = [row for row in ROWS if row.protocol in "CD" or row.by_video]
    names = ["video", "scenario", "frames", "scored", "unread", "unannotated", "lost", "tracks"]
    writer = csv.writer(text, lineterminator="\n")
    unique = dict.fromkeys((row.figure, row.points) for row in figures)
    writer.writerow([*names, *(f"{figure}_{points}_percent".replace(" ", "_").lower() for figure, points in unique)])
    for video in evaluation.videos:
        errors = evaluation.scored(video)
        scored = errors["io", 68]
        tracks = len(set(video.tracks.tolist()) - {LOST})
        counts = [*_counts(evaluation, video).values(), int(np.isinf(scored).sum()), tracks]
        values = [
            figure.of(errors[figure.normaliser, points]) if len(scored) else math.nan for figure, points in unique
        ]
        cells = ["" if math.isnan(value) else f"{value:.4f}" for value in values]
        writer.writerow([video.number, video.scenario, *counts, *cells])
    return text.getvalue()


def _counts(evaluation: VideoEvaluation, video: VideoErrors) -> dict[str, int]:
    """Frames of a video: measured, scored, annotated but not in the video, and in the video but not annotated."""
    return {
        "frames": len(video.frames),
        "scored": len(evaluation.scored(video)["io", 68]),
        "unread": video.unread,
        "unannotated": video.unannotated,
    }


def as_json(evaluation: VideoEvaluation) -> dict[str, Any]:
    """Everything but the frames' errors, in JSON types; figures that do not exist are null.

    Frames are counted from 1; excluded ones are given as ranges such as "3 7-9".
    """
    origin, split = dict(evaluation.videos[0].origin), published_split()
    scenarios = evaluation.scenarios()
    made = {name: origin[name] for name in ("facetrack", "boxes", "settings", "models", "backend")}
    return made | {
        "benchmark": "300vw",
        "videos": [
            {"video": video.number, "scenario": video.scenario, **_counts(evaluation, video)}
            for video in evaluation.videos
        ],
        "failures": [{"video": failure.what, "reason": failure.reason} for failure in evaluation.failures],
        "keep_bad": evaluation.excluded_by is None,
        "excluded_frames": {
            "source": evaluation.excluded_by,
            "videos": {
                video.number: ranges_of(evaluation.excluded[video.number])
                for video in evaluation.videos
                if evaluation.excluded.get(video.number)
            },
        },
        "scenarios": {
            str(scenario): {
                "videos": len(videos),
                "published_videos": len(split.scenarios[scenario]),
                "frames": _frames(videos),
                "published_frames": split.scored_frames[scenario],
                "comparable": _comparable(scenario, videos),
                "lost_percent": 100 * _lost(videos),
                "figures_percent": {row.label: _none_if_nan(row.of(videos)) for row in ROWS},
            }
            for scenario, videos in scenarios.items()
        },
        "papers_percent": {"protocol": PAPERS_ROW.label, **split.papers},
        "wall_s": round(evaluation.wall_s, 3),
        "machine": describe_machine(),
    }


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
