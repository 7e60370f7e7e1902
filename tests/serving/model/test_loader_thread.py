"""The limit of a step of loading counts the step's own work, not its waits."""

import threading

import pytest

from serving.model import loading
from serving.model.loading import within


class Step:
    """A step that shows its processor time as a test likes, and ends after some looks at it."""

    def __init__(self, used_s, num_looks=10_000):
        self._used_s, self._num_looks = used_s, num_looks
        self.num_seen = 0
        self.ended = threading.Event()

    def clock(self):
        self.num_seen += 1
        if self.num_seen >= self._num_looks:
            self.ended.set()
        return self._used_s(self.num_seen)

    def run(self, monkeypatch):
        monkeypatch.setattr(loading, "_thread_clock", lambda: self.clock)
        try:
            return within(10.0, self.ended.wait, look_s=1e-4)
        finally:
            self.ended.set()


def test_step_that_gets_little_processor_time_goes_on(monkeypatch):
    step = Step(lambda looks: looks // 100 * 0.1, num_looks=1000)  # waits for 25 s at a time
    assert step.run(monkeypatch)
    assert step.num_seen >= 1000


def test_endless_step_is_left_behind(monkeypatch):
    step = Step(lambda looks: looks * 0.25)
    with pytest.raises(TimeoutError, match="is not ready after 10 s of processor time"):
        step.run(monkeypatch)
    assert step.num_seen == 41


def test_step_that_hangs_is_left_behind(monkeypatch):
    step = Step(lambda looks: 0.5)
    with pytest.raises(TimeoutError, match="makes no progress"):
        step.run(monkeypatch)
    assert step.num_seen == 241


def test_step_that_computes_without_end_is_left_behind():
    ended = threading.Event()

    def compute():
        while not ended.is_set():
            pass

    with pytest.raises(TimeoutError, match="processor time"):
        within(0.1, compute, look_s=0.01)
    ended.set()
