"""From a Keras model that somebody trained to answers over the network."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

from digit_classifier import Classifier
from serving.__main__ import main as serving_main
from tests.support.servers import running_server
from tests.training.export.letters import letters, save_samples, train_letters
from training.__main__ import main

LABELS = tuple("abcdefghijklmnopqrstuvwxyz")
ENOUGH = 0.9
"""The least share of noisy patterns that are read right after seconds of training."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    train_letters().save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    samples = save_samples(folder / "samples.npz")
    arguments = {"--samples": samples, "--name": "letters", "--labels": folder / "labels.txt",
                 "--models": folder / "models"}  # fmt: skip
    options = (str(each) for pair in arguments.items() for each in pair)
    assert main(["export", str(folder / "model.keras"), *options]) == 0
    return folder / "models"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.slow
def test_own_keras_model_is_served(models, precision):
    images, classes = letters(400, seed=4)
    options = ("--model", "letters", "--precision", precision)
    with running_server(models, *options) as server, Classifier.connect(server.address) as client:
        answer = client.classify(images)
        info = client.describe()
    assert (info.name, info.precision) == ("letters", precision)
    assert info.labels == LABELS
    assert (answer.digits == classes).mean() > ENOUGH
    assert answer.labels == [LABELS[digit] for digit in answer.digits]
    with Classifier.load(models / "letters", precision=precision) as classifier:
        near = classifier.classify(images)
    np.testing.assert_array_equal(near.digits, answer.digits)


@pytest.mark.parametrize(("resize", "channels"), [("stretch", 1), ("crop", 3)])
def test_picture_is_classified_as_in_training(resize, channels, tmp_path, capsys):
    """A convolutional network of 8 x 8 sees the pixels that Keras's own loader makes."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((8, 8, channels)), keras.layers.Rescaling(1 / 255)]
    layers += [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(5)])
    model.save(tmp_path / "model.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, channels), np.uint8)
    np.savez(tmp_path / "samples.npz", images=pixels)
    files = {"--samples": "samples.npz", "--models": "models"}
    arguments = [text for name, file in files.items() for text in (name, str(tmp_path / file))]
    assert (
        main(
            [
                "export",
                str(tmp_path / "model.keras"),
                *arguments,
                "--name",
                "marks",
                "--resize",
                resize,
            ]
        )
        == 0
    )
    picture = tmp_path / "picture.png"
    Image.fromarray(pixels[:6].reshape(48, -1)).resize((90, 60)).save(picture)
    loaded = keras.utils.load_img(
        picture, color_mode="grayscale" if channels == 1 else "rgb", target_size=(8, 8),
        interpolation="bilinear", keep_aspect_ratio=resize == "crop",
    )  # fmt: skip
    array = keras.utils.img_to_array(loaded)[None]
    expected = keras.ops.softmax(model(array))
    capsys.readouterr()
    models = ["--models", str(tmp_path / "models"), "--model", "marks"]
    assert serving_main(["classify", str(picture), *models, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose([answer["probabilities"]], expected, atol=1e-5)
