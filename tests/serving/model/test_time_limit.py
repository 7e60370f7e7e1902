"""Steps that can't be stopped: how long they are waited for, by looks that the test makes."""

import threading
from types import SimpleNamespace

import pytest

from serving.model import time_limit
from serving.model.time_limit import note_slow, within
from tests.support.fakes import FakeClock


@pytest.fixture
def looks(monkeypatch):
    """Looks at a step that goes on; each lasts as long as it says, and the step takes `used_s`."""
    clock, gate = FakeClock(), threading.Event()
    found = SimpleNamespace(gate=gate, seconds=[], used_s=0.0, of_each_s=0.0)

    def wait(waited, look_s):
        found.seconds.append(look_s)
        clock.advance(look_s)
        found.used_s += found.of_each_s
        return SimpleNamespace(done=False)

    monkeypatch.setattr(time_limit, "concurrent", SimpleNamespace(
        futures=SimpleNamespace(wait=wait)))  # fmt: skip
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(time_limit, "_thread_clock", lambda: lambda: found.used_s)
    yield found
    gate.set()


def test_step_that_takes_no_processor_time_for_a_minute_hangs(looks):
    slow = []
    with pytest.raises(TimeoutError, match=r"^makes no progress for 60 s$"):
        within(10.0, looks.gate.wait, on_slow=lambda: slow.append(len(looks.seconds)))
    assert looks.seconds == [0.25] * 240
    assert slow == [8], "after two seconds, once"


def test_step_that_goes_on_has_its_processor_time(looks):
    looks.of_each_s = 0.125
    with pytest.raises(TimeoutError, match=r"^is not ready after 10 s of processor time$"):
        within(10.0, looks.gate.wait)
    assert looks.used_s == 10.125


def test_step_that_goes_on_now_and_then_does_not_hang(looks):
    """Only looks in a row count."""
    futures = vars(time_limit)["concurrent"].futures
    waits = futures.wait

    def wait(waited, look_s):
        looks.of_each_s = 0.5 * (len(looks.seconds) % 239 == 238)
        return waits(waited, look_s)

    futures.wait = wait
    with pytest.raises(TimeoutError, match="is not ready after 1 s of processor time"):
        within(1.0, looks.gate.wait)
    assert len(looks.seconds) == 3 * 239


def test_line_of_a_slow_step_has_its_limit(caplog):
    caplog.set_level("INFO", "serving.model.time_limit")
    note_slow("net version 3", "the check", 10.0)
    assert caplog.messages == [
        "model net version 3: the check goes on after 2 s; the limit is 10 s of processor time"
    ]
