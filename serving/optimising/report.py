"""The outcome in words: a table for a terminal, and JSON for programs."""

import json
import statistics
from dataclasses import asdict
from typing import Any

from serving.optimising.gate import GateLimits, GateVerdict
from serving.optimising.result import Optimization, TriedCandidate

_HEADINGS = ("", "alone", "many callers", "size", "agreement", "")
_MEGABYTE = 1e6


def table(found: Optimization) -> str:
    """Return the candidates as a table, a line for each, the fastest first."""
    rows = [list(_HEADINGS), *cells(found)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def cells(found: Optimization) -> list[list[str]]:
    """Return the table's rows: fp32 first, then the candidates."""
    first = ["fp32", "1", "1", _size(found.fp32_bytes), "", _batching(is_batched=found.is_batched)]
    return [first, *(_cells_of(each, found) for each in ordered(found))]


def ordered(found: Optimization) -> list[TriedCandidate]:
    """Return the candidates, the chosen one first, then the passing ones, then by their gains."""
    return sorted(
        found.tried,
        key=lambda each: (not is_chosen(each, found), bool(each.reason), -each.gain),
    )


def is_chosen(each: TriedCandidate, found: Optimization) -> bool:
    """Return whether it is the best."""
    return found.chosen is not None and each.candidate == found.chosen.candidate


def _cells_of(each: TriedCandidate, found: Optimization) -> list[str]:
    reason = "chosen" if is_chosen(each, found) else each.reason or "passes"
    if each.rates is not None and each.is_batched != found.is_batched:
        reason = f"{reason}; {_batching(is_batched=each.is_batched)}"
    return [
        str(each.candidate),
        "" if each.alone is None else str(each.alone),
        "" if each.busy is None else str(each.busy),
        _size(each.num_bytes),
        agreement(each.verdict),
        reason,
    ]


def agreement(verdict: GateVerdict | None) -> str:
    """Return how far a candidate agrees; empty if it could not be run."""
    return "" if verdict is None else str(verdict)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _MEGABYTE:.1f} MB" if num_bytes else ""


def _batching(*, is_batched: bool) -> str:
    return "batched" if is_batched else "not batched"


def lines(found: Optimization) -> list[str]:
    """Return all that a terminal shows."""
    samples = f"{found.num_calibration:,} samples to calibrate, {found.num_held_out:,} held out"
    shown = [f"{found.name}: {samples}; {found.processor}", *found.notes]
    if found.tried:
        shown += ["", table(found), ""]
        shown += ["Gains are medians over fp32's rate in the same rounds, least to greatest."]
    shown += [
        f"Through the server, {each.callers} caller{'s' * (each.callers > 1)}: {each.rate:,.0f} "
        f"answers/s, fp32 {each.fp32_rate:,.0f}: {each.gain} times"
        for each in found.served
    ]
    shown.append(found.reason[:1].upper() + found.reason[1:])
    return shown


def document(found: Optimization, limits: GateLimits) -> str:
    """Return all figures as JSON."""
    facts: dict[str, Any] = asdict(found)
    facts |= {"limits": asdict(limits)}
    for name in ("version", "page"):
        facts[name] = None if facts[name] is None else str(facts[name])
    return json.dumps(facts, indent=2, default=float)


def rate(rates: tuple[float, ...]) -> str:
    """Return a rate as people read it."""
    middle = statistics.median(rates)
    return f"{middle:,.0f}" if middle >= 10 else f"{middle:.2g}"
