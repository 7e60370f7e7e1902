"""The whole way on a network that reads digits; rates are given, since a test can't rely on any."""

import json
import re
import shutil
import signal
import tempfile
from dataclasses import asdict

import numpy as np
import onnx
import pytest

import serving
from digit_classifier import PRETRAINED
from serving.config import BatchingConfig
from serving.errors import ConfigurationError, CorruptModel
from serving.model.loading import load_model
from serving.optimising import search, source
from serving.optimising.candidates import Candidate
from serving.optimising.gate import GateLimits
from serving.optimising.measure import Gain, Meter, Rates
from serving.optimising.optimize import optimize
from serving.optimising.search import FINALISTS
from serving.optimising.served import Served
from serving.publishing.manifest import digests
from tests.serving.model.graphs import model as graph_model
from tests.serving.model.graphs import node, rows_model, save, two_layers, value
from tests.serving.optimising.networks import digits, reader, samples

pytestmark = pytest.mark.process  # a model that this machine has not seen is tried in one

FEW = [Candidate(kind="int8"), Candidate(kind="nbits")]
"""Of all the tools' candidates two: each takes a second."""


def rates(rate):
    return Rates(alone=(rate, rate + 1, rate + 2), busy=(rate, rate + 1, rate + 2), batch=8)


def served(gain):
    found = Gain(median=gain, least=gain - 0.05, most=gain + 0.05, is_sure=gain > 1.05)
    return [Served(callers=each, rate=100 * gain, fp32_rate=100, gain=found) for each in (1, 16)]


@pytest.fixture
def fast(monkeypatch):
    """Each candidate is twice as fast as fp32, through the server, too."""
    return paced(monkeypatch, 2.0)


def paced(monkeypatch, factor, through=None):
    monkeypatch.setattr(search, "first_candidates", lambda **_: FEW)

    def measure(self, models, rounds, progress):
        return {name: rates(100 if name == "fp32" else 100 * factor) for name in models}

    monkeypatch.setattr(Meter, "measure", measure)
    calls = []

    def measure_served(*args):
        calls.append(args)
        return served(through or factor)

    monkeypatch.setattr("serving.optimising.served.measure_served", measure_served)
    return calls


def published(*given, **options):
    """Optimize, and return the outcome and the folder of the version."""
    found = optimize(*given, **options)
    assert found.version is not None
    return found, found.version


def test_best_that_holds_is_published_with_its_origin(tmp_path, fast):
    path = save(reader(), tmp_path, "reader.onnx")
    found, version = published(
        path, samples=samples(tmp_path, 900), name="mine", models=tmp_path / "models"
    )
    assert found.version == tmp_path / "models" / "mine" / "1"
    assert found.chosen.verdict.loss.loss <= 0.002
    manifest = json.loads((version / "manifest.json").read_text())
    origin = manifest["optimized"]
    chosen, verdict = found.chosen, found.chosen.verdict
    assert found.reason == (
        f"{chosen.candidate}: {chosen.alone} times as fast alone, {chosen.busy} with many callers"
    )
    assert len(origin["samples"].pop("sha256")) == 64
    assert origin == json.loads(json.dumps({
        "from": {"name": "reader", "version": "1",
                 "files": digests({"reader.onnx": path.read_bytes()})},
        "by": {"digit-serving": serving.__version__, "candidate": str(chosen.candidate),
               "settings": asdict(chosen.candidate)},
        "samples": {"calibration": 200, "held_out": 700, "seed": 0},
        "gate": {"found": str(verdict), "outputs": [asdict(each) for each in verdict.agreements],
                 "loss": asdict(verdict.loss), "score": verdict.score,
                 "fp32_score": verdict.fp32_score, "limits": origin["gate"]["limits"]},
        "gain": {"alone": asdict(chosen.alone), "busy": asdict(chosen.busy),
                 "served": [asdict(each) for each in found.served]},
        "processor": found.processor,
    }))  # fmt: skip
    assert origin["gain"]["busy"]["median"] == pytest.approx(2, abs=0.02)
    assert origin["gate"]["limits"]["most_loss"] == 0.002
    model = load_model(tmp_path / "models" / "mine")
    described = model.describe(BatchingConfig()).optimized
    assert described == f"{found.chosen.candidate}, of reader version 1"
    with pytest.raises(ConfigurationError, match=f"no int8 variant: .*{re.escape(described)}"):
        load_model(tmp_path / "models" / "mine", precision="int8")
    assert model.tensors.is_batchable
    images, labels = digits()
    answers = [model.run({"x": images[-900:]})[0].argmax(axis=1)]
    assert (np.concatenate(answers) == labels[-900:]).mean() > 0.92


def test_version_is_refused_where_its_graph_answers_otherwise(tmp_path, fast):
    """As on a processor that saturates: here by other scales in place of another processor."""
    path = save(reader(), tmp_path, "reader.onnx")
    _, version = published(path, samples=samples(tmp_path), name="mine", models=tmp_path / "models")
    target = version / "model.onnx"
    changed = onnx.load(target)
    for each in changed.graph.initializer:
        if each.name.endswith("_scale") and each.data_type == onnx.TensorProto.FLOAT:
            each.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(each) / 3, each.name)
            )
    target.write_bytes(changed.SerializeToString())
    manifest = json.loads((version / "manifest.json").read_text())
    manifest["files"] |= digests({"model.onnx": target.read_bytes()})
    (version / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptModel, match="answers its golden calls otherwise here than on"):
        load_model(tmp_path / "models" / "mine", "1")


def test_nothing_is_published_without_a_name(tmp_path, fast):
    path = save(reader(), tmp_path, "reader.onnx")
    found = optimize(path, samples=samples(tmp_path), models=tmp_path / "models")
    assert found.chosen is not None
    assert found.version is None
    assert not (tmp_path / "models").exists()


def test_slower_candidates_are_not_chosen(tmp_path, monkeypatch):
    calls = paced(monkeypatch, 1.05)
    path = save(reader(), tmp_path, "reader.onnx")
    found = optimize(path, samples=samples(tmp_path), name="mine", models=tmp_path / "models")
    assert (found.chosen, found.version) == (None, None)
    assert found.reason.startswith("nothing gained: the fastest is")
    assert "not faster: 1.0" in found.reason
    assert not calls  # nothing to confirm


def test_gain_that_no_caller_sees_is_not_published(tmp_path, monkeypatch):
    paced(monkeypatch, 2.0, through=1.0)
    path = save(reader(), tmp_path, "reader.onnx")
    found = optimize(path, samples=samples(tmp_path), name="mine", models=tmp_path / "models")
    assert found.version is None
    assert "through the server 16 callers got 1.00 (0.95 to 1.05) times" in found.reason


def test_next_candidates_have_their_turn_where_the_first_ones_fail(tmp_path, monkeypatch):
    paced(monkeypatch, 2.0)
    three = [*FEW, Candidate(kind="int8", calibration="percentile")]
    monkeypatch.setattr(search, "first_candidates", lambda **_: three)
    gains = iter([1.0] * FINALISTS)
    monkeypatch.setattr(
        "serving.optimising.served.measure_served", lambda *_: served(next(gains, 2.0))
    )
    path = save(reader(), tmp_path, "reader.onnx")
    found, version = published(
        path, samples=samples(tmp_path), name="mine", models=tmp_path / "models"
    )
    assert version.name == "1"
    reasons = [each.reason for each in found.tried]
    assert sum(each.startswith("not confirmed: ") for each in reasons) == FINALISTS
    assert found.chosen is not None
    assert found.chosen.reason == ""


def test_wrong_candidates_are_refused(tmp_path, fast):
    """No quantized answer keeps a limit of nothing."""
    path = save(reader(softmax=False), tmp_path, "reader.onnx")
    limits = GateLimits(
        agreement=serving.model.agreement.AgreementLimits(least_cosine=1, most_error=0)
    )
    found = optimize(
        path,
        samples=samples(tmp_path, labels=False),
        name="mine",
        models=tmp_path / "models",
        limits=limits,
    )
    assert found.version is None
    refused = [each for each in found.tried if each.reason.startswith("refused")]
    assert any(each.candidate.kept for each in refused)  # layers were left in fp32


def test_few_samples_publish_only_if_asked(tmp_path, fast):
    path = save(reader(), tmp_path, "reader.onnx")
    given = {"samples": samples(tmp_path, 90, labels=False), "name": "mine"}
    found = optimize(path, models=tmp_path / "models", **given)
    assert found.version is None
    assert "90 samples are too few: 100 expected" in found.reason
    assert any("leave room for 5 % other answers" in each for each in found.notes)
    asked = optimize(path, models=tmp_path / "models", few_samples=True, **given)
    assert asked.version is not None


def test_labels_that_leave_room_for_a_loss_need_more_samples(tmp_path, fast):
    path = save(reader(), tmp_path, "reader.onnx")
    given = {"samples": samples(tmp_path, 150), "name": "mine", "models": tmp_path / "models"}
    found = optimize(path, **given)
    assert found.version is None
    assert "100 samples leave room for a loss" in found.reason
    assert optimize(path, few_samples=True, **given).version is not None


def test_next_version_follows_the_newest(tmp_path, fast):
    root = tmp_path / "models"
    serving.publish(save(reader(), tmp_path, "reader.onnx"), "mine", models=root)
    found = optimize("mine", samples=samples(tmp_path), name="mine", models=root)
    assert found.version == root / "mine" / "2"
    assert load_model(root / "mine").version == "2"
    again = optimize("mine", samples=samples(tmp_path), name="mine", models=root)
    assert again.version is None
    assert "quantized already" in again.reason
    assert "DequantizeLinear" in again.reason


def test_other_signature_is_refused(tmp_path, fast):
    root = tmp_path / "models"
    serving.publish(save(two_layers(), tmp_path, "other.onnx"), "mine", models=root)
    path = save(reader(), tmp_path, "reader.onnx")
    with pytest.raises(ConfigurationError, match="new_signature=True"):
        optimize(path, samples=samples(tmp_path), name="mine", models=root)
    assert sorted(each.name for each in (root / "mine").iterdir()) == ["1"]


@pytest.mark.parametrize("opset", [7, 11])
def test_graph_of_an_old_opset_is_converted(tmp_path, fast, opset):
    old = reader(opset=opset, softmax=False)
    found = optimize(save(old, tmp_path, "old.onnx"), samples=samples(tmp_path, labels=False))
    assert any(each.verdict is not None for each in found.tried if each.candidate.kind == "int8")


def test_weights_in_other_files_are_taken(tmp_path, fast):
    (tmp_path / "net").mkdir()
    path = tmp_path / "net" / "reader.onnx"
    onnx.save(reader(), path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    _, version = published(path, samples=samples(tmp_path), name="mine", models=tmp_path / "models")
    assert sorted(each.name for each in version.iterdir()) == [
        "golden.npz", "manifest.json", "model.onnx"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (
            rows_model(node("Relu", ["x"], ["y"])),
            "nothing to gain: it has no convolution or matrix product",
        ),
        (
            graph_model(
                [node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0])],
                [value("x", "FP32", ["N", 4])],
                [value("y", "FP32", ["N", 4])],
            ),
            r"its nodes are of ai\.onnx\.ml",
        ),
    ],
)  # fmt: skip
def test_model_that_no_quantizer_takes_is_said(tmp_path, graph, reason):
    if graph.graph.node[0].domain:
        graph.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    x = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    found = optimize(save(graph, tmp_path), samples={"x": x}, name="mine", models=tmp_path)
    assert found.chosen is None
    assert not found.tried
    assert re.search(reason, found.reason)


def test_model_that_is_too_large_is_refused(tmp_path, monkeypatch):
    path = save(reader(), tmp_path, "reader.onnx")
    with pytest.raises(ConfigurationError, match="quantizers take at most 1,000"):
        source.read_source(path, None, 1000)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.ones((120, 4), np.float32) * np.arange(120)[:, None]}, "answers all 120"),
    ],
)
def test_samples_that_show_nothing_are_refused(tmp_path, arrays, reason):
    flat = rows_model(
        node("MatMul", ["x", "w"], ["y"]), constants={"w": np.zeros((4, 3), np.float32)}
    )
    arrays = {name: each.astype(np.float32) for name, each in arrays.items()}
    with pytest.raises(ConfigurationError, match="alike, which shows nothing"):
        optimize(save(flat, tmp_path), samples=arrays)


def test_samples_that_the_model_refuses_are_named(tmp_path):
    table = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    graph = graph_model(
        [node("Gather", ["table", "t"], ["g"]), node("MatMul", ["g", "w"], ["y"])],
        [value("t", "INT64", ["N"])],
        [value("y", "FP32", None)],
        {"table": table, "w": table[:4]},
    )
    with pytest.raises(ConfigurationError, match=r"the model refuses sample \d+:"):
        optimize(save(graph, tmp_path), samples={"t": np.arange(7)})


def test_answers_that_are_no_numbers_are_named(tmp_path):
    graph = rows_model(
        node("Sqrt", ["x"], ["s"]),
        node("MatMul", ["s", "w"], ["y"]),
        constants={"w": np.ones((4, 3), np.float32)},
    )
    x = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    with pytest.raises(ConfigurationError, match="numbers that are not finite: y"):
        optimize(save(graph, tmp_path), samples={"x": x})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_ctrl_c(tmp_path, monkeypatch, fast, number):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = []

    def interrupted(self, models, rounds, progress):
        made.extend(tmp_path.glob("optimize-*"))
        signal.raise_signal(number)

    monkeypatch.setattr(Meter, "measure", interrupted)
    path = save(reader(), tmp_path, "reader.onnx")
    given = samples(tmp_path)
    before = {*tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        optimize(path, samples=given, name="mine", models=tmp_path / "models")
    assert made
    assert {*tmp_path.iterdir()} == before
    assert tempfile.tempdir == str(tmp_path)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_search_ends_with_its_time(tmp_path, fast):
    path = save(reader(), tmp_path, "reader.onnx")
    found = optimize(path, samples=samples(tmp_path), time_limit_s=0)
    assert not found.tried
    assert found.reason == "nothing gained: no candidate was tried in time"


def test_classifier_of_pictures_stays_one(tmp_path, fast):
    """The next version of the digits: images, classes, golden images and pictures."""
    shutil.copytree(PRETRAINED / "digits", tmp_path / "digits")
    images, labels = digits()
    given = {"images": (images * 255).round().astype(np.uint8).reshape(-1, 784), "labels": labels}
    found = optimize("digits", samples=given, name="digits", models=tmp_path)
    assert found.version == tmp_path / "digits" / "2"
    model = load_model(tmp_path / "digits")
    assert model.version == "2"
    assert model.tensors.is_batchable
    assert model.pictures is not None
    assert len(model.manifest.golden_images) == 32
    assert (model.manifest.test_accuracy or 0) > 0.95


def test_output_that_labels_are_about_is_compared_by_its_classes(tmp_path, fast):
    """Its logits are no probabilities, by which it would be known."""
    path = save(reader(softmax=False), tmp_path, "reader.onnx")
    for has_labels, kind in ((True, "classes"), (False, "values")):
        given = samples(tmp_path, labels=has_labels)
        found = optimize(path, samples=given, models=tmp_path / "models")
        kinds = {each.kind for one in found.tried if one.verdict for each in one.verdict.agreements}
        assert kinds == {kind}
        losses = {one.verdict.loss is not None for one in found.tried if one.verdict}
        assert losses == {has_labels}
