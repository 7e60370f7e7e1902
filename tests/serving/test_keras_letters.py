"""From a Keras model that somebody trained to answers over the network."""

from pathlib import Path

import numpy as np
import pytest

from serving import Classifier, Client
from tests.support.servers import running_server
from tests.training.export.letters import letters, save_samples, train_letters
from training.__main__ import main

LABELS = tuple("abcdefghijklmnopqrstuvwxyz")
ENOUGH = 0.9
"""Of noisy patterns, after seconds of training, most are read right."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("letters")
    train_letters().save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    samples = save_samples(folder / "samples.npz")
    arguments = {"--keras": folder / "model.keras", "--samples": samples, "--name": "letters",
                 "--labels": folder / "labels.txt", "--models": folder / "models"}  # fmt: skip
    assert main(["export", *(str(each) for pair in arguments.items() for each in pair)]) == 0
    return folder / "models"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_own_keras_model_is_served(models: Path, precision: str) -> None:
    images, classes = letters(400, seed=4)
    options = ("--model", "letters", "--precision", precision)
    with running_server(models, *options) as server, Client(server.address) as client:
        answer = client.classify(images)
        info = client.model_info()
    assert (info.name, info.precision) == ("letters", precision)
    assert (info.signature.input_shape, info.signature.labels) == ((32, 32), LABELS)
    assert (answer.digits == classes).mean() > ENOUGH
    assert answer.labels == [LABELS[digit] for digit in answer.digits]
    with Classifier.load(models / "letters", precision=precision) as classifier:  # type: ignore[arg-type]
        near = classifier.classify(images)
    np.testing.assert_array_equal(near.digits, answer.digits)
