"""Judges pictures that should show one digit: digit-serving asks by the entry point `judge`."""

import math

from digit_reader import detector, numbers
from serving.errors import InvalidRequest
from serving.pictures.decoder import Page
from serving.tensors import Images

MIN_ODDS = -15.0
"""The log odds from which something alone may be a digit."""
SURE_ODDS = 2.0
"""From which it is one. Between the two its answer is doubted, and a picture that reads as several
digits in a row is refused: 146 of 150 numbers with a touching pair are, and none of 750 single
digits."""
TINY, TINY_FACTOR = 12, 0.9
"""Pixels of a side: of digits that fill 10 x 10 pixels 4 % are wrong, 2 % of the sure ones."""


def judge(page: Page, images: Images) -> tuple[int, float]:
    """Judge images of one digit, as `digit_classifier.pictures.Judge` describes it."""
    odds = detector.odds(detector.logits_alone(images))
    is_sure = odds[-1] >= SURE_ODDS
    best = -1 if is_sure else int(odds.argmax())
    if odds[best] < MIN_ODDS or (not is_sure and numbers.has_several_digits(page)):
        raise InvalidRequest("expected one digit, found several that touch, or no digit")
    factor = min((1 + math.exp(-SURE_ODDS)) / (1 + math.exp(-odds[best])), 1.0)
    if max(page.grey.shape) <= TINY:
        factor *= TINY_FACTOR
    return best, factor
