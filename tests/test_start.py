"""What a training begins from: parts of networks, published stems behind our preprocessing, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch import Tensor, nn  # noqa: E402 - torch may be missing

from facetrack.engines import nets  # noqa: E402
from facetrack.engines.nets.imagenet import COLOUR_MEAN, COLOUR_STD, fold_normalisation  # noqa: E402
from facetrack.engines.nets.tab import ResNetStem, vgg_stem  # noqa: E402
from facetrack.engines.torch_backend import save_torch_weights  # noqa: E402
from facetrack.tracker.errors import ConfigError  # noqa: E402
from facetrack.training import config  # noqa: E402
from facetrack.training.config import Config, load  # noqa: E402
from facetrack.training.objectives import run_config  # noqa: E402
from facetrack.training.start import begin  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

PAPERS = Path(config.__file__).parent / "configs" / "papers"
SMALL: dict[str, Any] = {"stacks": 1, "width": 16}


def tab(landmarks: int = 5, seed: int = 0, **options: Any) -> nets.FromBytes:
    torch.manual_seed(seed)
    return nets.FromBytes(nets.build("tab", landmarks, **(SMALL | options)))


def stirred(net: nn.Module) -> nn.Module:
    """The same network as a trained one is: no statistic is 0 or 1, and pictures are not forgotten on the way up."""
    torch.manual_seed(5)
    for name, value in net.state_dict().items():
        if value.ndim == 4:
            value *= 6**0.5  # He et al.'s start in place of torch's
        if value.ndim == 1:
            value.uniform_(0.5, 1.5) if name.endswith(("var", "weight")) else value.normal_(0, 0.3)
    return net


def published(stem: nn.Module, place: str = "features.") -> dict[str, Tensor]:
    """A state dict as torchvision's old ones are: more layers than we want, and nothing counted."""
    state = {place + name: value for name, value in stem.state_dict().items() if not name.endswith("tracked")}
    return state | {place + "24.weight": torch.zeros(8, 16, 3, 3), "classifier.0.weight": torch.zeros(3, 3)}


@pytest.mark.parametrize("stem", [vgg_stem(16), ResNetStem(16)], ids=["a bias", "no bias"])
def test_stem_folded_to_our_colours_matches_torchvisions_normalisation(stem: nn.Module) -> None:
    """All but the border: 18 and 23 pixels see what is padded there."""
    stem = stirred(stem).eval()
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 128, 128), np.uint8)).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (COLOUR_MEAN, COLOUR_STD))
    inner = slice(6, -6)
    with torch.no_grad():
        wanted = stem((rgb / 255 - mean) / std)[..., inner, inner]
        unfolded = stem((rgb - 127.5) / 128)[..., inner, inner]
        stem.load_state_dict(fold_normalisation(stem.state_dict()))
        got = stem((rgb - 127.5) / 128)[..., inner, inner]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std((2, 3)).max() > 0.05
    assert (unfolded - wanted).abs().max() > 0.05


@pytest.mark.parametrize(("stem", "place"), [("vgg", "features."), ("resnet", "")])
def test_stem_starts_from_torchvision_weights_and_the_rest_is_untouched(stem: str, place: str, tmp_path: Path) -> None:
    other = stirred(tab(seed=3, stem=stem).net.scbe.stem)
    torch.save(published(other, place), tmp_path / "imagenet.pth")
    net, untouched = tab(stem=stem), tab(stem=stem).state_dict()
    begin(net, Config(start_parts=(("net.scbe.stem.", str(tmp_path / "imagenet.pth")),)))
    wanted = fold_normalisation(other.state_dict())
    for name, value in net.state_dict().items():
        own = name.removeprefix("net.scbe.stem.")
        assert torch.equal(value, wanted[own] if name.startswith("net.scbe.stem.") else untouched[name]), name


@pytest.mark.parametrize("kind", ["best.pt", "checkpoint.pt", "a.torch.npz"])
def test_the_boundary_network_begins_from_one_that_was_trained_on_another_markup(kind: str, tmp_path: Path) -> None:
    """TAB, section 4.3: for COFW and AFLW it is WFLW's."""
    other, net, untouched = tab(98, seed=3), tab(29), tab(29).state_dict()
    stirred(other)
    if kind == "a.torch.npz":
        (tmp_path / "a.onnx").write_bytes(b"sand")
        save_torch_weights(other, tmp_path / "a.onnx", "tab", 98, SMALL)
    else:
        torch.save({"average": other.state_dict(), "net": tab(98).state_dict()}, tmp_path / kind)
    begin(net, Config(start_parts=(("net.scbe", str(tmp_path / kind)),)))
    for name, value in net.state_dict().items():
        wanted = other.state_dict()[name] if name.startswith("net.scbe.") else untouched[name]
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-3)  # .npz stores 16 bits


def test_start_parts_are_loaded_after_the_whole_network(tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.save({"average": tab(seed=seed).state_dict()}, tmp_path / f"{seed}.pt")
    net = tab()
    begin(net, Config(start=str(tmp_path / "1.pt"), start_parts=(("net.balt.", str(tmp_path / "2.pt")),)))
    first, second = tab(seed=1).state_dict(), tab(seed=2).state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(value, (second if name.startswith("net.balt.") else first)[name])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"width": 32}, r"it needs other sizes of hourglasses\.0\..* and \d+ more"),
        ({"stacks": 2}, r"it does not know hourglasses\.1\.skips\.0\..* and \d+ more"),
        ({"stem": "resnet"}, r"it lacks stem\.0\.weight, .* and \d+ more; it does not know stem\.conv1\.weight, "),
    ],
)
def test_a_part_of_another_network_is_refused_and_what_differs_is_named(
    options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    torch.save({"average": tab(**options).state_dict()}, tmp_path / "best.pt")
    parts = (("net.scbe.", str(tmp_path / "best.pt")),)
    net, untouched = tab(), tab().state_dict()
    with pytest.raises(ConfigError, match=rf"start_parts: .*best\.pt has no net\.scbe\. of this network: .*{told}"):
        begin(net, Config(start_parts=parts))
    assert all(torch.equal(value, untouched[name]) for name, value in net.state_dict().items())


def test_published_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    torch.save(published(ResNetStem(16), ""), tmp_path / "resnet.pth")
    parts = (("net.scbe.stem.", str(tmp_path / "resnet.pth")),)
    with pytest.raises(ConfigError, match=r"it lacks 0\.weight, 0\.bias, 1\.weight and "):
        begin(tab(), Config(start_parts=parts))


def test_unknown_part_is_refused_with_a_list_of_the_known_ones(tmp_path: Path) -> None:
    torch.save({"average": tab().state_dict()}, tmp_path / "best.pt")
    parts = (("net.nose.", str(tmp_path / "best.pt")),)
    with pytest.raises(ConfigError, match=r"begins with 'net\.nose\.'; there are net\.balt\., net\.scbe\."):
        begin(tab(), Config(start_parts=parts))


class Evil:
    """What a pickle could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("setting", ["start", "start_parts"])
def test_nothing_is_unpickled_but_weights(setting: str, tmp_path: Path) -> None:
    torch.save({"average": Evil(tmp_path / "done")}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil(tmp_path / "done"), protocol=2))
    for file in ("a.pt", "b.pt"):
        path = str(tmp_path / file)
        given = Config(start=path) if setting == "start" else Config(start_parts=(("net.scbe.", path),))
        with pytest.raises(ConfigError, match=rf"{setting}: .*{file} "):
            begin(tab(), given)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("pictures", ["300w", "wflw", "cofw", "aflw"])
def test_missing_boundary_network_is_reported_before_any_data_is_read(
    pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained_on = "300w" if pictures == "300w" else "wflw"  # section 4.3
    missing = rf"start_parts: runs/tab-{trained_on}-boundaries/best\.pt: not found; net\.scbe\. starts from it"
    with pytest.raises(ConfigError, match=missing):
        run_config(PAPERS / f"tab-{pictures}.toml", tmp_path / "no data", tmp_path / "out")


def test_frozen_boundaries_that_begin_from_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"maps\.frozen: .* wanted start or start_parts, got neither"):
        load(PAPERS / "tab-wflw.toml", ["start_parts=[]"])
    assert not load(PAPERS / "tab-wflw.toml", ["start_parts=[]", "maps.frozen=false"]).maps.frozen
