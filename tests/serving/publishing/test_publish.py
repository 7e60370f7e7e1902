"""What `serving.publish` asks for and writes, without a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import serving
from serving.errors import ConfigurationError
from serving.model import repository
from serving.model.agreement import AnswerComparison
from serving.publishing import models as module
from serving.publishing.golden import golden_entry
from serving.publishing.manifest import golden, render


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What is checked and written, in its order."""
    found: list[Any] = []
    monkeypatch.chdir(tmp_path)

    def mark_of(data, folder, *, is_new_allowed):
        found.append(("mark", data, folder, is_new_allowed))
        return {"a mark": b"#"} if is_new_allowed else {}

    def write_version(folder, files):
        found.append(("write", folder, dict(files("7"))))
        return folder / "7"

    def publish_keras(model, name, root, *, is_new_signature):
        found.append(("keras", model, name, root, is_new_signature))
        return root / name / "1"

    monkeypatch.setattr(module, "mark_of", mark_of)
    monkeypatch.setattr(module, "write_version", write_version)
    monkeypatch.setattr(module, "publish_keras", publish_keras)
    monkeypatch.setattr(
        repository, "load", lambda path, version: (None, b"graph", {"w.bin": b"weights"})
    )
    return found


@pytest.mark.parametrize(
    ("options", "is_new", "root"),
    [({}, False, "models"), ({"new_signature": True}, True, "models"),
     ({"models": "elsewhere"}, False, "elsewhere")],
)  # fmt: skip
def test_file_is_published_with_its_weights(options, is_new, root, asked, tmp_path):
    (tmp_path / "net.onnx").touch()
    assert serving.publish("net.onnx", "net", **options) == Path(root, "net", "7")
    files = {"model.onnx": b"graph", "w.bin": b"weights"} | ({"a mark": b"#"} if is_new else {})
    place = Path(root, "net")
    assert asked == [("mark", b"graph", place, is_new), ("write", place, files)]


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5", ".Keras", ".H5"])
@pytest.mark.parametrize(("options", "is_new"), [({}, False), ({"new_signature": True}, True)])
def test_keras_file_is_converted(suffix, options, is_new, asked, tmp_path):
    with pytest.raises(ConfigurationError, match=f"^there is no file net{suffix}$"):
        serving.publish(f"net{suffix}", "net", **options)
    (tmp_path / f"net{suffix}").touch()
    found = serving.publish(Path(f"net{suffix}"), "net", models=tmp_path, **options)
    assert found == tmp_path / "net" / "1"
    assert asked == [("keras", Path(f"net{suffix}"), "net", tmp_path, is_new)]


def test_keras_model_is_converted(asked):
    kind = type("Model", (), {"__module__": "keras.src.models"})
    model = type("Sequential", (kind,), {"__module__": "keras.src"})()
    serving.publish(model, "net", new_signature=True)
    assert asked == [("keras", model, "net", Path("models"), True)]
    with pytest.raises(ConfigurationError) as caught:
        serving.publish(3, "net")
    assert str(caught.value) == (
        "model: expected the path of an ONNX or a Keras file, or a Keras model, got int"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.txt", "notes.txt: expected an ONNX file, whose name ends in .onnx"),
        ("net.tflite", "net.tflite: expected an ONNX file: python -m tf2onnx.convert --tflite FILE "
         "makes one"),
        ("folder", "folder: expected an ONNX file, whose name ends in .onnx"),
    ],
)  # fmt: skip
def test_file_that_is_none_is_named_by_what_is_wrong_first(name, text, asked):
    with pytest.raises(ConfigurationError) as caught:
        serving.publish(name, "net")
    assert str(caught.value) == text
    assert asked == []


def test_weights_may_not_have_the_name_of_the_graph(asked, tmp_path, monkeypatch):
    (tmp_path / "net.onnx").touch()
    monkeypatch.setattr(repository, "load", lambda *_: (None, b"graph", {"model.onnx": b"weights"}))
    with pytest.raises(ConfigurationError, match=r"a file with weights has the name model.onnx$"):
        serving.publish("net.onnx", "net")
    assert asked == []


def test_mark_is_a_file_beside_the_graph():
    ((name, content),) = module.new_mark().items()
    assert name == "new-signature"
    assert content.startswith(b"Published as a new signature")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", ".a", "-a", "ä", "a" * 101, "a\n"])
def test_name_is_that_of_a_folder(name, asked):
    with pytest.raises(ConfigurationError, match=r"^name: expected up to 100 letters, digits and"):
        serving.publish("net.onnx", name)
    assert asked == []


def test_disk_that_is_full_is_said(asked, tmp_path, monkeypatch):
    def fail(folder, files):
        raise OSError(28, "No space left on device")

    (tmp_path / "net.onnx").touch()
    monkeypatch.setattr(module, "write_version", fail)
    with pytest.raises(ConfigurationError) as caught:
        serving.publish("net.onnx", "net")
    assert str(caught.value) == ("not published, can't write models/net: No space left on device")


def test_manifest_is_written_for_people_too():
    data = render("net", "3", {"seed": None, "files": {}})
    lines = ['{', '  "format": 1,', '  "name": "net",', '  "version": "3",', '  "seed": null,',
             '  "files": {}', '}']  # fmt: skip
    assert data.decode().splitlines() == lines


def test_golden_samples_are_as_a_manifest_has_them():
    images = np.arange(8, dtype=np.uint8).reshape(2, 4)
    shares = np.array([[0.25, 0.75], [0.1, 0.9]], np.float32)
    assert golden(images, {"fp32": shares, "int8": shares[:, ::-1]}) == {
        "images": "AAECAwQFBgc=", "probabilities": [[0.25, 0.75], [0.1, 0.9]],
        "int8_probabilities": [[0.75, 0.25], [0.9, 0.1]],
    }  # fmt: skip
    entry = golden_entry(AnswerComparison({"y": "values"}), gated_on="cpu")
    limits = {"least_equal": 0.99, "least_cosine": 0.995, "most_error": 0.02}
    assert entry == {
        "file": "golden.npz", "outputs": {"y": "values"}, "limits": limits, "gated_on": "cpu",
    }  # fmt: skip
