"""Classify handwritten digits, in process or over gRPC.

    from serving import Classifier
    with Classifier.load("models/digits") as classifier:
        predictions = classifier.classify(images)

Names are resolved when first used, so that `import serving.client` loads no ONNX Runtime.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.classifier import Classifier
    from serving.client import AsyncClient, Client
    from serving.predictions import Prediction, Predictions

    __version__: str

__all__ = ["AsyncClient", "Classifier", "Client", "Prediction", "Predictions"]

_HOMES = {
    "AsyncClient": "serving.client",
    "Classifier": "serving.classifier",
    "Client": "serving.client",
    "Prediction": "serving.predictions",
    "Predictions": "serving.predictions",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from commandline.checkout import version

        return version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
