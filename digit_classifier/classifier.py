"""`Classifier`: the digit in each image, in your own process or by a server, for the same calls."""

from pathlib import Path
from typing import Protocol, Self, Unpack

import numpy.typing as npt

from digit_classifier.predictions import Predictions
from serving.client.client import ClientOptions
from serving.config import BatchingConfig, Device, Precision
from serving.tensors import ModelInfo, Signature


class Digits(Protocol):
    """A loaded model, or a server's: the inside of a `Classifier`."""

    @property
    def signature(self) -> Signature: ...
    def classify(self, images: npt.ArrayLike) -> Predictions: ...
    def describe(self) -> ModelInfo: ...
    def wait_ready(self, timeout_s: float = 30.0) -> None: ...
    def close(self) -> None: ...


class Classifier:
    """Classifies images; safe to call from many threads.

        with Classifier.pretrained() as classifier:  # or load("models/digits"), or connect(...)
            predictions = classifier.classify(images)

    Use it as a context manager, or call `close`.
    """

    def __init__(self, digits: Digits) -> None:
        """Classify by a loaded model or a server; see `load` and `connect`."""
        self._digits = digits

    @classmethod
    def pretrained(cls, device: Device = "auto", precision: Precision = "fp32") -> Self:
        """Load the model that is installed with the package.

        Args:
            device: "cpu", "cuda", or "auto", which takes CUDA where it works and the CPU elsewhere.
            precision: "fp32" or "int8"; int8 runs on the CPU only.

        Raises:
            DeviceError: the device can't be used on this machine.
            ConfigurationError: int8 was requested on CUDA.
            CorruptModel: the installed files are damaged.
        """
        # Late, here and below: a caller of a server needs no model, and a model no client.
        from digit_classifier.local import LocalDigits

        return cls(LocalDigits.open(None, None, device, precision))

    @classmethod
    def load(
        cls,
        path: str | Path,
        version: str | int | None = None,
        device: Device = "auto",
        precision: Precision = "fp32",
        *,
        batching: BatchingConfig | None = None,
    ) -> Self:
        """Load a model of images with a manifest into this process; see `serving.Model.load`.

        Raises:
            ServingError: see `serving.Model.load`; or the model has no manifest.
        """
        from digit_classifier.local import LocalDigits

        return cls(LocalDigits.open(path, version, device, precision, batching))

    @classmethod
    def connect(cls, target: str, **options: Unpack[ClientOptions]) -> Self:
        """Call a server's digits.v1; it connects when it is first used.

        Args:
            target: "host:port", or any other target of `serving.Client`.
            options: those of `serving.Client`.

        Raises:
            ConfigurationError: see `serving.Client`.
        """
        from digit_classifier.remote import RemoteDigits
        from serving.client.client import Client

        return cls(RemoteDigits(Client(target, **options)))

    def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images.

        In this process it runs on this thread, and past 128 images the other cores help. By a
        server, more than 256 images travel in several messages; the first call asks the server for
        the shape of its images and its classes.

        Args:
            images: (N, pixels) or (N, *input_shape) uint8, N >= 1; for digits (N, 784) or
                (N, 28, 28), 0 = background, 255 = ink.

        Returns:
            N predictions, in the order of the images.

        Raises:
            InvalidRequest: wrong dtype or shape, or no images.
            Overloaded: the server's queue stayed full.
            Unauthenticated: the server wants a token, or another one.
            Unavailable: the classifier is closed, no server answers, or its answer is malformed.
            DeadlineExceeded: no answer within the timeout.
            ModelError: the run failed.
        """
        return self._digits.classify(images)

    @property
    def signature(self) -> Signature:
        """The shape of the images, and the classes; a server is asked for them once."""
        return self._digits.signature

    def describe(self) -> ModelInfo:
        """Return the model's inputs and outputs, how it is run, and its limits."""
        return self._digits.describe()

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the server is ready; a loaded model is.

        Raises:
            Unavailable: it is not ready within `timeout_s` seconds.
        """
        self._digits.wait_ready(timeout_s)

    def close(self) -> None:
        """Refuse later calls; a connection's calls in flight fail. May be called again."""
        self._digits.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
