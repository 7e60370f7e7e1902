"""A model of images in your own process; it needs ONNX Runtime."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy.typing as npt

from digit_classifier import PRETRAINED
from digit_classifier.predictions import Predictions, as_images
from serving.config import BatchingConfig, Device, Precision
from serving.embedded import Model
from serving.tensors import ModelInfo, Signature


class _DescribedModel(Model):
    _is_described = True


class LocalDigits:
    """A loaded model, for threads; see `Classifier`."""

    def __init__(self, model: Model, reopen: "Callable[[], LocalDigits] | None" = None) -> None:
        """Take a model of images.

        Args:
            model: the model.
            reopen: loads it again, where this object is unpickled; None if it can't be pickled.

        Raises:
            ConfigurationError: it is not known to classify images.
        """
        self.signature: Signature = model.served.image_signature
        """The shape of the images, and the classes."""
        self._model, self._reopen = model, reopen
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
    ) -> "LocalDigits":
        """Load a model; without a path the one that is installed here."""
        where = PRETRAINED / "digits" if path is None else Path(path).absolute()
        model = _DescribedModel.load(where, version, device, precision, batching=batching)
        place = None if path is None else where
        return cls(model, partial(cls.open, place, model.version, device, precision, batching))

    def __reduce__(self) -> "tuple[Callable[[], LocalDigits], tuple[()]]":
        """Pickle path, version and settings; unpickling loads the model again."""
        if self._reopen is None:
            raise TypeError("only a Classifier from load() or pretrained() can be pickled")
        return self._reopen, ()

    def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify images."""
        checked = as_images(images, self.signature)
        outputs = self._model.infer({self._input: checked})
        return Predictions.of(outputs[self._output], outputs.model_version, self.signature.labels)

    def describe(self) -> ModelInfo:
        """Return the model's description."""
        return self._model.describe()

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until calls can be answered."""
        self._model.wait_ready(timeout_s)

    def close(self) -> None:
        """Free the model, or the connection."""
        self._model.close()
