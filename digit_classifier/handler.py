"""The handler of pictures of one digit: finds it, and says which it is."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from digit_classifier.pictures import CHANNELS, SIZE, from_picture
from digit_classifier.predictions import DIGITS
from serving.handlers.kinds import Array, Kind
from serving.handlers.picture_classifier import PictureClassifier
from serving.model.preprocessing import Preprocessing
from serving.tensors import Array as NumpyArray
from serving.tensors import Images, Tensor, TensorSignature

IMAGE = "image"
TENSORS = TensorSignature(
    (Tensor("images", "UINT8", (-1, DIGITS.image_bytes)),),
    (Tensor("probabilities", "FP32", (-1, DIGITS.num_classes)),),
    is_batchable=True,
)
"""Those of digits.v1's model."""


@dataclass(unsafe_hash=True)
class DigitPictures(PictureClassifier):
    """Files of pictures of one digit each in; the digit, its probabilities and its image out."""

    description: Preprocessing = field(
        default_factory=partial(Preprocessing, size=SIZE, resize="digits")
    )

    outputs: ClassVar[Mapping[str, Kind]] = {
        **PictureClassifier.outputs,
        IMAGE: Array("uint8", (DIGITS.image_bytes,)),
    }

    def read(self, content: bytes) -> Images:
        """Find the digit of a file: (28, 28, 1) uint8; see `from_picture`."""
        return from_picture(io.BytesIO(content)).reshape(*SIZE, CHANNELS)

    def state_of(self, images: Sequence[Images] | Images) -> Images:
        """Return what `postprocess` gets: the images, (N, 784)."""
        return np.reshape(images, (len(images), -1))

    def postprocess(self, *outputs: NumpyArray, state: Images) -> dict[str, Any]:
        """Return the digits; see `PictureClassifier`."""
        return {**super().postprocess(*outputs, state=state), IMAGE: state}
