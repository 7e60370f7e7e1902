"""Log lines for people or for machines: one event is one line, whatever it holds."""

import atexit
import json
import logging
import queue
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from logging.handlers import QueueHandler, QueueListener
from types import MappingProxyType

from serving.config import LogFormat

ACCESS = "serving.access"
"""The logger of access lines."""

request_fields: ContextVar[Mapping[str, str]] = ContextVar(
    "request_fields", default=MappingProxyType({})
)
"""What every line that is logged for the current request tells, such as its id."""


def setup(log_format: LogFormat) -> None:
    """Send the logs of this process to stderr; called by `__main__` only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("pygrpc_native").setLevel(logging.CRITICAL)  # what it tells is raised, too
    # It reports calls whose callers left before their status was sent: no event of ours.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    _write_access_lines_apart(handler)


def _write_access_lines_apart(handler: logging.Handler) -> None:
    """Format and write access lines on a thread of their own: they come from the event loop."""
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = QueueListener(lines, handler)
    access = logging.getLogger(ACCESS)
    access.handlers = [QueueHandler(lines)]
    access.propagate = False
    listener.start()
    atexit.register(listener.stop)  # writes what is left


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    """Return what a line tells beside its message."""
    own: Mapping[str, object] = getattr(record, "fields", {})
    return {**request_fields.get(), **own}


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Write the time as RFC 3339 has it, with the offset from UTC."""
        local = datetime.fromtimestamp(record.created).astimezone()
        return local.isoformat(timespec="milliseconds")


class _TextFormatter(_Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Escape what would break the line or drive a terminal."""
        line = super().format(record)
        line += "".join(f" {name}={value}" for name, value in _fields_of(record).items())
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Write the event as one JSON object; json escapes every control character."""
        event = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event)
