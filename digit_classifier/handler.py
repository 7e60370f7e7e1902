"""The handler of pictures of one digit: finds it, and says which it is."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from digit_classifier.pictures import CHANNELS, SIZE, read_digit
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

    def read(self, content: bytes) -> tuple[Images, float]:
        """Find the digit of a file; see `read_digit`."""
        image, factor = read_digit(io.BytesIO(content))
        return image.reshape(*SIZE, CHANNELS), factor

    def state_of(
        self, images: Sequence[Images] | Images, factors: Sequence[float]
    ) -> dict[str, Any]:
        """Return what `postprocess` gets: the images, and a factor for the answer to each."""
        return {"factors": factors, "images": np.reshape(images, (len(images), -1))}

    def postprocess(self, *outputs: NumpyArray, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the digits; see `PictureClassifier`."""
        return {**super().postprocess(*outputs, state=state), IMAGE: state["images"]}
