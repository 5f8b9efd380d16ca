"""BB-FCN's branches are measured against what is annotated, not against the pixels that were drawn for it."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from fakes_benchmarks import write_image  # noqa: E402 - torch may be missing
from fakes_training import write_faces  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from facetrack.engines import nets  # noqa: E402
from facetrack.tracker import markup  # noqa: E402
from facetrack.tracker.geometry import bounding_box, box_centre_side  # noqa: E402
from facetrack.tracker.types import Float32  # noqa: E402
from facetrack.training.augment import Geometry  # noqa: E402
from facetrack.training.config import Config, Corpus, Discs, Network, Schedule  # noqa: E402
from facetrack.training.datasets import read_pts  # noqa: E402
from facetrack.training.detection.discs import disc_maps  # noqa: E402
from facetrack.training.detection.objectives import BranchRefinement  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

FACE = 40.0  # pixels of the face in every window
KEPT = [name for name in (f"{i}.png" for i in range(200)) if zlib.crc32(name.encode()) % 10 == 0]


class Exact(nn.Module):
    """Answers one place for each of five landmarks: a disc in the middle of a window that lies accordingly."""

    def __init__(self, places: Float32) -> None:
        super().__init__()
        self.corner = nn.Parameter(torch.from_numpy(places) - 12)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        disc = torch.from_numpy(disc_maps(np.full((1, 5, 2), 12, np.float32), 24, radius=2)).float()
        coarse = torch.from_numpy(disc_maps(np.full((1, 5, 2), 9, np.float32), 32, radius=2)).float()
        fine, coarse = (maps.expand(len(crops), -1, -1, -1) for maps in (disc, coarse))
        return coarse, fine, self.corner.expand(len(crops), -1, -1)


@pytest.fixture
def held(tmp_path: Path) -> tuple[BranchRefinement, Float32]:
    """The objective with one face kept for validation, and its five annotated points, pixels of the window."""
    write_faces(tmp_path / "faces", 2)
    kept = KEPT[0].removesuffix(".png")
    for suffix in (".png", ".pts"):
        (tmp_path / "faces" / f"1{suffix}").rename(tmp_path / "faces" / f"{kept}{suffix}")
    for i in range(6):
        write_image(tmp_path / "grass" / f"{i}.png", np.full((90, 90, 3), 20 * i, np.uint8))
    config = Config(
        network=Network("bbfcn", 5),
        corpora=(Corpus("faces"),),
        negatives=("grass",),
        geometry=Geometry(roll_deg=0.0, wide_share=0.0, flip=0.0),
        discs=Discs(face_px=(FACE, FACE), chip_px=300.0, shift=0.0),
        schedule=Schedule(sizes=((0.0, 64),)),
    )
    annotated = read_pts(tmp_path / "faces" / f"{kept}.pts")
    centre, side = box_centre_side(bounding_box(annotated))
    five = (markup.load("ibug68").subset("five5", annotated) - np.array(centre)) * FACE / side + 31.5
    backbone = nets.FromBytes(nets.build("bbfcn-backbone", 5)).state_dict()
    return BranchRefinement(config, tmp_path, (), backbone), five.astype(np.float32)


def test_an_exact_answer_has_no_error(held: tuple[BranchRefinement, Float32]) -> None:
    objective, five = held
    assert np.abs(five - np.rint(five)).max() > 0.2  # or the pixels drawn for it would do as well
    assert objective.validate(Exact(five))["fine"] < 0.05  # per cent of the distance of the eyes


def test_branch_error_is_the_distance_over_the_eye_distance(held: tuple[BranchRefinement, Float32]) -> None:
    objective, five = held
    eyes = np.linalg.norm(five[0] - five[1])
    assert objective.validate(Exact(five + np.float32([3, 4])))["fine"] == pytest.approx(100 * 5 / eyes, rel=0.01)
