from dataclasses import asdict

import numpy as np
import pytest

from serving.errors import ConfigurationError
from serving.model.agreement import Agreement, AgreementLimits
from serving.optimising.gate import (
    Gate,
    GateLimits,
    GateVerdict,
    Loss,
    comparison_of,
    interval,
    labelled_output,
    read_score,
    shown_by,
)
from serving.optimising.samples import CallSamples

NUM = 1000


def samples(num=NUM, labels=None):
    calls = tuple({"x": np.full((1, 1), each)} for each in range(num))
    return CallSamples(calls, labels, tuple({} for _ in calls), "")


def one_hot(classes):
    return [{"y": np.eye(10, dtype=np.float32)[[each]]} for each in classes]


def gate(wrong_fp32=(), num=NUM, **more):
    """A gate with labels, and fp32's answers, which are right but for some."""
    labels = np.arange(num) % 10
    answers = labels.copy()
    answers[list(wrong_fp32)] += 1
    answers %= 10
    wanted = one_hot(answers)
    comparison = comparison_of(wanted, AgreementLimits())
    return Gate(samples(num, labels), wanted, comparison, "y", **more), answers


def changed(answers, at):
    other = answers.copy()
    other[list(at)] = (other[list(at)] + 5) % 10
    return one_hot(other)


def test_loss_of_accuracy_is_paired():
    """Candidate and fp32 are wrong in three samples each, but others: nothing is lost."""
    first, answers = gate(wrong_fp32=range(3))
    right = answers.copy()
    right[:3] = np.arange(3)
    verdict = first.judge(changed(right, range(3, 6)))
    assert (verdict.reason, verdict.loss.loss) == ("", 0)
    assert verdict.loss.low == -verdict.loss.high < 0


def test_loss_beyond_the_limit_is_refused():
    first, answers = gate()
    verdict = first.judge(changed(answers, range(3)))
    assert verdict.reason == "it loses 0.3 points of accuracy, at most 0.2 expected"
    assert not verdict.needs_samples
    assert (
        gate(limits=GateLimits(most_loss=0.003))[0].judge(changed(answers, range(3))).reason == ""
    )


def test_too_few_labels_leave_room_for_a_loss():
    first, answers = gate(num=100)
    verdict = first.judge(one_hot(answers))
    assert verdict.reason == "100 samples leave room for a loss of 1.9 points, at most 1 expected"
    assert verdict.needs_samples


def test_interval_of_equal_answers_is_not_empty():
    """Ten samples that are answered alike do not show that nothing is ever lost."""
    low, high = interval(0, 0, 10)
    assert low == -high
    assert high > 0.1
    assert interval(30, 10, 1000)[0] > 0


def test_classes_without_labels_count_equal_answers():
    classes = np.arange(NUM) % 10
    wanted = one_hot(classes)
    first = Gate(samples(), wanted, comparison_of(wanted, AgreementLimits()))
    assert first.judge(changed(classes, range(7))).reason == ""
    refused = first.judge(changed(classes, range(11)))
    assert refused.reason == (
        "output y: 98.9 % of 1,000 top answers are equal, at least 99 % expected"
    )


def test_gate_stays_a_standard_error_away_from_its_limits():
    """So that samples which are not here keep them, too."""
    classes = np.arange(NUM) % 10
    wanted = one_hot(classes)
    first = Gate(samples(), wanted, comparison_of(wanted, AgreementLimits()))
    near = first.judge(changed(classes, range(8)))
    assert near.reason == (
        "output y: 99.2 % of 1,000 top answers are equal, at least 99 % expected by its standard "
        "error"
    )


def test_probabilities_that_no_longer_add_up_to_1_are_refused():
    judge = gate()[0].judge
    wanted = one_hot(np.arange(NUM) % 10)
    shrunk = [{"y": each["y"] * np.float32(0.996)} for each in wanted]
    assert judge(wanted).reason == ""
    assert judge(shrunk).reason == "output y: a row of probabilities adds up to 0.996"


def test_outputs_beside_the_labelled_one_are_compared():
    labels = np.arange(NUM) % 10
    numbers = np.random.default_rng(0).normal(size=(NUM, 1, 8))
    wanted = [{**each, "z": z} for each, z in zip(one_hot(labels), numbers, strict=True)]
    first = Gate(samples(labels=labels), wanted, comparison_of(wanted, AgreementLimits()), "y")
    assert first.judge(wanted).reason == ""
    other = [{**each, "z": each["z"] * 2} for each in wanted]
    assert first.judge(other).reason.startswith("output z: relative error")


def test_answers_that_are_no_numbers_are_wrong():
    first, _ = gate()
    broken = [{"y": np.full((1, 10), np.nan, np.float32)}] * NUM
    assert first.judge(broken).loss.accuracy == 0
    assert first.judge([{}] * NUM).loss.accuracy == 0


def test_outputs_of_probabilities_are_found():
    softmax = [{"p": np.full((1, 4), 0.25), "logits": np.ones((1, 4)), "n": np.ones(1, np.int64)}]
    assert comparison_of(softmax, AgreementLimits()).kinds == {
        "p": "classes",
        "logits": "values",
        "n": "equal",
    }
    named = comparison_of(softmax, AgreementLimits(), "logits").kinds
    assert named == {"p": "values", "logits": "classes", "n": "equal"}
    with pytest.raises(ConfigurationError, match="expected one of p, logits, n"):
        comparison_of(softmax, AgreementLimits(), "others")


def test_labels_need_one_output_that_has_them():
    answers = [{"a": np.ones((1, 4)), "b": np.ones((1, 3))}]
    kinds = {"a": "values", "b": "values"}
    assert labelled_output(answers, kinds, np.array([3])) == "a"
    with pytest.raises(ConfigurationError, match="--classes names their output: a, b"):
        labelled_output(answers, kinds, np.array([2]))
    with pytest.raises(ConfigurationError, match="labels go up to 9"):
        labelled_output(answers, kinds, np.array([9]))


def test_score_decides_in_place_of_outputs(tmp_path):
    path = tmp_path / "metric.py"
    path.write_text(
        "def right(answers, samples):\n"
        "    return sum(a['y'].argmax() == s['x'].item() % 10 for a, s in zip(answers, samples))\n"
        "def broken(answers, samples):\n    return 1 / 0\n"
        "def none(answers, samples):\n    return float('nan')\n"
        "value = 3\n"
    )
    classes = np.arange(NUM) % 10
    wanted = one_hot(classes)
    comparison = comparison_of(wanted, AgreementLimits())

    def judged(name, num_wrong):
        score = read_score(f"{path}:{name}")
        first = Gate(samples(), wanted, comparison, score=score)
        return first.judge(changed(classes, range(num_wrong)))

    assert (judged("right", 2).reason, judged("right", 2).score) == ("", 998)
    assert judged("right", 3).reason == "score 997, at least 998 expected"
    with pytest.raises(ConfigurationError, match="ZeroDivisionError"):
        judged("broken", 0)
    with pytest.raises(ConfigurationError, match="expected a number, got nan"):
        judged("none", 0)
    for text in ("metric.py", f"{path}:lost", f"{path}:value", "none.py:f"):
        with pytest.raises(ConfigurationError, match="--score"):
            read_score(text)


def test_number_of_samples_says_what_it_shows():
    assert shown_by(60).endswith("leave room for 5 % other answers")


def test_verdict_says_all_that_was_found():
    loss = Loss(num=1000, accuracy=0.9, fp32_accuracy=0.925, low=-0.001, high=0.05)
    near = Agreement(output="y", kind="values", num=9, cosine=0.9, error=0.05)
    share = Agreement(output="z", kind="classes", num=9, equal=0.95)
    verdict = GateVerdict(
        reason="", agreements=(share, near), loss=loss, score=0.5, fp32_score=0.75
    )
    assert str(verdict) == (
        "score 0.5 (fp32 0.75), loss 2.5 points (-0.1 to 5), cosine 0.9000, error 5 %"
    )
    assert verdict.agreement == 0.9
    assert GateVerdict(reason="", agreements=(share,)).agreement == 0.95
    assert str(GateVerdict(reason="why")) == ""
    assert asdict(GateLimits()) == {
        "agreement": asdict(AgreementLimits()), "most_loss": 0.002, "most_interval": 0.01,
    }  # fmt: skip


def test_refusal_has_the_figures_that_were_found():
    """Whatever it is for."""
    first, answers = gate()
    wanted = one_hot(answers)
    lost = first.judge(changed(answers, range(3)))
    assert (len(lost.agreements), lost.score, lost.fp32_score) == (1, None, None)
    assert lost.loss is not None
    assert (lost.loss.num, lost.loss.accuracy, lost.loss.fp32_accuracy) == (1000, 0.997, 1.0)
    shrunk = first.judge([{"y": each["y"] * np.float32(0.996)} for each in wanted])
    assert shrunk.loss is not None
    assert (len(shrunk.agreements), shrunk.loss.accuracy, shrunk.needs_samples) == (1, 1.0, False)
    plain = Gate(samples(), wanted, comparison_of(wanted, AgreementLimits()))
    refused = plain.judge(changed(answers, range(11)))
    (agreement,) = refused.agreements
    assert (agreement.equal, refused.loss, refused.needs_samples) == (0.989, None, False)
    scored = Gate(samples(), wanted, comparison_of(wanted, AgreementLimits()),
                  score=lambda answers, given: len(answers) / 4)  # fmt: skip
    found = scored.judge(wanted)
    assert (found.reason, found.score, found.fp32_score) == ("", 250.0, 250.0)
    assert (len(found.agreements), found.loss, found.needs_samples) == (1, None, False)


@pytest.mark.parametrize(("num_wrong", "is_hopeless"), [(50, False), (51, True)])
def test_answers_five_times_beyond_the_limits_are_hopeless(num_wrong, is_hopeless):
    classes = np.arange(NUM) % 10
    wanted = one_hot(classes)
    first = Gate(samples(), wanted, comparison_of(wanted, AgreementLimits()))
    assert first.is_hopeless(changed(classes, range(num_wrong)), 5.0) == is_hopeless
    scored = Gate(samples(), wanted, first.comparison, score=lambda answers, given: 0.0)
    assert not scored.is_hopeless(changed(classes, range(NUM)), 5.0)


@pytest.mark.parametrize(
    ("error", "far", "is_hopeless"), [(0.09, 5.0, False), (0.11, 5.0, True), (0.11, 6.0, False)]
)
def test_numbers_that_far_off_are_hopeless(error, far, is_hopeless):
    wanted = [{"y": np.float64([[1.0, -1.0, 1.0, -1.0]])}] * 4
    answers = [{"y": each["y"] * (1 + error)} for each in wanted]
    first = Gate(samples(4), wanted, comparison_of(wanted, AgreementLimits()))
    assert first.is_hopeless(answers, far) == is_hopeless
    turned = [{"y": np.float64([[1.0, -1.0, 1.0, 1.0]])}] * 4
    loose = Gate(samples(4), wanted, comparison_of(wanted, AgreementLimits(most_error=1)))
    assert loose.is_hopeless(turned, 5.0)
    assert not loose.is_hopeless(turned, 101.0)
