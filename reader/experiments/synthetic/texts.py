"""Pages of dates, decimals, groups and single digits by other hands, upright and turned."""

from collections.abc import Callable

import numpy as np

from experiments.synthetic.hands import Writers, set_in_font, write
from experiments.synthetic.strings import Composed

Make = Callable[[Writers, np.random.Generator], Composed]


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


def _small(writers: Writers, rng: np.random.Generator) -> Composed:
    return set_in_font(_number(rng, 3, 8), rng.uniform(9, 16), rng, writers.fonts).padded(12)


def _written(
    text: Callable[[np.random.Generator], str],
    blank: tuple[float, float] = (0.12, 0.35),
    quarters: int = 0,
) -> Make:
    def make(writers: Writers, rng: np.random.Generator) -> Composed:
        return write(text(rng), writers, rng, blank).turned(-quarters)

    return make


def _with_marks(rng: np.random.Generator) -> str:
    return [_date, _decimal, _group][int(rng.integers(3))](rng)


def by_fonts(writers: Writers, rng: np.random.Generator) -> Composed:
    """Write a number, a date, a decimal or a group in one of the writers' fonts."""
    text = _number(rng, 3, 7) if rng.random() < 0.5 else _with_marks(rng)
    font = str(writers.fonts[int(rng.integers(len(writers.fonts)))])
    return write(text, writers, rng, (0.12, 0.35), font)


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
TOUCHING: dict[str, Make] = {"touching marks": _written(_with_marks, (-0.1, 0.15))}
"""The same, with marks so near to digits that some touch."""
