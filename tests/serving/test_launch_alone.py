"""A server from Python whose process is a test's: its words, its ready line, and its end."""

import io
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import serving
from serving import launch
from serving.errors import ConfigurationError, Unavailable
from serving.launch import Server, _facts_in, arguments
from serving.processes.child import ChildCommand, Streams
from serving.processes.end import End
from serving.system import signals

READY = b"serving model=net address=127.0.0.1:1 metrics=127.0.0.1:2 http=http://127.0.0.1:3\n"


class Child:
    """A process that says this, and ends so."""

    def __init__(self, command, words, *, arguments):
        self.command, self.words, self.arguments = command, words, arguments
        self.done: list[Any] = []
        self.pid, self.output, self.errors = 7, io.BytesIO(self.says), io.BytesIO(self.complains)
        self.channel = SimpleNamespace(close=lambda: self.done.append("closed"))
        self.made.append(self)

    says, complains = READY, b""
    end_: End | None = None
    failure: BaseException | None = None
    made: list["Child"]

    def wait(self, timeout_s):
        return self.end_

    def release(self):
        self.done.append("released")

    def end(self, timeout_s):
        self.done.append(timeout_s)
        if self.failure is not None:
            raise self.failure
        return End(0)


@pytest.fixture
def child(monkeypatch):
    """The class of the processes: what it is told holds for each of them."""
    monkeypatch.setattr(launch, "Child", Child)
    monkeypatch.setattr(Child, "made", [], raising=False)
    for name in ("says", "complains", "end_", "failure"):
        monkeypatch.setattr(Child, name, getattr(Child, name))
    monkeypatch.delenv("SERVING_TOKEN", raising=False)
    return Child


def test_server_is_started_as_the_command_is_and_chooses_its_ports(child, monkeypatch):
    monkeypatch.setenv("SERVING_TOKEN", "a-secret-of-many-letters")
    with Server("a.onnx", "b.onnx", workers=2) as server:
        (one,) = child.made
        assert one.command == ChildCommand(
            "serving.launch", Streams(-3, -1, -1), end_signal=signal.SIGTERM
        ), "it drains when this process ends"
        assert one.words == {"SERVING_TOKEN": "a-secret-of-many-letters"}
        assert one.arguments == [
            "serve", "a.onnx", "b.onnx", "--port", "0", "--metrics-port", "0", "--http-port", "0",
            "--workers", "2",
        ]  # fmt: skip
        assert (server.address, server.http_address, server.metrics_address, server.pid) == (
            "127.0.0.1:1", "127.0.0.1:3", "127.0.0.1:2", 7)  # fmt: skip
        assert one.done == []
    assert one.done == ["released", 40.0, "closed"]
    assert all(each.daemon for each in server._threads), "they end with this program"


def test_port_that_is_none_is_off():
    words = arguments(("m.onnx",), {"http_port": None, "metrics_port": None, "slo": None})
    assert words == ["m.onnx", "--http-port", "off", "--metrics-port", "off"]


@pytest.mark.parametrize("lacking", ["python_multipart", "h11", None])
def test_http_is_off_where_its_packages_are_not_there(lacking, child, monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None if name == lacking else "it")
    Server().close()
    (one,) = child.made
    assert one.arguments[-2:] == ["--http-port", "off" if lacking else "0"]


def test_start_has_a_minute(child, monkeypatch):
    waits: list[Any] = []
    monkeypatch.setattr(Server, "_wait", lambda self, until_s, timeout_s: waits.append(timeout_s))
    Server().close()
    Server(start_timeout_s=2).close()
    assert waits == [60.0, 2.0]


def test_server_that_is_not_ready_in_time_is_killed(child):
    child.says, child.complains = b"nothing\n", b"a line\nanother one\n"
    with pytest.raises(Unavailable) as caught:
        Server(start_timeout_s=0)
    assert str(caught.value).startswith("the server was not ready within 0 s")
    assert child.made[0].done == ["released", 0.0, "closed"]


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [(2, ConfigurationError, "exit code 2"), (1, Unavailable, "exit code 1"),
     (-6, Unavailable, "SIGABRT")],
)  # fmt: skip
def test_server_that_ends_instead_shows_its_last_lines(code, kind, text, child):
    child.says, child.end_ = b"", End(code)
    child.complains = b"".join(b"line %d\n" % number for number in range(25))
    with pytest.raises(kind) as caught:
        Server()
    last = "".join(f"\nline {number}" for number in range(5, 25))
    assert str(caught.value) == f"the server ended with {text}{last}"


def test_server_that_has_served_and_ended_already_was_ready(child, monkeypatch):
    """Its end may be seen before its ready line is read."""
    child.end_ = End(0)
    is_read, read = threading.Event(), Server._read_output

    def late(self, output):
        assert is_read.wait(20.0)
        read(self, output)

    class Thread(threading.Thread):
        """The line is there once somebody waits for those that read."""

        def join(self, timeout=None):
            is_read.set()
            super().join(timeout)

    monkeypatch.setattr(Server, "_read_output", late)
    monkeypatch.setattr(threading, "Thread", Thread)
    with Server() as server:
        assert server.address == "127.0.0.1:1"


def test_what_was_opened_is_closed_though_the_end_is_interrupted(child):
    server = Server()
    child.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        server.close()
    assert child.made[0].done == ["released", 40.0, "closed"]
    child.failure = None
    server.close()


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("serving a=1 b=c=d\n", {"a": "1", "b": "c=d"}),
        ('{"message": "serving", "a": 1}', {"message": "serving", "a": "1"}),
        ('{"message": "starting", "a": 1}', {}), ("{", {}), ("try it: a=1", {}), ("", {}),
    ],
)  # fmt: skip
def test_ready_line_has_the_facts(line, facts):
    assert _facts_in(line) == facts


# In this process


@pytest.fixture
def handlers():
    """The handlers of signals, as this process had them before."""
    before = {number: signal.getsignal(number) for number in signals.HANDLED}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("way", ["good", "cut off", "fails", "lacks a package"])
def test_serving_in_this_process_leaves_its_signals_as_they_were(way, handlers, monkeypatch):
    done: list[Any] = []

    def runtime():
        done.append("runtime")
        if way == "lacks a package":
            raise ConfigurationError("onnxruntime is not installed")

    def until_stopped(options):
        assert {signal.getsignal(each) for each in signals.HANDLED} == {signals._handle}
        done.append((options.files, options.workers))
        if way == "fails":
            raise ConfigurationError("it fails")
        return way == "good"

    monkeypatch.setattr("serving.model.onnx_runtime.runtime", runtime)
    monkeypatch.setattr(launch, "serve_until_stopped", until_stopped)
    if way == "good":
        serving.serve("a.onnx", workers=3)
    else:
        text = {"cut off": "^the server was stopped before every accepted call was answered$",
                "fails": "^it fails$", "lacks a package": "^onnxruntime is not"}[way]  # fmt: skip
        with pytest.raises(Unavailable if way == "cut off" else ConfigurationError, match=text):
            serving.serve("a.onnx", workers=3)
    served = [] if way == "lacks a package" else [([Path("a.onnx")], 3)]
    assert done == ["runtime", *served]
    assert {number: signal.getsignal(number) for number in signals.HANDLED} == handlers


def test_process_of_a_server_has_its_secrets_and_runs_the_command(handlers, monkeypatch):
    done: list[Any] = []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("sys.argv", ["launch", "serve", "a.onnx"])

    def run(words):
        done.append(words)
        return 3

    monkeypatch.setattr("serving.__main__.main", run)
    for number in signals.HANDLED:
        signal.signal(number, signal.SIG_DFL)

    def close():
        """From here on its parent's end may end it: it drains."""
        assert {signal.getsignal(each) for each in signals.HANDLED} == {signals._handle}
        done.append("closed")

    channel: Any = SimpleNamespace(close=close)
    with pytest.raises(SystemExit) as ended:
        launch.main(channel, {"SERVING_TOKEN": "t"})
    assert (done, ended.value.code) == (["closed", ["serve", "a.onnx"]], 3)
    assert os.environ["SERVING_TOKEN"] == "t"
