"""The ready line on stdout."""

import json
import sys

from serving.config import LogFormat
from serving.model.info import ModelInfo
from serving.telemetry import logs


def announce(
    info: ModelInfo, address: str, metrics_address: str, log_format: LogFormat, **more: object
) -> None:
    """Print the ready line, which tools may parse, and for people where the page is."""
    facts = {
        "model": info.name,
        "version": info.version,
        "precision": info.precision,
        "device": info.device,
        "transport": info.transport,
        "address": address,
        "metrics": metrics_address,
        "max_request_images": info.max_request_images,
        "max_batch_size": info.max_batch_size,
        **more,
    }
    if log_format == "json":
        line = json.dumps({"message": "serving", **facts})
    else:
        line = " ".join(["serving", *(f"{name}={fact}" for name, fact in facts.items())])
    logs.print_line(line, sys.stdout)  # the server serves even if nobody reads it
    if log_format == "text" and "http" in more:
        logs.print_line(f"draw a digit: {more['http']}", sys.stdout)
