"""Patterns that numbers fit: small regular expressions, compiled to a table of states.

A state is a set of partial derivatives: of terms one of which the rest must fit (Antimirov 1996,
"Partial derivatives of regular expressions and finite automaton constructions").
"""

import re
from collections.abc import Iterator
from functools import cache, lru_cache, reduce
from itertools import pairwise
from string import ascii_letters
from typing import Any, NamedTuple

import numpy as np

from digit_classifier.normalizer import Mask, Numbers
from digit_reader.facts import MAX_LENGTH
from serving.errors import InvalidRequest

DIGITS, MARKS, BLANK, LETTERS = "0123456789", ".,-/:", " ", "A"
END, OTHER, STAY = "\n", "\t", "\0"
"""Symbols beside those of a row: a number ends; the next one need not fit; and no symbol at all."""
SYMBOLS = DIGITS + MARKS + BLANK + LETTERS + END + OTHER + STAY
MAX_STATES = 100
"""The most states of a pattern: they bound the time to read by it."""
MAX_DEPTH, MAX_STEPS = 10, 100_000
"""The most nested groups of a pattern, and derivatives of its parts, which bound the time to
compile it."""
_MANY = 1000
"""Stands for any number of repetitions."""
_TOKEN = re.compile(
    r"\((?:\?:|(?!\?))|[)|]|(?:[?*+]|\{\d{1,3}\}|\{\d{0,3},\d{0,3}\})\??"
    r"|\\[dsw\W]|\[(?:(?!--)(?:\\[dsw\W]|[^][\\&~|]))+\]|[^][(){}?*+\\]"
)
ANY_NUMBER = r"-?\d+(?:[.,:/-]\d+)*"

Term = Any
"""None, the empty text; a str, any of its symbols; or "then", "or" or "times", and its parts."""


class Automaton(NamedTuple):
    """The texts that fit, as states; the first is 0."""

    moves: Numbers
    """(S, K): the state after each of the SYMBOLS; -1: no text goes on so."""
    ends: Mask
    """(S,): whether a text may end here."""


@lru_cache(16)
def of_rows(pattern: str) -> Automaton:
    r"""Compile the rows whose numbers fit a pattern, or are OTHER, each followed by END.

    Args:
        pattern: such as \d{2}/\d{2}/\d{4}: literals, classes, groups, `|`, `?`, `*`, `+`, `{2,4}`.
            It is of digits, marks and blanks; letters are ink that is skipped.

    Raises:
        InvalidRequest: it is malformed, of other characters, or too complex.
    """
    if len(pattern) > MAX_LENGTH:
        raise InvalidRequest(f"expected a pattern of at most {MAX_LENGTH} characters")
    number = _parsed(pattern.removeprefix("^").removesuffix("$"))
    if _is_empty(number):
        raise InvalidRequest(f"expected a pattern that needs a digit, got {pattern!r}")
    return _compiled(("times", _then(("or", number, _other()), END), 0, _MANY), MAX_STATES)


def of_texts(texts: list[str | None]) -> Automaton:
    """Compile the rows that have just these texts; None is any OTHER number."""
    row: Term = None
    for text in reversed(texts):
        row = _then(_other() if text is None else _parsed(re.escape(text)), _then(END, row))
    return _compiled(row, 10**6)


def _other() -> Term:
    return _then(OTHER, _parsed(ANY_NUMBER))


def _parsed(text: str) -> Term:
    tokens = _TOKEN.findall(text)
    try:
        if "".join(tokens) != text:
            raise InvalidRequest(f"pattern {text!r}: expected literals, classes, groups and counts")
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as err:
        raise InvalidRequest(f"pattern {text!r}: {err}") from err
    groups: list[list[list[Term]]] = [[[]]]  # the open ones, each with its alternatives
    for token, following in pairwise([*tokens, ")"]):
        if token[0] == "(":
            groups.append([[]])
            if len(groups) - 1 > MAX_DEPTH:
                raise InvalidRequest(f"expected a pattern of at most {MAX_DEPTH} nested groups")
        elif token == ")":
            group = groups.pop()
            groups[-1][-1].append(_either(group))
        elif token == "|":
            groups[-1].append([])
        elif bounds := _bounds(token):
            if _bounds(following):  # possessive, to Python's parser
                raise InvalidRequest(f"pattern {text!r}: multiple repeat")
            groups[-1][-1].append(("times", groups[-1][-1].pop(), *bounds))
        else:
            groups[-1][-1].append(_symbols(token))
    return _either(groups[0])


def _either(alternatives: list[list[Term]]) -> Term:
    terms = [reduce(_then, terms, None) for terms in alternatives]
    return reduce(lambda first, second: ("or", first, second), terms)


def _bounds(token: str) -> tuple[int, int] | None:
    """Return how often a token repeats the term before it; None if it is no such token."""
    if token[0] != "{":
        return {"?": (0, 1), "*": (0, _MANY), "+": (1, _MANY)}.get(token[0])
    least, comma, most = token.strip("{}?").partition(",")
    return int(least or 0), int(most or (_MANY if comma else least))


def _symbols(token: str) -> Term:
    """Return the symbols that a literal or a class has; a letter may be several pieces of ink."""
    symbols = "".join(each for each in DIGITS + MARKS + BLANK if re.fullmatch(token, each))
    letter = ("times", LETTERS, 1, _MANY)
    has_letters = any(re.fullmatch(token, each) for each in ascii_letters)
    if has_letters and not re.fullmatch(token, "\0"):
        return ("or", letter, symbols) if symbols else letter
    if not symbols:
        raise InvalidRequest(
            f"pattern: {token} is not read, only digits, the marks {' '.join(MARKS)}, blanks, and "
            "letters as ink that is skipped"
        )
    return symbols


def _then(first: Term, second: Term) -> Term:
    if first is None or second is None:
        return second if first is None else first
    if first[0] == "then":
        return ("then", first[1], _then(first[2], second))
    return ("then", first, second)


def _is_empty(term: Term) -> bool:
    """Return whether the empty text fits."""
    match term:
        case ("times", repeated, least, _):
            return not least or _is_empty(repeated)
        case ("then", first, second):
            return _is_empty(first) and _is_empty(second)
        case ("or", first, second):
            return _is_empty(first) or _is_empty(second)
    return term is None


def _after(term: Term, symbol: str, steps: Iterator[int]) -> set[Term]:
    """Return the partial derivatives of a term by a symbol; each takes one of the steps left."""
    _require(next(steps, None) is not None)
    match term:
        case str():
            return {None} if symbol in term else set()
        case ("or", first, second):
            return _after(first, symbol, steps) | _after(second, symbol, steps)
        case ("then", first, second):
            after = {_then(each, second) for each in _after(first, symbol, steps)}
            return after | _after(second, symbol, steps) if _is_empty(first) else after
        case ("times", repeated, least, most) if most:
            rest = ("times", repeated, max(0, least - 1), most - (most < _MANY))
            return {_then(each, rest) for each in _after(repeated, symbol, steps)}
    return set()


def _compiled(term: Term, most: int) -> Automaton:
    terms, steps = [term], iter(range(MAX_STEPS))
    numbers = {term: 0}

    @cache
    def after(number: int, symbol: str) -> frozenset[int]:
        found = _after(terms[number], symbol, steps)
        terms.extend(found - numbers.keys())
        _require(len(terms) <= most)
        numbers.update((each, at) for at, each in enumerate(terms[len(numbers) :], len(numbers)))
        return frozenset(numbers[each] for each in found)

    states, rows = {frozenset([0]): 0}, list[list[int]]()
    for state in (queue := [*states]):
        reached = [
            frozenset[int]().union(*(after(number, each) for number in state))
            for each in SYMBOLS[:-1]
        ]
        queue += {each: None for each in reached if each and each not in states}
        states.update((each, at) for at, each in enumerate(queue[len(states) :], len(states)))
        rows.append([*(states.get(each, -1) for each in reached), len(rows)])
        _require(len(queue) <= most)
    ends = [any(_is_empty(terms[number]) for number in state) for state in queue]
    return Automaton(np.array(rows, np.intp), np.array(ends, np.bool_))


def _require(is_simple: bool) -> None:
    if not is_simple:
        raise InvalidRequest(f"expected a simpler pattern, of at most {MAX_STATES} states")
