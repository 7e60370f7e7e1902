"""How fast models are, with runs and calls that take as long as a test says."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.errors import InvalidRequest, ServingError, Unavailable
from serving.optimising import measure, served
from serving.optimising.measure import Gain, Meter, Rates, batch_rows
from tests.support.fakes import TIMEOUT_S, FakeClock


class Model:
    """Takes so long for a run, by a clock."""

    def __init__(self, clock=None, run_s=0.0, is_batchable=True):
        self.tensors = SimpleNamespace(is_batchable=is_batchable)
        self.clock, self.run_s = clock, run_s
        self.asked: list[Any] = []

    def run(self, feeds):
        self.asked.append(feeds)
        if self.clock is not None:
            self.clock.advance(self.run_s)

    def stoppable(self, **options):
        self.asked.append(options)
        return self.run, None


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=clock))
    return clock


@pytest.mark.parametrize(
    ("row_s", "most", "rows"),
    [(0.0, 512, 64), (0.00003, 512, 64), (0.0001, 512, 32), (0.0002, 512, 16), (0.0004, 512, 8),
     (1.0, 512, 8), (0.0, 48, 48), (1.0, 4, 4)],
)  # fmt: skip
def test_batch_takes_five_milliseconds_within_its_limits(row_s, most, rows, clock):
    model: Any = Model(clock, row_s)
    calls: Any = [{"x": 1}, {"x": 2}]
    assert batch_rows(model, calls, most) == rows
    assert model.asked == [{"x": 1}] * 3
    alone: Any = Model(clock, row_s, is_batchable=False)
    assert batch_rows(alone, calls, most) == 1
    assert not alone.asked


@pytest.mark.parametrize(
    ("seconds", "num_runs"), [(0.001, 61), (0.0125, 6), (0.02, 4), (0.03, 4), (1.0, 4)]
)
def test_rate_is_of_the_median_run_of_three_or_of_60_ms(seconds, num_runs, clock):
    """The first one does not count."""
    runs: Any = []

    def job(name):
        return lambda: runs.append(name) or clock.advance(seconds)

    assert measure._rate([job("a"), job("b")], 8) == pytest.approx(8 / seconds)
    assert abs(len(runs) - num_runs) <= (num_runs == 61)
    assert runs == ["a", *["a", "b"] * 40][: len(runs)]


def test_run_that_fails_takes_for_ever(clock):
    def fail():
        raise InvalidRequest("not this one")

    assert measure._run_s(fail) == float("inf")


def test_models_run_alone_and_busy_and_each_round_begins_with_another(monkeypatch):
    rounds: list[tuple[int, int]] = []

    def rate(jobs, rows):
        for job in jobs:
            job()
        rounds.append((len(jobs), rows))
        return len(rounds)

    monkeypatch.setattr(measure, "_rate", rate)
    calls: Any = [{"x": np.full((1, 2), at)} for at in range(5)]
    calls[1] = {"x": np.zeros((1, 3))}
    one, other = Model(), Model(is_batchable=False)
    models: Any = {"one": one, "other": other}
    done: list[int] = []
    found = Meter(calls, 4).measure(models, 2, lambda: done.append(len(rounds)))
    assert found == {
        "one": Rates(alone=(1, 7), busy=(2, 8), batch=4),
        "other": Rates(alone=(3, 5), busy=(4, 6), batch=1),
    }
    assert rounds == [(4, 1), (1, 4), *[(4, 1)] * 5, (1, 4)]
    assert done == [2, 4, 6, 8]
    assert one.asked[0] == other.asked[0] == {"is_alone": True}
    assert [each["x"].tolist() for each in one.asked[1:5]] == [
        each["x"].tolist() for each in calls[:4]
    ]
    assert one.asked[5]["x"].tolist() == [[0, 0], [2, 2], [3, 3], [0, 0]], "of one shape"
    (alone,) = Meter(calls, 1).measure({"one": models["one"]}, 1, lambda: None).values()
    assert alone.batch == 1


def test_rounds_are_joined_and_gains_are_of_the_same_rounds():
    first, second = Rates(alone=(1,), busy=(2,), batch=8), Rates(alone=(3,), busy=(4,), batch=9)
    assert first.joined(second) == Rates(alone=(1, 3), busy=(2, 4), batch=8)
    assert Gain.of((20, 10, 30), (10, 4, 10)) == Gain(
        median=2.5, least=2.0, most=3.0, is_sure=False
    )
    assert Gain.of((11, 30, 20), (5, 10, 10)) == Gain(median=2.2, least=2.0, most=3.0, is_sure=True)


@pytest.fixture
def client_of(monkeypatch):
    """Have callers of a server that takes so long for a call, or fails; returns what they ask."""

    def make(call_s, error=None):
        clock, begun, asked = FakeClock(), threading.Event(), []
        main = threading.current_thread()

        def now():
            if threading.current_thread() is main:
                begun.set()  # it has the begin of the round
            return clock()

        class Client:
            def __init__(self, address, timeout_s):
                asked.append((address, timeout_s))

            def __enter__(self):
                return self

            def __exit__(self, *exc_info):
                asked.append("closed")

            def wait_ready(self):
                asked.append("ready")

            def infer(self, name, call):
                asked.append((name, call))
                if threading.current_thread() is main:
                    return
                assert begun.wait(TIMEOUT_S)
                if error is not None:
                    raise error
                clock.advance(call_s)

        monkeypatch.setattr(served, "Client", Client)
        monkeypatch.setattr(served, "time", SimpleNamespace(perf_counter=now))
        return asked

    return make


@pytest.mark.parametrize(
    ("call_s", "num_calls", "rate"),
    [(0.125, 4, 8.0), (0.0625, 7, 15.0), (0.25, 3, 4.0), (9.0, 3, 1 / 9), (11.0, 2, 1 / 11),
     (21.0, 1, 1 / 21)],
)  # fmt: skip
def test_caller_calls_for_400_ms_three_times_at_least_and_no_longer_than_20_s(
    call_s, num_calls, rate, client_of
):
    asked = client_of(call_s)
    calls: Any = [{"x": 1}, {"x": 2}, {"x": 3}]
    assert served._rate("there", "net", calls, 1) == pytest.approx(rate)
    expected = [("net", {"x": 1 + at % 3}) for at in range(num_calls)]
    assert asked == [("there", 60.0), "ready", ("net", {"x": 1}), *expected, "closed"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(Unavailable("gone"), Unavailable("gone")),
     (KeyError("x"), ServingError("a call failed: 'x'"))],
)  # fmt: skip
def test_call_that_fails_is_the_servers_error(error, expected, client_of):
    client_of(0.1, error)
    calls: Any = [{"x": 1}]
    with pytest.raises(ServingError) as caught:
        served._rate("there", "net", calls, 2)
    assert (type(caught.value), str(caught.value)) == (type(expected), str(expected))
