"""The gate: whether a candidate answers as fp32 does, on samples that calibration did not see.

labels    the loss of accuracy, of the same samples with both: at most 0.2 points, and McNemar's
          interval of it ends below 1 point
classes   the share of equal top answers
score     a function of one's own of all answers: its loss relative to fp32's
values    the cosine and relative error of every other output

Every output of the model is compared by one of the last three kinds beside the first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import ConfigurationError
from serving.model.agreement import Agreement, AgreementLimits, AnswerComparison, Kind, kind_of, top
from serving.optimising.samples import CallSamples
from serving.tensors import Array

LEAST_SAMPLES = 100
"""Fewer samples than this show too little to publish anything."""
_MARGIN = 1.0
"""How many standard errors an output stays away from its limits, so that samples which are not
here keep them, too."""
_SURE = 1.96
"""Standard errors on each side of an interval of 95 %."""
_ROUNDING = 1e-9
"""Of the difference of two shares, which is exactly the limit now and then."""
_ROWS_SUM = 1e-3
"""How far from 1 the sum of a row of probabilities may be."""
Answers = Sequence[Mapping[str, Array]]
"""Of each call an array for each output."""
Score = Callable[[Answers, Sequence[Mapping[str, Array]]], float]
"""Of all answers and the samples' arrays; more is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateLimits:
    """What a candidate may lose."""

    agreement: AgreementLimits = field(default_factory=AgreementLimits)
    """Of each output."""
    most_loss: float = 0.002
    """Share of the labelled samples that fp32 has right beyond those of the candidate; of a score
    its loss, relative to fp32's."""
    most_interval: float = 0.01
    """The upper end of the 95 % interval of the loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """The accuracy of both on the same labelled samples."""

    num: int
    accuracy: float
    """Of the candidate, 0 to 1."""
    fp32_accuracy: float
    """Of fp32, 0 to 1."""
    low: float
    """The lower end of the 95 % interval of the loss."""
    high: float
    """Its upper end."""

    @property
    def loss(self) -> float:
        """What the candidate has fewer right, as a share; negative if it has more."""
        return self.fp32_accuracy - self.accuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class GateVerdict:
    """What the gate says of a candidate."""

    reason: str
    """Why it is refused; empty if it passes."""
    needs_samples: bool = False
    """Whether more samples alone could make it pass."""
    agreements: tuple[Agreement, ...] = ()
    """Of each output."""
    loss: Loss | None = None
    """Of the labelled output."""
    score: float | None = None
    """By the user's own function."""
    fp32_score: float | None = None

    @property
    def agreement(self) -> float:
        """One number for a picture, 0 to 1: the least of all outputs."""
        shares = [
            each.equal if each.kind != "values" else max(0.0, each.cosine)
            for each in self.agreements
        ]
        return min(shares, default=1.0)

    def __str__(self) -> str:
        """Return text such as "99.6 % equal, loss 0.05 points (-0.1 to 0.3)"."""
        words = []
        if self.score is not None:
            words.append(f"score {self.score:.4g} (fp32 {self.fp32_score:.4g})")
        if self.loss is not None:
            low, high = (f"{100 * each:.2g}" for each in (self.loss.low, self.loss.high))
            words.append(f"loss {100 * self.loss.loss:.2g} points ({low} to {high})")
        words += [str(min(self.agreements, key=_distance))] if self.agreements else []
        return ", ".join(words)


def _distance(each: Agreement) -> float:
    return each.equal if each.kind != "values" else each.cosine


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Compares a candidate's answers with fp32's."""

    samples: CallSamples
    wanted: Answers
    """fp32's answers to them."""
    comparison: AnswerComparison
    """The kind of each output, and the limits."""
    classes: str = ""
    """The output that the labels are about; empty without labels."""
    limits: GateLimits = field(default_factory=GateLimits)
    score: Score | None = None
    """The user's own."""

    def judge(self, answers: Answers) -> GateVerdict:
        """Compare answers to the same samples.

        Args:
            answers: of each call an array for each output.
        """
        compared = self.comparison.of_answers(self.wanted, answers)
        loss = self._loss(answers)
        if reason := self._lost_sum(answers):
            return GateVerdict(reason=reason, agreements=tuple(compared), loss=loss)
        if self.score is not None:
            return self._by_score(answers, compared)
        for each in compared:
            is_labelled = loss is not None and each.output == self.classes
            excess = "" if is_labelled else each.excess(self.comparison.limits, _MARGIN)
            if excess:
                reason = f"output {each.output}: {excess}"
                return GateVerdict(reason=reason, agreements=tuple(compared), loss=loss)
        reason, needs_samples = _excess(loss, self.limits)
        return GateVerdict(
            reason=reason, needs_samples=needs_samples, agreements=tuple(compared), loss=loss
        )

    def _lost_sum(self, answers: Answers) -> str:
        """Return which output has rows of probabilities that no longer add up to 1; else empty."""
        for name in self.wanted[0]:
            given = [each[name] for each in answers if name in each]
            wanted = [each[name] for each in self.wanted]
            if given and _are_probabilities(wanted) and not _are_probabilities(given):
                sums = np.concatenate([each.sum(axis=-1).ravel() for each in given])
                furthest = sums[np.abs(sums - 1).argmax()]
                return f"output {name}: a row of probabilities adds up to {furthest:.4g}"
        return ""

    def is_hopeless(self, answers: Answers, far: float) -> bool:
        """Return whether answers are so far off that others need not be looked at.

        Args:
            answers: as for `judge`.
            far: how many times as far as the limits.
        """
        limits = self.comparison.limits
        loose = AgreementLimits(
            least_equal=max(0.0, 1 - far * (1 - limits.least_equal)),
            least_cosine=max(-1.0, 1 - far * (1 - limits.least_cosine)),
            most_error=min(1.0, far * limits.most_error),
        )
        compared = self.comparison.of_answers(self.wanted, answers)
        return self.score is None and any(each.excess(loose) for each in compared)

    def _by_score(self, answers: Answers, compared: Sequence[Agreement]) -> GateVerdict:
        assert self.score is not None
        mine, its = (_scored(self.score, each, self.samples) for each in (self.wanted, answers))
        least = mine - self.limits.most_loss * abs(mine)
        reason = "" if its >= least else f"score {its:.4g}, at least {least:.4g} expected"
        return GateVerdict(reason=reason, agreements=tuple(compared), score=its, fp32_score=mine)

    def _loss(self, answers: Answers) -> Loss | None:
        labels = self.samples.labels
        if labels is None or not self.classes:
            return None
        mine, its = (
            np.array(
                [
                    _is_right(each.get(self.classes), label)
                    for each, label in zip(a, labels, strict=True)
                ]
            )
            for a in (self.wanted, answers)
        )
        low, high = interval(int((mine & ~its).sum()), int((its & ~mine).sum()), len(labels))
        return Loss(
            num=len(labels), accuracy=its.mean(), fp32_accuracy=mine.mean(), low=low, high=high
        )


def _is_right(answer: Array | None, label: np.int64) -> bool:
    if answer is None or not np.isfinite(answer).all():
        return False
    return bool((top(answer) == label).all())


def interval(num_lost: int, num_won: int, num: int) -> tuple[float, float]:
    """Return the 95 % interval of a paired difference of shares, McNemar's.

    With half a sample added to each of the four cells (Agresti and Min, 2005): without that, equal
    answers to ten samples would show a loss of 0, give or take nothing.

    Args:
        num_lost: samples that the first has right and the second wrong.
        num_won: the other way round.
        num: all samples.
    """
    lost, won, total = num_lost + 0.5, num_won + 0.5, num + 2
    middle = (lost - won) / total
    spread = math.sqrt(max(0.0, lost + won - (lost - won) ** 2 / total)) / total
    return middle - _SURE * spread, middle + _SURE * spread


def _excess(loss: Loss | None, limits: GateLimits) -> tuple[str, bool]:
    """Return why a loss is too large, and whether more samples could show that it is not."""
    if loss is None:
        return "", False
    if loss.loss > limits.most_loss + _ROUNDING:
        most = f"at most {100 * limits.most_loss:g} expected"
        return f"it loses {100 * loss.loss:.2g} points of accuracy, {most}", False
    if loss.high > limits.most_interval:
        shown = f"{100 * loss.high:.2g} points"
        most = f"at most {100 * limits.most_interval:g} expected"
        return f"{loss.num:,} samples leave room for a loss of {shown}, {most}", True
    return "", False


def shown_by(num: int) -> str:
    """Return what a number of equal answers shows at most, in words.

    Args:
        num: samples that were held out, all answered equally.
    """
    return (
        f"{num:,} held-out samples that are all answered equally leave room for "
        f"{300 / max(1, num):.2g} % other answers"
    )


def comparison_of(answers: Answers, limits: AgreementLimits, classes: str = "") -> AnswerComparison:
    """Choose how each output is compared.

    Args:
        answers: fp32's.
        limits: how far others have to agree.
        classes: the output whose rows are scores of classes; empty to find those of probabilities.

    Raises:
        ConfigurationError: there is no such output.
    """
    if classes and classes not in answers[0]:
        raise ConfigurationError(f"--classes: expected one of {', '.join(answers[0])}")
    kinds: dict[str, Kind] = {
        name: "classes"
        if name == classes or (not classes and _are_probabilities([a[name] for a in answers]))
        else kind_of(array)
        for name, array in answers[0].items()
    }
    return AnswerComparison(kinds, limits)


def _are_probabilities(arrays: Sequence[Array]) -> bool:
    """Return whether the rows of an output are those of a softmax."""
    first = arrays[0]
    if first.dtype.kind != "f" or first.ndim < 2 or first.shape[-1] < 2:
        return False
    return all(
        bool((each >= 0).all() and np.abs(each.sum(axis=-1) - 1).max(initial=0.0) < _ROWS_SUM)
        for each in arrays
    )


def labelled_output(answers: Answers, kinds: Mapping[str, str], labels: Array) -> str:
    """Return the output that labels are about.

    Raises:
        ConfigurationError: there is none, or there are several.
    """
    most = int(labels.max(initial=0))
    found = [name for name, kind in kinds.items() if kind == "classes"]
    found = found or [
        name
        for name, array in answers[0].items()
        if array.dtype.kind == "f" and array.size and array.shape[-1] == array.size
    ]
    found = [name for name in found if _has_class(answers[0][name], most)]
    if len(found) != 1:
        outputs = ", ".join(found or answers[0])
        raise ConfigurationError(f"labels go up to {most}: --classes names their output: {outputs}")
    return found[0]


def _has_class(array: Array, most: int) -> bool:
    width = array.shape[-1] if array.ndim else 0
    return width > most or (width == 1 and most <= 1)


def read_score(text: str) -> Score:
    """Load a function for scores from a file.

    Args:
        text: FILE.py:function.

    Raises:
        ConfigurationError: the file or the function is not there, or its code fails.
    """
    place, _, name = text.rpartition(":")
    path = Path(place)
    if not name or not path.is_file():
        raise ConfigurationError(f"--score: expected FILE.py:function, got {text}")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as err:  # a user's code
        raise ConfigurationError(f"--score: {path}: {type(err).__name__}: {err}") from err
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigurationError(f"--score: {path} has no function {name}")
    found: Score = function
    return found


def _scored(score: Score, answers: Answers, samples: CallSamples) -> float:
    """Call the user's function.

    Raises:
        ConfigurationError: it fails, or returns no number.
    """
    given = [{**call, **others} for call, others in zip(samples.calls, samples.others, strict=True)]
    try:
        value: Any = score([dict(each) for each in answers], given)
        number = float(value)
    except Exception as err:  # a user's code
        raise ConfigurationError(f"--score: {type(err).__name__}: {err}") from err
    if not math.isfinite(number):
        raise ConfigurationError(f"--score: expected a number, got {number}")
    return number
