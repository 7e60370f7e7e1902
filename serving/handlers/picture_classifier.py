"""The handler of a classifier of pictures: a manifest or a classifier.json describes it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from serving.commandline.installation import not_installed
from serving.errors import InvalidRequest
from serving.handlers.handler import Handler
from serving.handlers.kinds import Array, Bytes, Kind, Text
from serving.model.preprocessing import Preprocessing, classes_of, treatment_of
from serving.tensors import Array as NumpyArray
from serving.tensors import Images

CLASS, LABEL, PROBABILITIES = "class", "label", "probabilities"


def handler_of(description: Preprocessing) -> "PictureClassifier":
    """Return the handler for a classifier: an application's, if its description names that."""
    treatment = treatment_of(description.resize)
    if treatment is None:
        return PictureClassifier(description)
    module, _, name = treatment.HANDLER.partition(":")
    handler: type[PictureClassifier] = getattr(import_module(module), name)
    return handler(description)


@dataclass(unsafe_hash=True)
class PictureClassifier(Handler):
    """Files of pictures in; the most probable class of each, and the probabilities of all, out."""

    description: Preprocessing
    """How pictures become the model's input, and the names of the classes."""

    inputs: ClassVar[Mapping[str, Kind]] = {"picture": Bytes()}
    """Files, not pixels: they are decoded to the model's size, which may take fewer steps."""
    outputs: ClassVar[Mapping[str, Kind]] = {
        CLASS: Array("int64"),
        LABEL: Text(),
        PROBABILITIES: Array("float32", (-1,)),
    }

    def preprocess(self, picture: Sequence[bytes]) -> tuple[NumpyArray, Any]:
        """Return the model's input, and what `postprocess` gets of the pictures.

        Raises:
            InvalidRequest: a picture can't be read; the text says which, if there are several.
            ConfigurationError: Pillow is not installed.
        """
        read = []
        for at, content in enumerate(picture):
            try:
                read.append(self.read(content))
            except InvalidRequest as err:
                raise type(err)(f"picture {at}: {err}" if picture[1:] else str(err)) from err
        rows = np.concatenate([self.description.row(image) for image in read])
        return rows, self.state_of(read)

    def state_of(self, images: Sequence[Images] | Images) -> Any:
        """Return what `postprocess` gets of the images: nothing here."""
        return None

    def read(self, content: bytes) -> Images:
        """Make an image of a file: (height, width, channels) uint8."""
        try:
            from serving.pictures import decoder  # late: the process that decodes has Pillow
        except ImportError as err:
            raise not_installed(err) from err
        known, source = self.description, io.BytesIO(content)
        return decoder.read_pixels(
            source, known.size, known.channels, known.resize, invert=known.invert
        )

    def postprocess(self, *outputs: NumpyArray, state: Any) -> dict[str, Any]:
        """Return the classes of each picture.

        Raises:
            ModelError: the outputs are no numbers, or others than the labels.
        """
        probabilities = classes_of(self.description, outputs)
        numbers, names = probabilities.argmax(1), self.description.labels
        return {
            CLASS: numbers,
            LABEL: [names[at] if names else str(at) for at in numbers.tolist()],
            PROBABILITIES: probabilities,
        }
