import pytest

from training.lab.study.intervals import difference_interval, mcnemar, mean_interval


def test_mcnemar_is_the_sign_test_of_the_disagreements() -> None:
    assert mcnemar(5, 0) == 2 / 32  # all of five the same way, of either sign
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(3, 3) == mcnemar(0, 0) == 1


def test_mcnemar_copes_with_many_disagreements() -> None:
    assert 0 <= mcnemar(2_000, 100) < 1e-300


def test_difference_has_clopper_and_pearsons_interval() -> None:
    # 8 of 10: 0.4439 to 0.9748 in any table of exact binomial intervals
    assert difference_interval(8, 2) == pytest.approx((10 * -0.1122, 10 * 0.9496), abs=1e-3)
    assert difference_interval(2, 8) == pytest.approx((10 * -0.9496, 10 * 0.1122), abs=1e-3)
    assert difference_interval(0, 0) == (0, 0)


def test_difference_is_certain_exactly_where_mcnemar_says_so() -> None:
    for gained in range(25):
        for lost in range(25):
            low, high = difference_interval(gained, lost)
            assert low <= gained - lost <= high
            assert (low > 0 or high < 0) == (mcnemar(gained, lost) < 0.05)


def test_mean_has_students_interval() -> None:
    # 4.3027: Student's 97.5 % quantile with 2 degrees of freedom; the deviation is 1
    assert mean_interval([1, 2, 3]) == pytest.approx(
        (2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3
    )
    assert mean_interval([1]) is None
