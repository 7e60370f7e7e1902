"""Numbers that were found, and as JSON has them: the same on the command line and over HTTP."""

import base64
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

MAX_LENGTH = 200
"""Characters of a pattern."""
_NUM_DECIMALS = 6


class Box(NamedTuple):
    """A rectangle in the picture, in its pixels, the camera's orientation applied."""

    left: int
    top: int
    right: int
    """Exclusive."""
    bottom: int
    """Exclusive."""


@dataclass(frozen=True, slots=True)
class FoundDigit:
    """A digit of a number."""

    digit: int
    probability: float
    """Probability of that digit, 0 to 1."""
    probabilities: tuple[float, ...]
    """Probability of each class: of the network and the detector together."""
    box: Box
    image: bytes
    """What the network saw: 784 bytes."""


class Field(NamedTuple):
    """Digits between two marks of a number, or a mark."""

    text: str
    box: Box


@dataclass(frozen=True, slots=True)
class Number:
    """A number that was found in a picture."""

    text: str
    """Its digits and marks, such as "90210", "-3,14" or "12/05/2026"."""
    probability: float
    """That all of its text is right, and that there is nothing else, 0 to 1."""
    digits: tuple[FoundDigit, ...]
    """From the left to the right."""
    fields: tuple[Field, ...]
    """The digits between marks, and the marks `.`, `,`, `-`, `/` and `:`."""
    turned: int
    """Degrees by which it is turned clockwise in the picture: 0, 90, 180 or 270."""
    sheet: tuple[tuple[int, int], ...] = ()
    """Four corners, x and y, of the photographed sheet that it lies on; empty if none was found."""

    @property
    def box(self) -> Box:
        """The rectangle around all fields."""
        sides = np.array([field.box for field in self.fields])
        return Box(*sides[:, :2].min(0).tolist(), *sides[:, 2:].max(0).tolist())


def number_facts(
    number: Number, reject_below: float, *, with_images: bool = False
) -> dict[str, Any]:
    """Return a number as a dictionary that `json.dumps` accepts.

    Args:
        number: to describe.
        reject_below: `rejected` is whether it is less probable than this.
        with_images: add what the network saw of each digit, 784 bytes in base64.
    """
    return {
        "text": number.text,
        "probability": round(number.probability, _NUM_DECIMALS),
        "rejected": number.probability < reject_below,
        "box": number.box._asdict(),
        "turned": number.turned,
        "sheet": number.sheet,
        "fields": [{"text": text, "box": box._asdict()} for text, box in number.fields],
        "digits": [_digit_facts(digit, with_images) for digit in number.digits],
    }


def _digit_facts(digit: FoundDigit, with_images: bool) -> dict[str, Any]:
    facts = {
        "digit": digit.digit,
        "probability": round(digit.probability, _NUM_DECIMALS),
        "probabilities": [round(p, _NUM_DECIMALS) for p in digit.probabilities],
        "box": digit.box._asdict(),
    }
    return facts | ({"image": base64.b64encode(digit.image).decode()} if with_images else {})
