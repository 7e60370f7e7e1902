"""Classify handwritten digits, in process or over gRPC.

    from serving import Classifier
    with Classifier.pretrained() as classifier:  # or Classifier.load("models/digits")
        predictions = classifier.classify(images)

Each name is imported when it is first used, so that `import serving.client` loads no ONNX Runtime.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.classifier import Classifier
    from serving.client import AsyncClient, Client
    from serving.config import BatchingConfig
    from serving.embedded import Model
    from serving.errors import (
        ConfigurationError,
        CorruptModel,
        DeadlineExceeded,
        DeviceError,
        DigitsError,
        InvalidRequest,
        ModelError,
        ModelNotFound,
        Overloaded,
        RequestError,
        ServingError,
        TooLarge,
        Unauthenticated,
        Unavailable,
    )
    from serving.model.info import ModelInfo
    from serving.pictures.facts import FoundDigit, Number
    from serving.pictures.reader import from_picture, read_numbers
    from serving.predictions import Prediction, Predictions
    from serving.signature import Signature

    __version__: str

__all__ = [
    "AsyncClient",
    "BatchingConfig",
    "Classifier",
    "Client",
    "ConfigurationError",
    "CorruptModel",
    "DeadlineExceeded",
    "DeviceError",
    "DigitsError",
    "FoundDigit",
    "InvalidRequest",
    "Model",
    "ModelError",
    "ModelInfo",
    "ModelNotFound",
    "Number",
    "Overloaded",
    "Prediction",
    "Predictions",
    "RequestError",
    "ServingError",
    "Signature",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "from_picture",
    "read_numbers",
]

_HOMES = {
    "AsyncClient": "serving.client",
    "BatchingConfig": "serving.config",
    "Classifier": "serving.classifier",
    "Client": "serving.client",
    "FoundDigit": "serving.pictures.facts",
    "Model": "serving.embedded",
    "ModelInfo": "serving.model.info",
    "Number": "serving.pictures.facts",
    "Prediction": "serving.predictions",
    "Predictions": "serving.predictions",
    "Signature": "serving.signature",
    "from_picture": "serving.pictures.reader",
    "read_numbers": "serving.pictures.reader",
}
"""The module of each public name that is no error."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        from serving.installation import version

        return version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "serving.errors")), name)
