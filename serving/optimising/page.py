"""A page of the outcome: the picture, rate over agreement, and the table; one file of HTML."""

import math
from html import escape
from pathlib import Path

from serving.commandline import html_page
from serving.optimising import report
from serving.optimising.gate import GateLimits
from serving.optimising.result import Optimization, TriedCandidate

_STYLE = """\
  :root { --good: #1b7f4d; --bad: #b3402e; --plain: #2563a8; }
  @media (prefers-color-scheme: dark) {
    :root { --good: #4cc38a; --bad: #ef8672; --plain: #7bb0ea; }
  }
  p.lead { color: var(--ink); font-size: 1.1rem; }
  svg { display: block; width: 100%; max-width: 44rem; height: auto; margin: 1rem 0; }
  svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
  svg .muted { fill: var(--muted); }
  svg line { stroke: var(--rule); }
  svg .limit { stroke: var(--muted); stroke-dasharray: 4 4; }
  .good { fill: var(--good); color: var(--good); }
  .bad { fill: var(--paper); stroke: var(--bad); stroke-width: 2; }
  .plain { fill: var(--plain); }
  th, td { min-width: 4.5rem; }
  td:last-child { min-width: 12rem; }
  tr.chosen th, tr.chosen td { font-weight: 600; }
"""
_WIDTH, _HEIGHT = 460, 300
"""Of the picture: on a telephone of 390 pixels, its text of 13 has 11."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 446, 26, 250
_NINES = (0.5, 0.9, 0.99, 0.999, 0.9999)
_LEAST_MISS = 1e-5
"""Closer than this to full agreement is the picture's right end."""
_HEADINGS = (
    "candidate", "gain alone", "gain with many callers", "size", "agreement", "outcome",
)  # fmt: skip


def write(found: Optimization, limits: GateLimits, folder: Path) -> Path:
    """Write NAME.html and NAME.json; return the page.

    Raises:
        OSError: the folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{found.name}.json").write_text(report.document(found, limits), "utf-8")
    path = folder / f"{found.name}.html"
    path.write_text(render(found), "utf-8")
    return path


def render(found: Optimization) -> str:
    """Return the page."""
    samples = (
        f"{found.num_calibration:,} samples to calibrate with, {found.num_held_out:,} held out for "
        f"the gate. {found.processor}."
    )
    body = [
        f'<p class="lead">{escape(found.reason[:1].upper() + found.reason[1:])}.</p>',
        f"<p>{escape(samples)}</p>",
        *(f"<p>{escape(each)}.</p>" for each in found.notes),
    ]
    if any(each.rates is not None for each in found.tried):
        body.append(_picture(found))
    for each in found.served:
        who = f"{each.callers} caller{'s' * (each.callers > 1)}"
        text = f"{each.rate:,.0f} answers a second, fp32 {each.fp32_rate:,.0f}: {each.gain} times"
        body.append(f"<p>Through the server, {who}: {text}.</p>")
    if found.tried:
        body.append(_table(found))
        body.append(
            "<p>Gains are medians over fp32's rate in the same rounds, with least and greatest. "
            "With many callers: batches of the size that the server runs, on one thread.</p>"
        )
    return html_page.page(f"{found.name}, optimized", "\n".join(body), _STYLE)


def _table(found: Optimization) -> str:
    rows = [*report.cells(found)]
    named = [[f"{number} {first}" if number else first, *rest]
             for number, (first, *rest) in enumerate(rows)]  # fmt: skip
    chosen = {str(each.candidate) for each in found.tried if report.is_chosen(each, found)}
    marked = next((at for at, (first, *_) in enumerate(rows) if first in chosen), None)
    return html_page.region("candidates", html_page.table([_HEADINGS, *named], marked))


def _picture(found: Optimization) -> str:
    """Draw a dot for each candidate: agreement along x, gain with many callers along y."""
    shown = [each for each in found.tried if each.rates is not None]
    top = max(1.5, *(_gain(each) for each in shown)) * 1.08
    ticks = [each for each in (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16) if each <= top]
    ticks = ticks if len(ticks) < 7 else [each for each in ticks if each >= 1]
    parts = [_grid(top, ticks)]
    numbers = {each.candidate: at for at, each in enumerate(report.ordered(found), 1)}
    taken: list[tuple[float, float]] = []
    for each in sorted(shown, key=lambda each: not report.is_chosen(each, found)):
        x, y = _x(_agreement(each)), _y(_gain(each), top)
        kind = "good" if report.is_chosen(each, found) else "bad" if each.reason else "plain"
        label = f"{each.candidate}: {_gain(each):.2f} times, {report.agreement(each.verdict)}"
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="6"><title>{escape(label)}</title>'
            "</circle>"
        )
        at = _free(x, y, taken)
        taken.append(at)
        parts.append(f'<text x="{at[0]:.1f}" y="{at[1]:.1f}">{numbers[each.candidate]}</text>')
    names = "; ".join(
        f"{numbers[each.candidate]} {each.candidate}, {_gain(each):.2f} times" for each in shown
    )
    alt = f"Rate with many callers over agreement: {names}"
    drawing = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(alt)}">'
        f"{''.join(parts)}</svg>"
    )
    return (
        f"{drawing}<p>A dot for each candidate, numbered as in the table. Filled ones pass the "
        "gate and are faster, the green one is chosen; rings are not taken.</p>"
    )


def _grid(top: float, ticks: list[float]) -> str:
    parts = []
    for tick in ticks:
        y = _y(tick, top)
        kind = ' class="limit"' if tick == 1 else ""
        parts.append(f'<line{kind} x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="muted" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for share in _NINES:
        x = _x(share)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_BOTTOM}"/>')
        parts.append(
            f'<text class="muted" x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">'
            f"{100 * share:g} %</text>"
        )
    middle = (_LEFT + _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_BOTTOM + 38}" text-anchor="middle">agreement with fp32</text>'
    )
    parts.append(f'<text x="{_LEFT - 30}" y="{_TOP - 12}">times fp32\'s rate</text>')
    return "".join(parts)


def _free(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """Return a place for a number beside its dot where no other number is."""
    for dx, dy in ((9, -6), (9, 15), (-17, -6), (-17, 15), (9, 27), (9, -18), (-17, 27)):
        place = x + dx, y + dy
        if all(abs(place[0] - a) > 15 or abs(place[1] - b) > 12 for a, b in taken):
            return place
    return x + 9, y - 6


def _agreement(each: TriedCandidate) -> float:
    return each.verdict.agreement if each.verdict is not None else 0.0


def _gain(each: TriedCandidate) -> float:
    return each.busy.median if each.busy is not None else 0.0


def _x(share: float) -> float:
    """Return the place of a share: by the logarithm of what misses to 1, from 50 % on."""
    miss = min(0.7, max(_LEAST_MISS, 1 - share))
    span = math.log(0.7 / _LEAST_MISS)
    return _LEFT + (_RIGHT - _LEFT) * math.log(0.7 / miss) / span


def _y(gain: float, top: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * min(gain, top) / top
