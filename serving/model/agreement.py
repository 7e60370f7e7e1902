"""How far two models' answers to the same calls agree, and how far they have to.

Of each output one kind of agreement is measured:

classes   the share of rows whose greatest number stands at the same place
equal     the share of calls whose output is the same: whole numbers, truths, texts
values    floats: the cosine of all numbers, and the root mean square of their differences,
          relative to the greatest number; both of what differs between calls, so that a large
          constant part hides nothing

A version's manifest states the limits that its golden answers are compared by.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np

from serving.tensors import Array

Kind = Literal["classes", "equal", "values"]
GOLDEN_FILE = "golden.npz"
"""Beside a version's graph: calls of any model with the answers that others are compared with."""
_ROUNDING = 1e-9
"""Of a share that is exactly the limit."""
_CENTRED = 8
"""The fewest calls of which the mean answer is taken off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgreementLimits:
    """How far answers have to agree."""

    least_equal: float = 0.99
    """Share of rows with the same class, or of calls with the same answer, 0 to 1."""
    least_cosine: float = 0.995
    """Cosine of the floats of an output, -1 to 1."""
    most_error: float = 0.02
    """Root mean square of the differences of floats, relative to the greatest one."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if type(value) not in (int, float) or not -1 <= value <= 1:
                raise ValueError(f"{each.name}: a number from -1 to 1 expected, got {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far the answers of one output agree."""

    output: str
    """The output's name."""
    kind: Kind
    """What was measured."""
    num: int
    """Rows of classes, else calls, that were compared."""
    equal: float = 1.0
    """Share of `num` that is equal; of values 1 where shapes are equal and all are numbers."""
    cosine: float = 1.0
    """Of values."""
    error: float = 0.0
    """Of values; infinite where shapes differ or an answer is no number."""
    spread: float = 0.0
    """Of values the standard error of the squared error, relative to it: how much other calls may
    differ more."""

    def excess(self, limits: AgreementLimits, margin: float = 0.0) -> str:
        """Return what is beyond the limits, such as "cosine 0.91, at least 0.995 expected".

        Args:
            limits: what is allowed.
            margin: how many standard errors the answers must stay away from the limits, so that
                others of the kind keep them, too; none without a single difference.
        """
        if self.kind != "values":
            what = "top answers are equal" if self.kind == "classes" else "answers are equal"
            share, least = (f"{100 * each:.4g} %" for each in (self.equal, limits.least_equal))
            wrong = round((1 - self.equal) * self.num)
            allowed = (1 - limits.least_equal) * self.num
            if wrong + margin * math.sqrt(wrong) <= allowed + _ROUNDING:
                return ""
            sure = " by its standard error" if wrong <= allowed else ""
            return f"{share} of {self.num:,} {what}, at least {least} expected{sure}"
        if not math.isfinite(self.error):
            return "another shape, or answers that are no numbers"
        growth = 1 + margin * self.spread
        if (1 - self.cosine) * growth > 1 - limits.least_cosine + _ROUNDING:
            return f"cosine {self.cosine:.4f}, at least {limits.least_cosine:g} expected"
        if self.error * math.sqrt(growth) > limits.most_error + _ROUNDING:
            shown = f"{100 * self.error:.2g} %"
            return f"relative error {shown}, at most {100 * limits.most_error:g} % expected"
        return ""

    def __str__(self) -> str:
        """Return text such as "99.6 % equal"."""
        if self.kind != "values":
            return f"{100 * self.equal:.2f} % equal"
        return f"cosine {self.cosine:.4f}, error {100 * self.error:.2g} %"


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """How answers are compared: the kind of each output, and the limits."""

    kinds: Mapping[str, Kind]
    """By the outputs' names."""
    limits: AgreementLimits = AgreementLimits()

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Parse what a manifest states.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or wrong.
        """
        kinds = dict(document["outputs"])
        if not kinds or not all(each in get_args(Kind) for each in kinds.values()):
            raise ValueError(f"outputs of {', '.join(get_args(Kind))} expected")
        return cls(kinds, AgreementLimits(**document["limits"]))

    def document(self) -> dict[str, Any]:
        """Return it as in a manifest."""
        return {"outputs": dict(self.kinds), "limits": asdict(self.limits)}

    def of_answers(
        self, wanted: Sequence[Mapping[str, Array]], answers: Sequence[Mapping[str, Array]]
    ) -> list[Agreement]:
        """Compare the answers to the same calls.

        Args:
            wanted: of each call an array for each output, by its name; all numbers are finite.
            answers: those of the other model; an output may be missing.
        """
        return [
            agreement(
                name, kind, [call[name] for call in wanted], [call.get(name) for call in answers]
            )
            for name, kind in self.kinds.items()
        ]


def kind_of(array: Array) -> Kind:
    """Return how an output is compared that is not known to hold classes."""
    return "values" if array.dtype.kind == "f" else "equal"


def agreement(
    output: str, kind: Kind, wanted: Sequence[Array], answers: Sequence[Array | None]
) -> Agreement:
    """Compare the answers of one output.

    Args:
        output: its name.
        kind: what to measure.
        wanted: an array for each call.
        answers: of the other model.
    """
    if kind == "values":
        return _values(output, wanted, answers)
    if kind == "equal":
        same = [
            each is not None and np.array_equal(want, each)
            for want, each in zip(wanted, answers, strict=True)
        ]
        return Agreement(
            output=output, kind=kind, num=len(same), equal=_share(sum(same), len(same))
        )
    num = num_equal = 0
    for want, each in zip(wanted, answers, strict=True):
        right = top(want)
        num += right.size
        if each is not None and each.shape == want.shape and np.isfinite(each).all():
            num_equal += int((top(each) == right).sum())
    return Agreement(output=output, kind=kind, num=num, equal=_share(num_equal, num))


def top(scores: Array) -> Array:
    """Return the class of each row: where its greatest number is.

    A row of one number is the probability of the second of two classes, or its logit.
    """
    if scores.shape[-1:] != (1,):
        return np.asarray(scores.argmax(axis=-1))
    is_probability = bool(((scores >= 0) & (scores <= 1)).all())
    return np.asarray(scores[..., 0] > (0.5 if is_probability else 0.0)).astype(np.int64)


def _share(num: int, total: int) -> float:
    return num / total if total else 1.0


def _values(output: str, wanted: Sequence[Array], answers: Sequence[Array | None]) -> Agreement:
    num = len(wanted)
    is_fit = [
        each is not None and each.shape == want.shape and bool(np.isfinite(each).all())
        for want, each in zip(wanted, answers, strict=True)
    ]
    if not all(is_fit):
        share = _share(sum(is_fit), num)
        return Agreement(
            output=output, kind="values", num=num, equal=share, cosine=0.0, error=math.inf
        )
    centre: Any = 0.0
    if num >= _CENTRED and len({want.shape for want in wanted}) == 1:
        centre = np.zeros(wanted[0].shape)
        for want in wanted:
            centre += want / num
    dot = square = other = greatest = 0.0
    size = 0
    differences, squares = np.zeros(num), np.zeros(num)
    for at, (want, each) in enumerate(zip(wanted, answers, strict=True)):
        assert each is not None
        mine, its = want.astype(np.float64) - centre, each.astype(np.float64) - centre
        dot += float((mine * its).sum())
        other += float((its * its).sum())
        squares[at] = (mine * mine).sum()
        differences[at] = ((mine - its) ** 2).sum()
        greatest = max(greatest, float(np.abs(mine).max(initial=0.0)))
        size += mine.size
    square, difference = float(squares.sum()), float(differences.sum())
    if not difference:
        return Agreement(output=output, kind="values", num=num)
    ratio = difference / square if square else 0.0
    away = math.sqrt(float(((differences - ratio * squares) ** 2).sum()))
    root = math.sqrt(difference / max(1, size))
    return Agreement(
        output=output,
        kind="values",
        num=num,
        cosine=dot / math.sqrt(square * other) if square * other else 0.0,
        error=root / greatest if greatest else math.inf,
        spread=away / difference,
    )
