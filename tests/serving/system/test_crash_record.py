"""A worker's record of crashes: the models that run when it ends."""

import os
import signal
import threading

import pytest

from serving.system.crash_record import CRASHES, CrashRecord, number_of

A, B = ("a", "1"), ("b", "1")


@pytest.fixture
def record():
    record = CrashRecord()
    yield record
    record.close()


def test_numbers_name_versions():
    labels = [A, B, ("a", "2"), ("a1", ""), ("", "a1"), ("", "")]
    assert len({number_of(label) for label in labels}) == len(labels)
    assert all(-(2**63) <= number_of(label) < 2**63 for label in labels)


def test_models_are_noted_while_they_run_and_by_the_other_side(record):
    other = CrashRecord(record.file)
    seen = []

    def look(feeds):
        seen.append(other.culprits())
        return feeds

    assert record.guarded(A, record.guarded(B, look))("feeds") == "feeds"
    assert seen == [{number_of(A), number_of(B)}]
    assert record.culprits() == other.culprits() == frozenset()


def test_run_that_fails_is_over(record):
    def fail(feeds):
        raise KeyError(feeds)

    for _ in range(200):  # more than there are slots
        with pytest.raises(KeyError):
            record.guarded(A, fail)("x")
    assert record.culprits() == frozenset()
    assert record.guarded(A, lambda _: record.culprits())(0) == {number_of(A)}


def test_threads_beyond_the_slots_run_and_are_not_noted(record):
    def nested(depth):
        if depth == 0:
            return record.guarded(B, lambda _: record.culprits())(0)
        return record.guarded(A, lambda _: nested(depth - 1))(0)

    assert nested(63) == {number_of(A), number_of(B)}
    assert nested(64) == {number_of(A)}
    assert nested(100) == {number_of(A)}
    assert record.culprits() == frozenset()


def test_trace_names_the_thread_whose_model_it_was(record):
    """The trace is written behind the slots, from the file's position on."""
    runs, names = threading.Barrier(3, timeout=20.0), {}

    def work(label):
        def run(_):
            names[label] = threading.get_ident()
            runs.wait()
            runs.wait()

        record.guarded(label, run)(0)

    threads = [threading.Thread(target=work, args=(label,)) for label in (A, B)]
    for thread in threads:
        thread.start()
    runs.wait()
    try:
        assert record.culprits() == {number_of(A), number_of(B)}
        os.write(record.file, b"Fatal Python error: Aborted\n\nThread 0x%x:\n" % names[A])
        assert record.culprits() == {number_of(A), number_of(B)}
        os.write(record.file, b"\nCurrent thread 0x%016x (most recent call first):\n" % names[B])
        assert record.culprits() == {number_of(B)}
    finally:
        runs.wait()
        for thread in threads:
            thread.join()


def test_crashes_are_signals_by_which_a_process_ends_through_its_own_instructions():
    names = {"SIGFPE", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL"}
    assert {signal.Signals(number).name for number in CRASHES} == names
