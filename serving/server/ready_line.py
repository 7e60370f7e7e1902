"""The ready line: what is served and where, for tools and for people."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from serving.config import SecurityConfig, ServerConfig
from serving.oip.examples import Access
from serving.security.own_certificate import own_certificate
from serving.system.addresses import reached
from serving.system.systemd import notify
from serving.telemetry import logs
from serving.telemetry.metrics import Report


def announce(
    report: Report, address: str, metrics_address: str, config: ServerConfig, **more: object
) -> None:
    """Print the ready line, which tools may parse, and for people where the page is, and a request.

    Of several models, names and versions are joined by commas, and so are other facts that differ.
    Limits are those in effect: a model's own settings may lower the server's. The lines for people
    name addresses that they can call, where the server listens on all of the machine.
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
    if report.missing:
        facts["missing"] = ",".join(report.missing)
    if config.log_format == "json":
        line = json.dumps({"message": "serving", **facts})
    else:
        line = " ".join(["serving", *(f"{name}={fact}" for name, fact in facts.items())])
    logs.print_line(line, sys.stdout)  # the server serves even if nobody reads it
    if config.log_format == "text":
        lines = [_page(config.security, str(more["http"]))] if "http" in more else []
        for line in [*lines, report.request]:
            logs.print_line(f"try it: {line}", sys.stdout)
    notify("READY=1")


def access_of(security: SecurityConfig, address: str) -> Access:
    """Return how a caller on this machine reaches a server's gRPC.

    Args:
        security: its TLS and tokens.
        address: what it listens on.
    """
    names, ca = _certificate(security)
    return Access(
        reached(address, names),
        tls_ca=ca,
        needs_certificate=security.tls_client_ca is not None,
        has_tokens=security.has_tokens,
        token_file=_file(security.token_file),
    )


def _certificate(security: SecurityConfig) -> tuple[tuple[str, ...], str]:
    """Return the names of a server's certificate, and the file of its authority; without TLS none.

    A file that is not known stands in angle brackets, for readers to fill in.
    """
    if not security.has_tls:
        return (), ""

    names, is_self_signed = own_certificate(security)
    own = _file(security.tls_cert)
    return names, own if is_self_signed else "<authority of the certificate>.pem"


def _file(path: Path | None) -> str:
    """Return a file as any folder's shell finds it; empty for none."""
    return "" if path is None else str(path.absolute())


def _page(security: SecurityConfig, url: str) -> str:
    scheme, _, address = url.partition("://")
    return f"{scheme}://{reached(address, _certificate(security)[0])}"


def _each(limits: Iterable[int | None]) -> int | str:
    """Return a limit of all models, or that of each in their order; "none" is no limit."""
    found = ["none" if limit is None else limit for limit in limits]
    return found[0] if len({*found}) == 1 else ",".join(map(str, found))
