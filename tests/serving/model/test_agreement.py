import math
from dataclasses import asdict

import numpy as np
import pytest

from serving.model.agreement import (
    Agreement,
    AgreementLimits,
    AnswerComparison,
    agreement,
    kind_of,
    top,
)


def calls(array):
    return [row[None] for row in np.asarray(array)]


def test_equal_answers_agree_wholly():
    wanted = calls(np.random.default_rng(0).normal(size=(9, 4)))
    found = agreement("y", "values", wanted, wanted)
    assert (found.cosine, found.error, found.excess(AgreementLimits())) == (1.0, 0.0, "")


def test_constant_part_hides_nothing():
    """Numbers near 2,000 whose own cosine is 1, though they differ by half of what matters."""
    signal = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)
    found = agreement("y", "values", calls(2000 + signal), calls(2000 + signal / 2))
    assert found.cosine < 0.995
    assert found.error > 0.1
    assert found.excess(AgreementLimits()) != ""


def test_few_calls_are_compared_as_they_are():
    wanted = calls(np.ones((2, 3)))
    assert agreement("y", "values", wanted, calls(np.full((2, 3), 1.01))).error == pytest.approx(
        0.01
    )


def test_turned_answers_exceed_by_cosine():
    wanted = calls(np.eye(4))
    found = agreement("y", "values", wanted, calls(np.roll(np.eye(4), 1, axis=1)))
    assert found.excess(AgreementLimits()) == "cosine 0.0000, at least 0.995 expected"


@pytest.mark.parametrize("answer", [None, np.zeros((1, 5)), np.full((1, 4), np.nan)])
def test_missing_reshaped_and_undefined_answers_are_refused(answer):
    wanted = calls(np.random.default_rng(0).normal(size=(9, 4)))
    found = agreement("y", "values", wanted, [*wanted[:8], answer])
    assert math.isinf(found.error)
    assert found.excess(AgreementLimits()) == "another shape, or answers that are no numbers"
    classes = agreement("y", "classes", wanted, [*wanted[:8], answer])
    assert classes.equal == pytest.approx(8 / 9)


def test_classes_count_rows_with_equal_top_answers():
    wanted = calls(np.eye(10).repeat(10, axis=0))
    answers = [*wanted[:98], *calls(np.roll(np.eye(10), 1, axis=1)[:2])]
    found = agreement("y", "classes", wanted, answers)
    assert (found.num, found.equal) == (100, 0.98)
    assert (
        found.excess(AgreementLimits())
        == "98 % of 100 top answers are equal, at least 99 % expected"
    )
    assert found.excess(AgreementLimits(least_equal=0.98)) == ""


def test_row_of_one_probability_has_two_classes():
    assert top(np.array([[0.4], [0.6]])).tolist() == [0, 1]
    assert top(np.array([[-3.0], [0.6]])).tolist() == [0, 1]


def test_other_types_have_to_be_equal():
    assert [kind_of(np.zeros(1, each)) for each in (np.int64, np.bool_, object)] == ["equal"] * 3
    wanted = calls(np.arange(200))
    found = agreement("y", "equal", wanted, [*wanted[:197], *calls([0, 0, 0])])
    assert (
        found.excess(AgreementLimits()) == "98.5 % of 200 answers are equal, at least 99 % expected"
    )


def test_comparison_survives_its_manifest():
    comparison = AnswerComparison({"y": "classes", "z": "values"}, AgreementLimits(least_equal=0.5))
    assert AnswerComparison.of(comparison.document()) == comparison


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": {}},
        {"outputs": {"y": "guess"}},
        {"outputs": ["y"]},
        {"limits": {"least_equal": "1"}},
        {"limits": {"least_equal": 2}},
        {"limits": {"other": 1}},
    ],
)
def test_malformed_comparison_is_refused(change):
    document = AnswerComparison({"y": "values"}).document() | change
    with pytest.raises((ValueError, TypeError, KeyError)):
        AnswerComparison.of(document)


def test_agreement_is_whole_and_limits_are_those_of_the_page_where_nothing_is_said():
    assert asdict(Agreement(output="y", kind="values", num=3)) == {
        "output": "y", "kind": "values", "num": 3, "equal": 1.0, "cosine": 1.0, "error": 0.0,
        "spread": 0.0,
    }  # fmt: skip
    assert asdict(AgreementLimits()) == {
        "least_equal": 0.99, "least_cosine": 0.995, "most_error": 0.02,
    }  # fmt: skip
    document = {"outputs": {"y": "values"}, "limits": asdict(AgreementLimits())}
    assert AnswerComparison({"y": "values"}).document() == document


def test_all_that_is_measured_of_an_output():
    wanted = [np.array([[3.0, 4.0]]), np.array([[0.0, 5.0]])]
    answers = [np.array([[3.0, 4.0]]), np.array([[0.0, 6.0]])]
    found = agreement("y", "values", wanted, answers)
    ratio = 1 / 50
    assert asdict(found) == pytest.approx({
        "output": "y", "kind": "values", "num": 2, "equal": 1.0,
        "cosine": 55 / math.sqrt(50 * 61), "error": math.sqrt(1 / 4) / 5,
        "spread": math.hypot(25 * ratio, 1 - 25 * ratio),
    })  # fmt: skip
    lost = agreement("y", "values", wanted, [answers[0], None])
    assert lost == Agreement(
        output="y", kind="values", num=2, equal=0.5, cosine=0.0, error=math.inf
    )
    same = agreement("n", "equal", wanted, answers)
    assert same == Agreement(output="n", kind="equal", num=2, equal=0.5)
    classes = agreement("c", "classes", [*wanted, np.array([[1.0, 0.0]])], [*answers, None])
    assert classes == Agreement(output="c", kind="classes", num=3, equal=2 / 3)
    zeros = agreement("z", "values", [np.zeros((1, 2))], [np.ones((1, 2))])
    assert (zeros.cosine, zeros.error) == (0.0, math.inf)
    empty = [np.zeros((1, 0))] * 2
    assert agreement("e", "values", empty, empty) == Agreement(output="e", kind="values", num=2)


def test_agreement_is_named_in_percent():
    share = Agreement(output="y", kind="classes", num=500, equal=0.996)
    values = Agreement(output="y", kind="values", num=500, cosine=0.9991, error=0.05)
    assert (str(share), str(values)) == ("99.60 % equal", "cosine 0.9991, error 5 %")
    assert values.excess(AgreementLimits()) == "relative error 5 %, at most 2 % expected"
    two = Agreement(output="y", kind="equal", num=200, equal=0.99)
    assert two.excess(AgreementLimits()) == ""
    assert two.excess(AgreementLimits(), 1.0) == (
        "99 % of 200 answers are equal, at least 99 % expected by its standard error"
    )
    near = Agreement(output="y", kind="values", num=9, cosine=0.995, error=0.02, spread=0.5)
    assert near.excess(AgreementLimits()) == ""
    assert near.excess(AgreementLimits(), 1.0) == "cosine 0.9950, at least 0.995 expected"
