"""A model of images in your own process, for event loops; it needs ONNX Runtime."""

from pathlib import Path
from typing import Self

import numpy.typing as npt

from digit_classifier import PRETRAINED
from digit_classifier.predictions import Predictions, as_images
from serving.config import BatchingConfig, Device, Precision
from serving.embedded import AsyncModel
from serving.tensors import ModelInfo


class _AsyncDescribedModel(AsyncModel):
    _is_described = True


class AsyncLocalDigits:
    """A loaded model, for event loops; see `AsyncClassifier`."""

    def __init__(self, model: AsyncModel) -> None:
        """Take a model of images; see `LocalDigits`."""
        self._model = model
        self._signature = model.served.image_signature
        self._input = model.served.tensors.inputs[0].name
        self._output = model.served.tensors.outputs[0].name

    @classmethod
    def open(
        cls,
        path: str | Path | None,
        version: str | int | None,
        device: Device,
        precision: Precision,
        batching: BatchingConfig | None = None,
    ) -> Self:
        """Load a model; without a path the one that is installed here."""
        where = PRETRAINED / "digits" if path is None else path
        return cls(_AsyncDescribedModel.load(where, version, device, precision, batching=batching))

    async def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify images."""
        checked = as_images(images, self._signature)
        outputs = await self._model.infer({self._input: checked})
        return Predictions.of(outputs[self._output], outputs.model_version, self._signature.labels)

    async def describe(self) -> ModelInfo:
        """Return the model's description."""
        return await self._model.describe()

    async def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until calls can be answered."""
        await self._model.wait_ready(timeout_s)

    async def close(self) -> None:
        """Free the model, or the connection."""
        await self._model.close()
