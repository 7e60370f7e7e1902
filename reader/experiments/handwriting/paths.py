"""How probable a row's text is among all paths through its candidates, and the gradient of that.

`digit_reader.text.path` takes the best path. Candidates that are judged one by one make it
wrong where several of them fit together by chance; so the judge is trained on whole rows, by the
log probability of all paths that give the right text among all paths (discriminative forward
training: LeCun, Bottou, Bengio, Haffner 1998, section VI). Sums over paths are made forward and
backward, as for hidden Markov models (Rabiner 1989).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_NEVER = -1e9
"""The log weight of the impossible; infinity would make NaN of differences."""


class Loss(NamedTuple):
    """A row's candidates and their scores."""

    value: float
    """Minus the log probability of the row's text."""
    gradient: Floats
    """(N, 10): of the value, by each candidate's score as each digit."""


def text_loss(
    spans: npt.NDArray[np.integer],
    scores: Floats,
    skips: Floats,
    text: str,
    is_wrong: npt.NDArray[np.bool_] | None = None,
) -> Loss | None:
    """Return the loss of a row; None if no path gives its text.

    Args:
        spans: (N, 2): each candidate's first piece and the one after its last.
        scores: (N, 10): each candidate's score as each digit.
        skips: (P,): the score of leaving out a piece.
        text: the digits in the row.
        is_wrong: (N,): the candidates that no right path has.
    """
    digits = np.array([*map(int, text)], np.intp)
    anything = np.asarray(np.logaddexp.reduce(scores, axis=1))
    # Column 0 is of paths that give any text, the others of those that have given 0, 1, ... digits.
    wanted = scores[:, digits]
    if is_wrong is not None:
        wanted[is_wrong] = _NEVER
    first, last = spans.T.astype(np.intp)
    forward = _sums(first, last, anything, wanted, skips)
    count = len(skips)
    backward = _sums(count - last, count - first, anything, wanted[:, ::-1], skips[::-1])[::-1]
    backward[:, 1:] = backward[:, :0:-1]
    total, right = forward[count, 0], forward[count, -1]
    if right < _NEVER / 2:
        return None
    share = np.exp(forward[first, 0] + anything + backward[last, 0] - total)
    gradient = share[:, None] * np.exp(scores - anything[:, None])
    shares = np.exp(forward[first, 1:-1] + wanted + backward[last, 2:] - right)
    for place, digit in enumerate(digits):
        gradient[:, digit] -= shares[:, place]
    return Loss(float(total - right), gradient)


def _sums(
    first: npt.NDArray[np.intp],
    last: npt.NDArray[np.intp],
    anything: Floats,
    wanted: Floats,
    skips: Floats,
) -> Floats:
    """Sum over the paths from the start to each piece: (P + 1, 2 + T) logarithms."""
    ends = [np.flatnonzero(last == piece) for piece in range(len(skips) + 1)]
    sums = np.full((len(skips) + 1, 2 + wanted.shape[1]), _NEVER)
    sums[0, :2] = 0
    for piece in range(1, len(sums)):
        chosen = ends[piece]
        ways = np.full((len(chosen) + 1, sums.shape[1]), _NEVER)
        ways[-1] = sums[piece - 1] + skips[piece - 1]
        ways[:-1, 0] = sums[first[chosen], 0] + anything[chosen]
        ways[:-1, 2:] = sums[first[chosen], 1:-1] + wanted[chosen]
        sums[piece] = np.logaddexp.reduce(ways, axis=0)
    return sums
