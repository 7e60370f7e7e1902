"""Each way to the digits waits as long."""

import inspect

import pytest

from digit_classifier.async_classifier import AsyncClassifier, AsyncDigits
from digit_classifier.async_local import AsyncLocalDigits
from digit_classifier.classifier import Classifier, Digits
from digit_classifier.local import LocalDigits
from digit_classifier.remote import AsyncRemoteDigits, RemoteDigits

WAYS = (Classifier, Digits, LocalDigits, RemoteDigits,
        AsyncClassifier, AsyncDigits, AsyncLocalDigits, AsyncRemoteDigits)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_model_is_waited_for_for_half_a_minute(way):
    assert inspect.signature(way.wait_ready).parameters["timeout_s"].default == 30.0
