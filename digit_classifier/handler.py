"""The steps beside the model of digits: find a digit in a picture, say which; and as a handler."""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np

from digit_classifier.pictures import CHANNELS, SIZE, from_picture
from digit_classifier.predictions import DIGITS
from serving.errors import InvalidRequest
from serving.handlers.handler import Handler
from serving.handlers.kinds import Array, Bytes, Kind, Text
from serving.model.preprocessing import Preprocessing
from serving.pictures import classifier
from serving.pictures.classifier import CLASS, LABEL, PROBABILITIES, Decoded, Steps
from serving.tensors import Array as NumpyArray
from serving.tensors import Images, Tensor, TensorSignature

IMAGE = "image"
TENSORS = TensorSignature(
    (Tensor("images", "UINT8", (-1, DIGITS.image_bytes)),),
    (Tensor("probabilities", "FP32", (-1, DIGITS.num_classes)),),
    is_batchable=True,
)
"""Those of digits.v1's model."""


@cache
def about() -> Preprocessing:
    """Return how pictures of digits become the input of digits.v1's model."""
    return Preprocessing(size=SIZE, resize="digits")


def decode(about: Preprocessing, content: bytes) -> Decoded:
    """Find the digit of a picture's file; see `from_picture`. The state is its image, (1, 784)."""
    image = from_picture(io.BytesIO(content))
    return Decoded([about.row(image.reshape(*SIZE, CHANNELS))], image)


def finish(
    about: Preprocessing, outputs: Sequence[NumpyArray], state: Images
) -> dict[str, NumpyArray]:
    """Return the digits, their labels and probabilities, and their images: `state`."""
    return {**classifier.finish(about, outputs, None), IMAGE: state}


STEPS = Steps(decode, finish)


class DigitPictures(Handler):
    """Files of pictures of one digit each in; the digit, its probabilities and its image out."""

    inputs: ClassVar[Mapping[str, Kind]] = {"picture": Bytes()}
    outputs: ClassVar[Mapping[str, Kind]] = {
        CLASS: Array("int64"),
        LABEL: Text(),
        PROBABILITIES: Array("float32", (-1,)),
        IMAGE: Array("uint8", (DIGITS.image_bytes,)),
    }

    def preprocess(self, picture: Sequence[bytes]) -> tuple[NumpyArray, Images]:
        """Return the model's input, and the images.

        Raises:
            InvalidRequest: a picture can't be read; the text says which, if there are several.
        """
        found = []
        for at, content in enumerate(picture):
            try:
                found.append(decode(about(), content))
            except InvalidRequest as err:
                raise type(err)(f"picture {at}: {err}" if picture[1:] else str(err)) from err
        rows = np.concatenate([each.inputs[0] for each in found])
        return rows, np.concatenate([each.state for each in found])

    def postprocess(self, *outputs: NumpyArray, state: Images) -> dict[str, Any]:
        """Return the digits; see `finish`."""
        return finish(about(), outputs, state)
