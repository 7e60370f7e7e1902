"""Finds the marks between digits: points, commas, hyphens, colons, and slashes.

Small marks are separate parts, recognised by their place and size beside the digits next to them. A
slash is as high as a digit, and is first read as a 1: it is recognised by its height, slope and
straightness, and by whether a date results. Each constant was chosen on validation pages
(`python -m experiments evaluate --digits validation`), on a plateau.
"""

import itertools
import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from digit_classifier.normalizer import Numbers, labelled
from digit_reader.ink.rows import Row
from digit_reader.text.cuts import MIN_SIZE, Pieces, pen_width

MAX_DOTS = 16
"""The most dots of a row that are looked at in pairs."""
MAX_HEIGHT, MIN_TALL = 0.75, 0.55
"""Shares of the row's height: a higher part is no small mark, and a lower one no digit."""
DATE = re.compile(
    r"(0?[1-9]|[12]\d|3[01])/(0?[1-9]|1[0-2])/((19|20)?\d\d)"
    r"|(0?[1-9]|1[0-2])/(0?[1-9]|[12]\d|3[01])/((19|20)?\d\d)"
    r"|(19|20)\d\d/(0[1-9]|1[0-2])/([0-2]\d|3[01])"
)
DATE_ODDS, SLASH_ODDS = 5.0, -5.0
"""Log odds of two slashes that make a date, and of each other one, before it is looked at."""
MIN_ODDS, WEAK_ODDS = 0.7, -4.0
"""Log odds of a small mark, and of one that is read only if a pattern needs it."""
MIN_GAP = 0.04
"""Share of the row's height between a hyphen and a digit."""
MIN_TOUCHING_ODDS, TOUCHING_HYPHEN, TOUCHING_POINT, MAX_CUT_PIECES = 2.0, 0.9, 0.0, 3
"""A mark that touches a digit, or is above or below one: its least log odds; what they count as for
a hyphen and for another mark, which is more often a digit's; and its most pieces."""
MIN_SLASH = -3.0
"""Log odds of a stroke that may be a slash of a date."""


class Mark(NamedTuple):
    """A mark of a row, if it is not a part of a digit."""

    text: str
    probability: float
    """Probability of this mark among marks."""
    odds: float
    """The log odds that it is a mark."""
    box: Numbers
    """(4,) top, left, bottom, right in the row."""
    ways: tuple[tuple[str, float], ...]
    """Each mark that it may be, and its log odds."""
    touches: bool = False
    """Whether it is so near to a digit, or cut from it, that only the detector tells them apart."""

    def inside(self, pieces: Pieces) -> Numbers:
        """Return which of a row's pieces it is."""
        boxes = pieces.boxes
        inside = (boxes[:, :2] >= self.box[:2]) & (boxes[:, 2:] <= self.box[2:])
        return np.flatnonzero(inside.all(1))


def find_marks(row: Row, pieces: Pieces) -> list[Mark]:
    """Find the small marks of a row; the bar of a 5 may look like one, and a piece of a digit."""
    labels, boxes = labelled(row.mask)
    heights = boxes[:, 2] - boxes[:, 0]
    tall = boxes[heights >= MIN_TALL * row.height]
    if not len(tall):
        return []
    small = np.flatnonzero(heights < MAX_HEIGHT * row.height).tolist()
    sizes, pen = np.bincount(labels.ravel())[1:], pen_width(row) / row.height
    places = [_Place.of(boxes[part], sizes[part], tall, row.height, pen) for part in small]
    marks: list[Mark] = []
    used: set[int] = set()
    dots = [each for each in zip(small, places, strict=True) if each[1].dot_odds() > 0]
    for (part, place), (other, above) in itertools.permutations(dots[:MAX_DOTS], 2):
        odds = place.colon_odds(above)
        if odds > MIN_ODDS and not used & {part, other}:
            box = np.append(
                np.minimum(boxes[part, :2], boxes[other, :2]),
                np.maximum(boxes[part, 2:], boxes[other, 2:]),
            )
            marks.append(Mark(":", _share(odds), odds, box, ((":", odds),)))
            used |= {part, other}
    least = MIN_SIZE * row.height**2
    for part, place in zip(small, places, strict=True):
        ways = place.ways()
        (text, odds), (_, other_odds) = ways[:2]
        if part in used:
            continue
        if (
            odds <= MIN_ODDS
            and sizes[part] >= least
            and (mark := _touching_mark(place, boxes[part]))
        ):
            marks.append(mark)
        elif odds > WEAK_ODDS:
            sure = _share(odds) * _share(odds - other_odds)
            marks.append(Mark(text, sure, odds, boxes[part], ways))
    return marks + _touching_marks(row, pieces, pen)


def _touching_marks(row: Row, pieces: Pieces, pen: float) -> list[Mark]:
    """Find marks among the pieces that are cut from digits; none of them is sure."""
    heights = pieces.boxes[:, 2] - pieces.boxes[:, 0]
    sizes = np.bincount(pieces.labels.ravel(), minlength=len(heights) + 1)[1:]
    is_tall = heights >= MIN_TALL * row.height
    is_cut = ~is_tall & np.isin(pieces.parts, pieces.parts[is_tall])
    marks: list[Mark] = []
    used = 0
    for first, size in itertools.product(
        np.flatnonzero(is_cut).tolist(), range(MAX_CUT_PIECES, 0, -1)
    ):
        span = slice(first, first + size)
        if first < used or span.stop > len(heights) or not is_cut[span].all():
            continue
        box = np.append(pieces.boxes[span, :2].min(0), pieces.boxes[span, 2:].max(0))
        place = _Place.of(box, int(sizes[span].sum()), pieces.boxes[is_tall], row.height, pen)
        if mark := _touching_mark(place, box):
            marks.append(mark)
            used = span.stop
    return marks


def _touching_mark(place: "_Place", box: Numbers) -> Mark | None:
    """Return a mark beside, above, below or cut from a digit, if it has a mark's shape."""
    place = place._replace(gap=max(place.gap, 2 * MIN_GAP), overlap=min(place.overlap, 0.0))
    ways = place.ways()
    (text, odds), (_, other_odds) = ways[:2]
    if odds <= MIN_TOUCHING_ODDS:
        return None
    most = TOUCHING_HYPHEN if text == "-" else TOUCHING_POINT
    sure = _share(most) * _share(odds - other_odds)
    lower = tuple((text, min(odds, most)) for text, odds in ways)
    return Mark(text, sure, most, box, lower, touches=True)


class _Place(NamedTuple):
    """Where a small part is beside the digits next to it, in the row's heights."""

    height: float
    width: float
    bottom: float
    """Below the digits' feet; negative: above."""
    middle: float
    """The same."""
    overlap: float
    """Share of its width that is above, below or within digits."""
    gap: float
    """To the nearer digit, to the left or right."""
    left: float
    """From the left of the row."""
    fill: float
    """Share of its box that is ink."""
    pen: float
    """Usual width of strokes."""

    @classmethod
    def of(cls, box: Numbers, size: int, tall: Numbers, unit: float, pen: float) -> "_Place":
        top, left, bottom, right = box
        is_left = tall[:, 1] + tall[:, 3] < left + right
        near = [
            side[np.abs(side[:, edge] - box[4 - edge]).argmin()]
            for side, edge in ((tall[is_left], 3), (tall[~is_left], 1))
            if len(side)
        ]
        feet = np.mean([digit[2] for digit in near])
        shared = max(min(right, digit[3]) - max(left, digit[1]) for digit in near)
        width, height = right - left, bottom - top
        return cls(
            *map(
                float,
                (
                    height / unit,
                    width / unit,
                    (bottom - feet) / unit,
                    ((top + bottom) / 2 - feet) / unit,
                    max(0, shared) / width,
                    -shared / unit,
                    left / unit,
                    size / (width * height),
                    pen,
                ),
            )
        )

    def ways(self) -> tuple[tuple[str, float], ...]:
        """Return each mark beside digits that it may be, and its log odds, the likeliest first."""
        ways = (".", self.point_odds()), (",", self.comma_odds()), ("-", self.hyphen_odds())
        return tuple(sorted(ways, key=lambda way: -way[1]))

    def dot_odds(self) -> float:
        """Return the log odds of a dot anywhere beside digits."""
        sides = sorted((self.height, self.width))
        return min(
            _within(sides[0], 0.045, 0.32, 0.015),
            _within(sides[1], 0.055, 0.36, 0.02),
            _within(sides[1] / sides[0], 0, 2.1, 0.3),
            _within(self.overlap, -1, 0.4, 0.12),
            _within(self.fill, 0.5, 2, 0.05),
            _within(sides[0], 0, max(0.24, 2.5 * self.pen), 0.02),
        )

    def point_odds(self) -> float:
        return min(self.dot_odds(), _within(self.bottom, -0.2, 0.19, 0.03))

    def comma_odds(self) -> float:
        return min(
            _within(self.height, 0.14, 0.75, 0.03),
            _within(self.width, 0.04, 0.5, 0.03),
            _within(self.height / self.width, 0.8, 6, 0.12),
            _within(self.bottom, 0.08, 0.65, 0.03),
            _within(self.middle, -0.17, 0.45, 0.04),
            _within(self.overlap, -1, 0.7, 0.12),
        )

    def hyphen_odds(self) -> float:
        return min(
            _within(self.width, 0.16, 0.95, 0.04),
            _within(self.height, 0.03, 0.3, 0.015),
            _within(self.width / self.height, 1.5, 40, 0.25),
            _within(self.middle, -0.78, -0.22, 0.04),
            _within(self.gap, MIN_GAP, 9, 0.015),
            _within(self.overlap, -1, 0.3, 0.08),
        )

    def colon_odds(self, above: "_Place") -> float:
        """Return the log odds that this is the lower dot of a colon, and the other the upper."""
        lefts, rights = (self.left, above.left), (self.left + self.width, above.left + above.width)
        apart = (max(lefts) - min(rights)) / max(self.width, above.width)
        return min(
            self.dot_odds(),
            above.dot_odds(),
            _within(self.bottom, -0.35, 0.2, 0.04),
            _within(self.middle - above.middle, 0.22, 0.8, 0.04),
            _within(above.middle, -1, -0.3, 0.05),
            _within(apart, -9, 0.3, 0.1),
        )


def slash_odds(image: npt.NDArray[np.uint8], box: Numbers, near: Numbers, unit: float) -> float:
    """Return the log odds that a stroke that looks like a 1 is a slash, by its shape.

    Args:
        image: (784,) uint8, as MNIST's.
        box: (4,) of it in the row.
        near: (N, 4) boxes of the other digits.
        unit: the row's height.
    """
    ink = image.reshape(28, 28).astype(np.float64)
    rows = np.flatnonzero(ink.sum(1) > 80)
    if len(rows) < 5:
        return -9.0
    middles = ink[rows] @ np.arange(28) / ink[rows].sum(1)
    across, along = middles - middles.mean(), rows - rows.mean()
    slope = float(along @ across / (along @ along))
    bend = float(np.abs(across - slope * along).max())
    usual = float(np.median(near[:, 2] - near[:, 0])) if len(near) else unit
    height = float(box[2] - box[0]) / max(usual, 1)
    return float(
        np.clip((height - 1.1) / 0.06, -2, 2.5)
        + np.clip((-slope - 0.15) / 0.05, -4, 2)
        + np.clip((0.5 - bend) / 0.15, -6, 1.5)
    )


def slashes(text: str, odds: dict[int, float]) -> tuple[set[int], float]:
    """Choose which strokes of a number are slashes.

    Args:
        text: the number's characters, each stroke as a 1.
        odds: of each stroke, by its place in the text: see `slash_odds`.

    Returns:
        The places of slashes, and how probable they are among all ways.
    """
    ways: dict[tuple[int, ...], float] = {(): 0.0}
    shape = tuple(at for at in odds if odds[at] + SLASH_ODDS > 0 and 0 < at < len(text) - 1)
    if shape:
        ways[shape] = sum(odds[at] + SLASH_ODDS for at in shape)
    likely = [at for at in odds if odds[at] > MIN_SLASH]
    for pair in itertools.combinations(likely[:12], 2):
        if DATE.fullmatch("".join("/" if at in pair else c for at, c in enumerate(text))):
            ways[pair] = DATE_ODDS + sum(odds[at] for at in pair)
    best = max(ways, key=lambda way: ways[way])
    total = float(np.logaddexp.reduce(list(ways.values())))
    return set(best), float(np.exp(ways[best] - total))


def _within(value: float, low: float, high: float, scale: float) -> float:
    """Return how far a value is within limits, as log odds from -6 to 6."""
    return max(-6.0, min(6.0, min(value - low, high - value) / scale))


def _share(odds: float) -> float:
    return float(1 / (1 + np.exp(-odds)))
