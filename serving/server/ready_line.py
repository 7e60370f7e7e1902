"""The ready line: what is served and where, for tools and for people."""

import json
import sys
from collections.abc import Iterable

from serving.config import LogFormat
from serving.system.systemd import notify
from serving.telemetry import logs
from serving.telemetry.metrics import Report


def announce(
    report: Report, address: str, metrics_address: str, log_format: LogFormat, **more: object
) -> None:
    """Print the ready line, which tools may parse, and for people where the page is, and a request.

    Of several models, names and versions are joined by commas, and so are other facts that differ.
    Limits are those in effect: a model's own settings may lower the server's.
    """
    models = [served for served in report.models if served.role == "default"]
    facts = {
        "model": ",".join(served.name for served in models),
        "version": ",".join(served.version for served in models),
        "precision": ",".join(dict.fromkeys(served.precision for served in models)),
        "device": ",".join(dict.fromkeys(served.device for served in models)),
        "transport": models[0].transport,
        "address": address,
        "metrics": metrics_address,
        "max_request_rows": _each(served.max_request_rows for served in models),
        "max_batch_size": _each(served.max_batch_size for served in models),
        **more,
    }
    if report.waiting:
        facts["waiting"] = ",".join(report.waiting)
    if log_format == "json":
        line = json.dumps({"message": "serving", **facts})
    else:
        line = " ".join(["serving", *(f"{name}={fact}" for name, fact in facts.items())])
    logs.print_line(line, sys.stdout)  # the server serves even if nobody reads it
    if log_format == "text":
        for line in ([str(more["http"])] if "http" in more else []) + [report.request]:
            logs.print_line(f"try it: {line}", sys.stdout)
    notify("READY=1")


def _each(limits: Iterable[int | None]) -> int | str:
    """Return a limit of all models, or that of each in their order; "none" is no limit."""
    found = ["none" if limit is None else limit for limit in limits]
    return found[0] if len({*found}) == 1 else ",".join(map(str, found))
