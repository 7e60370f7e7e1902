"""What is changed for a while is changed back, where the work in it fails, too."""

import signal
from random import Random

import pytest

from serving.system import libc
from serving.system.crash_record import CrashRecord, number_of
from serving.system.host import Host
from serving.system.interrupts import ended_by_sigterm
from serving.system.libc import without_free_blocks


class Failed(Exception):
    pass


def test_signal_has_its_handler_again():
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @ended_by_sigterm()
    def fail():
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        raise Failed

    try:
        with pytest.raises(Failed):
            fail()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_blocks_are_given_back(monkeypatch):
    held: list[int] = []
    real = libc._libc()

    class Counting:
        def malloc(self, size):
            block = real.malloc(size)
            held.append(block)
            return block

        def free(self, block):
            held.remove(block)
            real.free(block)

    monkeypatch.setattr(libc, "_libc", Counting)

    @without_free_blocks()
    def fail():
        assert held
        raise Failed

    with pytest.raises(Failed):
        fail()
    assert held == []


def test_run_that_fails_is_no_culprit_of_a_later_crash():
    record = CrashRecord()

    def fail(feeds):
        assert record.culprits() == {number_of(("m", "1"))}
        raise Failed

    run = record.guarded(("m", "1"), fail)
    for _ in range(1000):  # more than there are slots
        with pytest.raises(Failed):
            run({})
    assert record.culprits() == frozenset()


def test_machine_guards_no_run_and_draws_at_random():
    """Two kinds of chance: what is drawn for checks changes nothing that callers see."""
    host = Host()
    run = host.guard(("m", "1"), len)
    assert run is len
    assert isinstance(host.random, Random)
    assert isinstance(host.checks_random, Random)
    assert host.random is not host.checks_random
