"""The bundled model: it answers without a training, and agrees with its manifest."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving import Classifier
from serving.__main__ import main
from serving.model.repository import PRETRAINED, find_root

MAX_BYTES = 1_500_000
MAX_INT8_LOSS = 0.0005
ROOT = Path(__file__).parents[3]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory without a models folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def picture(tmp_path, images):
    path = tmp_path / "digit.png"
    Image.fromarray(images[0].reshape(28, 28)).save(path)
    return path


def test_box_is_small():
    files = [path for path in PRETRAINED.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "config.pbtxt",
        "manifest.json",
        "model.onnx",
        "model.int8.onnx",
    }
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


@pytest.mark.full_mnist
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_shipped_bytes_are_as_accurate_as_their_manifest_says(precision, mnist):
    version = PRETRAINED / "digits" / "1"
    manifest = json.loads((version / "manifest.json").read_text())
    claimed = manifest["accuracy"]["test"]
    with Classifier.pretrained("cpu", precision) as classifier:
        right = classifier.classify(mnist.test_images).digits == mnist.test_labels
    if precision == "int8":
        assert abs(right.mean() - claimed) <= MAX_INT8_LOSS
        claimed = manifest["int8"]["test_accuracy"]
    assert right.sum() == round(claimed * 10_000)


def test_pretrained_answers(images, mnist_sample):
    with Classifier.pretrained(device="cpu") as classifier:
        digits = classifier.classify(images).digits
    assert (digits == mnist_sample.test_labels).mean() > 0.98


@pytest.mark.usefixtures("elsewhere")
def test_box_is_used_where_nothing_is_exported(picture, mnist_sample, capsys, caplog):
    caplog.set_level(logging.INFO)
    assert main(["classify", str(picture), "--device", "cpu"]) == 0
    assert f"digit.png: {mnist_sample.test_labels[0]} (" in capsys.readouterr().out
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert caplog.messages[0].startswith("no model in models/digits: using the bundled one")


def test_exported_model_goes_before_the_box(models, tmp_path):
    assert find_root("digits", models) == models
    assert find_root("digits", tmp_path) == PRETRAINED
    assert find_root("other", tmp_path) == tmp_path  # and there it will be missed


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("shift", "is_rejected"), [(-1e-6, False), (1e-6, True)])
def test_reject_below_turns_unsure_answers_away(shift, is_rejected, tmp_path, capsys):
    path = tmp_path / "blank.png"
    strokes = np.zeros((28, 28), np.uint8)
    strokes[4:24, 13:15] = strokes[13:15, 4:24] = 255  # a plus sign is no digit
    Image.fromarray(strokes).save(path)
    main(["classify", str(path), "--json"])
    certainty = max(json.loads(capsys.readouterr().out)["probabilities"])
    threshold = str(certainty + shift)
    assert main(["classify", str(path), "--reject-below", threshold]) == 0
    assert (": ? (perhaps" in capsys.readouterr().out) == is_rejected
    assert main(["classify", str(path), "--reject-below", threshold, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rejected"] == is_rejected
