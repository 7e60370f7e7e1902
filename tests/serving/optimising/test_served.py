"""The last look, with servers that are not there: who is asked when, and what that says."""

from pathlib import Path
from typing import Any

import pytest

from serving.optimising import served
from serving.optimising.measure import Gain
from serving.optimising.served import Served, call_in_turns, is_confirmed, measure_served

MINE, ITS = [30.0, 10.0, 40.0], [10.0, 20.0, 10.0]
"""Rates of the candidate and of fp32, in the same rounds."""


@pytest.fixture
def servers_of(monkeypatch):
    """The repositories that are served, with their options; closed ones are in capitals."""
    servers = []

    class Server:
        def __init__(self, **options):
            servers.append(options)
            self.address = f"address {len(servers)}"

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            servers.append("closed")

    monkeypatch.setattr(served, "Server", Server)
    return servers


def test_both_are_served_alike_and_callers_of_each_number_call_them(servers_of, monkeypatch):
    asked = []

    def in_turns(*given):
        asked.append(given)
        return [ITS, MINE]

    monkeypatch.setattr(served, "call_in_turns", in_turns)
    progress = []
    places = [Path("fp32"), Path("other")]
    calls = [{"x": [1]}]
    found = measure_served(places, "net", calls, progress.append, "cpu")
    options = {"device": "cpu", "http_port": None, "metrics_port": None}
    assert servers_of == [{"models": each, **options} for each in places] + ["closed"] * 2
    addresses = ["address 1", "address 2"]
    assert asked == [(addresses, "net", calls, each, progress.append) for each in (1, 16)]
    gain = Gain(median=3.0, least=0.5, most=4.0, is_sure=False)
    assert found == [Served(callers=each, rate=30.0, fp32_rate=10.0, gain=gain) for each in (1, 16)]


def test_servers_end_where_calls_fail_and_are_on_any_device_unless_one_is_named(
    servers_of, monkeypatch
):
    def fail(*_):
        raise KeyError

    monkeypatch.setattr(served, "call_in_turns", fail)
    with pytest.raises(KeyError):
        measure_served([Path("a"), Path("b")], "net", [], lambda: None)
    assert [each["device"] for each in servers_of[:2]] == ["auto", "auto"]
    assert servers_of[2:] == ["closed", "closed"]


def test_servers_are_called_in_turns_and_each_round_begins_with_another(monkeypatch):
    asked, rounds = [], []

    def rate(address, *given):
        asked.append((address, *given))
        return len(asked)

    monkeypatch.setattr(served, "_rate", rate)
    calls: list[Any] = ["call"]
    found = call_in_turns(["a", "b"], "net", calls, 16, lambda: rounds.append(len(asked)))
    turns = "abbaabbaab"
    assert asked == [(each, "net", ["call"], 16) for each in turns]
    assert rounds == [2, 4, 6, 8, 10]
    assert found == [[at for at, each in enumerate(turns, 1) if each == one] for one in "ab"]


def gain(median, least):
    return Gain(median=median, least=least, most=9.0, is_sure=False)


@pytest.mark.parametrize(
    ("callers", "median", "least", "why"),
    [
        (1, 0.97, 0.1, ""),
        (1, 0.969, 2.0, "a lone caller got 0.97 (2.00 to 9.00)"),
        (2, 0.5, 1.001, ""),
        (2, 3.0, 1.0, "2 callers got 3.00 (1.00 to 9.00)"),
        (16, 3.0, 0.9, "16 callers got 3.00 (0.90 to 9.00)"),
    ],
)
def test_gain_holds_if_many_always_gain_and_a_lone_caller_loses_nothing(
    callers, median, least, why
):
    good = Served(callers=1, rate=1.0, fp32_rate=1.0, gain=gain(2.0, 2.0))
    one = Served(callers=callers, rate=1.0, fp32_rate=1.0, gain=gain(median, least))
    expected = why and f"through the server {why} times fp32's rate"
    assert is_confirmed([good, one]) == expected
    assert is_confirmed([]) == ""
