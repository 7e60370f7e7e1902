"""Finds the most probable numbers of a row that fit a pattern, and how probable they are.

Digits, slashes, marks, blanks and left-out ink are the edges of a lattice, whose paths are read by
the pattern's states. One pass from the right to the left finds the best path, another one adds up
all paths, and a third one those with the best path's texts.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from digit_classifier.normalizer import Numbers
from digit_reader.text import pattern
from digit_reader.text.lines import BIAS, MARK_SHARE, Choice, Line, skips
from digit_reader.text.marks import slash_odds
from digit_reader.text.pattern import BLANK, DIGITS, END, LETTERS, OTHER, STAY, SYMBOLS
from digit_reader.text.runs import Item, Run, blank_odds

OTHER_ODDS, NOTHING_ODDS = -3.0, 8.0
"""The scores of a number that does not fit, and of a row without any."""
MIN_BLANK = -9.0
"""The least log probability of a blank, and of none."""
MIN_STROKE, MIN_SLASH, SLASH_SCORE = -12.0, -3.0, -1.5
"""The log odds of a digit from which a stroke may be a slash, its least score, and what being a
slash adds: a slanted 1 is no slash, even if a pattern needs one."""
_INK, _BLANK, _OTHER, _NEXT = range(4)
"""The nodes before each piece: after ink, after a blank, after OTHER, and before more ink."""

Floats = npt.NDArray[np.float64]


class _Lattice(NamedTuple):
    sources: npt.NDArray[np.intp]
    """(E,): the node where each edge begins: four times the number of the piece, and which."""
    targets: npt.NDArray[np.intp]
    """(E,): a later node."""
    scores: Floats
    """(E, K): of an edge as each of the SYMBOLS."""
    boxes: list[Numbers]
    """Boxes of the edges that are a candidate or a mark; they are the first."""
    end: int
    """The last node."""


def read(line: Line, choice: Choice, text: str) -> list[Run]:
    """Find the numbers of a row that fit a pattern; the confidence of each is that of them all.

    Args:
        line: the row.
        choice: its best path without a pattern.
        text: the pattern, see `pattern.of_rows`.
    """
    lattice, states = _lattice_of(line, choice), pattern.of_rows(text)
    path = list(_best_path(lattice, states))
    texts = re.sub(f"{LETTERS}+", LETTERS, "".join(symbol for symbol, _ in path)).split(END)[:-1]
    same = pattern.of_texts([None if OTHER in each else each for each in texts])
    nothing = skips(line.row, line.pieces).sum() + NOTHING_ODDS
    odds = _total(lattice, same) - np.logaddexp(_total(lattice, states), nothing)
    confidence = math.exp(min(0.0, odds))
    runs = [Run([], confidence)]
    for symbol, edge in path:
        if symbol == END:
            runs.append(Run([], confidence))
        elif symbol != LETTERS:
            box = lattice.boxes[edge] if edge < len(lattice.boxes) else np.zeros(4, np.intp)
            item = Item(symbol, box, 1.0, edge if symbol in DIGITS else -1)
            runs[-1].items.append(item)
    return [run for run in runs if run.candidates and run.items[0].text != OTHER]


def log_share(line: Line, choice: Choice, texts: list[str | None]) -> float:
    """Return the log probability of a row's texts among all its readings."""
    lattice = _lattice_of(line, choice)
    every = _total(lattice, pattern.of_rows(pattern.ANY_NUMBER))
    return _total(lattice, pattern.of_texts(texts)) - every


def _lattice_of(line: Line, choice: Choice) -> _Lattice:
    boxes, pieces = line.candidates.boxes, line.pieces.boxes
    places = [(4 * first + _NEXT, 4 * last + _INK) for first, last in line.candidates.spans]
    scores, found = [*_of_candidates(line, choice)], [*boxes]

    def add(source: int, target: int, ways: dict[str, float]) -> None:
        places.append((source, target))
        scores.append(np.array([ways.get(each, -math.inf) for each in SYMBOLS]))

    reached = np.append(-np.inf, np.maximum.accumulate(pieces[:, 3]))
    gaps = np.append(pieces[:, 1], np.inf) - reached
    odds = blank_odds(gaps, line.items(choice), line.row.height)
    none, blank = np.maximum(-np.logaddexp(0, [odds, -odds]), MIN_BLANK)
    for mark in line.marks:
        own, middles = mark.inside(line.pieces), pieces[:, 1] + pieces[:, 3]
        base = 0.0 if mark.touches else MARK_SHARE * mark.odds
        ways = {text: base + odds - mark.odds for text, odds in mark.ways}
        at = 4 * int(own[0] if len(own) else np.searchsorted(middles, mark.box[1] + mark.box[3]))
        if len(own):
            add(at + _NEXT, at + 4 * len(own) + _INK, ways)
        else:
            unread = max(0.0, MARK_SHARE * mark.odds)
            none[at // 4] -= unread  # there is no piece that could be left out
            add(at + _INK, at + _NEXT, {text: odds - unread for text, odds in ways.items()})
            add(at + _OTHER, at + _NEXT, ways)
        found += [mark.box] * (len(places) - len(found))
    left_out = np.append(skips(line.row, line.pieces), -np.inf)
    for piece in range(len(pieces) + 1):
        at, skip = 4 * piece, {STAY: left_out[piece], LETTERS: left_out[piece]}
        add(at + _INK, at + _BLANK, {END: blank[piece], BLANK: blank[piece]})
        add(at + _INK, at + _NEXT, {STAY: none[piece]})
        add(at + _INK, at + 4 + _INK, skip)
        add(at + _BLANK, at + _OTHER, {STAY: 0.0, OTHER: OTHER_ODDS})
        add(at + _OTHER, at + _NEXT, {STAY: 0.0})
        add(at + _OTHER, at + 4 + _BLANK, skip)
    sources, targets = np.array(places, np.intp).T
    return _Lattice(sources, targets, np.array(scores), found, 4 * len(pieces) + _BLANK)


def _of_candidates(line: Line, choice: Choice) -> Floats:
    """Score candidates as digits, those that look like a 1 as slashes, too: (N, K)."""
    boxes = line.candidates.boxes
    scores = np.full((len(boxes), len(SYMBOLS)), -np.inf)
    logs = np.log(np.maximum(choice.probabilities, 1e-6))
    scores[:, : len(DIGITS)] = line.odds[:, None] + BIAS + logs
    is_stroke = (choice.probabilities.argmax(1) == 1) & (line.odds > MIN_STROKE)
    for each in np.flatnonzero(is_stroke):
        near = boxes[[other for other in choice.run if other != each]]
        odds = slash_odds(line.candidates.images[each], boxes[each], near, line.row.height)
        scores[each, SYMBOLS.index("/")] = max(scores[each, 1], MIN_SLASH) + SLASH_SCORE + odds
    return scores


def _totals(lattice: _Lattice, states: pattern.Automaton, add: np.ufunc) -> Floats:
    """Add up the paths from each node and state to the end: (nodes, S + 1); the last is none."""
    totals = np.full((lattice.end + 8, len(states.moves) + 1), -np.inf)
    totals[lattice.end, :-1][states.ends] = 0
    order = np.argsort(lattice.sources, kind="stable")
    starts = np.searchsorted(lattice.sources[order], np.arange(lattice.end + 1))
    for node in range(lattice.end - 1, -1, -1):
        edges = order[starts[node] : starts[node + 1]]
        if len(edges):
            after = totals[lattice.targets[edges]][:, states.moves] + lattice.scores[edges, None]
            totals[node, :-1] = add.reduce(after, axis=(0, 2))
    return totals


def _total(lattice: _Lattice, states: pattern.Automaton) -> float:
    return float(_totals(lattice, states, np.logaddexp)[_BLANK, 0])


def _best_path(lattice: _Lattice, states: pattern.Automaton) -> Iterator[tuple[str, int]]:
    """Yield the symbols of the best path, each with its edge; none if nothing fits."""
    totals = _totals(lattice, states, np.maximum)
    node, state = _BLANK, 0
    while node != lattice.end and np.isfinite(totals[node, state]):
        edges = np.flatnonzero(lattice.sources == node)
        after = totals[lattice.targets[edges]][:, states.moves[state]] + lattice.scores[edges]
        best, symbol = np.unravel_index(int(after.argmax()), after.shape)
        node, state = int(lattice.targets[edges[best]]), int(states.moves[state, symbol])
        if SYMBOLS[symbol] != STAY:
            yield SYMBOLS[symbol], int(edges[best])
