"""The last step of `make demo`, with the bundled model."""

import re
from pathlib import Path

import pytest

from deploy.demo import main
from training.data.mnist import Mnist

ROOT = Path(__file__).parents[2]


@pytest.mark.full_mnist
@pytest.mark.usefixtures("mnist")
def test_demo_finds_the_accuracy_of_the_manifest(capsys):
    assert main(["--models", str(ROOT / "serving" / "digits" / "pretrained")]) == 0
    output = capsys.readouterr().out
    served, claimed = re.findall(r"(?:accuracy|says) +([\d.]+ ?%)", output)
    assert served == claimed
    assert ".venv/bin/digit-serving classify" in output


def test_demo_fails_where_the_accuracy_is_another(models, mnist_sample, monkeypatch):
    fewer = Mnist(
        mnist_sample.train_images, mnist_sample.train_labels,
        mnist_sample.test_images, 9 - mnist_sample.test_labels,
    )  # fmt: skip
    monkeypatch.setattr(Mnist, "load", lambda folder: fewer)
    assert main(["--models", str(models)]) == 1
