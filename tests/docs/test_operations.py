"""The runbook has every metric and every log line that the server can emit."""

import ast
import re
from pathlib import Path

from serving.config import BatchingConfig
from serving.system.process import Usage
from serving.telemetry.exposition import encode
from serving.telemetry.metrics import Counts, Report, Served

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
SPANS = re.findall(r"`([^`]+)`", PAGE)
OF_THE_LOGGER = [
    "%d log lines were lost: stderr was not read",
    "a log line could not be formatted: ",
]
"""The keys that `serving/telemetry/logs.py` writes by itself."""
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
_PLACEHOLDER = re.compile(r"%[-+ 0#]*[\d.]*[a-z]")


def metric_names():
    models = (Served("digits", "1", "", "", "", "default", 10),)
    report = Report(models, BatchingConfig(), 0, 1, 0, True, Usage.now(), Counts())
    _, body = encode(report, "text/plain")
    samples = re.findall(r"(?m)^([a-z_]+)[{ ]", body.decode())
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples}


def log_messages(folder):
    """Give the format of each log line of a package; None for one that is no literal."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "_log"
            ):
                text = node.args[0]
                is_text = isinstance(text, ast.Constant) and isinstance(text.value, str)
                yield str(text.value) if is_text and isinstance(text, ast.Constant) else None


def is_described(message):
    pattern = ".+".join(map(re.escape, _PLACEHOLDER.split(message)))
    return any(re.fullmatch(pattern, span) for span in SPANS)


def test_every_metric_is_described_and_no_other():
    names = metric_names()
    assert len(names) > 20
    described = set(re.findall(r"(?m)^\| `((?:serving|process)_[a-z_]+)` \|", PAGE))
    assert described == names


def test_every_log_line_is_described():
    messages = [*log_messages(ROOT / "serving"), OF_THE_LOGGER[0], f"{OF_THE_LOGGER[1]}%s"]
    assert len(messages) > 20
    assert None not in messages, "the text of a log line must be a literal"
    assert not [message for message in messages if message and not is_described(message)]


def test_lines_of_the_logger_are_these():
    source = (ROOT / "serving" / "telemetry" / "logs.py").read_text("utf-8")
    assert all(line in source for line in OF_THE_LOGGER)


def test_line_that_is_not_described_is_seen():
    assert is_described("worker %d died (%s), restart in %.1f s")
    assert not is_described("worker %d has left")
