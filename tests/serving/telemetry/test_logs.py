"""One event is one line, whatever it holds."""

import errno
import io
import json
import logging
import re
import threading
import time
from datetime import UTC, datetime

import pytest

from serving.telemetry import logs
from tests.support.fakes import TIMEOUT_S

NASTY = 'a\nb\r\x1b[31m"\x00\u2028é'


@pytest.fixture(autouse=True)
def restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


def written(capsys):
    """The log so far."""
    logging.getLogger().handlers[0].flush()
    return capsys.readouterr().err


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_control_characters_do_not_break_the_line(log_format, capsys):
    logs.setup(log_format)
    token = logs.request_fields.set({"request_id": "order-17"})
    logging.getLogger("serving.test").warning("name %s", NASTY, extra={"fields": {"id": NASTY}})
    logs.request_fields.reset(token)
    error = written(capsys)
    assert error.count("\n") == 1
    assert len(error.splitlines()) == 1
    assert "order-17" in error
    if log_format == "json":
        event = json.loads(error)
        assert (event["message"], event["id"]) == (f"name {NASTY}", NASTY)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_times_are_rfc_3339(log_format, capsys):
    logs.setup(log_format)
    before = datetime.now(UTC).replace(microsecond=0)
    logging.getLogger("serving.test").warning("now")
    error = written(capsys)
    text = json.loads(error)["time"] if log_format == "json" else error.split()[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", text)
    assert before <= datetime.fromisoformat(text) <= datetime.now(UTC)


def test_line_of_a_worker_has_its_number(capsys):
    logs.setup("text", worker=0)
    logging.getLogger("serving.test").warning("now", extra={"fields": {"id": "a"}})
    assert written(capsys).endswith("WARNING serving.test: now worker=0 id=a\n")
    logs.setup("json", worker=1)
    logging.getLogger("serving.test").warning("now")
    assert json.loads(written(capsys))["worker"] == 1


def test_exception_is_part_of_the_line(capsys):
    logs.setup("json")
    try:
        raise ValueError("planted")
    except ValueError:
        logging.getLogger("serving.test").exception("it failed")
    event = json.loads(written(capsys))
    assert "ValueError: planted" in event["exception"]


def test_traceback_has_lines_of_its_own_in_a_text(capsys):
    logs.setup("text")
    try:
        raise ValueError("bad\x1b\n2026-12-01 ERROR forged")
    except ValueError:
        logging.getLogger("serving.test").exception("it\nfailed")
    first, *rest = written(capsys).splitlines()
    assert "it\\nfailed" in first
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-2:] == ["  ValueError: bad\\x1b", "  2026-12-01 ERROR forged"]


def test_long_traceback_keeps_its_ends(capsys):
    logs.setup("text")
    try:
        raise ValueError("begin " + "\n".join(map(str, range(500))) + " end" * 1000)
    except ValueError:
        logging.getLogger("serving.test").exception("it failed")
    lines = written(capsys).splitlines()
    assert len(lines) <= 62
    assert max(map(len, lines)) <= 1_000
    assert lines[1] == "  Traceback (most recent call last):"
    assert lines[-1].endswith("end")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_long_line_keeps_its_ends(log_format, capsys):
    logs.setup(log_format)
    logging.getLogger("serving.test").warning("begin %s end", "-\n" * 100_000)
    line = written(capsys).rstrip("\n")
    assert len(line) <= 1_000
    assert "begin" in line
    assert "end" in line


def test_long_exception_beside_a_long_message_is_one_short_line(capsys):
    logs.setup("json")
    try:
        raise ValueError("\x1b" * 10_000 + "planted")
    except ValueError:
        logging.getLogger("serving.test").exception("begin %s end", "\N{SNOWMAN}" * 10_000)
    line = written(capsys).rstrip("\n")
    event = json.loads(line)
    assert len(line) <= 1_000
    assert event["message"].startswith("begin")
    assert event["exception"].endswith("planted")


def test_message_that_does_not_fit_its_arguments_ends_nothing(capsys):
    logs.setup("text")
    logging.getLogger("serving.test").warning("%d images", "many")
    logging.getLogger("serving.test").warning("next")
    first, second = written(capsys).splitlines()
    assert "could not be formatted" in first
    assert second.endswith("next")


class Pipe(io.TextIOBase):
    """A stream whose reader comes late."""

    def __init__(self):
        self.is_read = threading.Event()
        self.lines: list[str] = []

    def write(self, line):
        assert self.is_read.wait(TIMEOUT_S)
        self.lines.append(line)

    def flush(self):
        pass


def test_nobody_who_logs_waits_for_a_reader(monkeypatch):
    pipe = Pipe()
    monkeypatch.setattr("sys.stderr", pipe)
    monkeypatch.setattr("serving.telemetry.logs._MAX_WAITING", 10)
    logs.setup("text")
    for number in range(100):
        logging.getLogger("serving.test").warning("line %d", number)
    pipe.is_read.set()
    logging.getLogger().handlers[0].flush()
    (lost,) = (line for line in pipe.lines if "lost" in line)
    num_lost = 100 - (len(pipe.lines) - 1)
    assert lost.endswith(f"{num_lost} log lines were lost: stderr was not read\n")


class Full(io.TextIOBase):
    def write(self, line):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_stream_that_is_full_or_closed_ends_nothing(monkeypatch):
    for stream in (Full(), None):
        monkeypatch.setattr("sys.stderr", stream)
        logs.setup("text")
        logging.getLogger("serving.test").warning("nobody sees this")
        logging.getLogger().handlers[0].flush()
        logs.print_line("nor this", stream)


class Slow(io.TextIOBase):
    """A stream in which another thread may write while one does."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        for part in (text[:5], text[5:]):
            time.sleep(0.02)
            self.text += part

    def flush(self):
        pass


def test_printed_line_comes_after_the_logged_ones(monkeypatch):
    stream = Slow()
    monkeypatch.setattr("sys.stderr", stream)
    logs.setup("text")
    logging.getLogger("serving.test").warning("first")
    assert logs.print_line("the reason", stream)
    first, last = stream.text.splitlines()
    assert first.endswith("first")
    assert last == "the reason"
