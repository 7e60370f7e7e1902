"""`serving.publish`: ONNX files become versions that are served."""

import os

import numpy as np
import onnx
import pytest

import serving
from serving.errors import ConfigurationError, CorruptModel
from serving.model import repository
from serving.model.manifest_file import parse_manifest
from serving.publishing.manifest import ManifestTooLong, render
from tests.serving.model import graphs
from tests.serving.model.graphs import save, two_layers
from tests.test_boundaries import HEAVY, modules_after

pytestmark = pytest.mark.process

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def with_weights_beside(folder):
    """Save a model whose weights are in another file."""
    file = folder / "net.onnx"
    onnx.save(
        two_layers(), str(file), save_as_external_data=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    return file


def other_model(folder):
    """Save a model with another signature."""
    relu = graphs.node("Relu", ["x"], ["z"])
    sides = (graphs.value(name, "FP32", ["N", 4]) for name in "xz")
    return graphs.save(graphs.model([relu], *([each] for each in sides)), folder, "other.onnx")


@pytest.fixture
def file(tmp_path):
    save(two_layers(), tmp_path, "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


def test_onnx_file_is_published_and_served(file, models):
    for number in ("1", "2"):
        assert serving.publish(file, "net", models=models) == models / "net" / number
    assert (models / "net" / "2" / "model.onnx").read_bytes() == file.read_bytes()
    with serving.Model.load(models / "net") as served, serving.Model.load(file) as bare:
        assert served.version == "2"
        np.testing.assert_array_equal(served.infer(X)["y"], bare.infer(X)["y"])


def test_repository_is_that_of_the_current_folder_by_default(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(serving.publish(str(file), "net")) == os.path.join("models", "net", "1")


def test_weights_beside_a_model_are_published_with_it(tmp_path, models):
    version = serving.publish(with_weights_beside(tmp_path), "net", models=models)
    assert sorted(os.listdir(version)) == ["model.onnx", "weights.bin"]
    with serving.Model.load(models / "net") as served:
        assert served.infer(X)["y"].shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("net.onnx", b"no model", "it is no ONNX model"),
        ("net.onnx", b"", "it has no output"),
        ("net.pt", b"", "torch.onnx.export"),
        ("net.txt", b"", "whose name ends in .onnx"),
        ("net.onnx", None, "there is no file"),
        ("net.keras", None, "there is no file"),
    ],
)
def test_file_that_is_no_model_is_refused_before_anything_is_written(
    name, content, text, tmp_path, models
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=text):
        serving.publish(tmp_path / name, "net", models=models)
    assert not models.exists()


def test_model_without_its_weights_is_refused(tmp_path, models):
    file = with_weights_beside(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CorruptModel, match=r"weights\.bin"):
        serving.publish(file, "net", models=models)
    assert not models.exists()


@pytest.mark.parametrize("name", ["", "..", "../net", "a/b", ".hidden", "n" * 101, "n\0"])
def test_name_that_is_no_folder_of_a_repository_is_refused(name, file, models):
    with pytest.raises(ConfigurationError, match=r"letters, digits and \._-"):
        serving.publish(file, name, models=models)
    assert not models.exists()


def test_object_that_is_no_model_is_refused(models):
    with pytest.raises(ConfigurationError, match="or a Keras model, got dict"):
        serving.publish({}, "net", models=models)


def test_other_signature_is_refused_or_marked(file, models, tmp_path):
    serving.publish(file, "net", models=models)
    other = other_model(tmp_path)
    with pytest.raises(ConfigurationError, match=r"output y is gone: version 1 .*new_signature"):
        serving.publish(other, "net", models=models)
    assert os.listdir(models / "net") == ["1"]
    version = serving.publish(other, "net", models=models, new_signature=True)
    assert sorted(os.listdir(version)) == ["model.onnx", "new-signature"]
    with serving.Model.load(models / "net") as served:
        assert served.version == "2"
    # The next one is measured by the newest that is served.
    assert serving.publish(other, "net", models=models).name == "3"
    with pytest.raises(ConfigurationError, match="output z is gone: version 3 has"):
        serving.publish(file, "net", models=models)


def test_repository_that_cannot_be_written_is_one_line(file, models):
    models.write_bytes(b"a file")
    with pytest.raises(ConfigurationError, match=r"can't write .*net: Not a directory"):
        serving.publish(file, "net", models=models)


def test_publishing_needs_numpy_and_protobuf_alone():
    modules = ", ".join(f"serving.publishing.{name}" for name in ("models", "writer", "manifest"))
    assert not modules_after(f"import {modules}") & {*HEAVY, "grpc", "training"}


def test_manifest_is_as_servers_read_it_or_refused():
    with pytest.raises(ManifestTooLong, match="at most 524288 expected"):
        render("digits", "1", {"recipe": "d" * (512 << 10)})
    with pytest.raises(CorruptModel, match="malformed"):
        parse_manifest(render("digits", "1", {}))
    assert repository.MAX_BYTES >= 1 << 30
