"""The ready line on stdout; systemd is told, too."""

import json
import sys

from serving.config import LogFormat
from serving.system.notify import notify
from serving.telemetry import logs
from serving.telemetry.report import Report


def announce(
    report: Report, address: str, metrics_address: str, log_format: LogFormat, **more: object
) -> None:
    """Print the ready line, which tools may parse, and for people where the page is.

    Of several models, names and versions are joined by commas, and so is what differs else.
    """
    facts = {
        "model": ",".join(served.name for served in report.models),
        "version": ",".join(served.version for served in report.models),
        "precision": ",".join(dict.fromkeys(served.precision for served in report.models)),
        "device": ",".join(dict.fromkeys(served.device for served in report.models)),
        "transport": report.models[0].transport,
        "address": address,
        "metrics": metrics_address,
        "max_request_images": report.batching.max_request_images,
        "max_batch_size": report.batching.max_batch_size,
        **more,
    }
    if log_format == "json":
        line = json.dumps({"message": "serving", **facts})
    else:
        line = " ".join(["serving", *(f"{name}={fact}" for name, fact in facts.items())])
    logs.print_line(line, sys.stdout)  # the server serves even if nobody reads it
    if log_format == "text" and "http" in more:
        what = "draw a digit" if any(each.can_be_drawn for each in report.models) else "try it"
        logs.print_line(f"{what}: {more['http']}", sys.stdout)
    notify("READY=1")
