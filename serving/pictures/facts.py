"""Numbers as JSON has them: the same on the command line and over HTTP."""

import base64
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.pictures.numbers import FoundDigit, Number

_NUM_DECIMALS = 6


def number_facts(
    number: "Number", reject_below: float, *, with_images: bool = False
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
        "digits": [_digit_facts(digit, with_images) for digit in number.digits],
    }


def _digit_facts(digit: "FoundDigit", with_images: bool) -> dict[str, Any]:
    facts = {
        "digit": digit.digit,
        "probability": round(digit.probability, _NUM_DECIMALS),
        "probabilities": [round(p, _NUM_DECIMALS) for p in digit.probabilities],
        "box": digit.box._asdict(),
    }
    return facts | ({"image": base64.b64encode(digit.image).decode()} if with_images else {})
