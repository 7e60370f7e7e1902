"""Pages of dates, decimals, groups and single digits by other hands, upright and turned."""

from collections.abc import Callable

import numpy as np

from training.data.mnist import Examples
from training.lab.made.hands import Levels, set_in_font, write

Made = tuple[Levels, str]
"""The ink of a page, 255 where there is some, and the text on it."""
Make = Callable[[Examples, np.random.Generator], Made]


def _number(rng: np.random.Generator, low: int, high: int) -> str:
    return "".join(map(str, rng.integers(0, 10, rng.integers(low, high + 1))))


def _date(rng: np.random.Generator) -> str:
    day, month, mark = rng.integers(1, 29), rng.integers(1, 13), str(rng.choice([*"///.-"]))
    year = str(rng.integers(1950, 2040))[rng.choice([0, 0, 2]) :]
    return f"{day:02}{mark}{month:02}{mark}{year}"


def _decimal(rng: np.random.Generator) -> str:
    whole = str(rng.integers(1, 1000))
    sign, mark = str(rng.choice(["", "", "-"])), str(rng.choice([*",."]))
    return f"{sign}{whole}{mark}{_number(rng, 2, 2)}"


def _group(rng: np.random.Generator) -> str:
    kind = rng.integers(4)
    if kind == 0:
        return " ".join(_number(rng, 4, 4) for _ in range(4))
    if kind == 1:
        return f"{rng.integers(10, 24)}:{rng.integers(10, 60)}"
    return f"{_number(rng, 3, 5)}-{_number(rng, 3, 5)}"


def _few(rng: np.random.Generator) -> str:
    return str(rng.choice(["1", "7", "11", "17", "2", "4", "9", "0"]))


def _small(_: Examples, rng: np.random.Generator) -> Made:
    text = _number(rng, 3, 8)
    return np.pad(set_in_font(text, rng.uniform(9, 16), rng), 12), text


def _written(
    text: Callable[[np.random.Generator], str],
    blank: tuple[float, float] = (0.12, 0.35),
    quarters: int = 0,
) -> Make:
    def make(digits: Examples, rng: np.random.Generator) -> Made:
        made = text(rng)
        return np.rot90(write(made, digits, rng, blank), -quarters), made

    return make


TEXTS: dict[str, Make] = {
    "other hands": _written(lambda rng: _number(rng, 3, 7)),
    "dates": _written(_date),
    "decimals": _written(_decimal),
    "groups": _written(_group),
    "wide gaps": _written(lambda rng: _number(rng, 4, 4), (0.7, 2.0)),
    "one or two digits": _written(_few, (0.2, 0.8)),
    "small print": _small,
    **{
        f"turned {90 * quarters}": _written(lambda rng: _number(rng, 4, 7), quarters=quarters)
        for quarters in (1, 2, 3)
    },
}
"""The kinds of pages. Digits are MNIST's, UCI optdigits', drawn strokes, or set in fonts; marks are
drawn with a pen, or are the font's."""
