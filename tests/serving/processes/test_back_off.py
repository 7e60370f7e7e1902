"""Pauses between tries that fail."""

import pytest

from serving.processes.back_off import (
    HANDLER_ENDS,
    HANDLER_STARTS,
    MODEL_CRASHES,
    WORKER_DEATHS,
    BackOff,
)


@pytest.mark.parametrize(
    ("series", "pauses"),
    [
        (WORKER_DEATHS, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]),
        (HANDLER_STARTS, [1, 2, 4, 8, 16, 32, 60, 60]),
        (HANDLER_ENDS, [1, 2, 4, 8, 10, 10]),
        (MODEL_CRASHES, [5, 10, 20, 40, 80, 160, 320, 600, 600]),
    ],
)
def test_pauses_grow_up_to_the_most_and_begin_again(series, pauses):
    back_off = BackOff(series)
    assert [back_off.fail() for _ in pauses] == pytest.approx(pauses)
    for _ in range(10_000):
        assert back_off.fail() == series.most
    back_off.reset()
    assert back_off.num_failures == 0
    assert back_off.fail() == series.first


@pytest.mark.parametrize(("series", "good_s"), [(WORKER_DEATHS, 30.0), (MODEL_CRASHES, 1_800.0)])
def test_failure_after_a_good_time_is_the_first_again(series, good_s):
    back_off = BackOff(series)
    for _ in range(3):
        back_off.fail()
    assert back_off.fail(0.9 * good_s) == 8 * series.first
    assert back_off.fail(good_s) == series.first
    assert back_off.num_failures == 1
