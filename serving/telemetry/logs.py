"""Log lines for people or for machines: one event is one line, in a text before its traceback."""

import json
import logging
import queue
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from copy import copy
from datetime import datetime
from types import MappingProxyType
from typing import TextIO

from serving.commandline.terminal import escape
from serving.config import LogFormat, LogLevel

ACCESS = "serving.access"
"""The logger of access lines."""
REQUEST_ID = "x-request-id"
"""The header with a call's id, and the trailer that returns it."""

request_fields: ContextVar[Mapping[str, str]] = ContextVar(
    "request_fields", default=MappingProxyType({})
)
"""Added to every line that is logged for the current request, such as its id."""


_MAX_WAITING = 10_000
"""Lines that wait for the reader of stderr; further ones are lost and counted."""
_MAX_CHARACTERS = 1_000
"""Characters of the longest line."""
_MAX_LINES = 60
"""Lines of the longest traceback."""
_FLUSH_TIMEOUT_S = 1.0
"""How long the process waits for that reader when it ends."""


def setup(log_format: LogFormat, log_level: LogLevel = "info", worker: int | None = None) -> None:
    """Send the logs of this process to stderr; called by `__main__` only.

    Args:
        log_format: text or JSON.
        log_level: the least level of the lines.
        worker: the number of this process among several workers, added to every line.
    """
    handler = _Handler(sys.stderr, {} if worker is None else {"worker": worker})
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(level=log_level.upper(), handlers=[handler], force=True)
    logging.getLogger(ACCESS).setLevel(logging.INFO)  # which has an option of its own
    # It logs calls whose callers left before their status was sent, which is not worth a line.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)


def print_line(line: str, stream: TextIO | None) -> bool:
    """Print a line after those that were logged; takes a second at most, and raises nothing.

    Returns:
        False if it has not been read yet: the stream stays locked until then.
    """

    def write(stream: TextIO) -> None:
        for handler in logging.getLogger().handlers:
            handler.flush()
        with suppress(OSError, ValueError):  # full, or closed
            stream.write(line + "\n")  # at once: print() would let another line between the two
            stream.flush()

    if stream is None:  # it was closed when the process began
        return True
    thread = threading.Thread(target=write, args=(stream,), daemon=True)
    thread.start()
    thread.join(_FLUSH_TIMEOUT_S)
    return not thread.is_alive()


class _Handler(logging.Handler):
    """Formats and writes on a thread of its own, so that no caller waits for a slow reader."""

    def __init__(self, stream: TextIO | None, fields: Mapping[str, object]) -> None:
        """Start the writer.

        Args:
            stream: None, which is a closed stderr, drops all lines.
            fields: added to every line.
        """
        super().__init__()
        self._stream = stream
        self._fields = fields
        self._lines: queue.SimpleQueue[logging.LogRecord | threading.Event] = queue.SimpleQueue()
        self._num_lost = 0
        threading.Thread(target=self._write_all, name="log-writer", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, with the fields of the current request."""
        record.__dict__["fields"] = {
            **self._fields,
            **request_fields.get(),
            **_fields_of(record),
        }
        if self._lines.qsize() < _MAX_WAITING:
            self._lines.put(record)
        else:
            self._num_lost += 1

    def flush(self) -> None:
        """Wait until the queued lines are written, for a second at most."""
        written = threading.Event()
        self._lines.put(written)
        written.wait(_FLUSH_TIMEOUT_S)

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            self._write(line)
            if self._num_lost:
                num_lost, self._num_lost = self._num_lost, 0
                text, level = "%d log lines were lost: stderr was not read", logging.WARNING
                self._write(logging.LogRecord(__name__, level, "", 0, text, (num_lost,), None))

    def _write(self, record: logging.LogRecord) -> None:
        if self._stream is None:
            return
        try:
            line = self.format(record)
        except Exception as err:  # arguments that don't fit the message
            line = f"a log line could not be formatted: {type(err).__name__}"
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # full, or closed
            self._num_lost += 1


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    return getattr(record, "fields", {})


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Write the time by RFC 3339, with the offset from UTC."""
        local = datetime.fromtimestamp(record.created).astimezone()
        return local.isoformat(timespec="milliseconds")


def _shortened(text: str, most: int = _MAX_CHARACTERS) -> str:
    """Keep both ends of a long text: its beginning, and the innermost frames of a traceback."""
    half = (most - len(" ... ")) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


class _TextFormatter(_Formatter):
    """A line for an event; a traceback follows, indented, so that none looks like another event."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Escape newlines and control characters."""
        event = copy(record)
        event.exc_info = event.exc_text = None
        line = super().format(event)
        line += "".join(f" {name}={value}" for name, value in _fields_of(record).items())
        lines = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        if len(lines) > _MAX_LINES:
            half = _MAX_LINES // 2
            lines = [*lines[:half], "...", *lines[-half:]]
        return "\n".join(map(_shortened, [escape(line), *(f"  {escape(each)}" for each in lines)]))


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Write the event as one JSON object; json escapes control characters."""
        event = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        most = _MAX_CHARACTERS  # of a text; fewer until the line, with its escapes, is short enough
        while len(line := json.dumps(event)) > _MAX_CHARACTERS and most > len(" ... "):
            most = most * 3 // 4
            event = {
                name: _shortened(value, most) if isinstance(value, str) else value
                for name, value in event.items()
            }
        return line
