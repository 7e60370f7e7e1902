"""`AsyncClassifier`: the calls of `Classifier`, for an event loop."""

from pathlib import Path
from typing import Protocol, Self, Unpack

import numpy.typing as npt

from digit_classifier.predictions import Predictions
from serving.client.client import ClientOptions
from serving.config import BatchingConfig, Device, Precision
from serving.tensors import ModelInfo


class AsyncDigits(Protocol):
    """The same for an event loop: the inside of an `AsyncClassifier`."""

    async def classify(self, images: npt.ArrayLike) -> Predictions: ...
    async def describe(self) -> ModelInfo: ...
    async def wait_ready(self, timeout_s: float = 30.0) -> None: ...
    async def close(self) -> None: ...


class AsyncClassifier:
    """Classifies images for an event loop: the same as `Classifier`, awaited.

    In this process, calls of up to 16 images that come while others run are run together.
    """

    def __init__(self, digits: AsyncDigits) -> None:
        """Classify by a loaded model or a server; see `load` and `connect`."""
        self._digits = digits

    @classmethod
    def pretrained(cls, device: Device = "auto", precision: Precision = "fp32") -> Self:
        """Load the model that is installed with the package; see `Classifier.pretrained`."""
        # Late, here and below: a caller of a server needs no model, and a model no client.
        from digit_classifier.async_local import AsyncLocalDigits

        return cls(AsyncLocalDigits.open(None, None, device, precision))

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
        """Load a model into this process; see `Classifier.load`."""
        from digit_classifier.async_local import AsyncLocalDigits

        return cls(AsyncLocalDigits.open(path, version, device, precision, batching))

    @classmethod
    def connect(cls, target: str, **options: Unpack[ClientOptions]) -> Self:
        """Call a server's digits.v1; see `Classifier.connect`."""
        from digit_classifier.remote import AsyncRemoteDigits
        from serving.client.client import AsyncClient

        return cls(AsyncRemoteDigits(AsyncClient(target, **options)))

    async def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images; see `Classifier.classify`. A cancelled call begins no further run."""
        return await self._digits.classify(images)

    async def describe(self) -> ModelInfo:
        """Return the model's inputs and outputs, how it is run, and its limits."""
        return await self._digits.describe()

    async def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the server is ready; see `Classifier.wait_ready`."""
        await self._digits.wait_ready(timeout_s)

    async def close(self) -> None:
        """Refuse later calls; a connection's calls in flight fail. May be called again."""
        await self._digits.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
