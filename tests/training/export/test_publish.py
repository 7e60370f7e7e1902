"""`serving.publish` of Keras models: converted and compared as by the command `export`."""

import os

import keras
import numpy as np
import pytest

import serving
import training.__main__
from serving.cli import doors
from serving.errors import ConfigurationError
from serving.publishing.models import publish


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((3,), name="x")
    return keras.Model(inputs, keras.layers.Dense(2, name="y")(inputs))


@pytest.mark.parametrize("is_file", [False, True])
def test_keras_model_is_published_and_served(model, is_file, tmp_path, capsys):
    given = tmp_path / "model.keras"
    model.save(given)
    version = publish(given if is_file else model, "net", models=tmp_path / "models")
    assert version == tmp_path / "models" / "net" / "1"
    assert capsys.readouterr().out == ""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    with serving.Model.load(version.parent) as served:
        np.testing.assert_allclose(served.infer(rows)["y"], model(rows), rtol=1e-4, atol=1e-5)


def test_keras_model_of_another_signature_is_refused_or_marked(model, tmp_path):
    models = tmp_path / "models"
    publish(model, "net", models=models)
    other = keras.Model(inputs := keras.Input((4,), name="x"), keras.layers.Dense(2)(inputs))
    with pytest.raises(ConfigurationError, match="not published"):
        publish(other, "net", models=models)
    assert os.listdir(models / "net") == ["1"]
    assert publish(other, "net", models=models, new_signature=True).name == "2"


def test_keras_file_that_is_none_is_one_line(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"no model")
    with pytest.raises(ConfigurationError, match=r"cannot read .* as a Keras model"):
        publish(tmp_path / "model.keras", "net", models=tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_extra_that_is_missing_is_one_line(model, tmp_path, monkeypatch):
    monkeypatch.setattr(training.__main__, "EXTRA", ("tensorflow_of_nobody",))
    text = r"tensorflow_of_nobody is not installed: pip install '\.\[train\]'"
    with pytest.raises(ConfigurationError, match=text):
        publish(model, "net", models=tmp_path / "models")
    monkeypatch.setitem(doors.DOORS, "export", doors.Door("no_training.__main__", (), ""))
    with pytest.raises(ConfigurationError, match="export is not installed here"):
        publish(model, "net", models=tmp_path / "models")
    assert not (tmp_path / "models").exists()
