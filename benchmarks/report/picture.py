"""The headline as one narrow SVG: rates by calls in flight, then latency by percentile."""

from collections.abc import Iterable, Sequence
from html import escape
from statistics import median

from benchmarks.report.tables import Figures, seconds, short
from benchmarks.run.result_file import Cell, Results

_WIDTH, _LABEL, _LINE, _TEXT = 360, 96, 18, 86
"""Pixels: of all, of a bar's name before it, from bar to bar, of its figure behind it."""
_OURS = ("grpcio", "h2", "http")
"""How the names of our own targets begin."""
_STYLE = """
text { font: 12px sans-serif; fill: #222 } .title { font-weight: bold }
rect { fill: #9ab } .ours { fill: #17c } svg { background: #fff }
@media (prefers-color-scheme: dark) { text { fill: #ddd } svg { background: #181818 } }
"""

Bar = tuple[str, float, str]
"""A name, a value, and its text."""


def svg(results: Results) -> str:
    """Draw the closed loops, and the latency of a single caller; empty without either."""
    figures, groups = Figures(results), list[tuple[str, list[Bar]]]()
    loops = [cell for cell in figures.rounds if cell.scenario in ("ClosedLoop", "NewHeaders")]
    for task in dict.fromkeys(cell.task for cell in loops):
        groups.append((f"{task} in flight, calls/s", [*_rates(figures, task)]))
    alone = [cell for cell in figures.rounds if cell.scenario == "SingleStream"]
    for share in (0.5, 0.99, 0.999) if alone else ():
        bars = [(str(cell.spec), _latency(figures, cell, share)) for cell in alone]
        title = f"One caller, p{100 * share:g}"
        groups.append((title, [(name, value, seconds(value)) for name, value in bars]))
    return _draw([group for group in groups if group[1]]) if groups else ""


def _latency(figures: Figures, cell: Cell, share: float) -> float:
    return median(sample.latency.quantile(share) for sample in figures.valid(cell))


def _rates(figures: Figures, task: str) -> Iterable[Bar]:
    """Yield rates, ours with the ratio to the strongest of the others."""
    rates = {
        str(cell.spec): figures.of(cell) or 0.0 for cell in figures.rounds if cell.task == task
    }
    strongest = max((rate for name, rate in rates.items() if not name.startswith(_OURS)), default=0)
    for name, rate in rates.items():
        is_ours = strongest and name.startswith(_OURS)
        yield name, rate, short(rate) + (f" ({rate / strongest:.2g} ×)" if is_ours else "")


def _draw(groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    parts, y = [], 0
    for title, bars in groups:
        y += _LINE + 8
        parts.append(f'<text class="title" x="4" y="{y}">{escape(title)}</text>')
        longest = max(value for _, value, _ in bars)
        for name, value, text in bars:
            y += _LINE
            width = max(1.0, (_WIDTH - _LABEL - _TEXT) * value / longest)
            ours = ' class="ours"' if name.startswith(_OURS) else ""
            parts += [
                f'<text x="4" y="{y}">{escape(name)}</text>',
                f'<rect{ours} x="{_LABEL}" y="{y - 10}" width="{width:.1f}" height="12"/>',
                f'<text x="{_LABEL + width + 4:.1f}" y="{y}">{escape(text)}</text>',
            ]
    said = "; ".join(f"{t}: " + ", ".join(f"{n} {x}" for n, _, x in bars) for t, bars in groups)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 12}" width="{_WIDTH}"'
        f' role="img" aria-label="{escape(said)}"><style>{_STYLE}</style>\n'
        + "\n".join(parts) + "\n</svg>\n"
    )  # fmt: skip
