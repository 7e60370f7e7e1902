"""The example application: which digit is in a picture.

    from digit_classifier import Classifier
    with Classifier.pretrained() as classifier:  # or Classifier.connect("127.0.0.1:50051")
        predictions = classifier.classify(images)

Each name is imported when it is first used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # "as": for type checkers, which don't read `__all__` below
    from digit_classifier.async_classifier import AsyncClassifier as AsyncClassifier
    from digit_classifier.classifier import Classifier as Classifier
    from digit_classifier.pictures import from_picture as from_picture
    from digit_classifier.predictions import Prediction as Prediction
    from digit_classifier.predictions import Predictions as Predictions

PRETRAINED = Path(__file__).parent / "pretrained"
"""The bundled repository: a model that is installed with the package."""

_NAMES = {
    "async_classifier": "AsyncClassifier",
    "classifier": "Classifier",
    "pictures": "from_picture",
    "predictions": "Prediction Predictions",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = ["PRETRAINED", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
