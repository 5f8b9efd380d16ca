"""8-bit networks: what they may cost, and which layers stay in 32 bits."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fakes_onnx import onnx, weights_of

from facetrack.calibration.int8 import Int8Settings, _counts, layers_by_harm, quantise, quantise_card, restored
from facetrack.engines import graph, parity
from facetrack.engines.backend import open_backend, weights_for
from facetrack.engines.card import Folder, ModelCard, broken_weights, find_card, read_card
from facetrack.engines.card_text import card_path, write_card, write_weights
from facetrack.engines.convert import export_onnx_card
from facetrack.engines.onnx_backend import OnnxBackend
from facetrack.engines.parity import Proof
from facetrack.engines.quantise import QuantSettings, convolutions, quantise_onnx
from facetrack.tracker.errors import BackendError, ConfigError, SinkError, SourceError

SIZE = 16


def delicate_net() -> bytes:
    """Three 1x1 convolutions: "fine" works on what differs little on top of something large, which 8 bits lose."""
    from onnx import TensorProto, helper, numpy_helper

    eye = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    stored = {
        "first": eye / 255,
        "fine": eye,
        "fine.bias": np.full(3, 50, np.float32),
        "last": eye,
        "last.bias": np.full(3, -50, np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["bgr"], ["moved"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["moved"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["floats", "first"], ["small"], name="first"),
        helper.make_node("Conv", ["small", "fine", "fine.bias"], ["large"], name="fine"),
        helper.make_node("Conv", ["large", "last", "last.bias"], ["again"], name="last"),
        helper.make_node("ReduceMean", ["again"], ["means"], axes=[2, 3], keepdims=0),
    ]
    net = helper.make_graph(
        nodes,
        "delicate",
        [helper.make_tensor_value_info("bgr", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("means", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in stored.items()],
    )
    model = helper.make_model(net, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def proof(count: int = 8) -> Proof:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 1, 1, 3), np.uint8).repeat(SIZE, 1).repeat(SIZE, 2)
    return Proof(pictures, lambda outputs: np.stack((outputs[0], outputs[0]), -1) * 10)


def shift(content: bytes) -> float:
    return parity.measure(OnnxBackend(delicate_net()), OnnxBackend(content), proof(), (1,))[0].mean_px


def everything_in_8_bits() -> bytes:
    return quantise(delicate_net(), proof(), Int8Settings(limit=100.0)).content


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_a_generous_limit_keeps_no_layer(method: str) -> None:
    settings = Int8Settings(QuantSettings(method, symmetric=True), limit=100.0)
    found = quantise(delicate_net(), proof(), settings)
    assert (found.kept, found.layers) == ((), 3)
    assert graph.is_symmetric_int8(found.content)
    np.testing.assert_array_equal(found.judged.pictures, proof().pictures[1::2])


def test_onnxruntime_quantiser_prints_nothing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    quantise(delicate_net(), proof(), Int8Settings(QuantSettings("entropy"), limit=100.0))  # the other prints nothing
    assert capsys.readouterr().out == ""


def test_the_layer_that_breaks_the_landmarks_stays_in_32_bits() -> None:
    assert shift(everything_in_8_bits()) > 1.0
    settings = Int8Settings(limit=0.1 / SIZE, most_kept=1.0)
    found = quantise(delicate_net(), proof(), settings)
    assert "last" in found.kept
    assert "first" not in found.kept
    assert shift(found.content) < 0.1


def test_most_harmful_layer_is_ranked_first() -> None:
    content = everything_in_8_bits()
    for layers in (["first", "fine", "last"], ["last", "fine", "first"]):
        assert layers_by_harm(delicate_net(), content, proof(), layers)[0] == "last"


def test_restoring_all_layers_gives_the_fp32_network() -> None:
    content = restored(delicate_net(), everything_in_8_bits(), ("first", "fine", "last"))
    assert not {node.op_type for node in onnx.load_from_string(content).graph.node} & set(graph.QUANTISERS)
    pictures = proof().pictures
    np.testing.assert_allclose(OnnxBackend(content).run(pictures)[0], OnnxBackend(delicate_net()).run(pictures)[0])


def test_quantisation_is_refused_if_too_many_layers_would_stay_in_fp32() -> None:
    with pytest.raises(BackendError, match=r"with 1 of 3 layers in fp32, wanted at most 0\.000; stay with fp32"):
        quantise(delicate_net(), proof(), Int8Settings(limit=0.0, most_kept=0.4))


def test_quantisation_needs_at_least_2_crops() -> None:
    with pytest.raises(ConfigError, match="at least 2 crops"):
        quantise(delicate_net(), proof(1), Int8Settings())


@pytest.mark.parametrize(("most", "counts"), [(0, [0]), (1, [0, 1]), (5, [0, 1, 2, 4, 5]), (8, [0, 1, 2, 4, 8])])
def test_the_number_of_kept_layers_doubles(most: int, counts: list[int]) -> None:
    assert _counts(most) == counts


def test_unknown_calibration_method_raises(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(delicate_net())
    with pytest.raises(ValueError, match="wanted one of minmax, entropy, got 'guess'"):
        quantise_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", [], QuantSettings("guess"))


def test_grouped_convolutions_are_told_from_dense_ones(tmp_path: Path) -> None:
    model = onnx.load_from_string(delicate_net())
    model.graph.node[3].attribute.append(onnx.helper.make_attribute("group", 3))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert convolutions(tmp_path / "a.onnx") == (["first", "last"], ["fine"])


def test_convolutions_of_too_few_weights_count_among_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(delicate_net())
    every = ["first", "fine", "last"]  # 3x3 weights each
    assert convolutions(tmp_path / "a.onnx", 9) == (every, [])
    assert convolutions(tmp_path / "a.onnx", 10) == ([], every)


def card(tmp_path: Path, precision: str = "fp32") -> ModelCard:
    weights = weights_of(delicate_net(), tmp_path, "delicate", precision)
    return ModelCard(
        name="delicate",
        network="gv",
        task="align",
        markup="ibug68",
        size=(SIZE, SIZE),
        box_scale=1.25,
        codec={"kind": "vectors", "stride": 4, "sigma": 1.2, "peak": 3},
        weights={"net": weights},
        parameters=10,
        gmac=0.1,
        data=("none",),
        licence="Apache-2.0",
        measured={"NME": 3.6, "NME, 8 bits on a CPU": 3.7},
        calibration={},
    )


def test_int8_card_reads_back_and_drops_figures_measured_on_the_old_file(tmp_path: Path) -> None:
    made, done = quantise_card(card(tmp_path), {"net": proof()}, Int8Settings(limit=100.0), tmp_path / "out")
    stored = read_card(tmp_path / "out" / "cards" / "delicate-int8.toml")
    assert stored == made
    assert stored.weights["net"].read()
    assert set(stored.measured) == {"net: landmarks moved against delicate, mean px"}
    assert done[0].report()["layers"] == 3


def test_int8_cpu_file_is_stored_beside_the_full_one_in_the_same_card(tmp_path: Path) -> None:
    full = card(tmp_path)
    made, done = quantise_card(full, {"net": proof()}, Int8Settings(for_cpu=True, limit=100.0), tmp_path / "out")
    stored = read_card(tmp_path / "out" / "cards" / "delicate.toml")
    assert stored == made
    assert stored.weights["net"].read() == full.weights["net"].read()
    assert stored.files["net on a CPU"] == done[0].weights
    assert {*stored.measured} == {"NME", "net: landmarks moved by 8 bits on a CPU, mean px"}  # no former file's figure


def test_int8_cpu_file_is_added_in_place_without_rewriting_the_full_one(tmp_path: Path) -> None:
    """Its own file is not written again, which a full disk or a kill would leave broken."""
    full = card(tmp_path)
    (tmp_path / "weights").mkdir(exist_ok=True)
    place = full.weights["net"].path.rename(tmp_path / "weights" / "delicate.onnx")
    full = replace(full, weights={"net": replace(full.weights["net"], path=place)})
    before = place.stat()
    made, _ = quantise_card(full, {"net": proof()}, Int8Settings(for_cpu=True, limit=100.0), tmp_path)
    assert (place.stat().st_ino, place.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert read_card(tmp_path / "cards" / "delicate.toml") == made
    assert {path.name for path in (tmp_path / "weights").iterdir()} == {"delicate.onnx", "delicate-int8.onnx"}


@pytest.mark.parametrize("first", [True, False])
def test_int8_card_and_int8_cpu_file_share_a_folder_in_either_order(tmp_path: Path, *, first: bool) -> None:
    """Also where what was made first is a shipped card's file for CPUs, copied there with the card."""
    for for_cpu in (first, not first):
        settings = Int8Settings(QuantSettings(symmetric=not for_cpu), for_cpu=for_cpu, limit=100.0)
        quantise_card(card(tmp_path), {"net": proof()}, settings, tmp_path / "out")
    made = Folder.read(tmp_path / "out" / "cards").cards
    assert made.keys() == {"delicate", "delicate-int8"}
    assert broken_weights(made.values()) == []
    small = made["delicate"].weights["net"].cpu
    assert small is not None
    assert small.path.name == "delicate-int8.onnx"  # as they ship
    assert made["delicate-int8"].weights["net"].path != small.path


def test_exported_card_and_its_source_get_separate_int8_cpu_files(tmp_path: Path) -> None:
    source = card(tmp_path)
    other, _ = export_onnx_card(source, "fp32", (1,), {"net": proof()}, tmp_path / "out")
    for full in (source, other):
        settings = Int8Settings(for_cpu=True, limit=100.0)
        quantise_card(full, {"net": proof()}, settings, tmp_path / "out")
    made = Folder.read(tmp_path / "out" / "cards").cards
    assert made.keys() == {"delicate", "delicate-fp32"}
    assert broken_weights(made.values()) == []


@pytest.mark.parametrize("for_cpu", [True, False])
def test_a_file_that_another_card_names_is_not_replaced_and_nothing_is_written(
    tmp_path: Path, *, for_cpu: bool
) -> None:
    out = tmp_path / "out"
    (out / "weights").mkdir(parents=True)
    taken = weights_of(b"of another", out / "weights", "delicate-int8" if for_cpu else "delicate-int8-symmetric")
    write_card(replace(card(tmp_path), name="another", weights={"net": taken}), out)
    before = sorted(out.rglob("*"))
    with pytest.raises(SinkError, match=r"belongs to the card another, but delicate(-int8)? needs another file"):
        quantise_card(card(tmp_path), {"net": proof()}, Int8Settings(for_cpu=for_cpu, limit=100.0), out)
    assert sorted(out.rglob("*")) == before
    assert taken.read() == b"of another"


def test_refused_quantisation_leaves_no_files(tmp_path: Path) -> None:
    whole = card(tmp_path)
    both = replace(whole, weights={"first": whole.weights["net"], "second": whole.weights["net"]})
    given = {"first": proof(), "second": proof(1)}
    with pytest.raises(ConfigError, match="at least 2 crops"):
        quantise_card(both, given, Int8Settings(limit=100.0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_int8_cpu_file_runs_only_on_cpus_with_an_int8_dot_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = quantise_card(card(tmp_path), {"net": proof()}, Int8Settings(for_cpu=True, limit=100.0), tmp_path)
    weights = made.weights["net"]
    assert weights.cpu is not None
    pictures = proof().pictures[:1]
    own, small = (OnnxBackend(w).run(pictures)[0] for w in (weights, weights.cpu))
    assert not np.array_equal(own, small)
    for byte_products, output in ((True, small), (False, own)):
        monkeypatch.setattr("facetrack.engines.backend.has_int8_dot_product", lambda answer=byte_products: answer)
        assert weights_for("torch", weights) is weights
        for kind in ("onnx", "auto"):
            np.testing.assert_array_equal(open_backend(weights, kind).run(pictures)[0], output)


def test_int8_card_cannot_be_quantised_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'net' is in 8 bits already"):
        quantise_card(card(tmp_path, "int8"), {"net": proof()}, Int8Settings(), tmp_path)


@pytest.mark.parametrize("for_cpu", [True, False])
def test_fp16_card_can_be_quantised(tmp_path: Path, *, for_cpu: bool) -> None:
    half, _ = export_onnx_card(card(tmp_path), "fp16", (1,), {"net": proof()}, tmp_path / "half")
    settings = Int8Settings(QuantSettings(symmetric=not for_cpu), for_cpu=for_cpu, limit=100.0)
    made, done = quantise_card(half, {"net": proof()}, settings, tmp_path / "out")
    assert read_card(tmp_path / "out" / "cards" / f"{made.name}.toml") == made
    assert graph.precision_of(done[0].weights.read()) == "int8"
    assert done[0].layers == 3


def test_refused_export_leaves_no_files(tmp_path: Path) -> None:
    whole = card(tmp_path)
    both = replace(whole, weights={"first": whole.weights["net"], "second": whole.weights["net"]})

    def proof_in(scale: float) -> Proof:  # pixels a unit; a CPU is off by 1e-5 units in 16 bits
        return Proof(proof().pictures, lambda outputs: np.stack((outputs[0], outputs[0]), -1) * scale)

    proofs = {"first": proof_in(1.0), "second": proof_in(1e6)}

    with pytest.raises(BackendError, match=r"delicate-fp16\.onnx: refused: at batch 1 its landmarks are"):
        export_onnx_card(both, "fp16", (1,), proofs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    _, exported = export_onnx_card(whole, "fp16", (1, 2), {"net": proofs["first"]}, tmp_path / "out")
    assert exported[0].file.read_bytes()
    assert [entry.batch for entry in exported[0].parity] == [1, 2]


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FACETRACK_HOME", str(tmp_path / "home"))
    if not (Path(__file__).parent.parent / "engines" / "weights" / "gv-mobilenetv3-68.onnx").exists():
        pytest.skip("the trained weights are not here")
    return tmp_path


def invoke(*words: str) -> Any:
    from facetrack.cli import _commands

    return CliRunner().invoke(_commands, words, catch_exceptions=False)


def test_the_default_model_is_exported_in_16_bits_with_its_parity(shipped: Path) -> None:
    done = invoke("export", "gv", "--to", "onnx", "--batch", "1,8", "--out", str(shipped))
    networks = json.loads(done.stdout)["networks"]
    assert [entry["batch"] for entry in networks[0]["parity_px"]] == [1, 8]
    assert all(entry["mean_px"] < 0.01 for entry in networks[0]["parity_px"])
    written = shipped / "cards" / "gv-mobilenetv3-68-fp16.toml"
    assert tomllib.loads(written.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("export", "gv", "--to", "onnx"), "gv-mobilenetv3-68-fp16"),
        (("export", "gv", "--to", "tensorrt", "--precision", "int8"), "gv-mobilenetv3-68-int8"),
        (("calibrate", "int8", "gv"), "gv-mobilenetv3-68-int8"),
        (("calibrate", "int8", "gv", "--for-cpu"), "gv-mobilenetv3-68"),
    ],
)
def test_existing_card_is_replaced_only_with_overwrite(shipped: Path, words: tuple[str, ...], name: str) -> None:
    write_card(replace(find_card("gv", "align"), name=name, licence="mine"), shipped)
    before = (path := card_path(name, shipped)).read_bytes()
    with pytest.raises(SinkError, match=rf"cards/{name}\.toml: exists already; .* add --overwrite"):
        invoke(*words, "--out", str(shipped))
    assert path.read_bytes() == before
    with pytest.raises(SourceError, match="nowhere"):  # nothing but the next obstacle
        invoke(*words, "--overwrite", "--crops", str(shipped / "nowhere"), "--out", str(shipped))


@pytest.mark.parametrize(
    "words",
    [
        ("export", "gv", "--to", "onnx"),
        ("export", "gv", "--to", "tensorrt"),
        ("calibrate", "int8", "gv"),
        ("calibrate", "noise", "gv", "--faces", "nowhere"),
    ],
)
@pytest.mark.parametrize("name", ["file", "file/below"])
def test_unwritable_output_folder_is_refused_before_pictures_are_read(
    shipped: Path, words: tuple[str, ...], name: str
) -> None:
    (shipped / "file").touch()
    crops = () if "noise" in words else ("--crops", str(shipped / "nowhere"))
    with pytest.raises(SinkError, match=f"{name}.*: cannot be created: .*; choose another folder"):
        invoke(*words, *crops, "--out", str(shipped / name))


def test_int8_cpu_file_may_be_added_to_a_card_in_place_without_overwrite(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a training: its file for CPUs is added to the card itself."""
    monkeypatch.setenv("FACETRACK_HOME", str(shipped))
    card = find_card("gv", "align")
    stored = write_weights(shipped, card.name, card.weights["net"].read(), "fp16")
    write_card(replace(card, weights={"net": stored}), shipped)
    with pytest.raises(SourceError, match="nowhere"):
        invoke("calibrate", "int8", "gv", "--for-cpu", "--crops", str(shipped / "nowhere"), "--out", str(shipped))


def test_unordered_export_batches_are_bad_usage(shipped: Path) -> None:
    done = invoke("export", "gv", "--to", "onnx", "--batch", "8,1", "--out", str(shipped))
    assert done.exit_code == 2
    assert "ascending" in done.stderr


def test_batches_of_an_int8_onnx_export_are_bad_usage(shipped: Path) -> None:
    words = ("export", "gv", "--to", "onnx", "--precision", "int8", "--out", str(shipped / "out"))
    done = invoke(*words, "--batch", "1,8")
    assert done.exit_code == 2
    assert "one picture at a time; leave it out" in " ".join(done.stderr.split())
    assert not (shipped / "out").exists()
