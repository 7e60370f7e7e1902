"""A person's own pictures, from files to a network that reads them."""

import pytest

from experiments.handwriting import own
from training.data.mnist import Mnist


@pytest.mark.slow
def test_own_pictures_halve_the_errors_of_an_odd_hand(
    mnist_sample: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "NUM_TRAINING", 100)
    monkeypatch.setattr(own, "NUM_OTHERS", 100)
    (gain,) = own.measure(mnist_sample, mnist_sample.test, 4, seeds=[0])
    assert gain.own_before >= 4
    assert gain.own_after <= gain.own_before / 2
    assert gain.mnist_after <= gain.mnist_before + 3
