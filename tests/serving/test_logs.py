"""One event is one line, whatever it holds."""

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from serving import logs

NASTY = 'a\nb\r\x1b[31m"\x00\u2028é'


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root, access = logging.getLogger(), logging.getLogger(logs.ACCESS)
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, access.handlers, access.propagate = handlers, [], True
    root.setLevel(level)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_control_characters_do_not_break_the_line(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.setup(log_format)  # type: ignore[arg-type]
    token = logs.request_fields.set({"request_id": "order-17"})
    logging.getLogger("serving.test").warning("name %s", NASTY, extra={"fields": {"id": NASTY}})
    logs.request_fields.reset(token)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error.splitlines()) == 1
    assert "order-17" in error
    if log_format == "json":
        event = json.loads(error)
        assert (event["message"], event["id"]) == (f"name {NASTY}", NASTY)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_times_are_rfc_3339(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(log_format)  # type: ignore[arg-type]
    before = datetime.now(UTC).replace(microsecond=0)
    logging.getLogger("serving.test").warning("now")
    error = capsys.readouterr().err
    text = json.loads(error)["time"] if log_format == "json" else error.split()[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", text)
    assert before <= datetime.fromisoformat(text) <= datetime.now(UTC)


def test_exception_is_part_of_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("json")
    try:
        raise ValueError("planted")
    except ValueError:
        logging.getLogger("serving.test").exception("it failed")
    event = json.loads(capsys.readouterr().err)
    assert "ValueError: planted" in event["exception"]
