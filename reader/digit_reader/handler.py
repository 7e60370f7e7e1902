"""The handler of pictures with numbers."""

import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

import serving
from digit_reader.facts import number_facts
from digit_reader.reader import find_candidates
from serving.tensors import Images, Probabilities

MAX_CANDIDATES = 4000
"""The most candidates of a picture: some 400 digits, and a second of work."""


class NumberPictures(serving.Handler):
    """Files of pictures in; the numbers on each out, as JSON.

    Parameters: `pattern`, see `read_numbers`; `drawing`, whether all ink may be one number;
    `reject_below`, and `image`, whether digits come with their images.
    """

    inputs: ClassVar = {"picture": serving.Bytes()}
    outputs: ClassVar = {"numbers": serving.Text()}

    def preprocess(self, picture: Sequence[bytes]) -> tuple[Images, Any]:
        """Return the images of what may be digits, and a `Reading` of each picture."""
        readings = [find_candidates(io.BytesIO(each), MAX_CANDIDATES) for each in picture]
        images = [each.images for each in readings]
        return np.concatenate(images), [*zip(readings, map(len, images), strict=True)]

    def postprocess(
        self, *outputs: Probabilities, state: Any, parameters: Mapping[str, Any]
    ) -> list[str]:
        """Return the numbers of each picture."""
        (probabilities,) = outputs
        start, texts = 0, []
        for reading, number in state:
            part = probabilities[start : start + number]
            numbers = _read(reading, parameters)(part) if number else []
            facts = [
                number_facts(
                    each,
                    parameters.get("reject_below", 0.0),
                    with_images=parameters.get("image", False),
                )
                for each in numbers
            ]
            texts.append(json.dumps(facts, separators=(",", ":")))
            start += number
        return texts


def _read(reading: Any, parameters: Mapping[str, Any]) -> Any:
    """Return the function from probabilities to numbers."""
    if (pattern := parameters.get("pattern")) is not None:
        return partial(reading.fitting_numbers, pattern=pattern)
    return reading.drawn_numbers if parameters.get("drawing") else reading.numbers
