"""What is counted, logged and traced; here, the record of calls, which most servers do without."""

from typing import TYPE_CHECKING

from serving.config import ServerConfig

if TYPE_CHECKING:
    from serving.telemetry.access_log import AccessLog


def open_access_log(config: ServerConfig) -> "AccessLog | None":
    """Return the recorder of calls; None if there is none.

    Raises:
        ConfigurationError: see `Tracer`.
    """
    if not config.otlp_endpoint and not config.access_log:
        return None
    from serving.telemetry.access_log import AccessLog

    if not config.otlp_endpoint:
        return AccessLog(config.access_log)
    from serving.telemetry.traces import Tracer

    return AccessLog(config.access_log, Tracer(config.otlp_endpoint))
