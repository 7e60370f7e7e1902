import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.model import repository as read_manifest
from training.errors import ExportError, NotTrained
from training.export import int8
from training.export.digits import export
from training.export.parity import onnxruntime
from training.export.samples import Samples
from training.export.version import choose_golden
from training.fitting.artifacts import load_model


@pytest.fixture(scope="module")
def version(models):
    return models / "digits" / "1"


@pytest.fixture(scope="module")
def session(version):
    return onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def manifest(version):
    contents: dict[str, Any] = json.loads((version / "manifest.json").read_text())
    return contents


@pytest.fixture
def own_artifacts(artifacts, tmp_path):
    """A copy of the artifacts, which a test may change."""
    return Path(shutil.copytree(artifacts, tmp_path / "artifacts"))


def test_manifest_holds_what_training_measured(manifest, artifacts):
    metrics = json.loads((artifacts / "metrics.json").read_text())
    assert (manifest["format"], manifest["name"], manifest["version"]) == (1, "digits", "1")
    assert manifest["signature"] == {
        "input_shape": [28, 28], "dtype": "uint8", "classes": 10, "labels": [*"0123456789"],
    }  # fmt: skip
    assert manifest["accuracy"] == pytest.approx(metrics["accuracy"])
    assert [manifest[key] for key in ("recipe", "seed", "parameters")] == ["seed", 0, 241_650]
    assert manifest["settings"] == metrics["settings"]
    assert (manifest["settings"]["epochs"], manifest["settings"]["units"]) == (12, [256, 128, 56])
    assert set(manifest["libraries"]) == {
        "tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy", "python",
    }  # fmt: skip


def test_server_knows_every_field_of_the_manifest(models):
    assert read_manifest.load(models / "digits", "1")[0].unknown == ()


def test_manifest_has_the_digest_of_every_file(version, manifest):
    others = {path.name: path.read_bytes() for path in version.iterdir()}
    del others["manifest.json"]
    assert manifest["files"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in others.items()
    }


def test_manifest_reports_parity_alone_and_in_a_batch(manifest):
    parity = manifest["parity"]
    assert parity["images"] == 500
    assert parity["batch_sizes"] == [1, 500]
    assert parity["different_digits"] == 0
    assert parity["max_difference"] <= parity["tolerance"] == 1e-5


def test_int8_is_published_with_its_measurements(version, manifest):
    facts = manifest["int8"]
    assert facts["different_digits"] <= 5
    assert facts["test_accuracy"] == pytest.approx(manifest["accuracy"]["test"], abs=0.01)
    assert facts["validation_accuracy"] > 0.8
    assert 0 < facts["max_difference"] < 0.1
    assert list(facts["speedup"]) == ["1", "32", "128"]
    assert all(ratio > 0 for ratio in facts["speedup"].values())
    assert "model.int8.onnx" in manifest["files"]


def test_damaged_int8_is_not_published_with_the_reason(
    artifacts, mnist_sample, tmp_path, monkeypatch, capsys
):
    round_weights = int8.round_weights

    def negate(*arguments):
        integers, scale = round_weights(*arguments)
        return -integers, scale

    monkeypatch.setattr(int8, "round_weights", negate)
    version = export(artifacts, tmp_path, mnist_sample)
    manifest = json.loads((version / "manifest.json").read_text())
    reason = manifest["int8"].pop("refused")
    assert reason.endswith("of 500 test answers differ from fp32, at most 5 may")
    assert f"int8      not published: {reason}" in capsys.readouterr().out
    assert manifest["int8"] == {}
    assert list(manifest["files"]) == ["model.onnx"]
    assert list(manifest["golden"]) == ["images", "probabilities"]
    assert not (version / "model.int8.onnx").exists()


def test_golden_samples_are_right_and_include_the_least_certain():
    labels = np.arange(100, dtype=np.uint8) % 10
    certainty = np.linspace(0.3, 0.9, 100, dtype=np.float32)[::-1]
    answers = np.full((100, 10), 0.01, np.float32)
    answers[np.arange(100), labels] = certainty
    answers[99] = np.roll(answers[99], 1)  # the least certain of all, and wrong
    samples = Samples(np.zeros((100, 784), np.uint8), labels)
    assert choose_golden(answers, samples).tolist() == [*range(20), *range(87, 99)]


def test_next_export_is_the_next_version(version, artifacts, mnist_sample, tmp_path, capsys):
    (tmp_path / "digits" / "1").mkdir(parents=True)
    second = export(artifacts, tmp_path, mnist_sample)
    assert second == tmp_path / "digits" / "2"
    assert (second / "model.onnx").read_bytes() == (version / "model.onnx").read_bytes()
    assert 'name: "digits"' in (tmp_path / "digits" / "config.pbtxt").read_text()
    command = f".venv/bin/digit-serving serve --models {tmp_path} --model digits"
    assert f"published {second}; serve it with `{command}`" in capsys.readouterr().out


def test_missing_settings_name_the_command_to_run(own_artifacts, mnist_sample, tmp_path):
    metrics = json.loads((own_artifacts / "metrics.json").read_text())
    metrics["settings"] = {"name": "mine"}
    (own_artifacts / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(NotTrained, match=r"lacks the settings .*: run `make train` again"):
        export(own_artifacts, tmp_path / "models", mnist_sample)


@pytest.mark.parametrize("missing", ["model.keras", "metrics.json"])
def test_untrained_names_the_command_to_run(missing, own_artifacts, mnist_sample, tmp_path):
    (own_artifacts / missing).unlink()
    with pytest.raises(NotTrained, match="make train"):
        export(own_artifacts, tmp_path / "models", mnist_sample)


def test_truncated_model_names_the_command_to_run(own_artifacts, mnist_sample, tmp_path):
    os.truncate(own_artifacts / "model.keras", 100_000)
    with pytest.raises(NotTrained, match=r"cannot read .*model\.keras: run `make train` again"):
        export(own_artifacts, tmp_path / "models", mnist_sample)


def test_metrics_of_another_model_are_refused(own_artifacts, mnist_sample, tmp_path):
    metrics = json.loads((own_artifacts / "metrics.json").read_text())
    metrics["accuracy"]["test"] = 0.5
    (own_artifacts / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ExportError, match=r"another model \(test accuracy 50.00%"):
        export(own_artifacts, tmp_path / "models", mnist_sample)


def test_network_that_learned_nothing_is_not_published(own_artifacts, mnist_sample, tmp_path):
    model = load_model(own_artifacts)
    *others, bias = model.get_weights()
    model.set_weights([*others, bias + np.eye(10)[3] * 1e3])  # it answers 3 to each image
    model.save(own_artifacts / "model.keras")
    metrics = json.loads((own_artifacts / "metrics.json").read_text())
    metrics["accuracy"]["test"] = float((mnist_sample.test_labels == 3).mean())
    (own_artifacts / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ExportError, match=r"learned nothing: .* lower --learning-rate than"):
        export(own_artifacts, tmp_path / "models", mnist_sample)
    assert not (tmp_path / "models").exists()


def test_full_disk_publishes_nothing(artifacts, mnist_sample, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match=r"cannot write .*digits: No space left on device"):
        export(artifacts, tmp_path, mnist_sample)
    assert list((tmp_path / "digits").iterdir()) == []


def test_manifest_that_no_server_reads_is_not_published(
    artifacts, mnist_sample, tmp_path, monkeypatch
):
    monkeypatch.setattr("serving.publishing.manifest.MAX_MANIFEST_BYTES", 100)
    text = r"has \d+ bytes, at most 100 expected: train on smaller images"
    with pytest.raises(ExportError, match=text):
        export(artifacts, tmp_path, mnist_sample)
    assert list((tmp_path / "digits").iterdir()) == []
