"""How a child is attempted and ended, without one."""

import os
import signal
import sys
from subprocess import DEVNULL, PIPE, STDOUT

import pytest

from serving.processes.child import Child, ChildCommand, Streams, environment
from serving.processes.end import End, not_started, out_of_memory, out_of_time
from serving.processes.pool import NO_LIMITS, JobLimits


class Refused(Exception):
    pass


@pytest.fixture
def attempted(monkeypatch):
    """Start children that can't be; returns the command and the options of each."""
    found = []

    def popen(command, **options):
        found.append((command, options))
        raise Refused

    monkeypatch.setattr("subprocess.Popen", popen)

    def start(command, **options):
        with pytest.raises(Refused):
            Child(command, **options)
        return found.pop()

    return start


def test_child_has_nothing_of_this_process_but_what_it_is_given(attempted, monkeypatch):
    monkeypatch.setattr(os, "environ", {"SERVING_TOKEN": "secret", "PATH": "/bin", "OWN": "1"})
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    command = ChildCommand("a.module", flags=("-I",), variables={"OWN": "2", "MORE": "3"})
    line, options = attempted(command, arguments=["serve", "x"], files=[77, 78])
    assert line[:3] == [sys.executable, "-I", "-c"]
    ending, lifeline, channel, *arguments = line[4:]
    assert (ending, arguments) == ("9", ["serve", "x"])
    assert options == {
        "stdin": DEVNULL,
        "stdout": DEVNULL,
        "stderr": DEVNULL,
        "pass_fds": [int(lifeline), int(channel), 77, 78],
        "start_new_session": True,
        "env": {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PATH": "/bin", "OWN": "2",
                "MORE": "3"},
    }  # fmt: skip


def test_child_has_the_streams_and_the_signal_of_its_command(attempted, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    command = ChildCommand("a", Streams(None, PIPE, STDOUT), end_signal=signal.SIGTERM)
    line, options = attempted(command)
    assert line[:3] == [sys.executable, "-B", "-c"]
    assert line[4] == "15"
    streams = [options[name] for name in ("stdin", "stdout", "stderr")]
    assert streams == [None, PIPE, STDOUT]


def test_own_number_of_threads_counts(monkeypatch):
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "4"})
    assert environment() == {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "4"}


class Ending(Child):
    """A child without a process; what is done with it is noted."""

    def __init__(self, *ends):
        self.ends, self.done = [*ends], []

    def wait(self, timeout_s=None):
        self.done.append(timeout_s)
        return self.ends.pop(0)

    def kill(self):
        self.done.append("kill")


@pytest.mark.parametrize(
    ("options", "ends", "done"),
    [
        ((), [None, End(-9)], [0.0, "kill", None]), ((), [End(0)], [0.0]),
        ((2.5,), [None, End(-9)], [2.5, "kill", None]), ((2.5,), [End(0)], [2.5]),
    ],
)  # fmt: skip
def test_child_is_killed_at_once_unless_it_is_given_time(options, ends, done):
    child = Ending(*ends)
    assert child.end(*options) == ends[-1]
    assert child.done == done


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (str(End(3)), "exit code 3"), (str(End(0)), "exit code 0"),
        (str(End(-11)), "SIGSEGV"), (str(End(-35)), "signal 35"),
        (str(End(-9)), "SIGKILL"), (str(End(-9, True)), "SIGKILL: out of memory"),
        (str(End(-11, True)), "SIGSEGV"),
        (str(End(74)), "it closed its connection to the server: expected that it closes only "
         "what it opened"),
        (out_of_time(60.0), "takes more than 60 s"), (out_of_time(0.25), "takes more than 0.25 s"),
        (out_of_memory(2 << 30), "takes more than 2048 MiB of memory"),
        (not_started(OSError(2, "no file")), "can't be started: no file"),
        (not_started(OSError("nothing")), "can't be started: nothing"),
    ],
)  # fmt: skip
def test_ends_have_these_words(text, expected):
    assert text == expected


def test_jobs_have_ten_minutes_and_any_memory_by_default():
    assert (JobLimits(), NO_LIMITS) == (JobLimits(0, 600.0), JobLimits(0, 600.0))
