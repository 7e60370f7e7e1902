"""Children: how one starts, what it gets, and how it ends, with all that it has forked."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

import serving
from serving.processes import child as children_module
from serving.processes.child import Child, ChildCommand
from serving.processes.end import LOST, End
from serving.processes.lifeline import Lifeline, end_with
from tests.serving.handlers.conftest import named
from tests.serving.processes import programs
from tests.support.servers import children, wait_until

pytestmark = pytest.mark.process
PROGRAM = ChildCommand(programs.__name__)
WAIT_S = 30.0


@pytest.fixture
def start():
    """Start children, and end them."""
    with ExitStack() as stack:

        def one(*words, command=PROGRAM, **options):
            child = Child(command, words, **options)
            child.channel.settimeout(WAIT_S)
            stack.callback(child.channel.close)
            stack.callback(child.end)
            return child

        yield one


def facts_of(child):
    """The next line of its answers."""
    line = b""
    while not line.endswith(b"\n"):
        part = child.channel.recv(1)
        assert part, "it has ended"
        line += part
    return json.loads(line)


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def environment_of(pid):
    """The names that a process has started with, as its user sees them in /proc."""
    content = Path(f"/proc/{pid}/environ").read_text()
    return {each.partition("=")[0] for each in content.split("\0")}


# What a child gets


def test_child_gets_what_it_is_given_and_leads_a_group(start):
    with open(os.devnull) as given, open(os.devnull) as kept:
        os.set_inheritable(kept.fileno(), True)
        child = start("say", "word", arguments=["serve", "x"], files=[given.fileno()])
        facts = facts_of(child)
        assert given.fileno() in facts["files"]
        assert kept.fileno() not in facts["files"]
    assert (facts["word"], facts["argv"]) == ("word", ["serve", "x"])
    assert facts["group"] == facts["session"] == child.pid
    assert facts["path"] == sys.path


def test_environment_is_this_ones_without_secrets(start, monkeypatch):
    monkeypatch.setenv("SERVING_TOKEN", "a-secret-of-many-letters")
    monkeypatch.setenv("SERVING_WORD", "kept")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    child = start("say", command=PROGRAM._replace(variables={"OWN": "1"}))
    names = {*facts_of(child)["names"]}
    assert {"SERVING_WORD", "OWN", "OMP_NUM_THREADS", "PATH"} <= names
    assert "SERVING_TOKEN" not in names


def test_no_child_of_a_server_has_its_token_in_its_environment(monkeypatch):
    """The server's own process, workers, a handler's, and those that read pictures and JSON."""
    token = "a-secret-of-many-letters"
    monkeypatch.setenv("SERVING_TOKEN", token)
    handlers = named(behaviours="Behaviours")
    with serving.Server(handler=handlers, workers=2, handler_processes=1) as server:
        with serving.Client(server.address, timeout_s=20, token=token) as client:
            client.infer("behaviours", {"text": ["say it"]})
        with serving.Client(server.address) as client, pytest.raises(serving.Unauthenticated):
            client.infer("behaviours", {"text": ["say it"]})
        found, next_ones = [], [server.pid]
        while next_ones:
            found += next_ones
            next_ones = [each for pid in next_ones for each in children(pid)]
        assert len(found) >= 1 + 2 + 2 + 2, "a kind of child is missing"
        for pid in found:
            names = environment_of(pid)
            assert "PATH" in names
            assert "SERVING_TOKEN" not in names, Path(f"/proc/{pid}/cmdline").read_text()


def test_child_that_cannot_start_leaves_no_descriptor(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        Child(PROGRAM)
    assert len(os.listdir("/proc/self/fd")) == len(before)


# How it ends


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["leave", 3], "exit code 3"),
        (["leave", 0], "exit code 0"),
        (["crash", signal.SIGSEGV], "SIGSEGV"),
        (["crash", signal.SIGKILL], "SIGKILL"),
        (["crash", 35], "signal 35"),
        (["leave", LOST], "it closed its connection to the server: expected that it closes only"),
    ],
)
def test_end_has_one_word(start, words, said):
    assert str(start(*words).wait(WAIT_S)).startswith(said)


def test_kernels_kill_for_want_of_memory_is_named_and_ours_is_not(start, monkeypatch):
    counts = iter([0, 1, 1, 2, 2, 3])
    monkeypatch.setattr(children_module, "num_killed_for_memory", lambda: next(counts))
    killed, ended, crashed = (
        start("crash", signal.SIGKILL).end(WAIT_S),
        start("wait").end(),
        start("crash", signal.SIGSEGV).end(WAIT_S),
    )
    assert [*map(str, (killed, ended, crashed))] == ["SIGKILL: out of memory", "SIGKILL", "SIGSEGV"]


def test_child_that_ends_before_its_words_are_read_is_an_end(monkeypatch):
    popen = subprocess.Popen

    def dead(command, **options):
        process = popen(["false"], **options)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return process

    monkeypatch.setattr("subprocess.Popen", dead)
    child = Child(PROGRAM, bytes(1 << 20))
    assert child.wait(WAIT_S) == End(1)
    child.channel.close()


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_wait_ends_those_that_are_left_behind(start, monkeypatch, has_descriptors):
    if not has_descriptors:  # Linux before 5.3

        def refuse(pid):
            raise OSError

        monkeypatch.setattr(os, "pidfd_open", refuse)
    child = start("leave", 0)
    left = facts_of(child)["pid"]
    assert child.wait(WAIT_S) == End(0)
    wait_until(lambda: not is_alive(left))
    assert child.wait() == child.end() == End(0), "again"
    child.kill()
    child.signal(signal.SIGTERM)


@pytest.mark.parametrize("how", ["", "stopped", "locked"])
def test_kill_ends_the_group_though_it_be_stopped(start, how):
    child = start("wait", how)
    left = facts_of(child)["pid"]
    assert child.wait(0) is None
    assert child.memory_bytes() > 1 << 20
    assert child.end() == End(-signal.SIGKILL)
    wait_until(lambda: not is_alive(left))


def test_threads_that_wait_all_get_the_end(start):
    child = start("wait")
    found: list[End | None] = []
    threads = [threading.Thread(target=lambda: found.append(child.wait())) for _ in range(4)]
    for thread in threads:
        thread.start()
    child.kill()
    for thread in threads:
        thread.join(WAIT_S)
    assert found == [End(-signal.SIGKILL)] * 4


# With its parent


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_all_end_with_a_parent_that_any_signal_ends(start, number):
    """Started by a thread that has gone, and though a fork of the parent lives on."""
    hows = ["", "stopped", "locked"]
    facts = {}

    def ends():
        child = Child(PROGRAM, ["parent", hows])
        child.channel.settimeout(WAIT_S)
        facts.update(facts_of(child))
        child.signal(number)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its group lives on
        return child

    child = ends()
    try:
        for pid in (each for pair in facts["pids"] for each in pair):
            wait_until(partial(lambda pid: not is_alive(pid), pid))
        assert is_alive(facts["fork"])
    finally:
        child.end()
        child.channel.close()
        for pid, _ in facts["pids"]:  # if they have not ended
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def test_child_that_is_asked_to_end_ends_its_own(start):
    """SIGTERM is for itself alone: its own children go on until it ends them."""
    child = start("wait", "term", command=PROGRAM._replace(end_signal=signal.SIGTERM))
    left = facts_of(child)["pid"]
    child.release()
    child.release()  # again
    assert facts_of(child) == {"got": "SIGTERM"}
    assert is_alive(left)
    child.end()
    wait_until(lambda: not is_alive(left))


def test_lifeline_that_was_closed_before_is_noticed():
    got = []
    before = signal.signal(signal.SIGUSR1, lambda *_: got.append(True))
    lifeline = Lifeline()
    try:
        lifeline.close()
        end_with(lifeline.reader, signal.SIGUSR1, os.getpid())
        assert got
    finally:
        os.close(lifeline.reader)
        signal.signal(signal.SIGUSR1, before)


def test_group_of_a_handlers_process_ends_with_a_server_that_is_killed():
    with serving.Server(handler=named(behaviours="Behaviours"), handler_processes=1) as server:
        with serving.Client(server.address, timeout_s=20) as client:
            answer = client.infer("behaviours", {"text": ["fork"]})
        pids = int(answer["pid"][0]), int(answer["answer"][0])
        assert all(map(is_alive, pids))
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, pids)))


def test_own_process_of_a_server_says_how_it_has_ended(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif any('serving.launch' in each for each in sys.orig_argv): os.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(serving.Unavailable, match="the server ended with SIGABRT"):
        serving.Server(tmp_path / "net.onnx")


def test_end_that_names_no_time_kills_at_once(start):
    """It asks once whether the child has ended, without a wait, and waits after the kill alone."""
    child = start("wait")
    waits = []
    ended = child.wait

    def wait(timeout_s=None):
        waits.append(timeout_s)
        return ended(timeout_s)

    child.wait = wait
    assert child.end().code == -signal.SIGKILL
    assert waits == [0.0, None]
