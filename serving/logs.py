"""Log lines for people or for machines: one event is one line, whatever it holds."""

import json
import logging
import sys

from serving.config import LogFormat


def setup(log_format: LogFormat) -> None:
    """Send the logs of this process to stderr; called by `__main__` only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("pygrpc_native").setLevel(logging.CRITICAL)  # what it tells is raised, too
    # It reports calls whose callers left before their status was sent: no event of ours.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Escape what would break the line or drive a terminal."""
        line = super().format(record)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Write the event as one JSON object; json escapes every control character."""
        event = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event)
